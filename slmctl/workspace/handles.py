"""One stage's folder, or one set's: all that there is of the folders below the head of a stage."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slmctl.system.storage import Folder
from slmctl.workspace.stale import DONE

if TYPE_CHECKING:
    from slmctl.workspace.folders import Folders


@dataclass(frozen=True)
class StageFolder:
    """One stage's folder: what a stage has below its head, where it asks the workspace for nothing else."""

    folders: Folders
    path: Path

    @property
    def label(self) -> str:
        return str(self.path.relative_to(self.folders.root))

    def is_complete(self, inputs: dict[str, Any], last: str = DONE) -> bool:
        """As `Folders.is_complete`."""
        return self.folders.is_complete(self.path, inputs, last)

    def will_be_complete(self, inputs: dict[str, Any]) -> bool:
        """As `Folders.will_be_complete`."""
        return self.folders.will_be_complete(self.path, inputs)

    def begin(self, inputs: dict[str, Any], last: str = DONE, fresh: bool = False, lock: bool = True) -> bool:
        """As `Folders.begin`."""
        return self.folders.begin(self.path, inputs, last, fresh, lock)

    def refuse_change(self, inputs: dict[str, Any], advice: str) -> None:
        """As `Folders.refuse_change`."""
        self.folders.refuse_change(self.path, inputs, advice)

    def lock(self) -> None:
        """Keeps every other process out. Raises `SlmError` where one works on the folder."""
        self.folders.locks.lock(self.label)

    def hold(self) -> None:
        """Keeps others from changing what is read here."""
        self.folders.locks.hold(self.label)

    @property
    def accepted(self) -> list[str]:
        """What `accept_mismatch` let through since the stage began."""
        return self.folders.accepted

    def changed(self, found: Any, inputs: Any) -> bool:
        """As `Folders.changed`."""
        return self.folders.changed(self.label, found, inputs)

    def stale_place(self) -> Path:
        """A new name in stale/, for what the folder has been."""
        return self.folders.stale_place(self.label)

    def record(self, made: bool = True) -> None:
        """As `Folders.record`."""
        self.folders.record(made)

    def complete(self, facts: dict[str, Any] | None = None) -> None:
        """Marks the stage complete; the configuration is kept by the command that it is a part of."""
        self.folders.finish(self.path, facts)

    def finish(self, facts: dict[str, Any] | None = None) -> None:
        """Marks the stage complete, and keeps the configuration that it was made with."""
        self.complete(facts)
        self.folders.record()


@dataclass(frozen=True)
class SetFolder:
    """One folder of shards: what the making of a set has below its stage's head, as `StageFolder`."""

    folders: Folders
    label: str
    """`tokens/<set>` or `scores/<reference>`."""

    @property
    def folder(self) -> Folder:
        """Where its shards lie."""
        return self.folders.places.set(self.label)

    def begin(
        self,
        made_from: dict[str, Any],
        plan: Callable[[], dict[str, Any]],
        settle: Callable[[dict[str, Any], dict[str, Any] | None], dict[str, Any]] = lambda wanted, _: wanted,
    ) -> dict[str, Any]:
        """As `Folders.begin_set`."""
        return self.folders.begin_set(self.folder, self.label, made_from, plan, settle)

    def claim_changed(self, made_from: dict[str, Any]) -> None:
        """As `Folders.claim_changed`."""
        self.folders.claim_changed(self.folder, self.label, made_from)

    def record(self, made: bool = True) -> None:
        """As `Folders.record`."""
        self.folders.record(made)
