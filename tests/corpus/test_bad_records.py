"""Broken input: one message that names file and line, or, where the source asks for it, a record skipped and counted."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from slmctl.config.data import SourceConfig
from slmctl.corpus.documents import Tally, documents
from slmctl.corpus.slices import plan_slices
from slmctl.system.errors import InputError

GOOD = b'{"text": "fine"}\n'
BAD_LINES = {
    "broken JSON": (b'{"text": "half\n', "not valid JSON"),
    "no object": (b'["text"]\n', "found list"),
    "field absent": (b'{"body": "x"}\n', "field 'text' is absent .*body"),
    "field null": (b'{"text": null}\n', "field 'text' is null"),
    "field a list": (b'{"text": ["x"]}\n', "field 'text' is list"),
    "invalid UTF-8": (b'{"text": "\xff\xfe"}\n', "invalid UTF-8"),
    "lone surrogate": (b'{"text": "\\ud800"}\n', "surrogate"),
    "nested too deep": (b'{"text": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n", "nested too deep"),
    "huge number": (b'{"text": "x", "n": ' + b"9" * 5000 + b"}\n", "(?i)json|digits|number"),
}


def read(source: SourceConfig, shard_bytes: int = 40, tally: Tally | None = None) -> list[str]:
    tally = tally or Tally()
    return [text for piece in plan_slices([source], shard_bytes) for _, text in documents(source, piece, tally)]


@pytest.mark.parametrize("place", [1, 2, 3, 50])
@pytest.mark.parametrize("what", BAD_LINES)
def test_a_bad_line_is_named_by_file_and_line(tmp_path: Path, what: str, place: int) -> None:
    bad, reason = BAD_LINES[what]
    path = tmp_path / "a.jsonl"
    path.write_bytes(GOOD * (place - 1) + bad + GOOD * 3)
    with pytest.raises(InputError, match=reason) as e:
        read(SourceConfig(path=str(path)))
    assert str(e.value).startswith(f"{path}, line {place}: ")


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_blank_lines_count_in_the_line_number_of_a_compressed_file(tmp_path: Path, suffix: str) -> None:
    raw = b"\n\r\n" + GOOD * 4 + b"  \n" + "é".encode() + b"\n"
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(gzip.compress(raw) if suffix == ".gz" else zstandard.compress(raw))
    with pytest.raises(InputError, match=r"line 8: not valid JSON"):
        read(SourceConfig(path=str(path)))


@pytest.mark.parametrize("cut", [1, 30, 10_000])
@pytest.mark.parametrize("what", BAD_LINES)
def test_bad_lines_are_skipped_and_counted_where_asked(tmp_path: Path, what: str, cut: int) -> None:
    bad, _ = BAD_LINES[what]
    path = tmp_path / "a.jsonl"
    path.write_bytes(GOOD + bad + GOOD + bad + b'{"text": " "}\n' + GOOD)
    tally = Tally()
    assert read(SourceConfig(path=str(path), on_bad="skip"), max(cut, len(bad) // 3), tally) == ["fine"] * 3
    assert (tally.documents, tally.skipped, tally.empty, tally.text_bytes) == (3, 2, 1, 12)


@pytest.mark.parametrize("split", ["line", "paragraph", "file"])
@pytest.mark.parametrize("cut", [3, 1000])
def test_invalid_utf8_in_a_txt_file_is_named_by_line(tmp_path: Path, split: str, cut: int) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("één\nzwei\n\nthree\n".encode() + b"fo\xffur\nfive\n")
    with pytest.raises(InputError, match=r"a\.txt, line 5: invalid UTF-8"):
        read(SourceConfig(path=str(path), txt_split=split), cut)


def test_invalid_utf8_in_a_txt_file_is_skipped_where_asked(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"one\nt\xffwo\nthree\n")
    tally = Tally()
    source = SourceConfig(path=str(tmp_path / "a.txt"), txt_split="line", on_bad="skip")
    assert read(source, 2, tally) == ["one", "three"]
    assert tally.skipped == 1


def test_a_bad_parquet_row_is_named_by_its_number_in_the_file(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["x"] * 7 + [None] + ["x"]}), tmp_path / "a.parquet", row_group_size=3)
    with pytest.raises(InputError, match=r"a\.parquet, row 7: field 'text' is null"):
        read(SourceConfig(path=str(tmp_path / "a.parquet")), 1)


def test_invalid_utf8_in_a_parquet_column_is_an_input_error(tmp_path: Path) -> None:
    raw = pa.array([b"fine", b"b\xffd"], pa.binary())
    text = pa.StringArray.from_buffers(2, raw.buffers()[1], raw.buffers()[2])
    pq.write_table(pa.table({"text": text}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"a\.parquet"):
        read(SourceConfig(path=str(tmp_path / "a.parquet")))


def test_a_field_that_parquet_lacks_is_named(tmp_path: Path) -> None:
    pq.write_table(pa.table({"body": ["x"]}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"row 0: field 'text' is absent .*body"):
        read(SourceConfig(path=str(tmp_path / "a.parquet")))


@pytest.mark.parametrize("share", [0.02, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_compressed_file_cut_off_is_refused_not_read_short(tmp_path: Path, suffix: str, share: float) -> None:
    raw = b"".join(json.dumps({"text": f"{i * 7919}"}).encode() + b"\n" for i in range(20_000))
    whole = gzip.compress(raw, 1) if suffix == ".gz" else zstandard.compress(raw)
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(InputError, match="broken or cut off"):
        read(SourceConfig(path=str(path), on_bad="skip"), 10**7)


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst", "a.parquet"])
def test_a_file_that_is_not_what_its_name_says_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(GOOD * 10)
    with pytest.raises(InputError, match=name):
        read(SourceConfig(path=str(tmp_path / name)))


def test_a_parquet_file_cut_off_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": [f"text {i}" for i in range(1000)]}), path, row_group_size=100)
    whole = path.read_bytes()
    for size in (0, 10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(InputError, match=r"a\.parquet"):
            read(SourceConfig(path=str(path)))


@pytest.mark.parametrize("name", ["a.csv", "a.md", "noending", "a.parquet.gz"])
def test_an_unknown_kind_of_file_is_refused_with_the_known_ones(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(GOOD)
    with pytest.raises(InputError, match=r"unknown kind of file.*\.jsonl.*\.parquet"):
        read(SourceConfig(path=str(tmp_path / name)))


def test_a_missing_file_and_a_glob_without_a_match_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"absent\.jsonl does not exist"):
        read(SourceConfig(path=str(tmp_path / "absent.jsonl")))
    with pytest.raises(InputError, match=r"\*\.jsonl matches no file"):
        read(SourceConfig(path=str(tmp_path / "*.jsonl")))


def test_a_hub_dataset_that_is_not_there_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="cannot open dataset"):
        read(SourceConfig(hub=str(tmp_path / "empty")))
