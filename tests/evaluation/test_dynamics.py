"""Token dynamics against App. D.1 read in plain Python, and on trajectories whose answer is known."""

from __future__ import annotations

import math
import tracemalloc
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from slmctl.comparison.diagnostic_statistics import mask_curves, perplexity_matrix
from slmctl.evaluation.dynamics import ABSENT, CATEGORIES, HH, HL, LH, LL, categorise, category_curves, fit_lines, fluctuating


def plain(trajectories: list[list[float]]) -> list[str]:
    """App. D.1, a token at a time, in exact fractions."""
    trajectories = [[Fraction(loss) for loss in t] for t in trajectories]
    n = len(trajectories[0]) - 1
    mean_of_last = sum(t[n] for t in trajectories) / len(trajectories)
    found = []
    for losses in trajectories:
        x_mean, l_mean = Fraction(n, 2), sum(losses) / (n + 1)
        a = sum((x - x_mean) * (loss - l_mean) for x, loss in enumerate(losses)) / sum((x - x_mean) ** 2 for x in range(n + 1))
        b = l_mean - a * x_mean
        change = (a * n + b) - b
        stays = "L→L" if losses[n] <= mean_of_last else "H→H"
        found.append("H→L" if change < Fraction(-1, 5) else "L→H" if change > Fraction(1, 5) else stays)
    return found


def names(category_N: np.ndarray) -> list[str]:
    return [CATEGORIES[c] if c != ABSENT else "absent" for c in category_N]


@pytest.mark.parametrize("checkpoints", [2, 3, 5, 12])
def test_categories_equal_a_plain_reading(checkpoints):
    rng = np.random.default_rng(checkpoints)
    losses_CN = rng.gamma(2, 1.5, 500) + np.cumsum(rng.normal(0, 0.12, (checkpoints, 500)), axis=0)
    found = names(categorise(losses_CN))
    assert found == plain(losses_CN.T.tolist())
    assert set(found) == set(CATEGORIES)


@given(hnp.arrays(np.float32, st.tuples(st.integers(2, 6), st.integers(1, 8)), elements=st.sampled_from([0.5, 1, 2, 4, 7.5])))
@settings(max_examples=150, deadline=None)
def test_categories_equal_a_plain_reading_on_anything(losses_CN):
    assert names(categorise(losses_CN)) == plain(losses_CN.T.tolist())


def test_known_trajectories():
    losses_CN = np.array([[5, 4, 3, 2], [1, 2, 3, 4], [1, 1, 1, 1], [9, 9, 9, 9], [1, 3, 3, 1]], float).T
    assert names(categorise(losses_CN)) == ["H→L", "L→H", "L→L", "H→H", "L→L"]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("steps", [1, 2, 3, 7])
@pytest.mark.parametrize("base", [0.1, 1.0, 7.3])
def test_a_change_of_exactly_the_bound_is_no_change(dtype, steps, base):
    x = np.arange(steps + 1) / steps
    rise, fall = base + 0.2 * x, base + 0.2 - 0.2 * x
    more_rise, more_fall = base + 0.2001 * x, base + 0.2001 - 0.2001 * x
    far = np.full_like(x, 100.0)  # so that the others are below the mean
    losses_CN = np.stack([rise, fall, more_rise, more_fall, far], axis=1).astype(dtype)
    assert names(categorise(losses_CN)) == ["L→L", "L→L", "L→H", "H→L", "H→H"]


@pytest.mark.parametrize("value", [1.1, 0.3, 2.7])
def test_a_last_loss_equal_to_the_mean_is_low(value):
    """Of equal losses the mean, summed up in binary, may come out below each of them."""
    for dtype in (np.float32, np.float64):
        assert set(names(categorise(np.full((3, 1001), value, dtype)))) == {"L→L"}
    above = np.array([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]])
    assert names(categorise(above)) == ["L→L", "L→L", "H→H"]


def test_a_line_is_recovered_and_what_lies_off_it_measured():
    x = np.arange(5)
    losses_CN = np.stack([0.5 * x + 1, 4 - 0.25 * x, np.array([2, 3, 2, 1, 2.0])], axis=1)
    lines = fit_lines(losses_CN)
    slope, start = np.polyfit(x, losses_CN, 1)
    np.testing.assert_allclose(lines.start_N, start)
    np.testing.assert_allclose(lines.end_N, 4 * slope + start)
    wanted = math.sqrt(((losses_CN[:, 2] - slope[2] * x - start[2]) ** 2).mean())
    np.testing.assert_allclose(lines.spread_N, [0, 0, wanted], atol=1e-12)


def test_tokens_that_are_not_predicted_count_nowhere():
    losses_CN = np.array([[1, 1], [9, 9], [1, 1]], float).T
    holes = np.array([[np.nan, np.nan], [np.nan, 2], [1, np.inf]], float).T
    both = np.concatenate([losses_CN, holes], axis=1)
    assert names(categorise(both)) == ["L→L", "H→H", "L→L", *["absent"] * 3]
    curves = category_curves(both, categorise(both))
    assert curves["H→H"]["mean"] == [9, 9]
    assert [curves[c]["tokens"] for c in CATEGORIES] == [1, 0, 0, 2]
    assert sum(c["share"] for c in curves.values()) == pytest.approx(1)


def test_shares_and_mean_curves():
    rng = np.random.default_rng(1)
    losses_CN = rng.gamma(2, 1.5, 300) + np.cumsum(rng.normal(0, 0.15, (4, 300)), axis=0)
    category_N = categorise(losses_CN)
    curves = category_curves(losses_CN, category_N)
    labels = plain(losses_CN.T.tolist())
    for name, found in curves.items():
        tokens = [t for t, label in zip(losses_CN.T.tolist(), labels, strict=True) if label == name]
        assert found["tokens"] == len(tokens)
        assert found["share"] == pytest.approx(len(tokens) / 300)
        assert found["mean"] == pytest.approx([sum(t[c] for t in tokens) / len(tokens) for c in range(4)])


def test_no_tokens_at_all():
    empty = np.full((3, 4), np.nan)
    assert set(names(categorise(empty))) == {"absent"}
    curves = category_curves(empty, categorise(empty))
    assert all(c["tokens"] == 0 and math.isnan(c["share"]) and np.isnan(c["mean"]).all() for c in curves.values())
    assert len(fluctuating(empty, categorise(empty), 3, 0)) == 0


def test_one_checkpoint_has_no_line():
    with pytest.raises(ValueError, match="two checkpoints"):
        fit_lines(np.ones((1, 5)))


def swinging() -> np.ndarray:
    """200 low and 200 high tokens; every tenth swings, symmetrically, so that its line stays flat."""
    losses_CN = np.concatenate([np.full((5, 200), 1.0), np.full((5, 200), 6.0)], axis=1)
    losses_CN += np.random.default_rng(0).normal(0, 0.01, losses_CN.shape)
    losses_CN[:, ::10] += np.array([0.0, 0.8, -1.6, 0.8, 0.0])[:, None]
    return losses_CN


def test_fluctuating_tokens_are_the_far_ones_of_both_categories_drawn_by_seed():
    losses_CN = swinging()
    category_N = categorise(losses_CN)
    assert set(category_N[:200]) == {LL}
    assert set(category_N[200:]) == {HH}
    found = fluctuating(losses_CN, category_N, 4, seed=3, top=0.1)
    assert len(set(found)) == 8
    assert (found % 10 == 0).all()
    assert (found[:4] < 200).all()
    assert (found[4:] >= 200).all()
    assert (fluctuating(losses_CN, category_N, 4, seed=3, top=0.1) == found).all()
    assert len({tuple(fluctuating(losses_CN, category_N, 4, seed, top=0.1)) for seed in range(5)}) == 5


def test_fewer_fluctuating_tokens_than_are_asked_for():
    losses_CN = swinging()[:, [0, 1, 399]]
    category_N = categorise(losses_CN)
    assert sorted(fluctuating(losses_CN, category_N, 10, 0)) == [0, 1, 2]
    assert len(fluctuating(losses_CN[:2], categorise(losses_CN[:2]), 10, 0)) == 0, "two points lie on their line"
    moving = np.array([[1.0, 2, 3, 4], [4, 3, 2, 1]]).T
    assert set(categorise(moving)) == {LH, HL}
    assert len(fluctuating(moving, categorise(moving), 10, 0)) == 0


def test_memory_stays_below_that_of_the_losses_themselves():
    """No float64 copy of all checkpoints is made, here nor in the diagnostics of masks."""
    rng = np.random.default_rng(0)
    losses_CN = rng.gamma(2, 1, (60, 20_000)).astype(np.float32)
    masks_CN = rng.random(losses_CN.shape) < 0.6
    tracemalloc.start()
    try:
        category_N = categorise(losses_CN)
        category_curves(losses_CN, category_N)
        fluctuating(losses_CN, category_N, 4, 0)
        mask_curves(losses_CN, masks_CN[0])
        perplexity_matrix(losses_CN, masks_CN[:3])
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < losses_CN.nbytes
