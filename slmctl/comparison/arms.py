"""What results.json says of arms: what each was, what it saw and spent, and what it selected."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from slmctl.comparison.clipping import clipping
from slmctl.comparison.compared import Arm, Compared, Scores
from slmctl.comparison.flop_costs import ForwardFlops
from slmctl.comparison.provenance import epochs, made_on
from slmctl.config.selection import sets_read
from slmctl.evaluation.comparability import measure_of
from slmctl.system.files import read_json
from slmctl.training.alignment import WATCHED
from slmctl.training.telemetry import read_log
from slmctl.workspace.places import Places
from slmctl.workspace.precisions import precision_in
from slmctl.workspace.stale import DONE, INPUTS


def arm_facts(compared: Compared, arm: Arm, metrics: Sequence[dict[str, Any]], flops: ForwardFlops) -> dict[str, Any]:
    """What one arm was, what it saw and spent, and its held-out curves. `metrics` are the log of its steps, `flops` those of a
    forward pass."""
    settings = dict(arm.made_from["settings"])
    last, selection = metrics[-1], settings.pop("selection")
    settings.pop("seed", None)
    return {
        "selection": selection,
        "seed": arm.seed,
        "settings": settings,
        "steps": last["step"],
        "tokens_seen": last["tokens_seen"],
        "tokens_selected": last["tokens_selected"],
        "training_seconds": sum(m["seconds"] for m in metrics),
        "flops": flops.training(selection, last["tokens_seen"], last["tokens_selected"]),
        "epochs": epochs(compared.conditions.corpus.manifest, arm.made_from, settings, last["step"]),
        "own_reference": _own_reference(compared.config.score.references, selection),
        "evals": _curves(arm, compared.conditions.heldout_hashes),
        "selected": _selected(metrics, arm.folder),
        "gradient": clipping(metrics, settings.get("grad_clip")),
        "made_on": made_on(read_log(arm.folder / "environment.jsonl")),
    }


def seen_at(metrics: Sequence[dict[str, Any]], step: int) -> dict[str, Any]:
    """Tokens that an arm had seen and trained on after a step, by the log of its steps."""
    for record in metrics:
        if record["step"] == step:
            return {"tokens_seen": record["tokens_seen"], "tokens_selected": record["tokens_selected"]}
    return {"tokens_seen": None, "tokens_selected": None}


def _curves(arm: Arm, now: dict[str, str]) -> list[dict[str, Any]]:
    """Held-out losses while training: a set's count only where they were measured on the very one that is evaluated `now` (hashes
    by set)."""
    then, found = read_json(arm.folder / DONE)["heldout"], []
    for record in arm.evals:
        kept = [n for n in record["heldout"] if n in now and now[n] == then.get(n)]
        measured = {n: measure for n in kept if (measure := measure_of(record, n)) is not None}
        found.append({**record, "heldout": {n: record["heldout"][n] for n in kept}, "measured": measured})
    return found


def _own_reference(references: Mapping[str, Any], selection: dict[str, Any]) -> bool | None:
    """Whether an arm's scores are those of the pipeline's own reference; None for one that uses none."""
    if not (read := sets_read(selection, references)):
        return None
    return any(references.get(name) == "reference" for name in read)


def _selected(metrics: Sequence[dict[str, Any]], folder: Path) -> dict[str, Any]:
    counts = pq.read_table(folder / "token_counts.parquet")
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


def precisions(places: Places, scores: Mapping[str, Scores]) -> dict[str, Any]:
    """What base (of a pipeline from scratch), reference and score sets were made in, as far as they are here. Arms' are among
    their settings."""
    runs = {"base": places.base, "reference": places.reference}
    made = {name: read_json(folder / INPUTS) for name, folder in runs.items() if (folder / DONE).is_file()}
    return {
        **{name: precision_in(inputs) for name, inputs in made.items() if inputs.get("settings") is not None},
        "scores": {name: precision_in(one.manifest.made_from) for name, one in scores.items()},
    }
