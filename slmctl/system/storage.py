"""Folders of shards: a local (or shared) directory, or a prefix of an object store, behind one small interface.

Publishing is atomic and the first one wins, so that any number of workers may make the same file. Locally a file is
written beside its final name, fsynced and linked; on an object store it is put whole, on the condition that it is absent.
"""

from __future__ import annotations

import errno
import inspect
import json
import os
import tempfile
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, cast

from slmctl.system.errors import CorruptError, InputError, SlmError
from slmctl.system.files import disk_errors, fsync_dir, is_abandoned, is_temporary, temporary_beside


def is_url(place: str) -> bool:
    """Whether a path is a URL that fsspec opens (`s3://…`, `gs://…`, `hf://…`, `memory://…`)."""
    return "://" in place


def is_private(place: str) -> bool:
    """Whether a place is in this process's memory, so that no other process sees it."""
    return "memory://" in place


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


@dataclass(frozen=True)
class Entry:
    """A file of a folder: bytes, and when it was last modified (seconds since the epoch; 0 where that is not known)."""

    size: int
    modified: float


class Source(ABC):
    """An open file, read at any offset by any thread."""

    name: str
    size: int

    @abstractmethod
    def read_at(self, offset: int, n: int) -> bytes:
        """n bytes from `offset`; fewer at the end of the file."""

    def close(self) -> None:
        return


class Folder(ABC):
    """Files by name. `str()` of a folder is its path or URL."""

    @staticmethod
    def at(place: str | Path | Folder) -> Folder:
        """The folder at a path or URL; it need not exist."""
        if isinstance(place, Folder):
            return place
        path = str(place).removeprefix("file://")
        return RemoteFolder(path) if is_url(path) else LocalFolder(Path(path))

    @abstractmethod
    def __truediv__(self, name: str) -> Folder: ...

    @abstractmethod
    def listing(self) -> dict[str, Entry]:
        """The files directly in it, temporaries included; empty where the folder is absent."""

    @abstractmethod
    def read(self, name: str) -> bytes:
        """Raises `FileNotFoundError`."""

    @abstractmethod
    def open(self, name: str) -> Source:
        """Raises `FileNotFoundError`."""

    @abstractmethod
    def put(self, name: str, data: bytes, replace: bool = False) -> bool:
        """Publishes a small file. Returns False where one was there already and stays."""

    @abstractmethod
    def temporary(self, name: str) -> Path:
        """A local path to write `name` to before it is published by `publish`."""

    @abstractmethod
    def writes_at(self, name: str) -> Path:
        """The place on a disk that runs full when `name` is written."""

    @abstractmethod
    def publish(self, temporary: Path, name: str) -> bool:
        """Makes a finished temporary appear under its name. Returns False where one was there already and stays.

        Raises `FileNotFoundError` where the temporary was swept away meanwhile.
        """

    @abstractmethod
    def remove(self, name: str) -> None:
        """Removes a file; no error where it is absent."""

    @abstractmethod
    def set_aside(self, name: str) -> str | None:
        """Takes a broken file out of the way; keeps it under another name, which is returned, where that is cheap."""

    def put_back(self, aside: str, name: str) -> None:
        """Undoes `set_aside`; what was published meanwhile stays. Raises `FileNotFoundError` where nothing is kept aside."""
        raise FileNotFoundError(f"{self}/{aside} is not there to be put back as {name}")

    def exists(self, name: str) -> bool:
        return name in self.listing()

    def temporaries(self) -> dict[str, bool]:
        """Unpublished files, and whether their writer is gone."""
        return {}

    def sweep(self) -> list[str]:
        """Removes temporaries whose writer is gone. Returns their names."""
        return []

    def put_json(self, name: str, data: Any, replace: bool = False) -> bool:
        text = json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        return self.put(name, text.encode("utf-8"), replace)

    def get_json(self, name: str) -> Any:
        """Raises `FileNotFoundError`, or `CorruptError` where it is not JSON."""
        data = self.read(name)
        try:
            return json.loads(data)
        except ValueError as e:
            raise CorruptError(f"{self}/{name} is not valid JSON ({e}). Delete it and run the stage that writes it again.") from e


class LocalSource(Source):
    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self._file = open(path, "rb", buffering=0)  # closed with the last reference to it, in C: no signal is lost there
        self.size = os.fstat(self._file.fileno()).st_size

    def read_at(self, offset: int, n: int) -> bytes:
        fd = self._file.fileno()
        data = os.pread(fd, n, offset)
        while len(data) < n and (more := os.pread(fd, n - len(data), offset + len(data))):
            data += more
        return data

    def close(self) -> None:
        self._file.close()


class LocalFolder(Folder):
    def __init__(self, path: Path) -> None:
        self.path = path

    def __str__(self) -> str:
        return str(self.path)

    def __truediv__(self, name: str) -> LocalFolder:
        return LocalFolder(self.path / name)

    def listing(self) -> dict[str, Entry]:
        found = {}
        with suppress(FileNotFoundError, NotADirectoryError), os.scandir(self.path) as entries:
            for e in entries:
                with suppress(FileNotFoundError):  # published or swept meanwhile
                    if e.is_file(follow_symlinks=True):
                        found[e.name] = Entry(e.stat().st_size, e.stat().st_mtime)
        return found

    def exists(self, name: str) -> bool:
        return (self.path / name).is_file()

    def read(self, name: str) -> bytes:
        return (self.path / name).read_bytes()

    def open(self, name: str) -> Source:
        return LocalSource(self.path / name)

    def put(self, name: str, data: bytes, replace: bool = False) -> bool:
        with disk_errors(self.path / name):
            temporary = self.temporary(name)
            try:
                temporary.write_bytes(data)
                if not replace:
                    return self.publish(temporary, name)
                _fsync(temporary)
                os.replace(temporary, self.path / name)
                fsync_dir(self.path)
                return True
            finally:
                temporary.unlink(missing_ok=True)

    def temporary(self, name: str) -> Path:
        self.path.mkdir(parents=True, exist_ok=True)
        return temporary_beside(self.path / name)

    def writes_at(self, name: str) -> Path:
        return self.path / name

    def publish(self, temporary: Path, name: str) -> bool:
        final = self.path / name
        _fsync(temporary)
        try:
            os.link(temporary, final)
        except FileExistsError:
            return False
        except FileNotFoundError:
            raise
        except OSError as e:
            if e.errno not in _NO_LINKS:
                raise
            if final.exists():
                return False
            os.rename(temporary, final)
        fsync_dir(self.path)
        return True

    def remove(self, name: str) -> None:
        (self.path / name).unlink(missing_ok=True)

    def set_aside(self, name: str) -> str | None:
        aside = f"{name}.broken-{uuid.uuid4().hex[:8]}"  # which no glob of *.parquet takes in
        try:
            os.rename(self.path / name, self.path / aside)
        except FileNotFoundError:
            return None
        return aside

    def put_back(self, aside: str, name: str) -> None:
        self.publish(self.path / aside, name)
        self.remove(aside)

    def temporaries(self) -> dict[str, bool]:
        with suppress(FileNotFoundError, NotADirectoryError):
            return {f.name: is_abandoned(f) for f in self.path.iterdir() if is_temporary(f)}
        return {}

    def sweep(self) -> list[str]:
        swept = [name for name, abandoned in self.temporaries().items() if abandoned]
        for name in swept:
            self.remove(name)
        return swept


_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV)
"""What a file system without hard links says."""


def _fsync(path: Path) -> None:
    with open(path, "rb") as f:
        os.fsync(f.fileno())


class RemoteSource(Source):
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

    def open(self, name: str) -> Source:
        return RemoteSource(self._fs, f"{self._path}/{name}", f"{self.url}/{name}")

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
