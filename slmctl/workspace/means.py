"""What a workspace works with: where things lie, who may work on them, what was hashed, and whether the Hub may be asked.

A command that makes something takes the first set of means; one that only looks takes the other, with which nothing is locked,
kept, fetched or written.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from slmctl.config.pipeline import PipelineConfig
from slmctl.system.errors import InputError
from slmctl.system.hashes import HashCache
from slmctl.system.storage import Folder
from slmctl.workspace.locks import Locks
from slmctl.workspace.places import Places

SETS = ("tokens/", "scores/")
"""How the labels of sets of shards begin."""


@dataclass(frozen=True)
class Means:
    places: Places
    locks: Locks
    hashes: HashCache
    fetches: bool = True
    """Whether models that are not here are fetched from the Hub."""

    def refuse_to_fetch(self, path: str | None) -> None:
        """Raises `InputError` for a model that is not here, where none is fetched."""
        if path is not None and not self.fetches and not Path(path).is_dir():
            raise InputError(f"{path} is no folder here, and the Hub was not asked")


def to_work(config: PipelineConfig) -> Means:
    root, store = _roots(config)
    return Means(Places(root, store), Locks(root, store, SETS), HashCache(_hashes(root)))


def to_look(config: PipelineConfig, elsewhere: Mapping[str, Path]) -> Means:
    """`elsewhere` says, by label, where a result is looked for that is not in its own place."""
    root, store = _roots(config)
    return Means(Places(root, store, elsewhere), _NoLocks(root, store, SETS), _NothingKept(_hashes(root)), fetches=False)


def _roots(config: PipelineConfig) -> tuple[Path, Folder]:
    root = Path(config.output_dir)
    return root, Folder.at(config.store_dir or root)


def _hashes(root: Path) -> Path:
    return root / ".cache" / "hashes.json"


class _NoLocks(Locks):
    def hold(self, label: str) -> None:
        """Who only looks is in nobody's way."""

    def lock(self, label: str) -> None:
        """As `hold`."""


class _NothingKept(HashCache):
    def save(self) -> None:
        """What is hashed on the way is forgotten."""
