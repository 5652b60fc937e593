"""What each arm spent, and what it took to reach the control, with and without the reference and its scores."""

from __future__ import annotations

from typing import Any

from slmctl.comparison.crossings_in_words import ends_of
from slmctl.report import numbers as n
from slmctl.report.blocks import Block, Cell, DataTable, Row, Section
from slmctl.report.facts import Facts, dig, items_of, rows_of


def _shared(facts: Facts, arm: str) -> tuple[float | None, float | None]:
    """FLOPs of reference training and of scoring that an arm needs: none where it looks at no reference."""
    spent = items_of(facts.results, "costs")
    if arm in facts.controls:
        return 0.0, 0.0
    scores = items_of(spent, "scoring_flops")
    name = dig(facts.arms, arm, "selection", "reference") or next(iter(scores), None)
    return n.number(spent.get("reference_flops")), n.number(scores.get(str(name)))


def costs(facts: Facts) -> Section | None:
    blocks: list[Block] = []
    rows: list[Row] = []
    for arm, a in facts.arms.items():
        reference, scoring = _shared(facts, arm)
        own = n.number(a.get("flops"))
        total = (
            None if own is None or scoring is None else own + scoring + (reference or 0.0)
        )  # not every reference is trained here
        rows.append(
            [
                arm,
                n.count(a.get("tokens_seen")),
                n.count(a.get("tokens_selected")),
                n.flops(a.get("flops")),
                n.flops(reference),
                n.flops(scoring),
                n.flops(total),
                n.hours(a.get("training_seconds")),
            ]
        )
    if rows:
        header = [
            *("arm", "tokens seen", "tokens trained on", "FLOPs, training", "FLOPs, reference", "FLOPs, scoring", "FLOPs, all"),
            "training time",
        ]
        note = "The reference and its scores are made once and serve every arm and every later run on the same corpus."
        dash = "not known, since the model behind it, or the log of its training, is not here"
        blocks.append(DataTable("Spent by each arm", header, rows, note, dash=dash))
    reached: list[Row] = []
    controls = [c for arm in facts.arms if (c := facts.headline(arm))]
    several = len({str(c.get("arm")) for c in controls}) > 1
    for arm in facts.arms:
        for label, c in ((arm, facts.headline(arm)), (arm, _over_seeds(facts, arm))):
            if not c:
                continue
            name = f"{label}, {len(c['seeds'])} seeds" if "seeds" in c else label
            reached.append(
                [
                    name,
                    *([str(c.get("arm", n.NONE))] if several else []),
                    _reached(c, "tokens_to_reach", "times_fewer_tokens", n.count, arm),
                    _reached(c, "selected_tokens_to_reach", "", n.count, arm),
                    _reached(c, "flops_to_reach", "times_fewer_flops", n.flops, arm),
                    _reached(c, "flops_to_reach_all", "times_fewer_flops_all", n.flops, arm),
                ]
            )
    if reached:
        goal = next((g for c in controls if (g := n.number(c.get("target_loss"))) is not None), None)
        title = f"Until the target loss of {controls[0].get('arm')} ({n.fixed(goal)}) was reached"
        title = "Until the final target loss of each arm’s control was reached" if several else title
        header = ["arm", *(["control"] if several else []), "tokens seen", "tokens trained on", "FLOPs, training"]
        header.append("FLOPs, with reference and scoring")
        note = _read_from(facts, controls)
        why = {arm: facts.headline(arm).get("why") for arm in facts.arms}
        note += "".join(f" {arm} is not judged: {reason}." for arm, reason in why.items() if reason)
        blocks.append(DataTable(title, header, reached, note, dash="what it cost is not known"))
    spent = items_of(facts.results, "costs")
    shared: list[Row] = []
    if n.number(spent.get("reference_tokens")) is not None:
        shared.append(["Reference training", n.count(spent["reference_tokens"]), n.flops(spent.get("reference_flops"))])
    for name, tokens in items_of(spent, "scored_tokens").items():
        shared.append([f"Scoring with {name}", n.count(tokens), n.flops(dig(spent, "scoring_flops", name))])
    if shared:
        dash = "not known, since the model behind it is not here"
        blocks.append(DataTable("Shared costs", ["", "tokens", "FLOPs"], shared, dash=dash))
    return Section("costs", "Costs", "", blocks) if blocks else None


def _over_seeds(facts: Facts, arm: str) -> dict[str, Any]:
    """Once, in the row below the first of an arm's seeds."""
    first = next((e.get("arm") for e in rows_of(facts.results, "seeds") if arm in (e.get("arms") or [])), None)
    return facts.headline_over_seeds(arm) if arm == first else {}


def _read_from(facts: Facts, controls: list[dict[str, Any]]) -> str:
    points = [len(c["points"]) for c in controls if not c.get("why")]
    if not points:
        return ""
    few = f"{min(points)} to {max(points)}" if min(points) != max(points) else str(points[0])
    return (
        f"From base, kept checkpoints and end, {few} points that an arm and its control share, each measured on the whole set in "
        f"float32, with straight lines between them. In brackets: {facts.level} intervals over documents (of seeds, over seeds "
        "and documents), of as many times fewer or more as the figure before says; … is an open end."
    )


def _reached(control: dict[str, Any], key: str, times: str, show: Any, arm: str) -> Cell:
    if n.number(control.get(key)) is None:
        if control.get("why"):
            return Cell("not judged")
        reached = n.number(control.get("tokens_to_reach")) is not None  # then it is a cost that is not known
        return Cell("not reached" if key in control and not reached else n.NONE)
    fewer = n.fewer(control.get(times))
    if fewer == n.NONE or control.get("arm") == arm:
        return Cell(show(control[key]))
    return Cell(show(control[key]), f"{fewer} {n.fewer_interval(control.get(times), ends_of(control, times))}".rstrip())
