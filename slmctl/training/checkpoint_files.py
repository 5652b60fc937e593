"""Checkpoints as they lie on a disk: which are whole, what one says of itself, and its weights alone."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from slmctl.system.errors import CorruptError, InputError
from slmctl.system.files import read_json
from slmctl.system.hashes import sha256_file, sha256_json
from slmctl.training.checkpoint_names import parted, refuse_other_tensors, refuse_untied
from slmctl.training.state import Progress

STATE = "state.json"
"""Is written last: a folder without it is no checkpoint."""


def directory_of(root: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return root / f"step-{step:08d}"


def all_checkpoints(root: Path) -> list[Path]:
    """Whole checkpoints, oldest first."""
    return sorted(d for d in root.glob("step-*") if (d / STATE).is_file())


def require_checkpoint(root: Path, step: int) -> Path:
    """Raises `InputError` where there is no checkpoint of that step."""
    found = all_checkpoints(root)
    if directory_of(root, step) not in found:
        there = ", ".join(str(int(d.name.removeprefix("step-"))) for d in found) or "none"
        raise InputError(f"--resume {step}: there is no checkpoint of that step in {root} (found {there}).")
    return directory_of(root, step)


def read_state(directory: Path) -> tuple[dict[str, Any], str | None]:
    """What a checkpoint says of itself, and what is wrong with that."""
    try:
        state = read_json(directory / STATE)
        digest = state.pop("sha256")
        Progress(**state["progress"])
        if digest != sha256_json(state) or {"made_from", "files"} - set(state):
            raise KeyError(STATE)
    except CorruptError as e:
        return {}, str(e)
    except (TypeError, KeyError, AttributeError):
        return {}, f"checkpoint {directory} is broken: {STATE} is altered."
    return state, None


def broken_file(directory: Path, files: dict[str, str]) -> str | None:
    """What is wrong with one of a checkpoint's files, by name and SHA-256; None where all are as they were written."""
    problem = None
    for name, wanted in files.items():
        if not (directory / name).is_file() or sha256_file(directory / name) != wanted:
            problem = f"checkpoint {directory} is broken: {name} is absent or altered."
    return problem


def load_weights(directory: Path, model: nn.Module) -> Progress:
    """Loads the weights of a checkpoint, and nothing else of it, into a model that lies on one device.

    Raises `CorruptError` where a file of it is absent or altered, `MismatchError` where its weights are another model's.
    """
    from torch.distributed.checkpoint import state_dict_loader
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict

    facts, problem = read_state(directory)
    problem = problem or broken_file(directory, facts["files"])
    if problem is not None:
        raise CorruptError(f"{problem} Delete it, and evaluate the others.")
    weights = get_model_state_dict(model)
    refuse_other_tensors(directory, {"model": weights})
    with no_warnings():
        read = parted(weights)
        state_dict_loader.load({"model": read}, storage_reader=FileSystemReader(directory), no_dist=True)
    refuse_untied(directory, weights, read)
    set_model_state_dict(model, weights)
    return Progress(**facts["progress"])


@contextmanager
def no_warnings() -> Iterator[None]:
    """Without what PyTorch's checkpoint library warns of."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
