"""Loss, perplexity and bits per byte on a held-out set, and what a loss was measured on."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from slmctl.corpus.packing import PADDING, bos_mask
from slmctl.corpus.tokenizer import Tokenizer
from slmctl.model.precision import autocast
from slmctl.model.row_losses import row_losses
from slmctl.model.split import SplitModel
from slmctl.store.reader import RowReader, TokenSet
from slmctl.system.hashes import sha256_json

DECODED_ROWS = 256
"""Rows that are decoded at once."""


@dataclass(frozen=True)
class HeldoutLoss:
    """Sum of losses (nats) over predicted tokens. A row's first token is not predicted, so not counted."""

    nats: float
    predicted: int

    @property
    def loss(self) -> float:
        """Nats a predicted token."""
        return self.nats / self.predicted if self.predicted else math.nan

    @property
    def perplexity(self) -> float:
        return math.exp(self.loss) if self.loss < 700 or math.isnan(self.loss) else math.inf

    def bits_per_byte(self, tokens: int, text_bytes: int) -> float:
        """Mean bits a token, times the set's tokens a byte (EOS counted as a token, without bytes of its own)."""
        return self.loss / math.log(2) * tokens / text_bytes


@dataclass(frozen=True)
class DocumentLosses:
    """The M documents of a held-out set that have predicted tokens, by rising number."""

    document_M: np.ndarray
    nats_M: np.ndarray
    """Sum of each document's losses (float64)."""
    predicted_M: np.ndarray
    """Its predicted tokens."""

    @property
    def whole(self) -> HeldoutLoss:
        return HeldoutLoss(float(self.nats_M.sum()), int(self.predicted_M.sum()))


@dataclass(frozen=True)
class Measured:
    """A held-out loss (nats a token), and what it was measured on."""

    loss: float
    tokens: int
    """Predicted, of all ranks together."""
    rows: str
    """See `rows_hash`."""
    precision: str
    """See `arithmetic`."""

    @property
    def measure(self) -> dict[str, Any]:
        """As it stands in evals.jsonl."""
        return {"tokens": self.tokens, "rows": self.rows, "precision": self.precision}


def arithmetic(model: SplitModel, bf16: bool) -> str:
    """The precision that a model's forward pass has, by its weights and by whether it runs under `autocast`; as
    `precision` of the configuration names it."""
    weights = next(model.model.parameters()).dtype
    if weights != torch.float32 or not bf16:
        return str(weights).removeprefix("torch.")
    return "bf16_autocast" if model.gathered is None else f"bf16_autocast, weights gathered as {model.gathered}"


def rows_taken(tokens: TokenSet, max_tokens: int | None) -> int:
    """How many of a set's first rows a loss over up to `max_tokens` is measured on; at least one."""
    return tokens.rows if max_tokens is None else min(tokens.rows, max(1, max_tokens // tokens.seq_len))


def rows_hash(tokens: TokenSet, max_tokens: int | None, intra_document_mask: bool) -> str:
    """Tells one choice of rows, and of what each prediction in them sees, from another: by the set's content, the numbers of the
    rows, and whether documents see each other."""
    which = {"set": tokens.manifest.content_hash, "first": 0, "rows": rows_taken(tokens, max_tokens)}
    return sha256_json({**which, "intra_document_mask": intra_document_mask})[:16]


def heldout_loss(
    model: SplitModel,
    reader: RowReader,
    device: str,
    batch_rows: int,
    max_tokens: int | None = None,
    bf16: bool = False,
    rank: int = 0,
    ranks: int = 1,
    beat: Callable[[int, int], None] = lambda _done, _batches: None,
) -> HeldoutLoss:
    """Loss over the first rows of a set, up to `max_tokens`. Restores the model's mode; draws no random number.

    Of several ranks each takes every `ranks`-th batch, and as many forward passes as the others, as a sharded model needs;
    the sum of their results is the set's. `beat` is called before each batch, equally often on each rank, with
    how many were made and how many there are; what it raises ends the evaluation.
    """
    rows = rows_taken(reader.tokens, max_tokens)
    was_training = model.model.training
    model.model.eval()
    nats, predicted = 0.0, 0
    batches = -(-rows // batch_rows)
    try:
        with autocast(device, bf16):
            for number in range(rank, -(-batches // ranks) * ranks, ranks):
                beat(number - rank, batches)
                at = number % batches * batch_rows  # beyond the last batch one that counts for nothing
                found = reader.fetch(np.arange(at, min(at + batch_rows, rows)))
                losses, _, target = row_losses(model, found.ids_BT, found.document_BT, device)
                if number < batches:
                    nats += float(losses[target].sum(dtype=np.float64))
                    predicted += int(target.sum())
    finally:
        model.model.train(was_training)
    return HeldoutLoss(nats, predicted)


def document_losses(
    model: SplitModel, reader: RowReader, device: str, batch_rows: int, advance: Callable[[int], None] = lambda _: None
) -> DocumentLosses:
    """Losses of a whole set by document. The reader must read documents; the model must be in eval mode. `advance` is told of
    rows that are done."""
    rows = reader.tokens.rows
    sums: dict[int, list[float]] = {}
    for at in range(0, rows, batch_rows):
        found = reader.fetch(np.arange(at, min(at + batch_rows, rows)))
        losses_BT, _, target_BT = row_losses(model, found.ids_BT, found.document_BT, device)
        documents, where = np.unique(found.document_BT[target_BT], return_inverse=True)
        nats = np.bincount(where, losses_BT[target_BT].astype(np.float64), len(documents))
        for document, total, count in zip(documents.tolist(), nats, np.bincount(where, minlength=len(documents)), strict=True):
            held = sums.setdefault(document, [0.0, 0])
            held[0] += float(total)
            held[1] += int(count)
        advance(len(found.ids_BT))
    order = sorted(sums)
    nats_M = np.array([sums[d][0] for d in order], dtype=np.float64)
    return DocumentLosses(np.array(order, dtype=np.int64), nats_M, np.array([sums[d][1] for d in order], dtype=np.int64))


def document_bytes(reader: RowReader, tokenizer: Tokenizer) -> dict[int, int]:
    """Bytes of text (UTF-8) of each document of a set, by number: its tokens decoded, without the EOS that ends it and the
    BOS that stand in it."""
    found: dict[int, int] = {}
    for document, ids in documents_of(reader, tokenizer.eos_id):
        text = tokenizer.hf.decode(ids, clean_up_tokenization_spaces=False)
        found[document] = found.get(document, 0) + len(text.encode("utf-8", "replace"))
    return found


def documents_of(reader: RowReader, eos_id: int) -> Iterator[tuple[int, list[int]]]:
    """A set's documents, each with its number and its tokens' ids, without the EOS that ends it and the BOS that stand in it. The
    reader must read documents."""
    held: list[int] = []
    last = PADDING
    bos_at = reader.tokens.manifest.format.get("bos_at")
    for at in range(0, reader.tokens.rows, DECODED_ROWS):
        rows = reader.fetch(np.arange(at, min(at + DECODED_ROWS, reader.tokens.rows)))
        text_BT = ~bos_mask(rows.document_BT, bos_at)
        ids, documents = rows.ids_BT[text_BT], rows.document_BT[text_BT]
        edges = [0, *(np.flatnonzero(np.diff(documents)) + 1).tolist(), len(ids)]
        for a, b in itertools.pairwise(edges):
            if a < b and documents[a] != last:
                if last != PADDING:
                    yield last, _without_eos(held, eos_id)
                held, last = [], int(documents[a])
            held += ids[a:b].tolist()
    if last != PADDING:
        yield last, _without_eos(held, eos_id)


def _without_eos(ids: list[int], eos_id: int) -> list[int]:
    return ids[:-1] if ids and ids[-1] == eos_id else ids
