"""Dropout that depends on the row and the step, not on how rows are laid out over micro-batches and ranks.

Where a model draws anything in training, its rows are computed one by one, each from its own seed. That holds for whatever draws
from torch's generators, on any device, within attention kernels too; and where a block's activations are computed again, the
generators are put back first. Only models that draw pay for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.dropout import _DropoutNd

_NAMES = ("drop", "jitter")
"""In the names of what makes a model draw: dropout, pdrop, layerdrop, router_jitter_noise."""
_OF_OTHER_HEADS = ("summary", "classifier")


def draws_in_training(model: Any) -> bool:
    """Whether a model draws random numbers in training, as its modules and its configuration say."""
    if any(isinstance(m, _DropoutNd) and m.p > 0 for m in model.modules()):
        return True
    named = [(k, v) for m in model.modules() for k, v in vars(m).items()]
    return any(_says_so(k, v) for k, v in (*named, *_settings(model.config.to_dict())))


def _says_so(name: str, value: Any) -> bool:
    if not isinstance(value, float) or not value > 0:
        return False
    return any(n in name for n in _NAMES) and not any(n in name for n in _OF_OTHER_HEADS)


def _settings(config: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in config.items():
        if isinstance(value, dict):
            yield from _settings(value)
        else:
            yield name, value


def row_by_row(
    hidden: Callable[[Tensor, Tensor | None], Tensor], ids_BT: Tensor, position_BT: Tensor | None, seeds: Sequence[int]
) -> Tensor:
    """`hidden` of each row by itself, [B, T, D]: what it draws follows from the row's seed alone."""
    rows = []
    for b, seed in enumerate(seeds):
        torch.manual_seed(seed)
        rows.append(hidden(ids_BT[b : b + 1], position_BT[b : b + 1] if position_BT is not None else None))
    return torch.cat(rows)
