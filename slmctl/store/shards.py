"""Shards on disk: Parquet with one value a token in flat required columns.

Encodings were measured, not guessed: BYTE_STREAM_SPLIT with zstd level 1 for ids and losses, DELTA_BINARY_PACKED for
the document column (long constant runs), one page a row group, page checksums written and verified.
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from slmctl.errors import CorruptError
from slmctl.files import publishing

GROUP_TOKENS = 2**18
_ENCODINGS = {"document": "DELTA_BINARY_PACKED"}
_META = "slmctl"
_UNREADABLE = (OSError, pa.ArrowException, KeyError, ValueError, TypeError)
"""What a damaged file makes pyarrow raise."""


def rows_per_group(seq_len: int) -> int:
    """Rows of a Parquet row group: as many as make about 2^18 tokens."""
    return max(1, GROUP_TOKENS // seq_len)


class ShardWriter:
    """Streams one shard, a row group at a time; the file appears, verified, when the `with` block ends without an error.

    `columns` gives name to NumPy type, `group_tokens` the size of a full row group. `facts` (any JSON), set before the
    block ends, goes to the Parquet footer and is read by `shard_facts`.
    """

    def __init__(self, path: Path, columns: dict[str, str], group_tokens: int) -> None:
        self.path = path
        self.types = {n: np.dtype(t) for n, t in columns.items()}
        self.schema = pa.schema([pa.field(n, pa.from_numpy_dtype(t), nullable=False) for n, t in self.types.items()])
        self.group_tokens = group_tokens
        self.facts: dict[str, Any] = {}
        self._checks: list[int] = []
        self._publishing = publishing(path, self._verify)

    def __enter__(self) -> ShardWriter:
        temporary = self._publishing.__enter__()
        self._writer = pq.ParquetWriter(
            temporary,
            self.schema,
            compression="zstd",
            compression_level=1,
            use_dictionary=False,
            write_statistics=False,
            column_encoding={n: _ENCODINGS.get(n, "BYTE_STREAM_SPLIT") for n in self.types},
            write_page_checksum=True,
            data_page_size=2**30,
            max_rows_per_page=self.group_tokens,
        )
        return self

    def write(self, **columns: np.ndarray) -> None:
        """Adds one row group; each column is [tokens of the group]."""
        group = {n: np.ascontiguousarray(columns[n], dtype=t) for n, t in self.types.items()}
        self._checks.append(_checksum(group))
        table = pa.table([pa.array(c) for c in group.values()], schema=self.schema)
        self._writer.write_table(table, row_group_size=self.group_tokens)

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, trace: TracebackType | None) -> None:
        try:
            facts = json.dumps({"facts": self.facts, "crc32": self._checks}, sort_keys=True)
            self._writer.add_key_value_metadata({_META: f"{zlib.crc32(facts.encode()):08x}{facts}"})
            self._writer.close()
        except Exception as late:
            if kind is None:
                self._publishing.__exit__(type(late), late, late.__traceback__)
                raise
        self._publishing.__exit__(kind, e, trace)

    def _verify(self, temporary: Path) -> None:
        with pq.ParquetFile(temporary, page_checksum_verification=True) as file:
            found = [_checksum(_read(file, g, list(self.types))) for g in range(file.num_row_groups)]
        if found != self._checks:
            raise CorruptError(f"{self.path}: what was read back differs from what was written. Check disk and memory.")


def _checksum(group: dict[str, np.ndarray]) -> int:
    crc = 0
    for column in group.values():
        crc = zlib.crc32(column.tobytes(), crc)
    return crc


def _read(file: pq.ParquetFile, group: int, columns: list[str]) -> dict[str, np.ndarray]:
    table = file.read_row_group(group, columns=columns, use_threads=False)
    return {n: table.column(n).combine_chunks().to_numpy(zero_copy_only=False) for n in columns}


def _footer(path: Path) -> dict[str, Any] | None:
    """Facts and value checksums in a shard's footer; None where the file is absent, damaged or not a shard of ours."""
    try:
        with pq.ParquetFile(path) as file:
            text = (file.metadata.metadata or {})[_META.encode()]
            if int(text[:8], 16) != zlib.crc32(text[8:]):
                return None
            footer: dict[str, Any] = json.loads(text[8:])
            return {**footer, "groups": file.num_row_groups}
    except _UNREADABLE:
        return None


def shard_facts(path: Path) -> dict[str, Any] | None:
    """The facts in a shard's footer; None where the file is absent, damaged or not a shard of ours."""
    footer = _footer(path)
    return {**footer["facts"], "groups": footer["groups"]} if footer is not None else None


def whole_shard(path: Path, bound: dict[str, Any]) -> dict[str, Any] | None:
    """The facts of a shard that is there already, holds the values that were written, and has `bound` among its facts;
    else None."""
    footer, facts = _footer(path), shard_facts(path)
    if footer is None or facts is None or any(facts.get(k) != v for k, v in bound.items()):
        return None
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            found = [_checksum(_read(file, g, file.schema_arrow.names)) for g in range(file.num_row_groups)]
    except _UNREADABLE:
        return None
    return facts if found == footer["crc32"] else None


class ShardFile:
    """An open shard. Every read verifies page checksums; failures are `CorruptError`s that name the file.

    Page checksums do not cover the footer: whoever opens a file compares its content hash first, as `ShardSet` does.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.file = pq.ParquetFile(path, page_checksum_verification=True)
        except _UNREADABLE as e:
            raise CorruptError(f"{path} cannot be read ({e}). Delete it and run its stage again.") from e

    def read(self, group: int, columns: list[str]) -> dict[str, np.ndarray]:
        """Columns of one row group, each [tokens of the group]."""
        try:
            return _read(self.file, group, columns)
        except _UNREADABLE as e:
            raise CorruptError(f"{self.path}, row group {group}: {e}. Delete the file and run its stage again.") from e

    def close(self) -> None:
        self.file.close()
