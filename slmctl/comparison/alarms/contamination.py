"""Alarms about the texts themselves: what is held out must not stand in what models learn from."""

from __future__ import annotations

from collections.abc import Iterator

from slmctl.comparison.comparing import Alarm, Results, alarm, percent

MANY = 0.05
"""Share of a held-out set's documents from which on figures on it measure memory as much as skill."""


def contamination(results: Results) -> Iterator[Alarm]:
    """What was found in which text; and of what was not looked for, that it is not known."""
    found, arms = results.get("contamination"), results.get("arms")
    if not isinstance(found, dict):
        found = {"not_checked": {"all": "the results do not say that it was"}} if arms else {}
    evaluated = {heldout for model in results["models"].values() for heldout in model["heldout"]}
    dirty = False
    for heldout, figures in found.get("heldout", {}).items():
        for side in (s for s in ("curated", "corpus") if heldout in evaluated and s in figures):
            exact, overlap, documents = figures[side]["exact"], figures[side]["overlap"], figures["documents"]
            if not exact + overlap:
                continue
            dirty = True
            share = (exact + overlap) / documents
            level = "bad" if share >= MANY else "warning"
            learn = "the reference learns from" if side == "curated" else "the arms learn from"
            yield alarm(
                "contamination",
                level,
                f"{exact + overlap:,} of the {documents:,} documents of {heldout} ({percent(share)}) also stand in {side} text, "
                f"which {learn}: {exact:,} word for word, {overlap:,} with at least {percent(found['overlap'])} of their "
                f"{found['run']}-grams. What a model remembers of them makes its loss on {heldout} lower than on new text.",
            )
    not_checked = found.get("not_checked", {})
    for what, why in not_checked.items():
        whole = "Held-out documents were" if what == "all" else f"{what} was"
        yield alarm("contamination", "note", f"{whole} not checked for being in the text that models learn from: {why}.")
    evaluated = evaluated if arms else set()
    checked = {h for h, figures in found.get("heldout", {}).items() if h in evaluated and {"curated", "corpus"} <= set(figures)}
    if not not_checked and (left := sorted(evaluated - checked)):
        text = f"{', '.join(left)}: not checked for being in the text that models learn from."
        yield alarm("contamination", "note", text)
    elif not dirty and not not_checked and checked:
        documents = sum(found["heldout"][h]["documents"] for h in checked)
        text = f"Of {documents:,} held-out documents none was found in curated or corpus text. What a base from elsewhere had "
        yield alarm("contamination", "good", text + "learnt from is not known.")
