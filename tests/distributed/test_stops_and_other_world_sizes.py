"""Runs that are stopped, killed, and resumed by another number of ranks end as if nothing had happened."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from launch import (
    AtStep,
    InEvaluation,
    Left,
    SaveAgain,
    checkpoint_tensors,
    differences,
    ranks,
    saved_steps,
    succeed,
    temporaries,
)
from ranked_pipeline import STEPS, STOPPED, Pipeline
from test_same_as_one_process import assert_same_to_rounding

from slmctl.config.yaml import lay_over
from slmctl.training.telemetry import read_log

Make = Callable[..., Pipeline]
ARM = ("--arm", "slm")


# --- another world size ---


def test_a_run_may_go_on_with_another_number_of_ranks(pipeline: Make, undisturbed: dict[int, Left], tmp_path: Path) -> None:
    """1, 2, 4 and 1 ranks, with other layouts and micro-batches: the same tokens in the same order."""
    made = pipeline("made", STOPPED)
    plan = [(1, "auto", 8, 1), (2, "full", 2, 3), (4, "hybrid", 4, 5), (1, "full", 16, None)]
    stops = []
    for size, sharding, rows, step in plan:
        how = lay_over(made.settings, {"pretrain": {"sharding": sharding, "arms": {"slm": {"micro_batch": rows}}}})
        before = [AtStep(step, signal.SIGTERM)] if step is not None else []
        found = ranks(tmp_path, size, ["pretrain", Pipeline(how, made.root).config, *ARM], local=2, before=before)
        stops.append(saved_steps(made.arm("slm"))[-1])
        assert [e.code for e in found] == [0 if step is None else 143] * size, found
        if size != 1:
            assert f"resuming after step {stops[-2]} of {STEPS}" in found[0].said
    assert stops[0] < stops[1] < stops[2] < stops[3] == STEPS
    assert_same_to_rounding(made.left("slm"), undisturbed[1])


@pytest.mark.parametrize(("writers", "readers"), [(2, 1), (1, 2)])
def test_a_checkpoint_reads_the_same_by_any_number_of_ranks(writers: int, readers: int, pipeline: Make, tmp_path: Path) -> None:
    made = pipeline("made", STOPPED)
    command = ["pretrain", made.config, *ARM]
    assert [e.code for e in ranks(tmp_path, writers, command, before=[AtStep(2, signal.SIGTERM)])] == [143] * writers
    step = saved_steps(made.arm("slm"))[-1]
    again = tmp_path / "again"
    succeed(tmp_path, readers, command, local=2, before=[SaveAgain(again)])
    name = f"step-{step:08d}"
    wanted = checkpoint_tensors(made.arm("slm") / "checkpoints" / name, tmp_path / "scratch")
    found = checkpoint_tensors(again / name, tmp_path / "scratch")
    assert found.keys() == wanted.keys()
    assert {n for n in wanted if not torch.equal(wanted[n], found[n])} == set()
    assert sum("exp_avg" in n for n in wanted) > 20
    assert wanted["/counts"][0].sum() > 0


# --- signals ---


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_to_one_rank_stops_all_after_the_same_step(
    signum: int, code: int, pipeline: Make, undisturbed: dict[int, Left], tmp_path: Path
) -> None:
    made = pipeline("made", STOPPED)
    command = ["pretrain", made.config, *ARM]
    found = ranks(tmp_path, 2, command, before=[AtStep(4, signum, rank=1)])
    assert [e.code for e in found] == [code, code]
    step = saved_steps(made.arm("slm"))[-1]
    assert step in (4, 5)
    said = "".join(e.said for e in found)
    assert said.count(f"stopped after step {step}") == 1, said
    assert "slm: another rank was asked to stop" in found[0].said
    assert not temporaries(made.root)
    again = succeed(tmp_path, 2, command)
    assert f"resuming after step {step} of {STEPS}" in again[0].said
    assert differences(made.left("slm"), undisturbed[2]) == []


def test_a_signal_to_one_rank_in_an_evaluation_stops_all_and_it_is_made_when_they_go_on(
    pipeline: Make, undisturbed: dict[int, Left], tmp_path: Path
) -> None:
    made = pipeline("made", STOPPED)
    command = ["pretrain", made.config, *ARM]
    found = ranks(tmp_path, 2, command, before=[InEvaluation(3, signal.SIGTERM, rank=1)])
    assert [e.code for e in found] == [143, 143]
    assert saved_steps(made.arm("slm"))[-1] == 3
    assert "".join(e.said for e in found).count("stopped after step 3") == 1
    assert [r["step"] for r in read_log(made.arm("slm") / "evals.jsonl")] == [0]
    succeed(tmp_path, 2, command)
    assert differences(made.left("slm"), undisturbed[2]) == []


# --- a rank that dies ---


@pytest.mark.parametrize("victim", [0, 1])
def test_when_a_rank_dies_the_others_end_soon_and_say_why(
    victim: int, pipeline: Make, undisturbed: dict[int, Left], tmp_path: Path
) -> None:
    made = pipeline("made", STOPPED)
    command = ["pretrain", made.config, *ARM]
    found = ranks(tmp_path, 2, command, before=[AtStep(6, signal.SIGKILL, victim)])
    survivor = found[1 - victim]
    assert found[victim].code == -signal.SIGKILL
    assert survivor.code == 1, survivor
    assert survivor.seconds - found[victim].seconds < 10
    wanted = f"slm: rank {1 - victim} of 2 cannot go on, perhaps since another has ended"
    assert wanted in survivor.said, survivor.said
    assert "Run again, to go on from the last checkpoint" in survivor.said
    assert 2 <= saved_steps(made.arm("slm"))[-1] <= 5
    succeed(tmp_path, 2, command)
    assert differences(made.left("slm"), undisturbed[2]) == []
    assert not temporaries(made.root)
