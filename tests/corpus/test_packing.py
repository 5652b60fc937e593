"""Packing against a plain Python loop: nothing lost, nothing twice, padding at the end only."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slmctl.corpus.packing import Packer, document_starts, restarting_positions, target_mask

EOS = 1
SETTINGS = settings(max_examples=60, deadline=None)

lengths = st.lists(st.one_of(st.just(0), st.just(1), st.integers(0, 12), st.integers(60, 300)), max_size=25)
document_rows = st.integers(1, 12).flatmap(
    lambda t: st.lists(st.lists(st.integers(-1, 3), min_size=t, max_size=t), min_size=1, max_size=4)
)


def pack(lengths: list[int], seq_len: int, block_rows: int) -> tuple[list[list[int]], list[np.ndarray], list[np.ndarray], Packer]:
    """Documents of distinct-looking tokens (EOS may occur inside), and the blocks that they become."""
    texts = [[(d * 31 + i) % 997 for i in range(n)] for d, n in enumerate(lengths)]
    packer = Packer(seq_len, EOS, block_rows)
    blocks = [b for d, ids in enumerate(texts) for b in packer.add(np.array(ids, dtype=np.int64), 100 + d)]
    blocks += packer.finish()
    return texts, [ids for ids, _ in blocks], [documents for _, documents in blocks], packer


@SETTINGS
@given(lengths, st.integers(2, 16), st.integers(1, 4))
def test_rows_give_back_every_document_with_its_eos_exactly_once(lengths: list[int], seq_len: int, block_rows: int) -> None:
    texts, ids, documents, packer = pack(lengths, seq_len, block_rows)
    flat_ids = [int(i) for block in ids for i in block]
    flat_documents = [int(d) for block in documents for d in block]
    kept = [(i, d) for i, d in zip(flat_ids, flat_documents, strict=True) if d >= 0]
    assert kept == [(token, 100 + d) for d, text in enumerate(texts) for token in [*text, EOS]]
    assert packer.tokens == len(kept)


@SETTINGS
@given(lengths, st.integers(2, 16), st.integers(1, 4))
def test_padding_is_shorter_than_a_row_and_only_at_the_end(lengths: list[int], seq_len: int, block_rows: int) -> None:
    _, ids, documents, _ = pack(lengths, seq_len, block_rows)
    flat = [int(d) for block in documents for d in block]
    padding = sum(d == -1 for d in flat)
    assert padding < seq_len
    assert -1 not in flat[: len(flat) - padding]
    assert all(int(i) == EOS for block in ids for i in block[len(block) - padding if block is ids[-1] else len(block) :])


@SETTINGS
@given(lengths, st.integers(2, 16), st.integers(1, 4))
def test_every_block_but_the_last_is_full_and_all_are_whole_rows(lengths: list[int], seq_len: int, block_rows: int) -> None:
    _, ids, documents, _ = pack(lengths, seq_len, block_rows)
    sizes = [len(b) for b in ids]
    assert sizes == [len(b) for b in documents]
    assert all(size == seq_len * block_rows for size in sizes[:-1])
    assert all(0 < size <= seq_len * block_rows and size % seq_len == 0 for size in sizes[-1:])


@SETTINGS
@given(lengths, st.integers(2, 16))
def test_split_counts_the_documents_that_touch_more_than_one_row(lengths: list[int], seq_len: int) -> None:
    *_, packer = pack(lengths, seq_len, 2)
    at = split = 0
    for n in lengths:
        split += at // seq_len != (at + n) // seq_len
        at += n + 1
    assert packer.split == split


def test_no_documents_make_no_rows() -> None:
    assert pack([], 8, 2)[1] == []


def test_a_document_of_many_rows_is_kept_whole_across_blocks() -> None:
    texts, ids, _, packer = pack([10_000], 8, 2)
    assert np.concatenate(ids)[:10_001].tolist() == [*texts[0], EOS]
    assert packer.split == 1


@SETTINGS
@given(document_rows, st.booleans())
def test_target_mask_equals_a_loop(rows: list[list[int]], restart: bool) -> None:
    want = [[t > 0 and d >= 0 and not (restart and row[t - 1] != d) for t, d in enumerate(row)] for row in rows]
    documents = np.array(rows, dtype=np.int64)
    assert target_mask(documents, restart).tolist() == want
    assert documents.tolist() == rows, "the input was written to"


@SETTINGS
@given(document_rows)
def test_restarting_positions_equal_a_loop(rows: list[list[int]]) -> None:
    want = []
    for row in rows:
        positions: list[int] = []
        for t, document in enumerate(row):
            positions.append(positions[-1] + 1 if t and row[t - 1] == document else 0)
        want.append(positions)
    assert restarting_positions(np.array(rows, dtype=np.int64)).tolist() == want


@SETTINGS
@given(document_rows)
def test_document_starts_bound_the_runs_of_one_document_in_a_row(rows: list[list[int]]) -> None:
    t = len(rows[0])
    runs = [b * t + i for b, row in enumerate(rows) for i in range(t) if i == 0 or row[i] != row[i - 1]]
    got = document_starts(restarting_positions(np.array(rows, dtype=np.int64)))
    assert got.dtype == np.int32
    assert got.tolist() == [*runs, len(rows) * t]


@pytest.mark.parametrize("restart", [False, True])
def test_a_rows_first_token_is_never_a_target(restart: bool) -> None:
    assert not target_mask(np.zeros((3, 5), dtype=np.int64), restart)[:, 0].any()
