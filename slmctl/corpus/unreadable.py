"""Why a file cannot be read, and how that is told of many.

What `why_unreadable` looks at is cheap, a file's entry in its folder and the content of the smallest ones, so that it may be
done at every start; the first bytes of all files (`wrong_signatures`) are for those who are about to read them.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Any

from slmctl.corpus.text_files import COMPRESSED, open_raw
from slmctl.system.file_signatures import HEAD, not_stored_as, not_text, pointer, unpacked
from slmctl.system.remote_storage import remote_errors
from slmctl.system.storage import is_url

POINTER_BYTES = 1024
"""Files below this size are looked into: pointers are that small."""
NEVER_EMPTY = (*COMPRESSED, ".parquet", ".pq")
"""What cannot be a file of no bytes."""
ABSENT = "does not exist"
LISTED = 100
"""Files that a message names."""


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


def wrong_signatures(files: Iterable[str]) -> Iterator[str]:
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


def why_remote(url: str, info: dict[str, Any]) -> str | None:
    """The same of a file at a URL, by what its store says of it (`info` of fsspec)."""
    if info["type"] != "file":
        return f"is neither a file nor a folder (but a {info['type']})"
    size = info.get("size")
    if size == 0:
        return _no_bytes(url)
    if size is None or size >= POINTER_BYTES:  # some stores tell no size
        return None
    return _small_remote(url, size, str(next((info[k] for k in ("ETag", "etag", "LastModified", "created") if k in info), "")))


def one_message(problems: list[str], advice: str) -> str:
    """One message on any number of files."""
    if len(problems) == 1:
        return f"{problems[0]}. {advice}"
    more = [f"and {len(problems) - LISTED} more"] if len(problems) > LISTED else []
    listing = "\n".join(f"  {p}" for p in [*problems[:LISTED], *more])
    return f"{len(problems)} inputs cannot be read:\n{listing}\n{advice}"
