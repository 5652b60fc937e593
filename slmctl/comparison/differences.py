"""How arms differ: paired differences of held-out losses, by document, and of tasks' accuracies, by item."""

from __future__ import annotations

from typing import Any

from slmctl.comparison.measure import Measure
from slmctl.config.selection import is_control
from slmctl.evaluation.intervals import difference_interval, paired_accuracy
from slmctl.store.order import mix_seed


def pairs(arms: dict[str, Any]) -> list[tuple[str, str]]:
    """Each arm with each control, and the controls with each other."""
    controls = [a for a, f in arms.items() if is_control(f["selection"])]
    others = [a for a in arms if a not in controls]
    return [(a, c) for a in others for c in controls] + [(a, b) for i, b in enumerate(controls) for a in controls[i + 1 :]]


def loss_differences(measure: Measure, models: dict[str, Any], arms: dict[str, Any]) -> list[dict[str, Any]]:
    """Paired differences of held-out losses, by document; also of each arm, and of the reference where `models` has one, with
    the base that they began from."""
    found = []
    others = [m for m in models if m in arms or m == "reference"]
    for heldout in measure.conditions.heldout:
        for a, b in [*pairs(arms), *((a, "base") for a in others)]:
            one, other = measure.documents(heldout, a), measure.documents(heldout, b)
            seed = mix_seed("intervals", measure.conditions.seed)
            interval = difference_interval(one.nats_M, other.nats_M, one.predicted_M, measure.settings.level, seed)
            found.append(
                {
                    "set": heldout,
                    "a": a,
                    "b": b,
                    "difference": one.whole.loss - other.whole.loss,
                    "interval": list(interval) if interval else None,
                    "documents": len(one.document_M),
                }
            )
    return found


def task_differences(measure: Measure, models: dict[str, Any], arms: dict[str, Any]) -> list[dict[str, Any]]:
    """Paired differences of tasks' accuracies, by item, with McNemar's test."""
    found = []
    names = next(iter(models.values()))["tasks"]
    for task in names:
        for a, b in pairs(arms):
            if any(task not in models[m]["tasks"] or not measure.tasks.outputs_file(task, m).is_file() for m in (a, b)):
                continue
            one, other = measure.tasks.correct(task, a), measure.tasks.correct(task, b)
            if one is None or other is None or len(one) != len(other):
                continue
            difference, interval, p = paired_accuracy(one, other, measure.settings.level)
            found.append(
                {
                    **{"task": task, "a": a, "b": b, "difference": difference, "p": p, "items": len(one)},
                    "interval": list(interval) if interval else None,
                }
            )
    return found
