"""Slices against a naive reading of the whole file: every record once, in order, wherever the cuts fall."""

from __future__ import annotations

import gzip
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from slmctl.config.data import SourceConfig
from slmctl.corpus.documents import Tally, documents, whole_records
from slmctl.corpus.slices import plan_slices
from slmctl.corpus.source_identity import input_fingerprint
from slmctl.system.hashes import HashCache

SETTINGS = settings(max_examples=50, deadline=None)
PACK: dict[str, Callable[[bytes], bytes]] = {
    "": lambda raw: raw,
    ".gz": gzip.compress,
    ".zst": lambda raw: zstandard.ZstdCompressor().compress(raw),
}

plain = st.text(st.sampled_from('ab é漢🦊"\\{\u2028\x85'), max_size=12)
line_ends = st.sampled_from(["\n", "\r\n", "\n\n", "\n \t\n"])
txt = st.lists(st.sampled_from(["a", "é漢", "🦊", " ", "\n", "\n\n", "\r\n", "word word"]), max_size=40).map("".join)
cuts = st.one_of(st.integers(1, 7), st.integers(8, 200))


def read(source: SourceConfig, shard_bytes: int) -> list[str]:
    """The documents of all slices, one slice after another."""
    return [text for piece in plan_slices([source], shard_bytes) for _, text in documents(source, piece, Tally())]


def read_written(raw: bytes, name: str, shard_bytes: int, **settings: Any) -> list[str]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(raw)
        return read(SourceConfig(path=str(path), **settings), shard_bytes)


@SETTINGS
@given(st.lists(st.tuples(plain, line_ends), max_size=20), st.booleans(), cuts, st.sampled_from(list(PACK)))
def test_jsonl_records_are_read_once_for_any_cut(lines: list[tuple[str, str]], ended: bool, cut: int, suffix: str) -> None:
    text = "".join(json.dumps({"text": t}, ensure_ascii=False) + end for t, end in lines)
    raw = (text if ended else text.rstrip("\r\n \t")).encode()
    want = [t for t, _ in lines if t.strip()]
    assert read_written(PACK[suffix](raw), f"a.jsonl{suffix}", cut) == want


@SETTINGS
@given(txt, cuts, st.sampled_from(list(PACK)))
def test_txt_lines_are_read_once_for_any_cut(text: str, cut: int, suffix: str) -> None:
    want = [line.rstrip("\r") for line in text.split("\n") if line.strip()]
    assert read_written(PACK[suffix](text.encode()), f"a.txt{suffix}", cut, txt_split="line") == want


@SETTINGS
@given(txt, cuts, st.sampled_from(list(PACK)))
def test_txt_paragraphs_are_read_once_for_any_cut(text: str, cut: int, suffix: str) -> None:
    want: list[list[str]] = [[]]
    for line in text.split("\n"):
        if line.strip():
            want[-1].append(line)
        else:
            want.append([])
    joined = ["\n".join(lines).rstrip("\r\n") for lines in want if lines]
    assert read_written(PACK[suffix](text.encode()), f"a.txt{suffix}", cut, txt_split="paragraph") == joined


@SETTINGS
@given(txt, cuts)
def test_a_whole_txt_file_is_one_document(text: str, cut: int) -> None:
    assert read_written(text.encode(), "a.txt", cut) == ([text] if text.strip() else [])


@SETTINGS
@given(st.lists(plain, min_size=1, max_size=30), st.integers(1, 9), st.integers(1, 3000))
def test_parquet_rows_are_read_once_for_any_cut(texts: list[str], rows: int, cut: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.parquet"
        pq.write_table(pa.table({"text": texts, "other": range(len(texts))}), path, row_group_size=rows)
        assert read(SourceConfig(path=str(path)), cut) == [t for t in texts if t.strip()]


@SETTINGS
@given(st.lists(plain.filter(str.strip), max_size=20), cuts)
def test_ordinals_number_the_records_of_a_slice_without_repeats(texts: list[str], cut: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.jsonl"
        path.write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
        source = SourceConfig(path=str(path))
        for piece in plan_slices([source], cut):
            ordinals = [ordinal for ordinal, _ in documents(source, piece, Tally())]
            assert ordinals == list(range(len(ordinals)))


@pytest.mark.parametrize("cut", [1, 10, 64, 10**6])
@pytest.mark.parametrize("limit", [1, 2, 7, 30, 31, 99])
def test_max_documents_takes_the_first_ones(tmp_path: Path, cut: int, limit: int) -> None:
    texts = [f"document {i}" for i in range(30)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts[:17]))
    pq.write_table(pa.table({"text": texts[17:]}), tmp_path / "b.parquet", row_group_size=4)
    source = SourceConfig(path=[str(tmp_path / "a.jsonl"), str(tmp_path / "b.parquet")], max_documents=limit)
    assert read(source, cut) == texts[:limit]


def test_max_documents_holds_for_each_source_on_its_own(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("1\n2\n3\n")
    sources = [SourceConfig(path=str(tmp_path / "a.txt"), txt_split="line", max_documents=n) for n in (1, 2)]
    pieces = plan_slices(sources, 2)
    assert [[t for p in pieces if p.source == i for _, t in documents(s, p, Tally())] for i, s in enumerate(sources)] == [
        ["1"],
        ["1", "2"],
    ]


def test_globs_are_expanded_sorted_and_read_once(tmp_path: Path) -> None:
    (tmp_path / "deep" / "er").mkdir(parents=True)
    for name in ("b.jsonl", "a.jsonl", "deep/er/c.jsonl", "ignored.md"):
        (tmp_path / name).write_text(json.dumps({"text": name}) + "\n")
    assert read(SourceConfig(path=str(tmp_path / "*.jsonl")), 1000) == ["a.jsonl", "b.jsonl"]
    assert read(SourceConfig(path=str(tmp_path / "**" / "*.jsonl")), 1000) == ["a.jsonl", "b.jsonl", "deep/er/c.jsonl"]
    both = SourceConfig(path=[str(tmp_path / "b.jsonl"), str(tmp_path / "*.jsonl")])
    assert read(both, 1000) == ["b.jsonl", "a.jsonl"], "a file named twice is read once, where it was first named"


def test_several_compressed_frames_are_one_file(tmp_path: Path) -> None:
    halves = [b'{"text": "one"}\n{"te', b'xt": "two"}\n']
    for suffix in (".gz", ".zst"):
        path = tmp_path / f"a.jsonl{suffix}"
        path.write_bytes(b"".join(PACK[suffix](half) for half in halves))
        assert read(SourceConfig(path=str(path)), 5) == ["one", "two"]


@pytest.mark.parametrize("limit", [None, 1, 6, 7, 15])
def test_a_hub_dataset_is_streamed_shard_by_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int | None) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    texts = [f"part {k} record {i}" for k in range(3) for i in range(5)]
    for k in range(3):
        lines = (json.dumps({"meta": {"body": t}, "n": 1}) for t in texts[5 * k : 5 * k + 5])
        (tmp_path / f"part-{k}.jsonl").write_text("\n".join(lines) + "\n")
    source = SourceConfig(hub=str(tmp_path), text="{meta.body}!", max_documents=limit)
    assert read(source, 10) == [f"{t}!" for t in texts[:limit]]
    if limit is None:
        assert len(plan_slices([source], 10)) == 3


def test_templates_reach_into_nested_fields(tmp_path: Path) -> None:
    records = [{"q": {"body": f"q{i}", "more": {"n": i}}, "a": i / 2, "ok": "yes"} for i in range(4)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "b.parquet")
    want = [f"q{i} {i} {{x}}\n{i / 2} yes" for i in range(4)]
    for name in ("a.jsonl", "b.parquet"):
        source = SourceConfig(path=str(tmp_path / name), text="{q.body} {q.more.n} {{x}}\n{a} {ok}")
        assert read(source, 50) == want


@pytest.mark.parametrize("template", ["no field", "", "{", "}", "{text", "{}", "{0!r}", "{text:>10}"])
def test_a_template_that_is_none_is_refused_before_any_file_is_read(template: str) -> None:
    with pytest.raises(ValueError, match="text template"):
        SourceConfig(path="/does/not/exist.jsonl", text=template)


def test_whole_records_pass_over_broken_ones_and_keep_all_fields(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "x", "other": 1}\nbroken\n{"other": 2}\n')
    source = SourceConfig(path=str(tmp_path / "a.jsonl"))
    assert [r for p in plan_slices([source], 10) for r in whole_records(source, p)] == [{"text": "x", "other": 1}, {"other": 2}]


def test_the_fingerprint_follows_content_and_template_not_place(tmp_path: Path) -> None:
    hashes = HashCache(tmp_path / "hashes.json")
    for folder, content in (("one", "x"), ("two", "x"), ("three", "y")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.txt").write_text(content)

    def of(folder: str, **settings: Any) -> Any:
        return input_fingerprint([SourceConfig(path=str(tmp_path / folder / "a.txt"), **settings)], hashes)

    assert of("one") == of("two")
    assert of("one") != of("three")
    assert of("one") != of("one", text="{text} ")
    assert of("one") != of("one", txt_split="line")
    assert of("one") != of("one", max_documents=1)
