"""The manifest binds a set of shards to what it was made from. It is written last, so a set without one is not whole."""

from __future__ import annotations

import platform
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from slmctl.system.errors import CorruptError, InputError, MismatchError
from slmctl.system.hashes import sha256_json
from slmctl.system.storage import Folder

SCHEMA_VERSION = 3
READ_VERSIONS = (2, 3)
"""Version 2 has token ids in split bytes (BYTE_STREAM_SPLIT), which version 3 reads as well."""
FILE = "manifest.json"


@dataclass(frozen=True)
class Shard:
    """One file: its place in the set, its size and its content."""

    file: str
    first_row: int
    rows: int
    groups: int
    tokens: int
    """Positions that are not padding."""
    bytes: int
    footer_sha256: str
    """SHA-256 of the file's footer, which lists the hash of every column chunk: it stands for the whole content."""


@dataclass(frozen=True)
class Manifest:
    """A set of token shards (`kind` tokens) or score shards (`kind` scores)."""

    kind: Literal["tokens", "scores"]
    seq_len: int
    group_rows: int
    """Rows in each Parquet row group but a shard's last."""
    shards: list[Shard]
    made_from: dict[str, Any]
    """Content hashes and settings that the values depend on: a reader compares them."""
    format: dict[str, Any]
    """Columns, types, special ids, sentinel and shift convention."""
    counts: dict[str, int]
    accepted_mismatches: list[str] = field(default_factory=list)
    """What `accept_mismatch` let through while the set was made."""
    schema_version: int = SCHEMA_VERSION
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        return sum(s.rows for s in self.shards)

    @property
    def content_hash(self) -> str:
        """Hash of all but the library versions: what a dependent set names."""
        return sha256_json({k: v for k, v in asdict(self).items() if k != "versions"})

    def save(self, place: Folder | Path, replace: bool = False) -> bool:
        """Publishes it. Returns False where another was there first and stays."""
        return Folder.at(place).put_json(FILE, {**asdict(self), "content_hash": self.content_hash}, replace)


def library_versions() -> dict[str, str]:
    names = ("slmctl", "torch", "transformers", "tokenizers", "pyarrow", "numpy")
    return {"python": platform.python_version(), **{n: version(n) for n in names}}


def exists(place: Folder | Path) -> bool:
    return Folder.at(place).exists(FILE)


def is_complete(place: Folder | Path, kind: str) -> bool:
    """Whether every shard that the manifest names is there, in its size."""
    folder = Folder.at(place)
    manifest, files = load_manifest(folder, kind), folder.listing()
    return all(s.file in files and files[s.file].size == s.bytes for s in manifest.shards)


def load_manifest(place: Folder | Path, kind: str) -> Manifest:
    """Raises `InputError` where there is none, `CorruptError` where it was altered, `MismatchError` for another kind."""
    folder = Folder.at(place)
    path = f"{folder}/{FILE}"
    try:
        data = folder.get_json(FILE)
    except FileNotFoundError:
        stage = "prepare" if kind == "tokens" else "score"
        raise InputError(f"{path} does not exist: the set is absent or not complete. Run `slmctl {stage}` first.") from None
    found = data.get("schema_version") if isinstance(data, dict) else None
    if type(found) is not int or found not in READ_VERSIONS:
        reads = " and ".join(map(str, READ_VERSIONS))
        raise MismatchError(f"{path}: schema_version is {found}, this slmctl reads {reads}. Make the set anew.")
    if data.get("kind") != kind:
        raise MismatchError(f"{path}: kind is {data.get('kind')!r}, wanted {kind!r}.")
    claimed = data.pop("content_hash", None)
    try:
        given = {k: data[k] for k in ("schema_version", "accepted_mismatches")}  # which a manifest in the making may leave out
        manifest = Manifest(**{**data, **given, "shards": [Shard(**s) for s in data["shards"]]})
    except (TypeError, KeyError) as e:
        raise CorruptError(f"{path} lacks or has unknown fields ({e}). Make the set anew.") from None
    if claimed != manifest.content_hash:
        raise CorruptError(f"{path} was altered after it was written (its content hash differs). Make the set anew.")
    return manifest


def refuse_mismatch(where: str, found: dict[str, Any], wanted: dict[str, Any], advice: str) -> None:
    """Raises `MismatchError` naming each differing field, what it is and what it should be."""
    differ = differences(found, wanted)
    if differ:
        listing = "\n".join(f"  {d}" for d in differ)
        raise MismatchError(f"{where} does not match:\n{listing}\n{advice}")


def differences(found: Any, wanted: Any, path: str = "") -> list[str]:
    """`field: found X, wanted Y` for each leaf in which two JSON-like values differ."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        keys = [*wanted, *[k for k in found if k not in wanted]]
        return [d for k in keys for d in differences(found.get(k), wanted.get(k), f"{path}.{k}" if path else str(k))]
    if isinstance(found, list) and isinstance(wanted, list) and len(found) == len(wanted):
        return [d for i in range(len(found)) for d in differences(found[i], wanted[i], f"{path}[{i}]")]
    if found == wanted:
        return []
    return [f"{path}: found {_short(found)}, wanted {_short(wanted)}"]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
