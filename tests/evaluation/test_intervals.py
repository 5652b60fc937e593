"""Coverage of the intervals on made-up documents whose true loss is known, a bootstrap in plain loops, McNemar by hand."""

from __future__ import annotations

import itertools
import math
import random
import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest

from slmctl.evaluation.intervals import (
    FEW,
    difference_interval,
    effective_documents,
    mcnemar_p,
    mean_interval,
    paired_accuracy,
    student_quantiles,
    widening,
)

REPETITIONS = 400
TRUE_LOSS, TRUE_GAP = 2.0, 0.1


def documents(rng: np.random.Generator, m: int) -> tuple[np.ndarray, np.ndarray]:
    """Nats and predicted tokens of documents of unequal length, the loss a token gamma distributed (skewed), mean 2."""
    predicted = rng.integers(20, 400, m)
    return rng.gamma(3, TRUE_LOSS / 3, m) * predicted, predicted


def pairs(rng: np.random.Generator, m: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two models on the same documents: a document is hard for both, b is better by 0.1 nats on average."""
    nats_a, predicted = documents(rng, m)
    return nats_a, nats_a - (TRUE_GAP + rng.normal(0, 0.3, m)) * predicted, predicted


def bounds(level: float) -> tuple[float, float]:
    """Three standard errors of a share of so many repetitions, and two points below for what no bootstrap of few skewed
    documents reaches."""
    error = 3 * math.sqrt(level * (1 - level) / REPETITIONS)
    return level - error - 0.02, level + error


def coverage(interval: Callable[[np.random.Generator, int, int], tuple[float, float]], m: int, truth: float) -> float:
    rng = np.random.default_rng(m)
    found = [interval(rng, m, seed) for seed in range(REPETITIONS)]
    return sum(low <= truth <= high for low, high in found) / REPETITIONS


def of_loss(level: float, scale: float = 1.0) -> Callable[..., tuple[float, float]]:
    def interval(rng: np.random.Generator, m: int, seed: int) -> tuple[float, float]:
        nats, predicted = documents(rng, m)
        low, high = mean_interval(nats, predicted, level, seed, resamples=500)
        loss = nats.sum() / predicted.sum()
        return loss + scale * (low - loss), loss + scale * (high - loss)

    return interval


def of_difference(rng: np.random.Generator, m: int, seed: int) -> tuple[float, float]:
    return difference_interval(*pairs(rng, m), 0.95, seed, resamples=500)


def unpaired(rng: np.random.Generator, m: int, seed: int) -> tuple[float, float]:
    """What takes the two models' documents for different ones."""
    nats_a, nats_b, predicted = pairs(rng, m)
    a, b = (mean_interval(n, predicted, 0.95, seed, resamples=500) for n in (nats_a, nats_b))
    gap = (nats_a.sum() - nats_b.sum()) / predicted.sum()
    reach = math.hypot(a[1] - a[0], b[1] - b[0]) / 2
    return gap - reach, gap + reach


def over_tokens(rng: np.random.Generator, m: int, _seed: int) -> tuple[float, float]:
    """What takes every token for independent of the others of its document."""
    nats, predicted = documents(rng, m)
    losses = np.repeat(nats / predicted, predicted)
    reach = 1.96 * losses.std() / math.sqrt(len(losses))
    return losses.mean() - reach, losses.mean() + reach


@pytest.mark.parametrize("level", [0.8, 0.95])
@pytest.mark.parametrize("m", [12, 60, 300])
def test_the_interval_of_a_loss_holds_the_truth_as_often_as_it_says(m, level):
    low, high = bounds(level)
    assert low <= coverage(of_loss(level), m, TRUE_LOSS) <= high


@pytest.mark.parametrize("m", [12, 60, 300])
def test_the_interval_of_a_difference_holds_the_truth_as_often_as_it_says(m):
    low, high = bounds(0.95)
    assert low <= coverage(of_difference, m, TRUE_GAP) <= high


@pytest.mark.parametrize("broken", [of_loss(0.95, 0.5), of_loss(0.95, 1.5), over_tokens])
def test_the_bounds_tell_a_broken_interval_of_a_loss(broken):
    low, high = bounds(0.95)
    assert not low <= coverage(broken, 60, TRUE_LOSS) <= high


def test_the_bounds_tell_an_unpaired_interval():
    low, high = bounds(0.95)
    assert not low <= coverage(unpaired, 60, TRUE_GAP) <= high


UNEQUAL = {
    "lognormal": lambda rng, m: np.ceil(rng.lognormal(5, 1.5, m)),
    "Pareto": lambda rng, m: np.ceil(50 * (1 + rng.pareto(1.5, m))),
}
"""Lengths of which few hold most of the tokens."""


def unequal(widened: bool) -> float:
    """Coverage at 95% over both kinds of length, 12 and 60 documents, a loss and a difference; of the interval as it is, or
    without what unequal lengths add to it."""
    held = []
    for lengths in UNEQUAL.values():
        for m in (12, 60):
            rng = np.random.default_rng(m)
            for seed in range(120):
                predicted = lengths(rng, m)
                for per_token, truth in ((rng.gamma(3, TRUE_LOSS / 3, m), TRUE_LOSS), (rng.normal(TRUE_GAP, 0.3, m), TRUE_GAP)):
                    nats = per_token * predicted
                    ends = mean_interval(nats, predicted, 0.95, seed, resamples=300)
                    loss, factor = nats.sum() / predicted.sum(), (1 + widening(predicted, 0.95)) / 2
                    low, high = (loss + (end - loss) / (1 if widened else factor) for end in ends)
                    held.append(low <= truth <= high)
    return float(np.mean(held))


def test_documents_of_very_unequal_length_keep_the_level():
    """960 repetitions: three standard errors are 0.021."""
    assert 0.935 <= unequal(widened=True) <= 0.985
    assert unequal(widened=False) < 0.92, "the plain bootstrap-t does not, which the test must see"


def explicit_widening(sizes: list[float], level: float) -> float:
    """By matrices: residuals y = B z of documents whose loss a token varies alike, and the moments of y'y."""
    s = np.array(sizes)
    m, total = len(s), s.sum()
    matrix = (np.eye(m) - np.outer(s, np.ones(m)) / total) @ np.diag(s)
    spread = matrix @ matrix.T
    found = np.trace(spread) * m / (m - 1) / total**2  # of the squared standard error
    true = (s**2).sum() / total**2
    freedom = np.trace(spread) ** 2 / np.trace(spread @ spread)
    return math.sqrt(true / found) * student_quantiles(level, freedom)[1] / student_quantiles(level, m - 1)[1]


@pytest.mark.parametrize("level", [0.8, 0.95])
def test_the_widening_is_that_of_the_matrices(level):
    rng = np.random.default_rng(0)
    for m in (2, 3, 9, 40):
        sizes = rng.lognormal(5, 1.5, m)
        assert widening(sizes, level) == pytest.approx(explicit_widening(list(sizes), level), rel=1e-3)
        assert widening(1e6 * sizes, level) == pytest.approx(widening(sizes, level))
        assert widening(np.full(m, 7), level) == pytest.approx(1.0)
    assert widening([5], level) == 1.0
    assert widening([1, 1e12], level) == math.inf
    assert mean_interval([3.0, 2e12], [1, 1e12], level, 0) is None, "one document is all there is"


def test_documents_count_as_many_as_equal_ones_would_tell_as_much():
    assert effective_documents([7] * 12) == pytest.approx(12)
    assert effective_documents([100, 1, 1, 0]) == pytest.approx(102**2 / (100**2 + 2))
    assert effective_documents([]) == 0.0


def test_fewer_documents_than_a_bootstrap_needs_still_have_an_interval():
    """Equal documents and normal losses, for which Student's t is exact."""

    def interval(rng: np.random.Generator, m: int, seed: int) -> tuple[float, float]:
        return mean_interval(100 * rng.normal(2, 0.5, m), np.full(m, 100), 0.95, seed)

    for m in range(2, FEW):
        assert abs(coverage(interval, m, TRUE_LOSS) - 0.95) <= 3 * math.sqrt(0.95 * 0.05 / REPETITIONS)


def test_two_documents_by_hand():
    """Losses 1 and 3 of one token each: mean 2, standard error 1, and t of one degree of freedom."""
    assert mean_interval([1.0, 3.0], [1, 1], 0.95, 0) == pytest.approx((2 - 12.7062, 2 + 12.7062), abs=1e-3)


def plain_bootstrap(nats: list[float], predicted: list[int], level: float, resamples: int) -> tuple[float, float]:
    """Bootstrap-t by definition, a document at a time."""
    m, rng = len(nats), random.Random(5)

    def ratio_and_error(chosen: list[int]) -> tuple[float, float]:
        size = sum(predicted[i] for i in chosen)
        ratio = sum(nats[i] for i in chosen) / size
        squares = sum((nats[i] - ratio * predicted[i]) ** 2 for i in chosen)
        return ratio, math.sqrt(squares * m / (m - 1)) / size

    loss, error = ratio_and_error(list(range(m)))
    wider = (1 + explicit_widening([float(p) for p in predicted], level)) / 2
    scores = []
    for _ in range(resamples):
        ratio, its_error = ratio_and_error(rng.choices(range(m), k=m))
        scores.append((ratio - loss) / its_error)
    scores.sort()
    cut = [scores[round(q * (resamples - 1))] for q in ((1 - level) / 2, (1 + level) / 2)]
    return loss - cut[1] * error * wider, loss - cut[0] * error * wider


@pytest.mark.parametrize(("m", "level"), [(9, 0.9), (15, 0.95), (30, 0.8)])
def test_the_interval_equals_a_bootstrap_in_plain_loops(m, level):
    nats, predicted = documents(np.random.default_rng(m), m)
    wanted = plain_bootstrap(nats.tolist(), predicted.tolist(), level, 10_000)
    found = mean_interval(nats, predicted, level, 0, 20_000)
    assert found == pytest.approx(wanted, abs=0.05 * (wanted[1] - wanted[0]))


def test_every_resample_is_one_of_those_there_are():
    """Of five documents there are 5^5 ordered resamples; their exact quantiles are the limit of many random ones."""
    nats, predicted = np.array([3.0, 8, 2, 9, 5]), np.array([2, 3, 1, 4, 2])
    loss, scores = nats.sum() / predicted.sum(), []
    sample_error = math.sqrt(((nats - loss * predicted) ** 2).sum() * 5 / 4) / predicted.sum()
    for chosen in itertools.product(range(5), repeat=5):
        n, p = nats[list(chosen)], predicted[list(chosen)]
        ratio = n.sum() / p.sum()
        error = math.sqrt(((n - ratio * p) ** 2).sum() * 5 / 4) / p.sum()
        scores.append((ratio - loss) / (error if error > 1e-9 else sample_error))
    low, high = np.quantile(scores, [0.1, 0.9])
    found = mean_interval(nats, predicted, 0.8, 3, 100_000)
    sample_error *= (1 + explicit_widening([2.0, 3, 1, 4, 2], 0.8)) / 2
    assert found == pytest.approx((loss - high * sample_error, loss - low * sample_error), rel=0.02)


def test_chunks_do_not_change_what_is_drawn_by_more_than_chance(monkeypatch):
    nats, predicted = documents(np.random.default_rng(0), 50)
    whole = mean_interval(nats, predicted, 0.95, 0, 20_000)
    monkeypatch.setattr("slmctl.evaluation.intervals.CHUNK", 130)  # two resamples at once
    pieces = mean_interval(nats, predicted, 0.95, 0, 20_001)
    assert pieces == pytest.approx(whole, abs=0.05 * (whole[1] - whole[0]))


def test_the_seed_alone_decides():
    nats, predicted = documents(np.random.default_rng(0), 40)
    assert mean_interval(nats, predicted, 0.95, 1) == mean_interval(nats, predicted, 0.95, 1)
    assert mean_interval(nats, predicted, 0.95, 1) != mean_interval(nats, predicted, 0.95, 2)


def test_memory_stays_small_with_many_documents():
    nats, predicted = documents(np.random.default_rng(0), 100_000)
    tracemalloc.start()
    low, high = mean_interval(nats, predicted, 0.95, 0, resamples=40)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100e6
    assert low < nats.sum() / predicted.sum() < high < low + 0.1


def test_no_interval_without_two_documents_or_with_losses_that_are_not_finite():
    assert mean_interval([], [], 0.95, 0) is None
    assert mean_interval([3.0], [2], 0.95, 0) is None
    assert mean_interval([3.0, 0.0], [2, 0], 0.95, 0) is None
    assert mean_interval([3.0, math.nan, 4.0], [2, 2, 2], 0.95, 0) is None
    assert mean_interval([3.0, math.inf, 4.0], [2, 2, 2], 0.95, 0) is None


def test_documents_without_a_predicted_token_count_for_nothing():
    nats, predicted = documents(np.random.default_rng(0), 20)
    with_empty = mean_interval(np.append(nats, [0, 0]), np.append(predicted, [0, 0]), 0.95, 0)
    assert with_empty == mean_interval(nats, predicted, 0.95, 0)


@pytest.mark.parametrize("m", [2, 10])
def test_documents_of_the_same_loss_leave_nothing_open(m):
    predicted = np.arange(1, m + 1)
    assert mean_interval(2.0 * predicted, predicted, 0.95, 0) == (2.0, 2.0)


def test_one_document_that_differs_does_not_break_the_interval():
    """Many resamples leave it out, and have no spread."""
    predicted = np.full(40, 10)
    nats = 2.0 * predicted
    nats[7] = 50
    low, high = mean_interval(nats, predicted, 0.95, 0)
    assert 1 < low < nats.sum() / predicted.sum() < high < 5


def test_losses_scale_and_shift_with_their_interval():
    nats, predicted = documents(np.random.default_rng(0), 30)
    low, high = mean_interval(nats, predicted, 0.95, 0)
    assert mean_interval(10 * nats, predicted, 0.95, 0) == pytest.approx((10 * low, 10 * high))
    assert mean_interval(nats + 1000 * predicted, predicted, 0.95, 0) == pytest.approx((1000 + low, 1000 + high), rel=1e-9)


def test_a_difference_turned_round_has_its_interval_turned_round():
    nats_a, nats_b, predicted = pairs(np.random.default_rng(0), 30)
    low, high = difference_interval(nats_a, nats_b, predicted, 0.95, 0)
    assert difference_interval(nats_b, nats_a, predicted, 0.95, 0) == pytest.approx((-high, -low), rel=1e-6)


def test_shapes_that_differ_are_refused():
    with pytest.raises(ValueError, match="shapes"):
        mean_interval([1.0, 2], [1, 2, 3], 0.95, 0)
    with pytest.raises(ValueError, match="same documents"):
        difference_interval([1.0, 2], [1.0, 2, 3], [1, 2], 0.95, 0)
    with pytest.raises(ValueError, match="same items"):
        paired_accuracy([True], [True, False], 0.95)


def test_quantiles_of_students_t_are_those_of_the_tables():
    for freedom, high in [(1, 12.706), (2, 4.303), (4, 2.776), (9, 2.262), (30, 2.042)]:
        assert student_quantiles(0.95, freedom) == pytest.approx((-high, high), abs=6e-4)
    assert student_quantiles(0.5, 1)[1] == pytest.approx(1.0, abs=1e-6)


# --- accuracies ---


def test_mcnemar_counts_every_way_that_coins_may_fall():
    for n in range(1, 11):
        for a_alone in range(n + 1):
            uneven = abs(2 * a_alone - n)
            ways = sum(abs(2 * sum(coins) - n) >= uneven for coins in itertools.product((0, 1), repeat=n))
            assert mcnemar_p(a_alone, n - a_alone) == pytest.approx(ways / 2**n)
    assert mcnemar_p(0, 0) == 1.0


def test_mcnemar_of_thousands_of_items():
    assert mcnemar_p(2600, 2400) == pytest.approx(0.0049, abs=2e-4)  # normal with continuity: z = 199 / sqrt(5000)


def test_paired_accuracy_of_a_small_table():
    a = [True] * 6 + [True] * 3 + [False] * 1 + [False] * 2
    b = [True] * 6 + [False] * 3 + [True] * 1 + [False] * 2
    difference, interval, p = paired_accuracy(a, b, 0.95)
    assert difference == pytest.approx(9 / 12 - 7 / 12)
    assert p == pytest.approx(2 * (1 + 4) / 16)
    middle, spread = (4 - 2) / 14, math.sqrt((4 / 14 + 2 / 14 - (2 / 14) ** 2) / 14)
    assert interval == pytest.approx((middle - 1.959964 * spread, middle + 1.959964 * spread))


def test_accuracies_without_items_or_without_difference():
    difference, interval, p = paired_accuracy([], [], 0.95)
    assert math.isnan(difference)
    assert interval is p is None
    difference, (low, high), p = paired_accuracy([True, False] * 5, [True, False] * 5, 0.95)
    assert (difference, p) == (0, 1)
    assert low < 0 < high
    difference, (low, high), _ = paired_accuracy([True] * 10, [False] * 10, 0.95)
    assert difference == high == 1
    assert 0 < low < 1


@pytest.mark.parametrize(("items", "p_a", "p_b", "both"), [(50, 0.5, 0.4, 0.3), (200, 0.3, 0.2, 0.15), (400, 0.8, 0.8, 0.7)])
def test_the_interval_of_an_accuracy_difference_holds_the_truth(items, p_a, p_b, both):
    rng, held, held_unpaired = np.random.default_rng(items), 0, 0
    for _ in range(2000):
        kind = rng.choice(4, items, p=[both, p_a - both, p_b - both, 1 - p_a - p_b + both])
        a, b = kind <= 1, (kind == 0) | (kind == 2)
        difference, (low, high), _ = paired_accuracy(a, b, 0.95)
        held += low <= p_a - p_b <= high
        reach = 1.96 * math.sqrt((p_a * (1 - p_a) + p_b * (1 - p_b)) / items)
        held_unpaired += abs(difference - (p_a - p_b)) <= reach
    assert 0.935 <= held / 2000 <= 0.968
    assert held_unpaired / 2000 > 0.968  # wider than it needs to be, and told by the bounds


def test_p_below_a_level_is_no_more_frequent_than_that_level_where_nothing_differs():
    rng = np.random.default_rng(0)
    p = [paired_accuracy(rng.random(60) < 0.5, rng.random(60) < 0.5, 0.95)[2] for _ in range(2000)]
    assert 0.01 < np.mean(np.array(p) < 0.05) <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 2000)
