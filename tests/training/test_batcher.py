"""From step to rows, masks, counts and groups: pure functions of the step."""

from __future__ import annotations

import math
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
import torch

from slmctl.config.selection import SelectionConfig
from slmctl.store.order import RowOrder, mix_seed
from slmctl.store.read_ahead import ReadAhead
from slmctl.store.reader import RowReader
from slmctl.training.batches import Batcher, OneSet, TwoSets


def batcher(source, rows=8, micro=4, seed=3, intra=False, rank=0, world_size=1, **selection):
    chosen = SelectionConfig(**{"group_rows": 2, **selection})
    return Batcher(source, rows, micro, chosen, intra, seed, "cpu", rank, world_size)


@pytest.fixture
def one_set(scored):
    corpus = scored.open_tokens("corpus")
    return lambda: OneSet(RowReader(corpus, scored.open_scores("curated", corpus)), seed=0)


def content(b, step):
    batch = b.step(step)
    rows = [batch.rows.ids_BT, batch.rows.document_BT, batch.rows.ref_loss_BT, batch.target_mask, batch.counts_G]
    return [a.tobytes() for a in rows], [m.group_seeds for m in b.micro_batches(step, batch)]


def test_a_step_does_not_depend_on_what_was_read_before(one_set):
    fresh = {step: content(batcher(one_set()), step) for step in (1, 5, 40)}
    used = batcher(one_set())
    for step in (40, 1, 5, 5, 1, 40):
        assert content(used, step) == fresh[step]
    assert len({str(v) for v in fresh.values()}) == 3


def test_steps_follow_the_order_and_wrap_into_the_next_epoch(one_set):
    source = one_set()
    n, rows = source.rows, 8
    reader = source.reader
    everything = reader.fetch(np.arange(n))
    order = RowOrder(reader.tokens.group_rows, 0)
    endless = [int(r) for epoch in range(3) for r in order.at(epoch * n, (epoch + 1) * n)]
    assert n % rows, "the epoch ends at a step's end: nothing wraps"
    for step in (1, n // rows, n // rows + 1, 2 * n // rows + 1):
        found = batcher(one_set(), rows).step(step).rows
        wanted = endless[(step - 1) * rows : step * rows]
        assert (found.ids_BT == everything.ids_BT[wanted]).all()
        assert (found.ref_loss_BT == everything.ref_loss_BT[wanted]).all()
    assert sorted(endless[:n]) == sorted(endless[n : 2 * n]) == list(range(n))
    assert endless[:n] != endless[n : 2 * n]


def test_a_step_longer_than_an_epoch_repeats_rows(list_source):
    ids = np.arange(12).reshape(3, 4)
    source = list_source(ids, np.zeros_like(ids))
    batch = batcher(source, rows=8, group_rows=2).step(2)
    assert batch.rows.ids_BT[:, 0].tolist() == [8, 0, 4, 8, 0, 4, 8, 0]


@pytest.mark.parametrize("intra", [False, True])
@pytest.mark.parametrize(("criterion", "ratio"), [("random", 0.6), ("excess_loss", 0.7), ("excess_loss", 1.0), ("all", 0.5)])
def test_counts_are_the_ceiling_of_ratio_times_valid(criterion, ratio, intra, list_source):
    rng = np.random.default_rng(0)
    document = np.sort(rng.integers(0, 6, (8, 11)), axis=1)
    document[2, 5:] = -1
    document[6:] = -1
    source = list_source(np.ones_like(document), document)
    batch = batcher(source, intra=intra, criterion=criterion, ratio=ratio).step(1)
    for group in range(4):
        valid = 0
        for row in range(2 * group, 2 * group + 2):
            for t in range(1, 11):
                same = document[row, t] == document[row, t - 1]
                valid += int(document[row, t] >= 0 and (same or not intra))
        share = 1 if criterion == "all" else Fraction(str(ratio))
        assert batch.counts_G[group] == math.ceil(share * valid)
    assert batch.counts_G[3] == 0
    assert batch.selected == sum(batch.counts_G)
    assert batch.tokens == (document >= 0).sum()


@pytest.mark.parametrize(("micro", "sizes"), [(1, [2, 2, 2, 2]), (2, [2, 2, 2, 2]), (5, [4, 4]), (6, [6, 2]), (99, [8])])
def test_a_micro_batch_holds_whole_groups_whatever_its_size(micro, sizes, one_set):
    b = batcher(one_set(), micro=micro)
    batch = b.step(3)
    parts = list(b.micro_batches(3, batch))
    assert [len(m.ids_BT) for m in parts] == sizes
    assert (np.concatenate([m.ids_BT.numpy() for m in parts]) == batch.rows.ids_BT).all()
    assert (np.concatenate([m.target_BT.numpy() for m in parts]) == batch.target_BT).all()
    assert (np.concatenate([m.ref_loss_BT.numpy() for m in parts]) == batch.rows.ref_loss_BT).all()
    assert [n for m in parts for n in m.counts] == batch.counts_G.tolist()
    assert [sum(m.target_BT.flatten().tolist()) for m in parts] == b.micro_valid(batch)
    for m in parts:
        assert m.target_N.tolist() == [i for i, on in enumerate(m.target_BT.flatten().tolist()) if on]
        per_group = m.ids_BT.numel() // len(m.counts)
        assert m.places_K.tolist() == [g * per_group + i for g, n in enumerate(m.counts) for i in range(n)]
    seeds = [s for m in parts for s in m.group_seeds]
    assert seeds == [mix_seed("selection", 3, 3, g) for g in range(4)]
    assert len(set(seeds)) == 4


def test_seeds_differ_between_runs_steps_and_groups_and_fit_a_generator():
    seeds = [mix_seed(*parts) for parts in [(0, 1), (1, 0), (0, 1, 0), (0, 11), (2**62, 5, 7)]]
    assert len(set(seeds)) == 5
    assert all(0 <= s < 2**63 for s in seeds)


@pytest.mark.parametrize("mix", [0.1, 0.5, 0.8])
def test_mixing_keeps_every_row_of_the_first_set_and_adds_the_wanted_share(mix, scored):
    curated, corpus = (scored.open_tokens(n) for n in ("curated", "corpus"))
    source = TwoSets(RowReader(curated), RowReader(corpus), mix, seed=0)
    known = [Counter(row.tobytes() for row in RowReader(s).fetch(np.arange(s.rows)).ids_BT) for s in (curated, corpus)]
    for epoch in range(2):
        everything = source.fetch(epoch * source.rows, (epoch + 1) * source.rows, source.blank(source.rows))
        found = Counter(row.tobytes() for row in everything.ids_BT)
        assert not known[0] - found, "a curated row is absent from the epoch"
        extra = found - known[0]
        assert set(extra) <= set(known[1])
        assert extra.total() / found.total() == pytest.approx(mix, abs=1 / source.rows)
    order = np.concatenate([source.order.at(0, source.rows)[0]])
    assert 0.2 < np.flatnonzero(order == 1).mean() / source.rows < 0.8, "the second set's rows stand in one lump"


def flat_positions(micros):
    """Where targets lie and documents start among all tokens of the micro-batches together."""
    targets, starts, at = [], [], 0
    for m in micros:
        targets += (m.target_N + at).tolist()
        if m.starts_S is not None:
            *here, end = m.starts_S.tolist()
            assert end == m.ids_BT.numel()
            starts += [at + s for s in here]
        at += m.ids_BT.numel()
    return targets, starts


def trained_on(ranks, steps, threads):
    """All that the micro-batches of all ranks hold, step by step, as each rank meets it; rows and groups in order."""
    found = {}
    for b in ranks:
        ahead = ReadAhead(b.step, max(steps), threads)
        for step in steps:
            batch = ahead.get(step)
            found.setdefault(step, []).extend(b.micro_batches(step, batch))
        ahead.close()
    names = ("ids_BT", "target_BT", "position_BT", "ref_loss_BT")
    return {
        step: (
            *(torch.cat([getattr(m, n) for m in micros]).tolist() for n in names if getattr(micros[0], n) is not None),
            [n for m in micros for n in m.counts],
            flat_positions(micros),
            [s for m in micros for s in m.group_seeds],
        )
        for step, micros in found.items()
    }


@pytest.mark.parametrize("threads", [0, 1, 4])
@pytest.mark.parametrize("micro", [2, 6, 99])
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_ranks_micro_batches_and_threads_change_nothing_of_what_a_step_trains_on(world_size, micro, threads, one_set):
    """Over two epochs' ends, the seeds of the selection groups too. One reader per rank, as in processes of their own."""
    rows, intra = 16, micro == 6
    source = one_set()
    steps = [1, 2, source.rows // rows, source.rows // rows + 1, source.rows // rows + 2, 2 * source.rows // rows + 1]
    assert source.rows % rows, "the epoch ends at a step's end: nothing wraps"
    wanted = trained_on([batcher(source, rows, micro=8, intra=intra)], steps, 0)
    ranks = [batcher(one_set(), rows, micro, intra=intra, rank=r, world_size=world_size) for r in range(world_size)]
    found = trained_on(ranks, steps, threads)
    assert found == wanted
    seeds = [s for step in found.values() for s in step[-1]]
    assert len(set(seeds)) == len(steps) * rows // 2, "two groups would draw alike"


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_share_the_steps_of_mixed_sets_too(world_size, scored):
    readers = [RowReader(scored.open_tokens(n)) for n in ("curated", "corpus")]
    steps = range(1, 12)
    wanted = trained_on([batcher(TwoSets(*readers, 0.4, seed=0), 16)], steps, 0)
    ranks = [batcher(TwoSets(*readers, 0.4, seed=0), 16, rank=r, world_size=world_size) for r in range(world_size)]
    assert trained_on(ranks, steps, 4) == wanted


def test_documents_start_where_they_change_within_a_row_and_at_every_row(list_source):
    document = np.array([[0, 0, 1, 1], [1, 1, 1, -1], [2, 3, 4, 4], [4, 4, 4, 4]])
    source = list_source(np.ones_like(document), document)
    b = batcher(source, rows=4, micro=2, intra=True)
    first, second = b.micro_batches(1, b.step(1))
    assert first.starts_S.tolist() == [0, 2, 4, 7, 8]
    assert second.starts_S.tolist() == [0, 1, 2, 4, 8]
    assert first.starts_S.dtype == torch.int32
    assert first.position_BT.tolist() == [[0, 1, 0, 1], [0, 1, 2, 0]]
    assert second.position_BT.tolist() == [[0, 0, 0, 1], [0, 1, 2, 3]]
    plain = batcher(source, rows=4, micro=2, intra=False)
    assert all(m.starts_S is None and m.position_BT is None for m in plain.micro_batches(1, plain.step(1)))


def test_each_micro_batch_is_told_the_count_of_all_ranks(one_set):
    b = batcher(one_set(), micro=2)
    batch = b.step(1)
    assert [m.count_of_all for m in b.micro_batches(1, batch, [5, 0, 7, 9])] == [5, 0, 7, 9]
    assert [m.count_of_all for m in b.micro_batches(1, batch)] == [0] * 4


@pytest.mark.parametrize("micro", [1, 2, 5, 99])
def test_the_valid_positions_of_micro_batches_are_those_of_their_groups(micro, list_source):
    document = np.where(np.random.default_rng(1).random((8, 11)) < 0.3, -1, 0)
    b = batcher(list_source(np.ones_like(document), document), micro=micro)
    batch = b.step(1)
    wanted = [int((document[2 * g : 2 * g + 2, 1:] >= 0).sum()) for g in range(4)]
    assert batch.valid_G.tolist() == wanted
    size = max(1, micro // 2)
    assert b.micro_valid(batch) == [sum(wanted[at : at + size]) for at in range(0, 4, size)]
