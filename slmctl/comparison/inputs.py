"""What figures and results of an evaluation depend on, by content: by this it is known again what was measured before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

from slmctl.comparison.compared import Arm, Model, Scores
from slmctl.comparison.reach import VERSION as REACHING
from slmctl.comparison.results import SCHEMA
from slmctl.config.evaluation import AnyTask, SuiteConfig, TaskConfig
from slmctl.corpus.text_files import content_id, is_folder
from slmctl.evaluation.generation import VERSION
from slmctl.evaluation.harness_data import data_files
from slmctl.evaluation.intervals import METHOD
from slmctl.evaluation.tasks.mathematics import TASKS
from slmctl.store.manifest import Manifest
from slmctl.system.hashes import HashCache


def task_inputs(tasks: Sequence[AnyTask], hashes: HashCache) -> dict[str, Any]:
    """What tasks read, by content, and the versions of what judges them."""
    found: dict[str, Any] = {}
    for task in tasks:
        data = task.path if isinstance(task, TaskConfig) else task.data
        if isinstance(task, TaskConfig):
            found["judging of own tasks"] = VERSION
        elif isinstance(task, SuiteConfig) and task.suite == "rho-math":
            found |= {f"{name} version": kind.version for name, kind in TASKS.items()}
        else:
            found["lm_eval"] = version("lm_eval") if find_spec("lm_eval") else None
        files = [data] if isinstance(task, TaskConfig) else data_files(data) if data is not None else []
        found |= {f: f if is_folder(f) else content_id(f, hashes) for f in files if f is not None}
    return found


def figures_inputs(
    settings: dict[str, Any], corpus: Manifest, heldout: dict[str, str], tasks: dict[str, Any], curated: Manifest
) -> dict[str, Any]:
    """All that figures of a model depend on, but for the model. `settings` are those of `identity.measuring`, in the precision
    that was taken; `heldout` are hashes by set."""
    return {
        **{"schema": SCHEMA, "intervals": METHOD, "corpus": corpus.content_hash},
        **settings,
        **{"heldout": heldout, "tasks": tasks, "curated": curated.content_hash},
    }


def results_inputs(
    figures: dict[str, Any],
    models: Mapping[str, Model],
    arms: Mapping[str, Arm],
    scores: Mapping[str, Scores],
    sweeps: list[dict[str, Any]],
    notes: list[str],
    contamination: dict[str, Any],
) -> dict[str, Any]:
    """All that the results depend on; `figures` is what `figures_inputs` has found."""
    return {
        **figures,
        "models": {name: model.fingerprint for name, model in models.items()},
        "runs": {name: arm.run for name, arm in arms.items()},
        "checkpoints": {name: [c.step for c in arm.checkpoints] for name, arm in arms.items()},
        "scores": {name: one.manifest.content_hash for name, one in scores.items()},
        "sweeps": sweeps,
        "notes": notes,
        "contamination": contamination,
        "reaching": REACHING,
    }
