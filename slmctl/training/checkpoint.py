"""Checkpoints: a directory that is whole or absent, written beside training, verified when it is loaded.

What is saved is copied first, so that training goes on at once; a thread writes it, hashes it and publishes it by one rename.
Every rank writes its own part; a checkpoint can be read by any number of ranks, in any layout.
"""

from __future__ import annotations

import copy
import os
import shutil
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from slmctl.store.manifest import refuse_mismatch
from slmctl.system.console import warn
from slmctl.system.errors import CorruptError, InputError, SlmError
from slmctl.system.files import disk_errors, fsync_dir, read_json, sha256_file, sha256_json, sweep, temporary_beside, write_json
from slmctl.training.checkpoint_names import parted, refuse_other_tensors, refuse_untied
from slmctl.training.ranks import Ranks

STATE = "state.json"


@dataclass
class Progress:
    """All that a run is, besides weights, optimizer and token counts. The data order needs the step alone."""

    step: int = 0
    tokens_seen: int = 0
    tokens_selected: int = 0
    best: dict[str, Any] | None = None
    """The best evaluation so far, where a run keeps the best: step, loss, and what all of it was measured on."""
    threshold: float | None = None
    """The running quantile of `scope: threshold`."""
    recent_losses: list[float] = field(default_factory=list)
    """What a loss spike is told by, where spikes are skipped."""
    skipped: int = 0
    skipped_in_a_row: int = 0
    micro_batch: int | None = None
    """What `micro_batch: auto` found."""
    machine: dict[str, Any] = field(default_factory=dict)
    """How many ranks the run has, of which device with how much memory."""
    threads: int | None = None
    """How many threads it computes with on a CPU."""
    evaluated: int = -1
    """Step after which it was evaluated last."""


@dataclass
class Training:
    """What a checkpoint holds in tensors. `counts` [2, V] are this rank's; all ranks' sum is saved."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    counts: Tensor

    @property
    def on_gpu(self) -> bool:
        return next(self.model.parameters()).is_cuda

    def state(self, counts: Tensor) -> dict[str, Any]:
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict

        model, optimizer = get_state_dict(self.model, self.optimizer, options=StateDictOptions(cpu_offload=self.on_gpu))
        return {"model": model, "optimizer": optimizer, "counts": counts}

    def load(self, state: dict[str, Any], first: bool) -> None:
        from torch.distributed.checkpoint.state_dict import set_state_dict

        set_state_dict(self.model, self.optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
        self.counts.copy_(state["counts"]) if first else self.counts.zero_()


def directory_of(root: Path, step: int) -> Path:
    return root / f"step-{step:08d}"


def all_checkpoints(root: Path) -> list[Path]:
    """Whole checkpoints, oldest first."""
    return sorted(d for d in root.glob("step-*") if (d / STATE).is_file())


def require_checkpoint(root: Path, step: int) -> Path:
    """Raises `InputError` where there is no checkpoint of that step."""
    found = all_checkpoints(root)
    if directory_of(root, step) not in found:
        there = ", ".join(str(int(d.name.removeprefix("step-"))) for d in found) or "none"
        raise InputError(f"--resume {step}: there is no checkpoint of that step in {root} (found {there}).")
    return directory_of(root, step)


def load_weights(directory: Path, model: nn.Module) -> Progress:
    """Loads the weights of a checkpoint, and nothing else of it, into a model that lies on one device.

    Raises `CorruptError` where a file of it is absent or altered, `MismatchError` where its weights are another model's.
    """
    from torch.distributed.checkpoint import state_dict_loader
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict

    facts, problem = Checkpoints._facts(directory)
    for name, wanted in facts.get("files", {}).items():
        if not (directory / name).is_file() or sha256_file(directory / name) != wanted:
            problem = f"checkpoint {directory} is broken: {name} is absent or altered."
    if problem is not None:
        raise CorruptError(f"{problem} Delete it, and evaluate the others.")
    weights = get_model_state_dict(model)
    refuse_other_tensors(directory, {"model": weights})
    with _quiet():
        read = parted(weights)
        state_dict_loader.load({"model": read}, storage_reader=FileSystemReader(directory), no_dist=True)
    refuse_untied(directory, weights, read)
    set_model_state_dict(model, weights)
    return Progress(**facts["progress"])


class Checkpoints:
    """The checkpoints of one run. `made_from` is what the run depends on, by content. Of those saved, the newest
    `keep_last` stay, and those of steps that are multiples of `keep_every`."""

    def __init__(self, root: Path, made_from: dict[str, Any], keep_last: int, keep_every: int, ranks: Ranks) -> None:
        self.root, self.made_from, self.ranks = root, made_from, ranks
        self.keep_last, self.keep_every = keep_last, keep_every
        self._writer: threading.Thread | None = None
        self._failure: BaseException | None = None

    # --- saving ---

    def save(self, progress: Progress, training: Training) -> Path:
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
            with _quiet():
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

    def load(self, training: Training, step: int | None = None) -> Progress | None:
        """Loads the newest checkpoint that verifies, or that of `step`, in place; None where there is none.

        A broken one is named in a warning, and the one before it is taken. Raises `MismatchError` for a checkpoint of a run
        that was made from something else, `CorruptError` where none can be read.
        """
        if self.ranks.is_first:
            sweep(self.root)
        for name in self.ranks.first(lambda: self._candidates(step)):
            directory = self.root / name
            facts, problem = self.ranks.first(lambda d=directory: self._facts(d))  # type: ignore[misc]
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

    @staticmethod
    def _facts(directory: Path) -> tuple[dict[str, Any], str | None]:
        try:
            state = read_json(directory / STATE)
            digest = state.pop("sha256")
            Progress(**state["progress"])
            if digest != sha256_json(state) or {"made_from", "files"} - set(state):
                raise KeyError(STATE)
        except CorruptError as e:
            return {}, str(e)
        except (TypeError, KeyError, AttributeError):
            return {}, f"checkpoint {directory} is broken: {STATE} is altered."
        return state, None

    def _broken_files(self, directory: Path, files: dict[str, str]) -> str | None:
        """Each rank hashes its share of the files."""
        problem = None
        for name in sorted(files)[self.ranks.rank :: self.ranks.size]:
            file = directory / name
            if not file.is_file() or sha256_file(file) != files[name]:
                problem = f"checkpoint {directory} is broken: {name} is absent or altered."
        return next((p for p in self._gather(problem) if p is not None), None)

    def _read(self, directory: Path, training: Training) -> str | None:
        from torch.distributed.checkpoint import state_dict_loader
        from torch.distributed.checkpoint.api import CheckpointException
        from torch.distributed.checkpoint.filesystem import FileSystemReader

        state = training.state(training.counts.cpu().clone())
        refuse_other_tensors(directory, state)
        try:
            with _quiet():
                reader, alone = FileSystemReader(directory), self.ranks.size == 1
                state_dict_loader.load(state, storage_reader=reader, process_group=self.ranks.writing, no_dist=alone)
        except CheckpointException as e:
            cause = next((c for c, _ in e.failures.values()), e)
            return f"checkpoint {directory} cannot be loaded ({cause})."
        training.load(state, self.ranks.is_first)
        return None


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
