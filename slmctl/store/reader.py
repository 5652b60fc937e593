"""Reading sets: tokens, and tokens joined by position with reference losses."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from slmctl.errors import CorruptError
from slmctl.files import sha256_file
from slmctl.store.manifest import Manifest, load_manifest, refuse_mismatch
from slmctl.store.shards import ShardFile

OPEN_FILES = 32


@dataclass
class Rows:
    """Rows of one set. `ref_loss_BT` is present where a score set was joined."""

    ids_BT: np.ndarray
    document_BT: np.ndarray
    ref_loss_BT: np.ndarray | None = None


class ShardSet:
    """The shards of one manifest. A shard's content hash is verified when it is first opened."""

    def __init__(self, directory: Path, kind: str) -> None:
        self.directory = directory
        self.manifest: Manifest = load_manifest(directory, kind)
        self.seq_len = self.manifest.seq_len
        self.rows = self.manifest.rows
        per_group = self.manifest.group_rows
        self.group_rows = np.array(
            [min(per_group, s.rows - g * per_group) for s in self.manifest.shards for g in range(s.groups)], dtype=np.int64
        )
        self.first_row = np.concatenate([[0], np.cumsum(self.group_rows)])
        self.place = [(i, g) for i, s in enumerate(self.manifest.shards) for g in range(s.groups)]
        self._open: OrderedDict[int, ShardFile] = OrderedDict()
        self._verified: set[int] = set()

    def read_group(self, group: int, columns: list[str]) -> dict[str, np.ndarray]:
        """Columns of row group `group` of the whole set, each [rows, T]."""
        shard, within = self.place[group]
        values = self._file(shard).read(within, columns)
        shape = (int(self.group_rows[group]), self.seq_len)
        for name, column in values.items():
            if column.size != shape[0] * shape[1]:
                file = self.manifest.shards[shard].file
                raise CorruptError(f"{self.directory / file}: column {name} has {column.size} values, wanted {shape}.")
        return {n: c.reshape(shape) for n, c in values.items()}

    def _file(self, shard: int) -> ShardFile:
        if shard in self._open:
            self._open.move_to_end(shard)
            return self._open[shard]
        info = self.manifest.shards[shard]
        path = self.directory / info.file
        if shard not in self._verified:
            try:
                found = sha256_file(path)
            except OSError as e:
                raise CorruptError(f"{path} cannot be read ({e.strerror}). Run its stage again to make it anew.") from e
            if found != info.sha256:
                raise CorruptError(
                    f"{path} is not the file that {self.directory.name}/manifest.json describes: sha256 found "
                    f"{found[:12]}…, wanted {info.sha256[:12]}…. Delete it and run its stage again."
                )
            self._verified.add(shard)
        self._open[shard] = ShardFile(path)
        if len(self._open) > OPEN_FILES:
            self._open.popitem(last=False)[1].close()
        return self._open[shard]


class TokenSet(ShardSet):
    """A set of token shards."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, "tokens")


class ScoreSet(ShardSet):
    """A set of score shards, bound to its token set by content hash, shard by shard.

    Raises `MismatchError` where it was made from other tokens, or under other settings than `wanted` names.
    """

    def __init__(self, directory: Path, tokens: TokenSet, wanted: dict[str, Any] | None = None) -> None:
        super().__init__(directory, "scores")
        made = self.manifest.made_from
        wanted = {"tokens": tokens.manifest.content_hash, **(wanted or {})}
        refuse_mismatch(
            f"{directory}/manifest.json",
            {k: made.get(k) for k in wanted},
            wanted,
            "These scores belong to other inputs. Run `slmctl score` again.",
        )
        refuse_mismatch(
            f"{directory}: the shards",
            {"rows": [s.rows for s in self.manifest.shards], "group_rows": self.manifest.group_rows, "seq_len": self.seq_len},
            {
                "rows": [s.rows for s in tokens.manifest.shards],
                "group_rows": tokens.manifest.group_rows,
                "seq_len": tokens.seq_len,
            },
            "Run `slmctl score` again.",
        )


class RowReader:
    """Fetches rows by number, joining losses by position. Holds the last `cache_groups` row groups in memory."""

    def __init__(self, tokens: TokenSet, scores: ScoreSet | None = None, cache_groups: int = 32) -> None:
        self.tokens, self.scores, self.cache_groups = tokens, scores, cache_groups
        self._cache: OrderedDict[int, Rows] = OrderedDict()

    def group(self, group: int) -> Rows:
        """All rows of one row group."""
        if group in self._cache:
            self._cache.move_to_end(group)
            return self._cache[group]
        read = self.tokens.read_group(group, ["input_id", "document"])
        losses = self.scores.read_group(group, ["ref_loss"])["ref_loss"] if self.scores is not None else None
        self._cache[group] = Rows(read["input_id"], read["document"], losses)
        if len(self._cache) > self.cache_groups:
            self._cache.popitem(last=False)
        return self._cache[group]

    def fetch(self, rows: np.ndarray) -> Rows:
        """Rows by number, in the order given. ids int64 [B, T], document int64 [B, T], ref_loss float32 [B, T]."""
        groups = np.searchsorted(self.tokens.first_row, rows, side="right") - 1
        shape = (len(rows), self.tokens.seq_len)
        out = Rows(np.empty(shape, np.int64), np.empty(shape, np.int64))
        if self.scores is not None:
            out.ref_loss_BT = np.empty(shape, np.float32)
        for g in np.unique(groups):
            here = groups == g
            found, within = self.group(int(g)), rows[here] - self.tokens.first_row[g]
            out.ids_BT[here] = found.ids_BT[within]
            out.document_BT[here] = found.document_BT[within]
            if out.ref_loss_BT is not None and found.ref_loss_BT is not None:
                out.ref_loss_BT[here] = found.ref_loss_BT[within]
        return out
