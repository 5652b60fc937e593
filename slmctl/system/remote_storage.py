"""A prefix of an object store, by fsspec: a file is put whole, on the condition that it is absent."""

from __future__ import annotations

import inspect
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any, cast

from slmctl.system.errors import CorruptError, InputError, SlmError
from slmctl.system.storage import Entry, Folder, OpenFile
from slmctl.system.temporaries import is_abandoned, temporary_beside


def filesystem(url: str) -> tuple[Any, str]:
    """The fsspec file system of a URL, and the path within it. Raises `InputError` where there is none."""
    from fsspec.core import url_to_fs

    try:
        fs, path = url_to_fs(url, use_listings_cache=False) if url.startswith("s3") else url_to_fs(url)
    except (ImportError, ValueError) as e:
        extra = {"s3": " Install the extra: pip install 'slmctl[s3]'.", "gs": " Install the extra: pip install 'slmctl[gcs]'."}
        raise InputError(f"{url} cannot be opened: {e}.{extra.get(url.partition('://')[0], '')}") from e
    return fs, str(path)


@contextmanager
def remote_errors(url: str) -> Iterator[None]:
    """Turns what a remote store raises into one clear message; an absent file stays a `FileNotFoundError`."""
    try:
        yield
    except (FileNotFoundError, FileExistsError, SlmError):
        raise
    except PermissionError as e:
        raise InputError(f"{url}: access denied ({e}). Check the credentials in the environment.") from e
    except Exception as e:  # each store raises its own kinds
        raise InputError(f"{url} cannot be reached ({type(e).__name__}: {e}).") from e


class RemoteFile(OpenFile):
    def __init__(self, fs: Any, path: str, url: str) -> None:
        self._fs, self._path, self.name = fs, path, url
        with remote_errors(url):
            self.size = int(fs.info(path)["size"])

    def read_at(self, offset: int, n: int) -> bytes:
        stop = min(offset + n, self.size)
        if stop <= offset:
            return b""
        try:
            with remote_errors(self.name):
                return cast(bytes, self._fs.cat_file(self._path, start=offset, end=stop))
        except FileNotFoundError:
            raise CorruptError(f"{self.name} was deleted while it was read. Run its stage again to make it anew.") from None


class RemoteFolder(Folder):
    """A prefix of an object store, where a put is whole or absent. What is not yet put lies in the local folder for temporary
    files (`TMPDIR`)."""

    def __init__(self, url: str) -> None:
        self.url = url if url.endswith("://") else url.rstrip("/")
        self._fs, path = filesystem(self.url)
        self._path = path.rstrip("/")
        self._spool = Path(tempfile.gettempdir())

    def __str__(self) -> str:
        return self.url

    def __truediv__(self, name: str) -> RemoteFolder:
        return RemoteFolder(f"{self.url}/{name}")

    def listing(self) -> dict[str, Entry]:
        try:
            with remote_errors(self.url):
                self._fs.invalidate_cache()
                found = self._fs.ls(self._path, detail=True)
        except FileNotFoundError:
            return {}
        named = ((f["name"].rpartition("/")[2], f) for f in found if f["type"] == "file")
        return {name: Entry(int(f["size"]), _modified(f)) for name, f in named if name}  # none: a marker of the folder itself

    def exists(self, name: str) -> bool:
        try:
            with remote_errors(self.url):
                self._fs.invalidate_cache()
                return bool(self._fs.info(f"{self._path}/{name}")["type"] == "file")
        except FileNotFoundError:
            return False

    def read(self, name: str) -> bytes:
        with remote_errors(f"{self.url}/{name}"):
            return cast(bytes, self._fs.cat_file(f"{self._path}/{name}"))

    def open(self, name: str) -> OpenFile:
        return RemoteFile(self._fs, f"{self._path}/{name}", f"{self.url}/{name}")

    def put(self, name: str, data: bytes, replace: bool = False) -> bool:
        for pause in (0.1, 0.3, 1.0):
            try:
                return self._put(name, data, replace)
            except InputError as e:
                if _http_status(e) != 409:  # two conditional puts met, and one of them has to ask again
                    raise
                time.sleep(pause)
        return self._put(name, data, replace)

    def _put(self, name: str, data: bytes, replace: bool) -> bool:
        path, place = f"{self._path}/{name}", f"{self.url}/{name}"
        try:
            with remote_errors(place):
                if not replace and _puts_on_condition(self._fs):
                    self._fs.pipe_file(path, data, mode="create")
                elif replace or not self.exists(name):
                    self._fs.pipe_file(path, data)
                else:
                    return False
        except FileExistsError:
            return False
        except FileNotFoundError as e:
            raise InputError(f"{place} cannot be written: {e}. Correct store_dir.") from e
        except InputError as e:
            if not replace and _http_status(e) == 412:  # a failed condition, as stores other than Amazon's tell it
                return False
            raise
        return True

    def temporary(self, name: str) -> Path:
        return temporary_beside(self._spool / f"slmctl-{name}")

    def writes_at(self, name: str) -> Path:
        return self._spool / name

    def publish(self, temporary: Path, name: str) -> bool:
        data = temporary.read_bytes()
        won = self.put(name, data)
        if won:
            with remote_errors(f"{self.url}/{name}"):
                self._fs.invalidate_cache()
                found = int(self._fs.info(f"{self._path}/{name}")["size"])
            if found != len(data):
                raise CorruptError(f"{self.url}/{name}: {len(data)} bytes were put, {found} arrived. Delete it and run again.")
        return won

    def remove(self, name: str) -> None:
        with suppress(FileNotFoundError), remote_errors(f"{self.url}/{name}"):
            self._fs.rm_file(f"{self._path}/{name}")

    def set_aside(self, name: str) -> None:
        self.remove(name)

    def sweep(self) -> list[str]:
        swept = [f for f in self._spool.glob(".tmp-slmctl-*") if is_abandoned(f)]
        for file in swept:
            with suppress(OSError):  # another user's
                file.unlink()
        return [f.name for f in swept]


def _puts_on_condition(fs: Any) -> bool:
    """Whether a file system's `pipe_file` takes `mode="create"` itself; one that takes any keyword may well ignore it, and
    fsspec's own only looks before it writes."""
    from fsspec import AbstractFileSystem

    method = fs._pipe_file if hasattr(fs, "_pipe_file") else fs.pipe_file
    own = getattr(method, "__func__", method) is not AbstractFileSystem.pipe_file
    return own and "mode" in inspect.signature(method).parameters


def _http_status(e: BaseException | None) -> int | None:
    """The HTTP status that an error, or one that it came from, tells of (as botocore's errors do)."""
    while e is not None:
        response = getattr(e, "response", None)
        if isinstance(response, dict):
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
            return status if isinstance(status, int) else None
        e = e.__cause__
    return None


def _modified(info: dict[str, Any]) -> float:
    for key in ("LastModified", "mtime", "updated", "last_modified", "created"):
        value = info.get(key)
        if isinstance(value, datetime):
            return value.timestamp()
        if isinstance(value, int | float):
            return float(value)
        if isinstance(value, str):
            with suppress(ValueError):
                return datetime.fromisoformat(value).timestamp()
    return 0.0
