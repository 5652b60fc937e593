"""From step to tensors: which rows make a step, their masks, and how many tokens each selection group will train on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from slmctl.config import SelectionConfig
from slmctl.corpus.packing import PADDING, restarting_positions, target_mask
from slmctl.selection.select import selected_count
from slmctl.store.order import MixedOrder, RowOrder
from slmctl.store.reader import RowReader, Rows


class RowSource(Protocol):
    """Rows by position in an endless order."""

    rows: int
    """Rows of one epoch."""

    def fetch(self, start: int, stop: int) -> Rows: ...


class OneSet:
    """Rows of one set, in the order of `seed`."""

    def __init__(self, reader: RowReader, seed: int) -> None:
        self.reader = reader
        self.order = RowOrder(reader.tokens.group_rows, seed)
        self.rows = self.order.rows

    def fetch(self, start: int, stop: int) -> Rows:
        return self.reader.fetch(self.order.at(start, stop))


class TwoSets:
    """Rows of one set with a share `mix` of rows from another among them."""

    def __init__(self, first: RowReader, second: RowReader, mix: float, seed: int) -> None:
        self.readers = (first, second)
        orders = [RowOrder(r.tokens.group_rows, seed) for r in self.readers]
        self.order = MixedOrder(orders[0], orders[1], mix, seed)
        self.rows = self.order.rows

    def fetch(self, start: int, stop: int) -> Rows:
        sets, rows = self.order.at(start, stop)
        shape = (len(rows), self.readers[0].tokens.seq_len)
        out = Rows(np.empty(shape, np.int64), np.empty(shape, np.int64))
        for i, reader in enumerate(self.readers):
            here = sets == i
            found = reader.fetch(rows[here])
            out.ids_BT[here], out.document_BT[here] = found.ids_BT, found.document_BT
        return out


@dataclass
class MicroBatch:
    """Whole selection groups: B rows in G groups. Tensors are on the device of the model."""

    ids_BT: Tensor
    target_BT: Tensor
    """Positions that may be selected."""
    position_BT: Tensor | None
    ref_loss_BT: Tensor | None
    counts_G: Tensor
    """Tokens to select in each group."""
    group_seeds: list[int]


@dataclass
class StepBatch:
    """All rows of one optimizer step."""

    rows: Rows
    target_BT: np.ndarray
    counts_G: np.ndarray
    tokens: int
    """Tokens that are not padding."""

    @property
    def selected(self) -> int:
        """Tokens that the step will train on, over all groups: Eq. 4's divisor, known before any forward pass."""
        return int(self.counts_G.sum())


class Batcher:
    """Cuts a row source into steps, and steps into micro-batches. State is the step number alone."""

    def __init__(
        self,
        source: RowSource,
        rows_per_step: int,
        micro_rows: int,
        selection: SelectionConfig,
        intra_document_mask: bool,
        seed: int,
        device: str,
    ) -> None:
        self.source, self.rows_per_step, self.selection = source, rows_per_step, selection
        self.micro_groups = max(1, micro_rows // selection.group_rows)
        self.intra, self.seed, self.device = intra_document_mask, seed, device

    def step(self, step: int) -> StepBatch:
        """The rows of step `step` (from 1)."""
        rows = self.source.fetch((step - 1) * self.rows_per_step, step * self.rows_per_step)
        target_BT = target_mask(rows.document_BT, self.intra)
        valid_G = target_BT.reshape(-1, self.selection.group_rows * target_BT.shape[1]).sum(axis=1)
        ratio = 1.0 if self.selection.criterion == "all" else self.selection.ratio
        counts_G = np.array([selected_count(int(v), ratio) for v in valid_G], dtype=np.int64)
        return StepBatch(rows, target_BT, counts_G, int((rows.document_BT != PADDING).sum()))

    def micro_batches(self, step: int, batch: StepBatch) -> Iterator[MicroBatch]:
        rows = batch.rows
        for first in range(0, len(batch.counts_G), self.micro_groups):
            groups = slice(first, first + self.micro_groups)
            part = slice(first * self.selection.group_rows, (first + self.micro_groups) * self.selection.group_rows)
            position = restarting_positions(rows.document_BT[part]) if self.intra else None
            counts = batch.counts_G[groups]
            yield MicroBatch(
                self._tensor(rows.ids_BT[part]),
                self._tensor(batch.target_BT[part]),
                self._tensor(position) if position is not None else None,
                self._tensor(rows.ref_loss_BT[part]) if rows.ref_loss_BT is not None else None,
                self._tensor(counts),
                [mix_seed(self.seed, step, first + i) for i in range(len(counts))],
            )

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device)


def mix_seed(*parts: int) -> int:
    """A 63-bit seed from several numbers."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "little") >> 1
