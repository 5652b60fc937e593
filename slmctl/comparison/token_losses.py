"""Losses of single corpus tokens: of the diagnostic rows, under base and every kept checkpoint.

The rows are spread over the corpus. Losses of a model or checkpoint are written to `eval/tokens/` while it is loaded, and read
from their file when they are asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from slmctl.comparison.compared import Conditions
from slmctl.corpus.packing import target_mask
from slmctl.model.row_losses import row_losses
from slmctl.model.split import SplitModel
from slmctl.store.reader import RowReader, Rows
from slmctl.system.console import progress
from slmctl.system.files import publishing


@dataclass
class Sample:
    """The diagnostic rows, and which of their tokens are predicted."""

    numbers_B: np.ndarray
    rows: Rows
    target_BT: np.ndarray


class TokenLosses:
    """The diagnostic rows, and the losses of their tokens as files. Where `on` is false they are not asked for, and there are
    neither."""

    def __init__(self, conditions: Conditions) -> None:
        self.conditions = conditions
        self.on = conditions.settings.dynamics
        self.folder = conditions.folder / "tokens"
        if not self.on:
            return
        corpus = conditions.corpus
        wanted = max(1, conditions.settings.dynamics_tokens // corpus.seq_len)
        numbers = np.unique(np.linspace(0, corpus.rows - 1, min(wanted, corpus.rows)).astype(np.int64))
        self.reader = RowReader(corpus)
        rows = self.reader.fetch(numbers)
        self.sample = Sample(numbers, rows, target_mask(rows.document_BT, conditions.data.intra_document_mask))

    def has(self, name: str) -> bool:
        """Whether the losses under `name` are kept, or not asked for."""
        return not self.on or self._file(name).is_file()

    def add(self, name: str, model: SplitModel) -> None:
        """Measures the losses under `model`, and keeps them as `name`."""
        if not self.on:
            return
        numbers, how = self.sample.numbers_B, (self.conditions.device, self.conditions.settings.batch_rows)
        with progress(f"eval {name}: losses of corpus tokens", len(numbers), "rows") as ticker:
            losses = token_losses_of(model, self.reader, numbers, *how, ticker.advance)
        with publishing(self._file(name)) as temporary, open(temporary, "wb") as f:
            np.save(f, losses)

    def of(self, name: str) -> np.ndarray:
        """Of a model (`base`) or checkpoint (`arm@step`): [B, T], nats, float32; NaN where nothing is predicted."""
        found: np.ndarray = np.load(self._file(name))
        return found

    def _file(self, name: str) -> Path:
        return self.folder / f"{name}.npy"


def token_losses_of(
    model: SplitModel,
    reader: RowReader,
    rows: np.ndarray,
    device: str,
    batch_rows: int,
    advance: Callable[[int], None] = lambda _: None,
) -> np.ndarray:
    """Losses [rows, T] of the rows' tokens (nats, float32; NaN where nothing is predicted). `advance` is told of rows done."""
    found = []
    for at in range(0, len(rows), batch_rows):
        part = rows[at : at + batch_rows]
        fetched = reader.fetch(part)
        found.append(row_losses(model, fetched.ids_BT, fetched.document_BT, device)[0])
        advance(len(part))
    return np.concatenate(found)
