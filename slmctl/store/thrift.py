"""Thrift's compact protocol, as much of writing it as Parquet's page headers and footers need.

A `Value` is the type of a field and its bytes; a struct is a dictionary of such by the field's number in the format's definition.
"""

from __future__ import annotations

Value = tuple[int, bytes]
"""Code of the type, bytes."""

TRUE: Value = (1, b"")
FALSE: Value = (2, b"")


def varint(n: int) -> bytes:
    """Seven bits a byte, the lowest first; all but the last byte have their highest bit set."""
    found = bytearray()
    while n > 0x7F:
        found.append(n & 0x7F | 0x80)
        n >>= 7
    return bytes([*found, n])


def _zigzag(n: int) -> bytes:
    return varint(n << 1 if n >= 0 else (-n << 1) - 1)


def byte(n: int) -> Value:
    return 3, bytes([n])


def i32(n: int) -> Value:
    return 5, _zigzag(n)


def i64(n: int) -> Value:
    return 6, _zigzag(n)


def binary(data: bytes) -> Value:
    return 8, varint(len(data)) + data


def many(kind: int, values: list[Value]) -> Value:
    """A list of values of one type (no booleans)."""
    head = bytes([len(values) << 4 | kind]) if len(values) < 15 else bytes([0xF0 | kind]) + varint(len(values))
    return 9, head + b"".join(data for _, data in values)


def struct(fields: dict[int, Value]) -> Value:
    """Fields in ascending order, none more than 15 after the one before it."""
    found, last = bytearray(), 0
    for number, (kind, data) in fields.items():
        found += bytes([number - last << 4 | kind]) + data
        last = number
    return 12, bytes(found) + b"\0"


def structs(values: list[dict[int, Value]]) -> Value:
    return many(12, [struct(v) for v in values])


def i32s(values: list[int]) -> Value:
    return many(5, [i32(v) for v in values])
