"""The tokenizer of a GGUF file: built by the rule that the file names, or refused."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import gguf
import pytest
import sentencepiece
from sentencepiece import sentencepiece_model_pb2
from tokenizer_kinds import KINDS, TEXTS
from tokenizers import Tokenizer
from transformers import GPT2Tokenizer, Qwen2Tokenizer

from slmctl.corpus.gguf_fields import read_fields
from slmctl.corpus.gguf_tokenizer import cutting
from slmctl.corpus.tokenizer import load_tokenizer
from slmctl.corpus.tokenizer_files import PROBE
from slmctl.system.errors import InputError

SAMPLE = [*PROBE, *TEXTS, "In 2023 they sold 1234567 items.", "cafe\u0301 12"]


def write(folder: Path, fields: dict[str, Any], architecture: str = "llama") -> Path:
    writer = gguf.GGUFWriter(folder / "t.gguf", architecture)
    for add in ("block_count", "context_length", "embedding_length", "feed_forward_length", "head_count", "head_count_kv"):
        getattr(writer, f"add_{add}")(4)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(fields["token_list"]))
    for name, value in fields.items():
        getattr(writer, f"add_{name}")(value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return folder


def of_backend(backend: Tokenizer, pre: str | None) -> dict[str, Any]:
    import json

    model = json.loads(backend.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    named = {"bos_token_id": 1, "eos_token_id": 2}
    types = [gguf.TokenType.CONTROL] * 4 + [gguf.TokenType.NORMAL] * (len(tokens) - 4)
    lists = {"token_list": tokens, "token_types": types, "token_merges": [" ".join(m) for m in model["merges"]]}
    return {"tokenizer_model": "gpt2", **({"tokenizer_pre": pre} if pre else {}), **lists, **named}


@pytest.mark.parametrize(
    ("pre", "kind"), [("gpt-2", "gpt2"), ("smollm", "digits, gpt2"), ("llama-bpe", "llama3"), ("qwen2", "qwen2")]
)
def test_a_file_gives_the_ids_of_the_tokenizer_that_it_was_made_of(pre: str, kind: str, tmp_path: Path) -> None:
    backend = KINDS[kind]()
    write(tmp_path, of_backend(backend, pre), "qwen2" if pre == "qwen2" else "llama")
    loaded = load_tokenizer(str(tmp_path), "t.gguf")
    assert [ids.tolist() for ids in loaded.encode(SAMPLE)] == [backend.encode(t, add_special_tokens=False).ids for t in SAMPLE]
    assert (loaded.hf.eos_token, loaded.eos_id, loaded.hf.bos_token) == ("</s>", 2, "<s>")
    assert loaded.hf.decode(loaded.encode(["a  b\n 12"])[0]) == "a  b\n 12"
    (tmp_path / "saved").mkdir()
    loaded.save(tmp_path / "saved")
    assert load_tokenizer(str(tmp_path / "saved")).fingerprint() == loaded.fingerprint()


def test_the_rules_are_those_of_the_libraries_own_classes() -> None:
    for rule, cls in (("gpt2", GPT2Tokenizer), ("qwen2", Qwen2Tokenizer)):
        normalizer, cutter = cutting(rule)
        backend = cls().backend_tokenizer
        for text in SAMPLE:
            assert cutter.pre_tokenize_str(text) == backend.pre_tokenizer.pre_tokenize_str(text)
        assert str(normalizer) == str(backend.normalizer)


@pytest.mark.parametrize("pre", [None, "default", "deepseek-llm", "tekken", "a name of tomorrow"])
def test_a_rule_that_is_not_known_is_refused_with_advice(pre: str | None, tmp_path: Path) -> None:
    write(tmp_path, of_backend(KINDS["gpt2"](), pre))
    with pytest.raises(InputError, match=r"tokenizer\.ggml\.pre.*(is absent|says).*known here are gpt-2, .*model\.tokenizer"):
        load_tokenizer(str(tmp_path), "t.gguf")


@pytest.mark.parametrize("prefix", [True, False])
def test_a_sentencepiece_file_gives_sentencepieces_ids(prefix: bool, tmp_path: Path) -> None:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS * 5), model_writer=model, model_type="bpe", vocab_size=380, byte_fallback=True,
        normalization_rule_name="identity", add_dummy_prefix=prefix, remove_extra_whitespaces=False, minloglevel=2,
    )  # fmt: skip
    pieces = sentencepiece_model_pb2.ModelProto.FromString(model.getvalue()).pieces
    fields = {
        "tokenizer_model": "llama",
        "token_list": [p.piece for p in pieces],
        "token_scores": [p.score for p in pieces],
        "token_types": [p.type for p in pieces],
        "add_space_prefix": prefix,
        **{"unk_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
    }
    loaded = load_tokenizer(str(write(tmp_path, fields)), "t.gguf")
    judge = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    texts = [*SAMPLE, "  hi", " \n x", "a <s>struck</s>"]
    assert [ids.tolist() for ids in loaded.encode(texts)] == [judge.encode(t) for t in texts]
    loaded.prove(texts)


def test_the_head_is_read_as_the_gguf_package_reads_it(tmp_path: Path) -> None:
    write(tmp_path, of_backend(KINDS["gpt2"](), "gpt-2"))
    fields = gguf.GGUFReader(tmp_path / "t.gguf").fields
    want = {k: f.contents() for k, f in fields.items() if not k.startswith("GGUF.")}
    assert read_fields(tmp_path / "t.gguf", "") == want


def test_what_is_no_whole_gguf_file_is_refused(tmp_path: Path) -> None:
    write(tmp_path, of_backend(KINDS["gpt2"](), "gpt-2"))
    whole = (tmp_path / "t.gguf").read_bytes()
    for content in (b"version https://git-lfs", whole[:200], whole[:30], b"GGUF" + (9).to_bytes(4, "little") + whole[8:], b""):
        (tmp_path / "cut.gguf").write_bytes(content)
        with pytest.raises(InputError, match="GGUF"):
            read_fields(tmp_path / "cut.gguf", "")
