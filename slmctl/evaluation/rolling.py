"""Bits per byte as lm-evaluation-harness has them (`loglikelihood_rolling`): a figure to be set beside others' figures.

The loss of a held-out set is that of its rows: documents end to end, each followed by EOS, cut every `seq_len` tokens, a row's
first token not predicted, EOS predicted. The harness reads each document by itself: its first token follows a prefix token
(BOS, else EOS), EOS is not predicted, and every other token is, once. A document that is longer than the window is cut into
windows that begin with one token of context, the last of them with as much as fits.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch

from slmctl.evaluation.heldout import documents_of
from slmctl.model.losses import token_losses
from slmctl.model.split import SplitModel
from slmctl.store.reader import RowReader


def rolling_bits_per_byte(
    model: SplitModel,
    reader: RowReader,
    prefix_id: int,
    eos_id: int,
    window: int,
    text_bytes: int,
    device: str,
    batch_tokens: int,
) -> float:
    """Bits a byte of a whole set's `text_bytes` (UTF-8). `window`: the most tokens the model reads at once; `batch_tokens`: the
    most in one forward pass, but for a window that is longer by itself. The model must be in eval mode."""
    documents = (ids for _, ids in documents_of(reader, eos_id))
    nats = math.fsum(_batch_nats(model, batch, device) for batch in _batches(documents, prefix_id, window, batch_tokens))
    return nats / math.log(2) / text_bytes if text_bytes else math.nan


LONGEST_WINDOW = 32_768
"""Tokens. Of a model with a longer context so many are taken: attention over all of a long document takes its square in time."""
_CONTEXT = ("n_positions", "max_position_embeddings", "n_ctx")
"""Settings that the harness reads a model's context from, in its order; a model with none of them has `_UNTOLD` tokens."""
_UNTOLD = 2048


def window_of(model: Any) -> int:
    """Tokens that the harness lets a model read at once; at most `LONGEST_WINDOW`."""
    config = model.config.get_text_config()
    told = (getattr(config, name, None) for name in _CONTEXT)
    return min(next((n for n in told if isinstance(n, int) and n > 0), _UNTOLD), LONGEST_WINDOW)


def windows(ids: list[int], prefix_id: int, window: int) -> Iterator[tuple[list[int], int]]:
    """(ids, predicted): the last `predicted` of a window's ids are predicted from those before them; at most `window` + 1 ids, as
    the last is not read. Each of the document's tokens is predicted once."""
    if ids:
        yield [prefix_id, *ids[:window]], min(window, len(ids))
    for at in range(window, len(ids), window):
        end = min(at + window, len(ids))
        yield ids[end - window - 1 : end], end - at


def _batches(
    documents: Iterable[list[int]], prefix_id: int, window: int, batch_tokens: int
) -> Iterator[list[tuple[list[int], int]]]:
    """Windows of like length together, so that little is padding; those of `SORTED` documents at a time."""
    for part in _parts(documents):
        held: list[tuple[list[int], int]] = []
        for one in sorted((w for ids in part for w in windows(ids, prefix_id, window)), key=lambda w: -len(w[0])):
            if held and (len(held) + 1) * len(held[0][0]) > batch_tokens:
                yield held
                held = []
            held.append(one)
        if held:
            yield held


SORTED = 1024
"""Documents whose windows are sorted by length."""


def _parts(documents: Iterable[list[int]]) -> Iterator[list[list[int]]]:
    part: list[list[int]] = []
    for ids in documents:
        part.append(ids)
        if len(part) == SORTED:
            yield part
            part = []
    yield part


@torch.no_grad()
def _batch_nats(model: SplitModel, batch: list[tuple[list[int], int]], device: str) -> float:
    """Sum of the losses (nats) of what is predicted in a batch of windows, the longest first."""
    longest = len(batch[0][0])
    ids_BT = np.zeros((len(batch), longest), dtype=np.int64)
    target_BT = np.zeros((len(batch), longest), dtype=bool)
    for row, (window, predicted) in enumerate(batch):
        ids_BT[row, : len(window)] = window  # what is behind a window's end reaches nothing before it
        target_BT[row, len(window) - predicted : len(window)] = True
    ids = torch.from_numpy(ids_BT).to(device)
    read_BT, wanted_N = ids[:, :-1], torch.from_numpy(np.flatnonzero(target_BT[:, 1:])).to(device)
    position_BT = torch.arange(longest - 1, device=device).expand_as(read_BT) if model.intra_document_mask else None

    def losses_of(hidden_BTD: torch.Tensor) -> torch.Tensor:
        return token_losses(model, hidden_BTD.flatten(0, 1)[wanted_N], ids[:, 1:].flatten()[wanted_N], False)[0]

    return float(model(read_BT, position_BT, None, losses_of).double().sum())
