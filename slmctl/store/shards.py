"""Shards on disk: Parquet with one value a token in flat required columns, every byte of which is covered by a hash.

The footer holds, under the key `slmctl`, what the shard was made from (`facts`), the XXH3-128 of each column chunk's
bytes, and a hash of its own. Chunks and footer tile the file, so the hash of the footer, which a manifest keeps, stands for
the whole content, and a reader verifies just the bytes that it reads, from a disk or over a network. Nothing is parsed
before it is verified: some flipped bits of a footer make pyarrow abort the process.

How a column is encoded is told in `chunks.py`.
"""

from __future__ import annotations

import hashlib
import io
import json
import threading
from contextlib import AbstractContextManager
from dataclasses import asdict
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash
from zstandard import ZstdError

from slmctl.store import chunks
from slmctl.store.footer import footer
from slmctl.store.manifest import Shard, differences
from slmctl.system.errors import CorruptError, InputError
from slmctl.system.files import disk_errors
from slmctl.system.local_storage import LocalFolder
from slmctl.system.storage import Folder, OpenFile

GROUP_TOKENS = 2**18
_META = "slmctl"
_SEAL = b"slmctl-footer-sha256:"
_UNSEALED = b"0" * 64
_MAGIC = b"PAR1"
_TAIL = 2**16
_UNREADABLE = (OSError, pa.ArrowException, KeyError, ValueError, TypeError, IndexError, OverflowError)
"""What a damaged file makes pyarrow raise."""

_NOT_WHAT_WAS_WRITTEN = "what was read back is not what was written. Check disk and memory."

Range = tuple[int, int]
"""Offset and length."""

Form = tuple[tuple[str, ...], int]
"""A chunk's encodings, and the bytes of its dictionary page."""


def rows_per_group(seq_len: int) -> int:
    """Rows of a Parquet row group: as many as make about 2^18 tokens."""
    return max(1, GROUP_TOKENS // seq_len)


def shard_name(index: int) -> str:
    return f"shard-{index:05d}.parquet"


class ShardWriter:
    """Streams one shard, a row group at a time; it is published, verified, when the `with` block ends without an error.

    `columns` gives name to NumPy type, `group_tokens` the size of a full row group. `facts` (any JSON), set before the
    block ends, goes to the footer. Afterwards `shard` describes the file under its name: this one, or the one that
    another worker published first (`won` tells).
    """

    def __init__(self, folder: Folder, name: str, columns: dict[str, str], group_tokens: int) -> None:
        self.folder, self.name = folder, name
        self.types = {n: np.dtype(t) for n, t in columns.items()}
        self.group_tokens = group_tokens
        self.facts: dict[str, Any] = {}
        self.won = False
        self._written: list[list[str]] = []
        """The hashes of the values of each row group."""
        self._groups: list[tuple[int, list[chunks.Chunk]]] = []
        self._chunk_hashes: dict[str, list[str]] = {n: [] for n in self.types}

    def __enter__(self) -> ShardWriter:
        with self._errors():
            self._temporary = self.folder.temporary(self.name)
            try:
                self._file = open(self._temporary, "wb")
                self._file.write(_MAGIC)
            except BaseException:
                self._temporary.unlink(missing_ok=True)
                raise
        return self

    def write(self, **columns: np.ndarray) -> None:
        """Adds one row group; each column is [tokens of the group]."""
        group = {n: np.ascontiguousarray(columns[n], dtype=t) for n, t in self.types.items()}
        shapes = {c.shape for c in group.values()}
        if len(shapes) != 1 or any(len(s) != 1 or s[0] > self.group_tokens for s in shapes):
            raise ValueError(f"columns of {shapes}, wanted one length of at most {self.group_tokens} for all")
        self._written.append(_hashes(group))
        offset = self._file.tell()
        described: list[chunks.Chunk] = []
        for name, values in group.items():
            pages, chunk = chunks.encode(values)
            magic = _MAGIC if not self._groups and not described else b""  # counts as a part of the first chunk
            self._chunk_hashes[name].append(_hash(magic + pages))
            described.append(chunk)
            with self._errors():
                self._file.write(pages)
        self._groups.append((offset, described))

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, trace: TracebackType | None) -> None:
        try:
            with self._errors():
                try:
                    if kind is None:
                        self._file.write(self._footer())
                finally:
                    self._close(quietly=kind is not None)
                if kind is None:
                    self._finish()
                    self.won = self.folder.publish(self._temporary, self.name)
        finally:
            self._temporary.unlink(missing_ok=True)

    @property
    def shard(self) -> Shard:
        """What lies under the shard's name. Raises `CorruptError` where that is broken."""
        return ShardFile(self.folder, self.name).described()

    def _errors(self) -> AbstractContextManager[None]:
        return disk_errors(self.folder.writes_at(self.name))

    def _close(self, quietly: bool) -> None:
        try:
            self._file.close()
        except OSError:
            if not quietly:
                raise

    def _footer(self) -> bytes:
        text = json.dumps({"facts": self.facts, "chunks": self._chunk_hashes}, sort_keys=True)
        return _seal(footer(self.types, self._groups, {_META: _SEAL + _UNSEALED + text.encode()}))

    def _finish(self) -> None:
        """Reads back all that was written, by pyarrow and as a reader will, and compares it with what it was."""
        with pq.ParquetFile(self._temporary, page_checksum_verification=True) as file:
            for group, wanted in enumerate(self._written):
                if _hashes(_decode(file, group, list(self.types))) != wanted:
                    raise CorruptError(f"{self.folder}/{self.name}: {_NOT_WHAT_WAS_WRITTEN}")
        finished = ShardFile(LocalFolder(self._temporary.parent), self._temporary.name)
        finished.described()
        for group, wanted in enumerate(self._written):
            if _hashes(finished.read(group, list(self.types))) != wanted:
                raise CorruptError(f"{self.folder}/{self.name}: {_NOT_WHAT_WAS_WRITTEN}")
        finished.close()


def _hash(data: Any) -> str:
    return xxhash.xxh3_128_hexdigest(data)


def _hashes(group: dict[str, np.ndarray]) -> list[str]:
    return [_hash(np.ascontiguousarray(c).view(np.uint8)) for c in group.values()]


def _decode(file: pq.ParquetFile, group: int, columns: list[str]) -> dict[str, np.ndarray]:
    table = file.read_row_group(group, columns=columns, use_threads=False)
    return {n: table.column(n).combine_chunks().to_numpy(zero_copy_only=False) for n in columns}


def _chunk_ranges(metadata: pq.FileMetaData) -> tuple[list[tuple[str, Range, Form]], int]:
    """(column, range, form) of each chunk in file order, the leading magic bytes counted to the first; and where the footer
    begins. Raises `ValueError` where chunks do not lie end to end."""
    found: list[tuple[str, Range, Form]] = []
    at = 0
    for g in range(metadata.num_row_groups):
        group = metadata.row_group(g)
        for c in range(metadata.num_columns):
            chunk = group.column(c)
            start = at or len(_MAGIC)
            dictionary = chunk.data_page_offset - chunk.dictionary_page_offset if chunk.has_dictionary_page else 0
            if chunk.data_page_offset - dictionary != start:
                raise ValueError("column chunks do not lie end to end")
            end = start + chunk.total_compressed_size
            found.append((chunk.path_in_schema, (at, end - at), (chunk.encodings, dictionary)))
            at = end
    return found, at or len(_MAGIC)


def _seal(footer: bytes) -> bytes:
    """The footer with the SHA-256 of its bytes at the place that is kept for it, which counts as zeros."""
    at = footer.index(_SEAL) + len(_SEAL)
    before, after = footer[:at], footer[at + len(_UNSEALED) :]
    return before + hashlib.sha256(before + _UNSEALED + after).hexdigest().encode() + after


class _Verified(io.RawIOBase):
    """A file of which only verified ranges can be read: what pyarrow decodes is what was hashed."""

    def __init__(self, size: int) -> None:
        self.size_, self.at = size, 0
        self.held: list[tuple[int, bytes]] = []

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.at

    def seek(self, offset: int, whence: int = 0) -> int:
        self.at = (0, self.at, self.size_)[whence] + offset
        return self.at

    def read(self, n: int = -1) -> bytes:
        n = self.size_ - self.at if n is None or n < 0 else min(n, self.size_ - self.at)
        for start, data in self.held:
            if start <= self.at and self.at + n <= start + len(data):
                found = data[self.at - start : self.at - start + n]
                self.at += n
                return found
        raise OSError(f"bytes {self.at} to {self.at + n} are not among those that were verified")


class ShardFile:
    """An open shard. Each read verifies the hashes of the bytes that it reads; failures are `CorruptError`s that name the file.

    `wanted` is a manifest's entry: the file must be the very one. Without it only the file's agreement with its own footer
    is known.
    """

    def __init__(self, folder: Folder, name: str, wanted: Shard | None = None) -> None:
        self.name = f"{folder}/{name}"
        self.wanted = wanted
        self._lock = threading.Lock()
        try:
            self.source: OpenFile = folder.open(name)
        except FileNotFoundError:
            raise CorruptError(f"{self.name} does not exist. Run its stage again.") from None
        except OSError as e:
            raise InputError(f"{self.name} cannot be opened: {e}. Mend that, and run again.") from e
        tail = self._tail()
        try:
            self._open(tail)
        except _UNREADABLE as e:
            raise self._broken(str(e).split("\n")[0]) from e

    def _broken(self, why: str) -> CorruptError:
        return CorruptError(f"{self.name} is broken: {why}. Delete it and run its stage again.")

    def _read_at(self, offset: int, n: int) -> bytes:
        """Raises `InputError` where the disk or network fails: that says nothing about the file."""
        try:
            return self.source.read_at(offset, n)
        except OSError as e:
            raise InputError(f"{self.name} cannot be read: {e}. Mend that, and run again.") from e

    def _tail(self) -> bytes:
        """The end of the file, its whole footer at least."""
        size, wanted = self.source.size, self.wanted
        if wanted is not None and size != wanted.bytes:
            raise self._broken(f"it has {size} bytes, its manifest says {wanted.bytes}")
        tail = self._read_at(max(0, size - _TAIL), min(size, _TAIL))
        if len(tail) < 12 or tail[-4:] != _MAGIC:
            raise self._broken("it does not end as a Parquet file")
        length = int.from_bytes(tail[-8:-4], "little") + 8
        if length > size:
            raise self._broken("its footer's length is impossible")
        return tail if length <= len(tail) else self._read_at(size - length, length)

    def _open(self, tail: bytes) -> None:
        size, wanted = self.source.size, self.wanted
        length = int.from_bytes(tail[-8:-4], "little") + 8
        footer = tail[-length:]
        self.footer_sha256 = hashlib.sha256(footer).hexdigest()
        if wanted is not None and self.footer_sha256 != wanted.footer_sha256:
            raise self._broken(
                f"its footer is not the one that its manifest names (sha256 found {self.footer_sha256[:12]}…, wanted "
                f"{wanted.footer_sha256[:12]}…): it was altered, or belongs elsewhere"
            )
        if _SEAL not in footer or _seal(footer) != footer:
            raise self._broken("its footer is altered, or not one of slmctl's")
        self._bytes = _Verified(size)
        self._bytes.held = [(size - len(tail), tail)]
        self.file = pq.ParquetFile(self._bytes, page_checksum_verification=False)
        metadata = self.file.metadata
        described = json.loads(metadata.metadata[_META.encode()][len(_SEAL) + len(_UNSEALED) :])
        ranges, end = _chunk_ranges(metadata)
        if end != size - length or (not ranges and self._read_at(0, end) != _MAGIC):
            raise self._broken("data and footer do not make up the whole file")
        self.facts: dict[str, Any] = described["facts"]
        self.groups: int = metadata.num_row_groups
        self.columns = [f.name for f in self.file.schema_arrow]
        self._kinds = {f.name: np.dtype(f.type.to_pandas_dtype()) for f in self.file.schema_arrow}
        self.values = [metadata.row_group(g).num_rows for g in range(self.groups)]
        self._chunks: dict[tuple[int, str], tuple[Range, str]] = {}
        self._forms: dict[tuple[int, str], Form] = {}
        for i, (column, where, form) in enumerate(ranges):
            group = i // len(self.columns)
            self._chunks[group, column] = (where, described["chunks"][column][group])
            self._forms[group, column] = form
        other = differences(asdict(self.described()), {**asdict(wanted), "first_row": 0}) if wanted is not None else []
        if other:
            raise self._broken(f"it is not what its manifest says ({other[0]})")

    def described(self) -> Shard:
        """The manifest's entry of this file, but for its place in the set."""
        return Shard(
            self.name.rpartition("/")[2],
            0,
            self.facts["rows"],
            self.groups,
            self.facts["tokens"],
            self.source.size,
            self.footer_sha256,
        )

    def _verified(self, group: int, columns: list[str]) -> list[tuple[int, bytes]]:
        """(offset, bytes) that hold the chunks of a row group, neighbours read as one. Raises `CorruptError` where they are
        not those that were written."""
        runs: list[list[tuple[str, Range, str]]] = []
        for column in sorted(columns, key=lambda c: self._chunks[group, c][0]):
            where, wanted = self._chunks[group, column]
            if runs and sum(runs[-1][-1][1]) == where[0]:
                runs[-1].append((column, where, wanted))
            else:
                runs.append([(column, where, wanted)])
        found = []
        for run in runs:
            start, stop = run[0][1][0], sum(run[-1][1])
            data = self._read_at(start, stop - start)
            if len(data) != stop - start:
                raise self._broken(f"row group {group} is cut off: {len(data)} bytes of {stop - start}")
            for column, (offset, n), wanted in run:
                if _hash(memoryview(data)[offset - start : offset - start + n]) != wanted or (offset == 0 and data[:4] != _MAGIC):
                    raise self._broken(f"row group {group}, column {column} is not what was written (its hash differs)")
            found.append((start, data))
        return found

    def read(self, group: int, columns: list[str], out: dict[str, np.ndarray] | None = None) -> dict[str, np.ndarray]:
        """Columns of one row group, each [tokens of the group]; in the memory of `out[column]` where that is given. May be
        called from several threads."""
        absent = [c for c in columns if c not in self.columns]
        if absent:
            raise CorruptError(f"{self.name} has no column {absent[0]}; it has {', '.join(self.columns)}.")
        n = self.values[group]
        found = {c: self._room(c, n, (out or {}).get(c)) for c in columns}
        held = self._verified(group, columns)
        try:
            rest = [c for c in columns if not self._unpack(held, group, c, found[c])]
            if rest:
                with self._lock:
                    self._bytes.held = held
                    decoded = _decode(self.file, group, rest)
                    self._bytes.held = []
                for column, values in decoded.items():
                    found[column][:] = values
        except (*_UNREADABLE, ZstdError) as e:
            raise self._broken(f"row group {group}: {e}") from e
        return found

    def _room(self, column: str, n: int, given: np.ndarray | None) -> np.ndarray:
        kind = self._kinds[column]
        if given is None:
            return np.empty(n, kind)
        if given.shape != (n,) or given.dtype != kind:
            raise self._broken(f"column {column} has {n} values of {kind}, wanted {given.size} of {given.dtype}")
        return given

    def _unpack(self, held: list[tuple[int, bytes]], group: int, column: str, out: np.ndarray) -> bool:
        """Whether the chunk is of a kind that needs no pyarrow; then `out` has its values."""
        (offset, n), _ = self._chunks[group, column]
        start, data = next(h for h in held if h[0] <= offset < h[0] + len(h[1]))
        skipped = len(_MAGIC) if offset == 0 else 0
        chunk = memoryview(data)[offset - start + skipped : offset - start + n]
        return chunks.decode(chunk, *self._forms[group, column], out)

    def verify(self) -> None:
        """Reads every byte and compares it with the hashes."""
        for group in range(self.groups):
            self._verified(group, self.columns)

    def close(self) -> None:
        self.file.close()
        self.source.close()


def whole_shard(folder: Folder, name: str, bound: dict[str, Any]) -> Shard | None:
    """The description of a shard that is there already, agrees with its own hashes to the last byte and has `bound`
    among its facts; None where there is none such."""
    try:
        file = ShardFile(folder, name)
        try:
            if any(file.facts.get(k) != v for k, v in bound.items()):
                return None
            file.verify()
            return file.described()
        finally:
            file.close()
    except CorruptError:
        return None
