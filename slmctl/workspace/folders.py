"""Folders under `output_dir`: begun, complete, made from other inputs; whole or absent, and never deleted.

Each stage's folder holds `inputs.json` (all that the stage's result depends on, by content) from its start, and a last
file, written when it is complete. Same inputs and complete: skip. Same inputs and not complete: go on. Other inputs:
the old folder is moved aside, never deleted, and the stage says what changed. Sets of shards, which many workers make at
once, hold `plan.json` instead, and `manifest.json` when they are complete.
"""

from __future__ import annotations

import errno
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self, TypeGuard

from slmctl.config.pipeline import PipelineConfig
from slmctl.config.sweeps import read_sweeps, with_sweeps
from slmctl.store.build import PLAN, read_plan
from slmctl.store.manifest import differences
from slmctl.system.console import say
from slmctl.system.errors import InputError, MismatchError, SlmError
from slmctl.system.files import disk_errors, read_json, sweep, write_json
from slmctl.system.local_storage import LocalFolder
from slmctl.system.storage import Folder
from slmctl.workspace import mismatch, output_dir
from slmctl.workspace.changes import changes, few
from slmctl.workspace.handles import SetFolder as SetFolder
from slmctl.workspace.handles import StageFolder as StageFolder
from slmctl.workspace.means import SETS as SETS
from slmctl.workspace.means import Means, to_work
from slmctl.workspace.output_dir import RESOLVED as RESOLVED
from slmctl.workspace.stale import ACCEPTED as ACCEPTED
from slmctl.workspace.stale import DONE as DONE
from slmctl.workspace.stale import INPUTS as INPUTS
from slmctl.workspace.stale import STALE, name_in_stale, same_set, same_stage, strict


class Folders:
    """The folders of one pipeline, their locks and the hashes of what they were made from."""

    def __init__(self, config: PipelineConfig, means: Means | None = None) -> None:
        """`means` to look and nothing more, or to work, which is the default. Raises `ConfigError` where output_dir or store_dir
        can be no folder."""
        output_dir.refuse_places(config)
        self.config = config
        self.means = means = means or to_work(config)
        self.places, self.locks, self.hashes = means.places, means.locks, means.hashes
        self.root, self.store = means.places.root, means.places.store
        self.accepted: list[str] = []
        """What `accept_mismatch` let through since a stage began."""
        self.noted: set[str] = set()
        """Labels of what is used though texts that it was made from are gone, once that was said."""
        self.took_back = False
        """Whether something was taken back from stale/ since the configuration was last kept."""

    def open(self) -> Self:
        """Takes the output_dir for this pipeline; what is kept of the configuration is not touched (see `record`).

        Raises `ConfigError` where another pipeline's files are in it.
        """
        self.config = with_sweeps(self.config, read_sweeps(self.root))
        sweep(self.root)
        sweep(self.root / ".cache")
        output_dir.refuse_others(self.root, self.config.name)
        return self

    def record(self, made: bool = True) -> None:
        """Keeps the configuration that a stage was made with, once it is complete: a command that fails, and one that makes
        nothing (not `made`, nothing taken back), leave what was kept. Raises `ConfigError` where another pipeline's is kept."""
        if output_dir.is_kept(self.root):
            if not (made or self.took_back):
                return
            output_dir.refuse_other_name(self.root, self.config.name)
        output_dir.keep(self.root, self.config)
        self.took_back = False

    def refuse(self, label: str, found: dict[str, Any], wanted: dict[str, Any], advice: str) -> None:
        """Raises `MismatchError` naming each differing field, what was found and what was wanted; a field that
        `accept_mismatch` names is let through with a warning, and kept in `accepted` for the run's record."""
        mismatch.refuse(label, found, wanted, advice, self.config.accept_mismatch, self.accepted)

    def is_complete(self, directory: Path, inputs: dict[str, Any], last: str = DONE) -> bool:
        """Whether a stage's folder was completed with these very inputs."""
        path = directory / INPUTS
        return (directory / last).is_file() and path.is_file() and not differences(strict(read_json(path)), inputs)

    def will_be_complete(self, directory: Path, inputs: dict[str, Any]) -> bool:
        """Whether it is, or is once it was taken back from stale/."""
        if self.is_complete(directory, inputs):
            return True
        path = directory / INPUTS
        if path.is_file() and not differences(strict(read_json(path)), inputs):
            return False
        aside = same_stage(self.root, str(directory.relative_to(self.root)), inputs, DONE)
        return aside is not None and (aside / DONE).is_file()

    def begin(
        self,
        directory: Path,
        inputs: dict[str, Any],
        last: str = DONE,
        fresh: bool = False,
        lock: bool = True,
        keep: tuple[str, ...] = (),
    ) -> bool:
        """Readies a stage's folder. Returns True where the stage is complete with these very inputs. Where what is there was
        made from others, and stale/ holds what was made from these, the two change places.

        `fresh` moves aside whatever is there; folders named in `keep`, whose files know what they were made from, stay.
        Raises `SlmError` where another process works on the folder.
        """
        label = directory.relative_to(self.root)
        if lock and (fresh or not self._held_complete(directory, inputs, last)):
            self.locks.lock(str(label))
        path = directory / INPUTS
        found = read_json(path) if path.is_file() else None
        if not fresh and (found is None or differences(strict(found), inputs)):
            aside = same_stage(self.root, str(label), inputs, last)
            if aside is not None and self.take_back(aside, directory, str(label)):
                found = read_json(path)
        if found is not None and not fresh and not self.changed(str(label), strict(found), inputs):
            sweep(directory)
            if not set(self.accepted) <= set(found.get(ACCEPTED, [])):
                write_json(path, {**found, ACCEPTED: sorted({*self.accepted, *found.get(ACCEPTED, [])})})
            if not (directory / last).is_file():
                return False
            self.locks.share(str(label))  # what was taken back, and is complete
            return True
        if self.accepted:
            inputs = {**inputs, ACCEPTED: sorted(self.accepted)}
        if directory.is_dir() and any(directory.iterdir()):
            self.locks.lock(str(label))
            former = self.move_aside(directory)
            for name in keep:
                if (former / name).is_dir():
                    directory.mkdir(exist_ok=True)
                    os.replace(former / name, directory / name)
        with disk_errors(directory):  # by which this output_dir is known again, should nothing be completed
            (self.root / ".cache" / "locks").mkdir(parents=True, exist_ok=True)
        write_json(path, inputs)
        return False

    def _held_complete(self, directory: Path, inputs: dict[str, Any], last: str) -> bool:
        """Whether a stage is complete, and stays so: others may read it, or hold it too."""
        if not self.is_complete(directory, inputs, last):
            return False
        self.locks.hold(str(directory.relative_to(self.root)))
        return self.is_complete(directory, inputs, last)

    def refuse_change(self, directory: Path, inputs: dict[str, Any], advice: str) -> None:
        """Raises `MismatchError` where a stage's folder was made from other inputs, or is not there."""
        path = directory / INPUTS
        if not path.is_file():
            raise InputError(f"{directory} is not there yet. {advice}")
        if changed := changes(strict(read_json(path)), inputs):
            listing = "\n".join(f"  {line}" for line in few(changed))
            raise MismatchError(f"{directory} was made from other inputs:\n{listing}\n{advice}")

    def changed(self, label: str, found: Any, inputs: Any) -> bool:
        """Whether a folder was made from other inputs; says which."""
        changed = changes(found, inputs)
        if changed:
            say(f"{label}: made from other inputs, so it is made anew. Changed:")
            for line in few(changed):
                say(f"  {line}")
        return bool(changed)

    def begin_set(
        self,
        folder: Folder,
        label: str,
        made_from: dict[str, Any],
        plan: Callable[[], dict[str, Any]],
        settle: Callable[[dict[str, Any], dict[str, Any] | None], dict[str, Any]] = lambda wanted, _: wanted,
    ) -> dict[str, Any]:
        """Readies the folder of a set of shards for any number of workers, and returns its plan: the one that was published
        first. To be called while `planning`. `settle` completes `made_from`, given what a plan that is there was made from.

        Raises `SlmError` where a set made from other inputs is there and others work on it, `MismatchError` where it is on
        an object store, which nothing is moved aside on.
        """
        files = [n for n in folder.listing() if not n.startswith(".")]  # before the plan, which another may publish meanwhile
        found = read_plan(folder)
        wanted, made_from = made_from, settle(made_from, strict(found["made_from"]) if found else None)
        if self._has_stale(folder) and (found is None or differences(strict(found["made_from"]), strict(made_from))):
            aside = same_set(self.root, label, made_from)
            if aside is not None and self.take_back(aside, folder.path, label):
                files, found = [], read_plan(folder)
        if found is None and files:
            say(f"{label}: its plan.json is missing (it was made by an older slmctl, or taken away), so it is made anew")
            self.clear_set(folder, label)
        elif found is not None and self.changed(label, strict(found["made_from"]), strict(made_from)):
            self.clear_set(folder, label)
            found = None
        if found is None:
            folder.put_json(PLAN, {"made_from": made_from, **plan()})
            found = read_plan(folder)
            assert found is not None
            if strict(found["made_from"]) != strict(settle(wanted, strict(found["made_from"]))):
                raise SlmError(f"another slmctl has just begun {label} from other inputs. Give each its own output_dir.")
        folder.sweep()
        self.locks.hold(label)
        return found

    def claim_changed(self, folder: Folder, label: str, made_from: dict[str, Any]) -> None:
        """Raises `SlmError` where a set made from other inputs is there and others work on it."""
        found = read_plan(folder)
        if found is not None and differences(strict(found["made_from"]), strict(made_from)):
            self.locks.lock(label)

    def _has_stale(self, folder: Folder) -> TypeGuard[LocalFolder]:
        """Whether sets in `folder` are moved aside, and taken back: those that lie in output_dir itself."""
        return isinstance(folder, LocalFolder) and self.config.store_dir is None

    def clear_set(self, folder: Folder, label: str) -> None:
        if not self._has_stale(folder):
            raise MismatchError(
                f"{folder} holds a set that was made from other inputs, perhaps by another pipeline. Give another store_dir, or "
                "delete that folder first."
            )
        self.locks.lock(label)
        self.move_aside(folder.path, label)

    @contextmanager
    def planning(self) -> Iterator[None]:
        """One worker plans at a time. Plans are published by whoever is first, so that two that plan at once do no harm."""
        with self.locks.planning() as beat:
            self.hashes.load()  # what those before this one have hashed
            self.hashes.beat = beat
            yield

    def move_aside(self, directory: Path, label: str | None = None) -> Path:
        stale = self.stale_place(label or str(directory.relative_to(self.root)))
        stale.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(directory, stale)  # a rename, where store_dir is on the same file system
        say(f"{directory}: the old files are kept in {stale}; delete them when you no longer need them")
        return stale

    def stale_place(self, label: str) -> Path:
        """A new name in stale/, for what `label` has been."""
        return self.root / STALE / f"{name_in_stale(label)}-{time.strftime('%Y%m%dT%H%M%S')}-{time.time_ns() % 10**6:06d}"

    def take_back(self, aside: Path, directory: Path, label: str) -> bool:
        """Puts `aside`, of stale/, in the place of what is in `directory`, which goes to stale/. Returns False where another
        process was first. Raises `SlmError` where another process works on the folder."""
        self.locks.lock(label)
        if directory.is_dir() and any(directory.iterdir()):
            self.move_aside(directory, label)
        directory.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.rename(aside, directory)
        except OSError as e:
            if e.errno != errno.EXDEV:
                return False
            directory.rmdir() if directory.is_dir() else None
            shutil.move(aside, directory)
        say(f"{label}: taken back from {aside}, which was made from what is wanted now")
        self.took_back = True
        return True

    def stage(self, label: str) -> StageFolder:
        """The folder of `base`, `reference`, `pretrain/<arm>`, `tokenizer` or `eval`."""
        return StageFolder(self, self.places.stage(label))

    def shards(self, label: str) -> SetFolder:
        """The folder of `tokens/<set>` or `scores/<reference>`."""
        return SetFolder(self, label)

    def finish(self, directory: Path, facts: dict[str, Any] | None = None) -> None:
        """Marks a stage complete."""
        write_json(directory / DONE, {"completed": time.strftime("%Y-%m-%dT%H:%M:%S%z"), **(facts or {})})
        self.locks.share(str(directory.relative_to(self.root)))
