"""The records of a slice, as its kind of file or dataset holds them: JSON Lines, plain text, Parquet, the Hub."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow.parquet as pq

from slmctl.config.data import SourceConfig
from slmctl.config.template import Template
from slmctl.corpus.json_lines import parse
from slmctl.corpus.text_files import kind_of, open_raw, open_text, reading, skip
from slmctl.system.errors import InputError
from slmctl.system.repair_hints import INVALID_UTF8
from slmctl.system.storage import is_url


@dataclass(frozen=True)
class Slice:
    """One contiguous part of a source: bytes of text, Parquet row groups, or a Hub dataset's shard, from start to stop."""

    source: int
    file: str
    start: int
    stop: int
    limit: int | None = None
    """At most so many documents."""


TO_THE_END = 2**62
"""The stop of a file's last slice where its uncompressed size is an estimate."""

MAX_FILE_BYTES = 2**28
"""Largest .txt file that is read as one document."""

Place = tuple[str, str, int]
"""File, unit (`byte` is turned into a line number when it has to be shown) and position."""


def records(source: SourceConfig, piece: Slice) -> Iterator[tuple[Place, Any, str | None]]:
    """Yields (place, record, problem) of each record of a slice; blank lines of JSON Lines are none."""
    if source.hub is not None:
        yield from _hub_records(source, piece)
        return
    kind = kind_of(piece.file)
    with reading(piece.file):
        if kind == "parquet":
            yield from _parquet_records(source, piece)
        elif kind == "jsonl":
            for at, line in _lines(piece):
                if line.strip():
                    yield (piece.file, "byte", at), *parse(line)
        else:
            for at, text in _texts(source, piece):
                try:
                    yield (piece.file, "byte", at), {"text": text.decode("utf-8")}, None
                except UnicodeDecodeError as e:
                    yield (piece.file, "byte", at + e.start), None, f"{INVALID_UTF8} ({e.reason})"


def _lines(piece: Slice) -> Iterator[tuple[int, bytes]]:
    """(offset, line) of the lines that start within the slice."""
    stream, at = _kept.take(piece)
    if at < piece.start:
        skip(stream, piece.file, piece.start - 1 - at)
        at = piece.start - 1 + len(stream.readline())
    while at < piece.stop and (line := stream.readline()):
        yield at, line
        at += len(line)
    _kept.put(piece, stream, at)


class _Kept:
    """The one stream kept open between slices: those of a compressed file that are read in turn, all or some of them, need
    not decompress it anew each time. It stands at the first line that starts at or after `stop`."""

    def __init__(self) -> None:
        self.key: tuple[str, int, int] | None = None
        self.stop = self.at = 0
        self.stream: BinaryIO | None = None

    def take(self, piece: Slice) -> tuple[BinaryIO, int]:
        """A stream and its offset, at or before the first line of the slice."""
        stream, self.stream = self.stream, None
        if stream is not None:
            if self.key == self._key(piece.file) and self.stop <= piece.start:
                return stream, self.at
            stream.close()
        return open_text(piece.file, look=piece.start == 0), 0

    def put(self, piece: Slice, stream: BinaryIO, at: int) -> None:
        if self.stream is not None:
            self.stream.close()
        self.key, self.stop, self.at, self.stream = self._key(piece.file), piece.stop, at, stream

    @staticmethod
    def _key(file: str) -> tuple[str, int, int]:
        if is_url(file):
            return file, 0, 0
        stat = Path(file).stat()
        return file, stat.st_size, stat.st_mtime_ns


_kept = _Kept()


def _texts(source: SourceConfig, piece: Slice) -> Iterator[tuple[int, bytes]]:
    """(offset, text) of the documents of a .txt file that the slice owns."""
    if source.txt_split == "line":
        for at, line in _lines(piece):
            yield at, line.rstrip(b"\r\n")
        return
    if source.txt_split == "file":
        with open_text(piece.file) as stream:
            text = stream.read(MAX_FILE_BYTES + 1)
        if len(text) > MAX_FILE_BYTES:
            raise InputError(
                f"{piece.file} has more than {MAX_FILE_BYTES:,} bytes, too many for one document. "
                "Set txt_split: paragraph or line for it."
            )
        yield 0, text
        return
    # A paragraph belongs to the slice that holds the empty line before it (or the file's first byte).
    began: int | None = 0 if piece.start == 0 else None
    parts: list[bytes] = []
    beyond = Slice(piece.source, piece.file, piece.start, 2**63)
    for at, line in _lines(beyond):
        if line.strip():
            if began is not None:
                if not parts:
                    began = at
                parts.append(line)
            elif at >= piece.stop:
                return  # it began and ended within one paragraph, which is not its own
            continue
        if parts and began is not None:
            yield began, b"".join(parts).rstrip(b"\r\n")
            parts = []
        if at >= piece.stop:
            return
        began = at
    if parts and began is not None:
        yield began, b"".join(parts).rstrip(b"\r\n")


def _parquet_records(source: SourceConfig, piece: Slice) -> Iterator[tuple[Place, Any, str | None]]:
    wanted = {field[0] for _, field in Template(source.text).parts if field}
    with open_raw(piece.file) as raw, pq.ParquetFile(raw) as parquet:
        found = [c for c in parquet.schema_arrow.names if c in wanted]
        if twice := sorted({c for c in found if found.count(c) > 1}):
            raise InputError(f"{piece.file} has more than one column named {', '.join(twice)}. Name each differently.")
        columns = found if len(found) == len(wanted) else None  # one is absent: read all, so that the message lists them
        row = sum(parquet.metadata.row_group(g).num_rows for g in range(piece.start))
        for batch in parquet.iter_batches(batch_size=1024, row_groups=range(piece.start, piece.stop), columns=columns):
            for i in range(batch.num_rows):
                try:
                    yield (piece.file, "row", row), batch.slice(i, 1).to_pylist()[0], None
                except UnicodeDecodeError as e:
                    yield (piece.file, "row", row), None, f"{INVALID_UTF8} ({e.reason})"
                except (ValueError, OverflowError) as e:  # such as a date beyond Python's, or a struct of equal names
                    yield (piece.file, "row", row), None, f"holds a value that cannot be read ({e})"
                row += 1


def _hub_records(source: SourceConfig, piece: Slice) -> Iterator[tuple[Place, Any, str | None]]:
    dataset = load_hub(source)
    if piece.stop:
        dataset = dataset.shard(num_shards=dataset.num_shards, index=piece.start)
    try:
        for n, record in enumerate(dataset):
            yield (f"{piece.file} shard {piece.start}", "record", n), record, None
    except InputError:
        raise
    except Exception as e:  # the library raises many kinds
        raise InputError(f"dataset {piece.file!r} broke off: {e}") from e


def load_hub(source: SourceConfig) -> Any:
    """A Hub dataset, streamed. Raises `InputError` with the reason."""
    import datasets

    try:
        return datasets.load_dataset(source.hub, source.hub_config, split=source.split, revision=source.revision, streaming=True)
    except Exception as e:  # the library raises many kinds
        raise InputError(f"cannot open dataset {source.hub!r} (config {source.hub_config}, split {source.split!r}): {e}") from e
