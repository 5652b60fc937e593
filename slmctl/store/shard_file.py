"""Reading a shard: each read verifies the hashes of the bytes that it reads, and nothing is parsed before that."""

from __future__ import annotations

import hashlib
import io
import json
import threading
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from zstandard import ZstdError

from slmctl.store import chunks
from slmctl.store.manifest import Shard, differences
from slmctl.store.shard_format import MAGIC, META, SEAL, UNSEALED, content_hash, decode_group, seal
from slmctl.system.errors import CorruptError, InputError
from slmctl.system.storage import Folder, OpenFile

_TAIL = 2**16
"""Bytes at the end of a file that are read first: most footers are shorter."""
_UNREADABLE = (OSError, pa.ArrowException, KeyError, ValueError, TypeError, IndexError, OverflowError)
"""What a damaged file makes pyarrow raise."""

Range = tuple[int, int]
"""Offset and length."""

Form = tuple[tuple[str, ...], int]
"""A chunk's encodings, and the bytes of its dictionary page."""


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
        if len(tail) < 12 or tail[-4:] != MAGIC:
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
        if SEAL not in footer or seal(footer) != footer:
            raise self._broken("its footer is altered, or not one of slmctl's")
        self._bytes = _Verified(size)
        self._bytes.held = [(size - len(tail), tail)]
        self.file = pq.ParquetFile(self._bytes, page_checksum_verification=False)
        metadata = self.file.metadata
        described = json.loads(metadata.metadata[META.encode()][len(SEAL) + len(UNSEALED) :])
        ranges, end = _chunk_ranges(metadata)
        if end != size - length or (not ranges and self._read_at(0, end) != MAGIC):
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
                chunk = memoryview(data)[offset - start : offset - start + n]
                if content_hash(chunk) != wanted or (offset == 0 and data[:4] != MAGIC):
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
                    decoded = decode_group(self.file, group, rest)
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
        skipped = len(MAGIC) if offset == 0 else 0
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


def _chunk_ranges(metadata: pq.FileMetaData) -> tuple[list[tuple[str, Range, Form]], int]:
    """(column, range, form) of each chunk in file order, the leading magic bytes counted to the first; and where the footer
    begins. Raises `ValueError` where chunks do not lie end to end."""
    found: list[tuple[str, Range, Form]] = []
    at = 0
    for g in range(metadata.num_row_groups):
        group = metadata.row_group(g)
        for c in range(metadata.num_columns):
            chunk = group.column(c)
            start = at or len(MAGIC)
            dictionary = chunk.data_page_offset - chunk.dictionary_page_offset if chunk.has_dictionary_page else 0
            if chunk.data_page_offset - dictionary != start:
                raise ValueError("column chunks do not lie end to end")
            end = start + chunk.total_compressed_size
            found.append((chunk.path_in_schema, (at, end - at), (chunk.encodings, dictionary)))
            at = end
    return found, at or len(MAGIC)


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
