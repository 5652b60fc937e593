"""Scoring: the rows of a token shard to the columns of its score shard."""

from __future__ import annotations

from typing import Any

import numpy as np

from slmctl.config.score import ScoreConfig
from slmctl.model.precision import autocast
from slmctl.model.row_losses import row_losses
from slmctl.model.split import SplitModel
from slmctl.selection.storage_precision import stored
from slmctl.store.read_ahead import ReadAhead
from slmctl.store.reader import RowReader, Rows, TokenSet
from slmctl.store.scores import SENTINEL, columns_of
from slmctl.store.shard_format import shard_name
from slmctl.store.shard_writer import ShardWriter
from slmctl.system.errors import TrainingError
from slmctl.system.storage import Folder

ROUNDING = 1e-3
"""How far below zero rounding can take a loss (nats); what is lower is not a loss."""


def score_shard(
    folder: Folder,
    bound: dict[str, Any],
    tokens: TokenSet,
    index: int,
    model: SplitModel,
    settings: ScoreConfig,
    device: str,
    ticker: Any,
) -> bool:
    """Scores one shard of `tokens` and publishes it in `folder`; `bound` are the facts that it must hold to belong there. Returns
    whether this worker was the first."""
    info = tokens.manifest.shards[index]
    first_group = sum(s.groups for s in tokens.manifest.shards[:index])
    reader = RowReader(tokens, cache_groups=2, documents=model.intra_document_mask)
    ahead = ReadAhead(reader.group, first_group + info.groups - 1, threads=1)
    predicted = 0
    try:
        with ShardWriter(folder, shard_name(index), columns_of(settings), tokens.manifest.group_rows * tokens.seq_len) as writer:
            for group in range(first_group, first_group + info.groups):
                columns, n = score_group(
                    ahead.get(group), model, settings, device, f"{info.file}, row group {group - first_group}", ticker
                )
                writer.write(**columns)
                predicted += n
            writer.facts = {**bound, "rows": info.rows, "tokens": info.tokens, "predicted": predicted}
        return writer.won
    finally:
        ahead.close()


def score_group(
    rows: Rows, model: SplitModel, settings: ScoreConfig, device: str, place: str, ticker: Any
) -> tuple[dict[str, np.ndarray], int]:
    """The columns of one row group, as they are stored, and how many tokens are predicted."""
    out = {n: np.full(rows.ids_BT.shape, SENTINEL, dtype=t) for n, t in columns_of(settings).items()}
    predicted = 0
    for at in range(0, len(rows.ids_BT), settings.batch_rows):
        part = slice(at, at + settings.batch_rows)
        with autocast(device, settings.precision == "bf16_autocast"):
            losses, entropy, target = row_losses(model, rows.ids_BT[part], rows.document_BT[part], device, settings.entropy)
        for column, values in (("ref_loss", losses), ("ref_entropy", entropy)):
            if values is not None:
                refuse_impossible(values[target], column, place, settings.precision)
                out[column][part][target] = stored(values[target], settings.dtype)
        predicted += int(target.sum())
        ticker.advance(target.size)
    return {n: c.ravel() for n, c in out.items()}, predicted


def refuse_impossible(values: np.ndarray, column: str, place: str, precision: str) -> None:
    """Raises `TrainingError` for a value that no model gives: not finite, or negative beyond rounding."""
    bad = ~np.isfinite(values)
    negative = values < -ROUNDING
    if bad.any() or negative.any():
        what = f"{int(bad.sum())} values of {column} that are not finite" if bad.any() else f"a {column} of {values.min():.3g}"
        advice = "Check" if precision == "float32" else "Use score.precision: float32, or check"
        raise TrainingError(
            f"the reference model gives {what} in {place}; that shard was not written. {advice} the reference model."
        )
