"""Three ways to see what selection does: losses on one fixed mask (Fig. 6), target loss against selected loss (Fig. 7),
and how tokens chosen at one checkpoint fare at the others (Fig. 8).

Shapes: B rows, T tokens of a row, C checkpoints, N tokens, K of them. Losses are nats; NaN marks a token that is not
predicted, which counts nowhere.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from slmctl.selection.select import selected_count

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]


def excess_mask(live_BT: ArrayLike, ref_BT: ArrayLike, ratio: float, group_rows: int) -> Mask:
    """The tokens that excess-loss selection takes (Eq. 3): of each `group_rows` rows, the last group perhaps of fewer,
    exactly ceil(ratio x predicted), ties to the earlier position, as in `slmctl.selection.select`. [B, T]

    A token is predicted where neither loss is NaN. An infinite live loss ranks first, an infinite reference loss last.
    Raises `ValueError` for shapes that differ.
    """
    live_BT, ref_BT = np.asarray(live_BT, np.float32), np.asarray(ref_BT, np.float32)
    if live_BT.ndim != 2 or live_BT.shape != ref_BT.shape:
        raise ValueError(f"live and reference losses are [B, T] of the same rows, not {live_BT.shape} and {ref_BT.shape}")
    chosen_BT = np.zeros(live_BT.shape, bool)
    for at in range(0, len(live_BT), group_rows):
        live_M, ref_M = live_BT[at : at + group_rows].ravel(), ref_BT[at : at + group_rows].ravel()
        predicted_M = ~(np.isnan(live_M) | np.isnan(ref_M))
        low = float(np.finfo(np.float32).min)
        with np.errstate(invalid="ignore"):
            excess_M = np.nan_to_num(live_M - ref_M, nan=low, neginf=low, posinf=np.inf)
        order_M = np.argsort(np.where(predicted_M, -excess_M, np.inf), kind="stable")
        chosen_M = np.zeros(len(live_M), bool)
        chosen_M[order_M[: selected_count(int(predicted_M.sum()), ratio)]] = True
        chosen_BT[at : at + group_rows] = chosen_M.reshape(-1, live_BT.shape[1])
    return chosen_BT


def mask_curves(losses_CN: ArrayLike, selected_N: ArrayLike) -> dict[str, Any]:
    """Mean loss at each checkpoint of the tokens of one mask, and of all others that are predicted (Fig. 6).

    `selected` and `unselected` [C], NaN where there is no token; `share` of the first checkpoint's predicted tokens that
    the mask holds.
    """
    losses_CN, selected_N = np.asarray(losses_CN), np.asarray(selected_N, bool)
    predicted_N = ~np.isnan(losses_CN[0])
    tokens = int(predicted_N.sum())
    return {
        "share": float((selected_N & predicted_N).sum() / tokens) if tokens else np.nan,
        "selected": _mean_losses(losses_CN, selected_N),
        "unselected": _mean_losses(losses_CN, ~selected_N),
    }


def line_fit(x: ArrayLike, y: ArrayLike) -> dict[str, float | None]:
    """The least-squares line y = slope x + intercept and its r2, over the points where both are finite (Fig. 7).

    slope and intercept are None where fewer than two x differ; r2 is None there, and where y is the same throughout.
    """
    x_K, y_K = np.asarray(x, np.float64), np.asarray(y, np.float64)
    both_K = np.isfinite(x_K) & np.isfinite(y_K)
    x_K, y_K = x_K[both_K], y_K[both_K]
    if len(x_K) == 0 or np.ptp(x_K) == 0:
        return {"slope": None, "intercept": None, "r2": None}
    from_mean_K, y_from_mean_K = x_K - x_K.mean(), y_K - y_K.mean()
    slope = float(from_mean_K @ y_from_mean_K / (from_mean_K @ from_mean_K))
    left_K = y_from_mean_K - slope * from_mean_K
    r2 = 1 - float(left_K @ left_K / (y_from_mean_K @ y_from_mean_K)) if np.ptp(y_K) > 0 else None
    return {"slope": slope, "intercept": float(y_K.mean() - slope * x_K.mean()), "r2": r2}


def perplexity_matrix(losses_CN: ArrayLike, masks_CN: ArrayLike) -> Floats:
    """Row i, column j: exp of the mean loss under checkpoint j of the tokens that were chosen at checkpoint i (Fig. 8).

    [C, C]; NaN where nothing predicted is chosen, inf where it is beyond a float64. Rows may be more or fewer than columns.
    """
    losses_CN, masks_CN = np.asarray(losses_CN), np.asarray(masks_CN, bool)
    with np.errstate(over="ignore"):
        return np.stack([np.exp(_mean_losses(losses_CN, mask_N)) for mask_N in masks_CN])


def _mean_losses(losses_CN: NDArray[Any], mask_N: Mask) -> list[float]:
    """Mean at each checkpoint of what a mask holds and is predicted there [C], in float64; NaN where nothing is."""
    found = []
    for loss_N in losses_CN:
        predicted_K = loss_N[mask_N & ~np.isnan(loss_N)]
        found.append(float(predicted_K.mean(dtype=np.float64)) if len(predicted_K) else np.nan)
    return found
