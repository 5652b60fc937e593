"""The fields at the head of a GGUF file, read in one pass (the gguf package takes seconds for a large vocabulary)."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any, BinaryIO

from slmctl.system.errors import InputError

NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
_LONGEST = 2**31
"""Bytes or entries beyond which a count is not believed."""


def read_fields(path: Path, prefix: str) -> dict[str, Any]:
    """The fields whose names begin with `prefix`, without it. Raises `InputError` where the file is not GGUF, or not whole."""
    try:
        with open(path, "rb") as stream:
            if stream.read(4) != b"GGUF":
                raise InputError(f"{path} is not a GGUF file. Fetch it anew (a Git LFS pointer: `git lfs pull`).")
            version, _, count = numbers(stream, "IQQ")
            if version not in (2, 3):
                raise InputError(f"{path}: GGUF of version {version}; 2 and 3, little-endian, are read. Convert it anew.")
            found = {}
            for _ in range(count):
                name = string(stream)
                value = _value(stream, numbers(stream, "I")[0])
                if name.startswith(prefix):
                    found[name.removeprefix(prefix)] = value
            return found
    except (struct.error, KeyError, ValueError, EOFError) as e:
        raise InputError(f"{path} cannot be read as GGUF: {e}. It may not be whole; fetch it anew.") from None


def numbers(stream: BinaryIO, layout: str) -> tuple[Any, ...]:
    """The next numbers of a file, little-endian, by the letters of `struct`. Raises `struct.error` where it ends before."""
    size = struct.calcsize("<" + layout)
    return struct.unpack("<" + layout, stream.read(size))


def string(stream: BinaryIO) -> str:
    """The next text of a file, behind its length. Raises `EOFError` where it ends before."""
    (size,) = numbers(stream, "Q")
    found = stream.read(size) if size < _LONGEST else b""
    if len(found) != size:
        raise EOFError("it ends within a text")
    return found.decode("utf-8")


def _value(stream: BinaryIO, kind: int) -> Any:
    if kind == STRING:
        return string(stream)
    if kind != ARRAY:
        return numbers(stream, NUMBERS[kind])[0]
    inner, count = numbers(stream, "IQ")
    if count >= _LONGEST:
        raise EOFError(f"a list of {count} entries")
    if inner in NUMBERS:
        return list(numbers(stream, f"{count}{NUMBERS[inner]}"))
    return [_value(stream, inner) for _ in range(count)]
