"""Selection of tokens: a score for each token, and exactly ceil(ratio x valid) of a group's tokens by score.

Shapes: G selection groups, M tokens of a group (its rows flattened), both padded positions included.
"""

from __future__ import annotations

import math
from fractions import Fraction

import torch
from torch import Tensor


def selected_count(valid: int, ratio: float) -> int:
    """ceil(ratio x valid), with `ratio` read as the decimal it is written as: 0.7 of 10 is 7, not 8."""
    return math.ceil(Fraction(repr(ratio)) * valid)


def excess_loss(live_loss: Tensor, ref_loss: Tensor) -> Tensor:
    """L_theta(x) - L_RM(x), in float32 nats (Eq. 3)."""
    return live_loss.float() - ref_loss.float()


def random_scores(groups: int, tokens: int, seeds: list[int], device: torch.device) -> Tensor:
    """Uniform scores [G, M]; group g's depend on seeds[g] alone, and no global generator is touched."""
    scores_GM = torch.empty(groups, tokens)
    for g, seed in enumerate(seeds):
        scores_GM[g] = torch.rand(tokens, generator=torch.Generator().manual_seed(seed))
    return scores_GM.to(device)


def select_top(scores_GM: Tensor, valid_GM: Tensor, counts_G: Tensor) -> Tensor:
    """Marks the counts_G[g] valid tokens with the highest scores of each group. [G, M] bool.

    Ties go to the earlier position. NaN and -inf rank below every number but above nothing valid: they are chosen only
    when all else is. Padding is never chosen, and a group without valid tokens selects none.
    """
    low = torch.finfo(scores_GM.dtype).min
    scores_GM = scores_GM.nan_to_num(nan=low, neginf=low).masked_fill(~valid_GM, -math.inf)
    order_GM = scores_GM.argsort(dim=1, descending=True, stable=True)
    first_GM = torch.arange(scores_GM.shape[1], device=scores_GM.device) < counts_G[:, None]
    return torch.zeros_like(valid_GM).scatter_(1, order_GM, first_GM) & valid_GM
