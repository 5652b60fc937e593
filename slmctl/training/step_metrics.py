"""What a step writes down, computed where the losses are and fetched at once: one wait for the device a step.

Shapes: B rows, T tokens of a row, N targets of this rank's part of the step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from slmctl.training.alignment import SHIFTS
from slmctl.training.batches import MicroBatch
from slmctl.training.ranks import Ranks
from slmctl.training.selective import MicroResult, random_positions

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
_SUMS = (
    *("chosen", "chosen_nats", "chosen_ref", "rest", "rest_nats", "rest_ref", "ref_nats", "targets"),
    *("thresholds", "threshold_sum", "broken", "blind", "weight", "weighted_nats"),
)
_MOMENTS = ("n", "a", "b", "aa", "bb", "ab")


@dataclass
class StepMetrics:
    """One step's figures (nats), over all ranks."""

    selected: int
    weight: float
    """Sum of the tokens' weights; of a mask as many as are selected."""
    loss: float
    """Mean loss of the selected tokens, by their weights."""
    finite: bool
    """Whether every loss that was computed is finite."""
    threshold: float
    metrics: dict[str, Any]
    shifted: dict[int, float] | None
    """Correlation of live and reference losses at each shift, where a score set is joined."""


class StepMetricsCollector:
    """Gathers a step's figures micro-batch by micro-batch, on the device. `all_known`: live losses of all targets are
    computed, not of the selected ones only (random selection): then there is no mean of all, correlations and quantiles are
    of the selected ones, and `live_share` says of what share of the targets they are. `shifts` are those at which live and
    reference losses are correlated. `blind`: count how many of the selected tokens random selection would have taken, too."""

    def __init__(self, all_known: bool, shifts: tuple[int, ...] = SHIFTS, blind: bool = False) -> None:
        self.all_known, self.shifts, self.blind = all_known, shifts, blind
        self._sums: list[Tensor] = []
        self._excess: list[Tensor] = []
        self.joined = False

    @torch.no_grad()
    def add(self, micro: MicroBatch, result: MicroResult) -> None:
        live_BT, chosen_BT = result.live_BT.double(), result.selected_BT
        known_BT = micro.target_BT if self.all_known else chosen_BT
        rest_BT = known_BT & ~chosen_BT
        threshold_G, zero = result.threshold_G.double(), live_BT.new_zeros(())
        weights_BT = (result.weights_BT if result.weights_BT is not None else chosen_BT).double()
        ref_BT = micro.ref_loss_BT.double() if micro.ref_loss_BT is not None else None
        sums = [
            chosen_BT.sum(),
            torch.where(chosen_BT, live_BT, zero).sum(),
            torch.where(chosen_BT, ref_BT, zero).sum() if ref_BT is not None else zero,
            rest_BT.sum(),
            torch.where(rest_BT, live_BT, zero).sum(),
            torch.where(rest_BT, ref_BT, zero).sum() if ref_BT is not None else zero,
            torch.where(micro.target_BT, ref_BT, zero).sum() if ref_BT is not None else zero,
            micro.target_BT.sum(),
            threshold_G.isfinite().sum(),
            threshold_G.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0).sum(),
            (known_BT & ~live_BT.isfinite()).sum(),
            chosen_BT.flatten()[random_positions(micro)].sum() if self.blind else zero,
            weights_BT.sum(),
            torch.where(chosen_BT, live_BT * weights_BT, zero).sum(),
        ]
        if ref_BT is not None:
            self.joined = True
            for shift in self.shifts:
                sums += _moments(live_BT, ref_BT, known_BT, shift)
            self._excess.append((live_BT - ref_BT).flatten()[micro.target_N])
        self._sums.append(torch.stack([s.double() for s in sums]))

    @torch.no_grad()
    def fetch(self, ranks: Ranks, grad_norm: Tensor) -> tuple[StepMetrics, float]:
        """The step's figures over all ranks, and the gradient's norm, which is the ranks' mean so that all go on with the same
        number to the last bit. Waits for the device.

        The quantiles are those of each rank's tokens, averaged over the ranks that have any.
        """
        sums = torch.stack(self._sums).sum(dim=0)
        parts = [sums]
        if self.joined:
            parts.append(_quantiles(torch.cat(self._excess)))
        parts.append(grad_norm.detach().double().reshape(1).to(sums.device))
        values = ranks.sum_(torch.cat(parts)).tolist()
        s = dict(zip(_SUMS, values, strict=False))
        known = s["chosen"] + s["rest"]
        metrics: dict[str, Any] = {
            "loss_selected": _ratio(s["chosen_nats"], s["chosen"]),
            "loss_unselected": _ratio(s["rest_nats"], s["rest"]),
            "live_mean": _ratio(s["chosen_nats"] + s["rest_nats"], known) if self.all_known else None,
            "live_share": _ratio(known, s["targets"]),
            "ref_mean": _ratio(s["ref_nats"], s["targets"]) if self.joined else None,
            "excess_quantiles": None,
            "threshold": _ratio(s["threshold_sum"], s["thresholds"]),
            "correlation": None,
            "correlation_by_shift": None,
            "excess_selected": _ratio(s["chosen_nats"] - s["chosen_ref"], s["chosen"]) if self.joined else None,
            "excess_unselected": _ratio(s["rest_nats"] - s["rest_ref"], s["rest"]) if self.joined else None,
            "overlap_with_random": _ratio(s["blind"], s["chosen"]) if self.blind else None,
        }
        shifted = None
        if self.joined:
            at, n = len(_SUMS), len(_MOMENTS)
            shifted = {shift: _correlation(values[at + i * n : at + (i + 1) * n]) for i, shift in enumerate(self.shifts)}
            metrics["correlation"] = shifted[0]
            if len(shifted) > 1:
                metrics["correlation_by_shift"] = {f"{s:+d}": r for s, r in shifted.items()}
            at += n * len(self.shifts)
            having = values[at + len(QUANTILES)]
            quantiles = [v / max(having, 1.0) for v in values[at : at + len(QUANTILES)]]
            if known:
                metrics["excess_quantiles"] = {f"q{q * 100:02.0f}": v for q, v in zip(QUANTILES, quantiles, strict=True)}
        loss = s["weighted_nats"] / s["weight"] if s["weight"] else 0.0
        threshold = metrics["threshold"] if metrics["threshold"] is not None else math.nan
        found = StepMetrics(int(s["chosen"]), s["weight"], loss, s["broken"] == 0, threshold, metrics, shifted)
        return found, values[-1] / ranks.size


def _moments(live_BT: Tensor, ref_BT: Tensor, known_BT: Tensor, shift: int) -> list[Tensor]:
    """n, sum a, sum b, sum aa, sum bb, sum ab of a = live[t] and b = ref[t + shift], where both are targets."""
    t = live_BT.shape[1]
    a, b = slice(max(0, -shift), max(0, min(t, t - shift))), slice(max(0, shift), max(0, min(t, t + shift)))
    both = known_BT[:, a] & known_BT[:, b]
    zero = live_BT.new_zeros(())
    x, y = torch.where(both, live_BT[:, a], zero), torch.where(both, ref_BT[:, b], zero)
    return [both.sum(), x.sum(), y.sum(), (x * x).sum(), (y * y).sum(), (x * y).sum()]


def _correlation(moments: list[float]) -> float:
    """Pearson's r; NaN where either is constant or has fewer than two values."""
    n, a, b, aa, bb, ab = moments
    if n < 2:
        return math.nan
    spread_a, spread_b = aa - a * a / n, bb - b * b / n
    if not (spread_a > 1e-12 * aa and spread_b > 1e-12 * bb):  # what rounding leaves of a constant
        return math.nan
    return (ab - a * b / n) / math.sqrt(spread_a * spread_b)


def _quantiles(values: Tensor) -> Tensor:
    """`QUANTILES` of the values that are no NaN, interpolated linearly, and 1; zeros where there are none."""
    ordered = values.sort().values  # NaN last
    known = (~values.isnan()).sum()
    if not len(values):
        return values.new_zeros(len(QUANTILES) + 1)
    place = _shares(values.device) * (known - 1).clamp(min=0)
    low = place.floor()
    share = place - low
    high = torch.minimum(low + 1, (known - 1).clamp(min=0).to(low.dtype))
    found = torch.cat([ordered[low.long()] * (1 - share) + ordered[high.long()] * share, torch.ones_like(share[:1])])
    return torch.where(known > 0, found, torch.zeros_like(found))


@cache
def _shares(device: torch.device) -> Tensor:
    """`QUANTILES` on a device, sent there once."""
    return torch.tensor(QUANTILES, dtype=torch.float64, device=device)


def _ratio(total: float, n: float) -> float | None:
    return total / n if n else None
