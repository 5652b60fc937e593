"""Alarms about the texts themselves: what is held out must not stand in what models learn from."""

from __future__ import annotations

from collections.abc import Iterator

from slmctl.evaluation.comparing import Alarm, Results, alarm, percent

MANY = 0.05
"""Share of a held-out set's documents from which on figures on it measure memory as much as skill."""


def contamination(results: Results) -> Iterator[Alarm]:
    """Nothing where the results are of before this was looked at."""
    found = results.get("contamination")
    if not isinstance(found, dict):
        return
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
                f"{found['run']}-grams. Losses on {heldout} are too low by what was memorised.",
            )
    not_checked = found.get("not_checked", {})
    for what, why in not_checked.items():
        whole = "Held-out documents were" if what == "all" else f"{what} was"
        yield alarm("contamination", "note", f"{whole} not checked for being in the text that models learn from: {why}.")
    if not dirty and not not_checked and found.get("heldout"):
        documents = sum(f["documents"] for f in found["heldout"].values())
        text = f"None of {documents:,} held-out documents was found in curated or corpus text."
        yield alarm("contamination", "good", text)
