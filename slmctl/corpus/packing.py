"""Packing: documents end to end, each followed by EOS, cut into rows of `seq_len` tokens.

Every token of every document is in exactly one row, once, in order. The last row of a slice is filled up with padding
(the EOS id, document -1).

Where a beginning-of-sequence token (BOS) is asked for, one stands wherever attention begins: before each row's tokens; or,
where attention restarts at each document, before each document and before what is left of it in each further row. A BOS
has the `document` of the token that follows it, and is never predicted.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np

BosPlace = Literal["row", "document"]
"""Where a BOS stands: before each row's tokens, or before each document's tokens in a row."""
PADDING = -1
"""The `document` of a padding position."""


class Packer:
    """Turns documents into blocks of whole rows, with a BOS before each row or document where `bos_id` is given.

    `tokens` counts the documents' tokens and EOS, `bos` the BOS besides, `split` documents that do not lie within one row.
    """

    def __init__(self, seq_len: int, eos_id: int, block_rows: int, bos_id: int | None = None, bos_at: BosPlace = "row") -> None:
        self.seq_len, self.eos_id, self.block = seq_len, eos_id, seq_len * block_rows
        self.bos_id, self.bos_at = bos_id, bos_at
        self.ids: list[np.ndarray] = []
        self.documents: list[np.ndarray] = []
        self.held = 0
        self.tokens = 0
        self.bos = 0
        self.split = 0

    def add(self, ids: np.ndarray, document: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Adds one document's ids [n]; yields (input_id, document), each [block_rows * seq_len], for each full block."""
        n = len(ids) + 1
        offset = (self.tokens + self.bos) % self.seq_len
        ended = np.append(ids, self.eos_id)
        self.tokens += n
        if self.bos_id is None:
            self.split += offset + n > self.seq_len
        else:
            before = self._bos_before(offset, n)
            self.split += bool(before.size and before[-1])  # a row begins within the document
            self.bos += before.size
            ended = np.insert(ended, before, self.bos_id)
            n = len(ended)
        self.ids.append(ended)
        self.documents.append(np.full(n, document, dtype=np.int64))
        self.held += n
        if self.held >= self.block:
            yield from self._full_blocks()

    def _bos_before(self, offset: int, n: int) -> np.ndarray:
        """Which of a document's n tokens a BOS goes before (0 twice where its own takes the last place of a row), when
        `offset` places of the row are taken: those that begin a row, and with `bos_at` document the first."""
        room = self.seq_len - 1
        if self.bos_at == "document":
            return np.append(0, np.arange(room - offset, n, room))
        return np.arange(self.seq_len - offset if offset else 0, n, room)

    def finish(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields the last, shorter block, its last row padded; nothing where no token is left."""
        if not self.held:
            return
        ids, documents = np.concatenate(self.ids), np.concatenate(self.documents)
        short = -len(ids) % self.seq_len
        yield (
            np.append(ids, np.full(short, self.eos_id, dtype=ids.dtype)),
            np.append(documents, np.full(short, PADDING, dtype=np.int64)),
        )
        self.ids, self.documents, self.held = [], [], 0

    def _full_blocks(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        ids, documents = np.concatenate(self.ids), np.concatenate(self.documents)
        whole = len(ids) // self.block * self.block
        for at in range(0, whole, self.block):
            yield ids[at : at + self.block], documents[at : at + self.block]
        self.ids, self.documents, self.held = [ids[whole:]], [documents[whole:]], len(ids) - whole


def target_mask(document_BT: np.ndarray, intra_document_mask: bool) -> np.ndarray:
    """Positions that are predicted from something before them: not padding, not a row's first token, and, where
    attention restarts at each document, not a document's first token in its row. [B, T] bool."""
    mask_BT: np.ndarray = document_BT != PADDING
    mask_BT[:, 0] = False
    if intra_document_mask:
        mask_BT[:, 1:] &= document_BT[:, 1:] == document_BT[:, :-1]
    return mask_BT


def bos_mask(document_BT: np.ndarray, at: BosPlace | None) -> np.ndarray:
    """Where rows that were packed with a BOS have it; nowhere where `at` is None. [B, T] bool."""
    mask_BT = np.zeros(document_BT.shape, dtype=bool)
    if at is not None:
        mask_BT[:, 0] = True
    if at == "document":
        mask_BT[:, 1:] = document_BT[:, 1:] != document_BT[:, :-1]
    mask_BT &= document_BT != PADDING
    return mask_BT


def restarting_positions(document_BT: np.ndarray) -> np.ndarray:
    """Position ids that restart at each document's first token in a row. [B, T] int64."""
    b, t = document_BT.shape
    index_T = np.arange(t, dtype=np.int64)
    starts_BT = np.zeros((b, t), dtype=np.int64)
    new_BT = document_BT[:, 1:] != document_BT[:, :-1]
    starts_BT[:, 1:] = np.where(new_BT, index_T[1:], 0)
    position_BT: np.ndarray = index_T - np.maximum.accumulate(starts_BT, axis=1)
    return position_BT


def document_starts(position_BT: np.ndarray) -> np.ndarray:
    """Where positions restart among the B x T tokens of all rows, and B x T at the end. [documents + 1] int32."""
    starts: np.ndarray = np.append(np.flatnonzero(position_BT == 0), position_BT.size).astype(np.int32)
    return starts
