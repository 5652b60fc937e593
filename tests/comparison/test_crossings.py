"""When an arm came down to its control's final loss, and how sure that is, against plain loops and known truths."""

from __future__ import annotations

import math

import numpy as np
import pytest

from slmctl.comparison.crossings import (
    RESAMPLES,
    Curve,
    cross,
    crossings,
    ends,
    grouped,
    in_step,
    interval_of,
    one_grid,
    resampled,
)
from slmctl.evaluation.heldout import DocumentLosses

# --- crossings ---


def first_below(tokens, losses, goal):
    """One curve, point by point."""
    for i, loss in enumerate(losses):
        if loss <= goal:
            if i == 0:
                return float(tokens[0])
            return tokens[i - 1] + (losses[i - 1] - goal) / (losses[i - 1] - loss) * (tokens[i] - tokens[i - 1])
    return math.inf


@pytest.mark.parametrize(
    ("losses", "goal", "wanted"),
    [
        ([5.0, 4.0, 3.0, 2.0], 2.5, 250.0),
        ([5.0, 4.0, 3.0, 2.0], 2.0, 300.0),  # its own end
        ([5.0, 4.0, 3.0, 2.0], 3.0, 200.0),  # at a point
        ([5.0, 4.0, 3.0, 2.0], 1.9, math.inf),
        ([5.0, 2.0, 4.0, 2.5], 2.5, 100 * 2.5 / 3),  # noise: the first time counts, whatever comes later
        ([5.0, 5.0, 5.0, 5.0], 5.0, 0.0),
        ([2.0, 3.0, 4.0, 5.0], 2.5, 0.0),
        ([5.0, 3.0, 3.0, 2.0], 3.0, 100.0),  # a level stretch divides by nothing
    ],
)
def test_crossings_by_hand(losses, goal, wanted):
    tokens = np.array([0.0, 100, 200, 300])
    assert crossings(tokens, np.array([losses]), np.array([goal])) == pytest.approx([wanted])
    assert first_below(tokens, losses, goal) == pytest.approx(wanted)


def test_crossings_are_those_of_a_plain_loop():
    rng = np.random.default_rng(0)
    tokens = np.cumsum(rng.uniform(1, 9, 12))
    losses = 5 - np.linspace(0, 3, 12) + rng.normal(0, 0.6, (400, 12))
    goals = rng.uniform(1, 6, 400)
    found = crossings(tokens, losses, goals)
    assert found == pytest.approx([first_below(tokens, row, goal) for row, goal in zip(losses, goals, strict=True)])
    assert 50 < np.isinf(found).sum() < 350


# --- which points are compared ---


def test_only_points_that_both_have_are_compared():
    fine, coarse = np.arange(0, 1001, 50.0), np.array([0.0, 200, 400, 600, 800, 1000])
    a, b, shared = one_grid(fine, coarse)
    assert (fine[a].tolist(), coarse[b].tolist(), shared) == (coarse.tolist(), coarse.tolist(), 6)
    assert one_grid(np.array([0.0, 300, 1000]), np.array([0.0, 500, 1000])) == ([0, 2], [0, 2], 2)


def test_an_arm_that_saw_more_has_its_own_points_there():
    """Else one that comes down late, after its control's end, would be said never to."""
    mine, its = np.array([0.0, 100, 200, 300, 400]), np.array([0.0, 100, 150, 200])
    a, b, shared = one_grid(mine, its)
    assert (mine[a].tolist(), its[b].tolist(), shared) == ([0, 100, 200, 300, 400], [0, 100, 200], 3)


def test_seeds_are_averaged_where_all_have_points():
    def curve(places, padding=0):
        places = np.array(places, dtype=float)
        return Curve(places, places - padding, places / 2, np.ones((len(places), 3)), np.ones(3))

    found = in_step([curve([0, 100, 200, 300]), curve([0, 200, 300], 7), curve([0, 100, 200, 300])])
    assert [c.place_G.tolist() for c in found] == [[0, 200, 300]] * 3
    assert found[1].tokens_G.tolist() == [-7, 193, 293], "rows of another seed hold other padding, and are as many rows"


# --- resamples ---


def made(rng, drops, tokens, documents, noise=0.3, like=None):
    """Curves of documents that have a size and a level of their own, kept over training and between arms (`like` is another),
    and some noise at each point."""
    predicted = rng.integers(5, 60, documents) if like is None else like.predicted_M
    level = rng.normal(0, 1.0, documents) if like is None else like.nats_GM[0] / like.predicted_M - 4
    loss = 4 + level[None, :] - np.array(drops)[:, None] + rng.normal(0, noise, (len(drops), documents))
    tokens = np.array(tokens, dtype=float)
    return Curve(tokens, tokens, 0.6 * tokens, loss * predicted, np.asarray(predicted, dtype=float))


TOKENS = [0, 100, 200, 300, 400, 500]


def two(rng, documents=40, noise=0.3):
    mine = made(rng, [0, 1.0, 1.5, 1.75, 1.9, 1.95], TOKENS, documents, noise)
    its = made(rng, [0, 0.8, 1.2, 1.45, 1.6, 1.7], TOKENS, documents, noise, mine)
    return mine, its


def plain_bootstrap(mine, its, draws):
    """(tokens of the arm, tokens of the control) of each resample, one document, point and resample after the other."""
    found = []
    for draw in draws:
        a, b = ([sum(c.nats_GM[g][d] for d in draw) / sum(c.predicted_M[d] for d in draw) for g in range(len(TOKENS))]
                for c in (mine, its))  # fmt: skip
        found.append((first_below(TOKENS, a, b[-1]), first_below(TOKENS, b, b[-1])))
    return found


def test_the_bootstrap_is_that_of_a_plain_loop():
    mine, its = two(np.random.default_rng(1), documents=15, noise=0.1)
    counts = resampled(15, 7, 60)
    draws = [[d for d, n in enumerate(row) for _ in range(int(n))] for row in counts]
    assert all(len(d) == 15 for d in draws)
    found = cross([mine], [its], counts, np.ones((60, 1)))
    wanted = plain_bootstrap(mine, its, draws)
    assert found.tokens_R == pytest.approx([a for a, _ in wanted], rel=1e-9)
    assert found.control_R == pytest.approx([b for _, b in wanted], rel=1e-9)
    times = found.times(1.0, 1.0)
    assert times == pytest.approx([b / a for a, b in wanted], rel=1e-9)
    whole = found.times(2.0, 3.0, 40.0)
    assert whole == pytest.approx([3 * b / (2 * a + 40) for a, b in wanted], rel=1e-9)
    ordered = sorted(times)
    spans = interval_of(found, 0.9, {"times": times})
    assert spans["times"] == [ordered[3], ordered[56]], "three of sixty are left out on each side"
    assert (spans["open"], spans["reached"], spans["resamples"]) == (False, 1.0, 60)


def test_seeds_are_resampled_by_pairs():
    rng = np.random.default_rng(2)
    pairs = [two(rng, 12) for _ in range(3)]
    first = pairs[0][0].predicted_M
    a, b = ([Curve(c.place_G, c.tokens_G, c.selected_G, c.nats_GM / c.predicted_M * first, first) for c in side]
            for side in zip(*pairs, strict=True))  # fmt: skip
    counts, weights = resampled(12, 3, 50), resampled(3, [3, 1], 50)
    found = cross(a, b, counts, weights)
    for r in range(50):
        chosen = [s for s in range(3) for _ in range(int(weights[r, s]))]
        mean = [
            [np.mean([(side[s].nats_GM[g] @ counts[r]) / (first @ counts[r]) for s in chosen]) for g in range(len(TOKENS))]
            for side in (a, b)
        ]
        assert found.tokens_R[r] == pytest.approx(first_below(TOKENS, mean[0], mean[1][-1]), rel=1e-9)
        assert found.control_R[r] == pytest.approx(first_below(TOKENS, mean[1], mean[1][-1]), rel=1e-6)


def test_a_control_always_comes_down_to_its_own_end():
    """Whatever the documents, and however the sums are rounded: its end equals its goal."""
    rng = np.random.default_rng(3)
    curve = made(rng, [0, 0.1, 0.2, 0.3, 0.4, 0.5], TOKENS, 33, noise=0.001)
    found = cross([curve], [curve], resampled(33, 0), np.ones((RESAMPLES, 1)))
    assert np.isfinite(found.control_R).all()
    assert (found.control_R <= TOKENS[-1]).all()
    assert (found.times(1.0, 1.0) == 1.0).all()
    assert (found.control_R == TOKENS[-1]).mean() > 0.9


def test_more_points_would_come_down_sooner_by_chance():
    """Why both are read from one grid: of two like arms, the one with ten times the points seems faster."""
    rng = np.random.default_rng(4)
    sooner = []
    fine = np.linspace(0, 1000, 101)
    for _ in range(200):
        level = 3 - np.minimum(fine, 600) / 600 + rng.normal(0, 0.05, 101)
        goal = 2.0
        a = crossings(fine, level[None], np.array([goal]))[0]
        b = crossings(fine[::10], level[None, ::10], np.array([goal]))[0]
        if np.isfinite(a) and np.isfinite(b):
            sooner.append(b / a)
    assert np.mean(sooner) > 1.03


# --- open ends ---


def test_an_end_that_is_not_there_is_none():
    mine, its = two(np.random.default_rng(5), documents=25, noise=0.8)
    late = Curve(mine.place_G, mine.tokens_G, mine.selected_G, its.nats_GM + 0.02 * mine.predicted_M, mine.predicted_M)
    noisy = Curve(late.place_G, late.tokens_G, late.selected_G, late.nats_GM.copy(), late.predicted_M)
    noisy.nats_GM[-1] += np.random.default_rng(6).normal(0, 1.0, 25) * late.predicted_M
    found = cross([noisy], [its], resampled(25, 0), np.ones((RESAMPLES, 1)))
    share = np.isfinite(found.tokens_R).mean()
    assert 0.05 < share < 0.95
    spans = interval_of(found, 0.9, {"times": found.times(1.0, 1.0), "unknown": None})
    low, high = spans["tokens_to_reach"]
    assert (high, spans["open"], spans["reached"]) == (None, True, pytest.approx(share))
    assert low > 200
    assert spans["times"][0] is None
    assert spans["times"][1] < 2
    assert spans["unknown"] is None


def test_ends_leave_out_as_many_on_each_side():
    values, known = np.arange(100.0), np.ones(100, bool)
    assert ends(values, known, 0.9) == [5.0, 94.0]
    assert ends(np.where(values > 95, np.inf, values), known, 0.9) == [5.0, 94.0]
    assert ends(np.where(values > 93, np.inf, values), known, 0.9) == [5.0, None]
    assert ends(values, known & (values != 50), 0.9) == [4.0, 95.0], "what is not known may lie anywhere"
    assert ends(values, values > 20, 0.9) == [None, None]


def test_a_resample_in_which_the_base_was_there_already_tells_nothing():
    rng = np.random.default_rng(7)
    its = made(rng, [0, 0.0, 0.01, 0.0, 0.02, 0.02], TOKENS, 20, noise=0.2)
    found = cross([its], [its], resampled(20, 0), np.ones((RESAMPLES, 1)))
    assert 0.1 < found.above_R.mean() < 0.99
    spans = interval_of(found, 0.95, {"times": found.times(1.0, 1.0)})
    assert spans["open"]


# --- how often the interval holds the truth ---


@pytest.mark.parametrize("spread", [0.3, 1.0])
def test_the_interval_holds_the_truth_as_often_as_it_says(spread):
    """The truth is what all documents of their kind would give on the same points: of unequal lengths, each with a level of its
    own at the start and a pace of its own."""
    drops = {"mine": np.array([0, 1.0, 1.5, 1.75, 1.9, 1.95]), "its": np.array([0, 0.8, 1.2, 1.45, 1.6, 1.7])}
    truth = first_below(TOKENS, -drops["its"], -1.7) / first_below(TOKENS, -drops["mine"], -1.7)
    rng = np.random.default_rng(8)
    held, trials = 0, 300
    for trial in range(trials):
        size = np.exp(rng.normal(3, spread, 120))
        level, pace = rng.normal(0, 1, 120), rng.normal(1, 0.3, 120)
        curves = {}
        for name, drop in drops.items():
            own = pace + rng.normal(0, 0.15, 120)
            loss = 4 + level - drop[:, None] * own + rng.normal(0, 0.05, (6, 120))
            curves[name] = Curve(*np.array([TOKENS] * 3, float), loss * size, size)
        found = cross([curves["mine"]], [curves["its"]], resampled(120, trial, 400), np.ones((400, 1)))
        low, high = ends(found.times(1.0, 1.0), found.above_R, 0.95)
        held += (low is None or low <= truth) and (high is None or truth <= high)
    assert 0.90 <= held / trials <= 0.985


# --- size ---


def test_many_documents_are_resampled_in_groups():
    rng = np.random.default_rng(9)
    losses = DocumentLosses(np.arange(5001), rng.normal(100, 10, 5001), rng.integers(1, 50, 5001))
    found = grouped(losses, 2000)
    assert len(found.document_M) == len(found.nats_M) == len(found.predicted_M) == 2000
    assert found.whole.loss == pytest.approx(losses.whole.loss, rel=1e-12)
    assert found.nats_M[3] == pytest.approx(losses.nats_M[3] + losses.nats_M[2003] + losses.nats_M[4003])
    few = DocumentLosses(np.array([4, 9]), np.array([1.0, 2.0]), np.array([3, 4]))
    assert grouped(few).nats_M.tolist() == [1.0, 2.0]


def test_the_same_seed_gives_the_same_resamples():
    assert (resampled(50, 3) == resampled(50, 3)).all()
    assert not (resampled(50, 3) == resampled(50, 4)).all()
    assert (resampled(50, 3).sum(axis=1) == 50).all()
