"""Damage to a file, bit by bit and byte by byte, done in place: rewriting it each time would take minutes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path


def flips(path: Path) -> Iterator[tuple[int, int]]:
    """Flips every bit of a file, one at a time: yields (byte, bit) while that one is flipped, and leaves the file as it was."""
    fd = os.open(path, os.O_RDWR)
    try:
        for at, byte in enumerate(path.read_bytes()):
            for bit in range(8):
                os.pwrite(fd, bytes([byte ^ 1 << bit]), at)
                yield at, bit
            os.pwrite(fd, bytes([byte]), at)
    finally:
        os.close(fd)


def cuts(path: Path) -> Iterator[int]:
    """Cuts a file off, a byte more at a time, down to nothing: yields its length, and leaves the file as it was."""
    raw = path.read_bytes()
    for length in reversed(range(len(raw))):
        os.truncate(path, length)
        yield length
    path.write_bytes(raw)


def insertions(path: Path) -> Iterator[int]:
    """Puts a byte more in a file, at its end and before each of its bytes: yields where, and leaves the file as it was."""
    raw = path.read_bytes()
    fd = os.open(path, os.O_RDWR)
    try:
        for at in reversed(range(len(raw) + 1)):
            os.pwrite(fd, b"\0" + raw[at:], at)
            yield at
    finally:
        os.close(fd)
    path.write_bytes(raw)
