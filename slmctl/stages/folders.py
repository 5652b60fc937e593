"""Folders under `output_dir`: begun, complete, made from other inputs; whole or absent, and never deleted.

Each stage's folder holds `inputs.json` (all that the stage's result depends on, by content) from its start, and a last
file, written when it is complete. Same inputs and complete: skip. Same inputs and not complete: go on. Other inputs:
the old folder is moved aside, never deleted, and the stage says what changed. Sets of shards, which many workers make at
once, hold `plan.json` instead, and `manifest.json` when they are complete.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import yaml

from slmctl.config import PipelineConfig
from slmctl.config_file import dump_config
from slmctl.console import say
from slmctl.errors import ConfigError, InputError, MismatchError, SlmError
from slmctl.files import HashCache, is_temporary, publishing, read_json, sweep, write_json
from slmctl.stages.changes import changes, few
from slmctl.stages.locks import Locks
from slmctl.storage import Folder, LocalFolder
from slmctl.store.build import PLAN, read_plan
from slmctl.store.manifest import differences
from slmctl.sweeps import read_sweeps, with_sweeps

RESOLVED = "config.resolved.yaml"
INPUTS = "inputs.json"
DONE = "done.json"
ACCEPTED = "accepted_mismatches"
"""Key of what `accept_mismatch` let through, in the record of what was made from it."""

SETS = ("tokens/", "scores/")
"""How the labels of sets of shards begin."""


class Folders:
    """The folders of one pipeline, their locks and the hashes of what they were made from."""

    def __init__(self, config: PipelineConfig) -> None:
        self.config = config
        self.root = Path(config.output_dir)
        self.store = Folder.at(config.store_dir or self.root)
        self.locks = Locks(self.root, self.store, SETS)
        self.hashes = HashCache(self.root / ".cache" / "hashes.json")
        self.accepted: list[str] = []
        """What `accept_mismatch` let through since a stage began."""
        self.noted: set[str] = set()
        """Labels of what is used though texts that it was made from are gone, once that was said."""

    def open(self) -> Self:
        """Takes the output_dir for this pipeline.

        Raises `ConfigError` where another pipeline's files are in it.
        """
        resolved = self.root / RESOLVED
        self.config = with_sweeps(self.config, read_sweeps(self.root))
        sweep(self.root)
        sweep(self.root / ".cache")
        others = self._others()  # before the record, which whoever makes others publishes first
        if resolved.is_file():
            with open(resolved, encoding="utf-8") as f:
                found = yaml.safe_load(f)
            name = found.get("name") if isinstance(found, dict) else None
            if name != self.config.name:
                raise ConfigError(
                    f"output_dir {self.root} belongs to pipeline {name!r}, this one is {self.config.name!r}. "
                    "Choose another output_dir (-o output_dir=...)."
                )
        elif self.root.exists() and not self.root.is_dir():
            raise ConfigError(f"output_dir {self.root} is a file. Choose another output_dir (-o output_dir=...).")
        elif others:
            raise ConfigError(f"output_dir {self.root} holds other files. Choose a new or empty folder (-o output_dir=...).")
        if not resolved.is_file():
            self.record()
        return self

    def _others(self) -> list[Path]:
        """Files in output_dir that no pipeline's first steps put there."""
        known = {"data", ".cache", RESOLVED}
        return [f for f in self.root.iterdir() if f.name not in known and not is_temporary(f)] if self.root.is_dir() else []

    def record(self) -> None:
        """Keeps the configuration that a stage is made with; a command that makes nothing leaves the old one."""
        with publishing(self.root / RESOLVED) as temporary:
            temporary.write_text(dump_config(self.config), encoding="utf-8")

    def is_complete(self, directory: Path, inputs: dict[str, Any], last: str = DONE) -> bool:
        """Whether a stage's folder was completed with these very inputs."""
        path = directory / INPUTS
        return (directory / last).is_file() and path.is_file() and not differences(strict(read_json(path)), inputs)

    def begin(
        self,
        directory: Path,
        inputs: dict[str, Any],
        last: str = DONE,
        fresh: bool = False,
        lock: bool = True,
        keep: tuple[str, ...] = (),
    ) -> bool:
        """Readies a stage's folder. Returns True where the stage is complete with these very inputs.

        `fresh` moves aside whatever is there; folders named in `keep`, whose files know what they were made from, stay.
        Raises `SlmError` where another process works on the folder.
        """
        label = directory.relative_to(self.root)
        if lock and (fresh or not self._held_complete(directory, inputs, last)):
            self.locks.lock(str(label))
        path = directory / INPUTS
        found = read_json(path) if path.is_file() else None
        if found is not None and not fresh and not self.changed(str(label), strict(found), inputs):
            sweep(directory)
            if not set(self.accepted) <= set(found.get(ACCEPTED, [])):
                write_json(path, {**found, ACCEPTED: sorted({*self.accepted, *found.get(ACCEPTED, [])})})
            return (directory / last).is_file()
        if self.accepted:
            inputs = {**inputs, ACCEPTED: sorted(self.accepted)}
        if directory.is_dir() and any(directory.iterdir()):
            self.locks.lock(str(label))
            aside = self.move_aside(directory)
            for name in keep:
                if (aside / name).is_dir():
                    directory.mkdir(exist_ok=True)
                    os.replace(aside / name, directory / name)
        self.record()
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
        self, folder: Folder, label: str, made_from: dict[str, Any], plan: Callable[[], dict[str, Any]]
    ) -> dict[str, Any]:
        """Readies the folder of a set of shards for any number of workers, and returns its plan: the one that was published
        first. To be called while `planning`.

        Raises `SlmError` where a set made from other inputs is there and others work on it, `MismatchError` where it is on
        an object store, which nothing is moved aside on.
        """
        files = [n for n in folder.listing() if not n.startswith(".")]  # before the plan, which another may publish meanwhile
        found = read_plan(folder)
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
            if strict(found["made_from"]) != strict(made_from):
                raise SlmError(f"another slmctl has just begun {label} from other inputs. Give each its own output_dir.")
        folder.sweep()
        self.locks.hold(label)
        self.record()
        return found

    def claim_changed(self, folder: Folder, label: str, made_from: dict[str, Any]) -> None:
        """Raises `SlmError` where a set made from other inputs is there and others work on it."""
        found = read_plan(folder)
        if found is not None and differences(strict(found["made_from"]), strict(made_from)):
            self.locks.lock(label)

    def clear_set(self, folder: Folder, label: str) -> None:
        if not isinstance(folder, LocalFolder) or self.config.store_dir is not None:
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
        name = label.replace(os.sep, "-")
        return self.root / "stale" / f"{name}-{time.strftime('%Y%m%dT%H%M%S')}-{time.time_ns() % 10**6:06d}"

    def finish(self, directory: Path, facts: dict[str, Any] | None = None) -> None:
        """Marks a stage complete."""
        write_json(directory / DONE, {"completed": time.strftime("%Y-%m-%dT%H:%M:%S%z"), **(facts or {})})
        self.locks.share(str(directory.relative_to(self.root)))


def strict(made_from: Any) -> Any:
    """What a result depends on, without what was let through on the way: to go on with it, nothing is made anew."""
    return {k: v for k, v in made_from.items() if k != ACCEPTED} if isinstance(made_from, dict) else made_from
