"""A model that does something unknown to its logits is refused, never computed wrongly."""

from __future__ import annotations

import pytest
import torch
import transformers as tf

from slmctl.model.split import SplitModel
from slmctl.system.errors import InputError


class Adds(tf.LlamaForCausalLM):
    def forward(self, *args, **kwargs):
        out = super().forward(*args, **kwargs)
        out.logits = out.logits + torch.arange(out.logits.shape[-1], dtype=out.logits.dtype) / 20
        return out


class Scales(tf.LlamaForCausalLM):
    def forward(self, *args, **kwargs):
        out = super().forward(*args, **kwargs)
        out.logits = out.logits * 1.02
        return out


class Caps(tf.LlamaForCausalLM):
    def forward(self, *args, **kwargs):
        out = super().forward(*args, **kwargs)
        out.logits = 3 * torch.tanh(out.logits / 3)
        return out


class BarsOneToken(tf.LlamaForCausalLM):
    def forward(self, *args, **kwargs):
        out = super().forward(*args, **kwargs)
        out.logits = out.logits.index_fill(-1, torch.tensor([4]), -torch.inf)
        return out


class BarsOneTokenFinitely(tf.LlamaForCausalLM):
    def forward(self, *args, **kwargs):
        out = super().forward(*args, **kwargs)
        out.logits = out.logits.index_fill(-1, torch.tensor([4]), torch.finfo(out.logits.dtype).min)
        return out


class IsBroken(tf.LlamaForCausalLM):
    def forward(self, *args, **kwargs):
        out = super().forward(*args, **kwargs)
        out.logits = out.logits * torch.nan
        return out


def of(kind, dtype=torch.float32):
    torch.manual_seed(0)
    config = tf.LlamaConfig(
        vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4, pad_token_id=0
    )
    model = kind(config)
    torch.nn.init.normal_(model.lm_head.weight)
    return SplitModel(model.to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_plain_model_passes(dtype):
    of(tf.LlamaForCausalLM, dtype).check(eos_id=1, seq_len=48)


@pytest.mark.parametrize("kind", [Adds, Scales, Caps, BarsOneToken, BarsOneTokenFinitely, IsBroken])
def test_unknown_post_processing_is_refused(kind):
    with pytest.raises(InputError, match=f"{kind.__name__} is refused"):
        of(kind).check(eos_id=1, seq_len=48)


def test_a_head_with_a_layer_before_it_is_refused():
    torch.manual_seed(0)
    config = tf.BertConfig(
        vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4, is_decoder=True
    )
    model = tf.BertLMHeadModel(config)
    torch.nn.init.normal_(model.get_output_embeddings().weight)
    with pytest.raises(InputError):
        SplitModel(model).check(eos_id=1, seq_len=48)


def test_a_trunk_without_a_head_is_refused():
    with pytest.raises(InputError, match="linear head"):
        SplitModel(tf.LlamaModel(of(tf.LlamaForCausalLM).model.config))


@pytest.mark.parametrize("training", [True, False])
def test_the_check_leaves_mode_and_random_state_as_they_were(training, make_model):
    split = make_model("gpt2")  # has dropout
    split.model.train(training)
    before = torch.get_rng_state()
    split.check(eos_id=1, seq_len=48)
    assert split.model.training is training
    assert torch.equal(torch.get_rng_state(), before)
