"""Whether rows and prompts begin with a beginning-of-sequence token, by the tokenizer's template and by data.bos."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from bos_tokenizer import BOS, begin_with
from tiny_store import load_tokenizer, make_tokenizer
from tokenizers import pre_tokenizers

from slmctl.corpus.bos import bos_of, contradiction, cut_left, described, in_front
from slmctl.corpus.tokenizer import Tokenizer
from slmctl.system.errors import ConfigError

EOS = "<|endoftext|>"


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tokenizer(tmp_path_factory.mktemp("plain"))


def made(plain: Path, tmp_path: Path, *args: Any, **settings: Any) -> Tokenizer:
    shutil.copytree(plain, tmp_path / "t")
    return load_tokenizer(str(begin_with(tmp_path / "t", *args, **settings)))


@pytest.mark.parametrize(
    ("template", "added", "settings", "auto", "always"),
    [
        (f"{BOS} $A", (BOS,), {}, BOS, BOS),
        (f"{BOS} $A {EOS}", (BOS,), {}, BOS, BOS),  # what comes behind is none of this
        (f"$A {EOS}", (BOS,), {}, None, BOS),
        ("$A", (BOS,), {}, None, BOS),
        ("$A", (BOS,), {"bos_token": EOS}, None, EOS),
        (f"{EOS} $A", (BOS,), {"bos_token": EOS}, EOS, EOS),
        ("[gMASK] <sop> $A", ("[gMASK]", "<sop>"), {"bos_token": None}, None, ConfigError),
        (f"[gMASK] {BOS} $A", ("[gMASK]", BOS), {}, None, BOS),
        (f"{BOS} $A", (BOS,), {"bos_token": None}, BOS, BOS),  # its template has one, though it names none
        ("[CLS] $A", (BOS, "[CLS]"), {"cls_token": "[CLS]"}, "[CLS]", "[CLS]"),
        ("$A", (BOS,), {"bos_token": None}, None, ConfigError),
    ],
)
def test_auto_is_what_the_template_does(
    plain: Path, tmp_path: Path, template: str, added: tuple[str, ...], settings: dict[str, Any], auto: Any, always: Any
) -> None:
    tokenizer = made(plain, tmp_path, template, added, **settings)

    def token(setting: Any) -> Any:
        try:
            found = bos_of(tokenizer, setting, "row")
        except ConfigError as e:
            return type(e)
        assert found is None or tokenizer.backend.token_to_id(found.token) == found.id
        return found and found.token

    assert token("auto") == auto
    assert token("always") == always
    assert token("never") is None


def test_a_name_that_no_file_gives_an_id_is_no_bos(plain: Path, tmp_path: Path) -> None:
    """The library would give it one, of a row that the model never learnt."""
    tokenizer = made(plain, tmp_path, "$A", (BOS,), bos_token="<bos>", add_bos_token=True)
    assert bos_of(tokenizer, "auto", "row") is None
    assert contradiction(tokenizer) is None
    with pytest.raises(ConfigError, match="names no beginning-of-sequence token that has an id"):
        bos_of(tokenizer, "always", "row")


def test_a_tokenizer_trained_here_puts_nothing_in_front(plain: Path) -> None:
    tokenizer = load_tokenizer(str(plain))
    assert bos_of(tokenizer, "auto", "row") is None
    assert described(tokenizer, None, "auto") == []


def test_what_is_put_in_front_is_told_once_in_words(plain: Path, tmp_path: Path) -> None:
    tokenizer = made(plain, tmp_path)
    assert described(tokenizer, bos_of(tokenizer, "auto", "row"), "auto") == ["each row begins with <s> (data.bos: auto)"]
    [line] = described(tokenizer, bos_of(tokenizer, "always", "document"), "always")
    assert line.startswith("each document")
    [line] = described(tokenizer, None, "never")
    assert "puts <s> in front" in line
    assert "go without (data.bos: never)" in line


def test_several_tokens_in_front_are_told(plain: Path, tmp_path: Path) -> None:
    tokenizer = made(plain, tmp_path, "[gMASK] <sop> $A", ("[gMASK]", "<sop>"), bos_token=None)
    [line] = described(tokenizer, None, "auto")
    assert "puts [gMASK]<sop> in front" in line
    assert "none of it" in line


@pytest.mark.parametrize(
    ("template", "said", "advice"),
    [
        (f"{BOS} $A", True, None),
        ("$A", False, None),
        ("$A", True, "data.bos: always puts it"),
        (f"{BOS} $A", False, "data.bos: never leaves it out"),
        ("$A", None, None),
    ],
)
def test_a_setting_that_the_template_contradicts_is_told(
    plain: Path, tmp_path: Path, template: str, said: bool | None, advice: str | None
) -> None:
    tokenizer = made(plain, tmp_path, template, add_bos_token=said)
    found = contradiction(tokenizer)
    assert (found is None) == (advice is None)
    assert advice is None or advice in str(found)


def test_settings_that_are_no_object_say_nothing(plain: Path, tmp_path: Path) -> None:
    tokenizer = made(plain, tmp_path)
    for text in ("[]", "{", json.dumps({"add_bos_token": "yes"})):
        (tmp_path / "t" / "tokenizer_config.json").write_text(text)
        assert contradiction(tokenizer) is None


def test_a_prompt_has_its_bos_once_and_keeps_it_when_it_is_cut() -> None:
    assert in_front([5, 6], None) == [5, 6]
    assert in_front([5, 6], 1) == [1, 5, 6] == in_front([1, 5, 6], 1)
    assert in_front([], 1) == [1]
    for room, kept in ((4, [1, 5, 6, 7]), (3, [1, 6, 7]), (2, [1, 7]), (1, [1])):
        assert cut_left([1, 5, 6, 7], room, 1) == kept
        assert cut_left([1, 5, 6, 7], room, None) == [1, 5, 6, 7][-room:]


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("added", [True, False])
def test_a_gguf_files_own_setting_decides(tmp_path: Path, kind: str, added: bool) -> None:
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(tmp_path / "t.gguf", "llama")
    if kind == "llama":
        tokens = ["<unk>", BOS, "</s>", *[f"<0x{b:02X}>" for b in range(256)], "\u2581", "x", "\u2581x"]
        types = [2, 3, 3] + [6] * 256 + [1] * 3
        writer.add_token_scores([0.0] * 259 + [-1.0, -2.0, -3.0])
    else:
        letters = sorted(pre_tokenizers.ByteLevel.alphabet())
        tokens, types = [*letters, BOS, "</s>", "th"], [1] * len(letters) + [3, 3, 1]
        writer.add_token_merges(["t h"])
        writer.add_tokenizer_pre("gpt-2")
    writer.add_tokenizer_model(kind)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_vocab_size(len(tokens))
    writer.add_bos_token_id(tokens.index(BOS))
    writer.add_eos_token_id(tokens.index("</s>"))
    writer.add_add_bos_token(added)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = bos_of(load_tokenizer(str(tmp_path), "t.gguf"), "auto", "row")
    assert (found and found.id) == (tokens.index(BOS) if added else None)
