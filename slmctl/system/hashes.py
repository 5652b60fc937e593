"""Content hashes: of plain data, and of files, which are read once for as long as they stay the same."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from slmctl.system.console import waiting
from slmctl.system.errors import SlmError
from slmctl.system.files import read_json, write_json


def sha256_json(data: Any) -> str:
    """Hash of `data` in canonical JSON: equal content, equal hash."""
    return hashlib.sha256(json.dumps(data, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def sha256_file(path: Path) -> str:
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


class HashCache:
    """Content hashes of files, kept between runs for as long as a file's size and modification time stay the same."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.known: dict[str, list[Any]] = {}
        self.unsaved = 0
        self.beat: Callable[[], None] = lambda: None
        """Called now and then, as a sign of life."""
        self.load()

    def load(self) -> None:
        """Takes in what other processes have hashed and kept."""
        with suppress(SlmError):
            found = read_json(self.path)
            self.known |= found if isinstance(found, dict) else {}

    def knows(self, file: Path) -> bool:
        """Whether the hash is known without reading the file."""
        stat = file.stat()
        found = self.known.get(str(file.resolve()))
        return found is not None and found[:2] == [stat.st_size, stat.st_mtime_ns]

    def sha256(self, file: Path) -> str:
        stat = file.stat()
        key = str(file.resolve())
        if self.knows(file):
            return str(self.known[key][2])
        with waiting(f"hashing {file}"):
            digest = self.stream(open(file, "rb"))
        self.known[key] = [stat.st_size, stat.st_mtime_ns, digest]
        self.unsaved += stat.st_size
        if self.unsaved > 2**32:
            self.save()
        return digest

    def stream(self, file: BinaryIO) -> str:
        """Content hash of an open file, which is closed."""
        with file:
            digest = hashlib.sha256()
            while block := file.read(2**24):
                digest.update(block)
                self.beat()
            return digest.hexdigest()

    def of(self, files: Iterable[Path]) -> dict[str, str]:
        """File name to content hash."""
        found = {f.name: self.sha256(f) for f in sorted(files)}
        self.save()
        return found

    def save(self) -> None:
        """Keeps what was hashed for the next run."""
        if self.unsaved:
            own, self.known = self.known, {}
            self.load()
            self.known |= own
            write_json(self.path, self.known)
            self.unsaved = 0
