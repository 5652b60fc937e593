"""Who works on what: locks of stages' folders and sets, held until the process ends, and one worker that plans at a time."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from slmctl.system.console import waiting, warn
from slmctl.system.errors import SlmError
from slmctl.system.files import disk_errors, make_folder_of
from slmctl.system.local_storage import LocalFolder
from slmctl.system.storage import Folder

PATIENCE = 600
"""Seconds without a sign of life after which a worker no longer waits for the one that plans."""

_held: dict[Path, IO[str]] = {}
"""The lock files of the folders that this process works on."""


class Locks:
    """The locks of one pipeline. Those of `shared` labels (how they begin) lie beside the sets, which pipelines with one
    store share; the others in output_dir."""

    def __init__(self, root: Path, store: Folder, shared: tuple[str, ...]) -> None:
        self.root, self.store, self.shared = root, store, shared

    @contextmanager
    def planning(self) -> Iterator[Callable[[], None]]:
        """One worker at a time; the others wait for it, unless it shows no sign of life for `PATIENCE` seconds. Yields what
        gives a sign of life."""
        with self._planning_lock() as file:
            path = Path(file.name)
            with waiting("waiting for another worker to plan"):
                _wait_for_planner(file, path)
            yield lambda: os.utime(path)

    def _planning_lock(self) -> IO[str]:
        try:
            return _open(self._folder(self.shared[0]) / "planning.lock")
        except OSError:  # a store that is complete, and only read
            return _open_to_write(self._folder("") / "planning.lock")

    @contextmanager
    def alone(self, label: str) -> Iterator[None]:
        """One process at a time, and the others wait: for a file that is read, changed and written within a moment."""
        with _open_to_write(self._folder(label) / f"{label}.lock") as file:
            with suppress(OSError), waiting(f"waiting for another slmctl to be done with {label}"):
                fcntl.flock(file, fcntl.LOCK_EX)  # OSError: a file system without locks
            yield

    def hold(self, label: str) -> None:
        """Keeps others from moving a set aside until this process ends; any number of processes may hold it."""
        with waiting(f"waiting for another slmctl that replaces {label}"):
            for _ in range(50):
                try:
                    self._lock(label, fcntl.LOCK_SH)
                except BlockingIOError:
                    time.sleep(0.1)
                except OSError:  # what cannot be written here is not moved aside from here either
                    return
                else:
                    return
        raise SlmError(f"another slmctl is replacing {label}. Wait for it, then run again.")

    def lock(self, label: str) -> None:
        """Keeps other processes out of one stage's folder until this one ends."""
        try:
            self._lock(label, fcntl.LOCK_EX)
        except BlockingIOError:
            place = self.store / label if label.startswith(self.shared) else self.root / label
            raise SlmError(f"another slmctl is working on {place}. Wait for it, or stop it first.") from None
        except OSError as e:
            if e.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):  # a file system without locks
                with disk_errors(Path(e.filename or self._folder(label))):
                    raise

    def share(self, label: str) -> None:
        """Lets others hold what this process has locked, and has completed."""
        if self._path(label) in _held:
            self.hold(label)

    def _path(self, label: str) -> Path:
        return (self._folder(label) / f"{label.replace(os.sep, '-')}.lock").resolve()

    def _folder(self, label: str) -> Path:
        """Where the lock of a folder lies: beside the sets, which pipelines with one store_dir share, else in output_dir."""
        at_store = label.startswith(self.shared) and isinstance(self.store, LocalFolder)
        return (Path(str(self.store)) if at_store else self.root) / ".cache" / "locks"

    def _lock(self, label: str, kind: int) -> None:
        path = self._path(label)
        file = _held.get(path)
        if file is None:
            file = _open(path)
        try:
            fcntl.flock(file, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            if path not in _held:
                file.close()
            raise
        _held[path] = file


def _wait_for_planner(file: IO[str], path: Path) -> None:
    """Until this worker has the lock, or whoever has it shows no sign of life."""
    started = time.monotonic()
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.utime(path)
            return
        except BlockingIOError:
            quiet = time.time() - path.stat().st_mtime
            if quiet > PATIENCE and time.monotonic() - started > 10:
                warn(f"the worker that plans has shown no sign of life for {quiet:.0f} s; planning here instead")
                return
            time.sleep(0.1)
        except OSError:  # a file system without locks
            return


def _open(path: Path) -> IO[str]:
    path.parent.mkdir(parents=True, exist_ok=True)
    return open(path, "a")  # not "w", which would look like a sign of life


def _open_to_write(path: Path) -> IO[str]:
    """As `_open`, for those who are about to write beside it. Raises `SlmError` where that is not allowed."""
    with disk_errors(path):
        make_folder_of(path)
        return _open(path)
