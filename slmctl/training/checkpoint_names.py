"""Whether a checkpoint holds the tensors that are to be read from it, by names and shapes, and no others.

Distributed checkpoints are read by the names that are asked for: what a file holds besides would be passed over.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from slmctl.model.weights import Difference
from slmctl.system.errors import MismatchError


def refuse_other_tensors(directory: Path, state: dict[str, Any]) -> None:
    """Raises `MismatchError` where the checkpoint's tensors are not those of `state`, by name and whole shape; only the
    parts of it that `state` names (`model`, `optimizer`, …) are looked at."""
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    entries = FileSystemReader(directory).read_metadata().state_dict_metadata
    held = {n: tuple(e.size) for n, e in entries.items() if isinstance(e, TensorStorageMetadata) and n.split(".")[0] in state}
    wanted = dict(_shapes(state))
    both = held.keys() & wanted.keys()
    difference = Difference(
        missing=wanted.keys() - held.keys(),
        unexpected=held.keys() - wanted.keys(),
        reshaped={n: (held[n], wanted[n]) for n in both if held[n] != wanted[n]},
    )
    if difference:
        raise MismatchError(
            f"checkpoint {directory} does not hold what this run trains: {difference}. It was written with another model or "
            "version: use those, or move it away."
        )


def parted(weights: dict[str, Any]) -> dict[str, Any]:
    """The same weights, with a tensor of its own for each name that shares another's."""
    seen: set[int] = set()
    found = {}
    for name, tensor in weights.items():
        found[name] = torch.empty_like(tensor) if tensor.data_ptr() in seen and tensor.numel() else tensor
        seen.add(tensor.data_ptr())
    return found


def refuse_untied(directory: Path, weights: dict[str, Any], read: dict[str, Any]) -> None:
    """Raises `MismatchError` where names that share a tensor in `weights` were given two that differ in `read`."""
    for name, tensor in read.items():
        if tensor is not weights[name] and not torch.equal(tensor, weights[name]):
            raise MismatchError(f"checkpoint {directory} holds {name} as a weight of its own, which this model ties to another.")


def _shapes(state: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names as the checkpoint joins them, with the whole shape of each tensor."""
    for key, value in state.items():
        if isinstance(value, Mapping):
            yield from _shapes(value, f"{prefix}{key}.")
        elif isinstance(value, Tensor):
            yield f"{prefix}{key}", tuple(value.shape)
