"""One slice of text to one token shard. Needs no model library, so that any number of processes may do it cheaply."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np

from slmctl.config.data import SourceConfig
from slmctl.corpus.bounded_batches import bounded_batches
from slmctl.corpus.contamination_scan import SliceFindings
from slmctl.corpus.documents import Tally, documents
from slmctl.corpus.encoder import Encoder
from slmctl.corpus.packing import PADDING, BosPlace, Packer
from slmctl.corpus.records import Slice
from slmctl.corpus.text_files import kind_of, stamp
from slmctl.store.build import make
from slmctl.store.order import permutation
from slmctl.store.shard_format import rows_per_group, shard_name
from slmctl.store.shard_writer import ShardWriter
from slmctl.system.errors import InputError, MismatchError
from slmctl.system.storage import Folder

BATCH_DOCUMENTS = 512
BATCH_BYTES = 2**20
COUNTS = ("documents", "text_bytes", "empty_documents", "skipped_documents", "split_documents", "tokens", "padding")
BOS_TOKENS = "bos_tokens"
"""The count of a set with BOS that others lack."""
ENDS = ("eos_tokens", "eos_in_texts")
"""Of a shard that was made before these were counted they are not known."""


@dataclass(frozen=True)
class Packing:
    """How the shards of one set are made, from whatever slice."""

    folder: str
    sources: list[SourceConfig]
    columns: dict[str, str]
    seq_len: int
    seed: int
    shard_bytes: int
    vocab_size: int
    bound: dict[str, str]
    """Facts that bind a shard to the set's inputs."""
    bos_id: int | None = None
    bos_at: BosPlace = "row"


@dataclass(frozen=True)
class Job:
    """One shard to make."""

    packing: Packing
    index: int
    slice: Slice
    stamp: str = ""
    """The file's, from when its content was compared with the plan."""
    held_out: SliceFindings | None = None
    """Where to keep what of the held-out texts it holds; null does not look."""

    def text_bytes(self) -> int:
        """About how much text it is: Parquet and Hub slices are counted in other units, and are about a shard each."""
        lines = self.packing.sources[self.slice.source].hub is None and kind_of(self.slice.file) != "parquet"
        return min(self.slice.stop - self.slice.start, self.packing.shard_bytes) if lines else self.packing.shard_bytes


def maker(tokenizer_json: str, eos_id: int, named: frozenset[int], threads: int) -> Callable[[Job], None]:
    """What makes shards in a process of its own, with so many threads for the tokenizer. `named` are the special tokens' ids."""
    os.environ["RAYON_NUM_THREADS"] = str(threads)
    os.environ["TOKENIZERS_PARALLELISM"] = "true" if threads > 1 else "false"
    return partial(make_shard, Encoder.from_json(tokenizer_json, eos_id, named))


def make_shard(encoder: Encoder, job: Job) -> None:
    """Makes a shard unless it is there, whole."""
    folder = Folder.at(job.packing.folder)
    make(folder, job.index, job.packing.bound, partial(_write, encoder, folder, job))


def _write(encoder: Encoder, folder: Folder, job: Job) -> bool:
    """Tokenises, shuffles, packs and publishes one slice. Returns whether this worker was the first."""
    packing, index, source = job.packing, job.index, job.packing.sources[job.slice.source]
    seq_len = packing.seq_len
    block_rows = rows_per_group(seq_len)
    packer = Packer(seq_len, encoder.eos_id, block_rows, packing.bos_id, packing.bos_at)
    tally, rows, max_id, eos_tokens, eos_in_texts = Tally(), 0, 0, 0, 0
    watch = job.held_out.watch() if job.held_out is not None else None
    texts = documents(source, job.slice, tally)
    with ShardWriter(folder, shard_name(index), packing.columns, block_rows * seq_len) as writer:

        def put(blocks: Iterator[tuple[np.ndarray, np.ndarray]]) -> None:
            nonlocal rows, max_id, eos_tokens
            for ids, document in blocks:
                writer.write(input_id=ids, document=document)
                rows += len(ids) // seq_len
                max_id = max(max_id, int(ids.max()))
                eos_tokens += int(((ids == encoder.eos_id) & (document != PADDING)).sum())

        for number, window in enumerate(windows(watch.passing(texts) if watch else texts, 2 * packing.shard_bytes)):
            shuffled = [window[i] for i in permutation(len(window), packing.seed, "documents", index, number)]
            for batch, encoded in encoder.encode_batches(batches(shuffled), texts_of, source.parse_special_tokens):
                for (ordinal, _), ids in zip(batch, encoded, strict=True):
                    encoder.check_ids(ids, packing.vocab_size)
                    if source.parse_special_tokens:
                        eos_in_texts += int((ids == encoder.eos_id).sum())
                    put(packer.add(ids, document_number(index, ordinal)))
        put(packer.finish())
        if packing.bos_id == encoder.eos_id:  # one token is both
            eos_tokens -= packer.bos
        refuse_other_ends(f"shard {index} of {job.slice.file}", eos_tokens, tally.documents, eos_in_texts)
        if job.stamp and stamp(job.slice.file) != job.stamp:
            raise InputError(f"{job.slice.file} was changed while it was prepared. Run again, to plan anew with what it is now.")
        counts = {
            **{"documents": tally.documents, "text_bytes": tally.text_bytes, "empty_documents": tally.empty},
            **{"skipped_documents": tally.skipped, "split_documents": packer.split, "tokens": packer.tokens},
            "padding": rows * seq_len - packer.tokens - packer.bos,
            **({BOS_TOKENS: packer.bos} if packing.bos_id is not None else {}),
            **{"eos_tokens": eos_tokens, "eos_in_texts": eos_in_texts},
        }
        writer.facts = {
            **packing.bound,
            "max_id": max_id,
            "slice": index,
            "rows": rows,
            "tokens": packer.tokens + packer.bos,
            "counts": counts,
        }
    if job.held_out is not None and watch is not None:
        job.held_out.keep(watch)
    return writer.won


def refuse_other_ends(what: str, eos_tokens: int, documents: int, eos_in_texts: int) -> None:
    """Raises `MismatchError` where end-of-sequence tokens are not one a document, besides those that were read from texts."""
    if eos_tokens != documents + eos_in_texts:
        raise MismatchError(
            f"{what} would hold {eos_tokens} end-of-sequence tokens for {documents} documents"
            f"{f' and {eos_in_texts} that stood in texts' if eos_in_texts else ''}: some of its texts become that token. It is "
            "not published. Give another tokenizer with model.tokenizer, or leave such texts out."
        )


def texts_of(batch: list[tuple[int, str]]) -> list[str]:
    return [text for _, text in batch]


def document_number(shard: int, ordinal: int) -> int:
    """A document's number in the `document` column: its shard, and its place among the records of the shard's slice."""
    return (shard << 32) | ordinal


def windows(pairs: Iterator[tuple[int, str]], max_chars: int) -> Iterator[list[tuple[int, str]]]:
    """Documents in lists of bounded size: what is shuffled together, so that a slice of any size fits in memory."""
    return bounded_batches(pairs, _characters, max_chars)


def batches(pairs: list[tuple[int, str]]) -> Iterator[list[tuple[int, str]]]:
    """Documents in batches that the tokenizer takes at once."""
    return bounded_batches(pairs, _characters, BATCH_BYTES, BATCH_DOCUMENTS)


def _characters(pair: tuple[int, str]) -> int:
    return len(pair[1])
