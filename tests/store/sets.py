"""Writing a set of shards with its manifest."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from slmctl.store.manifest import Manifest, Shard
from slmctl.store.shard_format import shard_name
from slmctl.store.shard_writer import ShardWriter
from slmctl.system.local_storage import LocalFolder


def write_set(
    directory: Path,
    kind: str,
    shards: list[dict[str, np.ndarray]],
    tokens: list[int],
    types: dict[str, str],
    group_rows: int,
    made_from: dict[str, object],
) -> Manifest:
    found: list[Shard] = []
    for i, columns in enumerate(shards):
        rows, seq_len = next(iter(columns.values())).shape
        with ShardWriter(LocalFolder(directory), shard_name(i), types, group_rows * seq_len) as writer:
            for at in range(0, rows, group_rows):
                writer.write(**{n: c[at : at + group_rows].reshape(-1) for n, c in columns.items()})
            writer.facts = {"rows": rows, "tokens": tokens[i], "made_from": made_from}
        found.append(replace(writer.shard, first_row=sum(s.rows for s in found)))
    manifest = Manifest(kind, seq_len, group_rows, found, dict(made_from), {"columns": types}, {"tokens": sum(tokens)})  # type: ignore[arg-type]
    manifest.save(directory)
    return manifest
