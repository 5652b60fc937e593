"""One column chunk: values to the bytes of its pages, and back.

Encodings were measured, not guessed (`benchmarks/store.py`), among those that the readers of today and of the last years share:

- Token ids: a dictionary whose entry i is the id i, so that each token's index is its id, in 16 bits or 24, compressed as one
  run of bytes. It unpacks as fast as split bytes, which most readers do not know for integers, and nothing is left to look
  up. pyarrow packs indices into as few bits as will hold them, which neither compress nor unpack well, so these pages are
  made here.
- Losses: split bytes (BYTE_STREAM_SPLIT), zstd level 1. Documents: DELTA_BINARY_PACKED, as they are long constant runs.
  pyarrow makes both.
"""

from __future__ import annotations

import io
import threading
import zlib
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from slmctl.store import thrift

MAX_ID = 2**20 - 1
"""A dictionary reaches up to the largest id; beyond this one they are stored plainly."""

PLAIN, RLE, DELTA_BINARY_PACKED, RLE_DICTIONARY, BYTE_STREAM_SPLIT = 0, 3, 5, 8, 9
_NAMES = {PLAIN: "PLAIN", DELTA_BINARY_PACKED: "DELTA_BINARY_PACKED", BYTE_STREAM_SPLIT: "BYTE_STREAM_SPLIT"}
_DATA_PAGE, _DICTIONARY_PAGE = 0, 2
_INDEX_BYTES = {"uint16": 2, "int32": 3}
_FOUR_BYTES = ("uint16", "int32", "float32")
"""Types that Parquet stores in four bytes a value."""
_ZSTD_FRAME = b"\x28\xb5\x2f\xfd"
_ID_LEVEL = 4
_local = threading.local()


@dataclass(frozen=True)
class Chunk:
    """What a footer says of a column chunk."""

    encodings: list[int]
    values: int
    size: int
    """Bytes of the pages with their headers."""
    uncompressed: int
    """The same before compression."""
    dictionary: int = 0
    """Bytes of the dictionary page, which comes first; 0 where there is none."""


def encode(values: np.ndarray) -> tuple[bytes, Chunk]:
    """The pages of a column of one row group, [N], of which one holds all values."""
    if str(values.dtype) in _INDEX_BYTES:
        ids = values.size > 0 and values.min() >= 0 and values.max() <= MAX_ID
        return _encode_ids(values) if ids else _by_pyarrow(values, PLAIN)
    return _by_pyarrow(values, DELTA_BINARY_PACKED if values.dtype == np.int64 else BYTE_STREAM_SPLIT)


def decode(chunk: memoryview, encodings: tuple[str, ...], dictionary: int, out: np.ndarray) -> bool:
    """Writes a chunk's values to `out`, [N], if it is of a kind that is unpacked here: as pyarrow gives them, without its
    detours, and threads do it side by side. Returns whether it is. `dictionary` is the size of the dictionary page.

    Bytes must be verified: these are `ShardWriter`'s pages, and it compares every shard's values with pyarrow's before it
    publishes.
    """
    if str(out.dtype) not in _FOUR_BYTES:
        return False
    if "RLE_DICTIONARY" in encodings:
        _read_indices(_unpacked(chunk[dictionary:]), out)
    elif "BYTE_STREAM_SPLIT" in encodings:
        _join_bytes(_unpacked(chunk), out)
    else:
        return False
    return True


def _unpacked(page: memoryview) -> bytes:
    if not hasattr(_local, "decompressor"):
        _local.decompressor = zstandard.ZstdDecompressor()
    start = bytes(page[:256]).index(_ZSTD_FRAME)  # after the page's header
    data: bytes = _local.decompressor.decompress(page[start:])
    return data


# --- token ids ---


def _encode_ids(ids: np.ndarray) -> tuple[bytes, Chunk]:
    n, width = len(ids), _INDEX_BYTES[str(ids.dtype)]
    eights = -(-n // 8)  # a run counts eights of values
    indices = np.zeros((eights * 8, width), np.uint8)
    indices[:n] = ids.view(np.uint8).reshape(n, -1)[:, :width]
    run = bytes([8 * width]) + thrift.varint(eights << 1 | 1) + indices.tobytes()
    dictionary = _dictionary(ids)
    first, first_size = _page(_DICTIONARY_PAGE, dictionary.tobytes(), {7: {1: len(dictionary), 2: PLAIN}})
    second, second_size = _page(_DATA_PAGE, run, {5: {1: n, 2: RLE_DICTIONARY, 3: RLE, 4: RLE}})
    pages = first + second
    return pages, Chunk([PLAIN, RLE, RLE_DICTIONARY], n, len(pages), first_size + second_size, len(first))


def _dictionary(ids: np.ndarray) -> np.ndarray:
    """int32 [largest id + 1]: each id that occurs at its own place. What no index points to repeats the id before it, as that
    compresses best."""
    occurs = np.zeros(int(ids.max()) + 1, bool)
    occurs[ids] = True
    return np.maximum.accumulate(np.where(occurs, np.arange(len(occurs), dtype=np.int32), 0), dtype=np.int32)


def _page(kind: int, data: bytes, about: dict[int, dict[int, int]]) -> tuple[bytes, int]:
    """A page with its header, which holds its CRC32; and its size before compression."""
    packed = zstandard.ZstdCompressor(level=_ID_LEVEL).compress(data)
    crc = zlib.crc32(packed)
    head = {1: kind, 2: len(data), 3: len(packed), 4: crc - 2**32 if crc >= 2**31 else crc}
    fields = {k: thrift.i32(v) for k, v in head.items()}
    fields |= {k: thrift.struct({f: thrift.i32(v) for f, v in values.items()}) for k, values in about.items()}
    header = thrift.struct(fields)[1]
    return header + packed, len(header) + len(data)


def _read_indices(page: bytes, out: np.ndarray) -> None:
    """Indices are the ids: the dictionary need not be looked at."""
    n, width = len(out), _INDEX_BYTES[str(out.dtype)]
    size = -(-n // 8) * 8 * width
    if page[0] != 8 * width or len(page) <= size:
        raise ValueError(f"{len(page)} bytes of indices of {page[0]} bits, wanted {n} of {8 * width}")
    start = len(page) - size
    if width == 2:
        np.copyto(out, np.ndarray(n, "<u2", page, start))
    else:  # four bytes at each index, of which the lowest belongs to what lies before it
        np.right_shift(np.ndarray(n, "<u4", page, start - 1, (width,)), 8, out=out.view(np.uint32))


# --- what pyarrow writes ---


def _by_pyarrow(values: np.ndarray, encoding: int) -> tuple[bytes, Chunk]:
    schema = pa.schema([pa.field("x", pa.from_numpy_dtype(values.dtype), nullable=False)])
    file = io.BytesIO()
    pq.write_table(
        pa.table([pa.array(values)], schema=schema),
        file,
        row_group_size=max(1, len(values)),
        compression="zstd",
        compression_level=1,
        use_dictionary=False,
        write_statistics=False,
        column_encoding={"x": _NAMES[encoding]},
        write_page_checksum=True,
        data_page_size=2**30,
        max_rows_per_page=max(1, len(values)),
    )
    file.seek(0)
    about = pq.read_metadata(file).row_group(0).column(0)
    pages = file.getvalue()[about.data_page_offset :][: about.total_compressed_size]
    return pages, Chunk([encoding, RLE], len(values), len(pages), about.total_uncompressed_size)


def _join_bytes(page: bytes, out: np.ndarray) -> None:
    """Split bytes of four-byte values. Sets up to schema version 2 hold their ids so."""
    streams = np.frombuffer(page, np.uint8).reshape(4, len(out))
    if out.itemsize == 2:
        _two_bytes(streams[1], streams[0], out.view(np.uint16))
        return
    joined, half = out.view(np.uint32), np.empty(len(out), np.uint16)
    np.copyto(joined, _two_bytes(streams[3], streams[2], half))
    joined <<= 16
    joined |= _two_bytes(streams[1], streams[0], half)


def _two_bytes(high: np.ndarray, low: np.ndarray, out: np.ndarray) -> np.ndarray:
    np.copyto(out, high)
    out <<= 8
    if low.any():
        out |= low
    return out
