"""Selection against a sorted Python list: exact counts, ties, NaN, masks."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slmctl.selection.select import (
    chosen_positions,
    excess_loss,
    places_of,
    random_scores,
    select_top,
    selected_count,
    top_order,
)

SETTINGS = settings(max_examples=80, deadline=None)
score = st.one_of(st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.5, math.nan, math.inf, -math.inf]), st.floats(-20, 20, width=32))
groups = st.integers(1, 12).flatmap(
    lambda m: st.lists(
        st.tuples(st.lists(score, min_size=m, max_size=m), st.lists(st.booleans(), min_size=m, max_size=m)),
        min_size=1,
        max_size=4,
    )
)
ratios = st.sampled_from([0.01, 0.1, 0.3, 0.6, 0.7, 0.9, 0.999, 1.0])


def top(scores: list[float], valid: list[bool], count: int) -> list[bool]:
    """The definition: best first, NaN and -inf last, the earlier position first among equals, valid ones only."""

    def key(i: int) -> tuple[bool, float, int]:
        last = math.isnan(scores[i]) or scores[i] == -math.inf
        return (last, 0.0 if last else -scores[i], i)

    chosen = sorted((i for i in range(len(scores)) if valid[i]), key=key)[:count]
    return [i in chosen for i in range(len(scores))]


@SETTINGS
@given(groups, ratios, st.sampled_from([torch.float32, torch.float64]))
def test_select_top_equals_a_sorted_list(groups: list[tuple[list[float], list[bool]]], ratio: float, dtype: torch.dtype) -> None:
    counts = [math.ceil(Fraction(str(ratio)) * sum(valid)) for _, valid in groups]
    scores_GM = torch.tensor([s for s, _ in groups], dtype=dtype)
    valid_GM = torch.tensor([v for _, v in groups])
    before = scores_GM.clone()
    got = select_top(scores_GM, valid_GM, torch.tensor(counts))
    assert got.tolist() == [top(s, v, n) for (s, v), n in zip(groups, counts, strict=True)]
    assert got.sum(1).tolist() == counts
    assert torch.equal(scores_GM.nan_to_num(nan=7), before.nan_to_num(nan=7)), "the scores were written to"


@SETTINGS
@given(groups, st.sampled_from([0.0, 0.01, 0.3, 0.6, 1.0]), st.sampled_from([torch.float32, torch.float64]))
def test_positions_picked_without_counting_are_those_of_the_sorted_list(
    groups: list[tuple[list[float], list[bool]]], ratio: float, dtype: torch.dtype
) -> None:
    """Groups may select nothing, with or without anything valid in them."""
    counts = [math.ceil(Fraction(str(ratio)) * sum(valid)) * (g % 3 != 2) for g, (_, valid) in enumerate(groups)]
    m = len(groups[0][0])
    scores_GM, valid_GM = torch.tensor([s for s, _ in groups], dtype=dtype), torch.tensor([v for _, v in groups])
    order_GM = top_order(scores_GM, valid_GM)
    got = chosen_positions(order_GM, torch.from_numpy(places_of(counts, m))).tolist()
    wanted = [
        g * m + i for g, ((s, v), n) in enumerate(zip(groups, counts, strict=True)) for i, on in enumerate(top(s, v, n)) if on
    ]
    assert got == wanted
    assert got == select_top(scores_GM, valid_GM, torch.tensor(counts)).flatten().nonzero()[:, 0].tolist()
    for g, (s, v) in enumerate(groups):
        assert sorted(order_GM[g].tolist()) == list(range(m))
        ranked = order_GM[g].tolist()
        for n in range(sum(v) + 1):  # each head of the order is a selection
            assert sorted(ranked[:n]) == [i for i, on in enumerate(top(s, v, n)) if on]


@SETTINGS
@given(st.lists(st.integers(0, 7), max_size=6))
def test_places_are_the_first_of_each_group_in_a_flat_array(counts: list[int]) -> None:
    got = places_of(counts, 7)
    assert got.dtype == "int64"
    assert got.tolist() == [g * 7 + i for g, n in enumerate(counts) for i in range(n)]


def test_plus_infinity_ranks_with_the_largest_number() -> None:
    high = torch.finfo(torch.float32).max
    scores = torch.tensor([[high, math.inf, 1.0, math.inf, high]])
    assert top_order(scores, torch.ones(1, 5, dtype=torch.bool))[0].tolist() == [0, 1, 3, 4, 2]


@SETTINGS
@given(st.integers(0, 5000), st.integers(1, 1000))
def test_selected_count_is_exact_for_a_ratio_written_in_decimals(valid: int, thousandths: int) -> None:
    assert selected_count(valid, thousandths / 1000) == -(-thousandths * valid // 1000)


@pytest.mark.parametrize(
    ("valid", "ratio", "count"),
    [
        (10, 0.7, 7),
        (10, 0.6, 6),
        (100, 0.29, 29),
        (11, 0.6, 7),
        (0, 0.6, 0),
        (1, 0.01, 1),
        (9, 1.0, 9),
        (9, 1, 9),
        (100_000, 1e-5, 1),
    ],
)
def test_selected_count_where_floating_point_rounds_up(valid: int, ratio: float, count: int) -> None:
    assert selected_count(valid, ratio) == count


def test_ties_go_to_the_earlier_position() -> None:
    scores = torch.zeros(1, 1000)
    got = select_top(scores, torch.ones(1, 1000, dtype=torch.bool), torch.tensor([600]))
    assert got[0].nonzero().flatten().tolist() == list(range(600))


def test_nan_and_minus_infinity_are_chosen_last_but_before_padding() -> None:
    scores = torch.tensor([[math.nan, 5.0, -math.inf, -1e30, 9.0]])
    valid = torch.tensor([[True, True, True, True, False]])
    got = [select_top(scores, valid, torch.tensor([n]))[0].tolist() for n in range(5)]
    assert got == [
        [False] * 5,
        [False, True, False, False, False],
        [False, True, False, True, False],
        [True, True, False, True, False],
        [True, True, True, True, False],
    ]


def test_a_group_with_nothing_valid_selects_nothing_even_if_asked() -> None:
    got = select_top(torch.rand(2, 6), torch.tensor([[False] * 6, [True] * 6]), torch.tensor([3, 3]))
    assert got.sum(1).tolist() == [0, 3]


def test_ratio_one_selects_exactly_the_valid_ones() -> None:
    valid = torch.rand(4, 50, generator=torch.Generator().manual_seed(0)) < 0.8
    scores = torch.randn(4, 50, generator=torch.Generator().manual_seed(1))
    scores[0, :9] = math.nan
    assert torch.equal(select_top(scores, valid, valid.sum(1)), valid)


def test_groups_do_not_compete_with_each_other() -> None:
    scores = torch.tensor([[1.0, 2.0, 3.0], [10.0, 20.0, 30.0]])
    got = select_top(scores, torch.ones(2, 3, dtype=torch.bool), torch.tensor([1, 2]))
    assert got.tolist() == [[False, False, True], [False, True, True]]


def test_excess_loss_is_live_minus_reference_in_float32() -> None:
    live, ref = torch.tensor([3.0, 1.0], dtype=torch.bfloat16), torch.tensor([1.5, 2.25], dtype=torch.float16)
    got = excess_loss(live, ref)
    assert got.tolist() == [1.5, -1.25]
    assert got.dtype == torch.float32


# --- random ---

CPU = torch.device("cpu")


def test_random_scores_depend_on_the_groups_seed_alone() -> None:
    both = random_scores(2, 20, [5, 6], CPU)
    assert both.shape == (2, 20)
    assert torch.equal(both[1], random_scores(1, 20, [6], CPU)[0])
    assert not torch.equal(both[0], both[1])
    assert ((both >= 0) & (both < 1)).all()


def test_random_scores_leave_the_global_generator_alone() -> None:
    torch.manual_seed(3)
    want = torch.rand(4)
    torch.manual_seed(3)
    random_scores(3, 50, [1, 2, 3], CPU)
    assert torch.equal(torch.rand(4), want)
    torch.manual_seed(4)
    first = random_scores(1, 9, [1], CPU)
    torch.manual_seed(5)
    assert torch.equal(random_scores(1, 9, [1], CPU), first)


def test_random_selection_is_spread_evenly_over_positions() -> None:
    scores = random_scores(2000, 10, list(range(2000)), CPU)
    got = select_top(scores, torch.ones(2000, 10, dtype=torch.bool), torch.full((2000,), 6)).float().mean(0)
    assert ((got - 0.6).abs() < 0.05).all()
