"""Broken checkpoints, full disks and wrong settings under two ranks: said once and clearly, and nobody waits for ever."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from launch import SEQ_LEN, AtStep, FullDisk, Left, differences, ranks, saved_steps, start, succeed, temporaries, wait_for
from ranked_pipeline import STEPS, STOPPED, Pipeline

from slmctl.config.yaml import lay_over

Make = Callable[..., Pipeline]
ARM = ("--arm", "slm")


# --- checkpoints ---


@pytest.mark.parametrize("which", ["__1_", "state.json"])
def test_ranks_fall_back_together_from_a_broken_checkpoint(
    which: str, stopped: Pipeline, undisturbed: dict[int, Left], tmp_path: Path
) -> None:
    made = stopped.copy(tmp_path / "made")
    root = made.arm("slm") / "checkpoints"
    newest, before = saved_steps(made.arm("slm"))[-1], saved_steps(made.arm("slm"))[-2]
    file = next(f for f in sorted((root / f"step-{newest:08d}").iterdir()) if f.name.startswith(which))
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    found = succeed(tmp_path, 2, ["pretrain", made.config, *ARM])
    said = "".join(e.said for e in found)
    assert said.count("falling back to the checkpoint before it") == 1, said
    assert f"step-{newest:08d}" in said
    assert f"resuming after step {before} of {STEPS}" in said
    assert (root / f"broken-step-{newest:08d}" / file.name).read_bytes() == content
    assert differences(made.left("slm"), undisturbed[2]) == []


@pytest.fixture(scope="module")
def stopped(tied: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """A run of two ranks that was stopped, with several checkpoints."""
    root = tmp_path_factory.mktemp("stopped")
    made = tied.copy(root / "made", STOPPED)
    found = ranks(root, 2, ["pretrain", made.config, *ARM], before=[AtStep(5, signal.SIGTERM)])
    assert [e.code for e in found] == [143, 143]
    return made


def test_what_one_rank_cannot_write_is_no_checkpoint(pipeline: Make, undisturbed: dict[int, Left], tmp_path: Path) -> None:
    made = pipeline("made", STOPPED)
    found = succeed(tmp_path, 2, ["pretrain", made.config, *ARM], before=[FullDisk(4, rank=0)])
    assert saved_steps(made.arm("slm")) == [2, 6, 8]
    said = "".join(e.said for e in found)
    assert said.count("a checkpoint could not be written: ") == 1, said
    assert "No space left on device" in said
    assert "Training goes on; the last good checkpoint is kept." in said
    assert not temporaries(made.root)
    assert differences(made.left("slm"), undisturbed[2]) == []


def test_a_late_word_of_an_earlier_save_does_not_end_a_run(pipeline: Make, tmp_path: Path) -> None:
    """The save before the last one fails, and the last one succeeds."""
    made = pipeline("made", lay_over(STOPPED, {"pretrain": {"save_every": 1}}))
    found = succeed(tmp_path, 2, ["pretrain", made.config, *ARM], before=[FullDisk(STEPS - 1, rank=1)])
    assert saved_steps(made.arm("slm")) == [*range(1, STEPS - 1), STEPS]
    assert found[0].said.count("a checkpoint could not be written: ") == 1


def test_a_run_whose_last_checkpoint_cannot_be_written_fails_on_all_ranks(
    pipeline: Make, undisturbed: dict[int, Left], tmp_path: Path
) -> None:
    made = pipeline("made", STOPPED)
    command = ["pretrain", made.config, *ARM]
    found = ranks(tmp_path, 2, command, before=[FullDisk(STEPS, rank=1)])
    assert [e.code for e in found] == [1, 1], found
    assert all("What was saved before is kept; run again." in e.said for e in found)
    assert saved_steps(made.arm("slm"))[-1] == 6
    assert not temporaries(made.root)
    succeed(tmp_path, 2, command)
    assert differences(made.left("slm"), undisturbed[2]) == []


# --- settings and surroundings ---


def test_a_rank_without_an_address_says_so(pipeline: Make, tmp_path: Path) -> None:
    made = pipeline("made")
    process = start([["pretrain", made.config]], {"RANK": "0", "WORLD_SIZE": "2"}, tmp_path / "rank-0.log")
    (found,) = wait_for(tmp_path, [process], patience=30)
    assert found.code == 2
    assert "RANK and WORLD_SIZE are set, but MASTER_ADDR or MASTER_PORT is not. Start it with torchrun." in found.said


def test_a_batch_that_ranks_cannot_share_is_refused_by_all(pipeline: Make, tmp_path: Path) -> None:
    how = {"batch_tokens": 8 * SEQ_LEN, "micro_batch": 8, "selection": {"group_rows": 8}}
    made = pipeline("made", {"pretrain": {"arms": {"slm": how}}})
    found = ranks(tmp_path, 2, ["pretrain", made.config, *ARM])
    assert [e.code for e in found] == [2, 2]
    said = " ".join("".join(e.said for e in found).split())
    assert said.count("makes 1 selection groups a step") == said.count("which 2 ranks cannot share evenly") == 1, said
    assert not made.arm("slm").exists()


def test_an_error_of_the_first_rank_is_that_of_all(pipeline: Make, tmp_path: Path) -> None:
    made = pipeline("made")
    shutil.rmtree(made.root / "scores")
    found = ranks(tmp_path, 2, ["pretrain", made.config, *ARM])
    assert [e.code for e in found] == [1, 1]
    assert "".join(e.said for e in found).count("Run `slmctl score` first.") == 1
