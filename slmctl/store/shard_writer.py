"""Writing a shard: streamed, read back, and published only where what is read is what was written."""

from __future__ import annotations

import json
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from slmctl.store import chunks
from slmctl.store.footer import footer
from slmctl.store.manifest import Shard
from slmctl.store.shard_file import ShardFile
from slmctl.store.shard_format import MAGIC, META, SEAL, UNSEALED, content_hash, decode_group, seal
from slmctl.system.errors import CorruptError
from slmctl.system.files import disk_errors
from slmctl.system.local_storage import LocalFolder
from slmctl.system.storage import Folder

_NOT_WHAT_WAS_WRITTEN = "what was read back is not what was written. Check disk and memory."


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
                self._file.write(MAGIC)
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
            magic = MAGIC if not self._groups and not described else b""  # counts as a part of the first chunk
            self._chunk_hashes[name].append(content_hash(magic + pages))
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
        return seal(footer(self.types, self._groups, {META: SEAL + UNSEALED + text.encode()}))

    def _finish(self) -> None:
        """Reads back all that was written, by pyarrow and as a reader will, and compares it with what it was."""
        with pq.ParquetFile(self._temporary, page_checksum_verification=True) as file:
            for group, wanted in enumerate(self._written):
                if _hashes(decode_group(file, group, list(self.types))) != wanted:
                    raise CorruptError(f"{self.folder}/{self.name}: {_NOT_WHAT_WAS_WRITTEN}")
        finished = ShardFile(LocalFolder(self._temporary.parent), self._temporary.name)
        finished.described()
        for group, wanted in enumerate(self._written):
            if _hashes(finished.read(group, list(self.types))) != wanted:
                raise CorruptError(f"{self.folder}/{self.name}: {_NOT_WHAT_WAS_WRITTEN}")
        finished.close()


def _hashes(group: dict[str, np.ndarray]) -> list[str]:
    return [content_hash(np.ascontiguousarray(c).view(np.uint8)) for c in group.values()]
