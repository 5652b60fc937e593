"""Reading sets: tokens, and tokens joined by position with reference losses.

What is read is verified as it is read; who reads may be any number of threads.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from slmctl.store.manifest import Manifest, load_manifest, refuse_mismatch
from slmctl.store.shard_file import ShardFile
from slmctl.system.errors import CorruptError, InputError
from slmctl.system.memory import keep_freed_blocks
from slmctl.system.storage import Folder

OPEN_FILES = 256
Joined = tuple[str, str]
"""A score set by the name that its reader gives it, and one of its columns."""


@dataclass
class Rows:
    """Rows of one set, each [B, T]. `ref_loss_BT` is there where a score set was joined, `joined` where further columns were."""

    ids_BT: np.ndarray
    document_BT: np.ndarray
    """-1 on padding; the number of the token's document, or 0 where the reader was told to leave documents out."""
    ref_loss_BT: np.ndarray | None = None
    joined: dict[Joined, np.ndarray] = field(default_factory=dict)

    def part(self, start: int, stop: int) -> Rows:
        """Rows [start, stop), in the same memory."""
        losses = self.ref_loss_BT[start:stop] if self.ref_loss_BT is not None else None
        joined = {k: values[start:stop] for k, values in self.joined.items()}
        return Rows(self.ids_BT[start:stop], self.document_BT[start:stop], losses, joined)

    def gather(self, places: np.ndarray, out: Rows) -> None:
        """Copies the rows at `places` to `out`."""
        pairs = [(self.ids_BT, out.ids_BT), (self.document_BT, out.document_BT), (self.ref_loss_BT, out.ref_loss_BT)]
        for mine, theirs in (*pairs, *((values, out.joined[k]) for k, values in self.joined.items())):
            if mine is not None and theirs is not None:
                np.take(mine, places, axis=0, out=theirs, mode="clip")  # raise would copy once more


class ShardSet:
    """The shards of one manifest.

    Raises `CorruptError` where files of the set are missing, or others lie among them.
    """

    def __init__(self, place: Folder | Path | str, kind: str) -> None:
        keep_freed_blocks()
        self.folder = Folder.at(place)
        self.manifest: Manifest = load_manifest(self.folder, kind)
        self.seq_len = self.manifest.seq_len
        self.rows = self.manifest.rows
        per_group = self.manifest.group_rows
        shards = self.manifest.shards
        self.group_rows = np.array(
            [min(per_group, s.rows - g * per_group) for s in shards for g in range(s.groups)], dtype=np.int64
        )
        self.first_row = np.concatenate([[0], np.cumsum(self.group_rows)])
        self.place = [(i, g) for i, s in enumerate(shards) for g in range(s.groups)]
        self._open: OrderedDict[int, ShardFile] = OrderedDict()
        self._lock = threading.Lock()
        self._check_files()

    def _check_files(self) -> None:
        named = {s.file for s in self.manifest.shards}
        found = {n for n in self.folder.listing() if n.startswith("shard-") and n.endswith(".parquet")}
        if missing := sorted(named - found):
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise CorruptError(f"{self.folder}/{missing[0]}{more}: missing, though the manifest names it. Run its stage again.")
        if extra := sorted(found - named):
            raise CorruptError(
                f"{self.folder}/{extra[0]} is not named by the manifest: it belongs elsewhere. Move it away, so that no tool "
                "that reads the whole folder takes it in."
            )

    def read_group(self, group: int, columns: list[str], out: dict[str, np.ndarray] | None = None) -> dict[str, np.ndarray]:
        """Columns of row group `group` of the whole set, each [rows, T]; written to `out[column]` where that is given."""
        shard, within = self.place[group]
        file, shape = self.file(shard), (int(self.group_rows[group]), self.seq_len)
        if file.values[within] != shape[0] * shape[1]:
            raise CorruptError(f"{file.name}: row group {within} has {file.values[within]} values, wanted {shape}.")
        values = file.read(within, columns, {n: a.reshape(-1) for n, a in (out or {}).items()})
        return {n: c.reshape(shape) for n, c in values.items()}

    def valid_tokens(self, group: int) -> int:
        """Tokens of a row group that are not padding, which only the end of a shard can hold."""
        shard, within = self.place[group]
        info = self.manifest.shards[shard]
        before = within * self.manifest.group_rows * self.seq_len
        return min(int(self.group_rows[group]) * self.seq_len, info.tokens - before)

    def file(self, shard: int) -> ShardFile:
        """An open shard, checked against the manifest."""
        with self._lock:
            if shard in self._open:
                self._open.move_to_end(shard)
                return self._open[shard]
        opened = ShardFile(self.folder, self.manifest.shards[shard].file, self.manifest.shards[shard])
        with self._lock:
            kept = self._open.setdefault(shard, opened)
            if len(self._open) > OPEN_FILES:
                self._open.popitem(last=False)  # closed once no thread reads from it any more
        return kept


class TokenSet(ShardSet):
    """A set of token shards."""

    def __init__(self, place: Folder | Path | str) -> None:
        super().__init__(place, "tokens")


class ScoreSet(ShardSet):
    """A set of score shards, bound to its token set by content hash, shard by shard.

    Raises `MismatchError` where it was made from other tokens, or under other settings than `wanted` names.
    """

    def __init__(self, place: Folder | Path | str, tokens: TokenSet, wanted: dict[str, Any] | None = None) -> None:
        super().__init__(place, "scores")
        made = self.manifest.made_from
        wanted = {"tokens": tokens.manifest.content_hash, **(wanted or {})}
        refuse_mismatch(
            f"{self.folder}/manifest.json",
            {k: made.get(k) for k in wanted},
            wanted,
            "These scores belong to other inputs. Run `slmctl score` again.",
        )
        shapes = [
            {
                "rows": [s.rows for s in m.shards],
                "tokens": [s.tokens for s in m.shards],
                "group_rows": m.group_rows,
                "seq_len": m.seq_len,
            }
            for m in (self.manifest, tokens.manifest)
        ]
        refuse_mismatch(f"{self.folder}: the shards", shapes[0], shapes[1], "Run `slmctl score` again.")


class RowReader:
    """Fetches rows by number, joining losses by position. Holds the last `cache_groups` row groups in memory, as they are
    stored. With `documents=False` the document column is not read: padding is known from the manifest. `joined` are further
    columns of score sets of the same tokens.

    Raises `InputError` for a column that a score set does not hold.
    """

    def __init__(
        self,
        tokens: TokenSet,
        scores: ScoreSet | None = None,
        cache_groups: int = 32,
        documents: bool = True,
        joined: Mapping[Joined, ScoreSet] | None = None,
    ) -> None:
        self.tokens, self.scores, self.cache_groups, self.documents = tokens, scores, cache_groups, documents
        self.joined = dict(joined or {})
        for (_, column), found in self.joined.items():
            if column not in found.manifest.format["columns"]:
                held = ", ".join(found.manifest.format["columns"])
                raise InputError(
                    f"{found.folder} holds no {column} (it holds {held}). Run `slmctl score` with score.entropy: true."
                )
        self._cache: OrderedDict[int, Future[Rows]] = OrderedDict()
        self._lock = threading.Lock()

    def group(self, group: int) -> Rows:
        """All rows of one row group. A thread that asks for what another is reading waits for it."""
        with self._lock:
            found = self._cache.get(group)
            if found is not None:
                self._cache.move_to_end(group)
            else:
                mine: Future[Rows] = Future()
                self._cache[group] = mine
                if len(self._cache) > self.cache_groups:
                    self._cache.popitem(last=False)
        if found is not None:
            return found.result()
        try:
            mine.set_result(self._read(group))
        except BaseException as e:
            with self._lock:
                self._cache.pop(group, None)
            mine.set_exception(e)
            raise
        return mine.result()

    def _read(self, group: int) -> Rows:
        out = self.blank(int(self.tokens.group_rows[group]))
        self.read_into(group, out)
        return out

    def read_into(self, group: int, out: Rows) -> None:
        """Reads all rows of a row group to `out` (as `blank` makes it)."""
        columns = {"input_id": out.ids_BT}
        if self.documents:
            columns["document"] = out.document_BT
        else:
            out.document_BT.fill(0)
            out.document_BT.reshape(-1)[self.tokens.valid_tokens(group) :] = -1
        self.tokens.read_group(group, list(columns), columns)
        if self.scores is not None and out.ref_loss_BT is not None:
            self.scores.read_group(group, ["ref_loss"], {"ref_loss": out.ref_loss_BT})
        for key, found in self.joined.items():
            found.read_group(group, [key[1]], {key[1]: out.joined[key]})

    def blank(self, rows: int) -> Rows:
        """Room for so many rows, in the types in which they are stored."""
        shape = (rows, self.tokens.seq_len)
        ids = self.tokens.manifest.format["columns"]["input_id"]
        out = Rows(np.empty(shape, ids), np.empty(shape, np.int64 if self.documents else np.int8))
        if self.scores is not None:
            out.ref_loss_BT = np.empty(shape, self.scores.manifest.format["columns"]["ref_loss"])
        out.joined = {key: np.empty(shape, s.manifest.format["columns"][key[1]]) for key, s in self.joined.items()}
        return out

    def fetch(self, rows: np.ndarray, out: Rows | None = None) -> Rows:
        """Rows by number, in the order given, written straight to `out` (as `blank` makes it)."""
        out = out or self.blank(len(rows))
        groups = np.searchsorted(self.tokens.first_row, rows, side="right") - 1
        within = rows - self.tokens.first_row[groups]
        held: dict[int, Rows] = {}
        for i, (g, row) in enumerate(zip(groups.tolist(), within.tolist(), strict=True)):
            found = held.get(g) or held.setdefault(g, self.group(g))
            out.ids_BT[i] = found.ids_BT[row]  # row by row: each is one block of memory
            out.document_BT[i] = found.document_BT[row]
            if out.ref_loss_BT is not None and found.ref_loss_BT is not None:
                out.ref_loss_BT[i] = found.ref_loss_BT[row]
            for key, values in found.joined.items():
                out.joined[key][i] = values[row]
        return out
