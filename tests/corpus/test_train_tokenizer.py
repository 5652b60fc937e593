"""A tokenizer from scratch: every text comes back, and both of its forms, Hugging Face's and SentencePiece's, agree."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sentencepiece import SentencePieceProcessor

from slmctl.corpus.tokenizer import Tokenizer, load_tokenizer
from slmctl.corpus.train_tokenizer import BYTES, EOS, SPACE, UNKNOWN, merges_of, train_tokenizer

TEXTS = [
    "the fox and the stone, then the other fox; the end.\n\n",
    "12 apples and 7 pears are 19 fruits: 12+7=19\n",
    "    indented code():\n        return None\n\tand\t\ttabs\r\n",
    "<m:math><m:mn>3</m:mn></m:math> <m:math><m:mn>4</m:mn></m:math>",
    "naïve café 漢字 🦊 of the Ωmega",
] * 9
ALPHABET = "aehtno fx1279.,<>/=:m\n\t \u00a0é漢🦊\x00"


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("scratch")
    train_tokenizer(TEXTS, 380, path)
    return path


@pytest.fixture(scope="module")
def tokenizer(directory: Path) -> Tokenizer:
    return load_tokenizer(str(directory))


@pytest.fixture(scope="module")
def sentencepiece(directory: Path) -> SentencePieceProcessor:
    processor = SentencePieceProcessor()
    processor.LoadFromFile(str(directory / "tokenizer.model"))
    return processor


@settings(deadline=None, max_examples=300)
@given(text=st.text(alphabet=ALPHABET, max_size=60) | st.text(max_size=30))
@example(text="")
@example(text="   the  the\n\n\n the")
@example(text=f"a{EOS}b{UNKNOWN}<0x41>")
def test_both_forms_give_the_same_ids_and_the_text_comes_back(text, tokenizer, sentencepiece):
    text = text.encode("utf-8", "ignore").decode("utf-8").replace(SPACE, "")  # no half of a surrogate pair
    ids = tokenizer.encode([text])[0].tolist()
    assert ids == sentencepiece.encode(text)
    assert tokenizer.hf.decode(ids) == text == sentencepiece.decode(ids)


def test_whole_texts_agree_and_are_shorter_than_their_bytes(tokenizer, sentencepiece):
    for text in TEXTS[:5]:
        ids = tokenizer.encode([text])[0].tolist()
        assert ids == sentencepiece.encode(text)
        assert len(ids) < 0.7 * len(text.encode())


def test_entries_are_special_ones_bytes_and_what_was_learnt(tokenizer, sentencepiece):
    entries = [sentencepiece.IdToPiece(i) for i in range(sentencepiece.vocab_size())]
    assert entries[:2] == [EOS, UNKNOWN]
    assert entries[2:258] == BYTES
    assert len(entries) == tokenizer.size == len(set(entries)) == 380
    assert sentencepiece.IsControl(0)
    assert sentencepiece.IsUnknown(1)
    assert sentencepiece.IsByte(2)
    assert sentencepiece.IsByte(257)
    assert not sentencepiece.IsByte(258)
    assert f"{SPACE}the" in entries
    for entry in entries[258:]:
        assert len(entry) == 1 or not any(c.isnumeric() for c in entry), "digits stand alone"
        assert SPACE not in entry.lstrip(SPACE), "no entry goes on after a space"
    assert tokenizer.eos_id == 0 == sentencepiece.eos_id()


def test_rare_characters_leave_room_for_words(tmp_path):
    train_tokenizer([*TEXTS, "".join(chr(0x4E00 + i) for i in range(500))], 300, tmp_path)
    learnt = [t for t in load_tokenizer(str(tmp_path)).vocabulary() if t not in (EOS, UNKNOWN, *BYTES)]
    assert len(learnt) == 42
    assert sum(len(t) == 1 for t in learnt) <= 21


@pytest.mark.parametrize("texts", [["eee a e the"] * 50, ["漢字漢字也" * 9], ["aaaa"], []])
def test_a_space_comes_back_even_where_none_was_learnt_from(texts, tmp_path):
    assert train_tokenizer(texts, 260, tmp_path) <= 260
    tokenizer = load_tokenizer(str(tmp_path))
    ids = tokenizer.encode(["a b  c"])[0].tolist()
    assert tokenizer.hf.decode(ids) == "a b  c"
    assert SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model")).encode("a b  c") == ids


def test_long_runs_make_no_entry_that_sentencepiece_refuses(tmp_path):
    train_tokenizer(["the fox and the hen\n" + " " * 6000 + "x\n" + "-" * 9000] * 9, 400, tmp_path)
    tokenizer = load_tokenizer(str(tmp_path))
    assert max(len(t) for t in tokenizer.vocabulary()) <= 64
    text = " " * 5000 + "-" * 5000
    ids = tokenizer.encode([text])[0].tolist()
    assert SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model")).encode(text) == ids


def test_a_tokenizer_is_saved_though_its_folder_is_gone(directory, tmp_path):
    shutil.copytree(directory, tmp_path / "was")
    loaded = load_tokenizer(str(tmp_path / "was"))
    shutil.rmtree(tmp_path / "was")
    loaded.save(tmp_path / "saved")
    assert (tmp_path / "saved" / "tokenizer.model").read_bytes() == (directory / "tokenizer.model").read_bytes()


@pytest.mark.parametrize("what", ["two ids changed", "no SentencePiece"])
def test_a_form_that_gives_other_ids_is_not_handed_on(directory, tmp_path, what, capsys):
    shutil.copytree(directory, tmp_path / "was")
    if what == "two ids changed":
        made = json.loads((tmp_path / "was" / "tokenizer.json").read_text())
        vocab = made["model"]["vocab"]
        vocab["<0x71>"], vocab["<0x77>"] = vocab["<0x77>"], vocab["<0x71>"]
        (tmp_path / "was" / "tokenizer.json").write_text(json.dumps(made))
    else:
        (tmp_path / "was" / "tokenizer.model").write_bytes(b"IQ== 0\nIg== 1\n")
    load_tokenizer(str(tmp_path / "was")).save(tmp_path / "saved")
    assert not (tmp_path / "saved" / "tokenizer.model").exists()
    assert "left out tokenizer.model" in capsys.readouterr().err


def test_the_same_texts_give_the_same_tokenizer_ties_included(directory, tmp_path):
    for size in (300, 380):
        made = []
        for folder in ("a", "b", "c"):
            (tmp_path / folder).mkdir(exist_ok=True)
            train_tokenizer(iter(TEXTS), size, tmp_path / folder)
            made.append((tmp_path / folder / "tokenizer.model").read_bytes())
        assert made[0] == made[1] == made[2]
    assert made[0] == (directory / "tokenizer.model").read_bytes()


def test_merges_are_all_pairs_that_make_an_entry_in_the_order_of_what_they_make():
    entries = [EOS, UNKNOWN, *BYTES, "a", "b", "ab", "aa", "aab", "bx"]
    assert merges_of(entries) == [("a", "b"), ("a", "a"), ("a", "ab"), ("aa", "b")]


def test_what_a_converter_reads_says_that_nothing_is_added_to_a_text(directory, tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    for folder in (directory, tmp_path):
        said = json.loads((folder / "tokenizer_config.json").read_text())
        assert said["add_prefix_space"] is False
        assert said["eos_token"] == EOS
        assert json.loads((folder / "tokenizer.json").read_text())["post_processor"]["type"] == "ByteLevel"
        assert (folder / "tokenizer.model").read_bytes() == (directory / "tokenizer.model").read_bytes()
    assert load_tokenizer(str(tmp_path)).fingerprint() == tokenizer.fingerprint()
    assert tokenizer.hf("the fox")["input_ids"] == tokenizer.encode(["the fox"])[0].tolist(), "a token is put around"


def test_a_tokenizer_without_the_form_is_saved_without_it(directory, tmp_path):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((directory / name).read_bytes())
    (tmp_path / "saved").mkdir()
    load_tokenizer(str(tmp_path)).save(tmp_path / "saved")
    assert {f.name for f in (tmp_path / "saved").iterdir()} == {"tokenizer.json", "tokenizer_config.json"}
