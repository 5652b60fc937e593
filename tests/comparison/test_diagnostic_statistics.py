"""The mask against the selection that trains, curves, fits and perplexities against plain loops."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slmctl.comparison.diagnostic_statistics import excess_mask, line_fit, mask_curves, perplexity_matrix
from slmctl.selection.select import excess_loss, select_top, selected_count


def with_holes(losses: np.ndarray, seed: int = 0) -> np.ndarray:
    """As a row of tokens has them: the first is never predicted, some are padding."""
    losses = losses.copy()
    losses[..., 0] = np.nan
    losses[..., np.random.default_rng(seed).random(losses.shape[-1]) < 0.2] = np.nan
    return losses


# --- the fixed mask ---


@given(st.integers(0, 10**6), st.integers(1, 7), st.sampled_from([0.1, 0.6, 0.7, 1.0]), st.integers(1, 4), st.booleans())
@settings(max_examples=150, deadline=None)
def test_the_mask_is_what_training_would_select(seed, rows, ratio, group_rows, ties):
    rng = np.random.default_rng(seed)
    live, ref = rng.gamma(2, 2, (2, rows, 9)).astype(np.float32)
    if ties:
        live, ref = live.round(), ref.round()
    valid = rng.random((rows, 9)) < 0.8
    live[~valid], ref[rng.random((rows, 9)) < 0.05] = np.nan, np.nan
    valid &= ~np.isnan(ref)
    live[valid & (rng.random((rows, 9)) < 0.05)] = np.inf
    ref[valid & (rng.random((rows, 9)) < 0.05)] = np.inf
    found = excess_mask(live, ref, ratio, group_rows)
    for at in range(0, rows, group_rows):
        group = [torch.from_numpy(a[at : at + group_rows].reshape(1, -1)) for a in (live, ref, valid)]
        count = torch.tensor([selected_count(int(group[2].sum()), ratio)])
        wanted = select_top(excess_loss(group[0], group[1]), group[2], count)
        assert (found[at : at + group_rows].ravel() == wanted.numpy().ravel()).all()


def test_tokens_compete_within_their_group():
    live = np.array([[9.0, 8, 1, 1], [2, 1, 0, 0]])
    ref = np.zeros((2, 4))
    assert excess_mask(live, ref, 0.5, 1).tolist() == [[True, True, False, False]] * 2
    assert excess_mask(live, ref, 0.375, 2).tolist() == [[True, True, False, False], [True, False, False, False]]


def test_the_sign_is_that_of_the_paper():
    """What the reference knows and the live model does not is chosen."""
    assert excess_mask([[3.0, 3.0]], [[0.5, 4.0]], 0.5, 1).tolist() == [[True, False]]
    with pytest.raises(ValueError, match="same rows"):
        excess_mask([[1.0, 2.0]], [[1.0]], 0.5, 1)


def test_curves_of_a_mask():
    rng = np.random.default_rng(0)
    losses, mask = with_holes(rng.gamma(2, 2, (4, 200))), rng.random(200) < 0.4
    found = mask_curves(losses, mask)
    for name, wanted in (("selected", True), ("unselected", False)):
        for c in range(4):
            values = [x for x, m in zip(losses[c], mask, strict=True) if m == wanted and not math.isnan(x)]
            assert found[name][c] == pytest.approx(statistics.mean(values))
    there = [float(m) for x, m in zip(losses[0], mask, strict=True) if not math.isnan(x)]
    assert found["share"] == pytest.approx(statistics.mean(there))


def test_a_mask_of_everything_leaves_no_other_curve():
    found = mask_curves(np.ones((2, 5)), np.ones(5, bool))
    assert found["selected"] == [1, 1]
    assert np.isnan(found["unselected"]).all()
    assert math.isnan(mask_curves(np.full((2, 5), np.nan), np.ones(5, bool))["share"])


# --- the fit ---


def test_a_line_is_recovered():
    assert line_fit([1, 2, 4], [5, 7, 11]) == pytest.approx({"slope": 2, "intercept": 3, "r2": 1})


def test_a_fit_equals_the_standard_library():
    rng = np.random.default_rng(0)
    x = rng.normal(3, 1, 30)
    y = 1.5 * x + rng.normal(0, 1, 30)
    wanted = statistics.linear_regression(x, y)
    found = line_fit(x, y)
    assert (found["slope"], found["intercept"]) == pytest.approx((wanted.slope, wanted.intercept))
    assert found["r2"] == pytest.approx(statistics.correlation(x, y) ** 2)
    holes = line_fit([*x, math.nan, 3.0], [*y, 1.0, math.inf])
    assert holes == pytest.approx(found)


@pytest.mark.parametrize(("x", "y"), [([], []), ([1], [2]), ([1, 1], [2, 3]), ([1, math.nan], [2, 3])])
def test_no_line_through_one_point(x, y):
    assert line_fit(x, y) == {"slope": None, "intercept": None, "r2": None}


def test_a_flat_line_explains_nothing():
    assert line_fit([1, 2, 3], [4, 4, 4]) == {"slope": 0, "intercept": 4, "r2": None}


# --- the matrix ---


def test_the_matrix_against_a_plain_loop():
    rng = np.random.default_rng(0)
    losses, masks = with_holes(rng.gamma(2, 2, (4, 150))), rng.random((4, 150)) < 0.4
    found = perplexity_matrix(losses, masks)
    for i in range(4):
        for j in range(4):
            chosen = [loss for loss, m in zip(losses[j], masks[i], strict=True) if m and not math.isnan(loss)]
            assert found[i, j] == pytest.approx(math.exp(sum(chosen) / len(chosen)))


def test_rows_are_where_tokens_were_chosen():
    losses = np.log(np.array([[2.0, 8], [4, 16]]))  # [checkpoint, token]
    masks = np.array([[True, False], [False, True]])
    np.testing.assert_allclose(perplexity_matrix(losses, masks), [[2, 4], [8, 16]])


def test_a_checkpoint_that_chose_nothing_and_one_that_is_beyond_numbers():
    found = perplexity_matrix([[1.0, 2], [1000, np.inf]], [[False, False], [True, False]])
    assert np.isnan(found[0]).all()
    assert found[1].tolist() == [math.e, math.inf]
