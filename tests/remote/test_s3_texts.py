"""Texts behind s3:// read as they do from a disk, and what cannot be read is one clear message."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3fs
import zstandard

from slmctl.config.data import SourceConfig
from slmctl.config.file import check
from slmctl.corpus.documents import Tally, documents
from slmctl.corpus.slices import plan_slices
from slmctl.corpus.source_files import files_of
from slmctl.corpus.source_identity import input_fingerprint
from slmctl.system.errors import InputError
from slmctl.system.hashes import HashCache

TEXTS = [f"document {i}: " + " ".join(f"naïve-{(i * 7 + k) % 13}" for k in range(1 + i * i % 50)) for i in range(60)]
LINES = "".join(json.dumps({"text": t}, ensure_ascii=False) + "\n" for t in TEXTS).encode()


def parquet() -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table({"id": range(len(TEXTS)), "text": TEXTS}), file, row_group_size=7)
    return file.getvalue()


KINDS: dict[str, tuple[bytes, dict[str, Any]]] = {
    "a.jsonl": (LINES, {}),
    "a.jsonl.gz": (gzip.compress(LINES), {}),
    "a.jsonl.zst": (zstandard.compress(LINES[:999]) + zstandard.compress(LINES[999:]), {}),
    "a.parquet": (parquet(), {}),
    "lines.txt": ("\n".join(TEXTS).encode(), {"txt_split": "line"}),
    "paragraphs.txt": ("\n\n".join(TEXTS).encode(), {"txt_split": "paragraph"}),
    "lines.txt.zst": (zstandard.compress("\n".join(TEXTS).encode()), {"txt_split": "line"}),
}


def read(source: SourceConfig, shard_bytes: int = 1500) -> list[str]:
    pieces = plan_slices([source], shard_bytes)
    assert len(pieces) > 1
    return [text for piece in pieces for _, text in documents(source, piece, Tally())]


@pytest.fixture(scope="module")
def bucket(s3: Any) -> str:
    name = s3.bucket("texts")
    for key, (body, _) in KINDS.items():
        s3.put(name, f"kinds/{key}", body)
    for i in range(3):
        s3.put(name, f"web/part-{i}.jsonl", LINES[: LINES.index(b"\n") + 1].replace(b"document 0", f"part {i}".encode()))
    s3.put(name, "web/deep/er/part-3.jsonl", b'{"text": "deep"}\n')
    return name


@pytest.mark.parametrize("key", KINDS)
def test_every_kind_of_file_gives_every_document_once_in_order(bucket: str, key: str) -> None:
    assert read(SourceConfig(path=[f"s3://{bucket}/kinds/{key}"], **KINDS[key][1])) == TEXTS


def test_a_whole_text_file_is_one_document(s3: Any, bucket: str) -> None:
    s3.put(bucket, "whole.txt", b"one\n\ntwo\n")
    source = SourceConfig(path=[f"s3://{bucket}/whole.txt"])
    assert [t for p in plan_slices([source], 4) for _, t in documents(source, p, Tally())] == ["one\n\ntwo\n"]


def test_workers_need_not_read_slices_in_turn(bucket: str) -> None:
    source = SourceConfig(path=[f"s3://{bucket}/kinds/a.jsonl.gz"])
    pieces = plan_slices([source], 1500)
    found = {i: [t for _, t in documents(source, pieces[i], Tally())] for i in (2, 0, 1, *range(3, len(pieces)))}
    assert [t for i in sorted(found) for t in found[i]] == TEXTS


def test_globs_are_expanded_and_sorted(bucket: str) -> None:
    flat = [f"s3://{bucket}/web/part-{i}.jsonl" for i in range(3)]
    assert files_of(SourceConfig(path=[f"s3://{bucket}/web/*.jsonl"])) == flat
    assert files_of(SourceConfig(path=[f"s3://{bucket}/web/part-[12].jsonl"])) == flat[1:]
    deep = f"s3://{bucket}/web/deep/er/part-3.jsonl"
    assert files_of(SourceConfig(path=[f"s3://{bucket}/web/**/*.jsonl"])) == sorted([*flat, deep])
    assert files_of(SourceConfig(path=[flat[2], f"s3://{bucket}/web/*.jsonl"])) == [flat[2], *flat[:2]]


def test_data_root_may_be_a_url(bucket: str) -> None:
    run = {"batch_tokens": 32, "steps": 1}
    settings = {
        **{"name": "rooted", "output_dir": "out", "model": {"scratch": {}}, "reference": run},
        "data": {
            **{"root": f"s3://{bucket}/", "seq_len": 32, "curated": {"path": "web/*.jsonl"}},
            **{"corpus": {"path": "/data/corpus.jsonl"}, "heldout": {"target": {"path": f"s3://{bucket}/kinds/a.jsonl"}}},
        },
        "pretrain": {**run, "arms": {"all": {"selection": {"criterion": "all", "group_rows": 1}}}},
        "eval": {"tasks": [{"name": "sums", "path": "sums.jsonl"}]},
    }
    config = check(settings, "rooted")
    assert config.data.curated[0].path == [f"s3://{bucket}/web/*.jsonl"]
    assert config.data.corpus[0].path == ["/data/corpus.jsonl"]
    assert config.data.heldout["target"][0].path == [f"s3://{bucket}/kinds/a.jsonl"]
    assert config.eval.tasks[0].path == f"s3://{bucket}/sums.jsonl"


def test_what_tells_a_text_s_content_is_neither_its_name_nor_its_time(s3: Any, bucket: str, tmp_path: Path) -> None:
    def named(key: str, body: bytes) -> Any:
        s3.put(bucket, key, body)
        return input_fingerprint([SourceConfig(path=[f"s3://{bucket}/{key}"])], HashCache(tmp_path / "hashes.json"))

    first = named("told/one.jsonl", LINES)
    assert named("told/two.jsonl", LINES) == first
    assert named("told/one.jsonl", LINES) == first
    assert named("told/one.jsonl", LINES.replace(b"document 7", b"document 8")) != first


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("s3://{0}/kinds/absent.jsonl", "s3://{0}/kinds/absent.jsonl does not exist. Correct the path"),
        ("s3://{0}/absent/*.jsonl", "s3://{0}/absent/*.jsonl matches no file"),
        ("s3://{0}/web", "s3://{0}/web is a folder, not a file: give a pattern such as s3://{0}/web/*.jsonl"),
        ("s3://no-such-bucket/a.jsonl", "s3://no-such-bucket/a.jsonl does not exist"),
        ("s3://no-such-bucket/*.jsonl", "s3://no-such-bucket/*.jsonl matches no file"),
        ("s3://{0}/kinds/a.csv", "s3://{0}/kinds/a.csv does not exist"),
        ("s4://{0}/a.jsonl", "s4://{0}/a.jsonl cannot be opened: Protocol not known: s4"),
    ],
)
def test_what_is_not_there_is_named(bucket: str, path: str, why: str) -> None:
    with pytest.raises(InputError) as e:
        files_of(SourceConfig(path=[path.format(bucket)]))
    assert str(e.value).startswith(why.format(bucket))


@pytest.fixture
def asking(s3: Any) -> Iterator[None]:
    """Moto asks who is there; the keys that the environment gives are not known to it."""
    s3.ask_for_credentials(True)
    s3fs.S3FileSystem.clear_instance_cache()
    yield
    s3.ask_for_credentials(False)


@pytest.mark.usefixtures("asking")
@pytest.mark.parametrize("name", ["kinds/a.jsonl", "web/*.jsonl"])
def test_wrong_credentials_are_not_taken_for_an_absent_file(bucket: str, name: str) -> None:
    with pytest.raises(InputError, match=r"access denied \(.*\)\. Check the credentials in the environment"):
        files_of(SourceConfig(path=[f"s3://{bucket}/{name}"]))


@pytest.mark.parametrize(
    ("key", "body", "why"),
    [
        ("cut.jsonl.gz", gzip.compress(LINES)[:-20], "is broken or cut off"),
        ("cut.jsonl.zst", zstandard.compress(LINES)[:-20], "is broken or cut off"),
        ("cut.parquet", parquet()[:-20], "is broken or cut off"),
        ("bad.jsonl", LINES + b"{]\n", "line 61: not valid JSON"),
    ],
)
def test_a_broken_object_is_named(s3: Any, bucket: str, key: str, body: bytes, why: str) -> None:
    s3.put(bucket, f"broken/{key}", body)
    with pytest.raises(InputError, match=rf"s3://{bucket}/broken/{key}.*{why}"):
        read(SourceConfig(path=[f"s3://{bucket}/broken/{key}"]))


LONG = b"".join(b'{"text": "%d %s"}\n' % (i, b"word " * 200_000) for i in range(20))
"""Twice what is fetched at once."""


def broken_off(s3: Any, happen: Callable[[], object]) -> str:
    """The error that reading meets where something happens after its first document."""
    s3.bucket("long")
    s3.put("long", "a.jsonl", LONG)
    source = SourceConfig(path=["s3://long/a.jsonl"])
    (piece,) = plan_slices([source], 2**30)
    reading = documents(source, piece, Tally())
    assert next(reading)[1].startswith("0 word")
    happen()
    with pytest.raises(InputError) as e:
        list(reading)
    return str(e.value)


def test_a_server_that_goes_away_in_the_middle(dying_s3: Any) -> None:
    assert "cannot read s3://long/a.jsonl" in broken_off(dying_s3, dying_s3.server.stop)


def test_a_text_that_is_replaced_while_it_is_read(dying_s3: Any) -> None:
    why = broken_off(dying_s3, lambda: dying_s3.put("long", "a.jsonl", LONG.replace(b"word", b"tree")))
    assert "cannot read s3://long/a.jsonl" in why
    dying_s3.server.stop()
