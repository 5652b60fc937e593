"""Files of text as they lie on disk: which kind, their uncompressed bytes, and clear errors for broken ones."""

from __future__ import annotations

import gzip
import io
import zlib
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import zstandard

from slmctl.errors import InputError

COMPRESSED = (".gz", ".zst")
BLOCK = 1 << 20


def kind_of(file: str) -> str:
    """jsonl, txt or parquet, from the name. Raises `InputError` for any other."""
    name = file.removesuffix(".gz").removesuffix(".zst")
    for suffix, kind in {".jsonl": "jsonl", ".json": "jsonl", ".ndjson": "jsonl", ".txt": "txt"}.items():
        if name.endswith(suffix):
            return kind
    if file.endswith((".parquet", ".pq")):
        return "parquet"
    raise InputError(f"{file}: unknown kind of file. Known: .jsonl and .txt (also .gz, .zst), .parquet.")


class reading:  # noqa: N801 - used as `with reading(file)`
    """Turns what a broken or unreadable file raises into an `InputError` that names it."""

    def __init__(self, file: str) -> None:
        self.file = file

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, trace: object) -> None:
        broken = (EOFError, zlib.error, gzip.BadGzipFile, zstandard.ZstdError, pa.ArrowInvalid)
        if isinstance(e, broken):
            raise InputError(f"{self.file} is broken or cut off ({e}). Fetch it again or leave it out.") from e
        if isinstance(e, OSError):
            raise InputError(f"cannot read {self.file}: {e}") from e


class _ZstdReader(io.RawIOBase):
    """The bytes of a .zst file of any number of frames. Unlike zstandard's own reader it refuses a frame cut short."""

    def __init__(self, file: str) -> None:
        self._file = open(file, "rb")
        self._frame: Any = None
        self._input = self._output = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._output:
            self._input = self._input or self._file.read(BLOCK // 8)
            if not self._input:
                if self._frame is not None:
                    raise EOFError("the last frame ends too early")
                return 0
            self._frame = self._frame or zstandard.ZstdDecompressor(max_window_size=2**31).decompressobj()
            self._output = self._frame.decompress(self._input)
            self._input = b""
            if self._frame.eof:
                self._input, self._frame = self._frame.unused_data, None
        n = min(len(buffer), len(self._output))
        buffer[:n], self._output = self._output[:n], self._output[n:]
        return n

    def close(self) -> None:
        self._file.close()
        super().close()


def open_text(file: str) -> BinaryIO:
    """The uncompressed bytes of a line file."""
    if file.endswith(".gz"):
        return io.BufferedReader(gzip.open(file, "rb"), BLOCK)
    if file.endswith(".zst"):
        return io.BufferedReader(_ZstdReader(file), BLOCK)
    return open(file, "rb", buffering=BLOCK)


def skip(stream: BinaryIO, file: str, n: int) -> None:
    if not file.endswith(COMPRESSED):
        stream.seek(n)
        return
    while n > 0:
        got = len(stream.read(min(n, BLOCK)))
        if not got:
            return
        n -= got


def text_size(file: str) -> int:
    if not file.endswith(COMPRESSED):
        return Path(file).stat().st_size
    size = 0
    with reading(file), open_text(file) as stream:
        while block := stream.read(BLOCK):
            size += len(block)
    return size
