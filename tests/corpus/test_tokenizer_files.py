"""The tokenizer that is used is the one of tokenizer.json, whatever class is named; files that cannot be it are refused."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from tokenizer_kinds import KINDS, LLAMA3, TEXTS, bpe, split_then_bytes
from tokenizers import AddedToken, Tokenizer, models, trainers
from tokenizers import normalizers as N  # noqa: N812
from tokenizers import pre_tokenizers as P  # noqa: N812
from transformers import AutoTokenizer

from slmctl.corpus.tokenizer import load_tokenizer, load_vocabulary
from slmctl.corpus.tokenizer_files import PROBE, differing
from slmctl.system.errors import InputError

SAMPLE = [*PROBE, *TEXTS, "In 2023 they sold 1234567 items. Don't!\n\n  next"]
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
TYPES = ["llama", "gpt2", "qwen2", "gpt_neox", "mistral", "phi3", "gemma", "qwen3", "starcoder2", "olmo", "opt"]
CLASSES = [None, "GPT2Tokenizer", "Qwen2Tokenizer", "LlamaTokenizer", "PreTrainedTokenizerFast", "GPTNeoXTokenizerFast"]


def write(folder: Path, backend: Tokenizer, cls: str | None, model_type: str | None, **named: Any) -> Path:
    folder.mkdir(exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    config = {"eos_token": "</s>", "bos_token": "<s>", **({"tokenizer_class": cls} if cls else {}), **named}
    (folder / "tokenizer_config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    if model_type:
        (folder / "config.json").write_text(json.dumps({"model_type": model_type, "vocab_size": 600}))
    return folder


def marked(backend: Tokenizer) -> Tokenizer:
    backend.add_special_tokens([AddedToken(t, normalized=False) for t in ("<unk>", "<s>", "</s>", "<pad>")])
    return backend


def ids_by_file(folder: Path, texts: list[str]) -> list[list[int]]:
    backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return [backend.encode(t, add_special_tokens=False).ids for t in texts]


@pytest.mark.parametrize("model_type", TYPES)
def test_ids_are_those_of_tokenizer_json_whatever_class_is_named(
    model_type: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    turn = TYPES.index(model_type)
    backend = marked(KINDS[["digits from the right", "llama2, no words", "digits, gpt2"][turn % 3]]())
    for i, cls in enumerate(CLASSES[turn % 3 :: 3]):
        folder = write(tmp_path / str(i), backend, cls, model_type)
        loaded = load_tokenizer(str(folder))
        assert [ids.tolist() for ids in loaded.encode(SAMPLE)] == ids_by_file(folder, SAMPLE), cls
        assert (loaded.hf.eos_token, loaded.hf.bos_token, loaded.eos_id) == ("</s>", "<s>", backend.token_to_id("</s>"))
        loaded.prove(SAMPLE)
        saved = tmp_path / f"{i} saved"
        write(saved, backend, cls, model_type)  # a model's directory, which what is saved replaces
        capsys.readouterr()
        loaded.save(saved)
        told = capsys.readouterr().err
        again = load_tokenizer(str(saved))
        assert again.fingerprint() == loaded.fingerprint()
        auto = AutoTokenizer.from_pretrained(saved).backend_tokenizer
        assert ("AutoTokenizer replaces" in told) == bool(differing(loaded.backend, auto)), cls
        assert ("AutoTokenizer replaces" in told) == (model_type == "qwen2"), "only there the library insists on its class"


def test_what_replaces_the_librarys_is_said_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    load_tokenizer(str(write(tmp_path, marked(KINDS["digits, gpt2"]()), "GPT2Tokenizer", "llama")))
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "tokenizer.json is used as it is; transformers' GPT2Tokenizer would replace its pre-tokenizer" in told


@pytest.mark.parametrize(
    ("kind", "cls", "model_type"),
    [
        ("gpt2", "GPT2Tokenizer", "gpt2"),
        ("gpt2", "PreTrainedTokenizerFast", "llama"),
        ("llama3", "PreTrainedTokenizerFast", "llama"),
        ("llama3", "LlamaTokenizer", "llama"),
        ("qwen2", "Qwen2Tokenizer", "qwen2"),
        ("unigram", None, None),
        ("word piece", "PreTrainedTokenizerFast", None),
    ],
)
def test_what_was_right_stays_what_it_was(kind: str, cls: str | None, model_type: str | None, tmp_path: Path) -> None:
    """Its fingerprint is that of the library's object, so no set is made anew."""
    folder = write(tmp_path, marked(KINDS[kind]()), cls, model_type)
    before = AutoTokenizer.from_pretrained(folder)
    loaded = load_tokenizer(str(folder))
    assert type(loaded.hf) is type(before)
    assert loaded.backend.to_str() == before.backend_tokenizer.to_str()


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("normalizer", {"normalizer": {"type": "NFC"}}),
        ("pre-tokenizer", {"pre_tokenizer": BYTES | {"add_prefix_space": True}}),
        ("model", {"model": {"ignore_merges": True}}),
        ("added tokens", {"added_tokens": {"lstrip": True}}),
        (None, {"pre_tokenizer": BYTES | {"trim_offsets": False}}),
        (None, {"model": {"unk_token": None, "fuse_unk": True}}),
        (None, {"normalizer": {"type": "Sequence", "normalizers": []}}),
    ],
)  # fmt: skip
def test_a_difference_is_one_where_ids_may_differ(part: str | None, change: dict[str, Any]) -> None:
    backend = marked(KINDS["gpt2"]())
    parts = json.loads(backend.to_str())
    for key, value in change.items():
        if key == "model":
            parts["model"] |= value
        elif key == "added_tokens":
            parts["added_tokens"][2] |= value
        else:
            parts[key] = value
    assert differing(backend, Tokenizer.from_str(json.dumps(parts))) == ([part] if part else [])


def test_files_that_are_no_whole_tokenizer_are_refused(tmp_path: Path) -> None:
    good = marked(KINDS["gpt2"]()).to_str()
    for text, want in [
        ("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", r"Git LFS pointer.*git lfs pull"),
        (good[: len(good) // 2], r"cannot be read as a tokenizer: no whole JSON"),
        ("{}", r"cannot be read as a tokenizer"),
        ('{"model": {"type": "Other"}}', r"cannot be read as a tokenizer"),
        ("", r"no whole JSON"),
    ]:
        write(tmp_path, marked(KINDS["gpt2"]()), None, None)
        (tmp_path / "tokenizer.json").write_text(text, encoding="utf-8")
        with pytest.raises(InputError, match=want) as e:
            load_tokenizer(str(tmp_path))
        assert "\n" not in str(e.value)


def test_merges_by_chance_are_refused(tmp_path: Path) -> None:
    write(tmp_path, marked(bpe(P.ByteLevel(add_prefix_space=False), dropout=0.1)), None, None)
    with pytest.raises(InputError, match=r"by chance \(dropout 0\.1.*Set dropout to null"):
        load_tokenizer(str(tmp_path))


def test_an_end_of_sequence_token_that_no_file_gives_an_id_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"'<\|end\|>' has no id in tokenizer\.json"):
        load_tokenizer(str(write(tmp_path, marked(KINDS["gpt2"]()), None, None, eos_token="<|end|>")))


def test_a_token_that_other_files_give_another_id_is_refused(tmp_path: Path) -> None:
    backend = marked(KINDS["gpt2"]())
    size = backend.get_vocab_size()
    for i, ok in ((size, True), (size + 3, False)):
        decoder = {str(i): {"content": "<|end|>", "special": True}}
        folder = write(tmp_path / str(i), backend, None, None, eos_token="<|end|>", added_tokens_decoder=decoder)
        if ok:
            assert load_tokenizer(str(folder)).eos_id == size
            continue
        with pytest.raises(InputError, match=rf"give it the id {size + 3}, where it would become {size}"):
            load_tokenizer(str(folder))


def test_a_class_that_cannot_load_the_file_is_not_needed(tmp_path: Path) -> None:
    folder = write(tmp_path, marked(KINDS["unigram"]()), "Qwen2Tokenizer", "qwen2")
    loaded = load_tokenizer(str(folder))
    assert [ids.tolist() for ids in loaded.encode(TEXTS)] == ids_by_file(folder, TEXTS)


def test_the_vocabulary_of_a_reference_needs_no_class_that_fits(tmp_path: Path) -> None:
    """What serves as the base's tokenizer serves beside a reference, too."""
    folder = write(tmp_path, marked(KINDS["llama3"]()), "T5Tokenizer", "llama")
    assert load_vocabulary(str(folder)) == load_tokenizer(str(folder)).vocabulary()


@pytest.mark.parametrize(("cls", "model_type"), [("GemmaTokenizer", "gemma"), (None, "gemma"), ("BertTokenizer", "bert")])
def test_a_class_that_could_encode_nothing_by_the_file_is_not_used(cls: str | None, model_type: str, tmp_path: Path) -> None:
    """Byte-level BPE that knows no `<unk>`, which the class's own parts need."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = split_then_bytes(LLAMA3)
    alphabet = P.ByteLevel.alphabet()
    backend.train_from_iterator(TEXTS, trainers.BpeTrainer(special_tokens=["</s>"], initial_alphabet=alphabet, vocab_size=400))
    folder = write(tmp_path, backend, cls, model_type, bos_token=None)
    loaded = load_tokenizer(str(folder))
    assert [ids.tolist() for ids in loaded.encode(SAMPLE)] == ids_by_file(folder, SAMPLE)


def trained(kind: str, **options: Any) -> bytes:
    model = io.BytesIO()
    how = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False, "byte_fallback": True, **options}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS * 5), model_writer=model, model_type=kind, vocab_size=380, hard_vocab_limit=False,
        minloglevel=2, **how,
    )  # fmt: skip
    return model.getvalue()


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
@pytest.mark.parametrize("prefix", [True, False])
@pytest.mark.parametrize("extra", [True, False])
@pytest.mark.parametrize("cls", ["LlamaTokenizer", None])
def test_a_sentencepiece_model_alone_gives_its_ids_or_is_refused(
    kind: str, prefix: bool, extra: bool, cls: str | None, tmp_path: Path
) -> None:
    proto = trained(kind, add_dummy_prefix=prefix, remove_extra_whitespaces=extra)
    (tmp_path / "tokenizer.model").write_bytes(proto)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    config = {"eos_token": "</s>", "bos_token": "<s>", "unk_token": "<unk>", **({"tokenizer_class": cls} if cls else {})}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    judge = sentencepiece.SentencePieceProcessor(model_proto=proto)
    if extra or (kind, cls) == ("unigram", "LlamaTokenizer"):  # which the conversions do not take over
        with pytest.raises(InputError, match=r"gives other ids than tokenizer\.model"):
            load_tokenizer(str(tmp_path))
        return
    loaded = load_tokenizer(str(tmp_path))
    texts = [*SAMPLE, "  hi", " \n x", "a <s>struck</s>", "the </s>"]
    assert [ids.tolist() for ids in loaded.encode(texts)] == [judge.encode(t) for t in texts]
    loaded.prove(texts)


@pytest.mark.parametrize("cls", ["GemmaTokenizer", "LlamaTokenizer"])
def test_pieces_that_sentencepiece_finds_first_are_found_first(cls: str, tmp_path: Path) -> None:
    """Gemma's runs of spaces and lines, and its tags, of which the library's conversion of the file alone makes nothing."""
    defined = ["\n", "\n\n", "\n\n\n", "▁▁", "▁▁▁", "<table>"]
    proto = trained("bpe", add_dummy_prefix=False, user_defined_symbols=defined)
    (tmp_path / "tokenizer.model").write_bytes(proto)
    (tmp_path / "config.json").write_text('{"model_type": "gemma"}')
    named = {"eos_token": "</s>", "bos_token": "<s>", "unk_token": "<unk>", "pad_token": "<unk>", "tokenizer_class": cls}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(named))
    loaded = load_tokenizer(str(tmp_path))
    judge = sentencepiece.SentencePieceProcessor(model_proto=proto)
    texts = [*SAMPLE, "  a\n\n\n\n    <table>\n x", "a </s>"]
    assert [ids.tolist() for ids in loaded.encode(texts)] == [judge.encode(t) for t in texts]


@pytest.mark.parametrize(("cls", "model_type"), [("XLMRobertaTokenizer", "xlm-roberta"), ("XGLMTokenizer", "xglm")])
def test_ids_that_are_offset_by_design_are_compared_by_their_pieces(cls: str, model_type: str, tmp_path: Path) -> None:
    """fairseq's models put their own tokens before SentencePiece's; of XGLM's file the library makes nothing but unknown ones."""
    proto = trained("unigram", byte_fallback=False)
    (tmp_path / "sentencepiece.bpe.model").write_bytes(proto)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": cls}))
    if cls == "XGLMTokenizer":
        with pytest.raises(InputError, match=r"gives other ids than sentencepiece\.bpe\.model"):
            load_tokenizer(str(tmp_path))
        return
    loaded = load_tokenizer(str(tmp_path))
    judge = sentencepiece.SentencePieceProcessor(model_proto=proto)
    assert loaded.hf.convert_ids_to_tokens(loaded.encode(["the seven"])[0]) == judge.encode("the seven", out_type=str)
    loaded.prove(SAMPLE)


def test_a_tokenizer_model_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_text("IQ== 0\nIg== 1\n")
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')
    with pytest.raises(InputError, match=r"does not say how it cuts texts|cannot load a tokenizer"):
        load_tokenizer(str(tmp_path))


def test_vocabulary_and_merges_alone_are_taken_as_they_are(tmp_path: Path) -> None:
    backend = bpe(P.ByteLevel(add_prefix_space=False))
    backend.model.save(str(tmp_path))
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer", "eos_token": "</s>"}')
    loaded = load_tokenizer(str(tmp_path))
    assert any(m.startswith("#") for m in (tmp_path / "merges.txt").read_text().split("\n")[1:])
    assert [i.tolist() for i in loaded.encode(TEXTS)] == [backend.encode(t, add_special_tokens=False).ids for t in TEXTS]


def test_real_texts_prove_what_a_text_of_trial_does_not(tmp_path: Path) -> None:
    loaded = load_tokenizer(str(write(tmp_path, marked(bpe(split_then_bytes(LLAMA3), N.NFC())), None, None)))
    loaded.prove(["the seven stones"])
    loaded.backend.normalizer = N.Lowercase()
    loaded.prove(["the seven stones"])
    with pytest.raises(InputError, match=r"gives other ids than tokenizer\.json: .* in 'THE stones'"):
        loaded.prove(["the seven", "THE stones"])
