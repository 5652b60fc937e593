"""Which tests `make check` leaves out, and which files go first: one table."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

SLOW: tuple[str, ...] = (
    "test_cli.py",
    "distributed",
    "remote/test_s3.py",
    "stages",
)
"""Folders, files and single tests (`FILE::test_name`, with all its parameters), the longest first. Their files are started in
this order, so that no worker is left with a long one at the end; all others follow."""

FAST: tuple[str, ...] = (
    "test_cli.py::test_version_and_help",
    "test_cli.py::test_bad_usage_exits_2",
    "test_cli.py::test_every_shipped_pipeline_is_valid",
    "stages/test_which_worker.py",
)
"""Files and tests of those folders and files that are not slow."""


def check_entries(entries: Iterable[str], folder: Path) -> None:
    """Raises ValueError where an entry names a file, folder or test that is not in `folder`."""
    for entry in entries:
        file, _, test = entry.partition("::")
        found = (folder / file).exists()
        if found and test:
            found = re.search(rf"^\s*def {test}\(", (folder / file).read_text(encoding="utf-8"), re.MULTILINE) is not None
        if not found:
            raise ValueError(f"tests/slow_tests.py: {entry} is not there. Correct the table, or take the entry out.")


def is_slow(file: Path, test: str, slow: Iterable[str] = SLOW, fast: Iterable[str] = FAST) -> bool:
    """Whether the table has the test of this name in this file (a path relative to `tests/`); the nearest entry decides."""
    for entry in (f"{file.as_posix()}::{test}", *(part.as_posix() for part in (file, *file.parents))):
        if entry in fast or entry in slow:
            return entry in slow
    return False


def rank(file: Path) -> int:
    """The place of a file among those that go first; len(SLOW) of all others."""
    parts = {part.as_posix() for part in (file, *file.parents)}
    return next((n for n, entry in enumerate(SLOW) if entry.partition("::")[0] in parts), len(SLOW))
