"""Means over seeds for a terminal: each arm's losses over its seeds, and how arms' means differ."""

from __future__ import annotations

import statistics
from typing import Any

from slmctl.comparison.comparing import seed_gap
from slmctl.report import numbers as n
from slmctl.report.blocks import DataTable
from slmctl.report.facts import PLAIN, Facts, rows_of
from slmctl.report.safe_text import shortened

ENOUGH = 3
"""Seeds below which an interval of means is too wide to tell much."""


def seed_tables(facts: Facts) -> list[DataTable]:
    """The means with their standard deviations, and Welch's intervals of their differences; nothing without repeated seeds."""
    entries = [s for s in rows_of(facts.results, "seeds") if len(s.get("arms") or []) > 1 and s.get("arm") in facts.arms]
    means, gaps = [], []
    for heldout in facts.sets:
        found = {str(s["arm"]): loss for s in entries if (loss := _over_seeds(facts, s["arms"], heldout)) is not None}
        for arm, loss in found.items():
            means.append([shortened(heldout, 10), shortened(arm, 16), str(loss["n"]), n.fixed(loss["mean"]), n.fixed(loss["sd"])])
        for a, b in _pairs(facts, list(found)):
            gap = seed_gap(facts.results, {"target_loss": found[a]}, {"target_loss": found[b]})
            ends = n.interval([gap.difference - gap.reach, gap.difference + gap.reach], sign=True) or n.NONE
            pair = f"{shortened(a, 14)} − {shortened(b, 14)}"
            gaps.append([shortened(heldout, 10), pair, n.signed(gap.difference), ends])
    few = bool(entries) and min(len(s["arms"]) for s in entries) < ENOUGH
    note = f"Fewer than {ENOUGH} seeds tell little: their intervals are wide." if few and gaps else ""
    header = ["set", "arm", "seeds", "mean loss", "± sd"]
    return [
        DataTable("Means over seeds (nats a token, lower is better)", header, means),
        DataTable(
            "Differences of means over seeds (negative: the first is better)",
            ["set", "arms", "loss", f"{facts.level} interval"],
            gaps,
            note,
        ),
    ]


def _over_seeds(facts: Facts, arms: list[Any], heldout: str) -> dict[str, Any] | None:
    """Mean, standard deviation (n - 1) and n of arms' losses on a set; None where one is not known."""
    losses = [facts.loss(str(arm), heldout) for arm in arms]
    known = [x for x in losses if x is not None]
    if len(known) < len(losses):
        return None
    return {"mean": statistics.fmean(known), "sd": statistics.stdev(known), "n": len(known)}


def _pairs(facts: Facts, arms: list[str]) -> list[tuple[str, str]]:
    """Each arm with each control, and the controls with each other."""
    controls = [a for a in arms if facts.criterion(a) in PLAIN]
    return [(a, c) for a in arms if a not in controls for c in controls] + [
        (b, a) for i, a in enumerate(controls) for b in controls[i + 1 :]
    ]
