"""Which worker this is, by flags, Slurm's array or torchrun's rank."""

from __future__ import annotations

import pytest

from slmctl.system.errors import ConfigError
from slmctl.workspace.workers import Share, find_share

ARRAY = {"SLURM_ARRAY_TASK_COUNT": "4", "SLURM_ARRAY_TASK_MIN": "0", "SLURM_ARRAY_TASK_MAX": "3", "SLURM_ARRAY_TASK_STEP": "1"}


@pytest.mark.parametrize(
    ("env", "share"),
    [
        ({}, Share(0, 1)),
        ({**ARRAY, "SLURM_ARRAY_TASK_ID": "3"}, Share(3, 4)),
        ({"SLURM_ARRAY_TASK_ID": "2", "SLURM_ARRAY_TASK_MAX": "7"}, Share(2, 8)),  # no count
        ({"SLURM_ARRAY_TASK_ID": "2", "SLURM_ARRAY_TASK_COUNT": "5"}, Share(2, 5)),  # the count alone
        (
            {"SLURM_ARRAY_TASK_ID": "5", "SLURM_ARRAY_TASK_MIN": "1", "SLURM_ARRAY_TASK_MAX": "8", "SLURM_ARRAY_TASK_COUNT": "8"},
            Share(4, 8),
        ),
        (
            {
                **{"SLURM_ARRAY_TASK_ID": "30", "SLURM_ARRAY_TASK_MIN": "10", "SLURM_ARRAY_TASK_MAX": "40"},
                **{"SLURM_ARRAY_TASK_COUNT": "4", "SLURM_ARRAY_TASK_STEP": "10"},
            },
            Share(2, 4),
        ),
        ({"SLURM_ARRAY_TASK_ID": "5", "SLURM_ARRAY_TASK_MIN": "5", "SLURM_ARRAY_TASK_MAX": "5"}, Share(0, 1)),
        ({"RANK": "1", "WORLD_SIZE": "8"}, Share(1, 8)),
        ({"RANK": "1", "WORLD_SIZE": "2", **ARRAY, "SLURM_ARRAY_TASK_ID": "3"}, Share(7, 8)),
        ({"RANK": "0", "WORLD_SIZE": "2", **ARRAY, "SLURM_ARRAY_TASK_ID": "0"}, Share(0, 8)),
        ({"SLURM_JOB_ID": "17", "SLURM_PROCID": "0", "SLURM_NTASKS": "4"}, Share(0, 1)),  # a job's own script is no task of it
        ({"SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "4"}, Share(3, 4)),  # srun -n 4
        ({"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2", **ARRAY, "SLURM_ARRAY_TASK_ID": "2"}, Share(5, 8)),
        ({"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1", **ARRAY, "SLURM_ARRAY_TASK_ID": "2"}, Share(2, 4)),
        ({"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2", "RANK": "9", "WORLD_SIZE": "16"}, Share(9, 16)),  # srun torchrun
        ({"RANK": "3"}, Share(0, 1)),
        ({"WORLD_SIZE": "3"}, Share(0, 1)),
    ],
)
def test_the_share_comes_from_the_environment(env: dict[str, str], share: Share) -> None:
    assert find_share(env=env) == share
    assert find_share(2, 9, env) == Share(2, 9), "flags come first"


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ({"SLURM_ARRAY_TASK_ID": "x"}, "SLURM_ARRAY_TASK_ID is 'x'; want a whole number"),
        ({"SLURM_ARRAY_TASK_ID": ""}, "SLURM_ARRAY_TASK_ID is ''; want a whole number"),
        ({"SLURM_ARRAY_TASK_ID": "1"}, "task 1 of 0 .* is not one of a regular array. Submit it as --array=0-N, or give"),
        ({**ARRAY, "SLURM_ARRAY_TASK_ID": "4"}, "task 4 of 4"),
        ({**ARRAY, "SLURM_ARRAY_TASK_ID": "-1"}, "task -1 of 4"),
        ({**ARRAY, "SLURM_ARRAY_TASK_COUNT": "1.5", "SLURM_ARRAY_TASK_ID": "0"}, "SLURM_ARRAY_TASK_COUNT is '1.5'"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK 2, WORLD_SIZE 2: want 0 <= RANK < WORLD_SIZE"),
        ({"RANK": "-1", "WORLD_SIZE": "2"}, "RANK -1"),
        ({"RANK": "zero", "WORLD_SIZE": "2"}, "RANK is 'zero'"),
        ({"RANK": "0", "WORLD_SIZE": ""}, "WORLD_SIZE is ''"),
        ({"RANK": "0", "WORLD_SIZE": "0"}, "WORLD_SIZE 0"),
    ],
)
def test_an_environment_that_makes_no_sense_is_refused(env: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        find_share(env=env)


@pytest.mark.parametrize("task", ["1", "3", "7"])
def test_every_task_of_an_irregular_array_is_refused(task: str) -> None:
    """Of --array=1,3,7 task 3 would otherwise take the third share of three, and nobody the second."""
    env = {"SLURM_ARRAY_TASK_MIN": "1", "SLURM_ARRAY_TASK_MAX": "7", "SLURM_ARRAY_TASK_STEP": "1", "SLURM_ARRAY_TASK_COUNT": "3"}
    with pytest.raises(ConfigError, match="not one of a regular array"):
        find_share(env={**env, "SLURM_ARRAY_TASK_ID": task})


@pytest.mark.parametrize(("index", "count"), [(0, None), (None, 3), (3, 3), (-1, 3), (0, 0), (0, -2)])
def test_flags_that_make_no_sense_are_refused(index: int | None, count: int | None) -> None:
    with pytest.raises(ConfigError, match="together" if index is None or count is None else "--shard-index"):
        find_share(index, count, {})


def test_shares_cover_any_work_once() -> None:
    for n in (0, 1, 2, 9, 100):
        for count in (1, 2, 3, 7, 101):
            assert [x for i in range(count) for x in Share(i, count).of(list(range(n)))] == list(range(n))
