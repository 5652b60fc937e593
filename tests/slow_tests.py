"""Which tests `make check` leaves out, and which files go first: one table."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

SLOW: tuple[str, ...] = (
    "test_cli.py",
    "distributed",
    "training/test_layout.py",
    "remote/test_s3.py",
)
"""Folders, files and single tests (`FILE::test_name`, with all its parameters), the longest first. Their files are started in
this order, so that no worker is left with a long one at the end; all others follow."""


def check_entries(entries: Iterable[str], folder: Path) -> None:
    """Raises ValueError where an entry names a file, folder or test that is not in `folder`."""
    for entry in entries:
        file, _, test = entry.partition("::")
        found = (folder / file).exists()
        if found and test:
            found = re.search(rf"^\s*def {test}\(", (folder / file).read_text(encoding="utf-8"), re.MULTILINE) is not None
        if not found:
            raise ValueError(f"tests/slow_tests.py: {entry} is not there. Correct the table, or take the entry out.")


def is_slow(file: Path, test: str) -> bool:
    """Whether the table has the test of this name in this file (a path relative to `tests/`)."""
    return any(f"{part}::{test}" in SLOW or str(part) in SLOW for part in (file, *file.parents))


def rank(file: Path) -> int:
    """The place of a file among those that go first; len(SLOW) of all others."""
    parts = {str(part) for part in (file, *file.parents)}
    return next((n for n, entry in enumerate(SLOW) if entry.partition("::")[0] in parts), len(SLOW))
