"""What results.json says of arms: what each was and spent, when it reached the control's loss, and how arms differ."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow.parquet as pq

from slmctl.comparison.clipping import clipping
from slmctl.comparison.costs import ForwardFlops
from slmctl.comparison.measure import Measure
from slmctl.comparison.provenance import epochs, made_on
from slmctl.config.decides import result_settings
from slmctl.config.pipeline import UNSCORED
from slmctl.config.sweeps import points_of, read_sweeps
from slmctl.evaluation.intervals import difference_interval, paired_accuracy
from slmctl.evaluation.measures import measure_of
from slmctl.store import manifest as manifests
from slmctl.store.manifest import differences
from slmctl.store.order import mix_seed
from slmctl.system.console import warn
from slmctl.system.files import read_json
from slmctl.training.alignment import WATCHED
from slmctl.training.telemetry import read_log
from slmctl.workspace.folders import DONE, INPUTS
from slmctl.workspace.precisions import as_recorded, precision_in
from slmctl.workspace.workspace import Workspace


def made_from(workspace: Workspace, arm: str) -> dict[str, Any]:
    """What an arm was trained from, as it was recorded then."""
    inputs: dict[str, Any] = read_json(workspace.arm(arm) / INPUTS)
    return inputs


def seed_of_arm(made: dict[str, Any]) -> int:
    """The seed of an arm's order and random selection."""
    own = made["settings"].get("seed")
    return int(made["seed"] if own is None else own)


def warn_of_changes(workspace: Workspace, arm: str) -> list[str]:
    """An arm is reported as what it was trained as, not as what the configuration says now."""
    made = made_from(workspace, arm)["settings"]
    found = differences(made, as_recorded(result_settings(workspace.config.pretrain.arms[arm]), made))
    notes = [f"arm {arm} was trained with other settings than the configuration has now: {line}" for line in found]
    for note in notes:
        if note not in workspace.noted:  # eval and report both ask
            warn(note)
            workspace.noted.add(note)
    return notes


def warn_of_precisions(workspace: Workspace, arms: list[str]) -> list[str]:
    """Arms that were trained in other arithmetic than others differ by that, too."""
    by_kind: dict[str, list[str]] = {}
    for arm in arms:
        by_kind.setdefault(str(precision_in(made_from(workspace, arm))), []).append(arm)
    if len(by_kind) < 2:
        return []
    listing = "; ".join(f"{kind}: {', '.join(named)}" for kind, named in by_kind.items())
    note = f"arms were trained in different precisions ({listing}): a part of their differences may be the arithmetic's"
    warn(note)
    return [note]


def precisions(workspace: Workspace) -> dict[str, Any]:
    """What base (of a pipeline from scratch), reference and score sets were made in, as far as they are here. Arms' are among
    their settings."""
    runs = {"base": workspace.base, "reference": workspace.reference}
    made = {name: read_json(folder / INPUTS) for name, folder in runs.items() if (folder / DONE).is_file()}
    folders = {name: workspace.scores(name) for name in workspace.config.score.references}
    scores = {n: manifests.load_manifest(f, "scores").made_from for n, f in folders.items() if manifests.exists(f)}
    return {
        **{name: precision_in(inputs) for name, inputs in made.items() if inputs.get("settings") is not None},
        "scores": {name: precision_in(inputs) for name, inputs in scores.items()},
    }


def arm_facts(workspace: Workspace, arm: str, flops: ForwardFlops) -> dict[str, Any]:
    """What one arm was, what it saw and spent, and its held-out curves."""
    made = made_from(workspace, arm)
    settings = dict(made["settings"])
    metrics = read_log(workspace.arm(arm) / "metrics.jsonl")
    evals = read_log(workspace.arm(arm) / "evals.jsonl")
    now, then = workspace.heldout_hashes(), read_json(workspace.arm(arm) / DONE)["heldout"]
    for record in evals:  # a curve counts only where it was measured on the very set that is evaluated now
        kept = [n for n in record["heldout"] if n in now and now[n] == then.get(n)]
        measured = {n: measure for n in kept if (measure := measure_of(record, n)) is not None}
        record.update(heldout={n: record["heldout"][n] for n in kept}, measured=measured)
    last, selection = metrics[-1], settings.pop("selection")
    settings.pop("seed", None)
    return {
        "selection": selection,
        "seed": seed_of_arm(made),
        "settings": settings,
        "steps": last["step"],
        "tokens_seen": last["tokens_seen"],
        "tokens_selected": last["tokens_selected"],
        "training_seconds": sum(m["seconds"] for m in metrics),
        "flops": flops.training(selection["criterion"], last["tokens_seen"], last["tokens_selected"]),
        "epochs": epochs(workspace, made, settings, last["step"]),
        "own_reference": _own_reference(workspace, selection),
        "evals": evals,
        "selected": _selected(workspace, arm, metrics),
        "gradient": clipping(metrics, settings.get("grad_clip")),
        "made_on": made_on(read_log(workspace.arm(arm) / "environment.jsonl")),
    }


def _own_reference(workspace: Workspace, selection: dict[str, Any]) -> bool | None:
    """Whether an arm's scores are those of the pipeline's own reference; None for one that uses none."""
    references = workspace.config.score.references
    if selection["criterion"] in UNSCORED:
        return None
    return references.get(selection.get("reference") or next(iter(references))) == "reference"


def _selected(workspace: Workspace, arm: str, metrics: list[dict[str, Any]]) -> dict[str, Any]:
    counts = pq.read_table(workspace.arm(arm) / "token_counts.parquet")
    seen, selected = (int(counts[n].to_numpy().sum()) for n in ("seen", "selected"))

    def mean_of(key: str, first: bool = False) -> float | None:
        """Over the first or last tenth of the steps that have it."""
        values = [m[key] for m in metrics if m.get(key) is not None]
        tenth = max(1, len(values) // 10)
        return float(np.mean(values[:tenth] if first else values[-tenth:])) if values else None

    by_shift = [m["correlation_by_shift"] for m in metrics if m.get("correlation_by_shift")]
    median = [m["excess_quantiles"]["q50"] for m in metrics if (m.get("excess_quantiles") or {}).get("q50") is not None]
    overlap = [m["overlap_with_random"] for m in metrics if m.get("overlap_with_random") is not None]
    ratio = selected / seen if seen else None
    return {
        "ratio": ratio,
        "overlap_with_random": float(np.mean(overlap)) if overlap else None,
        "expected_overlap": ratio if overlap else None,
        "mean_excess_selected": mean_of("excess_selected"),
        "mean_excess_unselected": mean_of("excess_unselected"),
        "median_excess": float(np.mean(median[-max(1, len(median) // 10) :])) if median else None,
        "correlation_first": mean_of("correlation", first=True),
        "correlation_last": mean_of("correlation"),
        "correlation_by_shift": _mean_by_shift(by_shift[-WATCHED:]),
        "skipped_steps": sum(m.get("skipped") is not None for m in metrics),
    }


def _mean_by_shift(found: list[dict[str, Any]]) -> dict[str, float | None]:
    """Of the last steps that have correlations at every shift; empty where none has."""
    shifts = list(found[0]) if found else []
    known = {s: [f[s] for f in found if f.get(s) is not None] for s in shifts}
    return {s: float(np.mean(values)) if values else None for s, values in known.items()}


# --- costs ---


def costs(workspace: Workspace, flops: dict[str, ForwardFlops]) -> dict[str, Any]:
    """Tokens and operations that went into the reference and its scores: part of what selection costs. `flops` are of a
    forward pass, by score set."""
    found: dict[str, Any] = {}
    references = workspace.config.score.references
    log = read_log(workspace.reference / "training" / "metrics.jsonl")
    own = next((flops[n] for n, model in references.items() if model == "reference" and n in flops), None)
    if log and own is not None:
        found["reference_tokens"] = log[-1]["tokens_seen"]
        found["reference_flops"] = own.training("all", log[-1]["tokens_seen"], log[-1]["tokens_selected"])
    for name in references:
        if manifests.exists(workspace.scores(name)):
            tokens = manifests.load_manifest(workspace.scores(name), "scores").counts["predicted"]
            found.setdefault("scored_tokens", {})[name] = tokens
            found.setdefault("scoring_flops", {})[name] = flops[name].scoring * tokens if name in flops else None
    return found


# --- differences ---


def pairs(arms: dict[str, Any]) -> list[tuple[str, str]]:
    """Each arm with each control, and the controls with each other."""
    controls = [a for a, f in arms.items() if f["selection"]["criterion"] in UNSCORED]
    others = [a for a in arms if a not in controls]
    return [(a, c) for a in others for c in controls] + [(a, b) for i, b in enumerate(controls) for a in controls[i + 1 :]]


def loss_differences(measure: Measure, models: dict[str, Any], arms: dict[str, Any]) -> list[dict[str, Any]]:
    """Paired differences of held-out losses, by document; also of each arm, and of the reference where `models` has one, with
    the base that they began from."""
    found = []
    others = [m for m in models if m in arms or m == "reference"]
    for heldout in measure.sets:
        for a, b in [*pairs(arms), *((a, "base") for a in others)]:
            one, other = measure.documents(heldout, a), measure.documents(heldout, b)
            seed = mix_seed("intervals", measure.workspace.config.seed)
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
    alike: dict[str, dict[int, str]] = {}
    for arm, facts in arms.items():
        if models[arm]["heldout"][target]["loss"] is not None:
            same = alike.setdefault(repr((facts["selection"], sorted(facts["settings"].items(), key=str))), {})
            same.setdefault(facts["seed"], arm)  # the same seed twice is the same run
    found = []
    for by_seed in alike.values():
        names = list(by_seed.values())
        if len(names) > 1:
            losses = [models[n]["heldout"][target]["loss"] for n in names]
            sd = float(np.std(losses, ddof=1))
            found.append(
                {"arm": names[0], "arms": names, "target_loss": {"mean": float(np.mean(losses)), "sd": sd, "n": len(losses)}}
            )
    return found


def sweeps(workspace: Workspace, arms: dict[str, Any], models: dict[str, Any], target: str) -> list[dict[str, Any]]:
    """The arms of each sweep by the value that was varied (Fig. 9), as they were trained."""
    found = []
    for sweep in read_sweeps(workspace.root):
        points = []
        for wanted, arm in points_of(workspace.config, sweep):
            if arm in arms:
                heldout = models[arm]["heldout"]
                general = {n: f["loss"] for n, f in heldout.items() if n != target}
                at = {"target_loss": heldout[target]["loss"], "interval": heldout[target]["interval"], "general": general}
                points.append({"value": _trained_with(arms[arm], sweep["key"], wanted), "arm": arm, **at})
        if points:
            found.append({"arm": sweep["arm"], "key": sweep["key"], "points": points})
    return found


def _trained_with(facts: dict[str, Any], key: str, wanted: Any) -> Any:
    """An arm's value of a setting; `wanted` for one that does not decide its result, and so is not kept."""
    found: Any = {**facts["settings"], "selection": facts["selection"], "seed": facts["seed"]}
    for part in key.split("."):
        if not isinstance(found, dict) or part not in found:
            return wanted
        found = found[part]
    return found
