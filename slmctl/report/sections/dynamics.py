"""The paper's diagnostics of single tokens: their courses over training (Fig. 3, App. D), one fixed mask (Fig. 6), fits of
target loss (Fig. 7) and perplexity of selections across checkpoints (Fig. 8)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from slmctl.report import numbers as n
from slmctl.report.blocks import Block, Cell, DataTable, Row, Section
from slmctl.report.facts import Facts, items_of, rows_of
from slmctl.report.plots.dots import Dots, dots
from slmctl.report.plots.grid import heat_map
from slmctl.report.plots.lines import FEW_POINTS, Fit, Series, curves, fits
from slmctl.report.safe_text import visible
from slmctl.report.theme import DASHES, MARKERS, SERIES, Look

CATEGORIES = {
    "L→L": "low throughout",
    "H→L": "learnt",
    "H→H": "high throughout",
    "L→H": "unlearnt",
}
_LOOKS = {c: Look(SERIES[i], DASHES[i], MARKERS[i]) for i, c in enumerate(CATEGORIES)}
MOST_TOKENS = 5
"""Fluctuating tokens that are drawn; the table has all."""
LONGEST = 52
"""Characters of such a token's name in the legend."""


def _pairs(x: Any, y: Any) -> tuple[list[float], list[float | None]]:
    found = [(a, b) for a, b in zip(n.numbers(x), n.numbers(y), strict=False) if a is not None]
    return [a for a, _ in found], [b for _, b in found]


def dynamics(facts: Facts) -> Section | None:
    """Four categories: their shares, their mean losses, and tokens that go up and down."""
    arms = {a: d for a, d in items_of(facts.results, "diagnostics", "dynamics").items() if isinstance(d, dict)}
    blocks: list[Block] = []
    shares = {a: [n.number(items_of(d, "categories", c).get("share")) for c in CATEGORIES] for a, d in arms.items()}
    if any(v is not None for row in shares.values() for v in row):
        labels = [f"{c} {words}" for c, words in CATEGORIES.items()]
        counts = {a: [items_of(d, "categories", c).get("tokens") for c in CATEGORIES] for a, d in arms.items()}
        rows: list[Row] = [
            [label, *[Cell(n.percent(shares[a][i]), n.count(counts[a][i])) for a in arms]] for i, label in enumerate(labels)
        ]
        title = "Tokens by the course of their loss"
        caption = (
            "Each token has one of four courses by a line fitted to its losses: H→L fell and L→H rose by more than 0.2 nats; of "
            "the others L→L ended at or below the mean loss and H→H above it (App. D.1). So the names tell the course, not the "
            "height. The paper found 51% L→L, "
            "26% H→L, 11% H→H and 12% L→H, of a held-out validation set. These here are tokens of rows of the training corpus, "
            "at base and at the kept checkpoints, which may be unevenly spaced."
        )
        series = [Dots(a, facts.look(a), shares[a]) for a in arms]
        table = DataTable(title, ["course", *arms], rows)
        blocks.append(
            dots(facts.names.unique("categories"), title, caption, labels, series, "share of tokens", table, as_percent=True)
        )
    for arm, d in arms.items():
        means = [
            Series(c, _LOOKS[c], *_pairs(d.get("tokens_seen"), items_of(d, "categories", c).get("mean"))) for c in CATEGORIES
        ]
        means = [s for s in means if any(y is not None for y in s.y)]
        if means:
            title = f"Mean loss by course: {visible(arm, 60)}"
            caption = "The mean loss of the tokens of each course at each checkpoint (Fig. 3a of the paper)."
            name = facts.names.unique(f"dynamics-{arm}")
            blocks.append(curves(name, title, caption, means, "tokens seen", "nats a token"))
    for arm, d in arms.items():
        blocks += _fluctuating(facts, arm, d)
    intro = "Losses of the same corpus tokens at base and at every kept checkpoint. Which tokens come down?"
    return Section("dynamics", "Token dynamics", intro, blocks) if blocks else None


def _fluctuating(facts: Facts, arm: str, found: dict[str, Any]) -> list[Block]:
    tokens = rows_of(found, "fluctuating")
    if not tokens:
        return []
    series = []
    for i, t in enumerate(tokens[:MOST_TOKENS]):
        look = Look(SERIES[i % 7], DASHES[i % 7], MARKERS[i % 7])
        series.append(Series(_named(i + 1, t), look, *_pairs(found.get("tokens_seen"), t.get("losses"))))
    steps = [n.short(s) for s in n.numbers(found.get("tokens_seen"))]
    rows: list[Row] = [
        [
            Cell(f"{i}. {visible(t.get('text', ''), 40)}", left=True),
            Cell(f"…{visible(str(t.get('before', ''))[-60:])}", left=True),
            n.count(t.get("position")),
            str(t.get("category", n.NONE)),
            *[n.fixed(x, 2) for x in n.numbers(t.get("losses"))],
        ]
        for i, t in enumerate(tokens, start=1)
    ]
    title = f"Some tokens that fluctuate: {visible(arm, 60)}"
    caption = (
        "Single tokens, drawn by seed among those whose loss neither falls nor rises and swings most (Fig. 3b, c of the paper). "
        "The legend has each token, the text just before it and its position in the row; the data have all that were drawn."
    )
    header = ["token", "text before it", "position in the row", "course", *[f"at {s}" for s in steps]]
    table = DataTable(title, header, rows)
    name = facts.names.unique(f"fluctuating-{arm}")
    drawing = curves(name, title, caption, series, "tokens seen", "nats", longest=LONGEST)
    return [replace(drawing, table=table)]


def _named(i: int, token: dict[str, Any]) -> str:
    """`2. “ apples” after “Mary buys 12”, at 40`."""
    before = " ".join(str(token.get("before", "")).split())[-14:]
    name = f"{i}. “{visible(token.get('text', ''), 12)}”"
    name += f" after “{visible(before)}”" if before else ""
    place = n.count(token.get("position"))
    return name if place == n.NONE else f"{name}, at {place}"


def diagnostics(facts: Facts) -> Section | None:
    blocks = [*_fixed_mask(facts), *_fit(facts), *_matrix(facts)]
    found = items_of(facts.results, "diagnostics")
    name = visible(found.get("set", "corpus"), 40)
    where = f"On {n.count(found.get('tokens'))} tokens of the set {name}, at every kept checkpoint."
    return Section("diagnostics", "Selected against unselected tokens", where, blocks) if blocks else None


def _fixed_mask(facts: Facts) -> list[Block]:
    mask = items_of(facts.results, "diagnostics", "fixed_mask")
    arms = {a: d for a, d in items_of(mask, "arms").items() if isinstance(d, dict)}
    blocks: list[Block] = []
    for key, words in (("selected", "kept"), ("unselected", "left out")):
        series = [Series(a, facts.look(a), *_pairs(d.get("tokens_seen"), d.get(key))) for a, d in arms.items()]
        series = [s for s in series if any(y is not None for y in s.y)]
        if series:
            share = n.number(mask.get("share"))
            if share is not None and key == "unselected":
                share = 1 - share
            part = "" if share is None else f"{n.percent(share)} of "
            title = f"Loss on the tokens that one mask has {words}"
            caption = (
                f"The mean loss of the same {part}tokens, those {words}, under each arm's checkpoints (Fig. 6 of "
                "the paper). Compare arms at the same tokens seen: the lower curve predicts these tokens better there. How far "
                "all of them come down is partly the mask's doing, and what it brings on the target is not shown here."
            )
            if mask.get("description"):
                caption += f" The mask: {visible(mask['description'], 800)}."
            caption += facts.stand_in(a for a in facts.arms if a == facts.main)
            name = facts.names.unique(f"mask-{key}")
            blocks.append(curves(name, title, caption, series, "tokens seen", "nats a token"))
    return blocks


def _fit(facts: Facts) -> list[Block]:
    arms = {a: d for a, d in items_of(facts.results, "diagnostics", "fit").items() if isinstance(d, dict)}
    blocks: list[Block] = []
    for suffix, words in (("", "kept"), ("_unselected", "left out")):
        found = []
        for arm, d in arms.items():
            points = zip(n.numbers(d.get(f"x{suffix}")), n.numbers(d.get("y")), strict=False)
            known = [(x, y) for x, y in points if x is not None and y is not None]
            line = (n.number(d.get(f"{key}{suffix}")) for key in ("slope", "intercept", "r2"))
            if known:
                found.append(Fit(arm, facts.look(arm), [x for x, _ in known], [y for _, y in known], *line))
        if found:
            title = f"Target loss against the loss of tokens {words}"
            caption = (
                "A point is a checkpoint of an arm (Fig. 7 of the paper), the line the least-squares one: where points lie close "
                "to a rising line, the target's loss came down together with that of these tokens. R² is the share of "
                f"variance that the line explains; of {FEW_POINTS} points or fewer it is not given, since it would say nothing."
            )
            y_label = visible(next(iter(arms.values())).get("y_name") or "target loss, nats a token", 60)
            blocks.append(
                fits(facts.names.unique(f"fit-{words}"), title, caption, found, f"loss of tokens {words}, nats", y_label)
            )
    return blocks


def _matrix(facts: Facts) -> list[Block]:
    blocks: list[Block] = []
    for arm, d in items_of(facts.results, "diagnostics", "matrix").items():
        values = [n.numbers(row) for row in (d.get("perplexity") or [])] if isinstance(d, dict) else []
        steps = [n.count(s) for s in n.numbers(d.get("steps"))] if values else []
        if not values or any(len(row) != len(steps) for row in values) or len(values) != len(steps):
            continue
        title = f"Perplexity of each checkpoint's selection: {visible(arm, 60)}"
        caption = (
            "Row: the checkpoint that chose the tokens; column: the one that reads them, both by step (Fig. 8 of the paper). "
            "The stronger the shade, the higher; where rows differ little, what each checkpoint chose is about as hard."
        )
        caption += facts.stand_in([arm])
        name, sides = facts.names.unique(f"matrix-{arm}"), ("chosen at step", "read at step")
        dash = "nothing was chosen there, or it is no finite number"
        blocks.append(heat_map(name, title, caption, steps, steps, values, *sides, dash))
    return blocks
