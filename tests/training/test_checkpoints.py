"""Checkpoints: exact, whole or absent, and never trusted unread."""

from __future__ import annotations

import json
import math
import os
import shutil
import threading

import pytest
import torch
from torch.distributed.checkpoint import state_dict_saver

from slmctl.config.training import TrainingConfig
from slmctl.system.errors import CorruptError, MismatchError, SlmError
from slmctl.system.files import read_json, write_json
from slmctl.system.hashes import sha256_json
from slmctl.system.temporaries import temporary_beside
from slmctl.training import checkpoint
from slmctl.training.checkpoint import Checkpoints
from slmctl.training.checkpoint_files import STATE, all_checkpoints
from slmctl.training.optim import build_optimizer
from slmctl.training.ranks import Ranks
from slmctl.training.state import Progress, TrainingState


class State:
    """A model, its optimizer and counts, some steps in."""

    def __init__(self, make_llama, tied=True, dtype=torch.float32, seed=0):
        self.model = make_llama(tied, dtype, seed)
        self.optimizer = build_optimizer(self.model, TrainingConfig(steps=9, lr=0.01))
        self.counts = torch.zeros(2, 61, dtype=torch.int64)
        self.generator = torch.Generator().manual_seed(seed)

    def step(self):
        for p in self.model.parameters():
            p.grad = torch.randn(p.shape, generator=self.generator).to(p.dtype)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.counts += torch.randint(0, 9, self.counts.shape, generator=self.generator)

    def tensors(self):
        found = [p.detach().clone() for p in self.model.parameters()]
        for p in self.model.parameters():
            found += [v.clone() for _, v in sorted(self.optimizer.state[p].items())]
        return [*found, self.counts.clone()]

    def training(self):
        return TrainingState(self.model, self.optimizer, self.counts)

    def save(self, root, step, keep_last=2, keep_every=0):
        return saved(checkpoints(root, keep_last, keep_every), Progress(step, 100 * step, 60 * step), self.training())

    def load(self, root, step=None):
        return checkpoints(root).load(self.training(), step)


def checkpoints(root, keep_last=2, keep_every=0, made_from=None):
    return Checkpoints(root, made_from or {}, keep_last, keep_every, Ranks())


def saved(to, progress, training):
    """Saves to the end, and raises what went wrong."""
    final = to.save(progress, training)
    to.wait()
    failure = to.failed()
    if failure is not None:
        raise failure
    return final


def same(a, b):
    return len(a) == len(b) and all(x.dtype == y.dtype and torch.equal(x, y) for x, y in zip(a, b, strict=True))


def flip_last_byte(file):
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


def payload(directory):
    """The largest file of a checkpoint: its tensors."""
    return max(directory.iterdir(), key=lambda f: f.stat().st_size)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tied", [True, False])
def test_round_trip_is_exact_and_goes_on_exactly(tied, dtype, make_llama, tmp_path):
    state = State(make_llama, tied, dtype)
    state.step()
    state.step()
    state.save(tmp_path, 2)
    wanted = state.tensors()
    other = State(make_llama, tied, dtype, seed=7)
    other.step()  # so that it has an optimizer state of its own to be overwritten
    assert not same(other.tensors(), wanted)
    progress = other.load(tmp_path)
    assert (progress.step, progress.tokens_seen, progress.tokens_selected) == (2, 200, 120)
    assert same(other.tensors(), wanted)
    other.generator.set_state(state.generator.get_state())
    state.step()
    other.step()
    assert same(other.tensors(), state.tensors())


def test_loading_into_a_fresh_optimizer_restores_its_moments(make_llama, tmp_path):
    state = State(make_llama)
    state.step()
    state.save(tmp_path, 1)
    fresh = State(make_llama, seed=3)
    fresh.load(tmp_path)
    assert same(fresh.tensors(), state.tensors())


def test_progress_survives_in_every_field(make_llama, tmp_path):
    state = State(make_llama)
    state.step()
    progress = Progress(
        step=4,
        tokens_seen=5,
        tokens_selected=6,
        best={"step": 2, "loss": math.pi},
        threshold=math.e,
        recent_losses=[1.5, 0.1],
        skipped=3,
        skipped_in_a_row=1,
        micro_batch=16,
        machine={"ranks": 2, "device": "cpu", "memory": 3},
        threads=2,
        evaluated=3,
    )
    assert all(v != getattr(Progress(), k) for k, v in vars(progress).items()), "a default would survive unsaved"
    saved(checkpoints(tmp_path), progress, state.training())
    assert state.load(tmp_path) == progress


def test_a_checkpoint_that_does_not_tell_its_last_evaluation_was_evaluated_when_that_was_due(make_llama, tmp_path):
    """Those of older slmctl's: a run saved after it had evaluated."""
    state = State(make_llama)
    state.step()
    directory = state.save(tmp_path, 4)
    facts = {k: v for k, v in read_json(directory / STATE).items() if k != "sha256"}
    del facts["progress"]["evaluated"], facts["progress"]["threads"]
    write_json(directory / STATE, {**facts, "sha256": sha256_json(facts)})
    found = state.load(tmp_path)
    assert (found.evaluated, found.threads) == (4, None)


def test_no_checkpoint_is_none(make_llama, tmp_path):
    assert State(make_llama).load(tmp_path / "absent") is None


def test_only_the_last_ones_are_kept(make_llama, tmp_path):
    state = State(make_llama)
    state.step()
    for step in (2, 4, 6, 10):
        state.save(tmp_path, step, keep_last=3)
    assert [d.name for d in all_checkpoints(tmp_path)] == ["step-00000004", "step-00000006", "step-00000010"]
    assert len(list(tmp_path.iterdir())) == 3


def test_a_corrupt_newest_falls_back_with_a_warning(make_llama, tmp_path, capsys):
    state = State(make_llama)
    state.step()
    state.save(tmp_path, 1)
    wanted = state.tensors()
    state.step()
    flip_last_byte(payload(state.save(tmp_path, 2)))
    other = State(make_llama, seed=5)
    assert other.load(tmp_path).step == 1
    assert same(other.tensors(), wanted)
    told = capsys.readouterr().err
    assert "warning" in told
    assert "step-00000002" in told


def breakages():
    def cut(directory):
        file = payload(directory)
        file.write_bytes(file.read_bytes()[:-100])

    def lose(directory):
        payload(directory).unlink()

    def lose_metadata(directory):
        (directory / ".metadata").unlink()

    def cut_state(directory):
        file = directory / STATE
        file.write_bytes(file.read_bytes()[:-20])

    def change_a_digit(directory):
        file = directory / STATE
        data = json.loads(file.read_text())
        data["progress"]["tokens_seen"] += 1
        file.write_text(json.dumps(data))

    def change_what_it_was_made_from(directory):
        file = directory / STATE
        data = json.loads(file.read_text())
        data["made_from"]["corpus"] = "x"
        file.write_text(json.dumps(data))

    def empty_the_state(directory):
        (directory / STATE).write_text("null")

    return [cut, lose, lose_metadata, cut_state, change_a_digit, change_what_it_was_made_from, empty_the_state]


@pytest.mark.parametrize("breakage", breakages(), ids=lambda f: f.__name__)
def test_whatever_is_altered_in_a_checkpoint_is_noticed(breakage, make_llama, tmp_path):
    state = State(make_llama)
    state.step()
    state.save(tmp_path, 1)
    breakage(state.save(tmp_path, 2))
    assert State(make_llama).load(tmp_path).step == 1


def test_a_checkpoint_of_a_run_on_other_data_is_refused_by_field(make_llama, tmp_path):
    state = State(make_llama)
    state.step()
    wanted = state.tensors()
    made_from = {"corpus": "abc", "scores": {"curated": "def"}}
    saved(checkpoints(tmp_path, made_from=made_from), Progress(1, 2, 3), state.training())
    other = State(make_llama, seed=5)
    other.step()
    before = other.tensors()
    with pytest.raises(MismatchError, match=r"step-00000001(.|\n)*scores\.curated: found 'def', wanted 'xyz'"):
        checkpoints(tmp_path, made_from={**made_from, "scores": {"curated": "xyz"}}).load(other.training())
    assert same(other.tensors(), before)
    assert [d.name for d in tmp_path.iterdir()] == ["step-00000001"], "it was set aside as if broken"
    assert checkpoints(tmp_path, made_from=made_from).load(other.training()).step == 1
    assert same(other.tensors(), wanted)


def test_when_all_are_corrupt_it_says_so_and_starts_nothing(make_llama, tmp_path):
    state = State(make_llama)
    state.step()
    for step in (1, 2):
        flip_last_byte(payload(state.save(tmp_path, step)))
    with pytest.raises(CorruptError, match=r"no checkpoint in .* can be read"):
        State(make_llama).load(tmp_path)


def left_by_a_dead_process(final):
    """The temporary path at which a process that has ended was writing `final`."""
    ours, theirs = os.pipe()
    if (pid := os.fork()) == 0:
        os.write(theirs, temporary_beside(final).name.encode())
        os._exit(0)
    os.waitpid(pid, 0)
    return final.with_name(os.read(ours, 4096).decode())


def test_what_a_killed_save_left_is_not_a_checkpoint(make_llama, tmp_path):
    state = State(make_llama)
    state.step()
    whole = state.save(tmp_path, 1)
    shutil.copytree(whole, left_by_a_dead_process(tmp_path / "step-00000002"))
    (tmp_path / "step-00000003").mkdir()
    assert state.load(tmp_path).step == 1
    assert not list(tmp_path.glob(".tmp-*"))


def test_a_failed_save_keeps_the_one_before(make_llama, tmp_path, monkeypatch):
    state = State(make_llama)
    state.step()
    state.save(tmp_path, 1, keep_last=1)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "write_json", full)
    with pytest.raises(Exception, match="no space left"):
        state.save(tmp_path, 2, keep_last=1)
    assert [d.name for d in tmp_path.iterdir()] == ["step-00000001"]
    assert state.load(tmp_path).step == 1


def test_after_a_fallback_a_save_does_not_delete_itself_in_favour_of_the_corrupt_one(make_llama, tmp_path):
    state = State(make_llama)
    state.step()
    state.save(tmp_path, 2)
    flip_last_byte(payload(state.save(tmp_path, 4)))
    other = State(make_llama)
    assert other.load(tmp_path).step == 2
    other.save(tmp_path, 3, keep_last=1)
    assert State(make_llama).load(tmp_path).step == 3


# --- beside training ---


class Gate:
    """Lets no save be written before it is opened."""

    def __init__(self, monkeypatch):
        self.entered, self.opened = threading.Event(), threading.Event()
        original = state_dict_saver.save

        def save(*args, **kwargs):
            self.entered.set()
            assert self.opened.wait(60)
            return original(*args, **kwargs)

        monkeypatch.setattr(state_dict_saver, "save", save)


def test_what_is_saved_is_the_state_of_its_step_although_training_went_on(make_llama, tmp_path, monkeypatch):
    gate = Gate(monkeypatch)
    state = State(make_llama)
    state.step()
    wanted = state.tensors()
    progress = Progress(1, 100, 60, best={"step": 1, "loss": 2.0}, recent_losses=[3.0])
    to = checkpoints(tmp_path)
    to.save(progress, state.training())
    assert gate.entered.wait(60)
    for _ in range(3):
        state.step()
    progress.step, progress.tokens_seen = 4, 400
    progress.recent_losses.append(4.0)
    progress.best["loss"] = 1.0
    assert to.busy
    assert not list(tmp_path.glob("step-*"))
    gate.opened.set()
    to.wait()
    assert (to.busy, to.failed()) == (False, None)
    other = State(make_llama, seed=3)
    assert other.load(tmp_path) == Progress(1, 100, 60, best={"step": 1, "loss": 2.0}, recent_losses=[3.0])
    assert same(other.tensors(), wanted)
    assert not same(state.tensors(), wanted)


def test_a_save_waits_for_the_one_before(make_llama, tmp_path, monkeypatch):
    gate = Gate(monkeypatch)
    state = State(make_llama)
    state.step()
    to = checkpoints(tmp_path)
    to.save(Progress(1), state.training())
    second = threading.Thread(target=to.save, args=(Progress(2), state.training()))
    second.start()
    second.join(0.3)
    assert second.is_alive(), "two saves are under way at once"
    gate.opened.set()
    second.join(60)
    to.wait()
    assert to.failed() is None
    assert [d.name for d in all_checkpoints(tmp_path)] == ["step-00000001", "step-00000002"]


def test_a_failure_is_told_once_and_when_the_save_has_ended(make_llama, tmp_path, monkeypatch):
    gate = Gate(monkeypatch)
    monkeypatch.setattr(checkpoint, "sha256_file", lambda _: (_ for _ in ()).throw(OSError(5, "Input/output error")))
    state = State(make_llama)
    state.step()
    to = checkpoints(tmp_path)
    to.save(Progress(1), state.training())
    assert to.failed() is None
    gate.opened.set()
    to.wait()
    assert "Input/output error" in str(to.failed())
    assert to.failed() is None
    assert list(tmp_path.iterdir()) == []


# --- which are kept ---


def names(root):
    return sorted(d.name for d in root.iterdir())


def test_milestones_stay_beside_the_newest(make_llama, tmp_path):
    state = State(make_llama)
    state.step()
    for step in range(1, 9):
        state.save(tmp_path, step, keep_last=2, keep_every=3)
    assert names(tmp_path) == [f"step-{n:08d}" for n in (3, 6, 7, 8)]
    state.save(tmp_path, 9, keep_last=1, keep_every=6)
    assert names(tmp_path) == [f"step-{n:08d}" for n in (6, 9)]


def test_a_checkpoint_whose_deletion_was_cut_short_is_not_half_there(make_llama, tmp_path, monkeypatch):
    state = State(make_llama)
    state.step()
    state.save(tmp_path, 1)

    def cut_short(directory, **_):
        if files := sorted(directory.iterdir()) if directory.is_dir() else []:
            files[0].unlink()

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", cut_short)
        state.save(tmp_path, 2, keep_last=1)
    assert sorted(tmp_path.glob("step-*")) == [tmp_path / "step-00000002"]
    assert state.load(tmp_path).step == 2


def test_an_empty_folder_of_the_steps_name_does_not_pass_for_its_checkpoint(make_llama, tmp_path):
    (tmp_path / "step-00000003").mkdir()
    state = State(make_llama)
    state.step()
    state.save(tmp_path, 3)
    assert state.load(tmp_path).step == 3


def test_saving_a_step_again_keeps_what_is_there(make_llama, tmp_path):
    state = State(make_llama)
    state.step()
    before = state.save(tmp_path, 3).stat().st_ino
    assert state.save(tmp_path, 3).stat().st_ino == before
    assert names(tmp_path) == ["step-00000003"]


# --- going back ---


def test_going_back_to_a_step_keeps_the_later_ones_under_another_name(make_llama, tmp_path):
    state = State(make_llama)
    state.step()
    state.save(tmp_path, 1, keep_last=9)
    wanted = state.tensors()
    for step in (2, 3):
        state.step()
        state.save(tmp_path, step, keep_last=9)
    other = State(make_llama, seed=3)
    assert other.load(tmp_path, 1).step == 1
    assert same(other.tensors(), wanted)
    assert names(tmp_path) == ["later-step-00000002", "later-step-00000003", "step-00000001"]
    state.save(tmp_path, 2)
    other.load(tmp_path, 1)
    assert names(tmp_path) == ["later-step-00000002", "later-step-00000003", "step-00000001"]


def test_a_step_that_was_not_saved_is_refused_by_what_there_is(make_llama, tmp_path):
    state = State(make_llama)
    state.step()
    with pytest.raises(SlmError, match=r"--resume 3: .*found none"):
        state.load(tmp_path, 3)
    for step in (2, 4):
        state.save(tmp_path, step)
    with pytest.raises(SlmError, match=r"--resume 3: .*found 2, 4"):
        state.load(tmp_path, 3)
    assert names(tmp_path) == ["step-00000002", "step-00000004"]
