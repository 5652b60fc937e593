"""Inputs too large to take in one piece: compressed files of many slices, and documents of many megabytes."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from slmctl.config import SourceConfig
from slmctl.corpus import sources, tokenizer
from slmctl.corpus.sources import Tally, documents, plan
from slmctl.corpus.tokenizer import load_tokenizer, pieces
from slmctl.corpus.train_tokenizer import train_tokenizer
from slmctl.errors import InputError


def test_slices_of_a_compressed_file_read_in_turn_decompress_it_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.jsonl.gz"
    texts = [f"document {i}" for i in range(200)]
    path.write_bytes(gzip.compress("".join(json.dumps({"text": t}) + "\n" for t in texts).encode()))
    source = SourceConfig(path=[str(path)])
    slices = plan([source], 300)
    assert len(slices) > 10
    monkeypatch.setattr(sources, "skip", lambda *_: pytest.fail("decompressed what was read before"))
    assert [text for piece in slices for _, text in documents(source, piece, Tally())] == texts


def test_pieces_are_the_text_cut_after_a_line_else_after_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer, "PIECE_CHARS", 20)
    for text in ("", "short", "a line\n" * 30, "words of no line " * 9, "x" * 95, "x" * 19 + " " + "y" * 30 + "\nz"):
        found = list(pieces(text))
        assert "".join(found) == text
        assert all(len(p) <= 20 for p in found)
    assert next(pieces("one two\nthree four five six")) == "one two\nthree four "
    assert next(pieces("one two three\nfour five six")) == "one two three\n"


def test_a_long_document_has_the_tokens_of_its_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train_tokenizer(["the cat sat on the mat\n"] * 20, 300, tmp_path / "t")
    loaded = load_tokenizer(str(tmp_path / "t"))
    text = "the cat sat on the mat\n" * 40
    (whole,) = loaded.encode([text])
    monkeypatch.setattr(tokenizer, "PIECE_CHARS", 100)
    short, cut = loaded.encode(["the cat", text])
    assert cut.tolist() == whole.tolist()  # cut at line ends, where this tokenizer ends a token anyway
    assert loaded.hf.decode(short) == "the cat"


def test_a_text_file_too_large_for_one_document_is_refused_with_advice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_text("line\n" * 100)
    monkeypatch.setattr(sources, "MAX_FILE_BYTES", 400)
    source = SourceConfig(path=[str(tmp_path / "a.txt")])
    with pytest.raises(InputError, match="txt_split: paragraph or line"):
        list(documents(source, plan([source], 1024)[0], Tally()))


def test_a_byte_order_mark_is_no_part_of_the_first_record(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "a"}\n')
    source = SourceConfig(path=[str(tmp_path / "a.jsonl")])
    assert [t for _, t in documents(source, plan([source], 1024)[0], Tally())] == ["a"]
