"""Positions by the longest text of a batch: what shares a batch changes no loss and no answer."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers as tf

from slmctl.evaluation.generation import _generate_all
from slmctl.model.rope import prompts_together
from slmctl.model.row_losses import row_losses
from slmctl.model.split import SplitModel
from slmctl.system.errors import InputError

TRAINED = 16
KINDS = {
    "longrope": {
        "rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [4.0] * 4, "factor": 4.0, "rope_theta": 1e4,
        "original_max_position_embeddings": TRAINED,
    },
    "dynamic": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4},
}  # fmt: skip


def make(kind, intra=False, positions=64):
    torch.manual_seed(0)
    config = tf.LlamaConfig(
        vocab_size=61, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, bos_token_id=1,
        eos_token_id=1, max_position_embeddings=positions, initializer_range=0.5, rope_parameters=KINDS[kind],
    )  # fmt: skip
    return SplitModel(tf.LlamaForCausalLM(config).eval(), intra)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("intra", "length"), [(False, 12), (False, 32), (True, 12)])
def test_the_rows_of_a_batch_change_no_loss_of_each_other(kind, intra, length):
    split = make(kind, intra)
    split.check(1, length)
    ids_BT = np.random.default_rng(0).integers(2, 61, (6, length)).astype(np.int32)
    document_BT = np.arange(6)[:, None] * 100 + np.arange(length) // np.arange(4, 10)[:, None] * [[1]] * 6
    document_BT[0] = 0  # one that is longer than all others
    losses = [
        np.concatenate([row_losses(split, ids_BT[i : i + n], document_BT[i : i + n], "cpu")[0] for i in range(0, 6, n)])
        for n in (1, 2, 3, 6)
    ]
    for found in losses[1:]:
        np.testing.assert_allclose(found, losses[0], rtol=1e-5, atol=1e-5)


def test_documents_that_restart_in_rows_beyond_what_it_was_trained_on_are_refused():
    """There a batch would decide: its longest document chooses the frequencies of all."""
    for length in (TRAINED + 1, 2 * TRAINED, 64):
        with pytest.raises(InputError, match="documents packed in a row"):
            make("longrope", intra=True).check(1, length)


@pytest.mark.parametrize("kind", KINDS)
def test_prompts_are_answered_as_they_are_alone(kind, monkeypatch):
    model = make(kind, positions=TRAINED).model
    tokenizer = SimpleNamespace(pad_token_id=0, eos_token_id=1, decode=lambda row, **_: str(row.tolist()))
    rng = np.random.default_rng(1)
    prompts = [rng.integers(2, 61, n).tolist() for n in (TRAINED + 9, 5, 7)]
    monkeypatch.setattr(type(model), "generate", without_strings(type(model).generate))

    def answers(size):
        return _generate_all(model, tokenizer, task(size), prompts, "cpu")

    together = answers(3)
    assert together == answers(1)
    assert len(set(together)) == 3
    monkeypatch.setattr("slmctl.model.rope.BY_THE_LONGEST", ())
    assert answers(3) != together, "a batch changes nothing: the test shows nothing"


def without_strings(generate):
    """The tokenizer here knows no strings that could end a generation."""
    return lambda self, **given: generate(self, **{k: v for k, v in given.items() if k not in ("tokenizer", "stop_strings")})


def task(size):
    from slmctl.evaluation.generation import GenerationTask

    return GenerationTask("t", [], "", 0, 6, size, (), lambda *_: None, lambda *_: False)


def test_other_models_share_batches():
    model = tf.LlamaForCausalLM(
        tf.LlamaConfig(vocab_size=61, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2)
    )
    assert prompts_together(model, 8) == 8
    assert prompts_together(make("longrope").model, 8) == 1
