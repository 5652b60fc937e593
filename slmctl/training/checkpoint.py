"""Checkpoints: a directory that is whole or absent, verified when it is loaded."""

from __future__ import annotations

import os
import shutil
import warnings
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from slmctl.console import warn
from slmctl.errors import CorruptError, SlmError
from slmctl.files import publishing, read_json, sha256_file, sha256_json, sweep, write_json
from slmctl.store.manifest import refuse_mismatch

STATE = "state.json"


@dataclass
class Progress:
    """All that a run is, besides weights, optimizer and token counts. The data order needs the step alone."""

    step: int = 0
    tokens_seen: int = 0
    tokens_selected: int = 0
    best: dict[str, Any] | None = None
    """Step and loss of the best evaluation so far, where a run keeps the best."""
    files: dict[str, str] = field(default_factory=dict)


def _state(model: nn.Module, optimizer: torch.optim.Optimizer, counts: Tensor) -> dict[str, Any]:
    from torch.distributed.checkpoint.state_dict import get_state_dict

    model_state, optimizer_state = get_state_dict(model, optimizer)
    return {"model": model_state, "optimizer": optimizer_state, "counts": counts}


def directory_of(root: Path, step: int) -> Path:
    return root / f"step-{step:08d}"


def all_checkpoints(root: Path) -> list[Path]:
    """Whole checkpoints, oldest first."""
    return sorted(d for d in root.glob("step-*") if (d / STATE).is_file())


def save(
    root: Path,
    keep_last: int,
    progress: Progress,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    counts: Tensor,
    made_from: dict[str, Any] | None = None,
) -> Path:
    """Publishes a checkpoint and removes those beyond `keep_last`. `made_from` is what the run depends on, by content."""
    from torch.distributed.checkpoint import state_dict_saver
    from torch.distributed.checkpoint.api import CheckpointException

    final = directory_of(root, progress.step)
    with publishing(final) as temporary:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                state_dict_saver.save(_state(model, optimizer, counts), checkpoint_id=str(temporary), no_dist=True)
            except CheckpointException as e:
                cause = next((c for c, _ in e.failures.values()), e)
                raise SlmError(
                    f"cannot write checkpoint {final} ({cause}). Is the disk full? Free some space and run again."
                ) from e
        progress.files = {f.name: sha256_file(f) for f in sorted(temporary.iterdir())}
        state = {"progress": asdict(progress), "made_from": made_from or {}}
        write_json(temporary / STATE, {**state, "sha256": sha256_json(state)})
    for old in all_checkpoints(root)[:-keep_last]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def load_latest(
    root: Path, model: nn.Module, optimizer: torch.optim.Optimizer, counts: Tensor, made_from: dict[str, Any] | None = None
) -> Progress | None:
    """Loads the newest checkpoint that verifies, in place; None where there is none.

    A broken one is named in a warning, and the one before it is taken. Raises `MismatchError` for a checkpoint of a run
    that was made from something else than `made_from`.
    """
    sweep(root)
    found = all_checkpoints(root)
    for directory in reversed(found):
        try:
            return _load(directory, model, optimizer, counts, made_from or {})
        except CorruptError as e:
            broken = directory.with_name(f"broken-{directory.name}")  # out of the way of pruning, yet not lost
            shutil.rmtree(broken, ignore_errors=True)
            os.rename(directory, broken)
            warn(f"{e} It is kept as {broken.name}; falling back to the checkpoint before it.")
    if any(root.glob("broken-step-*")):
        raise CorruptError(f"no checkpoint in {root} can be read. Delete that folder, or give --no-resume, to start over.")
    return None


def _load(
    directory: Path, model: nn.Module, optimizer: torch.optim.Optimizer, counts: Tensor, made_from: dict[str, Any]
) -> Progress:
    from torch.distributed.checkpoint import state_dict_loader
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.state_dict import set_state_dict

    state = read_json(directory / STATE)
    try:
        progress = Progress(**state["progress"])
        sound = state["sha256"] == sha256_json({k: state[k] for k in ("progress", "made_from")})
    except (TypeError, KeyError):
        sound = False
    if not sound:
        raise CorruptError(f"checkpoint {directory} is broken: {STATE} is altered.")
    refuse_mismatch(f"checkpoint {directory}", state["made_from"], made_from, "It belongs to another run. Move it away.")
    for name, wanted in progress.files.items():
        file = directory / name
        if not file.is_file() or sha256_file(file) != wanted:
            raise CorruptError(f"checkpoint {directory} is broken: {name} is absent or altered.")
    loaded = _state(model, optimizer, counts)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            state_dict_loader.load(loaded, checkpoint_id=str(directory), no_dist=True)
        except CheckpointException as e:
            raise CorruptError(f"checkpoint {directory} cannot be loaded ({e}).") from e
    set_state_dict(model, optimizer, model_state_dict=loaded["model"], optim_state_dict=loaded["optimizer"])
    return progress
