"""How a model is laid out: over ranks, which blocks, recomputed and compiled; none of it changes a result."""

from __future__ import annotations

import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers as tf
from torch import nn

from slmctl.config.selection import SelectionConfig
from slmctl.config.training import TrainingConfig
from slmctl.model.split import SplitModel
from slmctl.system.errors import ConfigError, TrainingError
from slmctl.training.batches import Batcher
from slmctl.training.export import export_model
from slmctl.training.parallel import (
    BYTES_A_PARAMETER,
    blocks_of,
    choose,
    is_sharded,
    lay_out,
    mesh_shape,
    recompute,
    sync_copies,
)
from slmctl.training.ranks import Ranks
from slmctl.training.selective import Objective

B, T, V = 4, 12, 61


def settings(**given):
    return TrainingConfig(steps=1, **given)


def split_of(config):
    return SplitModel(tf.AutoModelForCausalLM.from_config(config).eval())


@pytest.mark.parametrize(
    ("layout", "ranks", "local", "shape"),
    [
        ("full", 8, 4, (1, 8)),
        ("full", 1, 1, (1, 1)),
        ("replicate", 8, 4, (8, 1)),
        ("hybrid", 8, 4, (2, 4)),
        ("hybrid", 4, 4, (1, 4)),
        ("hybrid", 3, 1, (3, 1)),
    ],
)
def test_a_mesh_holds_every_rank_once(layout, ranks, local, shape):
    assert mesh_shape(layout, ranks, local) == shape
    assert shape[0] * shape[1] == ranks


def test_machines_with_unlike_numbers_of_ranks_cannot_be_hybrid():
    with pytest.raises(ConfigError, match="found 6 ranks, 4 here"):
        mesh_shape("hybrid", 6, 4)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("sharding", ["full", "hybrid", "replicate"])
def test_a_layout_that_is_asked_for_is_taken_but_by_one_process_only_full(sharding, device, make_llama):
    wanted = settings(sharding=sharding)
    assert choose(make_llama(), wanted, Ranks(1, 2), device) == sharding
    assert choose(make_llama(), wanted, Ranks(), device) == ("full" if sharding == "full" else None)


def test_auto_copies_what_takes_less_than_a_quarter_of_a_gpu_and_splits_the_rest(make_llama, monkeypatch):
    split = make_llama()
    needed = BYTES_A_PARAMETER * sum(p.numel() for p in split.parameters())
    for total, layout in ((4 * needed, "full"), (4 * needed + 4, "replicate")):
        gpu = SimpleNamespace(total_memory=total)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _, gpu=gpu: gpu)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
        monkeypatch.setattr(Ranks, "all_of", lambda _, mine: [mine, mine + 100])  # the smallest GPU decides for all
        assert choose(split, settings(), Ranks(0, 2), "cuda") == layout
    assert choose(split, settings(), Ranks(), "cuda") is None
    assert choose(split, settings(), Ranks(0, 2), "cpu") == "replicate"
    assert choose(split, settings(), Ranks(), "cpu") is None


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "gpt_neox"])
def test_the_blocks_are_the_trunks_layers(name):
    small = {"vocab_size": V, "bos_token_id": 1, "eos_token_id": 1}
    llama = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 4, "num_hidden_layers": 3}
    split = {
        "llama": lambda: split_of(tf.LlamaConfig(**small, **llama)),
        "gpt2": lambda: split_of(tf.GPT2Config(**small, n_embd=16, n_layer=3, n_head=4, n_positions=32)),
        "opt": lambda: split_of(
            tf.OPTConfig(**small, hidden_size=16, ffn_dim=24, num_hidden_layers=3, num_attention_heads=4, word_embed_proj_dim=16)
        ),
        "gpt_neox": lambda: split_of(tf.GPTNeoXConfig(**small, **llama)),
    }[name]()
    blocks = blocks_of(split)
    assert len(blocks) == 3
    assert len({type(b) for b in blocks}) == 1
    inside = {id(p) for b in blocks for p in b.parameters()}
    outside = [n for n, p in split.named_parameters() if id(p) not in inside]
    assert outside
    assert not [n for n in outside if any(part.isdigit() for part in n.split("."))], "a layer lies outside"


@pytest.mark.parametrize("experts", [1, 2, 5])
def test_lists_within_blocks_are_not_the_blocks(experts, make_llama):
    split = make_llama()
    for block in split.model.model.layers:
        block.experts = nn.ModuleList(nn.Linear(2, 2) for _ in range(experts))
    split.model.model.adapters = nn.ModuleList([nn.Linear(2, 2)])
    assert blocks_of(split) is split.model.model.layers


def test_a_trunk_without_a_list_of_blocks_is_refused(make_llama):
    split = make_llama()
    split.model.model.layers = nn.Sequential(*split.model.model.layers)
    with pytest.raises(ConfigError, match="LlamaForCausalLM has no list of blocks"):
        blocks_of(split)


# --- a step ---


@pytest.fixture
def source(list_source):
    rng = np.random.default_rng(0)
    document = np.sort(rng.integers(0, 3, (B, T)), axis=1)
    document[3, 9:] = -1
    return list_source(rng.integers(0, V, (B, T)), document, rng.gamma(2.0, 2.0, (B, T)).astype(np.float32))


def step_of(split, source):
    """Losses and gradients by parameter name of one step."""
    selection = SelectionConfig(group_rows=2)
    batcher = Batcher(source, B, 2, selection, False, 0, "cpu")
    objective, batch = Objective(split, selection), batcher.step(1)
    split.train()
    live = []
    for micro in batcher.micro_batches(1, batch):
        result = objective(micro, batch.selected)
        result.loss.backward()
        live.append(result.live_BT)
    names = split.state_dict(keep_vars=True)
    return torch.cat(live), {n: p.grad.clone() for n, p in names.items() if p.grad is not None}


@pytest.mark.parametrize(("setting", "wrapped"), [("full", [0, 1]), ("selective", [0]), ("off", [])])
def test_recomputed_blocks_give_the_same_gradients_under_the_same_names(setting, wrapped, source, make_llama):
    plain, split = make_llama(), make_llama()
    calls = [0, 0]
    for i, block in enumerate(blocks_of(split)):

        def count(*_, i=i):
            calls[i] += 1

        block.mlp.register_forward_pre_hook(count)
    before = list(split.state_dict())
    lay_out(split, settings(activation_checkpointing=setting, compile=False), Ranks(), "cpu")
    live, gradients = step_of(split, source)
    wanted_live, wanted = step_of(plain, source)
    assert torch.equal(live.nan_to_num(nan=-1), wanted_live.nan_to_num(nan=-1))
    assert gradients.keys() == wanted.keys()
    for name, gradient in wanted.items():
        assert float((gradients[name] - gradient).abs().max()) < 1e-14, name
    assert calls == [4 if i in wrapped else 2 for i in range(2)], "two micro-batches, forward and, where wrapped, again"
    assert list(split.state_dict()) == before == list(plain.state_dict())
    split.load_state_dict(plain.state_dict())
    assert not is_sharded(split)
    sync_copies(split, True)  # nothing to do, and nothing wrong


def test_recomputed_blocks_draw_the_same_units_to_drop_again(source):
    config = tf.GPT2Config(
        vocab_size=V, n_embd=16, n_layer=2, n_head=4, n_positions=32, bos_token_id=1, eos_token_id=1,
        resid_pdrop=0.5, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    found = []
    for every in (None, 1):
        torch.manual_seed(0)
        split = split_of(config).double()
        if every is not None:
            recompute(blocks_of(split), every)
        torch.manual_seed(5)
        found.append(step_of(split, source)[1])
    plain, again = found
    assert plain.keys() == again.keys()
    assert all(float((plain[n] - again[n]).abs().max()) < 1e-14 for n in plain)


def test_a_recomputed_model_is_exported_like_a_plain_one(tmp_path, make_llama):
    tokenizer = SimpleNamespace(save=lambda _: None)
    split = make_llama(True, torch.float32)
    recompute(blocks_of(split), 1)
    export_model(split, tokenizer, tmp_path / "model", Ranks())
    loaded = tf.AutoModelForCausalLM.from_pretrained(tmp_path / "model").state_dict()
    wanted = make_llama(True, torch.float32).model.state_dict()
    assert loaded.keys() == wanted.keys()
    assert all(torch.equal(loaded[n], wanted[n]) for n in wanted)


@pytest.mark.parametrize("fault", ["absent", "wrapped", "shape"])
def test_an_export_that_is_not_the_whole_model_is_not_published(tmp_path, make_llama, monkeypatch, fault):
    split = make_llama(False, torch.float32)
    state = dict(split.model.state_dict())
    head = state.pop("lm_head.weight")
    if fault != "absent":
        state |= {"_orig_mod.lm_head.weight": head} if fault == "wrapped" else {"lm_head.weight": head[:-1]}
    save = split.model.save_pretrained
    monkeypatch.setattr(split.model, "save_pretrained", lambda folder, **_: save(folder, state_dict=state))
    with pytest.raises(TrainingError, match=r"1 missing \(lm_head\.weight|1 of another shape \(lm_head\.weight: \[60, 16\]"):
        export_model(split, SimpleNamespace(save=lambda _: None), tmp_path / "model", Ranks())
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(shutil.which("c++") is None and shutil.which("g++") is None, reason="no C++ compiler")
def test_compiled_blocks_give_the_same_losses(source, make_llama):
    """The slowest test here: it compiles. Of the two blocks the first is recomputed too."""
    plain, split = (make_llama(True, torch.float32) for _ in range(2))
    names = list(split.state_dict())
    lay_out(split, settings(compile=True, activation_checkpointing="selective"), Ranks(), "cpu")
    live, gradients = step_of(split, source)
    wanted_live, wanted = step_of(plain, source)
    assert live.isfinite().any()
    torch.testing.assert_close(live, wanted_live, rtol=1e-4, atol=1e-4, equal_nan=True)
    assert list(split.state_dict()) == names
    for name, gradient in wanted.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("compiles", "device", "wanted"), [(True, "cpu", 2), (False, "cuda", 0), ("auto", "cpu", 0), ("auto", "cuda", 2)]
)
def test_blocks_are_compiled_where_asked_for_or_on_a_gpu(compiles, device, wanted, make_llama, monkeypatch):
    compiled = []
    monkeypatch.setattr(nn.Module, "compile", lambda self: compiled.append(self))
    split = make_llama()
    lay_out(split, settings(compile=compiles), Ranks(), device)
    assert compiled == list(blocks_of(split))[:wanted]
