"""Selection of tokens: a score for each token, and exactly ceil(ratio x valid) of a group's tokens by score.

Shapes: G selection groups, M tokens of a group (its rows flattened), both padded positions included.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
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
    return scores_GM.to(device) if device.type == "cpu" else scores_GM.pin_memory().to(device, non_blocking=True)


def ranked(scores_GM: Tensor, valid_GM: Tensor) -> Tensor:
    """Scores as they compete [G, M]: NaN and -inf are the lowest number, +inf the highest, and what is not valid is -inf."""
    low = torch.finfo(scores_GM.dtype).min
    return scores_GM.nan_to_num(nan=low, neginf=low).masked_fill(~valid_GM, -math.inf)


def top_order(scores_GM: Tensor, valid_GM: Tensor) -> Tensor:
    """Positions of each group by falling score [G, M], invalid ones last. Ties: the earlier position first. NaN and -inf
    rank below every number but above nothing valid."""
    return ranked(scores_GM, valid_GM).argsort(dim=1, descending=True, stable=True)


def standardised(scores_GM: Tensor, valid_GM: Tensor) -> Tensor:
    """Scores less their group's mean over valid tokens, over its standard deviation (n) [G, M]; 0 where a group has one value
    throughout, or a score is not finite."""
    known_GM = valid_GM & scores_GM.isfinite()
    exact_GM = scores_GM.double().masked_fill(~known_GM, 0.0)
    count_G1 = known_GM.sum(dim=1, keepdim=True).clamp(min=1)
    from_mean_GM = (exact_GM - exact_GM.sum(dim=1, keepdim=True) / count_G1).masked_fill(~known_GM, 0.0)
    spread_G1 = (from_mean_GM.square().sum(dim=1, keepdim=True) / count_G1).sqrt()
    return torch.where(spread_G1 > 0, from_mean_GM / spread_G1.clamp(min=1e-12), torch.zeros_like(from_mean_GM)).float()


def places_of(counts: Sequence[int], tokens: int) -> np.ndarray:
    """For each group the places of its first `counts[g]` entries in a flattened [G, tokens]. [sum of counts] int64."""
    return np.concatenate([np.zeros(0, np.int64), *[np.arange(n, dtype=np.int64) + g * tokens for g, n in enumerate(counts)]])


def chosen_positions(order_GM: Tensor, places_K: Tensor) -> Tensor:
    """Flat positions of the selected tokens [K], rising. Nothing here asks the device how many there are: `places_K`
    (`places_of`) is known before the scores are."""
    tokens = order_GM.shape[1]
    first_K = torch.div(places_K, tokens, rounding_mode="floor") * tokens
    return (order_GM.flatten()[places_K] + first_K).sort().values


def select_top(scores_GM: Tensor, valid_GM: Tensor, counts_G: Tensor) -> Tensor:
    """Marks the counts_G[g] valid tokens with the highest scores of each group. [G, M] bool.

    Ties go to the earlier position. NaN and -inf rank below every number but above nothing valid: they are chosen only
    when all else is. Padding is never chosen, and a group without valid tokens selects none.
    """
    order_GM = top_order(scores_GM, valid_GM)
    first_GM = torch.arange(scores_GM.shape[1], device=scores_GM.device) < counts_G[:, None]
    return torch.zeros_like(valid_GM).scatter_(1, order_GM, first_GM) & valid_GM
