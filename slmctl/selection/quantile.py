"""The exact k highest of scores that lie on several ranks, without gathering them. N are the scores of one rank."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

BINS = 2**16


class OtherRanks(Protocol):
    """What has to be known of the other ranks."""

    def sum_(self, tensor: Tensor) -> Tensor:
        """The tensor's sum over all ranks."""

    def before(self, tensor: Tensor) -> Tensor:
        """Its sum over the ranks before this one."""


def select_top_of_all(scores_N: Tensor, valid_N: Tensor, k: int, others: OtherRanks) -> tuple[Tensor, Tensor]:
    """Marks this rank's share [N] of the k highest valid scores of all ranks; and the k-th highest score, a scalar.

    Exactly k are marked in all (k of at most all valid ones): ties go to the lower rank, then to the earlier position. NaN
    and -inf rank below every number. Three collectives: the sums of two histograms of 65,536 bins, of the upper and then of
    the lower half of the scores' bits, and the number of ties on earlier ranks.
    """
    keys_N = ordered_keys(scores_N)
    upper_N, lower_N = keys_N >> 16, keys_N & (BINS - 1)
    left = torch.full((), k, dtype=torch.int64, device=scores_N.device)
    upper, left = _bin_of(upper_N, valid_N, left, others)
    lower, left = _bin_of(lower_N, valid_N & (upper_N == upper), left, others)
    key = (upper << 16) | lower
    tied_N = valid_N & (keys_N == key)
    place_N = tied_N.cumsum(0) + others.before(tied_N.sum())
    return (valid_N & (keys_N > key)) | (tied_N & (place_N <= left)), score_of(key)


def ordered_keys(scores_N: Tensor) -> Tensor:
    """float32 scores as int64 numbers from 0 to 2^32 - 1 in the same order; NaN and -inf as the lowest number, -0 as 0."""
    low = torch.finfo(torch.float32).min
    bits_N = (scores_N.float().nan_to_num(nan=low, neginf=low) + 0.0).view(torch.int32).long()
    return torch.where(bits_N < 0, ~bits_N, bits_N + 2**31)


def score_of(key: Tensor) -> Tensor:
    """The score that has this key."""
    return torch.where(key < 2**31, ~key, key - 2**31).to(torch.int32).view(torch.float32)


def _bin_of(bins_N: Tensor, among_N: Tensor, k: Tensor, others: OtherRanks) -> tuple[Tensor, Tensor]:
    """The bin that holds the k-th highest, and how many of that bin are among the k highest."""
    counts = torch.zeros(BINS, dtype=torch.int64, device=bins_N.device).scatter_add_(0, bins_N, among_N.long())
    from_above = others.sum_(counts).flip(0).cumsum(0)
    place = torch.searchsorted(from_above, k).clamp(max=BINS - 1)
    above = torch.where(place > 0, from_above[(place - 1).clamp(min=0)], 0)
    return BINS - 1 - place, k - above
