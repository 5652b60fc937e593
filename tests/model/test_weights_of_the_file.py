"""Weights are all and only those of the file: whatever differs is refused, by name, at loading and from the headers alone."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from safetensors.torch import load_file, save_file

from slmctl.model.loading import check_source, load_model
from slmctl.model.source import ModelSource
from slmctl.system.errors import InputError

SIZES = {"vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
Weights = dict[str, torch.Tensor]
IDS = torch.arange(24).view(2, 12)


def llama(tied: bool = False, **more: Any) -> Any:
    return tf.LlamaConfig(**{**SIZES, "max_position_embeddings": 64, "tie_word_embeddings": tied, **more})


def saved(folder: Path, config: Any = None) -> Any:
    torch.manual_seed(0)
    model = tf.AutoModelForCausalLM.from_config(config or llama()).eval()
    model.save_pretrained(folder)
    return model


def rewrite(folder: Path, change: Callable[[Weights], Weights]) -> None:
    file = folder / "model.safetensors"
    save_file({k: v.contiguous() for k, v in change(load_file(file)).items()}, file, {"format": "pt"})


def configure(folder: Path, **keys: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **keys}))


def refused(folder: Path, *patterns: str, headers: bool = True) -> str:
    """Both doors refuse with a message that holds all the patterns; returns it."""
    for door in [load_model, check_source] if headers else [load_model]:
        with pytest.raises(InputError) as e:
            door(ModelSource(str(folder)))
        for pattern in patterns:
            assert re.search(pattern, str(e.value)), (door, pattern, str(e.value))
    return str(e.value)


def accepted(folder: Path, model: Any) -> None:
    check_source(ModelSource(str(folder)))
    torch.testing.assert_close(load_model(ModelSource(str(folder)))(IDS).logits, model(IDS).logits)


def without(part: str) -> Callable[[Weights], Weights]:
    return lambda w: {k: v for k, v in w.items() if part not in k}


def prefixed(prefix: str) -> Callable[[Weights], Weights]:
    return lambda w: {prefix + k: v for k, v in w.items()}


def infixed(w: Weights) -> Weights:
    return {re.sub(r"(layers\.\d+\.)", r"\1_checkpoint_wrapped_module._orig_mod.", k): v for k, v in w.items()}


def renamed(w: Weights) -> Weights:
    return {k.replace("model.", "backbone.", 1): v for k, v in w.items()}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_whole_file_is_loaded_in_whatever_precision_it_is(tmp_path, tied, dtype):
    model = saved(tmp_path, llama(tied)).to(dtype)
    model.save_pretrained(tmp_path)
    accepted(tmp_path, model.float())


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            prefixed("_orig_mod."),
            r"21 missing \(lm_head\.weight.* and 18 more\).*`_orig_mod\.`, left by torch\.compile.*model\._orig_mod",
        ),
        (prefixed("module."), r"21 that the model has no place for \(module\.lm_head.*model\.module"),
        (prefixed("module._orig_mod."), r"DistributedDataParallel.*Save the innermost model in place"),
        (prefixed("base_model.model."), r"PEFT"),
        (prefixed("pretrained_model."), r"begin with `pretrained_model\.`"),
        (infixed, r"`_orig_mod\.`, `_checkpoint_wrapped_module\.`"),
        (renamed, r"begin with `backbone\.` where the model has `model\.`"),
    ],
    ids=["compile", "ddp", "both", "peft", "trl", "blocks", "renamed"],
)
def test_other_names_are_refused_and_the_remedy_that_is_told_mends_them(tmp_path, change, told):
    model = saved(tmp_path)
    rewrite(tmp_path, change)
    message = refused(tmp_path, told)
    exec(re.search(r"`([^`]*(?:import re; )?from safetensors[^`]*)`", message)[1], {})
    accepted(tmp_path, model)


def test_a_missing_head_is_refused_unless_it_is_tied(tmp_path):
    model = saved(tmp_path)
    rewrite(tmp_path, without("lm_head"))
    refused(tmp_path, r"1 missing \(lm_head\.weight\)", "tie_word_embeddings: true")
    configure(tmp_path, tie_word_embeddings=True)
    model.lm_head.weight = model.model.embed_tokens.weight
    accepted(tmp_path, model)
    rewrite(tmp_path, lambda w: {("lm_head.weight" if "embed" in k else k): v for k, v in w.items()})  # the other of the two
    accepted(tmp_path, model)
    rewrite(tmp_path, without("lm_head"))
    refused(tmp_path, r"missing \((lm_head|model\.embed_tokens)\.weight")


def test_a_head_that_is_tied_but_differs_is_refused_and_one_that_is_the_same_is_not(tmp_path):
    model = saved(tmp_path)
    configure(tmp_path, tie_word_embeddings=True)
    refused(tmp_path, "lm_head.weight and model.embed_tokens.weight", "tie_word_embeddings: false", headers=False)
    rewrite(tmp_path, lambda w: {**w, "lm_head.weight": w["model.embed_tokens.weight"].clone()})
    model.lm_head.weight = model.model.embed_tokens.weight
    accepted(tmp_path, model)


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"num_hidden_layers": 1}, r"9 that the model has no place for \(model\.layers\.1\.input_layernorm"),
        ({"num_hidden_layers": 3}, r"9 missing \(model\.layers\.2\.input_layernorm"),
        ({"vocab_size": 64}, r"2 of another shape \(lm_head\.weight: \[61, 32\], not \[64, 32\]"),
        ({"vocab_size": 64, "tie_word_embeddings": True}, r"\[61, 32\], not \[64, 32\]"),
        ({"hidden_size": 16}, r"of another shape"),
        ({"num_key_value_heads": 2}, r"4 of another shape \(model\.layers\.0\.self_attn\.k_proj"),
        ({"attention_bias": True}, r"8 missing \(model\.layers\.0\.self_attn\.k_proj\.bias"),
        ({"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]}, r"missing \(.*norm"),
    ],
)
def test_a_configuration_of_another_model_is_refused(tmp_path, keys, told):
    saved(tmp_path)
    configure(tmp_path, **keys)
    refused(tmp_path, told, r"Use the config\.json|use the config\.json")


@pytest.mark.parametrize(
    "extra",
    [
        "v_head.weight",
        "score.weight",
        "model.layers.0.self_attn.q_proj.lora_A.default.weight",
        "model.layers.0.self_attn.q_proj.bias",
    ],
)
def test_what_the_model_has_no_place_for_is_refused(tmp_path, extra):
    saved(tmp_path)
    rewrite(tmp_path, lambda w: {**w, extra: torch.ones(3, 32)})
    told = "LoRA" if "lora" in extra else "config.json" if "layers" in extra else "save the language model alone"
    refused(tmp_path, r"1 that the model has no place for", re.escape(extra), told)


def test_names_that_a_class_has_transformers_ignore_are_refused_but_for_masks(tmp_path):
    model = saved(tmp_path, tf.GPT2Config(vocab_size=61, n_embd=32, n_layer=2, n_head=4, n_positions=64))
    masks = {f"transformer.h.{i}.attn.bias": torch.ones(1, 1, 64, 64).tril().bool() for i in range(2)}
    rewrite(tmp_path, lambda w: {**w, **masks, "transformer.h.0.attn.masked_bias": torch.tensor(-1e4)})
    accepted(tmp_path, model)
    rewrite(tmp_path, lambda w: {**w, "transformer.h.0.attn.bias_u.weight": torch.ones(4, 8)})  # which its list also ignores
    refused(tmp_path, r"attn\.bias_u\.weight")
    rewrite(tmp_path, lambda w: {**without("bias_u")(w), "transformer.h.0.attn.bias": torch.ones(32)})
    refused(tmp_path, r"attn\.bias\b")


@pytest.mark.parametrize("rule", ["_keys_to_ignore_on_load_missing", "_keys_to_ignore_on_load_unexpected"])
def test_a_class_cannot_hide_what_is_missing_or_more(tmp_path, monkeypatch, rule):
    saved(tmp_path)
    monkeypatch.setattr(tf.LlamaForCausalLM, rule, [r"lm_head", r"layers\.1"], raising=False)
    if "missing" in rule:
        rewrite(tmp_path, without("layers.1"))
        refused(tmp_path, r"9 missing \(model\.layers\.1")
    else:
        configure(tmp_path, num_hidden_layers=1)
        refused(tmp_path, r"9 that the model has no place for \(model\.layers\.1")


def test_rotary_frequencies_of_old_files_are_let_be_where_they_are_the_configurations(tmp_path):
    model = saved(tmp_path)
    own = 10_000.0 ** (-torch.arange(4) / 4)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        rewrite(tmp_path, lambda w, dtype=dtype: {**w, "model.layers.0.self_attn.rotary_emb.inv_freq": own.to(dtype)})
        accepted(tmp_path, model)
    rewrite(tmp_path, lambda w: {**w, "model.layers.0.self_attn.rotary_emb.inv_freq": 5e5 ** (-torch.arange(4) / 4)})
    refused(tmp_path, r"rotary frequencies .*rotary_emb\.inv_freq.*rope_theta 10000", headers=False)
    configure(tmp_path, rope_parameters={"rope_type": "default", "rope_theta": 5e5})
    load_model(ModelSource(str(tmp_path)))


def test_experts_are_compared_as_the_file_has_them(tmp_path):
    sizes = {**SIZES, "num_key_value_heads": 2, "num_local_experts": 3, "max_position_embeddings": 64}
    model = saved(tmp_path, tf.MixtralConfig(**sizes))
    names = load_file(tmp_path / "model.safetensors")
    assert "model.layers.0.block_sparse_moe.experts.2.w3.weight" in names, "saved apart, loaded as one"
    accepted(tmp_path, model)
    rewrite(tmp_path, without("layers.1.block_sparse_moe.experts.2.w3"))
    refused(tmp_path, r"1 whose parts do not fit together \(model\.layers\.1\.mlp\.experts\.gate_up_proj")
    save_file(names, tmp_path / "model.safetensors", {"format": "pt"})
    rewrite(tmp_path, without("experts.2."))
    refused(tmp_path, r"4 of another shape", r"experts\.down_proj: \[2, 32, 48\], not \[3, 32, 48\]")
    save_file(names, tmp_path / "model.safetensors", {"format": "pt"})
    rewrite(tmp_path, without("gate"))
    refused(tmp_path, r"2 missing \(model\.layers\.0\.mlp\.gate\.weight")


@pytest.mark.parametrize(
    ("part", "lacks"),
    [(r"experts\.1\.w1", "experts.1.w1"), (r"experts\.3\.", "experts.3.w1"), (r"experts\.[123]\.", "experts.1.w1")],
)
def test_experts_whose_numbers_leave_a_gap_are_refused(tmp_path, part, lacks):
    model = saved(tmp_path, tf.MixtralConfig(**SIZES, num_key_value_heads=4, num_local_experts=4))
    accepted(tmp_path, model)
    rewrite(tmp_path, lambda w: {(k.replace("experts.", "experts.1") if re.search(part, k) else k): v for k, v in w.items()})
    refused(tmp_path, rf"lacks .*{re.escape(lacks)}.*each other's places")


def test_heads_for_several_tokens_ahead_are_not_the_model(tmp_path):
    model = saved(tmp_path)
    rewrite(tmp_path, lambda w: {**w, "mtp.layers.0.mlp.up_proj.weight": torch.ones(3, 3)})
    accepted(tmp_path, model)
    rewrite(tmp_path, lambda w: {**without("mtp")(w), "model.layers.2.eh_proj.weight": torch.ones(3, 3)})
    refused(tmp_path, r"layers\.2\.eh_proj")
    configure(tmp_path, num_nextn_predict_layers=1)  # which says that the layer is one
    accepted(tmp_path, model)


def test_a_weight_under_two_names_is_refused(tmp_path):
    saved(tmp_path)
    rewrite(tmp_path, lambda w: {**w, "norm.weight": w["model.norm.weight"] + 1})
    refused(tmp_path, r"1 weights twice \(model\.norm\.weight and norm\.weight\)")


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_quantised_weights_are_refused(tmp_path, dtype):
    saved(tmp_path)
    rewrite(tmp_path, lambda w: {k: (v.to(dtype) if "q_proj" in k else v) for k, v in w.items()})
    refused(tmp_path, r"2 weights that are not floating point", r"q_proj\.weight: (I8|F8_E4M3)")
    configure(tmp_path, quantization_config={"quant_method": "fp8"})
    refused(tmp_path, r"is quantised \(quantization_config of config\.json: fp8\)")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_weight_that_is_not_finite_is_refused(tmp_path, value):
    def spoil(w: Weights) -> Weights:
        w["model.layers.1.mlp.up_proj.weight"][3, 5] = value
        return w

    saved(tmp_path)
    rewrite(tmp_path, spoil)
    refused(tmp_path, r"NaN or infinite as torch\.float32: model\.layers\.1\.mlp\.up_proj\.weight\.", headers=False)


def test_large_weights_are_finite_and_those_beyond_float16_are_told(tmp_path):
    saved(tmp_path)
    rewrite(tmp_path, lambda w: {**w, "lm_head.weight": torch.full((61, 32), 3e38)})  # whose sum is not finite
    load_model(ModelSource(str(tmp_path)))
    with pytest.raises(InputError, match=r"infinite as torch\.float16: lm_head\.weight"):
        load_model(ModelSource(str(tmp_path)), "float16")


@pytest.mark.parametrize("name", ["model.embed_tokens.weight", "lm_head.weight"])
def test_an_embedding_or_head_of_zeros_is_refused(tmp_path, name):
    saved(tmp_path)
    rewrite(tmp_path, lambda w: {**w, name: torch.zeros(61, 32)})
    refused(tmp_path, rf"{re.escape(name)} of .* holds nothing but zeros", headers=False)


@pytest.mark.parametrize(
    ("config", "attention"),
    [
        (tf.BloomConfig(vocab_size=61, hidden_size=16, n_layer=1, n_head=2), "sdpa"),
        (tf.BloomConfig(vocab_size=61, hidden_size=16, n_layer=1, n_head=2), "flex_attention"),
        (tf.GPTJConfig(vocab_size=61, n_embd=16, n_layer=1, n_head=2, rotary_dim=4), "varlen"),
    ],
)
def test_attention_that_a_family_does_not_have_is_told_in_the_words_of_the_configuration(tmp_path, config, attention):
    saved(tmp_path, config)
    with pytest.raises(InputError, match=rf"no {attention} attention in transformers\. Use model\.attn_implementation: eager\.$"):
        load_model(ModelSource(str(tmp_path), attn_implementation=attention))
    load_model(ModelSource(str(tmp_path), attn_implementation="eager"))


def test_a_model_of_another_kind_is_told_as_such(tmp_path):
    tf.T5ForConditionalGeneration(
        tf.T5Config(vocab_size=61, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    ).save_pretrained(tmp_path)
    refused(tmp_path, r"has no causal language model of its type\. Use another model\.$")
