"""A model's files on the disk: whole, of one model, and weights at all."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
import transformers as tf
from safetensors.torch import load_file, save_file

from slmctl.model.loading import check_source, load_model
from slmctl.model.source import ModelSource
from slmctl.system.errors import InputError

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 269060552\n"
SIZES = {"vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
IDS = torch.arange(24).view(2, 12)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    tf.LlamaForCausalLM(tf.LlamaConfig(**SIZES, max_position_embeddings=64)).save_pretrained(tmp_path)
    return tmp_path


@pytest.fixture
def sharded(folder: Path) -> Path:
    model = tf.LlamaForCausalLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="30KB")
    assert len(list(folder.glob("model-*-of-*.safetensors"))) > 2
    return folder


def as_bin(folder: Path, state: object = None) -> Path:
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights if state is None else state, folder / "pytorch_model.bin")
    return folder / "pytorch_model.bin"


def refused(folder: Path, pattern: str) -> None:
    for door in (load_model, check_source):
        with pytest.raises(InputError) as e:
            door(ModelSource(str(folder)))
        assert re.search(pattern, str(e.value)), (door, str(e.value))


def same(folder: Path, logits: torch.Tensor) -> None:
    check_source(ModelSource(str(folder)))
    torch.testing.assert_close(load_model(ModelSource(str(folder)))(IDS).logits, logits)


def test_shards_and_pickles_are_loaded_as_one_file_is(folder):
    model = load_model(ModelSource(str(folder)))
    logits = model(IDS).logits
    file = as_bin(folder)
    same(folder, logits)
    model.save_pretrained(folder)  # beside the pickle, and read before it
    torch.save({"other": torch.ones(1)}, file)
    same(folder, logits)
    (folder / "model.safetensors").unlink()
    file.unlink()
    model.save_pretrained(folder, max_shard_size="30KB")
    same(folder, logits)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_pointer_of_git_lfs_and_an_empty_file_are_told(folder, name):
    (folder / name).write_bytes(POINTER)
    refused(folder, rf"{name} is a pointer of Git LFS.*git lfs pull")
    (folder / name).write_bytes(b"")
    refused(folder, rf"{name} is empty")


def test_a_pickle_that_is_a_pointer_is_told(folder):
    as_bin(folder).write_bytes(POINTER)
    refused(folder, r"pytorch_model\.bin is a pointer of Git LFS")


@pytest.mark.parametrize("kept", [4, 200, -1])
def test_a_file_that_is_cut_short_is_told(folder, kept):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:kept])
    refused(folder, r"model\.safetensors (is cut short|has [\d,]+ bytes, and by its own header should have|is no safetensors)")


def test_a_page_that_was_saved_in_its_place_is_told(folder):
    (folder / "model.safetensors").write_bytes(b"<!DOCTYPE html><html>Not found</html>" * 40)
    refused(folder, r"is no safetensors file")
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"<!DOCTYPE html>" * 40)
    refused(folder, r"pytorch_model\.bin cannot be read")


def test_a_trainers_checkpoint_is_no_model(folder):
    weights = load_file(folder / "model.safetensors")
    as_bin(folder, {"model": weights, "step": 3})
    refused(folder, r"not a model's weights by name: it also holds model, step")
    torch.save(torch.nn.Linear(2, 2), folder / "pytorch_model.bin")
    refused(folder, r"pytorch_model\.bin holds Python objects")


def test_pickles_of_old_are_loaded(folder):
    logits = tf.LlamaForCausalLM.from_pretrained(folder)(IDS).logits
    weights = load_file(folder / "model.safetensors")
    torch.save(weights, as_bin(folder), _use_new_zipfile_serialization=False)
    same(folder, logits)


def test_names_with_a_prefix_are_refused_in_a_pickle_too(folder):
    as_bin(folder, {f"module.{k}": v for k, v in load_file(folder / "model.safetensors").items()})
    refused(folder, r"21 missing \(lm_head.*left by DistributedDataParallel.*in each weight file")


def test_shards_that_are_absent_or_of_another_save_are_told(sharded):
    shards = sorted(sharded.glob("model-*-of-*.safetensors"))
    (sharded / "model-00001-of-00002.safetensors").write_bytes(shards[0].read_bytes())
    refused(sharded, r"shards that model\.safetensors\.index\.json does not name \(model-00001-of-00002\.safetensors\)")
    (sharded / "model-00001-of-00002.safetensors").unlink()
    index = sharded / "model.safetensors.index.json"
    kept = index.read_bytes()
    index.write_bytes(POINTER)
    refused(sharded, r"index\.json is a pointer of Git LFS")
    index.write_text(json.dumps({"metadata": {}}))
    refused(sharded, r"has no weight_map")
    index.unlink()
    refused(sharded, r"shards that no model\.safetensors\.index\.json names")
    index.write_bytes(kept)
    shards[1].unlink()
    refused(sharded, rf"names files that are not there: {shards[1].name} of {len(shards)}")


def test_a_single_file_beside_shards_is_told(sharded):
    save_file({"lm_head.weight": torch.ones(61, 32)}, sharded / "model.safetensors", {"format": "pt"})
    refused(sharded, r"shards that do not belong to model\.safetensors")


def test_a_weight_in_two_shards_is_told(sharded):
    first, second = sorted(sharded.glob("model-*-of-*.safetensors"))[:2]
    save_file({**load_file(second), **load_file(first)}, second, {"format": "pt"})
    refused(sharded, rf"is in {first.name} and in {second.name}")


def test_a_weight_that_the_index_names_and_no_shard_holds_is_told(sharded):
    last = sorted(sharded.glob("model-*-of-*.safetensors"))[-1]
    held = load_file(last)
    gone = sorted(held)[0]
    save_file({k: v for k, v in held.items() if k != gone} | {"x.y": torch.ones(1)}, last, {"format": "pt"})
    refused(sharded, rf"1 missing \({re.escape(gone)}\); 1 that the model has no place for \(x\.y\)")


@pytest.mark.parametrize("beside", [True, False])
def test_an_adapter_is_refused_beside_a_model_or_in_its_place(folder, beside):
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": "x"}))
    save_file({"base_model.model.lm_head.lora_A.weight": torch.ones(1)}, folder / "adapter_model.safetensors")
    if not beside:
        (folder / "model.safetensors").unlink()
    refused(folder, r"holds an adapter \(adapter_config\.json, adapter_model\.safetensors\).*merge_and_unload")


def test_a_directory_without_weights_or_configuration_is_told(folder):
    (folder / "model.safetensors").unlink()
    refused(folder, r"no file named model\.safetensors|holds no model weights")
    (folder / "config.json").unlink()
    refused(folder, r"has no config\.json")
