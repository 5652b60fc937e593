"""How a run starts: what it needs is loaded and checked on every rank, then its folder is readied, to begin or to go on."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from slmctl.config.training import TrainingConfig
from slmctl.model.split import SplitModel
from slmctl.system.errors import SlmError, StoppedError
from slmctl.system.files import read_json, write_json
from slmctl.training.checkpoint_files import require_checkpoint
from slmctl.training.ranks import Ranks
from slmctl.training.run import Evaluator
from slmctl.workspace.handles import StageFolder
from slmctl.workspace.precisions import chosen, precision_in, settled, with_precision
from slmctl.workspace.stale import DONE, INPUTS, strict

LAUNCH = "launch.json"
"""Names what last began a run: ranks that it starts again go on from where they were, whatever they were asked for."""
S = TypeVar("S", bound=TrainingConfig)
Width = Callable[[], int]
"""Gives the hidden size of the model to train."""
Resume = bool | int
"""True: from the newest checkpoint, where there is one. False: start over. A number: from that step's checkpoint."""


@dataclass(frozen=True)
class Ready:
    """What a run needs that was checked before anything of an earlier one was moved."""

    model: SplitModel
    evaluate: Evaluator
    step: int | None
    """Whose checkpoint to go back to; None is the newest."""


def make_ready(
    folder: StageFolder,
    inputs: dict[str, Any],
    ranks: Ranks,
    resume: Resume,
    load: Callable[[], SplitModel],
    evaluator: Callable[[], Evaluator],
) -> Ready | None:
    """Loads what a run needs, and readies its folder; None where the run is complete. Whatever is wrong on any rank is told
    before anything is moved."""

    def loaded() -> tuple[SplitModel, Evaluator]:
        problem: Exception | None = None
        try:
            found = load(), evaluator()
        except Exception as e:  # the others must not go on without this rank
            problem = e
        ranks.barrier()  # loading may take longer than a collective waits
        if ranks.sum([int(problem is not None)])[0]:
            unloaded = SlmError("another rank cannot begin.")
            unloaded.told = True
            raise problem or unloaded
        return found

    complete = resume is True and ranks.first(lambda: folder.will_be_complete(inputs))
    found = None if complete else loaded()
    complete, step = _begin(folder, inputs, ranks, resume)
    if complete:
        ranks.first(lambda: folder.record(made=False))
        return None
    return Ready(*(found or loaded()), step)


def _begin(folder: StageFolder, inputs: dict[str, Any], ranks: Ranks, resume: Resume) -> tuple[bool, int | None]:
    """Readies the folder of a run. Returns whether it is complete, and the step whose checkpoint to go back to. A rank that
    torchrun has restarted goes on from where the run was, unless a signal stopped it.

    Raises `MismatchError` where the run to go back in was made with other settings.
    """
    directory, launch = folder.path, _launch()

    def begin() -> tuple[bool, int | None]:
        before, started_again, queued_again = _again(directory)
        if started_again and before.get("stopped") and before.get("agent") == launch["agent"]:
            raise StoppedError(
                f"{directory} was stopped by a signal, and is not gone on with by the ranks that torchrun has started again. "
                "Run again to go on."
            )
        step = None
        if isinstance(resume, bool) or started_again or queued_again:
            complete = folder.begin(inputs, fresh=not (resume or started_again or queued_again))
        else:
            step = resume
            advice = f"--resume {resume} goes back in a run; give --resume auto to begin it anew."
            folder.refuse_change(inputs, advice)
            runs = [directory / "checkpoints", directory / "training" / "checkpoints"]
            require_checkpoint(next((r for r in runs if r.is_dir()), runs[0]), step)
            folder.lock()
            (directory / DONE).unlink(missing_ok=True)
            complete = folder.begin(inputs)
        write_json(directory / LAUNCH, launch)
        return complete, step

    return ranks.first(begin)


def _again(directory: Path) -> tuple[dict[str, Any], bool, bool]:
    """What last began a run (nothing where none did), and whether torchrun or Slurm has started it again since."""
    mark, launch = directory / LAUNCH, _launch()
    before = read_json(mark) if mark.is_file() else {}
    started = launch["torchrun"] is not None and before.get("torchrun") == launch["torchrun"]
    return before, started, os.environ.get("SLURM_RESTART_COUNT", "0") != "0" and before.get("job") == launch["job"]


def settle(
    settings: S, inputs: dict[str, Any], directory: Path, resume: Resume, ranks: Ranks, device: str, width: Width
) -> tuple[S, dict[str, Any]]:
    """A run's settings and inputs with the precision that `auto` is: on every rank what the first one finds."""

    def find() -> str:
        path = directory / INPUTS
        over = resume is False and not any(_again(directory)[1:])
        made = strict(read_json(path)) if path.is_file() and not over else None
        return str(precision_in(settled(inputs, made, lambda: chosen(device, width))))

    if settings.precision == "auto":
        taken = ranks.first(find)
        settings, inputs = settings.model_copy(update={"precision": taken}), with_precision(inputs, taken)
    return settings, inputs


def _launch() -> dict[str, Any]:
    """What started this process: torchrun, by the id of its run, which may start it again, and as a process (`agent`); and
    Slurm's job, which may be queued again. None each where it was neither."""
    torchrun = os.environ.get("TORCHELASTIC_RUN_ID")
    if torchrun == "none":
        torchrun = f"{platform.node()}-{os.getppid()}"
    agent = None if torchrun is None else f"{platform.node()}-{os.getppid()}-{_started(os.getppid())}"
    return {"torchrun": torchrun, "agent": agent, "job": os.environ.get("SLURM_JOB_ID")}


def _started(pid: int) -> str:
    """When a process started, so that a number that is given to another does not make them one; empty where it is not told."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def mark_stopped(directory: Path, signum: int) -> None:
    """Leaves word in a stage's folder for ranks that torchrun starts again all the same."""
    with suppress(SlmError, OSError):
        write_json(directory / LAUNCH, {**read_json(directory / LAUNCH), "stopped": signum})
