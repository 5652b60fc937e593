"""A GGUF file as base model: loaded dequantised, saved as an ordinary model directory, with one and the same tokenizer."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from slmctl.corpus.tokenizer import load_tokenizer
from slmctl.model.loading import load_model, load_model_config, save_model
from slmctl.model.source import ModelSource, model_fingerprint
from slmctl.system.errors import InputError
from slmctl.system.hashes import HashCache

HIDDEN, HEADS, INNER = 32, 4, 64


@pytest.fixture(scope="module")
def gguf_model(tmp_path_factory: pytest.TempPathFactory) -> ModelSource:
    """A tiny Llama with random weights, its matrices quantised to 8 bits, and a byte-level tokenizer."""
    folder = tmp_path_factory.mktemp("gguf")
    letters = [chr(c) for c in range(33, 127)] + ["Ġ", "th", "Ġth"]
    tokens = ["<|endoftext|>", *letters]
    writer = gguf.GGUFWriter(folder / "tiny.gguf", "llama")
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([3] + [1] * len(letters))
    writer.add_token_merges(["t h", "Ġ th"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    rng = np.random.default_rng(0)
    shapes = {f"blk.0.attn_{n}.weight": (HIDDEN, HIDDEN) for n in ("q", "k", "v", "output")}
    shapes |= {"blk.0.ffn_gate.weight": (INNER, HIDDEN), "blk.0.ffn_up.weight": (INNER, HIDDEN)}
    shapes |= {"blk.0.ffn_down.weight": (HIDDEN, INNER), "token_embd.weight": (len(tokens), HIDDEN)}
    for name, shape in shapes.items():
        values = rng.normal(0, 0.3, shape).astype(np.float32)
        kind = gguf.GGMLQuantizationType.Q8_0
        writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
    for name in ("blk.0.attn_norm.weight", "blk.0.ffn_norm.weight", "output_norm.weight"):
        writer.add_tensor(name, np.ones(HIDDEN, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return ModelSource(str(folder), gguf_file="tiny.gguf")


def test_a_gguf_model_is_saved_as_an_ordinary_one_with_the_same_logits(gguf_model: ModelSource, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = load_model(gguf_model)
    tokenizer = load_tokenizer(gguf_model.path, gguf_model.gguf_file)
    save_model(model, tokenizer, tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    ids = torch.arange(12)[None]
    torch.testing.assert_close(again(ids).logits, model(ids).logits)
    assert load_model_config(gguf_model).vocab_size == tokenizer.size
    assert load_tokenizer(str(tmp_path)).fingerprint() == tokenizer.fingerprint()
    assert tokenizer.encode(["the th"])[0].tolist() == load_tokenizer(str(tmp_path)).encode(["the th"])[0].tolist()


def test_a_gguf_file_is_fingerprinted_by_content_and_named_where_it_is_absent(gguf_model: ModelSource, tmp_path: Path) -> None:
    hashes = HashCache(tmp_path / "hashes.json")
    assert list(model_fingerprint(gguf_model, hashes)) == ["tiny.gguf"]
    absent = ModelSource(gguf_model.path, gguf_file="absent.gguf")
    with pytest.raises(InputError, match=r"absent\.gguf does not exist"):
        model_fingerprint(absent, hashes)
