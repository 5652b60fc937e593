"""Small token and score sets with known values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from sets import write_set

from slmctl.store.manifest import Manifest


@dataclass
class Written:
    """A set on disk, and its columns as plain concatenated arrays, [rows, T] each."""

    directory: Path
    manifest: Manifest
    columns: dict[str, np.ndarray]


@pytest.fixture
def make_sets(tmp_path: Path) -> Callable[..., tuple[Written, Written]]:
    """(rows of each shard, rows of a group, seq_len) to a token set and a score set over it. As in a prepared set, only the
    end of a shard's last row is padding."""

    def make(rows: list[int], group_rows: int = 3, seq_len: int = 4, seed: int = 0) -> tuple[Written, Written]:
        rng = np.random.default_rng(seed)
        tokens, scores, counts = [], [], []
        for n in rows:
            shape = (n, seq_len)
            document = rng.integers(0, 2**40, shape)
            counts.append(max(0, n * seq_len - int(rng.integers(0, seq_len))))
            document.reshape(-1)[counts[-1] :] = -1
            tokens.append({"input_id": rng.integers(0, 2**16, shape), "document": document})
            scores.append(
                {"ref_loss": (rng.random(shape) * 12).astype(np.float16), "ref_entropy": rng.random(shape, dtype=np.float32)}
            )
        sets = []
        for kind, shards, types in (
            ("tokens", tokens, {"input_id": "uint16", "document": "int64"}),
            ("scores", scores, {"ref_loss": "float32", "ref_entropy": "float32"}),
        ):
            made_from: dict[str, object] = {"seed": seed} if kind == "tokens" else {"tokens": sets[0].manifest.content_hash}
            directory = tmp_path / f"{kind}-{seed}-{len(list(tmp_path.iterdir()))}"
            manifest = write_set(directory, kind, shards, counts, types, group_rows, made_from)
            sets.append(Written(directory, manifest, {n: np.concatenate([s[n] for s in shards]) for n in types}))
        return sets[0], sets[1]

    return make
