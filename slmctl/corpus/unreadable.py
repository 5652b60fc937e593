"""Which files a path, glob or URL names, and which of them cannot be read, and why.

A file that is there and cannot be read counts as absent, and is named: a glob that passed over it would give less text than
was meant. What is looked at here is cheap, a file's entry in its folder and the content of the smallest ones, so that it may be
done at every start; the first bytes of all files (`wrong_heads`) are for those who are about to read them.
"""

from __future__ import annotations

import glob
import os
import re
import stat
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path
from typing import Any

from slmctl.corpus.text_files import COMPRESSED, is_folder, kind_of, open_raw
from slmctl.system.errors import InputError
from slmctl.system.heads import HEAD, not_stored_as, not_text, pointer, unpacked
from slmctl.system.remote_storage import filesystem, remote_errors
from slmctl.system.storage import is_url

POINTER_BYTES = 1024
"""Files below this size are looked into: pointers are that small."""
NEVER_EMPTY = (*COMPRESSED, ".parquet", ".pq")
"""What cannot be a file of no bytes."""
ABSENT = "does not exist"
CLOSED = "is a folder that may not be read"
LISTED = 100
"""Files that a message names."""


def expand(pattern: str) -> tuple[list[str], list[str]]:
    """The files that a path, glob or URL names, sorted; and a line on each that is there and cannot be read."""
    pattern = pattern.removeprefix("file://")
    return _expand_url(pattern) if is_url(pattern) else _expand_local(pattern)


def _expand_local(pattern: str) -> tuple[list[str], list[str]]:
    single = os.path.lexists(pattern) or not glob.has_magic(pattern)
    matches = [pattern] if single else sorted(glob.glob(pattern, recursive=True))
    files, problems, folders = [], _lost_folders(pattern, single), []
    for match in matches:
        why = why_unreadable(match)
        if why is None:
            files.append(match)
        elif os.path.isdir(match):
            folders.append(match)
        elif why != ABSENT:
            problems.append(f"{match} {why}")
    return files, problems + _data_folders([] if single else folders, files)


def _data_folders(folders: list[str], files: list[str]) -> list[str]:
    """A line on each folder that is named like a data file and was matched as one, unless files in it were matched too."""
    held = {os.path.dirname(f) for f in files} if folders else set()
    found = [f.rstrip("/") for f in folders if _named_like_data(f.rstrip("/"))]
    return [f"{f} {folder(f)}" for f in found if not any(h == f or h.startswith(f"{f}/") for h in held)]


def _named_like_data(file: str) -> bool:
    try:
        return bool(kind_of(file))
    except InputError:
        return False


def folder(place: str) -> str:
    """What is wrong with a folder where a file is wanted."""
    ending = ".parquet" if place.endswith((".parquet", ".pq")) else ".jsonl"
    return f"is a folder, not a file: give a pattern such as {place}/*{ending}"


def _lost_folders(pattern: str, single: bool) -> list[str]:
    """A line on each folder that has to be listed, or passed through, for a pattern and cannot be: a glob finds nothing there."""
    *parts, last = Path(pattern).parts or ("",)
    lost: list[str] = []
    level = [""]
    for part in [*parts, last] if last == "**" else parts:
        if single or not glob.has_magic(part):
            level = [f for f in (os.path.join(folder, part) for folder in level) if os.path.isdir(f)]
            closed = [f for f in level if not os.access(f, os.X_OK)]
            lost += [f"{f} {CLOSED}" for f in closed]
            level = [f for f in level if f not in closed]
        else:
            level = [f for folder in level for f in _folders(folder, part, lost)]
    if not single and last != "**":
        lost += [f"{folder or '.'} {CLOSED}" for folder in level if not _lists(folder or ".")]
    return sorted(set(lost))


def _folders(folder: str, part: str, lost: list[str]) -> list[str]:
    """The folders in `folder` that a part of a pattern matches; of `**` itself and all below it. Those that cannot be looked
    into, and links that lead to none, are added to `lost`."""
    deep = part == "**"
    if not _lists(folder or "."):
        lost.append(f"{folder or '.'} {CLOSED}")
        return []
    found = [folder] if deep else []
    with os.scandir(folder or ".") as entries:
        for entry in entries:
            if (entry.name.startswith(".") and not part.startswith(".")) or not (deep or fnmatchcase(entry.name, part)):
                continue
            place = os.path.join(folder, entry.name)
            if os.path.isdir(place) if entry.is_symlink() else entry.is_dir():
                found += _folders(place, part, lost) if deep else [place]
            elif entry.is_symlink() and not os.path.exists(place) and not (deep and Path(place).suffix):
                lost.append(f"{place} {why_unreadable(place)}")
    return found


def _lists(folder: str) -> bool:
    """Whether a folder's files can be listed and reached."""
    try:
        os.scandir(folder).close()
    except OSError:
        return False
    return os.access(folder, os.R_OK | os.X_OK)


def _expand_url(url: str) -> tuple[list[str], list[str]]:
    fs, path = filesystem(url)
    try:
        with remote_errors(url):
            if not glob.has_magic(path):
                infos = {path: fs.info(path)}
            elif not (infos := fs.glob(path, detail=True)):
                fs.ls(re.split(r"[*?[]", path, maxsplit=1)[0].rpartition("/")[0])  # raises what a glob passes over
    except FileNotFoundError:
        return [], []
    named = sorted((str(fs.unstrip_protocol(p)), info) for p, info in infos.items())
    problems = {name: why for name, info in named if info["type"] != "directory" and (why := _why_remote(name, info))}
    files = [name for name, info in named if info["type"] == "file" and name not in problems]
    folders = [name for name, info in named if info["type"] == "directory" and glob.has_magic(path)]
    return files, [f"{name} {why}" for name, why in problems.items()] + _data_folders(folders, files)


def _why_remote(url: str, info: dict[str, Any]) -> str | None:
    if info["type"] != "file":
        return f"is neither a file nor a folder (but a {info['type']})"
    size = info.get("size")
    if size == 0:
        return _no_bytes(url)
    if size is None or size >= POINTER_BYTES:  # some stores tell no size
        return None
    return _small_remote(url, size, str(next((info[k] for k in ("ETag", "etag", "LastModified", "created") if k in info), "")))


def why_unreadable(file: str) -> str | None:
    """Why a local file cannot be read as it is, worded to follow its name; None where nothing speaks against it."""
    try:
        found = os.stat(file)
    except OSError as e:
        return _why_no_entry(file, e)
    if not stat.S_ISREG(found.st_mode):
        kinds = {stat.S_ISDIR: "a folder", stat.S_ISFIFO: "a named pipe", stat.S_ISSOCK: "a socket"}
        return f"is {next((name for test, name in kinds.items() if test(found.st_mode)), 'a device')}, not a file"
    if not os.access(file, os.R_OK):
        return f"may not be read by this user (its rights are {stat.filemode(found.st_mode)})"
    if found.st_size == 0:
        return _no_bytes(file)
    return _small(file, found.st_size, found.st_mtime_ns) if found.st_size < POINTER_BYTES else None


def _why_no_entry(file: str, e: OSError) -> str:
    if not os.path.islink(file):
        return ABSENT if isinstance(e, FileNotFoundError) else f"cannot be looked at ({e.strerror})"
    target = os.readlink(file)
    if not isinstance(e, FileNotFoundError):
        return f"is a link to {target}, which cannot be followed ({e.strerror})"
    hint = " (`git annex get` fetches it)" if "annex/objects/" in target else ""
    return f"is a link to {target}, which does not exist{hint}"


def _no_bytes(file: str) -> str | None:
    return "has no bytes, so it was never written or fetched whole" if file.endswith(NEVER_EMPTY) else None


@lru_cache(maxsize=2**16)
def _small(file: str, _size: int, _modified: int) -> str | None:
    """As `why_unreadable`, by content; kept for as long as the file stays the same."""
    try:
        return pointer(_head(file))
    except OSError as e:
        return f"cannot be read ({e.strerror})"


@lru_cache(maxsize=2**16)
def _small_remote(url: str, _size: int, _version: str) -> str | None:
    with remote_errors(url), open_raw(url) as f:
        return pointer(f.read(HEAD))


def _head(file: str) -> bytes:
    with open(file, "rb", buffering=0) as f:
        return f.read(HEAD)


def wrong_heads(files: Iterable[str]) -> Iterator[str]:
    """A line on each local file whose first bytes are not what its name says."""
    for file in files:
        if is_url(file):  # each would be a request; they are looked at when they are read
            continue
        try:
            head = _head(file)
        except OSError as e:
            yield f"{file} cannot be read ({e.strerror})"
            continue
        why = not_stored_as(head, file) or not_text(unpacked(head, file), file)
        if why is not None:
            yield f"{file} {why}"


def dataset_problems(folder: str) -> list[str]:
    """A line on each file of a dataset's folder that cannot be read."""
    inside = (str(f) for f in sorted(Path(folder).rglob("*")) if ".git" not in f.parts and not f.is_dir())
    return [f"{f} {why}" for f in inside if (why := why_unreadable(f))]


def place_problems(place: str) -> list[str]:
    """A line on each file of a task's data that cannot be read: of `place`, a file, with the .train file beside it, or of a
    folder's JSON Lines files; of a URL, whether it is there."""
    if is_url(place):
        if is_folder(place):
            return []
        files, problems = expand(place)
        return problems or ([] if files else [f"{place} does not exist"])
    closed: list[OSError] = []
    if os.path.isdir(place):
        walk = os.walk(place, onerror=closed.append)
        inside = [os.path.join(at, name) for at, folders, names in walk for name in (*names, *folders)]
        files = sorted(f for f in inside if f.endswith((".jsonl", ".jsonl.gz", ".jsonl.zst")))
    else:
        stem = re.sub(r"\.jsonl?(\.gz|\.zst)?$", "", place)
        beside = [f"{stem}.train.jsonl{e}" for e in ("", ".gz", ".zst")]
        files = [place, *(f for f in beside if os.path.lexists(f))]
    problems = [f"{e.filename} cannot be read ({e.strerror})" for e in closed]
    problems += [f"{f} {why}" for f in files if (why := why_unreadable(f))]
    return problems or list(wrong_heads(files))


def told(problems: list[str], advice: str) -> str:
    """One message on any number of files."""
    if len(problems) == 1:
        return f"{problems[0]}. {advice}"
    more = [f"and {len(problems) - LISTED} more"] if len(problems) > LISTED else []
    listing = "\n".join(f"  {p}" for p in [*problems[:LISTED], *more])
    return f"{len(problems)} inputs cannot be read:\n{listing}\n{advice}"
