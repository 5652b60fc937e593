"""Which files a path, glob or URL names.

A file that is there and cannot be read counts as absent, and is named: a glob that passed over it would give less text than
was meant.
"""

from __future__ import annotations

import glob
import os
import re
from fnmatch import fnmatchcase
from pathlib import Path

from slmctl.corpus.text_files import is_folder, kind_of
from slmctl.corpus.unreadable import ABSENT, why_remote, why_unreadable, wrong_signatures
from slmctl.system.errors import InputError
from slmctl.system.remote_storage import filesystem, remote_errors
from slmctl.system.storage import is_url

CLOSED = "is a folder that may not be read"


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
    problems = {name: why for name, info in named if info["type"] != "directory" and (why := why_remote(name, info))}
    files = [name for name, info in named if info["type"] == "file" and name not in problems]
    folders = [name for name, info in named if info["type"] == "directory" and glob.has_magic(path)]
    return files, [f"{name} {why}" for name, why in problems.items()] + _data_folders(folders, files)


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
    return problems or list(wrong_signatures(files))
