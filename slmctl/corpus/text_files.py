"""Files of text as they lie on a disk or behind a URL: which kind, their uncompressed bytes, and clear errors for broken ones."""

from __future__ import annotations

import gzip
import io
import os
import zlib
from pathlib import Path
from typing import Any, BinaryIO, cast

import pyarrow as pa
import zstandard

from slmctl.system.errors import InputError, SlmError
from slmctl.system.file_signatures import HEAD, not_text
from slmctl.system.hashes import HashCache
from slmctl.system.remote_storage import filesystem, remote_errors
from slmctl.system.repair_hints import to_parquet
from slmctl.system.storage import is_url

COMPRESSED = (".gz", ".zst")
BLOCK = 1 << 20
SAMPLE = 1 << 23
"""Bytes of text by which the size of a large compressed file is estimated."""


def kind_of(file: str) -> str:
    """jsonl, txt or parquet, from the name. Raises `InputError` for any other."""
    name = file.removesuffix(".gz").removesuffix(".zst")
    for suffix, kind in {".jsonl": "jsonl", ".json": "jsonl", ".ndjson": "jsonl", ".txt": "txt"}.items():
        if name.endswith(suffix):
            return kind
    if file.endswith((".parquet", ".pq")):
        return "parquet"
    cure = f" {to_parquet(file)}." if file.endswith((".csv", ".tsv", ".tab")) else ""
    raise InputError(f"{file}: unknown kind of file. Known: .jsonl and .txt (also .gz, .zst), .parquet.{cure}")


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
        if is_url(self.file) and isinstance(e, Exception) and not isinstance(e, SlmError):
            raise InputError(f"cannot read {self.file}: {type(e).__name__}: {e}") from e


class _ZstdReader(io.RawIOBase):
    """The bytes of a .zst file of any number of frames. Unlike zstandard's own reader it refuses a frame cut short."""

    def __init__(self, file: str) -> None:
        self._file = open_raw(file)
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


def is_file(place: str) -> bool:
    """Whether a path or URL names a file."""
    return _remote_type(place) == "file" if is_url(place) else os.path.isfile(place)


def is_folder(place: str) -> bool:
    """Whether a path or URL names a folder."""
    return _remote_type(place) == "directory" if is_url(place) else os.path.isdir(place)


def _remote_type(url: str) -> str | None:
    fs, path = filesystem(url)
    try:
        with remote_errors(url):
            return str(fs.info(path)["type"])
    except FileNotFoundError:
        return None


def open_raw(file: str) -> BinaryIO:
    """The bytes of a file as they are stored."""
    if not is_url(file):
        return open(file, "rb", buffering=BLOCK)
    fs, path = filesystem(file)
    with remote_errors(file):
        return cast(BinaryIO, fs.open(path, "rb", block_size=8 * BLOCK))


def stored_size(file: str) -> int:
    if not is_url(file):
        return Path(file).stat().st_size
    fs, path = filesystem(file)
    with remote_errors(file):
        return int(fs.info(path)["size"])


def stamp(file: str) -> str:
    """Size and modification time of a local file, by which a change while it is read is noticed; empty for a remote one."""
    if is_url(file) or not Path(file).is_file():
        return ""
    stat = Path(file).stat()
    return f"{stat.st_size}:{stat.st_mtime_ns}"


def stamp_of_hash(file: str, hashes: HashCache) -> str:
    """As `stamp`, of when the file was last hashed, so that any change since then is noticed; empty where it was not."""
    found = None if is_url(file) else hashes.known.get(str(Path(file).resolve()))
    return f"{found[0]}:{found[1]}" if found is not None else ""


def content_id(file: str, hashes: HashCache) -> str:
    """What tells a file's content: SHA-256 of a local file; of a remote one what its store says of the content (the
    entity tag, or a hash), else SHA-256 too."""
    if not is_url(file):
        return hashes.sha256(Path(file))
    fs, path = filesystem(file)
    with remote_errors(file):
        info = fs.info(path)
        for key in ("sha256", "md5Hash", "crc32c", "blob_id", "ETag", "etag"):
            if info.get(key):
                return f"{key.lower()}:{str(info[key]).strip(chr(34))}:{info['size']}"
        return hashes.stream(open_raw(file))


def open_text(file: str, look: bool = True) -> BinaryIO:
    """The uncompressed bytes of a line file. Raises `InputError` where the first ones are not those of UTF-8 text, unless
    they are not to be looked at, as by those who read from farther on."""
    stream = _open_text(file)
    if look:
        try:
            if isinstance(stream, io.BufferedReader):
                head = stream.peek(HEAD)[:HEAD]
            else:
                head = stream.read(HEAD)
                stream.seek(0)
            if why := not_text(head, file):
                raise InputError(f"{file} {why}.")
        except BaseException:
            stream.close()
            raise
    return stream


def _open_text(file: str) -> BinaryIO:
    if file.endswith(".gz"):
        return io.BufferedReader(cast(io.RawIOBase, gzip.GzipFile(fileobj=open_raw(file))), BLOCK)
    if file.endswith(".zst"):
        return io.BufferedReader(_ZstdReader(file), BLOCK)
    return open_raw(file)


def skip(stream: BinaryIO, file: str, n: int) -> None:
    """Moves a stream of `open_text` n bytes on."""
    if not file.endswith(COMPRESSED):
        stream.seek(n, io.SEEK_CUR)
        return
    while n > 0:
        got = len(stream.read(min(n, BLOCK)))
        if not got:
            return
        n -= got


def text_size(file: str) -> tuple[int, bool]:
    """Uncompressed bytes, and whether that is exact: of a large compressed file it is estimated from its first megabytes."""
    stored = stored_size(file)
    if not file.endswith(COMPRESSED):
        return stored, True
    with reading(file), open_text(file) as stream:
        head = 0
        while head < SAMPLE and (block := stream.read(BLOCK)):
            head += len(block)
        if head < SAMPLE:
            return head, True
        compressed = zlib.compress if file.endswith(".gz") else zstandard.ZstdCompressor(level=3).compress
    with reading(file), open_text(file) as stream:
        sample = stream.read(SAMPLE)
    return max(head, round(stored * len(sample) / max(1, len(compressed(sample))))), False
