"""Tiny configurations of the causal language models that transformers has, and of what a configuration switches in them."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from typing import Any

VOCAB = 97
LENGTH = 64
"""Tokens of a row: above the windows, chunks and original contexts of the cases below."""

SIZES = {
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "dim_model", "word_embed_proj_dim", "embedding_size"), 32),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "n_inner", "d_ff", "ffn_hidden_size", "dim_ff", "decoder_ffn_dim"), 48),
    **dict.fromkeys(("num_hidden_layers", "num_layers", "n_layer", "n_layers", "decoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("encoder_layers", "encoder_attention_heads"), 1),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len"), 256),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4),
    **dict.fromkeys(("kv_lora_rank", "q_lora_rank", "qk_nope_head_dim", "v_head_dim", "head_dim"), 8),
    "vocab_size": VOCAB,
    "num_key_value_heads": 2,
    "moe_intermediate_size": 16,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "shared_expert_intermediate_size": 24,
    "qk_rope_head_dim": 4,
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
"""What every configuration is given, as far as it has such a field."""

LATENT = {"head_dim": None, "num_key_value_heads": 4}
"""Keys and values made of a latent vector (DeepSeek): their sizes are given otherwise."""
GROUPS = {"n_group": 2, "topk_group": 1}
STATE_SPACE = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_n_groups": 1}
DELTA = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
BERTS = ("bert", "bert-generation", "camembert", "data2vec-text", "electra", "ernie", "megatron-bert", "roberta")
MORE_BERTS = ("rembert", "roberta-prelayernorm", "roformer", "xlm-roberta", "xlm-roberta-xl", "big_bird")


def rope(kind: str, **more: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, "original_max_position_embeddings": 24, **more}}


LONG_ROPE = {
    **rope("longrope", short_factor=[1.0] * 4, long_factor=[2.0, 4.0, 8.0, 16.0], factor=4.0),
    "original_max_position_embeddings": 24,
}


@dataclass(frozen=True)
class Case:
    """One model: its type, what its configuration says besides `SIZES`, and what that is called."""

    model_type: str
    given: dict[str, Any] = field(default_factory=dict)
    variant: str = ""

    @property
    def name(self) -> str:
        return f"{self.model_type}{f' ({self.variant})' if self.variant else ''}"

    def config(self) -> Any:
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING

        kind = CONFIG_MAPPING[self.model_type]
        known = {*vars(kind()), *inspect.signature(kind.__init__).parameters, *getattr(kind, "attribute_map", {})}
        sizes = {k: v for k, v in SIZES.items() if k in known}
        return kind(**{k: v for k, v in {**sizes, **self.given}.items() if v is not None or k not in sizes})


PLAIN = """apertus arcee biogpt bitnet bloom cohere ctrl cwm diffllama doge ernie4_5 exaone4 falcon gemma glm glm4 gpt2
gpt_bigcode gpt_neox gpt_neox_japanese helium hunyuan_v1_dense internlm3 jais2 lfm3 llama ministral ministral3 mistral
modernbert-decoder moshi mpt nanochat nemotron olmo olmo2 olmo3 openai-gpt opt persimmon phi phi3 qwen2 qwen3 seed_oss
smollm3 stablelm starcoder2 vaultgemma xglm gpt-sw3 iquestcoder hrm_text granite_swa cpmant afmoe aria_text beam
cohere2 cohere2_moe deepseek_v4 dots1 ernie4_5_moe exaone_moe flex_olmo flint glm4_moe gpt_oss granitemoe
granitemoeshared granitemoe_swa hunyuan_v1_moe hy_v3 hy_v4 jetmoe kolibri1 laguna llama4_text mellum mimo_v2_flash
minimax minimax_m2 minimax_m3_vl_text mixtral olmoe phimoe qwen2_moe qwen3_moe solar_open bailing_hybrid olmo_hybrid
falcon_mamba mamba rwkv xlstm gemma2 gemma3_text gemma4_unified_text inkling_text inkling2_text xlnet xlm bart
bigbird_pegasus blenderbot blenderbot-small marian mbart mvp pegasus plbart prophetnet trocr whisper recurrent_gemma""".split()

CASES = [
    *(Case(name) for name in PLAIN),
    *(Case(name, {**LATENT, **GROUPS}) for name in ("deepseek_v2", "deepseek_v3", "youtu", "axk1")),
    *(
        Case(name, {**LATENT, **GROUPS, "head_dim": 4})
        for name in ("glm4_moe_lite", "deepseek_v32", "glm_moe_dsa", "longcat_flash")
    ),
    *(
        Case(name, {**LATENT, **GROUPS, "first_k_dense_replace": 1}, "first layer dense")
        for name in ("deepseek_v2", "deepseek_v3")
    ),
    Case("minicpm3", LATENT),
    Case("xlm", {"causal": True}, "causal"),
    *(Case(name, {"rotary_dim": 4}) for name in ("codegen", "gptj")),
    Case("gpt_neo", {"attention_types": [[["global", "local"], 1]], "window_size": 8}),
    Case("granite", {"logits_scaling": 4.0, "embedding_multiplier": 2.0}),
    Case("hyperclovax", {"logits_scaling": 0.25}),
    Case("cohere", {"logit_scale": 0.25}, "logit scale"),
    Case("granitemoe", {"output_router_logits": True}, "router logits"),
    # state spaces, recurrences and what mixes them with attention
    Case("mamba2", {"num_heads": 8, "head_dim": 8, "state_size": 8, "n_groups": 1}),
    Case("bamba", {**STATE_SPACE, "attn_layer_indices": [1]}),
    Case("falcon_h1", {**STATE_SPACE, "mamba_d_ssm": 64, "lm_head_multiplier": 0.25}),
    Case("granitemoehybrid", {**STATE_SPACE, "layers_block_type": ["mamba", "attention"]}),
    Case("jamba", {"attn_layer_period": 2, "attn_layer_offset": 1, "use_mamba_kernels": False}),
    Case("lfm2", {"layer_types": ["conv", "full_attention"]}),
    Case("lfm2_moe", {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1}),
    *(Case(name, DELTA) for name in ("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text")),
    Case(
        "recurrent_gemma",
        {"block_types": ["recurrent", "attention"], "attention_window_size": 8, "logits_soft_cap": 6.0},
        "cap 6",
    ),
    # windows, chunks, positions that change with length
    Case("mistral", {"sliding_window": 8}, "window 8"),
    Case("mixtral", {"sliding_window": 8}, "window 8"),
    Case("qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0}, "window 8"),
    Case("qwen3", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0}, "window 8"),
    *(
        Case(name, {"sliding_window": 8}, "window 8")
        for name in ("phi3", "starcoder2", "olmo3", "cohere2", "gpt_oss", "ministral")
    ),
    Case("gemma2", {"sliding_window": 8, "final_logit_softcapping": 3.0, "attn_logit_softcapping": 2.0}, "window 8, cap 3"),
    Case("gemma3_text", {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}, "window 8"),
    Case("llama4_text", {"attention_chunk_size": 16}, "chunks of 16"),
    Case("phi3", LONG_ROPE, "long rope from 24"),
    Case("llama", LONG_ROPE, "long rope from 24"),
    Case("llama", {**rope("dynamic", factor=2.0), "max_position_embeddings": 24}, "dynamic rope from 24"),
    Case("llama", {**rope("dynamic", factor=2.0), "max_position_embeddings": 64}, "dynamic rope from 64"),
    Case("llama", rope("yarn", factor=4.0), "yarn"),
    Case("llama", rope("llama3", factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0), "rope of Llama 3"),
    Case("llama", rope("linear", factor=4.0), "linear rope"),
    # heads, biases, alibi
    Case("llama", {"tie_word_embeddings": True}, "tied"),
    Case("llama", {"attention_bias": True, "mlp_bias": True}, "biases"),
    Case("falcon", {"alibi": True}, "alibi"),
    Case("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}, "new"),
    Case("phi", {"tie_word_embeddings": True}, "tied, head with bias"),
    Case("opt", {"do_layer_norm_before": False}, "norm after"),
    # attention that is not causal
    *(Case(name, {"use_bidirectional_attention": True}, "two ways") for name in ("gemma", "gemma2", "gemma3_text")),
    Case("gemma4_unified_text", {"use_bidirectional_attention": "all"}, "two ways"),
    *(Case(name, {"is_causal": False}, "two ways") for name in ("llama", "mixtral", "qwen3")),
    *(Case(name, {}, "encoder") for name in BERTS + MORE_BERTS),
    *(Case(name, {"is_decoder": True}, "decoder") for name in BERTS + MORE_BERTS),
]

ACCEPTED = """llama mistral qwen2 qwen3 gemma gemma2 gemma3_text phi3 smollm3 olmo2 gpt2 gpt_neox falcon cohere2 granite mixtral
olmoe qwen3_moe deepseek_v3""".split()
"""Types that must not be refused where documents of a row see each other."""
REFUSED = ("two ways", "dynamic rope from 24")
"""Variants of them that look ahead, or whose rows are longer than what they have positions for."""
