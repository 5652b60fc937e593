"""How much an arm needed to come down to the loss that plain training ends with: tokens, and operations with and without what
the reference and its scores cost."""

from __future__ import annotations

from typing import Any

from slmctl.config import UNSCORED
from slmctl.evaluation.heldout import tokens_to_reach

FEWEST = 4
"""Evaluations while training, the one before it included, below which a curve is too coarse to read a crossing from."""


def control_of(arms: dict[str, Any], arm: str) -> str | None:
    """The all-tokens arm to hold an arm against: of its seed and settings, else of its seed, else of its settings, else the
    first."""
    mine = arms[arm]

    def distance(name: str) -> tuple[bool, bool]:
        other = arms[name]
        return other.get("seed") != mine.get("seed"), other.get("settings") != mine.get("settings")

    controls = [n for n, a in arms.items() if a["selection"]["criterion"] == "all"]
    return min(controls, key=distance) if controls else None


def compare_with_control(arms: dict[str, Any], target: str, spent: dict[str, Any], references: dict[str, Any]) -> None:
    """Adds `control` to each arm: the tokens and operations it needed to first come down to its control's final target loss
    (linear interpolation between the held-out evaluations of training; one whose loss is null counts for nothing), and how
    many times fewer that is than the control itself needed to first come down there. Null where that cannot be judged, with
    `why`. `spent` are `costs`, `references` the configuration's."""
    for arm, facts in arms.items():
        control = control_of(arms, arm)
        if control is not None and arms[control]["evals"]:
            facts["control"] = _reached(facts, arms[control], target, _added(facts, spent, references))
            facts["control"]["arm"] = control


def _reached(facts: dict[str, Any], control: dict[str, Any], target: str, added: float | None) -> dict[str, Any]:
    goal = control["evals"][-1]["heldout"].get(target)
    mine, its = (_curve(a, target) for a in (facts, control))
    why = _why_not(mine, its, goal, target)
    seen, selected = (
        tokens_to_reach([e[k] for e in mine], [e["loss"] for e in mine], goal) if why is None else None for k in KEYS
    )
    first = tokens_to_reach([e[KEYS[0]] for e in its], [e["loss"] for e in its], goal) if why is None else None
    operations = _share(facts, seen)
    its_operations = _share(control, first)
    whole = operations + added if operations is not None and added is not None else None
    return {
        "arm": None,
        "target_loss": goal,
        "why": why,
        "tokens_to_reach": seen,
        "selected_tokens_to_reach": selected,
        "control_tokens": first,
        "times_fewer_tokens": _times(first, seen),
        "flops_to_reach": operations,
        "times_fewer_flops": _times(its_operations, operations),
        "flops_to_reach_all": whole,
        "times_fewer_flops_all": _times(its_operations, whole),
    }


KEYS = ("tokens_seen", "tokens_selected")


def _curve(facts: dict[str, Any], target: str) -> list[dict[str, Any]]:
    """The evaluations that have a target loss, with it as `loss`."""
    return [{**e, "loss": e["heldout"][target]} for e in facts["evals"] if e["heldout"].get(target) is not None]


def _why_not(mine: list[dict[str, Any]], its: list[dict[str, Any]], goal: float | None, target: str) -> str | None:
    if goal is None or not mine:
        return f"it or its control was not evaluated on this {target} at the end of training"
    if min(len(mine), len(its)) < FEWEST:
        return f"fewer than {FEWEST} evaluations while training; lower eval_every"
    if min(mine[0]["loss"], its[0]["loss"]) <= goal:
        return "the base is at or below that loss already: training on all tokens did not lower it"
    return None


def _share(facts: dict[str, Any], tokens: float | None) -> float | None:
    """Operations of a run up to so many tokens."""
    return facts["flops"] * tokens / facts["tokens_seen"] if tokens is not None and facts["tokens_seen"] else None


def _times(its: float | None, mine: float | None) -> float | None:
    return its / mine if its is not None and mine else None


def _added(facts: dict[str, Any], spent: dict[str, Any], references: dict[str, Any]) -> float | None:
    """Operations of the scores that an arm uses, and of the reference's training where it is the pipeline's own; None where
    they are not known."""
    if facts["selection"]["criterion"] in UNSCORED:
        return 0.0
    name = facts["selection"].get("reference") or next(iter(references))
    scoring = spent.get("scoring_flops", {}).get(name)
    training = spent.get("reference_flops") if references.get(name) == "reference" else 0.0
    return None if scoring is None or training is None else scoring + training
