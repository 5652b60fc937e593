"""A set's text cut into slices that are fixed up front; a slice is what one token shard is made from.

Line files are cut at byte offsets of their uncompressed text (a record belongs to the slice in which it starts), Parquet at
row groups, Hub datasets at their own shards. The plan is a function of the input alone, so any worker can make any slice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pyarrow.parquet as pq

from slmctl.config.data import SourceConfig
from slmctl.config.template import Template
from slmctl.corpus.records import TO_THE_END, Slice, load_hub, records
from slmctl.corpus.source_files import files_of
from slmctl.corpus.text_files import kind_of, open_raw, reading, text_size
from slmctl.corpus.unreadable import one_message, wrong_signatures
from slmctl.system.errors import InputError


def plan_slices(sources: list[SourceConfig], shard_bytes: int, beat: Callable[[], None] = lambda: None) -> list[Slice]:
    """All slices of a set, in order: a function of the input and `shard_bytes` alone. Calls `beat` now and then."""
    slices: list[Slice] = []
    for i, source in enumerate(sources):
        Template(source.text)
        left = source.max_documents
        for piece in _hub_slices(i, source) if source.hub else _file_slices(i, source, shard_bytes):
            beat()
            if left is None:
                slices.append(piece)
                continue
            if left == 0:
                break
            piece = Slice(piece.source, piece.file, piece.start, piece.stop, left)
            if source.hub is None:
                left -= min(left, _count_records(source, piece))
            slices.append(piece)
    return slices


def _count_records(source: SourceConfig, piece: Slice) -> int:
    n = 0
    for _ in records(source, piece):
        n += 1
        if n == piece.limit:
            break
    return n


def _file_slices(i: int, source: SourceConfig, shard_bytes: int) -> Iterator[Slice]:
    files = files_of(source)
    if wrong := list(wrong_signatures(files)):
        raise InputError(one_message(wrong, "Mend these files, or leave them out of the source's path."))
    for file in files:
        kind = kind_of(file)
        if kind == "parquet":
            with reading(file), open_raw(file) as raw, pq.ParquetFile(raw) as parquet:
                sizes = [parquet.metadata.row_group(g).total_byte_size for g in range(parquet.num_row_groups)]
            start = used = 0
            for g, size in enumerate(sizes):
                if used and used + size > shard_bytes:
                    yield Slice(i, file, start, g)
                    start, used = g, 0
                used += size
            if start < len(sizes):
                yield Slice(i, file, start, len(sizes))
            continue
        size, exact = text_size(file)
        if kind == "txt" and source.txt_split == "file":
            yield Slice(i, file, 0, size)
            continue
        parts = -(-size // shard_bytes) if exact else max(1, round(size / shard_bytes))
        for k in range(parts):
            last = k == parts - 1
            yield Slice(i, file, k * shard_bytes, (size if exact else TO_THE_END) if last else (k + 1) * shard_bytes)


def _hub_slices(i: int, source: SourceConfig) -> Iterator[Slice]:
    assert source.hub is not None
    if source.max_documents is not None:
        yield Slice(i, source.hub, 0, 0)
        return
    for shard in range(load_hub(source).num_shards):
        yield Slice(i, source.hub, shard, shard + 1)
