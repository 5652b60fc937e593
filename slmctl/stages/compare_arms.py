"""What results.json says of arms: what each was and spent, when it reached the control's loss, and how arms differ."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from slmctl.console import say, warn
from slmctl.evaluation.costs import ForwardFlops
from slmctl.evaluation.heldout import tokens_to_reach
from slmctl.evaluation.intervals import difference_interval, paired_accuracy
from slmctl.files import read_json
from slmctl.stages.measure import Measure
from slmctl.stages.workspace import DONE, INPUTS, Workspace, result_settings
from slmctl.store import manifest as manifests
from slmctl.store.manifest import differences
from slmctl.sweeps import read_sweeps
from slmctl.training.telemetry import read_log


def made_from(workspace: Workspace, arm: str) -> dict[str, Any]:
    """What an arm was trained from, as it was recorded then."""
    inputs: dict[str, Any] = read_json(workspace.arm(arm) / INPUTS)
    return inputs


def warn_of_changes(workspace: Workspace, arm: str) -> list[str]:
    """An arm is reported as what it was trained as, not as what the configuration says now."""
    wanted = result_settings(workspace.config.pretrain.arms[arm])
    found = differences(made_from(workspace, arm)["settings"], wanted)
    notes = [f"arm {arm} was trained with other settings than the configuration has now: {line}" for line in found]
    for note in notes:
        warn(note)
    return notes


def arm_facts(workspace: Workspace, arm: str, flops: ForwardFlops) -> dict[str, Any]:
    """What one arm was, what it saw and spent, and its held-out curves."""
    made = made_from(workspace, arm)
    settings = dict(made["settings"])
    metrics = read_log(workspace.arm(arm) / "metrics.jsonl")
    evals = read_log(workspace.arm(arm) / "evals.jsonl")
    now, then = workspace.heldout_hashes(), read_json(workspace.arm(arm) / DONE)["heldout"]
    for record in evals:  # a curve counts only where it was measured on the very set that is evaluated now
        record["heldout"] = {n: loss for n, loss in record["heldout"].items() if n in now and now[n] == then.get(n)}
    last, selection = metrics[-1], settings.pop("selection")
    own_seed = settings.pop("seed", None)
    return {
        "selection": selection,
        "seed": made["seed"] if own_seed is None else own_seed,
        "settings": settings,
        "steps": last["step"],
        "tokens_seen": last["tokens_seen"],
        "tokens_selected": last["tokens_selected"],
        "training_seconds": sum(m["seconds"] for m in metrics),
        "flops": flops.training(selection["criterion"], last["tokens_seen"], last["tokens_selected"]),
        "evals": evals,
        "selected": _selected(workspace, arm, metrics),
    }


def _selected(workspace: Workspace, arm: str, metrics: list[dict[str, Any]]) -> dict[str, Any]:
    counts = pq.read_table(workspace.arm(arm) / "token_counts.parquet")
    seen, selected = (int(counts[n].to_numpy().sum()) for n in ("seen", "selected"))
    correlation = [m["correlation"] for m in metrics if m.get("correlation") is not None]
    tenth = max(1, len(correlation) // 10)
    return {
        "ratio": selected / seen if seen else None,
        "correlation_first": float(np.mean(correlation[:tenth])) if correlation else None,
        "correlation_last": float(np.mean(correlation[-tenth:])) if correlation else None,
        "skipped_steps": sum(m.get("skipped") is not None for m in metrics),
    }


# --- costs ---


def costs(workspace: Workspace, flops: dict[str, ForwardFlops]) -> dict[str, Any]:
    """Tokens and operations that went into the reference and its scores: part of what selection costs. `flops` are by
    reference."""
    found: dict[str, Any] = {}
    log = read_log(workspace.reference / "training" / "metrics.jsonl")
    if log and "reference" in flops:
        found["reference_tokens"] = log[-1]["tokens_seen"]
        found["reference_flops"] = flops["reference"].training("all", log[-1]["tokens_seen"], log[-1]["tokens_seen"])
    for name, model in workspace.config.score.references.items():
        if manifests.exists(workspace.scores(name)):
            tokens = manifests.load_manifest(workspace.scores(name), "scores").counts["predicted"]
            found.setdefault("scored_tokens", {})[name] = tokens
            which = flops.get("reference" if model == "reference" else name)
            found.setdefault("scoring_flops", {})[name] = which.scoring * tokens if which else None
    return found


def compare_with_control(arms: dict[str, Any], target: str, spent: dict[str, Any], reference: str = "curated") -> None:
    """Adds to each arm the tokens and operations it needed to reach the all-tokens arm's final target loss (linear
    interpolation between the held-out evaluations of training), and how many times fewer that is; with and without what
    the reference and its scores cost."""
    control = next((n for n, a in arms.items() if a["selection"]["criterion"] == "all"), None)
    if control is None:
        return
    end = arms[control]["evals"][-1]
    goal = end["heldout"].get(target)
    if goal is None:
        say(f"eval: {control} was not evaluated on this {target} while it was trained, so tokens to reach its loss are not known")
        return
    for facts in arms.values():
        losses = [e["heldout"].get(target, math.inf) for e in facts["evals"]]
        seen = tokens_to_reach([e["tokens_seen"] for e in facts["evals"]], losses, goal)
        operations = facts["flops"] * seen / facts["tokens_seen"] if seen is not None else None
        added = _added(facts, spent, reference)
        whole = operations + added if operations is not None and added is not None else None
        facts["control"] = {
            "arm": control,
            "target_loss": goal,
            "tokens_to_reach": seen,
            "selected_tokens_to_reach": tokens_to_reach([e["tokens_selected"] for e in facts["evals"]], losses, goal),
            "times_fewer_tokens": end["tokens_seen"] / seen if seen else None,
            "flops_to_reach": operations,
            "times_fewer_flops": arms[control]["flops"] / operations if operations else None,
            "flops_to_reach_all": whole,
            "times_fewer_flops_all": arms[control]["flops"] / whole if whole else None,
        }


def _added(facts: dict[str, Any], spent: dict[str, Any], reference: str) -> float | None:
    """Operations of the reference and its scores, for an arm that uses them."""
    if facts["selection"]["criterion"] in ("all", "random"):
        return 0.0
    scoring = spent.get("scoring_flops", {}).get(facts["selection"].get("reference") or reference)
    return None if scoring is None else scoring + spent.get("reference_flops", 0.0)


# --- differences ---


def pairs(arms: dict[str, Any]) -> list[tuple[str, str]]:
    """Each arm with each control, and the controls with each other."""
    controls = [a for a, f in arms.items() if f["selection"]["criterion"] in ("all", "random")]
    others = [a for a in arms if a not in controls]
    return [(a, c) for a in others for c in controls] + [(a, b) for i, b in enumerate(controls) for a in controls[i + 1 :]]


def loss_differences(measure: Measure, arms: dict[str, Any]) -> list[dict[str, Any]]:
    """Paired differences of held-out losses, by document; also of each arm with the base it began from."""
    found = []
    for heldout in measure.sets:
        for a, b in [*pairs(arms), *((a, "base") for a in arms)]:
            one, other = measure.documents(heldout, a), measure.documents(heldout, b)
            seed = measure.workspace.config.seed
            interval = difference_interval(one.nats_M, other.nats_M, one.predicted_M, measure.config.level, seed)
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
            if any(task not in models[m]["tasks"] or not measure.outputs_of(task, m).is_file() for m in (a, b)):
                continue
            one, other = measure.correct(task, a), measure.correct(task, b)
            if one is None or other is None or len(one) != len(other):
                continue
            difference, interval, p = paired_accuracy(one, other, measure.config.level)
            found.append(
                {
                    **{"task": task, "a": a, "b": b, "difference": difference, "p": p, "items": len(one)},
                    "interval": list(interval) if interval else None,
                }
            )
    return found


# --- seeds and sweeps ---


def seeds(arms: dict[str, Any], models: dict[str, Any], target: str) -> list[dict[str, Any]]:
    """Arms that differ in their seed alone, summed up: mean and standard deviation (n - 1) of the target loss."""
    alike: dict[str, list[str]] = {}
    for arm, facts in arms.items():
        alike.setdefault(repr((facts["selection"], sorted(facts["settings"].items(), key=str))), []).append(arm)
    found = []
    for names in alike.values():
        if len({arms[n]["seed"] for n in names}) > 1:
            losses = [models[n]["heldout"][target]["loss"] for n in names]
            sd = float(np.std(losses, ddof=1))
            found.append(
                {"arm": names[0], "arms": names, "target_loss": {"mean": float(np.mean(losses)), "sd": sd, "n": len(losses)}}
            )
    return found


def sweeps(workspace: Workspace, models: dict[str, Any], target: str) -> list[dict[str, Any]]:
    """The arms of each sweep by the value that was varied (Fig. 9)."""
    found = []
    for sweep in read_sweeps(workspace.root):
        points = []
        for value, arm in zip(sweep["values"], sweep["arms"], strict=True):
            if arm in models:
                heldout = models[arm]["heldout"]
                general = {n: f["loss"] for n, f in heldout.items() if n != target}
                at = {"target_loss": heldout[target]["loss"], "interval": heldout[target]["interval"], "general": general}
                points.append({"value": value, "arm": arm, **at})
        if points:
            found.append({"arm": sweep["arm"], "key": sweep["key"], "points": points})
    return found
