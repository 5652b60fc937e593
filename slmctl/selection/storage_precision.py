"""How the storage of losses, and the arithmetic they come from, change a selection. Pure functions."""

from __future__ import annotations

import numpy as np

COMPACT_BITS = 6
"""Mantissa bits that `compact` storage keeps, of float16's ten."""


def keep_mantissa_bits(values: np.ndarray, bits: int) -> np.ndarray:
    """float16 values rounded to the nearest with so many mantissa bits, ties to even; the rest of the bits are zero, so that
    they compress to nothing. Non-negative and finite values, any shape; float16 of the same shape."""
    drop = 10 - bits
    raw = np.ascontiguousarray(values, dtype=np.float16).view(np.uint16).astype(np.uint32) & 0x7FFF  # -0 is 0
    rounded = (raw + ((1 << (drop - 1)) - 1) + ((raw >> drop) & 1)) >> drop << drop
    largest = np.uint32(0x7BFF >> drop << drop)  # rounding up must not reach infinity
    found: np.ndarray = np.minimum(rounded, largest).astype(np.uint16).view(np.float16)
    return found


def stored(values: np.ndarray, dtype: str) -> np.ndarray:
    """Losses (nats, float32, any shape), rounded to what is stored as `float32`, `float16` or `compact`. What rounding took below
    zero is zero; what float16 cannot hold is its largest number."""
    values = np.maximum(values, 0.0)
    if dtype == "float32":
        return values
    half = np.minimum(values, np.finfo(np.float16).max).astype(np.float16)
    return (keep_mantissa_bits(half, COMPACT_BITS) if dtype == "compact" else half).astype(np.float32)


def share_replaced(selected: np.ndarray, other: np.ndarray) -> float:
    """Of the tokens that `selected` holds, the share that `other` does not: both bool of one shape."""
    return float((selected & ~other).sum() / max(1, selected.sum()))


def loss_differences(exact: np.ndarray, other: np.ndarray, target: np.ndarray) -> tuple[float, float]:
    """Median and 99th percentile of how far losses are off (nats) where `target` is true; all of one shape."""
    off = np.abs(other[target].astype(np.float64) - exact[target].astype(np.float64))
    return float(np.median(off)), float(np.quantile(off, 0.99))


def excess_given_up(excess: np.ndarray, selected: np.ndarray, other: np.ndarray, valid: np.ndarray) -> float:
    """How much of what `selected` gains in mean excess loss over blind choice the selection `other` does not: 0 is none of it, 1
    all. `excess` (nats) is the exact one; masks are bool, all of one shape. 0 where nothing is gained by selecting."""
    values = excess.astype(np.float64)
    blind = values[valid].mean()
    gained = values[selected].mean() - blind
    return float((values[selected].mean() - values[other].mean()) / gained) if gained > 1e-9 else 0.0
