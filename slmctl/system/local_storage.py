"""A folder of a local or shared file system: a file is written beside its final name, fsynced and linked."""

from __future__ import annotations

import errno
import os
import uuid
from contextlib import suppress
from pathlib import Path

from slmctl.system.files import disk_errors, fsync_dir
from slmctl.system.storage import Entry, Folder, OpenFile
from slmctl.system.temporaries import is_abandoned, is_temporary, temporary_beside

_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV)
"""What a file system without hard links says."""


class LocalFile(OpenFile):
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

    def open(self, name: str) -> OpenFile:
        return LocalFile(self.path / name)

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


def _fsync(path: Path) -> None:
    with open(path, "rb") as f:
        os.fsync(f.fileno())
