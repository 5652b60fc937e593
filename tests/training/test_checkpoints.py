"""Checkpoints: exact, whole or absent, and never trusted unread."""

from __future__ import annotations

import json
import math
import os
import shutil

import pytest
import torch

from slmctl.config import TrainingConfig
from slmctl.errors import CorruptError, MismatchError
from slmctl.files import temporary_beside
from slmctl.training import checkpoint
from slmctl.training.checkpoint import Progress
from slmctl.training.optim import build_optimizer


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

    def save(self, root, step, keep_last=2):
        return checkpoint.save(root, keep_last, Progress(step, 100 * step, 60 * step), self.model, self.optimizer, self.counts)

    def load(self, root):
        return checkpoint.load_latest(root, self.model, self.optimizer, self.counts)


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
    saved = state.tensors()
    other = State(make_llama, tied, dtype, seed=7)
    other.step()  # so that it has an optimizer state of its own to be overwritten
    assert not same(other.tensors(), saved)
    progress = other.load(tmp_path)
    assert (progress.step, progress.tokens_seen, progress.tokens_selected) == (2, 200, 120)
    assert same(other.tensors(), saved)
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


def test_progress_survives_with_its_best(make_llama, tmp_path):
    state = State(make_llama)
    state.step()
    progress = Progress(4, 5, 6, best={"step": 2, "loss": math.pi})
    checkpoint.save(tmp_path, 2, progress, state.model, state.optimizer, state.counts)
    assert state.load(tmp_path) == progress


def test_no_checkpoint_is_none(make_llama, tmp_path):
    assert State(make_llama).load(tmp_path / "absent") is None


def test_only_the_last_ones_are_kept(make_llama, tmp_path):
    state = State(make_llama)
    state.step()
    for step in (2, 4, 6, 10):
        state.save(tmp_path, step, keep_last=3)
    assert [d.name for d in checkpoint.all_checkpoints(tmp_path)] == ["step-00000004", "step-00000006", "step-00000010"]
    assert len(list(tmp_path.iterdir())) == 3


def test_a_corrupt_newest_falls_back_with_a_warning(make_llama, tmp_path, capsys):
    state = State(make_llama)
    state.step()
    state.save(tmp_path, 1)
    saved = state.tensors()
    state.step()
    flip_last_byte(payload(state.save(tmp_path, 2)))
    other = State(make_llama, seed=5)
    assert other.load(tmp_path).step == 1
    assert same(other.tensors(), saved)
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
        file = directory / checkpoint.STATE
        file.write_bytes(file.read_bytes()[:-20])

    def change_a_digit(directory):
        file = directory / checkpoint.STATE
        data = json.loads(file.read_text())
        data["progress"]["tokens_seen"] += 1
        file.write_text(json.dumps(data))

    def change_what_it_was_made_from(directory):
        file = directory / checkpoint.STATE
        data = json.loads(file.read_text())
        data["made_from"]["corpus"] = "x"
        file.write_text(json.dumps(data))

    def empty_the_state(directory):
        (directory / checkpoint.STATE).write_text("null")

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
    saved = state.tensors()
    made_from = {"corpus": "abc", "scores": {"curated": "def"}}
    checkpoint.save(tmp_path, 2, Progress(1, 2, 3), state.model, state.optimizer, state.counts, made_from)
    other = State(make_llama, seed=5)
    other.step()
    before = other.tensors()
    with pytest.raises(MismatchError, match=r"step-00000001(.|\n)*scores\.curated: found 'def', wanted 'xyz'"):
        checkpoint.load_latest(tmp_path, other.model, other.optimizer, other.counts, {**made_from, "scores": {"curated": "xyz"}})
    assert same(other.tensors(), before)
    assert [d.name for d in tmp_path.iterdir()] == ["step-00000001"], "it was set aside as if broken"
    assert checkpoint.load_latest(tmp_path, other.model, other.optimizer, other.counts, made_from).step == 1
    assert same(other.tensors(), saved)


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
