"""Checkpoints: a directory that is whole or absent, written beside training, verified when it is loaded.

What is saved is copied first, so that training goes on at once; a thread writes it, hashes it and publishes it by one rename.
Every rank writes its own part; a checkpoint can be read by any number of ranks, in any layout.
"""

from __future__ import annotations

import copy
import os
import shutil
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch.distributed as dist

from slmctl.store.manifest import refuse_mismatch
from slmctl.system.console import warn
from slmctl.system.errors import CorruptError, SlmError
from slmctl.system.files import disk_errors, fsync_dir, sweep, write_json
from slmctl.system.hashes import sha256_file, sha256_json
from slmctl.system.temporaries import temporary_beside
from slmctl.training.checkpoint_files import (
    STATE,
    all_checkpoints,
    broken_file,
    directory_of,
    no_warnings,
    read_state,
    require_checkpoint,
)
from slmctl.training.checkpoint_names import refuse_other_tensors
from slmctl.training.ranks import Ranks
from slmctl.training.state import Progress, TrainingState


class Checkpoints:
    """The checkpoints of one run. `made_from` is what the run depends on, by content. Of those saved, the newest
    `keep_last` stay, and those of steps that are multiples of `keep_every`."""

    def __init__(self, root: Path, made_from: dict[str, Any], keep_last: int, keep_every: int, ranks: Ranks) -> None:
        self.root, self.made_from, self.ranks = root, made_from, ranks
        self.keep_last, self.keep_every = keep_last, keep_every
        self._writer: threading.Thread | None = None
        self._failure: BaseException | None = None

    # --- saving ---

    def save(self, progress: Progress, training: TrainingState) -> Path:
        """Begins to save, after the last save has ended. Returns where it will lie."""
        self.wait()
        final = directory_of(self.root, progress.step)
        try:
            temporary = Path(self.ranks.first(lambda: str(self._temporary(final))))
        except (SlmError, OSError) as e:  # told as what goes wrong later
            self._failure = e
            return final
        counts = self.ranks.sum_(training.counts.clone()).cpu()
        state = training.state(counts)
        state = state if training.on_gpu else copy.deepcopy(state)  # from a GPU it is a copy already
        facts = {"progress": copy.deepcopy(asdict(progress)), "made_from": self.made_from}
        self._writer = threading.Thread(target=self._write, args=(final, temporary, state, facts), name="checkpoint")
        self._writer.start()
        return final

    @staticmethod
    def _temporary(final: Path) -> Path:
        with disk_errors(final):
            temporary = temporary_beside(final)
            temporary.mkdir(parents=True)
            return temporary

    def _write(self, final: Path, temporary: Path, state: dict[str, Any], facts: dict[str, Any]) -> None:
        from torch.distributed.checkpoint import state_dict_saver
        from torch.distributed.checkpoint.api import CheckpointException
        from torch.distributed.checkpoint.filesystem import FileSystemWriter

        problem: BaseException | None = None
        try:
            with no_warnings():
                writer = FileSystemWriter(temporary)
                alone = self.ranks.size == 1
                state_dict_saver.save(state, storage_writer=writer, process_group=self.ranks.writing, no_dist=alone)
            files = {f.name: sha256_file(f) for f in sorted(temporary.iterdir()) if self._is_mine(f)}
        except CheckpointException as e:
            files, problem = {}, next((c for c, _ in e.failures.values()), e)
        except BaseException as e:
            files, problem = {}, e
        try:
            found = self._gather((files, str(problem) if problem is not None else None))
            bad = next((text for _, text in found if text is not None), None)
            if bad is not None:
                raise problem or SlmError(f"another rank failed: {bad}")
            if self.ranks.is_first:
                facts["files"] = {n: h for part, _ in found for n, h in part.items()}
                self._publish(final, temporary, facts)
        except BaseException as e:
            self._failure = e
        finally:
            if self.ranks.is_first:
                shutil.rmtree(temporary, ignore_errors=True)

    def _is_mine(self, file: Path) -> bool:
        return file.name.startswith(f"__{self.ranks.rank}_") or (self.ranks.is_first and not file.name.startswith("__"))

    def _gather(self, here: Any) -> list[Any]:
        if self.ranks.size == 1:
            return [here]
        found: list[Any] = [None] * self.ranks.size
        dist.all_gather_object(found, here, group=self.ranks.writing)
        return found

    def _publish(self, final: Path, temporary: Path, facts: dict[str, Any]) -> None:
        with disk_errors(final):
            write_json(temporary / STATE, {**facts, "sha256": sha256_json(facts)})
            fsync_dir(temporary)
            if not (final / STATE).is_file():  # else it was saved before
                os.rename(temporary, final)
            fsync_dir(final.parent)
        for old in all_checkpoints(self.root)[: -self.keep_last]:
            step = int(old.name.removeprefix("step-"))
            if not self.keep_every or step % self.keep_every:
                gone = temporary_beside(old)  # so that no half of it is left under its name
                with suppress(OSError):
                    os.rename(old, gone)
                shutil.rmtree(gone, ignore_errors=True)

    def failed(self) -> BaseException | None:
        """What went wrong with a save that has ended, told once."""
        failure, self._failure = (self._failure, None) if not self.busy else (None, self._failure)
        return failure

    @property
    def busy(self) -> bool:
        return self._writer is not None and self._writer.is_alive()

    def wait(self, beat: Callable[[], None] = lambda: None) -> None:
        """Until the save in hand has ended; `beat` is called now and then."""
        while self.busy and self._writer is not None:
            beat()
            self._writer.join(10)
        self._writer = None

    # --- loading ---

    def load(self, training: TrainingState, step: int | None = None) -> Progress | None:
        """Loads the newest checkpoint that verifies, or that of `step`, in place; None where there is none.

        A broken one is named in a warning, and the one before it is taken. Raises `MismatchError` for a checkpoint of a run
        that was made from something else, `CorruptError` where none can be read.
        """
        if self.ranks.is_first:
            sweep(self.root)
        for name in self.ranks.first(lambda: self._candidates(step)):
            directory = self.root / name
            facts, problem = self.ranks.first(lambda d=directory: read_state(d))  # type: ignore[misc]
            if problem is None:
                refuse_mismatch(
                    f"checkpoint {directory}", facts["made_from"], self.made_from, "It belongs to another run. Move it away."
                )
                problem = self._broken_files(directory, facts["files"]) or self._read(directory, training)
            if problem is None:
                self.ranks.first(lambda n=name: self._put_aside_after(n))  # type: ignore[misc]
                return Progress(**{"evaluated": facts["progress"]["step"], **facts["progress"]})  # older ones do not tell it
            if step is not None:
                raise CorruptError(f"{problem} Choose another step, or give --resume auto.")
            if self.ranks.is_first:
                broken = directory.with_name(f"broken-{name}")  # out of the way of pruning, yet not lost
                shutil.rmtree(broken, ignore_errors=True)
                os.rename(directory, broken)
                warn(f"{problem} It is kept as {broken.name}; falling back to the checkpoint before it.")
        if self.ranks.first(lambda: any(self.root.glob("broken-step-*"))):
            raise CorruptError(f"no checkpoint in {self.root} can be read. Give --resume never to start over.")
        return None

    def _candidates(self, step: int | None) -> list[str]:
        """Names of the checkpoints to try, newest first."""
        return [d.name for d in all_checkpoints(self.root)[::-1]] if step is None else [require_checkpoint(self.root, step).name]

    def _put_aside_after(self, name: str) -> None:
        """Keeps checkpoints of later steps than the one that was loaded under another name."""
        for directory in all_checkpoints(self.root):
            if directory.name > name:
                later = self.root / f"later-{directory.name}"
                shutil.rmtree(later, ignore_errors=True)
                os.rename(directory, later)

    def _broken_files(self, directory: Path, files: dict[str, str]) -> str | None:
        """Each rank hashes its share of the files."""
        mine = {name: files[name] for name in sorted(files)[self.ranks.rank :: self.ranks.size]}
        return next((p for p in self._gather(broken_file(directory, mine)) if p is not None), None)

    def _read(self, directory: Path, training: TrainingState) -> str | None:
        from torch.distributed.checkpoint import state_dict_loader
        from torch.distributed.checkpoint.api import CheckpointException
        from torch.distributed.checkpoint.filesystem import FileSystemReader

        state = training.state(training.counts.cpu().clone())
        refuse_other_tensors(directory, state)
        try:
            with no_warnings():
                reader, alone = FileSystemReader(directory), self.ranks.size == 1
                state_dict_loader.load(state, storage_reader=reader, process_group=self.ranks.writing, no_dist=alone)
        except CheckpointException as e:
            cause = next((c for c, _ in e.failures.values()), e)
            return f"checkpoint {directory} cannot be loaded ({cause})."
        training.load(state, self.ranks.is_first)
        return None
