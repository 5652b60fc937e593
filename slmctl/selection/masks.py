"""From a choice to scores, and from scores to a mask. G selection groups, M tokens of a group."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from slmctl.selection.criterion import Choice, Columns
from slmctl.selection.select import select_top, selected_count
from slmctl.selection.table import criterion_of


def score_of(columns: Columns, choice: Choice) -> Tensor:
    """Scores [G, M], float32; the highest are kept. `columns.stored` is by the names of score sets. Raises `ValueError` for a
    criterion that gives a mask alone."""
    criterion = criterion_of(choice)
    if criterion.score is None:
        raise ValueError(f"{choice.criterion} gives a mask, and no scores")
    return criterion.score(_by_role(columns, choice), choice)


def counts_of(valid_GM: Tensor, ratio: float) -> Tensor:
    """ceil(ratio x valid) of each group [G]. Asks the device."""
    return torch.tensor([selected_count(v, ratio) for v in valid_GM.sum(dim=1).tolist()], device=valid_GM.device)


def mask_of(columns: Columns, choice: Choice, counts_G: Tensor | None = None) -> Tensor:
    """The tokens that a choice keeps [G, M] (bool): `counts_G` of each group, else as many as its ratio says."""
    criterion = criterion_of(choice)
    counts_G = counts_of(columns.valid_GM, choice.ratio) if counts_G is None else counts_G
    if criterion.mask is not None:
        return criterion.mask(_by_role(columns, choice), choice, counts_G) & columns.valid_GM
    return select_top(score_of(columns, choice), columns.valid_GM, counts_G)


def _by_role(columns: Columns, choice: Choice) -> Columns:
    """The same with the stored columns by what their sets are to a criterion; parts find theirs by name."""
    if not choice.sets:
        return columns
    stored = {(role, c): values for role, name in choice.sets.items() for (at, c), values in columns.stored.items() if at == name}
    return replace(columns, stored=stored)
