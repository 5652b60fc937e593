"""Which weights a token passes in mixtures of experts, against what torch counts; and losses that slmctl does not add."""

from __future__ import annotations

import pytest
import torch
import transformers as tf
from torch.utils.flop_counter import FlopCounterMode

from slmctl.model.experts import has_experts, matrices, refuse_auxiliary_loss
from slmctl.model.flops import flops_per_token
from slmctl.system.errors import InputError

T = 32
BASE = {
    **{"vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4},
    **{"num_key_value_heads": 2, "bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0, "max_position_embeddings": 64},
}
LATENT = {
    **{**BASE, "num_key_value_heads": 4, "kv_lora_rank": 8, "q_lora_rank": 12, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4},
    **{"v_head_dim": 16, "n_routed_experts": 8, "num_experts_per_tok": 2, "n_shared_experts": 2, "moe_intermediate_size": 16},
    **{"first_k_dense_replace": 1, "n_group": 2, "topk_group": 1},
}
OF_16 = {"moe_intermediate_size": 16, "num_experts": 8, "num_experts_per_tok": 3}
MIXTURES = {
    "mixtral": {**BASE, "num_local_experts": 8, "num_experts_per_tok": 2},
    "qwen2_moe": {**BASE, **OF_16, "shared_expert_intermediate_size": 24, "mlp_only_layers": [0]},
    "qwen3_moe": {**BASE, **OF_16, "head_dim": 16},
    "deepseek_v2": LATENT,
    "deepseek_v3": LATENT,
    "olmoe": {**BASE, "num_experts": 8, "num_experts_per_tok": 3},
    "gpt_oss": {**BASE, "num_local_experts": 8, "num_experts_per_tok": 2, "head_dim": 8},
    "granitemoe": {**BASE, "num_local_experts": 8, "num_experts_per_tok": 2},
    "granitemoeshared": {**BASE, "num_local_experts": 8, "num_experts_per_tok": 2, "shared_intermediate_size": 24},
    "ernie4_5_moe": {**BASE, "moe_num_experts": 8, "moe_k": 2, "moe_intermediate_size": 16, "moe_layer_start_index": 1},
    "hunyuan_v1_moe": {**BASE, "num_experts": 8, "moe_topk": 2, "head_dim": 8},
    "llama": BASE,
}  # fmt: skip


def model_of(model_type, **given):
    torch.manual_seed(0)
    model = tf.AutoModelForCausalLM.from_config(tf.AutoConfig.for_model(model_type, **given), attn_implementation="eager")
    model.set_experts_implementation("eager")
    return model.eval()


@pytest.mark.parametrize("model_type", MIXTURES)
def test_operations_of_a_forward_pass_are_those_that_torch_counts(model_type):
    model = model_of(model_type, **MIXTURES[model_type])
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(input_ids=torch.arange(2, 2 + T)[None], use_cache=False)
    assert flops_per_token(model, T) / 3 * T == pytest.approx(counter.get_total_flops(), rel=1e-3)
    assert has_experts(model) == (model_type != "llama")
    if has_experts(model):
        passed, held = sum(p.numel() * share for p, share in matrices(model)), sum(p.numel() for p, _ in matrices(model))
        assert passed < 0.8 * held, "all experts are passed here: the test shows nothing"


def test_experts_that_are_modules_of_their_own_count_as_often_as_they_are_chosen():
    class Routed(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.experts = torch.nn.ModuleList(torch.nn.Linear(4, 6) for _ in range(8))
            self.gate, self.top_k = torch.nn.Linear(4, 8), 2

    model = model_of("llama", **BASE)
    before = sum(p.numel() * share for p, share in matrices(model))
    model.model.layers[0].mlp = Routed()
    mlp = 3 * 32 * 48
    assert sum(p.numel() * share for p, share in matrices(model)) == before - mlp + 2 * 4 * 6 + 4 * 8


def test_a_block_that_stands_in_the_model_twice_counts_twice_and_a_tied_head_once():
    model = model_of("llama", **BASE, tie_word_embeddings=True)
    separate = flops_per_token(model, T)
    assert separate == flops_per_token(model_of("llama", **BASE), T)
    model.model.layers[1] = model.model.layers[0]
    assert flops_per_token(model, T) == separate


def test_models_without_attention_and_decoders_without_an_encoder():
    mamba = model_of("mamba", vocab_size=61, hidden_size=32, num_hidden_layers=2, state_size=4, eos_token_id=1, pad_token_id=0)
    passed = sum(p.numel() for n, p in mamba.named_parameters() if p.ndim >= 2 and "embeddings" not in n) + 61 * 32
    assert flops_per_token(mamba, T) == flops_per_token(mamba, 2 * T) == 6 * passed
    sizes = {"d_model": 32, "decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 48, "vocab_size": 61}
    bart = model_of("bart", **sizes, pad_token_id=0, bos_token_id=1, eos_token_id=1)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        bart(input_ids=torch.arange(2, 2 + T)[None], use_cache=False)
    assert flops_per_token(bart, T) / 3 * T == counter.get_total_flops()


def test_attention_counts_where_there_is_some():
    sizes = {**BASE, "layer_types": ["conv", "full_attention"]}
    twice = flops_per_token(model_of("lfm2", **sizes), 2 * T) - flops_per_token(model_of("lfm2", **sizes), T)
    assert twice == 12 * 32 * T  # one layer of two; heads x head_dim is 32


@pytest.mark.parametrize(
    ("model_type", "given", "named"),
    [
        ("mixtral", {**MIXTURES["mixtral"], "output_router_logits": True, "router_aux_loss_coef": 0.02}, r"weight 0\.02"),
        ("jetmoe", {"num_local_experts": 4, "output_router_logits": True, "aux_loss_coef": 0.03}, r"weight 0\.03"),
        (
            "bamba",
            {**BASE, "mamba_n_heads": 4, "mamba_d_head": 16, "attn_layer_indices": [1], "z_loss_coefficient": 0.1},
            r"z_loss_coefficient is 0\.1",
        ),
    ],
)
def test_a_loss_that_is_not_added_is_refused_where_a_model_is_to_be_trained(model_type, given, named):
    with torch.device("meta"):
        config = tf.AutoConfig.for_model(model_type, **({**BASE, "kv_channels": 8} if model_type == "jetmoe" else {}), **given)
        model = tf.AutoModelForCausalLM.from_config(config)
    with pytest.raises(InputError, match=f"{named}.*in that file to train without it"):
        refuse_auxiliary_loss(model, "somewhere")
    config.output_router_logits = False
    if model_type == "bamba":
        config.z_loss_coefficient = 0.0
    refuse_auxiliary_loss(model, "somewhere")


def test_a_key_for_experts_means_nothing_to_a_model_without():
    refuse_auxiliary_loss(model_of("llama", **BASE, output_router_logits=True), "somewhere")
