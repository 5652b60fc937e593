"""How the storage of reference losses changes a selection. Pure functions."""

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


def share_replaced(selected: np.ndarray, other: np.ndarray) -> float:
    """Of the tokens that `selected` holds, the share that `other` does not: both bool of one shape."""
    return float((selected & ~other).sum() / max(1, selected.sum()))
