"""Soft weights, ratio schedules and rows beside plain readings of what they promise."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slmctl.selection.rows import kept_rows, random_rows, row_scores
from slmctl.selection.schedules import RatioSchedule
from slmctl.selection.select import select_top, selected_count, standardised
from slmctl.selection.weights import score_weights, sigmoid_weights, softmax_weights, with_unselected

SEEDS = st.integers(0, 10**6)


def drawn(seed: int, tokens: int = 30) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    valid = rng.random((2, tokens)) < 0.8
    return torch.from_numpy(rng.normal(size=(2, tokens)).astype(np.float32) * 3), torch.from_numpy(valid)


def counts(valid: torch.Tensor, ratio: float) -> torch.Tensor:
    return torch.tensor([selected_count(v, ratio) for v in valid.sum(dim=1).tolist()])


def bisected(logits: np.ndarray, k: int) -> float:
    """log c such that min(1, c exp(logits)) sum to k."""
    low, high = -logits.max() - 60, -logits.min() + 60
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (low, middle) if np.minimum(1, np.exp(np.minimum(0, logits + middle))).sum() > k else (middle, high)
    return low


@given(seed=SEEDS, ratio=st.sampled_from([0.1, 0.5, 0.6]), temperature=st.sampled_from([0.1, 1.0, 7.0]))
@settings(max_examples=40, deadline=None)
def test_sigmoid_weights_are_half_at_the_edge(seed, ratio, temperature):
    scores, valid = drawn(seed)
    found = sigmoid_weights(scores, valid, counts(valid, ratio), temperature).numpy()
    for row, weights, ok, k in zip(scores.numpy(), found, valid.numpy(), counts(valid, ratio).tolist(), strict=True):
        falling = sorted(row[ok].tolist(), reverse=True)
        edge = (falling[k - 1] + falling[k]) / 2
        wanted = [1 / (1 + math.exp((edge - s) / temperature)) if v else 0.0 for s, v in zip(row.tolist(), ok, strict=True)]
        np.testing.assert_allclose(weights, wanted, atol=1e-6)


@given(seed=SEEDS, ratio=st.sampled_from([0.1, 0.5, 0.6, 0.95]), temperature=st.sampled_from([0.05, 0.3, 1.0, 7.0, 1e4]))
@settings(max_examples=60, deadline=None)
def test_softmax_weights_sum_to_the_count_and_none_is_above_1(seed, ratio, temperature):
    scores, valid = drawn(seed)
    want = counts(valid, ratio)
    found = softmax_weights(scores, valid, want, temperature).numpy()
    for row, weights, ok, k in zip(scores.numpy().astype(np.float64), found, valid.numpy(), want.tolist(), strict=True):
        logits = row[ok] / temperature
        log_c = bisected(logits, k)
        np.testing.assert_allclose(weights[ok], np.minimum(1, np.exp(np.minimum(0, logits + log_c))), atol=2e-5)
        assert weights.sum() == pytest.approx(k, rel=1e-5)
        assert not weights[~ok].any()


@pytest.mark.parametrize("soft", [sigmoid_weights, softmax_weights])
@given(seed=SEEDS, ratio=st.sampled_from([0.1, 0.5, 0.6, 1.0]))
@settings(max_examples=30, deadline=None)
def test_towards_a_temperature_of_0_weights_are_the_mask(soft, seed, ratio):
    scores, valid = drawn(seed)
    want = counts(valid, ratio)
    mask = select_top(scores, valid, want)
    assert torch.equal(soft(scores, valid, want, 1e-9), mask.float())


@pytest.mark.parametrize("soft", [sigmoid_weights, softmax_weights])
@pytest.mark.parametrize("temperature", [0.1, 3.0])
def test_a_ratio_of_1_weighs_all_alike(soft, temperature):
    scores, valid = drawn(4)
    assert torch.equal(soft(scores, valid, counts(valid, 1.0), temperature), valid.float())


def test_a_group_of_nothing_weighs_nothing():
    scores, valid = drawn(4)
    valid[1] = False
    for soft in (sigmoid_weights, softmax_weights):
        assert not soft(scores, valid, counts(valid, 0.5), 1.0)[1].any()


def test_scores_as_weights_are_never_negative():
    scores, valid = drawn(5)
    wanted = np.where(valid.numpy(), np.maximum(scores.numpy(), 0), 0)
    np.testing.assert_array_equal(score_weights(scores, valid).numpy(), wanted)


def test_what_is_not_selected_weighs_what_is_said():
    scores, valid = drawn(6)
    mask = select_top(scores, valid, counts(valid, 0.5)).float()
    assert torch.equal(with_unselected(mask, valid, 0.0), mask)
    assert torch.equal(with_unselected(mask, valid, 1.0), valid.float())
    wanted = np.where(valid.numpy(), np.where(mask.numpy() > 0, 1.0, 0.25), 0.0)
    np.testing.assert_allclose(with_unselected(mask, valid, 0.25).numpy(), wanted)


def test_standardised_scores_have_mean_0_and_deviation_1():
    scores, valid = drawn(7)
    found = standardised(scores, valid)[valid[0].new_tensor([True, False])][:, valid[0]].double()
    assert float(found.mean()) == pytest.approx(0, abs=1e-6)
    assert float(found.std(correction=0)) == pytest.approx(1, abs=1e-6)
    assert not standardised(torch.ones(1, 5), torch.ones(1, 5, dtype=torch.bool)).any(), (
        "of one value throughout nothing stands out"
    )


# --- schedules ---


def test_ratios_run_from_start_to_end_by_tokens_seen():
    linear = RatioSchedule("linear", 1.0, 0.5, warmup=0.2, until=0.6)
    assert [linear.at(seen, 1000) for seen in (0, 199, 200, 400, 600, 1000)] == [1.0, 1.0, 1.0, 0.75, 0.5, 0.5]
    cosine = RatioSchedule("cosine", 0.4, 0.8)
    assert [cosine.at(seen, 100) for seen in (0, 25, 50, 100)] == [
        0.4,
        round(0.4 + 0.4 * (1 - math.cos(math.pi / 4)) / 2, 6),
        0.6,
        0.8,
    ]
    assert [RatioSchedule("constant", 0.6, 0.6, warmup=0.1).at(seen, 100) for seen in (0, 9, 10, 99)] == [1.0, 1.0, 0.6, 0.6]


# --- rows ---


@given(seed=SEEDS, share=st.sampled_from([0.1, 0.25, 0.5, 1.0]))
@settings(max_examples=30, deadline=None)
def test_rows_of_the_highest_mean_are_kept(seed, share):
    rng = np.random.default_rng(seed)
    tokens, valid = rng.normal(size=(8, 20)).astype(np.float32), rng.random((8, 20)) < 0.7
    means = [tokens[b][valid[b]].astype(np.float64).mean() for b in range(8)]
    np.testing.assert_allclose(row_scores(tokens, valid), means)
    highest = [np.sort(tokens[b][valid[b]].astype(np.float64))[::-1][: math.ceil(0.25 * valid[b].sum())].mean() for b in range(8)]
    np.testing.assert_allclose(row_scores(tokens, valid, "top_mass", 0.25), highest)
    kept = kept_rows(row_scores(tokens, valid), share)
    assert set(np.flatnonzero(kept)) == set(sorted(range(8), key=lambda b: -means[b])[: math.ceil(share * 8)])


def test_rows_are_drawn_as_their_scores_say():
    scores = np.array([0.0, 0.0, 3.0, 0.0])
    logits = (scores - scores.mean()) / scores.std() / 0.5
    odds = np.exp(logits) / np.exp(logits).sum()
    drawn_ = np.mean([kept_rows(scores, 0.25, 0.5, seed) for seed in range(4000)], axis=0)
    np.testing.assert_allclose(drawn_, odds, atol=0.02)
    blind = np.mean([random_rows(4, 0.5, seed) for seed in range(4000)], axis=0)
    np.testing.assert_allclose(blind, 0.5, atol=0.03)


def test_a_row_of_padding_is_kept_last():
    scores = row_scores(np.zeros((3, 4), np.float32) - 5, np.array([[True] * 4, [False] * 4, [True] * 4]))
    assert kept_rows(scores, 0.6).tolist() == [True, False, True]
