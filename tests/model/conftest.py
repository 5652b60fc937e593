"""Tiny random models of many families, in float64, with heads strong enough that what is done to logits shows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as tf

from slmctl.model.split import SplitModel

VOCAB = 97
HIDDEN = 32
BASE = {
    "vocab_size": VOCAB,
    "hidden_size": HIDDEN,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
GROUPED = {**BASE, "num_key_value_heads": 2}
GEMMA = {**GROUPED, "head_dim": 8, "query_pre_attn_scalar": 8, "final_logit_softcapping": 3.0}
SMALL = {"vocab_size": VOCAB, "bos_token_id": 1, "eos_token_id": 1}

FAMILIES: dict[str, Callable[[], Any]] = {
    "llama": lambda: tf.LlamaConfig(**GROUPED, tie_word_embeddings=False),
    "llama_tied": lambda: tf.LlamaConfig(**GROUPED, tie_word_embeddings=True),
    "qwen2": lambda: tf.Qwen2Config(**GROUPED),
    "qwen3": lambda: tf.Qwen3Config(**GROUPED, head_dim=8),
    "gpt_neox": lambda: tf.GPTNeoXConfig(**BASE),
    "gemma2": lambda: tf.Gemma2Config(**GEMMA, attn_logit_softcapping=2.0),
    "gemma3": lambda: tf.Gemma3TextConfig(**GEMMA),
    "phi": lambda: tf.PhiConfig(**BASE, num_key_value_heads=4),
    "phi3": lambda: tf.Phi3Config(**GROUPED),
    "mistral": lambda: tf.MistralConfig(**GROUPED),
    "gpt2": lambda: tf.GPT2Config(**SMALL, n_embd=HIDDEN, n_layer=2, n_head=4, n_positions=64),
    "cohere": lambda: tf.CohereConfig(**GROUPED, logit_scale=0.25),
    "granite": lambda: tf.GraniteConfig(**GROUPED, logits_scaling=4.0),
}
WITHOUT_RESTART: dict[str, Callable[[], Any]] = {
    "opt": lambda: tf.OPTConfig(
        **SMALL,
        hidden_size=HIDDEN,
        ffn_dim=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        word_embed_proj_dim=HIDDEN,
    ),
    "falcon": lambda: tf.FalconConfig(**SMALL, hidden_size=HIDDEN, num_hidden_layers=2, num_attention_heads=4),
}


def build(name: str, dtype: torch.dtype = torch.float64, intra_document_mask: bool = False) -> SplitModel:
    """A model of family `name` in eval mode, its head drawn anew with a standard deviation that makes logits of about 5."""
    torch.manual_seed(0)
    config = {**FAMILIES, **WITHOUT_RESTART}[name]()
    attention = "eager" if name == "gemma2" else "sdpa"
    model = tf.AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    head = model.get_output_embeddings()
    with torch.no_grad():
        head.weight.normal_(0.0, 1.0)
        if head.bias is not None:
            head.bias.normal_(0.0, 1.0)
    return SplitModel(model.to(dtype).eval(), intra_document_mask)


@pytest.fixture
def make_model() -> Callable[..., SplitModel]:
    return build


@pytest.fixture(params=list(FAMILIES))
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=list(WITHOUT_RESTART))
def family_without_restart(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> int:
    """Chunks of 16 positions, so that the tiny batches here take several; returns that size."""
    from slmctl.model import losses

    monkeypatch.setattr(losses, "chunk_rows", lambda *_, **__: 16)
    return 16
