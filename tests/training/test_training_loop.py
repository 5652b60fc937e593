"""Whole runs of a tiny model through the stages: exact resume, exact repetition, and failures that leave things whole."""

from __future__ import annotations

import json
import math
import signal
from fractions import Fraction

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from slmctl.config.training import ArmConfig
from slmctl.evaluation import heldout
from slmctl.evaluation.comparability import measure_of, why_not_comparable
from slmctl.evaluation.heldout import Measured
from slmctl.stages import pretrain as pretrain_stage
from slmctl.stages import train_ref
from slmctl.stages.prepare import prepare
from slmctl.stages.pretrain import pretrain
from slmctl.stages.score import score
from slmctl.stages.train_base import train_base
from slmctl.stages.train_ref import train_reference
from slmctl.store.order import RowOrder, mix_seed
from slmctl.store.reader import RowReader
from slmctl.system.errors import Interrupted, TrainingError
from slmctl.system.files import read_json, write_json
from slmctl.system.hashes import sha256_json
from slmctl.system.signals import raising
from slmctl.training import loop
from slmctl.training.batches import OneSet
from slmctl.training.checkpoint_files import all_checkpoints
from slmctl.training.selective import Objective
from slmctl.training.step import StepMaker
from slmctl.training.telemetry import read_log
from slmctl.workspace.runs import seed_of

MEASURED = {"seconds", "loader_seconds", "tokens_per_s", "mfu", "memory_bytes"}
STEPS = 8


def train_arm(workspace, arm="slm", **how):
    pretrain(workspace, [arm], **how)
    return workspace.arm(arm)


def result(directory):
    """All that a run leaves, but for its timings and memory."""
    metrics = [{k: v for k, v in r.items() if k not in MEASURED} for r in read_log(directory / "metrics.jsonl")]
    counts = pq.read_table(directory / "token_counts.parquet").to_pydict()
    weights = (directory / "model" / "model.safetensors").read_bytes()
    return {"metrics": metrics, "evals": read_log(directory / "evals.jsonl"), "counts": counts, "weights": weights}


def assert_same(a, b):
    for key in ("metrics", "evals", "counts"):
        assert a[key] == b[key], key
    assert a["weights"] == b["weights"]


def at_step(monkeypatch, step, action):
    """Runs `action` once, inside the optimizer step `step`, before its forward pass."""
    original = StepMaker.forward_backward
    done = []

    def forward_backward(self, number, *rest):
        if number == step and not done:
            done.append(number)
            action()
        return original(self, number, *rest)

    monkeypatch.setattr(StepMaker, "forward_backward", forward_backward)


def at_batch(monkeypatch, number, action):
    """Runs `action` once, after the forward pass of the `number`-th batch of all evaluations (there are two sets of a batch
    each): it is not the last of its evaluation where `number` is odd."""
    original = heldout.row_losses
    calls = []

    def row_losses(*given):
        calls.append(1)
        if len(calls) == number:
            action()
        return original(*given)

    monkeypatch.setattr(heldout, "row_losses", row_losses)


def altered(monkeypatch, steps, change):
    """Lets `change` replace the result of the first micro-batch of each of these steps, before its backward pass."""
    original_step, original_call = StepMaker.forward_backward, Objective.__call__
    due = []

    def forward_backward(self, number, *rest):
        due[:] = [number] * (number in steps)
        return original_step(self, number, *rest)

    def call(self, micro, divisor):
        found = original_call(self, micro, divisor)
        return change(found) if due and due.pop() else found

    monkeypatch.setattr(StepMaker, "forward_backward", forward_backward)
    monkeypatch.setattr(Objective, "__call__", call)


def send(signum):
    """To the thread that asks, so that it is there at once: one to the process may come to another thread, and later."""
    return lambda: signal.raise_signal(signum)


def nan_loss(result):
    """NaN where the loss is told; gradients stay finite."""
    return result._replace(live_BT=result.live_BT.masked_fill(result.selected_BT, math.nan))


def nan_gradient(result):
    """NaN where the gradient comes from; the losses that are told stay finite."""
    return result._replace(loss=result.loss * math.nan)


# --- resume and repetition ---


@pytest.mark.parametrize("arm", ["slm", "random"])
@pytest.mark.parametrize("where", ["in a step", "in the first evaluation", "in the second evaluation", "in the last evaluation"])
def test_a_run_stopped_by_a_signal_and_resumed_equals_one_that_was_not(where, arm, pipeline, monkeypatch):
    whole = result(train_arm(pipeline("whole"), arm))
    assert [r["step"] for r in whole["metrics"]] == list(range(1, STEPS + 1))
    assert [r["step"] for r in whole["evals"]] == [0, 3, 6, 8]
    workspace = pipeline("stopped")
    with monkeypatch.context() as patch, raising():
        if where == "in a step":
            at_step(patch, 5, send(signal.SIGINT))
        else:
            after = {"first": 1, "second": 3, "last": 7}[where.split()[2]]
            at_batch(patch, after, send(signal.SIGINT))
        with pytest.raises(Interrupted, match="saved") as stopped:
            train_arm(workspace, arm)
    assert stopped.value.exit_code == 130
    steps = {
        "in a step": [0, 3],
        "in the first evaluation": [],
        "in the second evaluation": [0],
        "in the last evaluation": [0, 3, 6],
    }
    assert [r["step"] for r in read_log(workspace.arm(arm) / "evals.jsonl")] == steps[where], "half an evaluation was kept"
    assert not (workspace.arm(arm) / "done.json").exists()
    assert not (workspace.arm(arm) / "model").exists()
    assert_same(result(train_arm(workspace, arm)), whole)


def test_a_killed_run_goes_on_from_its_last_checkpoint_and_ends_the_same(pipeline, monkeypatch):
    whole = result(train_arm(pipeline("whole", {"pretrain": {"save_every": 3}})))
    workspace = pipeline("killed", {"pretrain": {"save_every": 3}})

    class Killed(BaseException):
        pass

    def die():
        raise Killed

    with monkeypatch.context() as patch:
        at_step(patch, 6, die)
        with pytest.raises(Killed):
            train_arm(workspace)
    assert [d.name for d in all_checkpoints(workspace.arm("slm") / "checkpoints")] == ["step-00000003"]
    with open(workspace.arm("slm") / "metrics.jsonl", "a") as f:
        f.write('{"step": 6, "lo')  # the line that it was writing
    taken = []
    original = loop.Trainer.step
    with monkeypatch.context() as patch:
        patch.setattr(loop.Trainer, "step", lambda self, step, signum: taken.append(step) or original(self, step, signum))
        train_arm(workspace)
    assert taken == [4, 5, 6, 7, 8]
    assert_same(result(workspace.arm("slm")), whole)


def test_a_model_with_dropout_resumes_exactly(pipeline, monkeypatch):
    """What a step drops must depend on the step alone, not on what the process drew before."""

    def with_dropout(name):
        workspace = pipeline(name, {"accept_mismatch": ["reference:base.config.json"]})
        path = workspace.base / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "attention_dropout": 0.3}))
        return workspace

    whole = result(train_arm(with_dropout("whole")))
    assert whole["metrics"] != result(train_arm(pipeline("plain")))["metrics"], "nothing is dropped: the test shows nothing"
    workspace = with_dropout("stopped")
    with monkeypatch.context() as patch, raising():
        at_step(patch, 4, send(signal.SIGINT))
        with pytest.raises(Interrupted):
            train_arm(workspace)
    torch.rand(11)
    assert_same(result(train_arm(workspace)), whole)


def test_resume_goes_through_a_corrupt_newest_checkpoint(pipeline, monkeypatch):
    over = {"pretrain": {"save_every": 2}}
    whole = result(train_arm(pipeline("whole", over)))
    workspace = pipeline("broken", over)
    with monkeypatch.context() as patch, raising():
        at_step(patch, 5, send(signal.SIGTERM))
        with pytest.raises(Interrupted) as stopped:
            train_arm(workspace)
    assert stopped.value.exit_code == 143
    newest = all_checkpoints(workspace.arm("slm") / "checkpoints")[-1]
    assert newest.name == "step-00000005"
    data = max(newest.iterdir(), key=lambda f: f.stat().st_size)
    data.write_bytes(data.read_bytes()[:-1] + b"\x00")
    assert_same(result(train_arm(workspace)), whole)


def test_no_resume_starts_over_and_ends_the_same(pipeline, monkeypatch):
    whole = result(train_arm(pipeline("whole")))
    workspace = pipeline("again")
    with monkeypatch.context() as patch, raising():
        at_step(patch, 5, send(signal.SIGINT))
        with pytest.raises(Interrupted):
            train_arm(workspace)
    taken = []
    original = loop.Trainer.step
    monkeypatch.setattr(loop.Trainer, "step", lambda self, step, signum: taken.append(step) or original(self, step, signum))
    train_arm(workspace, resume=False)
    assert taken == list(range(1, STEPS + 1))
    assert_same(result(workspace.arm("slm")), whole)


def test_a_run_that_failed_before_its_first_checkpoint_logs_each_evaluation_once(pipeline, monkeypatch):
    workspace = pipeline()
    with monkeypatch.context() as patch:
        altered(patch, {2}, nan_loss)
        with pytest.raises(TrainingError):
            train_arm(workspace)
    train_arm(workspace)
    assert [r["step"] for r in read_log(workspace.arm("slm") / "evals.jsonl")] == [0, 3, 6, 8]


def test_a_signal_in_the_last_step_stops_the_command_too(pipeline, monkeypatch):
    workspace = pipeline()
    with monkeypatch.context() as patch, raising():
        at_step(patch, STEPS, send(signal.SIGINT))
        with pytest.raises(Interrupted):
            pretrain(workspace, ["slm", "clm"])
    assert not (workspace.arm("clm") / "done.json").exists()
    pretrain(workspace, ["slm"])
    assert (workspace.arm("slm") / "done.json").is_file()
    assert [r["step"] for r in read_log(workspace.arm("slm") / "metrics.jsonl")] == list(range(1, STEPS + 1))


@pytest.mark.parametrize("arm", ["slm", "clm", "random"])
def test_the_same_config_and_seed_twice_gives_the_same_run_bit_for_bit(arm, pipeline):
    first, second = (result(train_arm(pipeline(n), arm)) for n in ("one", "two"))
    assert_same(first, second)
    torch.manual_seed(123)
    torch.rand(7)  # whatever the process drew before must not matter
    assert_same(result(train_arm(pipeline("three"), arm)), first)


def test_a_complete_arm_is_skipped_and_a_changed_one_is_made_anew(pipeline, capsys):
    workspace = pipeline()
    before = result(train_arm(workspace))
    train_arm(workspace)
    assert "complete, skipped" in capsys.readouterr().err
    workspace.config.pretrain.arms["slm"].lr = 1e-3
    after = result(train_arm(workspace))
    assert "settings.lr" in capsys.readouterr().err
    assert after["weights"] != before["weights"]
    assert list((workspace.root / "stale").glob("pretrain-slm-*"))


# --- what is trained on ---


@pytest.mark.parametrize(("arm", "ratio", "group_rows"), [("slm", "0.6", 2), ("random", "0.55", 4), ("clm", "1", 2)])
def test_each_group_trains_on_exactly_the_ceiling_of_its_share(arm, ratio, group_rows, pipeline):
    workspace = pipeline()
    directory = train_arm(workspace, arm)
    tokens = workspace.open_tokens("corpus")
    everything = RowReader(tokens).fetch(np.arange(tokens.rows))
    order = RowOrder(tokens.group_rows, mix_seed("arms", 0)).at(0, STEPS * 8)
    seen = selected = 0
    for step, record in enumerate(read_log(directory / "metrics.jsonl")):
        rows = order[step * 8 : (step + 1) * 8]
        document = everything.document_BT[rows]
        seen += int((document >= 0).sum())
        for at in range(0, 8, group_rows):
            valid = int((document[at : at + group_rows, 1:] >= 0).sum())
            selected += math.ceil(Fraction(ratio) * valid)
        assert (record["tokens_seen"], record["tokens_selected"]) == (seen, selected)
    counts = pq.read_table(directory / "token_counts.parquet").to_pydict()
    assert sum(counts["selected"]) == selected
    ids = everything.ids_BT[order][:, 1:][everything.document_BT[order][:, 1:] >= 0]
    assert counts["seen"] == np.bincount(ids, minlength=300).tolist()
    assert all(s <= n for s, n in zip(counts["selected"], counts["seen"], strict=True))


def test_logged_losses_are_of_the_tokens_that_they_name(pipeline):
    for record in read_log(train_arm(pipeline(), "slm") / "metrics.jsonl"):
        share = 0.6
        assert record["loss"] == pytest.approx(record["loss_selected"], rel=1e-5)
        mean = share * record["loss_selected"] + (1 - share) * record["loss_unselected"]
        assert record["live_mean"] == pytest.approx(mean, rel=2e-2)
        assert record["correlation"] > 0.8


@pytest.mark.parametrize("arm", ["slm", "random"])
def test_micro_batch_do_not_change_which_tokens_are_selected(arm, pipeline):
    counts = []
    for rows in (4, 6, 8):
        workspace = pipeline(f"micro{rows}", {"pretrain": {"micro_batch": rows, "steps": 1}})
        counts.append(result(train_arm(workspace, arm))["counts"])
    assert counts[0] == counts[1] == counts[2]


def test_the_learning_rate_and_the_clipped_norm_are_what_the_step_used(pipeline):
    over = {"pretrain": {"lr": 0.5, "grad_clip": 1e-9, "weight_decay": 0.0, "warmup": 0, "steps": 1, "eps": 1.0}}
    workspace = pipeline("clipped", over)
    directory = train_arm(workspace)
    before = load_file(workspace.base / "model.safetensors")
    after = load_file(directory / "model" / "model.safetensors")
    moved = max(float((before[k] - after[k]).abs().max()) for k in before)
    assert read_log(directory / "metrics.jsonl")[0]["grad_norm"] > 1e-3, "the norm is logged before clipping"
    assert moved <= 0.5 * 1e-9 + 1e-7  # eps 1 makes AdamW's step no longer than lr x gradient


# --- failures ---


@pytest.mark.parametrize("broken", [nan_loss, nan_gradient], ids=lambda f: f.__name__)
def test_a_loss_or_gradient_that_is_nan_stops_at_its_step_and_keeps_the_last_checkpoint(broken, pipeline, monkeypatch):
    over = {"pretrain": {"save_every": 3}}
    whole = result(train_arm(pipeline("whole", over)))
    workspace = pipeline("poisoned", over)
    checkpoints = workspace.arm("slm") / "checkpoints"
    with monkeypatch.context() as patch:
        altered(patch, {5}, broken)
        with pytest.raises(TrainingError, match=r"slm: step 5 is not finite .*step-00000003") as stopped:
            train_arm(workspace)
    assert stopped.value.exit_code == 1
    assert [d.name for d in all_checkpoints(checkpoints)] == ["step-00000003"]
    logged = read_log(workspace.arm("slm") / "metrics.jsonl")
    assert [(r["step"], r["skipped"]) for r in logged] == [(1, None), (2, None), (3, None), (4, None), (5, "nonfinite")]
    assert "nan" in logged[-1]["nonfinite"].values()
    assert not (workspace.arm("slm") / "model").exists()
    assert_same(result(train_arm(workspace)), whole)


def test_weights_that_blow_up_stop_the_run_and_are_never_exported(pipeline):
    workspace = pipeline("hot", {"pretrain": {"lr": 1e30, "warmup": 0, "schedule": "constant"}})
    with pytest.raises(TrainingError, match="step 2 is not finite"):
        train_arm(workspace)
    assert not (workspace.arm("slm") / "model").exists()


def test_infinite_live_losses_outside_the_selection_stop_the_run_too(pipeline, monkeypatch):
    workspace = pipeline()

    def infinite_outside(result):
        rest_BT = ~result.selected_BT & ~result.live_BT.isnan()
        live_BT = result.live_BT.clone()
        live_BT[tuple(rest_BT.nonzero()[0])] = math.inf
        return result._replace(live_BT=live_BT)

    altered(monkeypatch, {4}, infinite_outside)
    with pytest.raises(TrainingError, match="step 4"):
        train_arm(workspace)


# --- reference, export, precision ---


def scripted_evaluations(monkeypatch, losses, measured=None):
    """Held-out losses as given, on the same tokens unless told, and the weights at each evaluation."""
    snapshots = []

    def evaluator(*_):
        def evaluate(model, _ranks, _beat):
            snapshots.append({k: v.clone() for k, v in model.model.state_dict().items()})
            on = measured[len(snapshots) - 1] if measured else (100, "rows", "float32")
            return {"target": Measured(losses[len(snapshots) - 1], *on), "general": Measured(-float(len(snapshots)), *on)}

        return evaluate

    monkeypatch.setattr(train_ref, "heldout_evaluator", evaluator)
    return snapshots


@pytest.mark.parametrize(
    ("losses", "best"),
    [
        ([1.0, 5.0, 3.0, 4.0, 6.0], 2),
        ([1.0, 2.0, 3.0, 4.0, 5.0], 1),
        ([9.0, 5.0, 4.0, 3.0, 2.0], 4),
        ([9.0, 3.0, 3.0, 3.0, 4.0], 1),
    ],
)
def test_keep_best_on_keeps_the_weights_of_the_lowest_loss(losses, best, pipeline, monkeypatch):
    workspace = pipeline("best", {"reference": {"keep_best_on": "target", "steps": 8, "eval_every": 2}})
    snapshots = scripted_evaluations(monkeypatch, losses)
    train_reference(workspace)
    assert len(snapshots) == 5
    found = AutoModelForCausalLM.from_pretrained(workspace.reference).state_dict()
    for i, snapshot in enumerate(snapshots):
        assert all(torch.equal(found[k], snapshot[k]) for k in found) == (i == best), i


def test_without_keep_best_on_the_last_weights_are_the_reference(pipeline, monkeypatch):
    workspace = pipeline("last", {"reference": {"steps": 8, "eval_every": 2}})
    snapshots = scripted_evaluations(monkeypatch, [1.0, 2.0, 3.0, 4.0, 5.0])
    train_reference(workspace)
    found = AutoModelForCausalLM.from_pretrained(workspace.reference).state_dict()
    assert all(torch.equal(found[k], snapshots[-1][k]) for k in found)


def test_keep_best_on_survives_an_interruption(pipeline, monkeypatch):
    over = {"reference": {"keep_best_on": "target", "steps": 8, "eval_every": 2}}
    wanted = pipeline("whole", over)
    scripted_evaluations(monkeypatch, [9.0, 2.0, 5.0, 6.0, 7.0])
    train_reference(wanted)
    workspace = pipeline("stopped", over)
    with monkeypatch.context() as patch, raising():
        scripted_evaluations(patch, [9.0, 2.0])
        at_step(patch, 3, send(signal.SIGINT))
        with pytest.raises(Interrupted):
            train_reference(workspace)
    scripted_evaluations(monkeypatch, [5.0, 6.0, 7.0])
    train_reference(workspace)
    files = [w.reference / "model.safetensors" for w in (wanted, workspace)]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_keep_best_on_survives_a_stop_in_the_evaluation_that_is_the_best(pipeline, monkeypatch):
    """And, once that was made, a stop before anything else was saved."""
    over = {"reference": {"keep_best_on": "target", "steps": 8, "eval_every": 2}}
    workspace = pipeline("stopped", over)

    def until(number, losses):
        """Evaluations with these losses, of which the one of this number is asked to stop between its batches."""
        made = []

        def evaluate(_model, _ranks, beat):
            made.append(1)
            if len(made) == number:
                send(signal.SIGINT)()
            beat("target", 1, 2)
            on = (100, "rows", "float32")
            return {"target": Measured(losses[len(made) - 1], *on), "general": Measured(1.0, *on)}

        return lambda *_: evaluate

    with monkeypatch.context() as patch, raising():
        patch.setattr(train_ref, "heldout_evaluator", until(3, [9.0, 5.0, 2.0]))
        with pytest.raises(Interrupted, match="after step 4; saved"):
            train_reference(workspace)
        patch.setattr(train_ref, "heldout_evaluator", until(2, [2.0, 7.0]))
        with pytest.raises(Interrupted, match="after step 6; saved"):
            train_reference(workspace)
        patch.setattr(train_ref, "heldout_evaluator", until(9, [7.0, 8.0]))
        train_reference(workspace)
    evals = read_log(workspace.reference / "training" / "evals.jsonl")
    assert [(r["step"], r["heldout"]["target"]) for r in evals] == [(0, 9.0), (2, 5.0), (4, 2.0), (6, 7.0), (8, 8.0)]
    wanted = pipeline("whole", over)
    scripted_evaluations(monkeypatch, [9.0, 5.0, 2.0, 7.0, 8.0])
    train_reference(wanted)
    files = [w.reference / "model.safetensors" for w in (wanted, workspace)]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_keep_best_on_holds_no_loss_against_one_of_other_tokens(pipeline, monkeypatch, capsys):
    """On a tenth of the tokens the loss was lower by luck: from there on the lowest of the new ones is the best."""
    workspace = pipeline("other", {"reference": {"keep_best_on": "target", "steps": 8, "eval_every": 2}})
    part, whole, rough = (10, "part", "float32"), (100, "whole", "float32"), (100, "whole", "bf16_autocast")
    snapshots = scripted_evaluations(monkeypatch, [9.0, 1.0, 5.0, 4.0, 6.0], [part, part, whole, whole, whole])
    train_reference(workspace)
    found = AutoModelForCausalLM.from_pretrained(workspace.reference).state_dict()
    assert [i for i, s in enumerate(snapshots) if all(torch.equal(found[k], s[k]) for k in found)] == [3]
    assert "one was measured on 10 tokens, the other on 100. The best weights are looked for anew" in " ".join(
        capsys.readouterr().err.split()
    )
    best = read_json(all_checkpoints(workspace.reference / "training" / "checkpoints")[-1] / "state.json")["progress"]["best"]
    assert (best["step"], best["loss"], best["measured"]["target"]["tokens"]) == (6, 4.0, 100)
    other = pipeline("rough", {"reference": {"keep_best_on": "target", "steps": 8, "eval_every": 2}})
    snapshots = scripted_evaluations(monkeypatch, [9.0, 1.0, 5.0, 6.0, 7.0], [whole, whole, rough, rough, rough])
    train_reference(other)
    found = AutoModelForCausalLM.from_pretrained(other.reference).state_dict()
    assert [i for i, s in enumerate(snapshots) if all(torch.equal(found[k], s[k]) for k in found)] == [2]
    assert "computed in float32, the other in bf16_autocast" in " ".join(capsys.readouterr().err.split())


def test_a_best_of_before_this_was_recorded_is_not_held_against_anything(pipeline, monkeypatch, capsys):
    """Its checkpoint says step and loss alone: what it was measured on is not known, and the run goes on all the same."""
    over = {"reference": {"keep_best_on": "target", "steps": 8, "eval_every": 2}}
    workspace = pipeline("stopped", over)
    with monkeypatch.context() as patch, raising():
        scripted_evaluations(patch, [9.0, 1.0])
        at_step(patch, 3, send(signal.SIGINT))
        with pytest.raises(Interrupted):
            train_reference(workspace)
    file = all_checkpoints(workspace.reference / "training" / "checkpoints")[-1] / "state.json"
    state = {k: v for k, v in read_json(file).items() if k != "sha256"}
    state["progress"]["best"] = {"step": 2, "loss": 1.0}
    write_json(file, {**state, "sha256": sha256_json(state)})
    snapshots = scripted_evaluations(monkeypatch, [5.0, 6.0, 7.0])
    train_reference(workspace)
    found = AutoModelForCausalLM.from_pretrained(workspace.reference).state_dict()
    assert [i for i, s in enumerate(snapshots) if all(torch.equal(found[k], s[k]) for k in found)] == [0]
    assert "it is not known on which tokens" in " ".join(capsys.readouterr().err.split())


def test_each_evaluation_says_what_it_was_measured_on(pipeline):
    """How many tokens, which rows and in what arithmetic; a resumed run that evaluates on more says so, and no loss moves
    for it without a reason to be seen."""
    over = {"pretrain": {"eval_tokens": 64, "arms": {"clm": {"precision": "bf16_autocast"}}}}
    workspace = pipeline("said", over)
    with raising(), pytest.MonkeyPatch.context() as patch:
        at_step(patch, 4, send(signal.SIGINT))
        with pytest.raises(Interrupted):
            train_arm(workspace, "clm")
    workspace.config.pretrain.arms["clm"].eval_tokens = None
    train_arm(workspace, "clm")
    records = read_log(workspace.arm("clm") / "evals.jsonl")
    target = workspace.open_tokens("heldout/target")
    assert [r["step"] for r in records] == [0, 3, 6, 8]
    assert [measure_of(r, "target")["precision"] for r in records] == ["bf16_autocast"] * 4
    tokens = [measure_of(r, "target")["tokens"] for r in records]
    rows = [measure_of(r, "target")["rows"] for r in records]
    every = RowReader(target, documents=False).fetch(np.arange(target.rows)).document_BT
    predicted = (every[:, 1:] >= 0).sum(axis=1)
    assert tokens == [predicted[:2].sum()] * 2 + [predicted.sum()] * 2
    assert target.rows > 2
    assert rows[0] == rows[1] != rows[2] == rows[3]
    assert measure_of(records[0], "general")["rows"] != rows[0], "of another set"
    assert why_not_comparable(measure_of(records[0], "target"), measure_of(records[1], "target")) is None
    assert f"{tokens[1]:,} tokens, the other on {tokens[2]:,}" in why_not_comparable(
        *(measure_of(r, "target") for r in records[1:3])
    )


def test_a_mixed_reference_sees_the_corpus_share_on_top_of_the_curated_rows(pipeline):
    workspace = pipeline("mixed", {"reference": {"mix": 0.4, "steps": None, "epochs": 1}})
    train_reference(workspace)
    curated = workspace.open_tokens("curated")
    rows = curated.rows + round(curated.rows * 0.4 / 0.6)
    last = read_log(workspace.reference / "training" / "metrics.jsonl")[-1]
    assert last["step"] == math.ceil(rows / 8)
    plain = pipeline("plain", {"reference": {"steps": None, "epochs": 1}})
    train_reference(plain)
    assert read_log(plain.reference / "training" / "metrics.jsonl")[-1]["step"] == math.ceil(curated.rows / 8)


def test_exported_models_load_and_give_the_logits_that_were_trained(pipeline, monkeypatch):
    runs = []
    for stage in (train_ref, pretrain_stage):
        monkeypatch.setattr(stage, "train", lambda run: runs.append(run) or loop.train(run))
    workspace = pipeline("exported", {"reference": {"lr": 1e-3}})
    train_reference(workspace)
    score(workspace)
    train_arm(workspace, "clm")
    ids = torch.randint(0, 300, (2, 20))
    for run, directory in zip(runs, [workspace.reference, workspace.arm("clm") / "model"], strict=True):
        loaded = AutoModelForCausalLM.from_pretrained(directory)
        run.model.model.eval()
        with torch.no_grad():
            assert torch.equal(loaded(ids).logits, run.model.model(ids).logits)
        assert AutoTokenizer.from_pretrained(directory)("the sum")["input_ids"] == run.tokenizer.hf("the sum")["input_ids"]
        assert (directory / "tokenizer.model").is_file(), "llama.cpp's converter reads it"


@pytest.mark.parametrize("precision", ["bfloat16", "bf16_autocast"])
def test_bfloat16_trains_and_exports(precision, pipeline):
    workspace = pipeline("bf16", {"pretrain": {"precision": precision, "lr": 1e-2}})
    directory = train_arm(workspace)
    metrics = read_log(directory / "metrics.jsonl")
    assert all(math.isfinite(r["loss"]) and r["grad_norm"] > 0 for r in metrics)
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    loaded = AutoModelForCausalLM.from_pretrained(directory / "model", dtype="auto")
    assert loaded.dtype == dtype
    before = AutoModelForCausalLM.from_pretrained(workspace.base, dtype=dtype).state_dict()
    assert all(not torch.equal(v, before[k]) for k, v in loaded.state_dict().items() if v.ndim >= 2)
    exact = read_log(train_arm(pipeline("f32", {"pretrain": {"lr": 1e-2}})) / "metrics.jsonl")
    assert metrics[0]["loss"] == pytest.approx(exact[0]["loss"], rel=0.05)


def test_bfloat16_resumes_exactly_too(pipeline, monkeypatch):
    over = {"pretrain": {"precision": "bfloat16"}}
    whole = result(train_arm(pipeline("whole", over)))
    workspace = pipeline("stopped", over)
    with monkeypatch.context() as patch, raising():
        at_step(patch, 4, send(signal.SIGINT))
        with pytest.raises(Interrupted):
            train_arm(workspace)
    assert_same(result(train_arm(workspace)), whole)


def test_base_reference_and_arms_share_an_order_under_no_seeds_and_arms_of_one_seed_do(scored):
    orders = {}
    for seed in range(6):
        settings = ArmConfig(steps=1, seed=seed)
        for purpose in ("base", "reference", "arms"):
            orders[purpose, seed] = RowOrder(np.full(9, 8), seed_of(scored.config, settings, purpose)).at(0, 40).tobytes()
    assert len(set(orders.values())) == len(orders)
    own, pipelines = (seed_of(scored.config, ArmConfig(steps=1, seed=s), "arms") for s in (scored.config.seed, None))
    assert own == pipelines


def rows_taken(monkeypatch, work):
    """Positions of the order, by order, that `work` trains on."""
    orders = []
    original = OneSet.__init__
    monkeypatch.setattr(OneSet, "__init__", lambda self, *a: original(self, *a) or orders.append(self.order))
    work()
    return [o.at(0, o.rows).tobytes() for o in orders]


def test_the_stages_read_their_rows_in_their_own_orders(pipeline, monkeypatch):
    """Of the same seed, and of seeds that are one apart."""
    few = {"steps": 1}
    over = {"model": {"scratch": {"train": few}}, "reference": {**few, "mix": 0.3}, "pretrain": {**few, "eval_every": 0}}
    workspace = pipeline("orders", over)
    arms = workspace.config.pretrain.arms
    arms["clm"].seed = workspace.config.seed + 1
    corpus = rows_taken(monkeypatch, lambda: train_base(workspace, resume=False))
    [_, mixed_in] = rows_taken(monkeypatch, lambda: train_reference(workspace, resume=False))[-2:]
    score(workspace)
    slm, clm, random = rows_taken(monkeypatch, lambda: pretrain(workspace))[-3:]
    assert slm == random
    assert len({corpus[-1], mixed_in, slm, clm}) == 4
    assert len({len(o) for o in (corpus[-1], mixed_in, slm, clm)}) == 1, "not orders of one set: the test shows nothing"


def test_the_base_is_whole(scored):
    assert json.loads((scored.base / "done.json").read_text())["completed"]
    base = read_log(scored.base_training / "metrics.jsonl")
    assert base[-1]["step"] == 60
    assert base[-1]["live_mean"] < base[0]["live_mean"] - 1, "the base learnt nothing, so these tests show little"


def test_an_untrained_base_has_the_seeds_random_weights(pipeline):
    files = []
    for name, seed in [("a", 0), ("b", 0), ("c", 5)]:
        workspace = pipeline(name)
        workspace.config.model.scratch.train = None
        workspace.config.seed = seed
        if seed:
            prepare(workspace)
        before = torch.get_rng_state()
        train_base(workspace)
        assert torch.equal(torch.get_rng_state(), before)
        files.append((workspace.base / "model.safetensors").read_bytes())
    assert files[0] == files[1] != files[2]
