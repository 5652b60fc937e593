"""Dropout's masks follow from the row and the step: the same whatever the micro-batch, the ranks and what is recomputed."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
import transformers as tf
from test_training_loop import result, train_arm
from torch.nn import functional

from slmctl.config.selection import SelectionConfig
from slmctl.config.training import TrainingConfig
from slmctl.model.split import SplitModel
from slmctl.store.order import mix_seed
from slmctl.training.batches import Batcher
from slmctl.training.parallel import blocks_of, lay_out, recompute
from slmctl.training.ranks import Ranks
from slmctl.training.selective import Objective

ROWS, SEQ_LEN, SEED, STEP = 8, 12, 5, 2
DROPS = {"embd_pdrop": 0.2, "resid_pdrop": 0.2, "attn_pdrop": 0.2}
NONE = {"embd_pdrop": 0.0, "resid_pdrop": 0.0, "attn_pdrop": 0.0}


def make(drops=DROPS, attention="sdpa"):
    torch.manual_seed(0)
    config = tf.GPT2Config(
        vocab_size=61, n_embd=16, n_layer=2, n_head=4, n_positions=32, bos_token_id=1, eos_token_id=1, **drops,
        attn_implementation=attention,
    )  # fmt: skip
    return SplitModel(tf.GPT2LMHeadModel(config).double())


@pytest.fixture
def source(list_source):
    rng = np.random.default_rng(0)
    shape = (ROWS * STEP, SEQ_LEN)
    ids = rng.integers(2, 61, shape).astype(np.int32)
    return list_source(ids, np.zeros(shape, np.int64), rng.random(shape, dtype=np.float32) * 4)


def gradients(split, source, criterion="excess_loss", micro_rows=2, ranks=1):
    """Of one step, summed over its micro-batches and over ranks, which are played one after the other."""
    selection = SelectionConfig(criterion=criterion, ratio=0.5, group_rows=2)
    split.train().zero_grad()
    selected = []
    for rank in range(ranks):
        batcher = Batcher(source, ROWS, micro_rows, selection, False, SEED, "cpu", rank, ranks)
        for micro in batcher.micro_batches(STEP, batcher.step(STEP)):
            found = Objective(split, selection)(micro, 40.0)
            found.loss.backward()
            selected.append(found.selected_BT)
    return {n.replace("_checkpoint_wrapped_module.", ""): p.grad.clone() for n, p in split.named_parameters()}, torch.cat(
        selected
    )


def assert_equal(found, wanted):
    assert (found[1] == wanted[1]).all(), "other tokens are selected"
    for name, grad in wanted[0].items():
        torch.testing.assert_close(found[0][name], grad, rtol=1e-9, atol=1e-12, msg=name)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(("micro_rows", "ranks"), [(4, 1), (8, 1), (2, 2), (4, 2), (2, 4)])
def test_the_layout_changes_no_mask(micro_rows, ranks, attention, source):
    split = make(attention=attention)
    assert_equal(gradients(split, source, micro_rows=micro_rows, ranks=ranks), gradients(split, source))


def test_masks_are_those_of_the_model_itself_row_by_row(source):
    """The model's own forward pass over one row after another, from the rows' seeds, with full logits."""
    split = make()
    found, _ = gradients(split, source, "all", micro_rows=4, ranks=2)
    split.zero_grad()
    rows = source.fetch((STEP - 1) * ROWS, STEP * ROWS, source.blank(ROWS))
    for r, ids_T in enumerate(torch.from_numpy(rows.ids_BT).long()):
        torch.manual_seed(mix_seed("dropout", SEED, STEP, r))
        logits = split.model(ids_T[None]).logits[0, :-1]
        (functional.cross_entropy(logits, ids_T[1:], reduction="sum") / 40.0).backward()
    for name, p in split.named_parameters():
        torch.testing.assert_close(found[name], p.grad, rtol=1e-9, atol=1e-12, msg=name)


def test_recomputed_activations_have_the_same_masks(source):
    wanted = gradients(make(), source)
    split = make()
    recompute(blocks_of(split), every=1)
    assert_equal(gradients(split, source, micro_rows=4), wanted)


@pytest.mark.skipif(shutil.which("c++") is None and shutil.which("g++") is None, reason="no C++ compiler")
def test_compiled_blocks_have_the_same_masks(source):
    wanted, selected = gradients(make(), source)
    split = make()
    lay_out(split, TrainingConfig(steps=1, compile=True), Ranks(), "cpu")
    found, selected_too = gradients(split, source)
    assert (selected == selected_too).all(), "other tokens are selected"
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-6, atol=1e-9)


def test_rows_and_steps_have_masks_of_their_own(source):
    split = make().train()
    ids_BT = torch.full((2, SEQ_LEN), 7)
    one, other = split(ids_BT, None, None, lambda hidden: hidden, (1, 2))
    assert (one != other).any()
    again = split(ids_BT.flip(0), None, None, lambda hidden: hidden, (2, 1))
    assert (again == torch.stack([other, one])).all()
    seeds = [m.row_seeds for s in (1, 2) for m in batches_of(source, s)]
    assert len({s for part in seeds for s in part}) == 2 * ROWS


def batches_of(source, step):
    batcher = Batcher(source, ROWS, 4, SelectionConfig(criterion="all", group_rows=1), False, SEED, "cpu")
    return list(batcher.micro_batches(step, batcher.step(step)))


@pytest.mark.parametrize(
    ("model", "draws"),
    [
        (lambda: make(NONE), False),
        (lambda: make({**NONE, "attn_pdrop": 0.1}), True),
        (lambda: make({**NONE, "resid_pdrop": 0.1}), True),
        (lambda: llama(), False),
        (lambda: llama(attention_dropout=0.1), True),
    ],
)
def test_only_models_that_draw_are_computed_row_by_row(model, draws, monkeypatch):
    split = model().train()
    assert split.draws == draws
    rows = []
    original = type(split).hidden
    monkeypatch.setattr(
        type(split), "hidden", lambda self, ids_BT, *rest: rows.append(len(ids_BT)) or original(self, ids_BT, *rest)
    )
    ids_BT = torch.full((3, 5), 7)
    split(ids_BT, None, None, lambda hidden: hidden, (1, 2, 3))
    assert rows == ([1, 1, 1] if draws else [3])
    state = torch.get_rng_state()
    split.eval()(ids_BT, None, None, lambda hidden: hidden, (1, 2, 3))
    assert rows[-1] == 3
    assert (torch.get_rng_state() == state).all(), "something is drawn without training"


def llama(**drops):
    config = tf.LlamaConfig(
        vocab_size=61, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, bos_token_id=1,
        eos_token_id=1, **drops,
    )  # fmt: skip
    return SplitModel(tf.LlamaForCausalLM(config))


ACCEPTED = {"accept_mismatch": ["reference:base.config.json"]}


def with_dropout(workspace):
    path = workspace.base / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "attention_dropout": 0.3}))
    return workspace


@pytest.mark.parametrize("over", [{"micro_batch": 4}, {"sharding": "full", "activation_checkpointing": "full"}])
def test_a_run_with_dropout_is_the_same_to_rounding_in_another_layout(over, pipeline):
    """`sharding: full` over one process gathers and shards as over several."""
    made = {}
    for name, settings in {"one": {"micro_batch": 8}, "other": {"micro_batch": 8, **over}}.items():
        workspace = with_dropout(pipeline(name, {**ACCEPTED, "pretrain": {"steps": 3, "eval_every": 0, **settings}}))
        made[name] = result(train_arm(workspace))
    for a, b in zip(made["one"]["metrics"], made["other"]["metrics"], strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-4)
    assert made["one"]["counts"] == made["other"]["counts"]
