"""What a run of weeks needs: steps that are not taken, memory saved and measured, profiles, records of its starts, watches."""

from __future__ import annotations

import faulthandler
import gzip
import json
import math
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_training_loop import STEPS, altered, assert_same, at_step, nan_gradient, nan_loss, result, send, train_arm
from torch import nn
from transformers import AutoModelForCausalLM

import slmctl
from slmctl.config.selection import SelectionConfig
from slmctl.config.training import TrainingConfig
from slmctl.stages.score import score
from slmctl.stages.train_base import train_base
from slmctl.stages.train_ref import train_reference
from slmctl.system.errors import Interrupted, TrainingError
from slmctl.system.signals import raising
from slmctl.training import loop, micro_batch
from slmctl.training.batches import Batcher
from slmctl.training.checkpoint_files import all_checkpoints
from slmctl.training.micro_batch import kept_bytes, rows_that_fit
from slmctl.training.parallel import blocks_of, recompute
from slmctl.training.ranks import Ranks
from slmctl.training.safety import SPIKE_MINIMUM, SPIKE_WINDOW, TELLING, HangWatch, StepGuard
from slmctl.training.selective import Objective
from slmctl.training.telemetry import read_log


def metrics_of(directory):
    return read_log(directory / "metrics.jsonl")


def stopped_in(step, workspace, monkeypatch, arm="slm"):
    with monkeypatch.context() as patch, raising():
        at_step(patch, step, send(signal.SIGINT))
        with pytest.raises(Interrupted):
            train_arm(workspace, arm)
    return workspace


# --- steps that are not taken ---


@pytest.fixture
def snapshots(monkeypatch):
    """Weights and optimizer state after each step."""
    found = {}
    original = loop.Trainer.step

    def step(self, number, signum):
        made = original(self, number, signum)
        weights = [p.detach().clone() for p in self.run.model.parameters()]
        state = [v.clone() for s in self.optimizer.state.values() for _, v in sorted(s.items())]
        found[number] = [*weights, *state]
        return made

    monkeypatch.setattr(loop.Trainer, "step", step)
    return found


def equal(a, b):
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("broken", [nan_loss, nan_gradient], ids=lambda f: f.__name__)
def test_a_step_that_is_not_finite_is_not_taken_where_it_is_to_be_skipped(broken, pipeline, monkeypatch, snapshots, capsys):
    altered(monkeypatch, {4}, broken)
    directory = train_arm(pipeline("skips", {"pretrain": {"on_nonfinite": "skip"}, "tracking": {"tensorboard": True}}))
    metrics = metrics_of(directory)
    bad = ("loss", "live_mean") if broken is nan_loss else ("grad_norm",)
    assert [r["nonfinite"] for r in metrics] == [None, None, None, dict.fromkeys(bad, "nan"), None, None, None, None]
    assert all(metrics[3][k] is None for k in bad), "JSON has no NaN"
    events = EventAccumulator(str(directory / "tensorboard")).Reload()
    assert [e.value for e in events.Scalars("train/nonfinite")] == [0, 0, 0, 1, 0, 0, 0, 0]
    assert [e.step for e in events.Scalars("train/skipped") if e.value] == [4]
    assert [r["skipped"] for r in metrics] == [None, None, None, "nonfinite", None, None, None, None]
    assert equal(snapshots[4], snapshots[3])
    assert not equal(snapshots[5], snapshots[4])
    assert all(bool(t.isfinite().all()) for t in snapshots[STEPS])
    seen, selected = ([r[k] for r in metrics] for k in ("tokens_seen", "tokens_selected"))
    assert seen[3] > seen[2]
    assert selected[3] == selected[2]
    assert selected[4] > selected[3]
    counts = pq.read_table(directory / "token_counts.parquet").to_pydict()
    assert sum(counts["selected"]) == selected[-1], "tokens that nothing was trained on are counted"
    assert "step 4 is not finite" in capsys.readouterr().err


def test_the_first_step_of_all_may_be_skipped(pipeline, monkeypatch):
    altered(monkeypatch, {1}, nan_gradient)
    workspace = pipeline("first", {"pretrain": {"on_nonfinite": "skip", "steps": 4}})
    directory = train_arm(workspace)
    assert [r["skipped"] for r in metrics_of(directory)] == ["nonfinite", None, None, None]


def test_nothing_is_skipped_unless_asked_for():
    settings = TrainingConfig(steps=1)
    assert (settings.on_nonfinite, settings.skip_spikes) == ("stop", None)


def test_ten_skipped_steps_in_a_row_stop_the_run(pipeline, monkeypatch):
    over = {"pretrain": {"on_nonfinite": "skip", "steps": 14}}
    with monkeypatch.context() as patch:
        altered(patch, set(range(3, 12)), nan_gradient)
        metrics = metrics_of(train_arm(pipeline("nine", over)))
        assert sum(r["skipped"] == "nonfinite" for r in metrics) == 9
    altered(monkeypatch, set(range(3, 15)), nan_gradient)
    workspace = pipeline("ten", over)
    stopped_in(7, workspace, monkeypatch)
    with pytest.raises(TrainingError, match=r"step 12 is not finite .*10th in a row"):  # counted across the stop
        train_arm(workspace)
    assert not (workspace.arm("slm") / "model").exists()
    assert [r["skipped"] for r in metrics_of(workspace.arm("slm"))][-1] == "nonfinite", "the step that stopped it is logged too"


def spike(found):
    return found._replace(live_BT=torch.where(found.selected_BT, found.live_BT + 50, found.live_BT))


SPIKY = {"pretrain": {"skip_spikes": 8.0, "steps": 24, "save_every": 0}}


def test_a_spike_is_not_taken_and_a_run_resumed_around_it_is_the_same(pipeline, monkeypatch, snapshots):
    altered(monkeypatch, {20}, spike)
    whole_run = train_arm(pipeline("whole", SPIKY))
    assert [r["step"] for r in metrics_of(whole_run) if r["skipped"]] == [20]
    assert metrics_of(whole_run)[19]["skipped"] == "spike"
    assert equal(snapshots[20], snapshots[19])
    assert not equal(snapshots[21], snapshots[20])
    whole = result(whole_run)
    for step in (18, 20, 22):
        workspace = stopped_in(step, pipeline(f"stopped{step}", SPIKY), monkeypatch)
        assert_same(result(train_arm(workspace)), whole)


def test_a_spike_is_taken_where_none_is_to_be_skipped(pipeline, monkeypatch):
    altered(monkeypatch, {20}, spike)
    directory = train_arm(pipeline("taken", {"pretrain": {"steps": 24}}))
    assert not any(r["skipped"] for r in metrics_of(directory))


def test_what_a_spike_stands_out_from():
    guard = StepGuard(4.0, [], 0)
    losses = [1.0 + 0.1 * (-1) ** i for i in range(SPIKE_MINIMUM)]
    for i, loss in enumerate(losses):
        assert guard.refuses(100.0, True, 1.0) is None, f"{i} losses are too few to tell"
        guard.note(loss, None)
    assert guard.refuses(1.39, True, 1.0) is None
    assert guard.refuses(1.41, True, 1.0) == "spike"
    assert guard.refuses(-100.0, True, 1.0) is None
    guard.note(1.41, "spike")
    assert guard.recent == losses, "a spike makes the next one look usual"
    for bad in [(math.nan, True, 1.0), (1.0, False, 1.0), (1.0, True, math.inf)]:
        assert guard.refuses(*bad) == "nonfinite"
    for i in range(200):
        guard.note(float(i), None)
    assert guard.recent == [float(i) for i in range(200 - SPIKE_WINDOW, 200)]


# --- memory ---


def test_recomputed_activations_change_no_bit_and_the_export_is_a_plain_model(pipeline):
    arms = {
        name: {"activation_checkpointing": name, "selection": {"criterion": "excess_loss", "ratio": 0.6, "group_rows": 2}}
        for name in ("off", "selective", "full")
    }
    over = {
        "model": {"scratch": {"num_hidden_layers": 3, "train": None}},
        "pretrain": {"arms": arms, "steps": 4, "alignment_check": "warn"},
    }
    workspace = pipeline("deep", over)
    train_base(workspace)
    config = workspace.base / "config.json"  # dropout, so that what is drawn is drawn again the same
    config.write_text(json.dumps({**json.loads(config.read_text()), "attention_dropout": 0.3}))
    train_reference(workspace)
    score(workspace)
    wanted = result(train_arm(workspace, "off"))
    for name in ("selective", "full"):
        directory = train_arm(workspace, name)
        assert_same(result(directory), wanted)
        _, info = AutoModelForCausalLM.from_pretrained(directory / "model", output_loading_info=True)
        assert {k: list(v) for k, v in info.items() if len(v)} == {}
        assert sorted(load_file(directory / "model" / "model.safetensors")) == sorted(
            load_file(workspace.arm("off") / "model" / "model.safetensors")
        )


def micro_of(list_source, split, rows=4, seq_len=32):
    rng = np.random.default_rng(0)
    shape = (rows, seq_len)
    source = list_source(
        rng.integers(0, split.vocab_size, shape).astype(np.uint16), np.zeros(shape, np.uint16), rng.random(shape, np.float32)
    )
    batcher = Batcher(source, rows, rows, SelectionConfig(group_rows=rows), False, 0, "cpu")
    return next(batcher.micro_batches(1, batcher.step(1)))


def test_the_more_blocks_are_recomputed_the_less_is_kept(make_llama, list_source):
    found = []
    for every in (None, 2, 1):
        split = make_llama(dtype=torch.float32).train()
        if every is not None:
            recompute(blocks_of(split), every)
        objective, micro = Objective(split, SelectionConfig(group_rows=4), Ranks()), micro_of(list_source, split)
        found.append(kept_bytes(split, lambda o=objective, m=micro: o(m, 1.0)))
    assert found[0] > found[1] > found[2] > 0


class HandMade(nn.Module):
    def __init__(self):
        super().__init__()
        self.wide = nn.Linear(16, 64, bias=False)

    def forward(self, x):
        y = self.wide(x).relu()
        return (y * y).sum()


def test_kept_bytes_are_those_of_what_the_backward_pass_needs():
    module, x = HandMade(), torch.randn(32, 16)
    inputs, activations = 32 * 16 * 4, 32 * 64 * 4  # relu's result is needed three times and kept once; weights are there anyway
    assert kept_bytes(module, lambda: module(x)) == inputs + activations
    with torch.no_grad():
        assert kept_bytes(module, lambda: module(x)) == 0


def test_rows_that_fit_are_whole_groups_within_the_share_of_memory():
    fit = {"group_rows": 4, "seq_len": 32, "group_bytes": 100, "fixed": 100, "most_rows": 64}
    assert rows_that_fit(free=1000, **fit) == 4 * 6  # 70% of 1000, less 100, in hundreds
    assert rows_that_fit(free=0, **fit) == 4
    assert rows_that_fit(free=10**9, **fit) == 64
    assert rows_that_fit(free=10**9, **{**fit, "most_rows": 10**6}) == 65_536 // 32
    assert rows_that_fit(free=10**9, **{**fit, "seq_len": 10**6}) == 4


def found_rows(workspace):
    newest = all_checkpoints(workspace.arm("slm") / "checkpoints")[-1]
    return json.loads((newest / "state.json").read_text())["progress"]["micro_batch"]


AUTO = {"pretrain": {"micro_batch": "auto", "steps": 2}}


def test_auto_takes_whole_groups_and_fewer_of_them_where_memory_is_small(pipeline, monkeypatch):
    seen = []
    original = micro_batch.rows_that_fit
    monkeypatch.setattr(micro_batch, "rows_that_fit", lambda *args: seen.append(args) or original(*args))
    monkeypatch.setattr(micro_batch, "free_bytes", lambda _: 2**40)
    workspace = pipeline("ample", AUTO)
    train_arm(workspace)
    assert found_rows(workspace) == 8, "a step has no more rows"
    group_rows, seq_len, group_bytes, _, fixed, most = seen[0]
    assert (group_rows, seq_len, most) == (2, 32, 8)
    for groups in (1, 2, 3):
        free = (fixed + (groups + 0.5) * group_bytes) / micro_batch.SHARE
        monkeypatch.setattr(micro_batch, "free_bytes", lambda _, free=free: int(free))
        workspace = pipeline(f"room{groups}", AUTO)
        train_arm(workspace)
        assert found_rows(workspace) == 2 * groups
    monkeypatch.setattr(micro_batch, "free_bytes", lambda _: 0)
    workspace = pipeline("none", AUTO)
    train_arm(workspace)
    assert found_rows(workspace) == 2


def test_auto_trains_as_the_number_that_it_finds_and_keeps_it_over_a_resume(pipeline, monkeypatch):
    over = {"pretrain": {"micro_batch": "auto"}}
    monkeypatch.setattr(micro_batch, "free_bytes", lambda _: 2**40)
    given = result(train_arm(pipeline("given", {"pretrain": {"micro_batch": 8}})))
    assert_same(result(train_arm(pipeline("found", over))), given)
    workspace = stopped_in(4, pipeline("stopped", over), monkeypatch)
    monkeypatch.setattr(micro_batch, "free_bytes", lambda _: 0)
    assert_same(result(train_arm(workspace)), given)
    assert found_rows(workspace) == 8


# --- what is recorded ---


def trace_of(file):
    with gzip.open(file, "rt", encoding="utf-8") as f:
        return json.load(f)


def test_a_profile_of_the_named_steps_is_a_trace_that_can_be_read(pipeline):
    whole = result(train_arm(pipeline("plain")))
    directory = train_arm(pipeline("profiled", {"pretrain": {"profile": [2, 3]}}))
    [file] = (directory / "profile").iterdir()
    assert file.name == "steps-2-3-rank-0.json.gz"
    events = [e.get("name", "") for e in trace_of(file)["traceEvents"]]
    assert len({n for n in events if n.startswith("ProfilerStep#")}) == 2
    assert any(n.startswith("Optimizer.step") for n in events)
    assert_same(result(directory), whole)


def test_steps_that_were_made_before_a_resume_are_not_profiled_again(pipeline, monkeypatch):
    workspace = stopped_in(4, pipeline("late", {"pretrain": {"profile": [2, 3]}}), monkeypatch)
    [file] = (workspace.arm("slm") / "profile").iterdir()
    before = file.stat().st_mtime_ns
    train_arm(workspace)
    assert [f.stat().st_mtime_ns for f in (workspace.arm("slm") / "profile").iterdir()] == [before]


def test_each_start_leaves_one_line_of_what_it_ran_on(pipeline, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["slmctl", "pretrain", "first.yaml"])
    workspace = stopped_in(4, pipeline(), monkeypatch)
    monkeypatch.setattr(sys, "argv", ["slmctl", "pretrain", "second.yaml"])
    train_arm(workspace)
    lines = (workspace.arm("slm") / "environment.jsonl").read_text(encoding="utf-8").splitlines()
    first, second = (json.loads(x) for x in lines)
    assert [first["command"][-1], second["command"][-1]] == ["first.yaml", "second.yaml"]
    assert first["versions"] == second["versions"]
    assert first["versions"]["torch"].partition("+")[0] == torch.__version__.partition("+")[0]
    assert first["versions"]["slmctl"] == slmctl.__version__
    assert first["ranks"] == 1
    assert "gpu" not in first
    here = Path(slmctl.__file__).parent
    git = subprocess.run(["git", "-C", str(here), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    assert (first["git"] or {}).get("commit") == (git.stdout.strip() if git.returncode == 0 else None)


# --- hangs and signals ---

WATCHED = """
import sys, time
from pathlib import Path
from slmctl.training.safety import HangWatch

def waits_for_ever():
    time.sleep(30)

watch = HangWatch(Path(sys.argv[1]), 1)
for _ in range(int(sys.argv[2])):
    watch.alive()
    time.sleep(0.25)
if sys.argv[3] == "hang":
    waits_for_ever()
watch.close()
"""


def watched(file, beats, end):
    started = time.monotonic()
    command = [sys.executable, "-c", WATCHED, str(file), str(beats), end]
    ended = subprocess.run(command, capture_output=True, timeout=60, check=False)
    return ended.returncode, time.monotonic() - started


def test_no_sign_of_life_ends_the_process_and_leaves_its_stack(tmp_path):
    file = tmp_path / "hang.txt"
    code, seconds = watched(file, 1, "hang")
    assert code != 0
    assert seconds < 25
    assert "waits_for_ever" in file.read_text()
    assert watched(file, 1, "end")[0] == 0
    assert "waits_for_ever" in file.read_text(), "a restart took away what the hang had left"


def test_signs_of_life_in_time_keep_the_process_and_leave_nothing(tmp_path):
    code, seconds = watched(tmp_path / "hang.txt", 8, "end")
    assert (code, seconds > 1.9) == (0, True)
    assert list(tmp_path.iterdir()) == []


def test_a_run_gives_a_sign_of_life_at_every_step_and_takes_the_watch_away(pipeline, monkeypatch):
    calls, waits = [], []
    monkeypatch.setattr(faulthandler, "dump_traceback_later", lambda seconds, **how: calls.append((seconds, how["exit"])))
    monkeypatch.setattr(faulthandler, "cancel_dump_traceback_later", lambda: waits.append(len(calls)))
    directory = train_arm(pipeline("watched", {"pretrain": {"hang_timeout": 77}}))
    evaluations = len(read_log(directory / "evals.jsonl"))
    assert set(calls) == {(77 + TELLING, True)}
    assert len(calls) >= STEPS + evaluations
    assert waits == [len(calls)]
    assert not list(directory.glob("hang-*"))
    calls.clear()
    train_arm(pipeline("unwatched", {"pretrain": {"hang_timeout": 0}}))
    assert calls == []


def test_a_watch_of_no_seconds_writes_no_file(tmp_path):
    watch = HangWatch(tmp_path / "hang.txt", 0)
    watch.alive()
    watch.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR1, 143)])
def test_a_signal_finishes_its_step_saves_and_the_rerun_goes_on(signum, code, pipeline, monkeypatch):
    whole = result(train_arm(pipeline("whole")))
    workspace = pipeline("stopped")
    with monkeypatch.context() as patch, raising():
        at_step(patch, 4, send(signum))
        with pytest.raises(Interrupted, match=r"stopped after step 4; saved .*step-00000004") as stopped:
            train_arm(workspace)
    assert stopped.value.exit_code == code
    assert [d.name for d in (workspace.arm("slm") / "checkpoints").iterdir()] == ["step-00000004"]
    assert [r["step"] for r in metrics_of(workspace.arm("slm"))] == [1, 2, 3, 4]
    assert_same(result(train_arm(workspace)), whole)


def test_a_signal_while_the_last_checkpoint_is_written_stops_the_command_too(pipeline, monkeypatch):
    workspace = pipeline("late")
    original = loop.Checkpoints.save

    def save(self, progress, training):
        send(signal.SIGTERM)()
        return original(self, progress, training)

    with monkeypatch.context() as patch, raising():
        patch.setattr(loop.Checkpoints, "save", save)
        with pytest.raises(Interrupted) as stopped:
            train_arm(workspace)
    assert stopped.value.exit_code == 143
    assert not (workspace.arm("slm") / "done.json").exists()
    train_arm(workspace)
    assert (workspace.arm("slm") / "done.json").is_file()


def test_a_second_signal_stops_at_once(pipeline, monkeypatch):
    workspace = pipeline("twice", {"pretrain": {"save_every": 2}})

    def twice():
        send(signal.SIGINT)()
        send(signal.SIGINT)()

    with monkeypatch.context() as patch, raising():
        at_step(patch, 5, twice)
        with pytest.raises(Interrupted, match="stopped"):
            train_arm(workspace)
    assert sorted(d.name for d in (workspace.arm("slm") / "checkpoints").iterdir()) == ["step-00000002", "step-00000004"]
    assert [r["step"] for r in metrics_of(workspace.arm("slm"))] == [1, 2, 3, 4]
