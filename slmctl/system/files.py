"""Files that are whole or absent, and what a disk that is full or closed to us says."""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from slmctl.system.errors import CorruptError, InputError, SlmError
from slmctl.system.temporaries import TEMPORARY, is_abandoned, temporary_beside

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
    for leftover in directory.glob(f"{TEMPORARY}*") if directory.is_dir() else ():
        if is_abandoned(leftover):
            shutil.rmtree(leftover, ignore_errors=True) if leftover.is_dir() else leftover.unlink(missing_ok=True)


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
