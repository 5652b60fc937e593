"""What a run that is started again does: goes on, goes back to a step, or starts over; and what a failed save does to it."""

from __future__ import annotations

import json
import shutil
import signal
import threading
import time
from pathlib import Path

import pytest
from test_training_loop import STEPS, assert_same, at_step, result, send, train_arm
from torch.distributed.checkpoint.filesystem import FileSystemWriter

from slmctl.config.decides import result_settings
from slmctl.config.selection import SelectionConfig
from slmctl.config.training import ArmConfig, TrainingConfig
from slmctl.system.errors import Interrupted, SlmError, StoppedError, TrainingError
from slmctl.system.signals import raising
from slmctl.training import checkpoint, loop
from slmctl.training.checkpoint_files import all_checkpoints
from slmctl.training.telemetry import read_log
from slmctl.workspace import runs, start

SAVING = {"pretrain": {"save_every": 2, "keep_last": 9}}


@pytest.fixture
def taken(monkeypatch):
    """The numbers of the steps that are made."""
    steps = []
    original = loop.Trainer.step
    monkeypatch.setattr(loop.Trainer, "step", lambda self, step, signum: steps.append(step) or original(self, step, signum))
    return steps


def stopped_in(step, workspace, monkeypatch, arm="slm"):
    with monkeypatch.context() as patch, raising():
        at_step(patch, step, send(signal.SIGINT))
        with pytest.raises(Interrupted):
            train_arm(workspace, arm)
    return workspace


def saved(workspace, arm="slm"):
    return sorted(d.name for d in (workspace.arm(arm) / "checkpoints").iterdir())


def once_written(workspace):
    """What is saved, once no save is under way any more."""
    deadline = time.monotonic() + 20
    while any(n.startswith(".tmp-") for n in saved(workspace)) and time.monotonic() < deadline:
        time.sleep(0.01)
    return saved(workspace)


def named(*steps, prefix="step"):
    return [f"{prefix}-{n:08d}" for n in steps]


# --- going back ---


def test_resuming_from_a_step_goes_back_to_it_and_ends_the_same(pipeline, monkeypatch, taken):
    whole = result(train_arm(pipeline("whole", SAVING)))
    workspace = stopped_in(7, pipeline("back", SAVING), monkeypatch)
    assert saved(workspace) == named(2, 4, 6, 7)
    taken.clear()
    directory = train_arm(workspace, resume=4)
    assert taken == [5, 6, 7, 8]
    assert saved(workspace) == [*named(6, 7, prefix="later-step"), *named(2, 4, 6, 8)]
    assert_same(result(directory), whole)


def test_a_step_that_was_not_saved_is_refused_and_nothing_is_lost(pipeline, monkeypatch, taken):
    workspace = stopped_in(5, pipeline("back", SAVING), monkeypatch)
    with pytest.raises(SlmError, match=r"--resume 3: there is no checkpoint of that step .*found 2, 4, 5"):
        train_arm(workspace, resume=3)
    assert saved(workspace) == named(2, 4, 5)
    taken.clear()
    train_arm(workspace)
    assert taken == [6, 7, 8]


@pytest.mark.parametrize("resume", [False, 2])
@pytest.mark.parametrize(
    ("first", "again"),
    [
        ({"TORCHELASTIC_RUN_ID": "one"}, {"TORCHELASTIC_RUN_ID": "one", "TORCHELASTIC_RESTART_COUNT": "1"}),
        ({"TORCHELASTIC_RUN_ID": "none"}, {"TORCHELASTIC_RUN_ID": "none"}),  # torchrun that was given no id
        ({"SLURM_JOB_ID": "7"}, {"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": "1"}),
        ({"SLURM_JOB_ID": "7", "TORCHELASTIC_RUN_ID": "7.0"}, {"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": "1"}),
    ],
)
def test_who_is_started_again_goes_on_whatever_the_command_said(resume, first, again, pipeline, monkeypatch, taken):
    for name, value in first.items():
        monkeypatch.setenv(name, value)
    workspace = stopped_in(5, pipeline("restarted", SAVING), monkeypatch)
    mark = workspace.arm("slm") / "launch.json"
    mark.write_text(json.dumps({k: v for k, v in json.loads(mark.read_text()).items() if k != "stopped"}))  # as if it had died
    taken.clear()
    for name, value in again.items():
        monkeypatch.setenv(name, value)
    train_arm(workspace, resume=resume)
    assert taken == [6, 7, 8]
    assert saved(workspace) == named(2, 4, 5, 6, 8)


@pytest.mark.parametrize("resume", [True, False, 2])
def test_ranks_that_a_signal_has_stopped_do_not_go_on_when_torchrun_starts_them_again(resume, pipeline, monkeypatch, taken):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "one")
    workspace = stopped_in(5, pipeline("asked", SAVING), monkeypatch)
    taken.clear()
    for attempt in ("1", "1"):  # a change of members does not count as one
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", attempt)
        with pytest.raises(StoppedError, match="was stopped by a signal"):
            train_arm(workspace, resume=resume)
    assert taken == []
    assert saved(workspace) == named(2, 4, 5)
    monkeypatch.setattr(start, "_started", lambda _: "later")  # another torchrun, under the same id
    train_arm(workspace)
    assert taken == [6, 7, 8]


def test_a_rank_that_is_ended_because_another_died_was_not_stopped(pipeline, monkeypatch, taken):
    """torchrun's SIGTERM may come while a rank whose collective has failed is on its way out."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "one")
    workspace = pipeline("ended", SAVING)

    def die(*_):
        raise Interrupted(signal.SIGTERM, "SIGTERM: stopped")

    with monkeypatch.context() as patch:
        patch.setattr(loop.Trainer, "step", die)
        with pytest.raises(Interrupted):
            train_arm(workspace)
    train_arm(workspace)
    assert taken == list(range(1, STEPS + 1))


@pytest.mark.parametrize(
    "now",
    [
        {"TORCHELASTIC_RUN_ID": "two"},
        {"TORCHELASTIC_RUN_ID": "two", "TORCHELASTIC_RESTART_COUNT": "1"},  # its first attempt died before it began
        {"SLURM_JOB_ID": "7"},  # a second command within one job
        {"SLURM_JOB_ID": "8", "SLURM_RESTART_COUNT": "1"},
    ],
)
def test_who_starts_first_starts_over_when_told(now, pipeline, monkeypatch, taken):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "one")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    workspace = stopped_in(5, pipeline("first", SAVING), monkeypatch)
    monkeypatch.delenv("TORCHELASTIC_RUN_ID")
    taken.clear()
    for name, value in now.items():
        monkeypatch.setenv(name, value)
    train_arm(workspace, resume=False)
    assert taken == list(range(1, STEPS + 1))


def test_going_back_to_a_step_that_is_not_there_leaves_a_finished_run_finished(pipeline, taken):
    workspace = pipeline("finished", SAVING)
    train_arm(workspace)
    taken.clear()
    with pytest.raises(SlmError, match="no checkpoint of that step"):
        train_arm(workspace, resume=7)
    train_arm(workspace)
    assert taken == [], "it is complete"
    train_arm(workspace, resume=6)
    assert taken == [7, 8]


def test_a_finished_run_is_skipped_without_its_model_or_its_heldout_sets(pipeline, monkeypatch, taken, capsys):
    workspace = pipeline("finished")
    train_arm(workspace)
    shutil.rmtree(workspace.root / "tokens" / "heldout")
    monkeypatch.setattr(runs, "load_model", lambda *_: pytest.fail("loaded"))
    taken.clear()
    train_arm(workspace)
    assert not taken
    assert "pretrain slm: complete, skipped" in capsys.readouterr().err


# --- which settings make another run ---

GOES_ON = {
    "micro_batch": 2,
    "sharding": "replicate",
    "compile": False,
    "activation_checkpointing": "full",
    "on_nonfinite": "skip",
    "eval_every": 5,
    "eval_tokens": 64,
    "save_every": 1,
    "keep_last": 5,
    "keep_every": 1000,
    "log_every": 3,
    "loader_threads": 0,
    "hang_timeout": 60,
    "profile": (7, 7),
    "alignment_check": "warn",
}
STARTS_ANEW = {
    "seed": 7,
    "tokens": 4096,
    "steps": 9,
    "epochs": 0.5,
    "batch_tokens": 512,
    "lr": 1e-3,
    "min_lr_ratio": 0.5,
    "schedule": "linear",
    "warmup": 1,
    "wsd_decay": 0.5,
    "weight_decay": 0.0,
    "betas": (0.8, 0.9),
    "eps": 1e-6,
    "grad_clip": 0.5,
    "precision": "bfloat16",
    "skip_spikes": 5.0,
}
SELECTION = {
    **{"criterion": "random", "ratio": 0.5, "group_rows": 4, "scope": "global", "reference": "curated"},
    **{"schedule": {"kind": "cosine"}, "sets": {"reference": "curated"}, "weights": {"a": 2.0}, "options": {"on": "entropy"}},
    **{"parts": [{"criterion": "own_loss"}], "weighting": {"soft": "softmax"}, "unselected_weight": 0.1},
}
WITH = {
    "weights": {"criterion": "excess_of_several", "sets": {"a": "curated"}},
    "options": {"criterion": "threshold"},
    "parts": {"criterion": "blend", "parts": [{"criterion": "excess_loss"}]},
}
"""What a setting of selection needs beside it."""


def test_every_setting_of_training_is_known_to_make_another_run_or_not():
    assert sorted([*GOES_ON, *STARTS_ANEW]) == sorted(TrainingConfig.model_fields)
    assert sorted(SELECTION) == sorted(SelectionConfig.model_fields)
    assert set(ArmConfig.model_fields) - set(TrainingConfig.model_fields) == {"selection"}


@pytest.mark.parametrize("field", TrainingConfig.model_fields)
def test_a_setting_belongs_to_the_runs_inputs_if_it_decides_the_weights(field):
    before = ArmConfig(steps=STEPS)
    value = {**GOES_ON, **STARTS_ANEW}[field]
    budget = {} if field in ("tokens", "epochs") else {"steps": STEPS}
    after = ArmConfig(**{**budget, field: value})
    assert getattr(after, field) != getattr(before, field), "nothing is changed: the test shows nothing"
    assert (result_settings(after) == result_settings(before)) == (field in GOES_ON)


@pytest.mark.parametrize("field", SelectionConfig.model_fields)
def test_every_setting_of_selection_makes_another_run(field):
    before = ArmConfig(steps=STEPS, selection=WITH.get(field, {}))
    after = ArmConfig(steps=STEPS, selection={**WITH.get(field, {}), field: SELECTION[field]})
    assert after != before
    assert result_settings(after) != result_settings(before)


@pytest.mark.parametrize(
    "field", ["save_every", "log_every", "hang_timeout", "loader_threads", "activation_checkpointing", "keep_every"]
)
def test_a_run_goes_on_under_settings_that_do_not_decide_the_weights(field, pipeline, monkeypatch, taken):
    whole = result(train_arm(pipeline("whole")))
    workspace = stopped_in(4, pipeline("changed"), monkeypatch)
    taken.clear()
    setattr(workspace.config.pretrain.arms["slm"], field, GOES_ON[field])
    directory = train_arm(workspace)
    assert taken == [5, 6, 7, 8]
    assert_same(result(directory), whole)


def test_a_run_goes_on_with_another_micro_batch(pipeline, monkeypatch, taken):
    workspace = stopped_in(4, pipeline("changed"), monkeypatch)
    taken.clear()
    workspace.config.pretrain.arms["slm"].micro_batch = 2
    directory = train_arm(workspace)
    assert taken == [5, 6, 7, 8]
    whole = read_log(train_arm(pipeline("whole")) / "metrics.jsonl")
    found = read_log(directory / "metrics.jsonl")
    assert [r["tokens_selected"] for r in found] == [r["tokens_selected"] for r in whole]
    assert found[-1]["loss"] == pytest.approx(whole[-1]["loss"], rel=1e-4)


@pytest.mark.parametrize("field", ["lr", "skip_spikes", "ratio"])
def test_a_run_starts_anew_under_settings_that_decide_the_weights(field, pipeline, monkeypatch, taken, capsys):
    workspace = stopped_in(4, pipeline("changed"), monkeypatch)
    arm = workspace.config.pretrain.arms["slm"]
    taken.clear()
    setattr(arm.selection if field == "ratio" else arm, field, {**STARTS_ANEW, **SELECTION}[field])
    train_arm(workspace)
    assert taken == list(range(1, STEPS + 1))
    assert field in capsys.readouterr().err
    [stale] = (workspace.root / "stale").glob("pretrain-slm-*")
    assert [d.name for d in all_checkpoints(stale / "checkpoints")] == named(4)


def test_a_run_in_the_order_of_an_older_slmctl_is_not_gone_on_with(pipeline, monkeypatch, taken, capsys):
    workspace = stopped_in(4, pipeline("older", SAVING), monkeypatch)
    path = workspace.arm("slm") / "inputs.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "order_version"}))
    with pytest.raises(SlmError, match=r"order_version: was not set, is now \d"):
        train_arm(workspace, resume=4)
    taken.clear()
    train_arm(workspace)
    assert taken == list(range(1, STEPS + 1))
    assert "order_version: was not set, is now" in capsys.readouterr().err


# --- saves beside training, and saves that fail ---


def being_saved(path):
    """The step whose checkpoint is written below `path`; 0 where it is none."""
    part = next((p for p in Path(path).parts if p.startswith(".tmp-step-")), None)
    return int(part.removeprefix(".tmp-step-").partition(".")[0]) if part else 0


def full_disk(monkeypatch, where, steps, before=lambda: None):
    """There is no room for the checkpoints of these steps."""

    def fail_in(owner, name, path_of):
        original = getattr(owner, name)

        def wrapped(self, *args, **kwargs):
            if being_saved(path_of(self, *args)) in steps:
                before()
                raise OSError(28, "No space left on device")
            return original(self, *args, **kwargs)

        monkeypatch.setattr(owner, name, wrapped)

    if where == "its folder":
        fail_in(Path, "mkdir", lambda self, *_: self)
    elif where == "its tensors":
        fail_in(FileSystemWriter, "write_data", lambda self, *_: self.path)
    else:
        original = checkpoint.write_json

        def write_json(path, data):
            if being_saved(path) in steps:
                before()
                raise OSError(28, "No space left on device")
            original(path, data)

        monkeypatch.setattr(checkpoint, "write_json", write_json)


PLACES = ["its folder", "its tensors", "its state"]


def test_training_goes_on_while_a_checkpoint_is_written(pipeline, monkeypatch):
    whole = result(train_arm(pipeline("whole", SAVING)))
    ahead = threading.Event()
    seen = []
    original = FileSystemWriter.write_data

    def write_data(self, *args):
        if being_saved(self.path) == 2:
            seen.append(ahead.wait(20))
        return original(self, *args)

    monkeypatch.setattr(FileSystemWriter, "write_data", write_data)
    at_step(monkeypatch, 4, ahead.set)
    workspace = pipeline("beside", SAVING)
    assert_same(result(train_arm(workspace)), whole)
    assert seen == [True], "no step was made while the checkpoint was written"
    assert saved(workspace) == named(2, 4, 6, 8)
    monkeypatch.undo()
    (workspace.arm("slm") / "done.json").unlink()
    shutil.rmtree(workspace.arm("slm") / "model")
    assert_same(result(train_arm(workspace, resume=2)), whole)


@pytest.mark.parametrize("where", PLACES)
def test_a_checkpoint_that_cannot_be_written_on_the_way_does_not_end_the_run(where, pipeline, monkeypatch, capsys):
    over = {"pretrain": {"save_every": 2, "keep_last": 1}}
    whole = result(train_arm(pipeline("whole", over)))
    workspace = pipeline("full", over)
    during = []
    with monkeypatch.context() as patch:
        full_disk(patch, where, {4})
        at_step(patch, 6, lambda: during.append(once_written(workspace)))
        directory = train_arm(workspace)
    told = capsys.readouterr().err
    assert told.count("a checkpoint could not be written") == 1
    assert "no space left" in told.lower()
    assert "Training goes on" in told
    assert during == [named(2)], "the last good checkpoint is gone, or half of a bad one is left"
    assert saved(workspace) == named(8)
    assert_same(result(directory), whole)


def test_a_run_killed_after_a_failed_save_goes_on_from_the_last_good_one(pipeline, monkeypatch, taken):
    over = {"pretrain": {"save_every": 2, "keep_last": 1}}
    whole = result(train_arm(pipeline("whole", over)))
    workspace = pipeline("full", over)

    class Killed(BaseException):
        pass

    def die():
        raise Killed

    with monkeypatch.context() as patch:
        full_disk(patch, "its tensors", {4})
        at_step(patch, 6, die)
        with pytest.raises(Killed):
            train_arm(workspace)
    taken.clear()
    directory = train_arm(workspace)
    assert taken == list(range(3, STEPS + 1))
    assert_same(result(directory), whole)


@pytest.mark.parametrize("where", PLACES)
def test_a_last_checkpoint_that_cannot_be_written_ends_the_run_and_a_rerun_completes_it(where, pipeline, monkeypatch, taken):
    over = {"pretrain": {"save_every": 6, "keep_last": 1}}
    whole = result(train_arm(pipeline("whole", over)))
    workspace = pipeline("full", over)
    with monkeypatch.context() as patch:
        full_disk(patch, where, {8})
        with pytest.raises(TrainingError, match=r"(?i)slm: a checkpoint could not be written: .*no space left"):
            train_arm(workspace)
    assert saved(workspace) == named(6)
    assert not (workspace.arm("slm") / "model").exists()
    assert not list(workspace.arm("slm").rglob(".tmp-*"))
    taken.clear()
    directory = train_arm(workspace)
    assert taken == [7, 8]
    assert_same(result(directory), whole)


def test_a_checkpoint_that_cannot_be_written_on_a_signal_is_an_error(pipeline, monkeypatch):
    workspace = pipeline("full", SAVING)
    with monkeypatch.context() as patch, raising():
        full_disk(patch, "its tensors", {5})
        at_step(patch, 5, send(signal.SIGTERM))
        with pytest.raises(TrainingError, match="could not be written"):
            train_arm(workspace)
    assert saved(workspace) == named(2, 4)


def test_a_save_that_failed_just_before_a_good_last_one_does_not_fail_the_run(pipeline, monkeypatch, capsys):
    workspace = pipeline("late", {"pretrain": {"save_every": 7}})
    last = threading.Event()
    with monkeypatch.context() as patch:
        full_disk(patch, "its tensors", {7}, before=lambda: last.wait(20))
        at_step(patch, 8, last.set)
        directory = train_arm(workspace)
    assert "a checkpoint could not be written" in capsys.readouterr().err
    assert (directory / "done.json").is_file()
    assert saved(workspace) == named(8)
