"""How losses are rounded for storage: against slow float64 arithmetic, for every value there is."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from slmctl.selection.storage_precision import COMPACT_BITS, excess_given_up, keep_mantissa_bits, loss_differences, share_replaced

EVERY = np.arange(0x7C00, dtype=np.uint16).view(np.float16)
"""Every non-negative finite float16."""


def slowly_rounded(value: float, bits: int) -> float:
    """The multiple of the value's quantum that is nearest, ties to even; the largest there is where that is beyond it."""
    exponent = max(math.frexp(value)[1] - 1, -14) if value else -14
    quantum = 2.0 ** (exponent - bits)
    largest = (2 - 2.0**-bits) * 2.0**15
    return min(round(value / quantum) * quantum, largest)


@pytest.mark.parametrize("bits", range(1, 10))
def test_every_value_is_rounded_as_slow_arithmetic_rounds_it(bits: int) -> None:
    assert EVERY.size == 31 * 1024
    found = keep_mantissa_bits(EVERY, bits)
    assert found.dtype == np.float16
    assert found.astype(np.float64).tolist() == [slowly_rounded(float(v), bits) for v in EVERY]


def test_compact_values_are_near_and_their_low_bits_are_zero() -> None:
    found = keep_mantissa_bits(EVERY, COMPACT_BITS)
    assert ((found.view(np.uint16) & 0xF) == 0).all()
    normal = np.finfo(np.float16).smallest_normal <= EVERY
    exact, near = EVERY[normal].astype(np.float64), found[normal].astype(np.float64)
    assert (abs(near - exact) <= exact * 2.0 ** -(COMPACT_BITS + 1))[exact <= float(found.max())].all()
    assert np.isfinite(found).all(), "rounding up reached infinity"
    assert (np.diff(found.astype(np.float64)) >= 0).all(), "a larger loss became a smaller one"
    assert (keep_mantissa_bits(found, COMPACT_BITS) == found).all(), "what is rounded is rounded again"


@pytest.mark.parametrize("shape", [(0,), (3, 0), (1,), (4, 5), (2, 3, 4)])
def test_the_shape_stays_and_so_does_what_is_given(shape: tuple[int, ...]) -> None:
    values = np.random.default_rng(0).random(shape).astype(np.float16)
    before = values.copy()
    found = keep_mantissa_bits(values, 6)
    assert found.shape == shape
    assert (values == before).all()
    turned = keep_mantissa_bits(values.T, 6)  # not contiguous
    assert (turned == found.T).all()


@given(st.integers(0, 60).flatmap(lambda n: st.tuples(hnp.arrays(bool, n), hnp.arrays(bool, n))))
def test_the_share_replaced_equals_a_loop(masks: tuple[np.ndarray, np.ndarray]) -> None:
    selected, other = masks
    held = [i for i in range(len(selected)) if selected[i]]
    lost = [i for i in held if not other[i]]
    assert share_replaced(selected, other) == (len(lost) / len(held) if held else 0.0)


def test_the_share_replaced_is_none_of_equal_masks_and_all_of_disjoint_ones() -> None:
    mask = np.array([[True, False], [True, True]])
    assert share_replaced(mask, mask) == 0.0
    assert share_replaced(mask, ~mask) == 1.0
    assert share_replaced(mask, np.ones_like(mask)) == 0.0
    assert share_replaced(np.zeros_like(mask), mask) == 0.0


@given(st.integers(1, 40), st.integers(0, 2**31), st.floats(0.05, 1.0))
def test_differences_and_what_is_given_up_equal_loops(n: int, seed: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    exact, other = (rng.normal(size=n).astype(np.float32) for _ in range(2))
    valid = rng.random(n) < 0.9
    valid[0] = True
    at = [i for i in range(n) if valid[i]]
    off = sorted(abs(float(other[i]) - float(exact[i])) for i in at)
    place = 0.99 * (len(off) - 1)
    low = int(place)
    high = off[low] + (place - low) * (off[min(low + 1, len(off) - 1)] - off[low])
    middle = (off[(len(off) - 1) // 2] + off[len(off) // 2]) / 2
    assert loss_differences(exact, other, valid) == pytest.approx((middle, high), rel=1e-9, abs=1e-12)

    count = max(1, int(share * len(at)))
    best = sorted(at, key=lambda i: -float(exact[i]))[:count]
    chosen = sorted(at, key=lambda i: -float(other[i]))[:count]
    masks = [np.array([i in picked for i in range(n)]) for picked in (best, chosen)]
    mean = {
        k: sum(float(exact[i]) for i in picked) / len(picked) for k, picked in (("best", best), ("chosen", chosen), ("all", at))
    }
    gained = mean["best"] - mean["all"]
    wanted = (mean["best"] - mean["chosen"]) / gained if gained > 1e-9 else 0.0
    assert excess_given_up(exact, *masks, valid) == pytest.approx(wanted, rel=1e-6, abs=1e-9)


def test_the_same_selection_gives_nothing_up_and_a_blind_one_all() -> None:
    excess = np.array([4.0, 0.0, 2.0, 2.0])
    best, valid = np.array([True, False, False, False]), np.ones(4, bool)
    assert excess_given_up(excess, best, best, valid) == 0.0
    assert excess_given_up(excess, best, np.array([False, False, True, False]), valid) == 1.0, "what all tokens have on average"
    assert excess_given_up(np.ones(4), best, ~best, valid) == 0.0, "nothing is gained, so nothing can be lost"
