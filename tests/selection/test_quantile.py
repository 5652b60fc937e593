"""The k highest scores of several ranks, against sorting them all in one list."""

from __future__ import annotations

import math
import threading
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from slmctl.selection.quantile import ordered_keys, score_of, select_top_of_all
from slmctl.selection.select import select_top
from slmctl.training.ranks import Ranks

SETTINGS = settings(max_examples=60, deadline=None)
HIGHEST = float(torch.finfo(torch.float32).max)
SPECIAL = [0.0, -0.0, 1.0, 1.0, -1.0, 2.5, math.nan, math.inf, -math.inf, HIGHEST, -HIGHEST, 1e-45, -1e-45, 1e-39, 3e38, -3e38]
score = st.one_of(st.sampled_from(SPECIAL), st.sampled_from([0.5, 0.25]), st.floats(-20, 20, width=32), st.floats(width=32))
rank_tokens = st.lists(st.tuples(score, st.booleans()), min_size=0, max_size=14)
ranks_and_share = st.tuples(st.lists(rank_tokens, min_size=1, max_size=4), st.floats(0, 1))


class Meeting:
    """Ranks that run in threads and wait for each other."""

    def __init__(self, size: int) -> None:
        self.size, self.barrier = size, threading.Barrier(size, timeout=30)
        self.room: list[Tensor] = [torch.zeros(())] * size

    def run(self, parts: list[tuple[Tensor, Tensor]], k: int) -> list[tuple[Tensor, Tensor]]:
        found: list[tuple[Tensor, Tensor]] = [(torch.zeros(0), torch.zeros(()))] * self.size

        def work(rank: int) -> None:
            try:
                found[rank] = select_top_of_all(*parts[rank], k, Member(self, rank))
            except BaseException:
                self.barrier.abort()
                raise

        threads = [threading.Thread(target=work, args=(r,)) for r in range(self.size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return found


class Member:
    def __init__(self, meeting: Meeting, rank: int) -> None:
        self.meeting, self.rank = meeting, rank

    def _all(self, tensor: Tensor) -> Tensor:
        self.meeting.room[self.rank] = tensor.clone()
        self.meeting.barrier.wait()
        found = torch.stack(self.meeting.room)
        self.meeting.barrier.wait()
        return found

    def sum_(self, tensor: Tensor) -> Tensor:
        return tensor.copy_(self._all(tensor).sum(0))

    def before(self, tensor: Tensor) -> Tensor:
        return self._all(tensor)[: self.rank].sum(0)


def value(score: float) -> float:
    """What a score counts as: NaN and -inf as the lowest number, +inf as the highest."""
    return -HIGHEST if math.isnan(score) else max(-HIGHEST, min(HIGHEST, float(np.float32(score))))


@SETTINGS
@given(ranks_and_share)
@example(([[(math.nan, True)] * 3, [(-math.inf, True)] * 3], 0.5))
@example(([[(math.inf, True), (HIGHEST, True)], [(math.inf, True)]], 0.4))
@example(([[(0.0, True), (-0.0, True)] * 7, [(-0.0, True)] * 5, [], [(0.0, True)] * 9], 0.6))
@example(([[], [(1.0, False)]], 1.0))
def test_the_union_is_the_head_of_one_sorted_list(drawn: tuple[list[list[tuple[float, bool]]], float]) -> None:
    ranks, share = drawn
    everything = [(-value(s), r, i) for r, part in enumerate(ranks) for i, (s, valid) in enumerate(part) if valid]
    k = round(share * len(everything))
    wanted = sorted(everything)[:k]
    parts = [
        (torch.tensor([s for s, _ in part], dtype=torch.float32), torch.tensor([v for _, v in part], dtype=torch.bool))
        for part in ranks
    ]
    before = [s.clone() for s, _ in parts]
    found = Meeting(len(ranks)).run(parts, k)
    chosen = {(r, i) for r, (picked, _) in enumerate(found) for i, on in enumerate(picked.tolist()) if on}
    assert chosen == {(r, i) for _, r, i in wanted}
    assert sum(int(picked.sum()) for picked, _ in found) == k
    for _, threshold in found:
        assert threshold.shape == ()
        assert threshold.dtype == torch.float32
        if k:
            assert threshold.item() == -wanted[-1][0]
        else:
            assert math.isnan(threshold.item())
    assert all(torch.equal(s.nan_to_num(nan=7), b.nan_to_num(nan=7)) for (s, _), b in zip(parts, before, strict=True))


@pytest.mark.parametrize("size", [1, 2, 4])
def test_many_scores_of_few_values_are_shared_out_exactly(size: int) -> None:
    rng = np.random.default_rng(size)
    scores = rng.integers(-3, 4, 6000).astype(np.float32) / 3
    scores[:500] = rng.normal(size=500) * 10.0 ** rng.integers(-44, 38, 500)
    valid = rng.random(6000) < 0.8
    order = [i for i in sorted(range(6000), key=lambda i: (-scores[i], i)) if valid[i]]  # a rank's part before the next's
    parts = [
        (torch.from_numpy(s), torch.from_numpy(v))
        for s, v in zip(np.array_split(scores, size), np.array_split(valid, size), strict=True)
    ]
    for k in (0, 1, 7, len(order) // 2, len(order) - 1, len(order)):
        found = Meeting(size).run(parts, k)
        assert torch.cat([p for p, _ in found]).nonzero().flatten().tolist() == sorted(order[:k])


@pytest.mark.parametrize("k", [0, 1, 300, 999])
def test_one_rank_alone_selects_as_a_group_does(k: int) -> None:
    generator = torch.Generator().manual_seed(k)
    scores = torch.randn(1200, generator=generator).round(decimals=1)
    scores[::50], scores[1::70], scores[2::90] = math.nan, -math.inf, math.inf
    valid = torch.rand(1200, generator=generator) < 0.9
    picked, _ = select_top_of_all(scores, valid, k, Ranks())
    assert torch.equal(picked, select_top(scores[None], valid[None], torch.tensor([k]))[0])


@SETTINGS
@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=50))
def test_keys_keep_the_order_of_scores_and_give_them_back(scores: list[float]) -> None:
    keys = ordered_keys(torch.tensor(sorted(scores), dtype=torch.float32))
    assert keys.dtype == torch.int64
    assert all(0 <= key < 2**32 for key in keys.tolist())
    assert score_of(keys).tolist() == sorted(scores)
    for (a, key_a), (b, key_b) in pairwise(zip(sorted(scores), keys.tolist(), strict=True)):
        assert (key_a < key_b) == (a < b)
        assert (key_a == key_b) == (a == b)


def test_neighbouring_numbers_have_neighbouring_keys() -> None:
    numbers = np.array([-HIGHEST, -1.0, -1e-39, 0.0, 1e-45, 1e-39, 1.0, 3e38, -1e-45], dtype=np.float32)
    keys = ordered_keys(torch.from_numpy(numbers))
    after = ordered_keys(torch.from_numpy(np.nextafter(numbers, np.float32(np.inf))))
    assert (after - keys).tolist() == [1, 1, 1, 1, 1, 1, 1, 1, 2], "only the place of -0, between the last and 0, is empty"


def test_what_is_no_number_is_the_lowest_and_plus_infinity_the_highest() -> None:
    low, high = ordered_keys(torch.tensor([-HIGHEST, HIGHEST])).tolist()
    found = ordered_keys(torch.tensor([math.nan, -math.inf, math.inf, -math.nan])).tolist()
    assert found == [low, low, high, low]
    assert ordered_keys(torch.tensor([-0.0])).item() == ordered_keys(torch.tensor([0.0])).item()
    assert math.copysign(1.0, score_of(ordered_keys(torch.tensor(-0.0))).item()) == 1.0
