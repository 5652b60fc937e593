"""Which worker this process is, of how many."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

from slmctl.system.errors import ConfigError

T = TypeVar("T")


@dataclass(frozen=True)
class Share:
    """Worker `index` of `count`: an even, contiguous part of any list of work, so that neighbours in a compressed file are
    read by one worker."""

    index: int = 0
    count: int = 1

    def of(self, work: list[T]) -> list[T]:
        n = len(work)
        return work[n * self.index // self.count : n * (self.index + 1) // self.count]

    def named(self, work: str) -> str:
        """What this worker does, for its progress: `work`, and which one it is of several."""
        return work if self.count == 1 else f"{work}, worker {self.index} of {self.count}"


def find_share(index: int | None = None, count: int | None = None, env: Mapping[str, str] = os.environ) -> Share:
    """The share that was asked for, else that of a Slurm array task, of a torchrun rank, or of a rank within an array task.

    Raises `ConfigError` where these do not make sense.
    """
    if (index is None) != (count is None):
        raise ConfigError("give --shard-index and --shard-count together.")
    if index is not None and count is not None:
        if not 0 <= index < count:
            raise ConfigError(f"--shard-index {index}: want 0 to {count - 1}, for --shard-count {count}.")
        return Share(index, count)
    task = _slurm(env)
    rank = _torchrun(env) if "RANK" in env else _step(env)
    return Share(task.index * rank.count + rank.index, task.count * rank.count)


def _slurm(env: Mapping[str, str]) -> Share:
    if "SLURM_ARRAY_TASK_ID" not in env:
        return Share()
    task, first = _number(env, "SLURM_ARRAY_TASK_ID"), _number(env, "SLURM_ARRAY_TASK_MIN", 0)
    step = max(1, _number(env, "SLURM_ARRAY_TASK_STEP", 1))
    last = _number(env, "SLURM_ARRAY_TASK_MAX", -1)
    regular = (last - first) // step + 1
    count = _number(env, "SLURM_ARRAY_TASK_COUNT", regular if last >= 0 else 0)
    index, besides = divmod(task - first, step)
    if besides or not 0 <= index < count or (last >= 0 and count != regular):  # else some shares would be no task's
        raise ConfigError(
            f"Slurm array task {task} of {count} (from {first}, step {step}) is not one of a regular array. "
            "Submit it as --array=0-N, or give --shard-index and --shard-count."
        )
    return Share(index, count)


def _step(env: Mapping[str, str]) -> Share:
    """One of the tasks that `srun -n N` started."""
    count = _number(env, "SLURM_STEP_NUM_TASKS", 1)
    return Share(_number(env, "SLURM_PROCID", 0), count) if count > 1 else Share()


def _torchrun(env: Mapping[str, str]) -> Share:
    if "RANK" not in env or "WORLD_SIZE" not in env:
        return Share()
    rank, world = _number(env, "RANK"), _number(env, "WORLD_SIZE")
    if not 0 <= rank < world:
        raise ConfigError(f"RANK {rank}, WORLD_SIZE {world}: want 0 <= RANK < WORLD_SIZE.")
    return Share(rank, world)


def _number(env: Mapping[str, str], name: str, default: int | None = None) -> int:
    value = env.get(name)
    if value is None and default is not None:
        return default
    try:
        return int(value or "")
    except ValueError:
        raise ConfigError(f"{name} is {value!r}; want a whole number.") from None
