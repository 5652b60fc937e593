"""The number of threads of a run: measured without a trace, kept in its checkpoints, and taken again when it goes on."""

from __future__ import annotations

import json
import shutil
import signal

import pytest
import torch
from test_training_loop import assert_same, at_step, result, send, train_arm

from slmctl.stages.score import score
from slmctl.store.manifest import load_manifest
from slmctl.system import threads
from slmctl.system.errors import Interrupted
from slmctl.system.files import read_json
from slmctl.system.signals import raising
from slmctl.training import run_log, thread_number
from slmctl.training.checkpoint_files import STATE, all_checkpoints
from slmctl.training.state import Progress


@pytest.fixture
def number(monkeypatch):
    """A machine of four cores, on which nothing was asked for. Its numbers of threads, in turn; the last is in use."""
    numbers = [4]
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    monkeypatch.setattr(threads, "_most", None)
    monkeypatch.setattr(torch, "get_num_threads", lambda: numbers[-1])
    monkeypatch.setattr(torch, "set_num_threads", numbers.append)
    return numbers


def choosing(monkeypatch, chosen):
    """Has measuring end with `chosen`, after some real passes. Counts how often it was done."""
    done = []

    def choose(work, most):
        done.append(most)
        for n in (1, most, chosen):
            threads.use(n)
            work()
        return threads.ThreadChoice(chosen, most, {"1": 1.0})

    monkeypatch.setattr(threads, "choose", choose)
    return done


@pytest.mark.parametrize("arm", ["slm", "random"])
@pytest.mark.parametrize("dropout", [False, True])
@pytest.mark.usefixtures("number")
def test_measuring_leaves_no_trace_in_the_run(arm, dropout, pipeline, monkeypatch):
    def made(name):
        workspace = pipeline(name, {"accept_mismatch": ["reference:base.config.json"]})
        if dropout:
            path = workspace.base_model / "config.json"
            path.write_text(json.dumps({**json.loads(path.read_text()), "attention_dropout": 0.3}))
        return result(train_arm(workspace, arm))

    with monkeypatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        untouched = made("untouched")
    done = choosing(monkeypatch, 2)
    assert_same(made("measured"), untouched)
    assert done == [4]


def test_the_arms_of_a_pipeline_take_one_number_and_a_resumed_run_its_own(pipeline, number, monkeypatch, capsys):
    done = choosing(monkeypatch, 2)
    workspace = pipeline()
    with monkeypatch.context() as patch, raising():
        at_step(patch, 4, send(signal.SIGINT))
        with pytest.raises(Interrupted):
            train_arm(workspace)
    assert number[-1] == 2
    assert "slm: 2 of 4 threads, the fastest now" in capsys.readouterr().err
    (saved,) = all_checkpoints(workspace.arm("slm") / "checkpoints")
    assert read_json(saved / STATE)["progress"]["threads"] == 2
    (workspace.root / ".cache" / "threads.json").write_text("{}")
    number.append(3)
    train_arm(workspace)
    assert (number[-1], done) == (2, [4]), "a run that goes on was measured anew"
    choosing(monkeypatch, 4)
    train_arm(workspace, "clm")
    train_arm(workspace, "random")
    environments = [(workspace.arm(a) / "environment.jsonl").read_text().splitlines() for a in ("slm", "clm", "random")]
    assert [[json.loads(line)["threads"] for line in lines] for lines in environments] == [[2, 2], [4], [4]]
    assert done == [4]


@pytest.mark.parametrize(("before", "wanted"), [(None, 4), (3, 3), (9, 1)])
def test_what_a_checkpoint_tells_decides(before, wanted, number, monkeypatch, capsys):
    """Of older slmctl's it tells nothing: all cores were used. More than there are here is no number to go on with."""
    choosing(monkeypatch, 1)
    progress = Progress(step=5, threads=before)
    thread_number.settle_threads("slm", progress, batcher(), None, lambda: lambda: None)
    assert number[-1] == progress.threads == wanted
    assert ("more than there are cores here" in capsys.readouterr().err) == (before == 9)


def batcher(ranks=1):
    from slmctl.training.batches import Batcher

    made = Batcher.__new__(Batcher)
    made.device, made.world_size = "cpu", ranks
    return made


@pytest.mark.usefixtures("number")
def test_a_number_that_was_asked_for_wins_and_what_it_changes_is_said(monkeypatch, capsys):
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    progress = Progress(step=5, threads=2)
    thread_number.settle_threads("slm", progress, batcher(), None, lambda: pytest.fail("measured"))
    assert progress.threads == 4
    assert "it was trained with 2 threads so far, and goes on with 4, as OMP_NUM_THREADS asks" in capsys.readouterr().err


def test_several_ranks_keep_what_they_were_started_with(number):
    progress = Progress()
    thread_number.settle_threads("slm", progress, batcher(2), None, lambda: pytest.fail("measured"))
    assert (number, progress.threads) == ([4], None)


@pytest.mark.parametrize(("share", "said"), [(0.6, 1), (0.1, 0), (None, 0)])
def test_a_run_that_waits_for_cores_says_so_once(share, said, pipeline, monkeypatch, capsys):
    monkeypatch.setattr(run_log, "SETTLING", 0.0)
    monkeypatch.setattr(run_log.CpuContention, "share", lambda _: share)
    workspace = pipeline()
    train_arm(workspace)
    train_arm(workspace, "clm")
    err = capsys.readouterr().err
    assert err.count("slm: for 60% of the time so far, it waited for a core") == said
    assert "clm: for" not in err, "it was said of the arm before"


def test_a_large_model_is_not_measured(pipeline, number, monkeypatch):
    done = choosing(monkeypatch, 2)
    monkeypatch.setattr(thread_number, "SMALL", 10.0)
    train_arm(pipeline())
    assert (done, number[-1]) == ([], 4)


def test_scoring_chooses_a_number_too_and_its_manifest_tells_it(pipeline, number, monkeypatch, scored):
    done = choosing(monkeypatch, 2)
    workspace = pipeline()
    shutil.rmtree(workspace.root / "scores")
    score(workspace)
    made, before = (load_manifest(w.scores("curated"), "scores") for w in (workspace, scored))
    assert (done, number[-1], made.versions["threads"]) == ([4], 2, "2")
    assert made.content_hash == before.content_hash, "the number is a fact, and decides nothing"
    assert workspace.places.threads("score curated").read(4) == 2
