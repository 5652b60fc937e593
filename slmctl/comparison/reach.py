"""How much an arm needed to come down to the loss that plain training ends with: tokens, and operations with and without what
the reference and its scores cost.

It is read from base, kept checkpoints and final models, each measured whole and in float32 by `slmctl eval`; held-out losses
of training lie on whatever tokens and precision each run was told, and are pictures alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from slmctl.comparison.compared import Compared
from slmctl.comparison.crossings import Crossed, Curve, Floats, cross, grouped, in_step, interval_of, one_grid, resampled
from slmctl.comparison.measure import Measure
from slmctl.config.selection import sets_read
from slmctl.evaluation.heldout import DocumentLosses
from slmctl.evaluation.intervals import FEW

VERSION = 2
"""Of how this is found: results of another are made anew."""
FEWEST = 4
"""Points that an arm and its control have to share, base and end included, below which a curve is too coarse to read a crossing
from."""
TIMES = ("times_fewer_tokens", "times_fewer_flops", "times_fewer_flops_all")


def control_of(arms: dict[str, Any], arm: str) -> str | None:
    """The all-tokens arm to hold an arm against: of its seed and settings, else of its seed, else of its settings, else the
    first."""
    mine = arms[arm]

    def distance(name: str) -> tuple[bool, bool]:
        other = arms[name]
        return other.get("seed") != mine.get("seed"), other.get("settings") != mine.get("settings")

    controls = [n for n, a in arms.items() if a["selection"]["criterion"] == "all"]
    return min(controls, key=distance) if controls else None


# --- what is compared ---


def curves_of(
    compared: Compared, measure: Measure, arms: dict[str, Any], models: dict[str, Any], target: str
) -> dict[str, Curve | str]:
    """Each arm's target losses by document at base, kept checkpoints and end; or why there are none to go by. A point whose loss
    is not finite counts for nothing."""
    precision = models["base"]["heldout"][target]["precision"]
    if precision != "float32":
        advice = "set eval.precision: float32 and run `slmctl eval`"
        return dict.fromkeys(arms, f"models were measured in {precision}, which is too coarse for it; {advice}")
    if not compared.conditions.settings.checkpoints:
        return dict.fromkeys(arms, "kept checkpoints were not evaluated; set eval.checkpoints: true and run `slmctl eval`")
    base = compared.models["base"].fingerprint
    began_at_base = {name: arm.made_from["base"] == base for name, arm in compared.arms.items()}
    return {arm: _curve(measure, arm, facts, target, began_at_base[arm]) for arm, facts in arms.items()}


def _curve(measure: Measure, arm: str, facts: dict[str, Any], target: str, began_at_base: bool) -> Curve | str:
    """`began_at_base`: whether the base that was measured is the one that the arm began with."""
    step = facts["settings"]["batch_tokens"]
    found = [(0, 0, 0, grouped(measure.documents(target, "base")))] if began_at_base else []
    for c in facts["checkpoints"]:
        if c["step"] < facts["steps"] and c["tokens_seen"] is not None:
            losses = measure.checkpoint_documents(f"{arm}@{c['step']}")
            found.append((step * c["step"], c["tokens_seen"], c["tokens_selected"], losses))
    end = (step * facts["steps"], facts["tokens_seen"], facts["tokens_selected"])
    return _finite(arm, [*found, (*end, grouped(measure.documents(target, arm)))])


def _finite(arm: str, found: list[tuple[int, int, int, DocumentLosses]]) -> Curve | str:
    losses = [one for *_, one in found]
    if not np.isfinite(losses[-1].nats_M).all():
        return f"the final target loss of {arm} is not finite"
    finite = [i for i, one in enumerate(losses) if np.isfinite(one.nats_M).all()]
    place_G, tokens_G, selected_G = np.array([found[i][:3] for i in finite], dtype=np.float64).T
    return Curve(place_G, tokens_G, selected_G, np.stack([losses[i].nats_M for i in finite]), losses[-1].predicted_M)


@dataclass(frozen=True)
class Spending:
    """What an arm's operations are counted by."""

    each: float | None
    """Operations a token seen."""
    added: float | None
    """Those of the reference and its scores; None where they are not known."""


@dataclass(frozen=True)
class Comparison:
    """How all of it is worked out: `spent` are `costs`, `references` the configuration's."""

    curves: dict[str, Curve | str]
    spent: dict[str, Any]
    references: dict[str, Any]
    level: float
    seed: int

    def spending(self, arms: Sequence[dict[str, Any]]) -> Spending:
        seen, flops = sum(a["tokens_seen"] for a in arms), [a["flops"] for a in arms]
        each = sum(flops) / seen if seen and None not in flops else None
        return Spending(each, _added(arms[0], self.spent, self.references))


def compare_with_control(arms: dict[str, Any], goals: dict[str, float | None], how: Comparison) -> None:
    """Adds `control` to each arm: the tokens and operations it needed to first come down to its control's final target loss
    (`goals`, by arm), and how many times fewer that is than the control itself needed to first come down there, with their
    bootstrap intervals over documents. Null where that cannot be judged, with `why`."""
    for arm, facts in arms.items():
        control = control_of(arms, arm)
        if control is not None:
            found = _reached([facts], [arms[control]], [how.curves[arm]], [how.curves[control]], how)
            facts["control"] = {"arm": control, "target_loss": goals[control], **found}


def compare_seeds(entries: list[dict[str, Any]], arms: dict[str, Any], goals: dict[str, float | None], how: Comparison) -> None:
    """Adds `control` to the entries of `seeds` whose arm and control share at least two: when the mean of the arm's curves came
    down to the mean of its control's final losses. Its intervals resample pairs of arm and control of one seed, and
    documents."""
    group = {arm: i for i, entry in enumerate(entries) for arm in entry["arms"]}
    for entry in entries:
        pairs = [(arm, control) for arm in entry["arms"] if (control := control_of(arms, arm)) is not None]
        pairs = [(a, c) for a, c in pairs if arms[a]["seed"] == arms[c]["seed"] and group.get(c) == group.get(pairs[0][1])]
        if len(pairs) < 2 or arms[entry["arm"]]["selection"]["criterion"] == "all":
            continue
        mine, its = ([arms[name] for name in side] for side in zip(*pairs, strict=True))
        own, other = ([how.curves[name] for name in side] for side in zip(*pairs, strict=True))
        losses = [goal for _, c in pairs if (goal := goals[c]) is not None]
        facts = {"arm": pairs[0][1], "arms": [list(pair) for pair in pairs], "seeds": [a["seed"] for a in mine]}
        goal = float(np.mean(losses)) if len(losses) == len(pairs) else None
        entry["control"] = {**facts, "target_loss": goal, **_reached(mine, its, own, other, how)}


# --- one arm, or the seeds of one, against its control ---


def _reached(
    mine: Sequence[dict[str, Any]],
    its: Sequence[dict[str, Any]],
    curves: Sequence[Curve | str],
    control_curves: Sequence[Curve | str],
    how: Comparison,
) -> dict[str, Any]:
    """Of arms and controls by pairs, one for each seed."""
    missing = [c for c in (*curves, *control_curves) if isinstance(c, str)]
    if missing:
        return _nothing(missing[0])
    a, b = (in_step([c for c in some if not isinstance(c, str)]) for some in (curves, control_curves))
    a_points, b_points, shared = one_grid(a[0].place_G, b[0].place_G)
    a, b = [c.at(a_points) for c in a], [c.at(b_points) for c in b]
    tokens = [round(float(t)) for t in a[0].tokens_G]
    found = cross(a, b, np.ones((1, len(a[0].predicted_M))), np.ones((1, len(a))))
    why = _why_not(a[0], b[0], shared, found)
    if why is not None:
        return _nothing(why, tokens)
    own, other = how.spending(mine), how.spending(its)
    seeds_R = np.ones((1, 1)) if len(a) == 1 else resampled(len(a), [how.seed, 1])
    counts_R = resampled(len(a[0].predicted_M), how.seed)
    sample = cross(a, b, counts_R, np.broadcast_to(seeds_R, (len(counts_R), len(a))))
    enough = int((a[0].predicted_M > 0).sum()) >= FEW  # resamples of fewer documents are too much alike to tell anything
    times = _times(found, own, other)
    reached = _or_none(found.tokens_R)
    operations = own.each * reached if own.each is not None and reached is not None else None
    return {
        "why": None,
        "points": tokens,
        "tokens_to_reach": reached,
        "selected_tokens_to_reach": _or_none(found.selected_R),
        "control_tokens": _or_none(found.control_R),
        "flops_to_reach": operations,
        "flops_to_reach_all": operations + own.added if operations is not None and own.added is not None else None,
        **{key: None if values is None or reached is None else float(values[0]) for key, values in times.items()},
        "interval": interval_of(sample, how.level, _times(sample, own, other)) if enough else None,
    }


def _times(found: Crossed, own: Spending, other: Spending) -> dict[str, Floats | None]:
    known = own.each is not None and other.each is not None and own.each > 0
    alone = found.times(own.each or 0.0, other.each or 0.0) if known else None
    whole = found.times(own.each or 0.0, other.each or 0.0, own.added) if known and own.added is not None else None
    return dict(zip(TIMES, (found.times(1.0, 1.0), alone, whole), strict=True))


def _or_none(values_R: Floats) -> float | None:
    return float(values_R[0]) if np.isfinite(values_R[0]) else None


FIGURES = ("tokens_to_reach", "selected_tokens_to_reach", "control_tokens", "flops_to_reach", "flops_to_reach_all", *TIMES)


def _nothing(why: str, points: list[int] | None = None) -> dict[str, Any]:
    return {"why": why, "points": points or [], **dict.fromkeys(FIGURES), "interval": None}


def _why_not(mine: Curve, its: Curve, shared: int, found: Crossed) -> str | None:
    if shared < FEWEST:
        return (
            f"it and its control were measured at {shared} common points of training (base, kept checkpoints, end), and at least "
            f"{FEWEST} are wanted; set keep_every, the same for both, and train again"
        )
    if not found.above_R[0] and max(mine.tokens_G[0], its.tokens_G[0]) > 0:
        return "it or its control was at or below that loss at the first point that was measured: when it came there is not known"
    if not found.above_R[0]:
        return "the base is at or below that loss already: training on all tokens did not lower it"
    return None


def _added(facts: dict[str, Any], spent: dict[str, Any], references: dict[str, Any]) -> float | None:
    """Operations of the scores that an arm uses, and of the reference's training where it is the pipeline's own; None where
    they are not known."""
    total = 0.0
    own = False
    for name in sets_read(facts["selection"], references):
        scoring = spent.get("scoring_flops", {}).get(name)
        own = own or references.get(name) == "reference"
        if scoring is None:
            return None
        total += scoring
    training = spent.get("reference_flops") if own else 0.0
    return None if training is None else total + training
