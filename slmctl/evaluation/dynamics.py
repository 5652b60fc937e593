"""How the loss of each token moves over training: falls, rises, stays low, stays high (section 2.1, App. D.1, Fig. 3).

Shapes: C checkpoints in order, N tokens. Losses are nats; NaN marks a token that is not predicted, which counts nowhere.
What is worked out goes checkpoint by checkpoint in float64, so that it takes a few numbers a token beside the losses.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

CATEGORIES = ("H→H", "L→H", "H→L", "L→L")
HH, LH, HL, LL = range(4)
ABSENT = -1
"""Category of a token that some checkpoint has no finite loss for."""
CHANGE = 0.2
"""Nats by which a fitted line must rise or fall."""
ROUNDING = 1e-6
"""Nats that float32 losses and their sums are not exact to: what equals a bound to within this is not beyond it."""


@dataclass(frozen=True)
class Lines:
    """The least-squares line a x + b of each token's losses over checkpoints x = 0 .. n, n = C - 1."""

    start_N: NDArray[np.float64]
    """L_start = b."""
    end_N: NDArray[np.float64]
    """L_end = a n + b."""
    spread_N: NDArray[np.float64]
    """Root of the mean squared distance of the losses from the line, nats."""


def fit_lines(losses_CN: ArrayLike) -> Lines:
    """Fits each token's line; NaN where a loss of it is. Raises `ValueError` for fewer than two checkpoints."""
    losses_CN = np.asarray(losses_CN)
    if losses_CN.ndim != 2 or len(losses_CN) < 2:
        raise ValueError(f"losses of at least two checkpoints [C, N] are wanted, not of shape {losses_CN.shape}")
    n = len(losses_CN) - 1
    centred_C = np.arange(n + 1) - n / 2
    mean_N, slope_N, square_N = (np.zeros(losses_CN.shape[1]) for _ in range(3))
    with np.errstate(invalid="ignore"):  # infinite losses
        for x, loss_N in zip(centred_C, losses_CN, strict=True):
            mean_N += loss_N.astype(np.float64) / (n + 1)
            slope_N += x * loss_N.astype(np.float64) / (centred_C**2).sum()
        for x, loss_N in zip(centred_C, losses_CN, strict=True):
            square_N += (loss_N - mean_N - x * slope_N) ** 2
        return Lines(mean_N - slope_N * n / 2, mean_N + slope_N * n / 2, np.sqrt(square_N / (n + 1)))


def categorise(losses_CN: ArrayLike) -> NDArray[np.int8]:
    """Each token's index into `CATEGORIES`, `ABSENT` for those not predicted. [N]

    L_end - L_start below -0.2 is H→L, above 0.2 L→H; of the others those whose last loss is at most the last
    checkpoint's mean loss are L→L, the rest H→H (App. D.1).
    """
    losses_CN = np.asarray(losses_CN)
    lines = fit_lines(losses_CN)
    there_N = np.isfinite(losses_CN).all(axis=0)
    last_N = losses_CN[-1].astype(np.float64)
    mean = last_N[there_N].mean() if there_N.any() else np.nan
    with np.errstate(invalid="ignore"):
        change_N = lines.end_N - lines.start_N
        level_N = np.where(last_N <= mean + ROUNDING, LL, HH)
        moved_N = np.where(change_N < -CHANGE - ROUNDING, HL, np.where(change_N > CHANGE + ROUNDING, LH, level_N))
    return np.where(there_N, moved_N, ABSENT).astype(np.int8)


def category_curves(losses_CN: ArrayLike, category_N: NDArray[np.int8]) -> dict[str, dict[str, Any]]:
    """Of each category its share of the tokens that have one, how many, and their mean loss at each checkpoint [C].

    The mean of a category without tokens is NaN, as are all shares where there are no tokens.
    """
    losses_CN = np.asarray(losses_CN)
    there = int((category_N != ABSENT).sum())
    found = {}
    for index, name in enumerate(CATEGORIES):
        chosen_N = category_N == index
        tokens = int(chosen_N.sum())
        mean_C = [float(loss_N[chosen_N].mean(dtype=np.float64)) if tokens else np.nan for loss_N in losses_CN]
        found[name] = {"share": tokens / there if there else np.nan, "tokens": tokens, "mean": mean_C}
    return found


def fluctuating(
    losses_CN: ArrayLike, category_N: NDArray[np.int8], count: int, seed: int, top: float = 0.03
) -> NDArray[np.int64]:
    """Tokens to show, whose loss neither falls nor rises but swings (Fig. 3 b and c): up to `count` of L→L, then up to
    `count` of H→H, each drawn by seed among those `top` of their category (but no fewer than `count`) that lie furthest
    from their own line. None with two checkpoints, through which every line goes."""
    losses_CN = np.asarray(losses_CN)
    rng, found = np.random.default_rng(seed), [np.zeros(0, np.int64)]
    if len(losses_CN) > 2:
        spread_N = fit_lines(losses_CN).spread_N
        for category in (LL, HH):
            among = np.flatnonzero((category_N == category) & (spread_N > ROUNDING))
            furthest = among[np.argsort(-spread_N[among], kind="stable")][: max(count, round(top * len(among)))]
            found.append(rng.permutation(furthest)[:count])
    return np.concatenate(found)
