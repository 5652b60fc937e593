"""From step to tensors: which rows make a step, their masks, and how many tokens each selection group will train on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from slmctl.config.selection import SelectionConfig
from slmctl.corpus.packing import PADDING, document_starts, restarting_positions, target_mask
from slmctl.selection.criterion import Choice, Columns
from slmctl.selection.masks import mask_of
from slmctl.selection.select import places_of, selected_count
from slmctl.store.order import MixedOrder, RowOrder, mix_seed, rank_slice
from slmctl.store.reader import Joined, RowReader, Rows
from slmctl.store.windows import WindowReader


class RowSource(Protocol):
    """Rows by position in an endless order."""

    rows: int
    """Rows of one epoch."""

    def blank(self, rows: int) -> Rows:
        """Room for so many rows."""

    def fetch(self, start: int, stop: int, out: Rows) -> Rows:
        """The rows at positions [start, stop), written to `out`. Any number of threads may ask."""

    def close(self) -> None:
        """Ends what reads ahead."""


class OneSet:
    """Rows of one set, in the order of `seed`. `threads` read ahead."""

    def __init__(self, reader: RowReader, seed: int, threads: int = 0) -> None:
        self.reader, self.order = reader, RowOrder(reader.tokens.group_rows, seed)
        self.rows = self.order.rows
        windows = WindowReader(reader, self.order, threads)
        self.blank, self.fetch, self.close = windows.blank, windows.fetch, windows.close


class TwoSets:
    """Rows of one set with a share `mix` of rows from another among them."""

    def __init__(self, first: RowReader, second: RowReader, mix: float, seed: int, threads: int = 0) -> None:
        self.sets = [OneSet(first, seed, threads), OneSet(second, mix_seed("mixed in", seed), threads)]
        self.order = MixedOrder(self.sets[0].order, self.sets[1].order, mix, seed)
        self.rows = self.order.rows
        self.blank = first.blank

    def fetch(self, start: int, stop: int, out: Rows) -> Rows:
        at = 0
        for second, *positions in self.order.parts(start, stop):
            room = out.part(at, at + len(second))
            for here, one, (first, last) in zip((~second, second), self.sets, positions, strict=True):
                found = one.fetch(first, last)
                room.ids_BT[here], room.document_BT[here] = found.ids_BT, found.document_BT
            at += len(second)
        return out

    def close(self) -> None:
        for one in self.sets:
            one.close()


@dataclass
class MicroBatch:
    """Whole selection groups: B rows in G groups. Tensors are on the device of the model; what is known before any forward
    pass is counted on the host, so that nobody has to ask the device."""

    ids_BT: Tensor
    target_BT: Tensor
    """Positions that may be selected."""
    target_N: Tensor
    """The same as flat positions, rising."""
    position_BT: Tensor | None
    starts_S: Tensor | None
    """Where documents start among all the micro-batch's tokens, and their number at the end, under `intra_document_mask`."""
    ref_loss_BT: Tensor | None
    valid: list[int]
    """Positions that may be selected in each group."""
    counts: list[int]
    """Tokens to select in each group."""
    places_K: Tensor
    """`selection.select.places_of` the counts."""
    group_seeds: list[int]
    row_seeds: list[int] = field(default_factory=list)
    """What a row's dropout is drawn from: it follows from the step and the row's place in it."""
    count_of_all: int = 0
    """Tokens to select on all ranks together, under `scope: global`."""
    joined: dict[Joined, Tensor] = field(default_factory=dict)
    """Further stored columns that selection by live losses reads, [B, T]."""
    place_BT: Tensor | None = None
    """Tokens of its document before a token, where selection by live losses reads that."""
    chosen_K: Tensor | None = None
    """What is selected, flat positions, rising, where that is known before the forward pass."""


@dataclass
class StepBatch:
    """The rows of one optimizer step that this rank works on, in memory that the device copies from without waiting."""

    rows: Rows
    ids_BT: Tensor
    ref_loss_BT: Tensor | None
    target_BT: Tensor
    valid_G: np.ndarray
    """Positions that may be selected in each group."""
    counts_G: np.ndarray
    """How many are selected of them (under `scope: group`)."""
    tokens: int
    """Tokens that are not padding."""
    ratio: float = 1.0
    """The step's own."""
    joined: dict[Joined, Tensor] = field(default_factory=dict)
    mask_BT: Tensor | None = None
    """What is selected, where that is known before the forward pass."""

    @property
    def target_mask(self) -> np.ndarray:
        """Positions that may be selected [B, T]."""
        return self.target_BT.numpy()

    @property
    def selected(self) -> int:
        """Tokens that the step will train on: this rank's part of Eq. 4's divisor, known before any forward pass."""
        return int(self.counts_G.sum())


class Batcher:
    """Cuts a row source into steps, and steps into micro-batches. State is the step number alone.

    Of each step, rank r of `world_size` gets the r-th part: whole selection groups. So neither the number of ranks, nor the
    micro-batch, nor the number of reading threads changes which tokens make a step.
    """

    def __init__(
        self,
        source: RowSource,
        rows_per_step: int,
        micro_rows: int,
        selection: SelectionConfig,
        intra_document_mask: bool,
        seed: int,
        device: str,
        rank: int = 0,
        world_size: int = 1,
        steps: int = 1,
        log_odds_V: Tensor | None = None,
    ) -> None:
        """`steps` are those of the whole run, by which a schedule of the ratio goes; `log_odds_V` are of each id of the
        vocabulary, where the criterion reads them."""
        self.source, self.rows_per_step, self.selection = source, rows_per_step, selection
        self.micro_groups = max(1, micro_rows // selection.group_rows)
        self.intra, self.seed, self.device = intra_document_mask, seed, device
        self.rank, self.world_size, self.steps, self.log_odds_V = rank, world_size, steps, log_odds_V
        groups = rows_per_step // selection.group_rows
        assert groups % world_size == 0, "check_budget refuses this"
        self.first_group = rank * (groups // world_size)
        self.choice: Choice = selection.choice()
        self.is_static = selection.criterion != "all" and not selection.needs_live
        """Whether the mask is known before the forward pass."""

    def ratio(self, step: int) -> float:
        """Of step `step` (from 1), which begins when the steps before it were seen."""
        return self.selection.ratio_at(step - 1, self.steps)

    def step(self, step: int) -> StepBatch:
        """This rank's rows of step `step` (from 1). Any thread may ask."""
        start, stop = rank_slice(step, self.rows_per_step, self.rank, self.world_size)
        room = self.source.blank(stop - start)
        ids, document, ref = (self._memory(a) for a in (room.ids_BT, room.document_BT, room.ref_loss_BT))
        assert ids is not None
        assert document is not None
        joined = {key: self._memory(values) for key, values in room.joined.items()}
        stored = {key: values.numpy() for key, values in joined.items() if values is not None}
        room = Rows(ids.numpy(), document.numpy(), ref.numpy() if ref is not None else None, stored)
        rows = self.source.fetch(start, stop, room)
        target = self._memory(target_mask(rows.document_BT, self.intra), copy=True)
        assert target is not None
        per_group = self.selection.group_rows * rows.ids_BT.shape[1]
        valid_G = target.numpy().reshape(-1, per_group).sum(axis=1)
        ratio = self.ratio(step)
        counts_G = np.array([selected_count(int(v), ratio) for v in valid_G], dtype=np.int64)
        mask = None
        if self.is_static:
            chosen_GM = self._static_mask(step, rows, target.numpy().reshape(-1, per_group), counts_G, ratio)
            counts_G = chosen_GM.sum(dim=1).numpy().astype(np.int64)
            mask = chosen_GM.view(rows.ids_BT.shape)
        tokens = int((rows.document_BT != PADDING).sum())
        kept = {key: values for key, values in joined.items() if values is not None}
        return StepBatch(rows, ids, ref, target, valid_G, counts_G, tokens, ratio, kept, mask)

    def _static_mask(self, step: int, rows: Rows, valid_GM: np.ndarray, counts_G: np.ndarray, ratio: float) -> Tensor:
        """What a criterion that reads no live loss selects [G, M]."""
        shape = valid_GM.shape
        stored = {key: torch.from_numpy(values).reshape(shape) for key, values in rows.joined.items()}
        if rows.ref_loss_BT is not None:
            stored[self.watched, "ref_loss"] = torch.from_numpy(rows.ref_loss_BT).reshape(shape)
        place = restarting_positions(rows.document_BT) if "position" in self.selection.features else None
        odds = self.log_odds_V[torch.from_numpy(rows.ids_BT.astype(np.int64))] if self.log_odds_V is not None else None
        columns = Columns(
            torch.from_numpy(valid_GM),
            [self.group_seed(step, i) for i in range(len(valid_GM))],
            stored=stored,
            position_GM=torch.from_numpy(place).reshape(shape) if place is not None else None,
            log_odds_GM=odds.reshape(shape) if odds is not None else None,
        )
        return mask_of(columns, replace(self.choice, ratio=ratio), torch.from_numpy(counts_G))

    @property
    def watched(self) -> str:
        """The name by which a criterion reads the score set whose losses are `ref_loss_BT`."""
        return self.selection.watched

    def group_seed(self, step: int, group: int) -> int:
        """Of group `group` of this rank's part of a step."""
        return mix_seed("selection", self.seed, step, self.first_group + group)

    def _memory(self, array: np.ndarray | None, copy: bool = False) -> Tensor | None:
        """A tensor over the array's memory, or, for a GPU, page-locked memory of its shape."""
        if array is None:
            return None
        tensor = torch.from_numpy(array)
        if self.device == "cpu":
            return tensor
        pinned = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        return pinned.copy_(tensor) if copy else pinned

    def micro_valid(self, batch: StepBatch) -> list[int]:
        """Positions that may be selected in each micro-batch."""
        return [int(batch.valid_G[at : at + self.micro_groups].sum()) for at in range(0, len(batch.valid_G), self.micro_groups)]

    def micro_batches(self, step: int, batch: StepBatch, counts_of_all: list[int] | None = None) -> Iterator[MicroBatch]:
        """`counts_of_all` are the numbers to select of all ranks' tokens in each micro-batch, under `scope: global`."""
        rows, group_rows, read = batch.rows, self.selection.group_rows, self.selection.scores_on_device
        places_read = read and "position" in self.selection.features
        for number, first in enumerate(range(0, len(batch.counts_G), self.micro_groups)):
            valid, counts = (n[first : first + self.micro_groups].tolist() for n in (batch.valid_G, batch.counts_G))
            part = slice(first * group_rows, (first + self.micro_groups) * group_rows)
            places = range(len(rows.ids_BT))[part]
            target_N = np.flatnonzero(batch.target_mask[part])
            position = starts = None
            if self.intra:
                position_BT = restarting_positions(rows.document_BT[part])
                position, starts = torch.from_numpy(position_BT), torch.from_numpy(document_starts(position_BT))
            ref = batch.ref_loss_BT
            yield MicroBatch(
                self._send(batch.ids_BT[part]).long(),
                self._send(batch.target_BT[part]),
                self._send(self._pinned(torch.from_numpy(target_N))),
                self._send(self._pinned(position)) if position is not None else None,
                self._send(self._pinned(starts)) if starts is not None else None,
                self._send(ref[part]).float() if ref is not None else None,
                valid,
                counts,
                self._send(self._pinned(torch.from_numpy(places_of(counts, group_rows * rows.ids_BT.shape[1])))),
                [self.group_seed(step, first + i) for i in range(len(counts))],
                [mix_seed("dropout", self.seed, step, self.first_group * group_rows + r) for r in places],
                counts_of_all[number] if counts_of_all is not None else 0,
                {key: self._send(values[part]).float() for key, values in batch.joined.items()} if read else {},
                self._send(self._pinned(torch.from_numpy(restarting_positions(rows.document_BT[part])))) if places_read else None,
                self._send(self._pinned(batch.mask_BT[part].flatten().nonzero()[:, 0])) if batch.mask_BT is not None else None,
            )

    def _pinned(self, tensor: Tensor) -> Tensor:
        return tensor if self.device == "cpu" else tensor.pin_memory()

    def _send(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device, non_blocking=True)
