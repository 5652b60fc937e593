"""Folders of shards: a local (or shared) directory, or a prefix of an object store, behind one small interface.

Publishing is atomic and the first one wins, so that any number of workers may make the same file. `local_storage` and
`remote_storage` say how.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slmctl.system.errors import CorruptError


def is_url(place: str) -> bool:
    """Whether a path is a URL that fsspec opens (`s3://…`, `gs://…`, `hf://…`, `memory://…`)."""
    return "://" in place


def is_private(place: str) -> bool:
    """Whether a place is in this process's memory, so that no other process sees it."""
    return "memory://" in place


@dataclass(frozen=True)
class Entry:
    """A file of a folder: bytes, and when it was last modified (seconds since the epoch; 0 where that is not known)."""

    size: int
    modified: float


class OpenFile(ABC):
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
        if is_url(path):
            from slmctl.system.remote_storage import RemoteFolder

            return RemoteFolder(path)
        from slmctl.system.local_storage import LocalFolder

        return LocalFolder(Path(path))

    @abstractmethod
    def __truediv__(self, name: str) -> Folder: ...

    @abstractmethod
    def listing(self) -> dict[str, Entry]:
        """The files directly in it, temporaries included; empty where the folder is absent."""

    @abstractmethod
    def read(self, name: str) -> bytes:
        """Raises `FileNotFoundError`."""

    @abstractmethod
    def open(self, name: str) -> OpenFile:
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
