"""What each arm chose: realised share, overlap with chance, alignment with the reference, and kinds of token."""

from __future__ import annotations

from slmctl.report import numbers as n
from slmctl.report.blocks import Block, Cell, DataTable, Row, Section
from slmctl.report.facts import Facts, dig, items_of, rows_of
from slmctl.report.plots.dots import Dots, dots

KINDS = {
    "by_kind": ("Share kept by kind of token", "kind"),
    "by_frequency": ("Share kept by how frequent a token is", "frequency"),
    "by_position": ("Share kept by position in the row", "position"),
}


def selection(facts: Facts) -> Section | None:
    blocks: list[Block] = []
    rows: list[Row] = []
    for arm in facts.arms:
        s = items_of(facts.arms, arm, "selected")
        if not s:
            continue
        overlap = n.percent(s.get("overlap_with_random"))
        if overlap != n.NONE and n.number(s.get("expected_overlap")) is not None:
            overlap += f" ({n.percent(s['expected_overlap'])})"
        first, last = n.fixed(s.get("correlation_first"), 3), n.fixed(s.get("correlation_last"), 3)
        rows.append(
            [
                arm,
                Cell(facts.competition(arm), left=True),
                n.percent(s.get("ratio")),
                overlap,
                n.signed(s.get("mean_excess_selected"), 3),
                n.signed(s.get("mean_excess_unselected"), 3),
                n.NONE if first == last == n.NONE else f"{first} → {last}",
            ]
        )
    if rows:
        header = [
            *(
                "arm",
                "within what tokens compete",
                "share kept",
                "overlap with random (by chance)",
                "excess loss, kept",
                "excess loss, left out",
            ),
            "correlation with reference, first → last",
        ]
        note = (
            "Excess is the live loss minus the reference's, in nats a token, over the last tenth of training: a selection by "
            "excess loss keeps tokens with clearly more of it than it leaves out. The overlap is the share of the tokens kept in "
            "the first steps that the random control with the same seeds would have kept: near chance is as it should be, near "
            "100% means that the selection ignores its scores. Correlations of random arms are over the tokens alone that they "
            "train on."
        )
        dash = "controls choose by no reference, and an all-tokens arm leaves nothing out; else it was not measured"
        blocks.append(DataTable("What was selected", header, rows, note, dash=dash))
    if (steps := _steps(facts)) is not None:
        blocks.append(steps)
    blocks += [figure for key in KINDS if (figure := _by(facts, key)) is not None]
    return Section("selection", "Selection", "", blocks) if blocks else None


def _steps(facts: Facts) -> Block | None:
    rows: list[Row] = []
    for arm in facts.arms:
        taken, skipped = dig(facts.arms, arm, "steps"), dig(facts.arms, arm, "selected", "skipped_steps")
        norm, clip = (n.general(dig(facts.arms, arm, "gradient", key), 3) for key in ("median_norm", "clip"))
        rows.append([arm, n.count(taken), n.count(skipped), _clipped(facts, arm), norm, clip])
    if all(cell == n.NONE for row in rows for cell in row[3:5]):
        return None
    header = ["arm", "steps", "of them skipped", "of those taken clipped", "gradient norm, median", "grad_clip"]
    note = (
        "Clipped are steps whose gradient’s norm was above grad_clip and was cut to it. Where these shares differ, one grad_clip "
        "acts on an arm more than on its control."
    )
    return DataTable("Steps and gradients", header, rows, note, dash="not logged, or grad_clip is 0")


def _clipped(facts: Facts, arm: str) -> str:
    """The share of an arm's steps that its grad_clip shortened; a dash where no log tells."""
    found = items_of(facts.arms, arm, "gradient")
    if n.number(found.get("clipped_share")) is not None:
        return n.percent(found["clipped_share"])
    return "no clip" if n.number(found.get("median_norm")) is not None and found.get("clip") is None else n.NONE


def _by(facts: Facts, key: str) -> Block | None:
    title, what = KINDS[key]
    found = {arm: {str(r.get("label")): r for r in rows_of(facts.arms, arm, "kinds", key)} for arm in facts.arms}
    found = {arm: kinds for arm, kinds in found.items() if kinds and facts.criterion(arm) != "all"}
    labels = list(dict.fromkeys(label for kinds in found.values() for label in kinds))
    if not labels:
        return None
    series, rows = [], [[label, ""] for label in labels]
    for arm, kinds in found.items():
        shares = []
        for i, label in enumerate(labels):
            seen, kept = n.number(dig(kinds, label, "seen")), n.number(dig(kinds, label, "selected"))
            shares.append(kept / seen if seen and kept is not None else None)
            rows[i][1] = n.count(seen) if seen is not None else rows[i][1]
            rows[i].append(n.NONE if shares[-1] is None else f"{n.count(kept)} ({n.percent(shares[-1])})")
        series.append(Dots(arm, facts.look(arm), shares))
    did, label, where = "trained on", "share of tokens trained on", ""
    if key == "by_position":  # which is not counted in training
        did, label = "would train on", "share of tokens that would be trained on"
        where = " As each arm would select on the diagnostic rows under its last checkpoint, not as it did in training."
        where += facts.stand_in(found)
    caption = "Further right means that more of these tokens are kept; all-tokens arms keep 100% and are left out." + where
    header = [what, "tokens seen", *[f"{arm} {did}" for arm in found]]
    table = DataTable(title, header, rows, dash="no such token was seen, or they were not counted")
    return dots(facts.names.unique(f"kept-{key}"), title, caption, labels, series, label, table, as_percent=True)
