"""Parquet's footer (its `FileMetaData`), for flat required columns of numbers."""

from __future__ import annotations

import numpy as np

from slmctl.store.chunks import Chunk
from slmctl.store.thrift import FALSE, Value, binary, byte, i32, i32s, i64, many, struct, structs

_REQUIRED, _ZSTD, _UINT_16 = 0, 6, 12
_PHYSICAL = {"uint16": 1, "int32": 1, "int64": 2, "float32": 4, "float16": 7}
_ANNOTATED: dict[str, dict[int, Value]] = {
    "uint16": {6: i32(_UINT_16), 10: struct({10: struct({1: byte(16), 2: FALSE})})},
    "float16": {10: struct({15: struct({})})},
}


def footer(types: dict[str, np.dtype], groups: list[tuple[int, list[Chunk]]], metadata: dict[str, bytes]) -> bytes:
    """The footer of a file that holds the chunks of `groups`, each with its offset, end to end, its length and the closing magic
    included. `types` are the columns."""
    schema = [{4: binary(b"schema"), 5: i32(len(types))}, *[_element(n, str(t)) for n, t in types.items()]]
    described = structs([_group(list(types.items()), offset, chunks) for offset, chunks in groups])
    values = sum(chunks[0].values for _, chunks in groups)
    texts = structs([{1: binary(k.encode()), 2: binary(v)} for k, v in metadata.items()])
    data = struct({1: i32(2), 2: structs(schema), 3: i64(values), 4: described, 5: texts, 6: binary(b"slmctl")})[1]
    return data + len(data).to_bytes(4, "little") + b"PAR1"


def _element(name: str, kind: str) -> dict[int, Value]:
    length = {2: i32(2)} if kind == "float16" else {}
    return {1: i32(_PHYSICAL[kind]), **length, 3: i32(_REQUIRED), 4: binary(name.encode()), **_ANNOTATED.get(kind, {})}


def _group(columns: list[tuple[str, np.dtype]], offset: int, chunks: list[Chunk]) -> dict[int, Value]:
    described: list[dict[int, Value]] = []
    for (name, kind), chunk in zip(columns, chunks, strict=True):
        about = {
            1: i32(_PHYSICAL[str(kind)]),
            2: i32s(chunk.encodings),
            3: many(8, [binary(name.encode())]),
            4: i32(_ZSTD),
            5: i64(chunk.values),
            6: i64(chunk.uncompressed),
            7: i64(chunk.size),
            9: i64(offset + chunk.dictionary),
        }
        if chunk.dictionary:
            about[11] = i64(offset)
        described.append({2: i64(0), 3: struct(about)})
        offset += chunk.size
    size = sum(c.uncompressed for c in chunks)
    return {1: structs(described), 2: i64(size), 3: i64(chunks[0].values)}
