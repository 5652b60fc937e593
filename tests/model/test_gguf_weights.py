"""Every tensor of a GGUF file is in the model, every weight of the model is from the file, and the rotary frequencies are its."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from slmctl.model.gguf_weights import read_header
from slmctl.model.loading import check_source, load_model
from slmctl.model.source import ModelSource
from slmctl.system.errors import InputError

HIDDEN, HEADS, INNER, LAYERS = 32, 4, 48, 2
TOKENS = ["<|endoftext|>", *(chr(c) for c in range(33, 127)), "Ġ", "th", "Ġth"]
Tensors = dict[str, np.ndarray]


def tensors(arch: str = "llama") -> Tensors:
    rng = np.random.default_rng(0)
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (len(TOKENS), HIDDEN), "output_norm.weight": (HIDDEN,)}
    for i in range(LAYERS):
        shapes |= {f"blk.{i}.attn_{n}.weight": (HIDDEN, HIDDEN) for n in ("q", "k", "v", "output")}
        shapes |= {f"blk.{i}.ffn_{n}.weight": (INNER, HIDDEN) for n in ("gate", "up")}
        shapes |= {f"blk.{i}.ffn_down.weight": (HIDDEN, INNER)}
        shapes |= {f"blk.{i}.{n}_norm.weight": (HIDDEN,) for n in ("attn", "ffn")}
        shapes |= {f"blk.{i}.attn_{n}.bias": (HIDDEN,) for n in "qkv"} if arch == "qwen2" else {}
    return {n: rng.normal(0, 0.3, s).astype(np.float32) for n, s in shapes.items()}


def write(
    folder: Path, change: Callable[[Tensors], Any] = dict, arch: str = "llama", rope: tuple[str, float] | None = None
) -> ModelSource:
    writer = gguf.GGUFWriter(folder / "tiny.gguf", arch)
    writer.add_block_count(LAYERS)
    writer.add_context_length(64)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(len(TOKENS))
    if rope is not None:
        writer.add_rope_scaling_type(gguf.RopeScalingType(rope[0]))
        writer.add_rope_scaling_factor(rope[1])
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(TOKENS)
    writer.add_token_types([3] + [1] * (len(TOKENS) - 1))
    writer.add_token_merges(["t h", "Ġ th"])
    writer.add_eos_token_id(0)
    held = tensors(arch)
    change(held)
    for name, values in held.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return ModelSource(str(folder), gguf_file="tiny.gguf")


def refused(source: ModelSource, pattern: str) -> None:
    with pytest.raises(InputError) as e:
        load_model(source)
    assert re.search(pattern, str(e.value)), str(e.value)


@pytest.mark.parametrize("arch", ["llama", "qwen2"])
@pytest.mark.parametrize("tied", [True, False])
def test_a_whole_file_is_loaded(tmp_path, arch, tied):
    head = np.full((len(TOKENS), HIDDEN), 0.5, np.float32)
    source = write(tmp_path, dict if tied else (lambda t: t.update({"output.weight": head})), arch)
    model = load_model(source)
    held = tensors(arch)
    np.testing.assert_array_equal(model.model.embed_tokens.weight.detach(), held["token_embd.weight"])
    np.testing.assert_array_equal(model.lm_head.weight.detach(), held["token_embd.weight"] if tied else head)
    np.testing.assert_array_equal(model.model.layers[1].mlp.up_proj.weight.detach(), held["blk.1.ffn_up.weight"])
    check_source(source)


def test_the_header_tells_what_the_formats_own_reader_does(tmp_path):
    source = write(tmp_path)
    header, reader = read_header(tmp_path / source.gguf_file), gguf.GGUFReader(tmp_path / source.gguf_file)
    assert {n: (e.shape, e.start) for n, e in header.tensors.items()} == {
        t.name: (tuple(int(n) for n in t.shape[::-1]), t.data_offset) for t in reader.tensors
    }
    assert header.facts["general.architecture"] == "llama"
    assert header.facts["llama.rope.freq_base"] == 10_000.0


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda t: t.pop("blk.1.ffn_up.weight"), r"1 missing \(model\.layers\.1\.mlp\.up_proj\.weight\)"),
        (lambda t: t.pop("output_norm.weight"), r"1 missing \(model\.norm\.weight\)"),
        (lambda t: t.pop("token_embd.weight"), r"missing \("),
        (lambda t: t.update({"blk.0.ffn_down.weight": np.ones((HIDDEN, INNER + 1), np.float32)}), r"1 of another shape"),
        (
            lambda t: t.update(
                {"blk.0.attn_q.bias": np.ones(HIDDEN, np.float32)}
            ),  # which a Llama's configuration cannot tell of
            r"were passed over, as blk\.0\.attn_q\.bias",
        ),
        (lambda t: t.update({"blk.0.ssm_in.weight": np.ones((3, 3), np.float32)}), r"passed over, as blk\.0\.ssm_in\.weight"),
        (
            lambda t: t.update({"blk.2.attn_norm.weight": np.ones(HIDDEN, np.float32)}),
            r"passed over, as blk\.2\.attn_norm\.weight",
        ),
        (lambda t: t["output_norm.weight"].fill(np.nan), r"NaN or infinite"),
    ],
    ids=["no-up", "no-norm", "no-embedding", "shape", "bias", "unknown", "layer", "nan"],
)
def test_what_the_model_would_lack_or_pass_over_is_refused(tmp_path, change, told):
    refused(write(tmp_path, change), told)


def test_a_file_that_scales_its_rotary_frequencies_is_refused(tmp_path):
    source = write(tmp_path, lambda t: t.update({"rope_freqs.weight": np.ones(4, np.float32)}))
    load_model(source)
    source = write(tmp_path, lambda t: t.update({"rope_freqs.weight": np.array([1, 1, 8, 32], np.float32)}))
    refused(source, r"scales its rotary frequencies by rope_freqs\.weight, up to 32 times")


@pytest.mark.parametrize(
    ("kind", "factor", "right"), [("none", 1.0, True), ("linear", 1.0, True), ("linear", 4.0, False), ("yarn", 4.0, False)]
)
def test_rotary_scaling_that_is_not_read_is_refused(tmp_path, kind, factor, right):
    source = write(tmp_path, rope=(kind, factor))
    load_model(source) if right else refused(source, rf"rotary frequencies \({kind}, factor 4\)")


def test_what_is_no_whole_gguf_file_is_told(tmp_path):
    source = write(tmp_path)
    file = tmp_path / "tiny.gguf"
    whole = file.read_bytes()
    for data, told in [
        (whole[: len(whole) - 4], r"cut short"),
        (whole[: len(whole) // 2], r"cut short"),
        (whole[:300], r"not a whole GGUF file"),
        (b"PK" + whole, r"does not begin with GGUF"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", r"pointer of Git LFS"),
        (b"", r"is empty"),
    ]:
        file.write_bytes(data)
        refused(source, told)
        with pytest.raises(InputError, match=told):
            check_source(source)
