"""Shards on disk: Parquet with one value a token in flat required columns, every byte of which is covered by a hash.

The footer holds, under the key `slmctl`, what the shard was made from (`facts`), the XXH3-128 of each column chunk's
bytes, and a hash of its own. Chunks and footer tile the file, so the hash of the footer, which a manifest keeps, stands for
the whole content, and a reader verifies just the bytes that it reads, from a disk or over a network. Nothing is parsed
before it is verified: some flipped bits of a footer make pyarrow abort the process.

Here is what `shard_writer` and `shard_file` agree on. How a column is encoded is told in `chunks`.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import xxhash

GROUP_TOKENS = 2**18
MAGIC = b"PAR1"
META = "slmctl"
SEAL = b"slmctl-footer-sha256:"
UNSEALED = b"0" * 64
"""What stands behind the key `slmctl` of a footer: the seal, its SHA-256 (zeros until it is known), and JSON."""


def rows_per_group(seq_len: int) -> int:
    """Rows of a Parquet row group: as many as make about 2^18 tokens."""
    return max(1, GROUP_TOKENS // seq_len)


def shard_name(index: int) -> str:
    return f"shard-{index:05d}.parquet"


def content_hash(data: Any) -> str:
    """XXH3-128 of bytes."""
    return xxhash.xxh3_128_hexdigest(data)


def seal(footer: bytes) -> bytes:
    """The footer with the SHA-256 of its bytes at the place that is kept for it, which counts as zeros."""
    at = footer.index(SEAL) + len(SEAL)
    before, after = footer[:at], footer[at + len(UNSEALED) :]
    return before + hashlib.sha256(before + UNSEALED + after).hexdigest().encode() + after


def decode_group(file: pq.ParquetFile, group: int, columns: list[str]) -> dict[str, np.ndarray]:
    """Columns of one row group, as pyarrow reads them."""
    table = file.read_row_group(group, columns=columns, use_threads=False)
    return {n: table.column(n).combine_chunks().to_numpy(zero_copy_only=False) for n in columns}
