"""Every model beside every other: losses with intervals, tasks, what was spent; and their paired differences."""

from __future__ import annotations

from typing import Any

from slmctl.comparison.alarms.alarms import UNEQUAL
from slmctl.comparison.comparing import ALIKE
from slmctl.report import numbers as n
from slmctl.report.blocks import Block, Cell, DataTable, Row, Section
from slmctl.report.facts import ROLLING, Facts, beyond_chance, dig, has_rolling, items_of, rows_of
from slmctl.report.plots.dots import Dots, dots
from slmctl.report.theme import INK, Look


def comparison(facts: Facts) -> Section | None:
    """A column for each model, a row for each measure, in groups."""
    if not facts.models:
        return None
    rows: list[Row] = []
    groups: dict[int, str] = {}
    rolling = has_rolling(facts.models)
    for heldout in facts.sets:
        groups[len(rows)] = _heading(facts, heldout)
        best = min((x for a in facts.arms if (x := facts.loss(a, heldout)) is not None), default=None)
        losses = []
        for model in facts.columns:
            loss = facts.loss(model, heldout)
            strong = loss is not None and loss == best and model in facts.arms and len(facts.arms) > 1
            losses.append(Cell(n.fixed(loss), n.interval_or_why(facts.loss_interval(model, heldout), loss), strong))
        rows.append(["Loss, nats a token", *losses])
        found = [items_of(facts.models, m, "heldout", heldout) for m in facts.columns]
        bits = [(h.get("bits_per_byte"), h.get("bits_per_byte_interval")) for h in found]
        rows.append(["Bits per byte", *[Cell(n.fixed(b), n.interval_or_why(ends, b)) for b, ends in bits]])
        if rolling:
            of_documents = [dig(facts.models, m, "rolling", heldout, "bits_per_byte") for m in facts.columns]
            rows.append(["Bits per byte, rolling", *[n.fixed(b) for b in of_documents]])
        rows.append(["Perplexity", *[n.significant(h.get("perplexity")) for h in found]])
    groups[len(rows)] = "Training"
    rows.append(["Tokens selected by", *[_selection(facts, m) for m in facts.columns]])
    for label, key in (("Tokens seen", "tokens_seen"), ("Tokens trained on", "tokens_selected")):
        rows.append([label, *[n.count(dig(facts.arms, m, key)) for m in facts.columns]])
    reach = [_reach(facts, m) for m in facts.columns]
    if any(cell.text != n.NONE for cell in reach):
        rows.append(["Tokens until the control’s final loss", *reach])
    table = DataTable(
        "All models on all held-out sets",
        ["", *facts.columns],
        rows,
        f"In brackets: {facts.level} intervals over documents ({n.NEEDS}; one of bits per byte also tokens that "
        "give back the text). Bold: the lowest loss among the arms.",
        groups,
        "not measured, or no finite number; of training, this model was not trained as an arm",
    )
    intro = f"Losses are natural logarithms a token on held-out text; lower is better.{f' {ROLLING}' if rolling else ''}"
    return Section("comparison", "Comparison", intro, [table])


def _from_base(facts: Facts, differences: list[dict[str, Any]]) -> DataTable:
    """Of arms and reference; a table of its own: these are so much larger that they would make the others a dot at zero."""
    rows: list[Row] = []
    groups: dict[int, str] = {}
    for heldout in dict.fromkeys(str(d.get("set")) for d in differences):
        groups[len(rows)] = f"Held-out set {heldout}"
        for d in differences:
            if str(d.get("set")) == heldout:
                ends = n.interval(d.get("interval"), sign=True) or n.NONE
                rows.append([f"{d.get('a')} − {d.get('b')}", n.signed(d.get("difference")), ends, n.count(d.get("documents"))])
    header = ["models", "difference, nats a token", f"{facts.level} interval", "documents"]
    return DataTable("Paired differences from the base", header, rows, groups=groups, dash=n.NEEDS)


def _between_arms(facts: Facts, difference: dict[str, Any]) -> bool:
    return difference.get("a") in facts.arms and difference.get("b") in facts.arms


def _heading(facts: Facts, heldout: str) -> str:
    """The set's name and size; all models read the same tokens of it."""
    found = next((h for m in facts.models if (h := items_of(facts.models, m, "heldout", heldout))), {})
    sizes = [
        (n.count(found.get(k)), words) for k, words in (("predicted_tokens", "predicted tokens"), ("documents", "documents"))
    ]
    size = ", ".join(f"{number} {words}" for number, words in sizes if number != n.NONE)
    effective, documents = n.number(found.get("effective_documents")), n.number(found.get("documents"))
    if effective is not None and documents is not None and effective < UNEQUAL * documents:
        size += f" (of unequal length, worth {effective:.0f} equal ones)"
    size += f"; {facts.leaks(heldout)}" if size else ""
    name = f"Held-out set {heldout}" if heldout != facts.target else f"Held-out set {heldout}, the target"
    return f"{name}: {size}" if size else name


def _selection(facts: Facts, model: str) -> Cell:
    words, _, share = facts.selection(model).partition(", ")
    return Cell(words, share)


def _reach(facts: Facts, model: str) -> Cell:
    control = facts.headline(model)
    if not control:
        return Cell(n.NONE)
    if n.number(control.get("tokens_to_reach")) is None:
        return Cell("not judged" if control.get("why") else "not reached")
    times = "the control" if control.get("arm") == model else n.fewer(control.get("times_fewer_tokens"))
    return Cell(n.count(control["tokens_to_reach"]), "" if times == n.NONE else times)


def differences(facts: Facts) -> Section | None:
    """A forest plot for each held-out set: loss of one arm minus loss of another on the same documents."""
    blocks: list[Block] = []
    records = [d for d in rows_of(facts.results, "differences") if n.number(d.get("difference")) is not None]
    others = [d for d in records if not _between_arms(facts, d)]
    records = [d for d in records if _between_arms(facts, d)]
    sets = sorted(dict.fromkeys(str(d.get("set")) for d in records), key=lambda s: s != facts.target)
    for heldout in sets:
        found = [d for d in records if str(d.get("set")) == heldout]
        labels = [f"{d.get('a')} − {d.get('b')}" for d in found]
        ends = [n.pair(d.get("interval")) for d in found]
        says = {True: "beyond chance", False: "within chance", None: n.NONE}
        rows: list[Row] = [
            [
                label,
                n.signed(d.get("difference")),
                n.interval(d.get("interval"), sign=True) or n.NONE,
                says[beyond_chance(end)] if abs(d["difference"]) >= ALIKE else "the same to three digits",
                n.count(d.get("documents")),
            ]
            for label, d, end in zip(labels, found, ends, strict=True)
        ]
        title = f"Paired differences on {heldout}"
        header = ["arms", "difference, nats a token", f"{facts.level} interval", "leaves out zero?", "documents"]
        caption = (
            "Left of zero the first arm has the lower loss, right of zero the second; a filled marker means that the interval "
            "leaves out zero, so that the difference is more than chance over documents."
        )
        values = [n.number(d.get("difference")) for d in found]
        series = [Dots("difference", Look(INK), values, ends)]
        name = facts.names.unique(f"differences-{heldout}")
        table = DataTable(title, header, rows, dash=n.NEEDS)
        blocks.append(dots(name, title, caption, labels, series, "difference of losses, nats a token", table, line=0.0))
    if others:
        blocks.append(_from_base(facts, others))
    intro = (
        "Both arms of a pair read the same documents, so what is hard about a document drops out. Intervals say what other "
        "documents would change, not what another seed would."
    )
    return Section("differences", "Differences between arms", intro, blocks) if blocks else None
