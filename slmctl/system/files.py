"""Files that are whole or absent, and content hashes that are computed once."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import platform
import shutil
import stat
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

from slmctl.system.console import waiting
from slmctl.system.errors import CorruptError, InputError, SlmError

_TEMPORARY = ".tmp-"
_REPLACED = ".replaced-"


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What the system says when there is no room to write."""


def is_full(e: BaseException) -> bool:
    """Whether `e`, of whatever library, says that there is no room to write."""
    return getattr(e, "errno", None) in FULL or any(os.strerror(n) in str(e) for n in FULL)


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turns a full disk or a refused write into one clear message."""
    try:
        yield
    except BaseException as e:  # the checkpoint library wraps what it meets in a BaseException of its own
        if is_full(e):
            raise SlmError(
                f"no space left while writing {path}. Nothing half-written was kept; free some space and run again."
            ) from e
        if isinstance(e, OSError) and e.errno in (
            errno.EACCES,
            errno.EROFS,
            errno.EPERM,
            errno.ENOTDIR,
            errno.EEXIST,
            errno.ENAMETOOLONG,
        ):
            raise SlmError(
                f"cannot write {path}: {e.strerror}. Choose another output_dir (or store_dir), or change its rights."
            ) from e
        raise


def why_no_folder(path: Path) -> str | None:
    """Why there can be no folder at `path`, as a clause that follows its name; None where nothing speaks against it."""
    for part in (*reversed(path.parents), path):
        try:
            kind = part.stat().st_mode
        except FileNotFoundError:
            continue  # the names below it may still be too long
        except OSError as e:
            if e.errno == errno.ENAMETOOLONG:
                longest = max(len(os.fsencode(p)) for p in path.parts)
                return f"is too long ({longest} bytes in its longest name, {len(str(path))} characters in all)"
            return f"cannot be reached: {part}: {e.strerror}"
        if not stat.S_ISDIR(kind):
            return "is a file" if part == path else f"lies below {part}, which is a file"
    return None


def make_folder_of(final: Path) -> None:
    """The folder that `final` is to lie in."""
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
    except FileNotFoundError as e:  # a file system of the system's own
        raise SlmError(f"cannot write {final}: no folder can be made there. Choose another output_dir.") from e


def fsync_dir(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextmanager
def publishing(final: Path, check: Callable[[Path], None] | None = None) -> Iterator[Path]:
    """Makes `final` (a file or a directory) appear whole or not at all.

    Yields the temporary path beside it to write to. At the end every file is fsynced, `check(temporary)` may reopen and
    verify it, one rename publishes it and the directory is fsynced. On an error the temporary is removed.
    """
    with disk_errors(final):
        make_folder_of(final)
        temporary = temporary_beside(final)
        try:
            yield temporary
            for file in [temporary] if temporary.is_file() else [f for f in temporary.rglob("*") if f.is_file()]:
                with open(file, "rb") as f:
                    os.fsync(f.fileno())
            if check is not None:
                check(temporary)
            if final.is_dir():
                aside = final.with_name(f"{_REPLACED}{final.name}")
                os.rename(final, aside)
                try:
                    os.rename(temporary, final)
                except BaseException:
                    os.rename(aside, final)
                    raise
                shutil.rmtree(aside, ignore_errors=True)
            else:
                os.replace(temporary, final)
            fsync_dir(final.parent)
        finally:
            if temporary.is_dir():
                shutil.rmtree(temporary, ignore_errors=True)
            else:
                with suppress(OSError):
                    temporary.unlink()


def sweep(directory: Path) -> None:
    """Removes what killed processes left half-written in `directory`, and puts back what they were about to replace.

    What a living process is writing stays.
    """
    for aside in directory.glob(f"{_REPLACED}*") if directory.is_dir() else ():
        final = aside.with_name(aside.name.removeprefix(_REPLACED))
        if final.exists():
            shutil.rmtree(aside)
        else:
            os.rename(aside, final)
    for leftover in directory.glob(f"{_TEMPORARY}*") if directory.is_dir() else ():
        if is_abandoned(leftover):
            shutil.rmtree(leftover, ignore_errors=True) if leftover.is_dir() else leftover.unlink(missing_ok=True)


# --- who writes a temporary file ---


def temporary_beside(final: Path) -> Path:
    """A name for writing `final`, that says which process writes it."""
    return final.with_name(f"{_TEMPORARY}{final.name}.{_host()}.{_process(os.getpid())}.{uuid.uuid4().hex[:8]}")


def is_temporary(path: Path) -> bool:
    return path.name.startswith(_TEMPORARY)


def is_abandoned(temporary: Path) -> bool:
    """Whether the writer of a temporary file is gone: on this machine the process has ended (a hung one has not);
    of another machine's, nothing was written for `ABANDONED_AFTER` seconds."""
    parts = temporary.name.split(".")
    host, process = (parts[-3], parts[-2]) if len(parts) >= 4 else ("", "")
    if host == _host() and (pid := process.partition("-")[0]).isdigit():
        return not _lives(int(pid), process)
    try:
        return time.time() - temporary.stat().st_mtime > ABANDONED_AFTER
    except FileNotFoundError:
        return False


ABANDONED_AFTER = 6 * 3600


@cache
def _host() -> str:
    """This boot of this machine and this process namespace: within it a process number means one process."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text() + os.readlink("/proc/self/ns/pid")
    except OSError:
        boot = platform.node()
    return hashlib.sha256(boot.encode()).hexdigest()[:8]


def _process(pid: int) -> str:
    """A process by number and start time, so that a number used again is told apart; empty where it has ended or cannot be
    looked at."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return f"{pid}-{stat[19]}" if stat[0] not in "ZX" else ""
    except OSError:
        return "" if Path("/proc/self/stat").exists() else f"{pid}-0"


def _lives(pid: int, process: str) -> bool:
    if found := _process(pid):
        if found != process:
            return False
        if not found.endswith("-0"):
            return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's, which a hardened /proc does not show
        return True
    return bool(found)


def write_json(path: Path, data: Any) -> None:
    """Publishes `data` as indented JSON."""
    text = json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    with publishing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path} does not exist.") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as e:
        raise CorruptError(f"{path} is not valid JSON ({e}). Delete it and run the stage that writes it again.") from e


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
