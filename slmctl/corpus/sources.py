"""Where documents come from: files cut into slices that are fixed up front, and Hub datasets.

A slice is what one token shard is made from. Line files are cut at byte offsets of their uncompressed text (a record
belongs to the slice in which it starts), Parquet at row groups, Hub datasets at their own shards. The plan is a function
of the input alone, so any worker can make any slice.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow.parquet as pq

from slmctl.config.data import SourceConfig
from slmctl.config.decides import Decides, decided
from slmctl.config.template import FieldError, Template
from slmctl.corpus.json_lines import parse
from slmctl.corpus.source_files import MEND
from slmctl.corpus.source_files import files_of as files_of
from slmctl.corpus.text_files import (
    BLOCK,
    content_id,
    kind_of,
    open_raw,
    open_text,
    reading,
    skip,
    text_size,
)
from slmctl.corpus.unreadable import dataset_problems, told, wrong_heads
from slmctl.system import cures
from slmctl.system.cures import INVALID_UTF8
from slmctl.system.errors import InputError
from slmctl.system.files import HashCache
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


@dataclass
class Tally:
    """What reading a slice met."""

    documents: int = 0
    text_bytes: int = 0
    empty: int = 0
    skipped: int = 0


def plan(sources: list[SourceConfig], shard_bytes: int, beat: Callable[[], None] = lambda: None) -> list[Slice]:
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
    for _ in _records(source, piece):
        n += 1
        if n == piece.limit:
            break
    return n


def _file_slices(i: int, source: SourceConfig, shard_bytes: int) -> Iterator[Slice]:
    files = files_of(source)
    if wrong := list(wrong_heads(files)):
        raise InputError(told(wrong, "Mend these files, or leave them out of the source's path."))
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


def _load_hub(source: SourceConfig) -> Any:
    import datasets

    try:
        return datasets.load_dataset(source.hub, source.hub_config, split=source.split, revision=source.revision, streaming=True)
    except Exception as e:  # the library raises many kinds
        raise InputError(f"cannot open dataset {source.hub!r} (config {source.hub_config}, split {source.split!r}): {e}") from e


def _hub_slices(i: int, source: SourceConfig) -> Iterator[Slice]:
    assert source.hub is not None
    if source.max_documents is not None:
        yield Slice(i, source.hub, 0, 0)
        return
    for shard in range(_load_hub(source).num_shards):
        yield Slice(i, source.hub, shard, shard + 1)


def input_fingerprint(sources: list[SourceConfig], hashes: HashCache) -> list[dict[str, Any]]:
    """What the documents of a set are, by content: templates and hashes, in order; no name, no path and no time.

    A Hub source without a revision is pinned to the commit that is found, so that what is named is what is read.
    """
    found: list[dict[str, Any]] = []
    for source in sources:
        how = reading_of(source)
        if source.hub is not None:
            found.append({"hub": _hub_identity(source, hashes), **how})
        else:
            found.append({"content": [content_id(f, hashes) for f in files_of(source)], **how})
    hashes.save()
    return found


def reading_of(source: SourceConfig) -> dict[str, Any]:
    """What decides a source's documents, given its content."""
    return decided(source, Decides.TOKENS)


def unhashed_bytes(sources: list[SourceConfig], hashes: HashCache) -> int:
    """Bytes of local files that `input_fingerprint` would have to read."""
    local = [Path(f) for s in sources if s.hub is None for f in files_of(s) if not is_url(f)]
    return sum(f.stat().st_size for f in local if not hashes.knows(f))


def _hub_identity(source: SourceConfig, hashes: HashCache) -> dict[str, Any]:
    assert source.hub is not None
    identity: dict[str, Any] = {"config": source.hub_config, "split": source.split}
    if Path(source.hub).is_dir():
        if problems := dataset_problems(source.hub):
            raise InputError(told(problems, MEND))
        files = sorted(f for f in Path(source.hub).rglob("*") if f.is_file())
        return {**identity, "files": [hashes.sha256(f) for f in files]}
    if source.revision is not None and re.fullmatch("[0-9a-f]{40}", source.revision):
        return {**identity, "hub": source.hub, "commit": source.revision}  # what it names never changes
    try:
        import huggingface_hub

        commit = huggingface_hub.HfApi().dataset_info(source.hub, revision=source.revision).sha
    except Exception as e:  # offline, or no such dataset
        hint = "For a full commit as its revision, the Hub is asked only when its set is made."
        raise InputError(f"cannot reach dataset {source.hub!r} on the Hub: {e}. {hint}") from e
    source.revision = commit
    return {**identity, "hub": source.hub, "commit": commit}


def documents(source: SourceConfig, piece: Slice, tally: Tally) -> Iterator[tuple[int, str]]:
    """Yields (ordinal within the slice, text) of each document that is not empty, counting into `tally`.

    Raises `InputError` with file and place for a broken record, unless the source says to skip those.
    """
    template = Template(source.text)
    for ordinal, (place, record, problem) in enumerate(_records(source, piece)):
        if piece.limit is not None and ordinal >= piece.limit:
            return
        text = ""
        if problem is None:
            try:
                text = template.document(record)
                text.encode("utf-8")
            except FieldError as e:
                problem = f"{e}, which the source asks for (text is {source.text!r})"
            except UnicodeEncodeError:
                problem = "text holds a lone surrogate, which is not valid Unicode"
        if problem is not None:
            if source.on_bad == "stop":
                raise InputError(f"{_spell(place)}: {problem}. {cures.of_a_record(place[0], problem)}")
            tally.skipped += 1
            continue
        if not text:
            tally.empty += 1
            continue
        tally.documents += 1
        tally.text_bytes += len(text.encode("utf-8"))
        yield ordinal, text


def whole_records(source: SourceConfig, piece: Slice) -> Iterator[dict[str, Any]]:
    """The records of a slice that can be read, before any template."""
    for n, (_, record, problem) in enumerate(_records(source, piece)):
        if piece.limit is not None and n >= piece.limit:
            return
        if problem is None:
            yield record


MAX_FILE_BYTES = 2**28
"""Largest .txt file that is read as one document."""

Place = tuple[str, str, int]
"""File, unit (`byte` is turned into a line number when it has to be shown) and position."""


def _spell(place: Place) -> str:
    file, unit, position = place
    if unit != "byte":
        return f"{file}, {unit} {position}"
    line, seen = 1, 0
    with open_text(file) as stream:
        while seen < position and (block := stream.read(min(BLOCK, position - seen))):
            line += block.count(b"\n")
            seen += len(block)
    return f"{file}, line {line}"


def _records(source: SourceConfig, piece: Slice) -> Iterator[tuple[Place, Any, str | None]]:
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
    dataset = _load_hub(source)
    if piece.stop:
        dataset = dataset.shard(num_shards=dataset.num_shards, index=piece.start)
    try:
        for n, record in enumerate(dataset):
            yield (f"{piece.file} shard {piece.start}", "record", n), record, None
    except InputError:
        raise
    except Exception as e:  # the library raises many kinds
        raise InputError(f"dataset {piece.file!r} broke off: {e}") from e
