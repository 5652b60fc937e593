"""The weights of a checkpoint, loaded into a model by themselves."""

from __future__ import annotations

import copy
import json

import pytest
import torch

from slmctl.system.errors import CorruptError, MismatchError
from slmctl.training.checkpoint import Checkpoints
from slmctl.training.checkpoint_files import STATE, all_checkpoints, load_weights
from slmctl.training.ranks import Ranks
from slmctl.training.state import Progress, TrainingState

STEPS = 3
IDS = torch.arange(24).reshape(2, 12) % 61


@pytest.fixture
def saved(make_llama, tmp_path):
    """saved(tied, dtype): checkpoints of three steps of training, and a copy of the model at each."""

    def make(tied=True, dtype=torch.float32):
        split = make_llama(tied, dtype)
        split.model.train()
        optimizer = torch.optim.AdamW(split.parameters(), lr=0.05)
        training = TrainingState(split, optimizer, torch.zeros(2, 61, dtype=torch.int64))
        checkpoints = Checkpoints(tmp_path / "checkpoints", {"what": "this run"}, 99, 0, Ranks())
        copies = []
        for step in range(1, STEPS + 1):
            split.model(IDS, labels=IDS).loss.backward()
            optimizer.step()
            checkpoints.save(Progress(step=step, tokens_seen=10 * step), training)
            checkpoints.wait()
            assert checkpoints.failed() is None
            copies.append(copy.deepcopy(split.model).eval())
        return all_checkpoints(tmp_path / "checkpoints"), copies

    return make


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


@pytest.mark.parametrize("tied", [True, False])
def test_each_checkpoint_gives_the_model_of_its_step(saved, make_llama, tied):
    directories, copies = saved(tied)
    assert len(directories) == STEPS
    other = make_llama(tied, torch.float32, seed=7)
    before = logits(other.model)
    assert not torch.equal(before, logits(copies[0]))
    for i in (2, 0, 1):  # in any order: nothing of what was loaded before stays
        progress = load_weights(directories[i], other)
        assert (progress.step, progress.tokens_seen) == (i + 1, 10 * (i + 1))
        assert torch.equal(logits(other.model), logits(copies[i]))
        assert all(torch.equal(a, b) for a, b in zip(other.model.parameters(), copies[i].parameters(), strict=True))
    embedding = other.model.get_input_embeddings().weight
    assert (other.model.get_output_embeddings().weight is embedding) == tied
    assert not other.model.training, "the mode is the caller's"


@pytest.mark.parametrize(("trained", "wanted"), [(torch.float32, torch.bfloat16), (torch.bfloat16, torch.float32)])
def test_weights_are_converted_to_the_models_own_type(saved, make_llama, trained, wanted):
    directories, copies = saved(True, trained)
    other = make_llama(True, wanted, seed=7)
    load_weights(directories[-1], other)
    assert {p.dtype for p in other.parameters()} == {wanted}
    plain = make_llama(True, wanted, seed=8).model
    plain.load_state_dict(copies[-1].state_dict())
    assert torch.equal(logits(other.model), logits(plain))


def alter(directory):
    file = max((f for f in directory.iterdir() if f.suffix == ".distcp"), key=lambda f: f.stat().st_size)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def remove(directory):
    next(f for f in directory.iterdir() if f.suffix == ".distcp").unlink()


def cut_short(directory):
    (directory / STATE).write_text((directory / STATE).read_text(encoding="utf-8")[:-20], encoding="utf-8")


def edit(directory):
    state = json.loads((directory / STATE).read_text(encoding="utf-8"))
    state["progress"]["step"] = 77
    (directory / STATE).write_text(json.dumps(state), encoding="utf-8")


@pytest.mark.parametrize("damage", [alter, remove, cut_short, edit])
def test_a_broken_checkpoint_is_refused_before_anything_is_loaded(saved, make_llama, damage):
    directories, _ = saved()
    damage(directories[1])
    other = make_llama(True, torch.float32, seed=7)
    before = logits(other.model)
    with pytest.raises(CorruptError, match=r"step-00000002(.|\n)*Delete it, and evaluate the others"):
        load_weights(directories[1], other)
    assert torch.equal(logits(other.model), before)
    load_weights(directories[2], other)


def test_a_checkpoint_of_another_model_is_refused_by_name_and_shape(saved, make_llama):
    directories, _ = saved()
    other = make_llama(True, torch.float32, seed=7)
    before = logits(other.model)
    del other.model.model.layers[1]
    with pytest.raises(MismatchError, match=r"9 that the model has no place for \(model\.model\.model\.layers\.1\.input"):
        load_weights(directories[0], other)
    other = make_llama(True, torch.float32, seed=7)
    other.model.model.layers.append(copy.deepcopy(other.model.model.layers[0]))
    with pytest.raises(MismatchError, match=r"9 missing \(model\.model\.model\.layers\.2\.input"):
        load_weights(directories[0], other)
    other = make_llama(True, torch.float32, seed=7)
    other.model.resize_token_embeddings(64)
    with pytest.raises(MismatchError, match=r"2 of another shape \(.*\[61, 16\], not \[64, 16\]"):
        load_weights(directories[0], other)
    other = make_llama(True, torch.float32, seed=7)
    load_weights(directories[0], other)
    assert not torch.equal(logits(other.model), before)


def test_a_checkpoint_with_a_head_of_its_own_is_not_that_of_a_tied_model(saved, make_llama):
    directories, _ = saved(tied=False)
    with pytest.raises(MismatchError, match="a weight of its own, which this model ties"):
        load_weights(directories[0], make_llama(True, torch.float32))


@pytest.mark.parametrize("more", [True, False])
def test_a_run_does_not_go_on_from_a_checkpoint_of_another_model(saved, make_llama, tmp_path, more):
    directories, _ = saved()
    other = make_llama(True, torch.float32).train()
    layers = other.model.model.layers
    layers.append(copy.deepcopy(layers[0])) if more else layers.pop(1)
    training = TrainingState(other, torch.optim.AdamW(other.parameters()), torch.zeros(2, 61, dtype=torch.int64))
    told = r"36 missing \(" if more else r"36 that the model has no place for \("
    with pytest.raises(MismatchError, match=told):
        Checkpoints(tmp_path / "checkpoints", {"what": "this run"}, 99, 0, Ranks()).load(training)
    assert all_checkpoints(tmp_path / "checkpoints") == directories, "it is not broken, and stays where it is"
