"""Packing with a beginning-of-sequence token, against a plain Python loop."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slmctl.corpus.packing import PADDING, BosPlace, Packer, bos_mask, restarting_positions, target_mask

EOS, BOS = 1, 7
SETTINGS = settings(max_examples=80, deadline=None)
Pairs = list[tuple[int, int]]

lengths = st.lists(st.one_of(st.just(0), st.just(1), st.integers(0, 12), st.integers(60, 200)), max_size=25)
places = st.sampled_from(["row", "document"])


def texts_of(lengths: list[int]) -> list[list[int]]:
    """Documents in which EOS and BOS may occur."""
    return [[(d * 31 + i) % 17 for i in range(n)] for d, n in enumerate(lengths)]


def rows_by_loop(texts: list[list[int]], seq_len: int, at: BosPlace, bos: int = BOS) -> list[Pairs]:
    """(id, document) of each row, token by token."""
    rows: list[Pairs] = [[]]

    def place(token: int, document: int) -> None:
        if len(rows[-1]) == seq_len:
            rows.append([])
        rows[-1].append((token, document))

    for d, text in enumerate(texts):
        for i, token in enumerate([*text, EOS]):
            if at == "document" and i == 0:
                place(bos, 100 + d)
            if len(rows[-1]) in (0, seq_len):  # a row begins here
                place(bos, 100 + d)
            place(token, 100 + d)
    rows[-1] += [(EOS, PADDING)] * (seq_len - len(rows[-1])) if rows[-1] else []
    return [r for r in rows if r]


def pack(texts: list[list[int]], seq_len: int, block_rows: int, at: BosPlace, bos: int = BOS) -> tuple[list[Pairs], Packer]:
    packer = Packer(seq_len, EOS, block_rows, bos, at)
    blocks = [b for d, text in enumerate(texts) for b in packer.add(np.array(text, dtype=np.int64), 100 + d)]
    assert all(len(ids) == seq_len * block_rows for ids, _ in blocks)
    blocks += packer.finish()
    flat = [(int(i), int(d)) for ids, documents in blocks for i, d in zip(ids, documents, strict=True)]
    assert len(flat) % seq_len == 0
    return [flat[i : i + seq_len] for i in range(0, len(flat), seq_len)], packer


@SETTINGS
@given(lengths, st.integers(2, 16), st.integers(1, 4), places)
def test_rows_are_those_of_a_plain_loop(lengths: list[int], seq_len: int, block_rows: int, at: BosPlace) -> None:
    texts = texts_of(lengths)
    rows, packer = pack(texts, seq_len, block_rows, at)
    assert rows == rows_by_loop(texts, seq_len, at)
    assert packer.tokens == sum(n + 1 for n in lengths)
    assert packer.tokens + packer.bos == sum(d != PADDING for row in rows for _, d in row)


@SETTINGS
@given(lengths, st.integers(2, 16), places, st.sampled_from([BOS, EOS]))
def test_without_its_bos_every_document_is_there_once(lengths: list[int], seq_len: int, at: BosPlace, bos: int) -> None:
    texts = texts_of(lengths)
    rows, packer = pack(texts, seq_len, 2, at, bos)
    if not texts:
        assert rows == []
        return
    ids, documents = np.array(rows).transpose(2, 0, 1)
    begins = bos_mask(documents, at)
    assert (ids[begins] == bos).all()
    assert begins.sum() == packer.bos
    kept = ~begins & (documents != PADDING)
    found = list(zip(ids[kept].tolist(), documents[kept].tolist(), strict=True))
    assert found == [(token, 100 + d) for d, text in enumerate(texts) for token in [*text, EOS]]


@SETTINGS
@given(lengths, st.integers(2, 16), places)
def test_a_bos_is_never_predicted_and_all_else_is(lengths: list[int], seq_len: int, at: BosPlace) -> None:
    rows, _ = pack(texts_of(lengths), seq_len, 2, at)
    if not rows:
        return
    documents = np.array(rows)[..., 1]
    target = target_mask(documents, intra_document_mask=at == "document")
    assert (target == ((documents != PADDING) & ~bos_mask(documents, at))).all()
    if at == "document":
        restarts = (restarting_positions(documents) == 0) & (documents != PADDING)
        assert (restarts == bos_mask(documents, at)).all(), "attention begins where no BOS stands, or the reverse"


@SETTINGS
@given(lengths, st.integers(2, 16), places)
def test_no_row_is_made_for_a_bos_alone(lengths: list[int], seq_len: int, at: BosPlace) -> None:
    rows, _ = pack(texts_of(lengths), seq_len, 2, at)
    assert all(row[1][1] != PADDING and row[0][0] == BOS for row in rows)


@SETTINGS
@given(lengths, st.integers(2, 16), places)
def test_split_counts_documents_whose_tokens_lie_in_several_rows(lengths: list[int], seq_len: int, at: BosPlace) -> None:
    rows, packer = pack(texts_of(lengths), seq_len, 2, at)
    touched: dict[int, set[int]] = {}
    for r, row in enumerate(rows):
        for t, (_, d) in enumerate(row):
            last_place = at == "document" and t == seq_len - 1 and row[t - 1][1] != d  # a BOS that nothing follows in its row
            if not last_place:
                touched.setdefault(d, set()).add(r)
    assert packer.split == sum(len(found) > 1 for d, found in touched.items() if d != PADDING)


@pytest.mark.parametrize(
    ("at", "texts", "rows"),
    [
        # a document that ends with its row, and one token in the next
        ("row", [[2, 3], [4]], [[BOS, 2, 3, EOS], [BOS, 4, EOS, EOS]]),
        ("document", [[2, 3], [4]], [[BOS, 2, 3, EOS], [BOS, 4, EOS, EOS]]),
        # a document's BOS takes the last place of a row
        ("document", [[2], [3, 4]], [[BOS, 2, EOS, BOS], [BOS, 3, 4, EOS]]),
        # what is left of a document begins behind a BOS
        ("document", [[2, 3, 4, 5]], [[BOS, 2, 3, 4], [BOS, 5, EOS, EOS]]),
        ("row", [[], []], [[BOS, EOS, EOS, EOS]]),
        ("document", [[], []], [[BOS, EOS, BOS, EOS]]),
    ],
)
def test_small_rows_by_hand(at: BosPlace, texts: list[list[int]], rows: list[list[int]]) -> None:
    assert [[i for i, _ in row] for row in pack(texts, 4, 2, at)[0]] == rows
