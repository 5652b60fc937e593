"""The order is arithmetic: each row once an epoch, the same however a range is asked for."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slmctl.store.order import MixedOrder, RowOrder, permutation, rank_slice

SETTINGS = settings(max_examples=50, deadline=None)
sizes = st.lists(st.integers(1, 9), min_size=1, max_size=30)
windows = st.integers(1, 40)
seeds = st.integers(0, 2**63 - 1)


@SETTINGS
@given(st.integers(0, 300), seeds)
def test_a_permutation_holds_every_number_once(n: int, seed: int) -> None:
    assert sorted(permutation(n, seed, "x").tolist()) == list(range(n))


def test_a_permutation_depends_on_each_part_of_its_key() -> None:
    keys = [(0, "a", 0), (1, "a", 0), (0, "b", 0), (0, "a", 1), (0, "a"), ("0", "a", 0)]
    assert len({tuple(permutation(50, *key).tolist()) for key in keys}) == len(keys)
    assert permutation(50, 0, "a").tolist() == permutation(50, 0, "a").tolist()


@SETTINGS
@given(sizes, windows, seeds, st.integers(0, 3))
def test_each_epoch_visits_each_row_exactly_once(sizes: list[int], window: int, seed: int, epoch: int) -> None:
    order = RowOrder(np.array(sizes), seed, window)
    rows = sum(sizes)
    assert order.rows == rows
    assert sorted(order.at(epoch * rows, (epoch + 1) * rows).tolist()) == list(range(rows))


@SETTINGS
@given(sizes, windows, seeds, st.lists(st.integers(0, 400), min_size=2, max_size=8))
def test_the_order_does_not_depend_on_how_the_range_is_cut(sizes: list[int], window: int, seed: int, at: list[int]) -> None:
    whole = RowOrder(np.array(sizes), seed, window).at(0, 400)
    order = RowOrder(np.array(sizes), seed, window)
    ends = sorted(at)
    pieces = [order.at(a, b).tolist() for a, b in pairwise(ends)]
    assert [row for piece in pieces for row in piece] == whole[ends[0] : ends[-1]].tolist()
    assert [RowOrder(np.array(sizes), seed, window).at(i, i + 1)[0] for i in reversed(at) if i < 400] == [
        whole[i] for i in reversed(at) if i < 400
    ]


@SETTINGS
@given(sizes, windows, seeds)
def test_a_window_holds_whole_row_groups(sizes: list[int], window: int, seed: int) -> None:
    """What a reader must hold at once: the rows of `window` groups come before any row of the next."""
    group_of = [g for g, n in enumerate(sizes) for _ in range(n)]
    seen = [group_of[r] for r in RowOrder(np.array(sizes), seed, window).at(0, sum(sizes))]
    groups = list(dict.fromkeys(seen))
    at = 0
    while at < len(seen):
        first = seen[at]
        chosen = set()
        for g in seen[at:]:
            chosen.add(g)
            if len(chosen) == min(window, len(groups)):
                break
        size = sum(sizes[g] for g in chosen)
        assert set(seen[at : at + size]) == chosen, first
        groups = [g for g in groups if g not in chosen]
        at += size


def test_another_seed_and_another_epoch_give_another_order() -> None:
    group_rows = np.full(20, 5)
    a, b = RowOrder(group_rows, 0), RowOrder(group_rows, 1)
    assert a.at(0, 100).tolist() != b.at(0, 100).tolist()
    assert a.at(0, 100).tolist() != a.at(100, 200).tolist()
    assert a.at(0, 100).tolist() == RowOrder(group_rows, 0).at(0, 100).tolist()
    assert a.at(0, 100).tolist() != list(range(100))


@pytest.mark.parametrize("position", [0, 37, 150])
def test_numpy_positions_give_the_same_rows_as_python_ones(position: int) -> None:
    """A NumPy integer must not change the key of the permutation."""
    group_rows = np.full(20, 5)
    want = RowOrder(group_rows, 0).at(position, position + 90)
    got = RowOrder(group_rows, 0).at(np.int64(position), np.int64(position + 90))
    assert got.tolist() == want.tolist()


def test_an_empty_range_is_empty() -> None:
    assert RowOrder(np.array([3]), 0).at(2, 2).tolist() == []
    sets, rows = MixedOrder(RowOrder(np.array([3]), 0), RowOrder(np.array([3]), 0), 0.5, 0).at(2, 2)
    assert (sets.tolist(), rows.tolist()) == ([], [])


# --- two sets mixed ---

mixes = st.sampled_from([0.0, 0.1, 0.3, 0.5, 0.75, 0.9])


def mixed(first: list[int], second: list[int], mix: float, seed: int) -> MixedOrder:
    return MixedOrder(RowOrder(np.array(first), seed, 3), RowOrder(np.array(second), seed, 3), mix, seed)


@SETTINGS
@given(sizes, sizes, mixes, seeds, st.integers(0, 2))
def test_a_mixed_epoch_holds_the_first_set_once_and_the_share_of_the_second(
    first: list[int], second: list[int], mix: float, seed: int, epoch: int
) -> None:
    order = mixed(first, second, mix, seed)
    sets, rows = order.at(epoch * order.rows, (epoch + 1) * order.rows)
    assert sorted(rows[sets == 0].tolist()) == list(range(sum(first)))
    extra = int((sets == 1).sum())
    assert abs(extra - sum(first) * mix / (1 - mix)) <= 0.5
    assert len(rows) == sum(first) + extra


@SETTINGS
@given(sizes, sizes, mixes, seeds)
def test_the_second_set_goes_on_in_its_own_order_over_epochs(first: list[int], second: list[int], mix: float, seed: int) -> None:
    order = mixed(first, second, mix, seed)
    sets, rows = order.at(0, 3 * order.rows)
    taken = rows[sets == 1]
    assert taken.tolist() == RowOrder(np.array(second), seed, 3).at(0, len(taken)).tolist()
    assert rows[sets == 0].tolist() == RowOrder(np.array(first), seed, 3).at(0, 3 * sum(first)).tolist()


@SETTINGS
@given(sizes, sizes, mixes, seeds, st.lists(st.integers(0, 200), min_size=2, max_size=8, unique=True))
def test_a_mixed_order_does_not_depend_on_how_the_range_is_cut(
    first: list[int], second: list[int], mix: float, seed: int, at: list[int]
) -> None:
    whole_sets, whole_rows = mixed(first, second, mix, seed).at(0, 200)
    order = mixed(first, second, mix, seed)
    ends = sorted(at)
    pieces = [order.at(a, b) for a, b in pairwise(ends)]
    assert np.concatenate([s for s, _ in pieces]).tolist() == whole_sets[ends[0] : ends[-1]].tolist()
    assert np.concatenate([r for _, r in pieces]).tolist() == whole_rows[ends[0] : ends[-1]].tolist()


def test_the_mix_is_spread_over_the_epoch() -> None:
    sets, _ = mixed([5] * 20, [5] * 20, 0.5, 0).at(0, 200)
    assert all(5 < int(sets[at : at + 40].sum()) < 35 for at in range(0, 200, 40))


# --- ranks ---


@SETTINGS
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 50))
def test_the_slices_of_the_ranks_lie_end_to_end_and_make_up_the_step(share: int, world_size: int, step: int) -> None:
    rows = share * world_size
    slices = [rank_slice(step, rows, rank, world_size) for rank in range(world_size)]
    assert slices[0][0] == (step - 1) * rows
    assert slices[-1][1] == step * rows
    assert all(a[1] == b[0] for a, b in pairwise(slices))
    assert {stop - start for start, stop in slices} == {share}


@SETTINGS
@given(st.integers(1, 60), st.integers(1, 9))
def test_rows_that_the_ranks_cannot_share_evenly_are_refused(rows: int, world_size: int) -> None:
    if rows % world_size:
        with pytest.raises(ValueError, match=f"{rows} rows cannot be shared evenly by {world_size} ranks"):
            rank_slice(1, rows, 0, world_size)
    else:
        assert rank_slice(1, rows, 0, world_size) == (0, rows // world_size)
