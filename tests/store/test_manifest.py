"""The manifest: written and read alike, and every edit of it noticed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from slmctl.store.manifest import (
    SCHEMA_VERSION,
    Manifest,
    Shard,
    differences,
    exists,
    is_complete,
    library_versions,
    load_manifest,
    refuse_mismatch,
)
from slmctl.system.errors import CorruptError, InputError, MismatchError

MANIFEST = Manifest(
    "tokens",
    8,
    4,
    [Shard("shard-00000.parquet", 0, 5, 2, 39, 100, "ab"), Shard("shard-00001.parquet", 5, 1, 1, 8, 50, "cd")],
    {"tokenizer": "f00", "seed": 0, "texts": [{"file": "a.jsonl"}]},
    {"eos_id": 0, "columns": {"input_id": "uint16"}},
    {"tokens": 47},
    versions={"numpy": "2"},
)


def leaves(data: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if isinstance(data, dict | list):
        for key in data if isinstance(data, dict) else range(len(data)):
            yield from leaves(data[key], (*path, key))
    else:
        yield path


def test_it_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    assert not exists(tmp_path)
    MANIFEST.save(tmp_path)
    assert exists(tmp_path)
    assert load_manifest(tmp_path, "tokens") == MANIFEST
    assert load_manifest(tmp_path, "tokens").content_hash == MANIFEST.content_hash
    assert MANIFEST.rows == 6


def test_every_single_edit_is_noticed(tmp_path: Path) -> None:
    MANIFEST.save(tmp_path)
    path = tmp_path / "manifest.json"
    saved = json.loads(path.read_text())
    edited = 0
    for leaf in leaves(saved):
        if leaf[0] == "versions":  # tells who wrote it; no value depends on it
            continue
        data = json.loads(json.dumps(saved))
        here = data
        for part in leaf[:-1]:
            here = here[part]
        here[leaf[-1]] = here[leaf[-1]] + 1 if isinstance(here[leaf[-1]], int) else here[leaf[-1]] + "x"
        path.write_text(json.dumps(data))
        with pytest.raises((CorruptError, MismatchError)):
            load_manifest(tmp_path, "tokens")
        edited += 1
    assert edited > 20


def test_every_missing_or_added_key_is_noticed(tmp_path: Path) -> None:
    MANIFEST.save(tmp_path)
    path = tmp_path / "manifest.json"
    saved = json.loads(path.read_text())
    edits = [{k: v for k, v in saved.items() if k != left_out} for left_out in saved if left_out != "versions"]
    edits += [{**saved, "extra": 1}, {**saved, "shards": 3}, {**saved, "shards": [3]}, {**saved, "shards": []}, [], None]
    edits += [{**saved, "shards": saved["shards"][::-1]}]
    for data in edits:
        path.write_text(json.dumps(data))
        with pytest.raises((CorruptError, MismatchError)):
            load_manifest(tmp_path, "tokens")


def test_a_set_without_one_is_not_complete_and_the_stage_to_run_is_named(tmp_path: Path) -> None:
    for kind, stage in (("tokens", "prepare"), ("scores", "score")):
        with pytest.raises(InputError, match=f"absent or not complete. Run `slmctl {stage}`"):
            load_manifest(tmp_path, kind)


def test_one_that_is_no_json_or_of_another_kind_or_version_is_refused(tmp_path: Path) -> None:
    MANIFEST.save(tmp_path)
    with pytest.raises(MismatchError, match="kind is 'tokens', wanted 'scores'"):
        load_manifest(tmp_path, "scores")
    path = tmp_path / "manifest.json"
    whole = path.read_text()
    assert f'"schema_version": {SCHEMA_VERSION}' in whole
    path.write_text(whole.replace(f'"schema_version": {SCHEMA_VERSION}', '"schema_version": 99'))
    with pytest.raises(MismatchError, match=f"schema_version is 99, this slmctl reads 2 and {SCHEMA_VERSION}"):
        load_manifest(tmp_path, "tokens")
    for size in (0, 1, len(whole) // 2, len(whole) - 3):
        path.write_text(whole[:size])
        with pytest.raises(CorruptError, match="not valid JSON"):
            load_manifest(tmp_path, "tokens")


def test_the_first_manifest_stays_unless_it_is_to_be_replaced(tmp_path: Path) -> None:
    other = replace(MANIFEST, seq_len=9)
    assert MANIFEST.save(tmp_path)
    assert not other.save(tmp_path)
    assert load_manifest(tmp_path, "tokens") == MANIFEST
    assert other.save(tmp_path, replace=True)
    assert load_manifest(tmp_path, "tokens") == other
    assert [f.name for f in tmp_path.iterdir()] == ["manifest.json"]


def test_a_set_is_complete_where_every_shard_is_there_in_its_size(tmp_path: Path) -> None:
    MANIFEST.save(tmp_path)
    for shard in MANIFEST.shards:
        assert not is_complete(tmp_path, "tokens")
        (tmp_path / shard.file).write_bytes(b"x" * shard.bytes)
    assert is_complete(tmp_path, "tokens")
    (tmp_path / MANIFEST.shards[1].file).write_bytes(b"x" * 49)
    assert not is_complete(tmp_path, "tokens")


def test_the_content_hash_does_not_depend_on_library_versions() -> None:
    other = Manifest(**{**MANIFEST.__dict__, "versions": library_versions()})
    assert other.content_hash == MANIFEST.content_hash
    assert Manifest(**{**MANIFEST.__dict__, "seq_len": 9}).content_hash != MANIFEST.content_hash


def test_differences_name_each_leaf_what_it_is_and_what_it_should_be() -> None:
    found = {"a": 1, "b": {"c": [1, 2], "d": "x"}, "gone": 0, "list": [1]}
    wanted = {"a": 1, "b": {"c": [1, 3], "d": "y"}, "new": 5, "list": [1, 2]}
    assert sorted(differences(found, wanted)) == [
        "b.c[1]: found 2, wanted 3",
        "b.d: found 'x', wanted 'y'",
        "gone: found 0, wanted None",
        "list: found [1], wanted [1, 2]",
        "new: found None, wanted 5",
    ]
    assert differences(found, found) == []


def test_a_mismatch_lists_every_field_and_the_advice() -> None:
    refuse_mismatch("x", {"a": 1}, {"a": 1}, "nothing")
    with pytest.raises(MismatchError) as e:
        refuse_mismatch("here", {"a": 1, "b": 2}, {"a": 3, "b": 4}, "Run it again.")
    assert str(e.value) == "here does not match:\n  a: found 1, wanted 3\n  b: found 2, wanted 4\nRun it again."
