"""Small token and score sets with known values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from slmctl.files import sha256_file
from slmctl.store.manifest import Manifest, Shard
from slmctl.store.shards import ShardWriter


@dataclass
class Written:
    """A set on disk, and its columns as plain concatenated arrays, [rows, T] each."""

    directory: Path
    manifest: Manifest
    columns: dict[str, np.ndarray]


def write_set(
    directory: Path,
    kind: str,
    shards: list[dict[str, np.ndarray]],
    types: dict[str, str],
    group_rows: int,
    made_from: dict[str, object],
) -> Manifest:
    found: list[Shard] = []
    for i, columns in enumerate(shards):
        path = directory / f"shard-{i:05d}.parquet"
        rows, seq_len = next(iter(columns.values())).shape
        with ShardWriter(path, types, group_rows * seq_len) as writer:
            for at in range(0, rows, group_rows):
                writer.write(**{n: c[at : at + group_rows].reshape(-1) for n, c in columns.items()})
        first = found[-1].first_row + found[-1].rows if found else 0
        found.append(
            Shard(path.name, first, rows, -(-rows // group_rows), rows * seq_len, path.stat().st_size, sha256_file(path))
        )
    manifest = Manifest(kind, seq_len, group_rows, found, dict(made_from), {"columns": types}, {"tokens": 1})  # type: ignore[arg-type]
    manifest.save(directory)
    return manifest


@pytest.fixture
def make_sets(tmp_path: Path) -> Callable[..., tuple[Written, Written]]:
    """(rows of each shard, rows of a group, seq_len) to a token set and a score set over it."""

    def make(rows: list[int], group_rows: int = 3, seq_len: int = 4, seed: int = 0) -> tuple[Written, Written]:
        rng = np.random.default_rng(seed)
        tokens, scores = [], []
        for n in rows:
            shape = (n, seq_len)
            tokens.append({"input_id": rng.integers(0, 2**16, shape), "document": rng.integers(-1, 2**40, shape)})
            scores.append({"ref_loss": (rng.random(shape) * 12).astype(np.float16)})
        sets = []
        for kind, shards, types in (
            ("tokens", tokens, {"input_id": "uint16", "document": "int64"}),
            ("scores", scores, {"ref_loss": "float16"}),
        ):
            made_from: dict[str, object] = {"seed": seed} if kind == "tokens" else {"tokens": sets[0].manifest.content_hash}
            directory = tmp_path / f"{kind}-{seed}-{len(list(tmp_path.iterdir()))}"
            manifest = write_set(directory, kind, shards, types, group_rows, made_from)
            sets.append(Written(directory, manifest, {n: np.concatenate([s[n] for s in shards]) for n in types}))
        return sets[0], sets[1]

    return make
