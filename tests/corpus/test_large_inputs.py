"""Inputs too large to take in one piece: compressed files of many slices, and documents of many megabytes."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from slmctl.config.data import SourceConfig
from slmctl.corpus import records
from slmctl.corpus.documents import Tally, documents
from slmctl.corpus.slices import plan_slices
from slmctl.system.errors import InputError


def test_slices_of_a_compressed_file_read_in_turn_decompress_it_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.jsonl.gz"
    texts = [f"document {i}" for i in range(200)]
    path.write_bytes(gzip.compress("".join(json.dumps({"text": t}) + "\n" for t in texts).encode()))
    source = SourceConfig(path=[str(path)])
    slices = plan_slices([source], 300)
    assert len(slices) > 10
    monkeypatch.setattr(records, "skip", lambda *_: pytest.fail("decompressed what was read before"))
    assert [text for piece in slices for _, text in documents(source, piece, Tally())] == texts


def test_a_text_file_too_large_for_one_document_is_refused_with_advice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_text("line\n" * 100)
    monkeypatch.setattr(records, "MAX_FILE_BYTES", 400)
    source = SourceConfig(path=[str(tmp_path / "a.txt")])
    with pytest.raises(InputError, match="txt_split: paragraph or line"):
        list(documents(source, plan_slices([source], 1024)[0], Tally()))


def test_a_byte_order_mark_is_no_part_of_the_first_record(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "a"}\n')
    source = SourceConfig(path=[str(tmp_path / "a.jsonl")])
    assert [t for _, t in documents(source, plan_slices([source], 1024)[0], Tally())] == ["a"]
