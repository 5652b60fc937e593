"""Reading sets: against a naive concatenation, joined by position, and refusing whatever is not what it was."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from slmctl.errors import CorruptError, MismatchError
from slmctl.store import reader as module
from slmctl.store.reader import RowReader, ScoreSet, ShardSet, TokenSet

Make = Callable[..., tuple[Any, Any]]
SETTINGS = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def read_all(directory: Path) -> np.ndarray:
    tokens = TokenSet(directory)
    return RowReader(tokens).fetch(np.arange(tokens.rows)).ids_BT


@SETTINGS
@given(st.lists(st.integers(0, 10), min_size=1, max_size=5).filter(any), st.integers(1, 4), st.integers(1, 6))
def test_every_row_group_equals_the_concatenation(make_sets: Make, rows: list[int], group_rows: int, seq_len: int) -> None:
    written, _ = make_sets(rows, group_rows, seq_len)
    tokens = TokenSet(written.directory)
    assert tokens.rows == sum(rows)
    groups = [tokens.read_group(g, ["document", "input_id"]) for g in range(len(tokens.group_rows))]
    for name in ("input_id", "document"):
        assert np.concatenate([g[name] for g in groups]).tolist() == written.columns[name].tolist()
    assert [len(g["input_id"]) for g in groups] == tokens.group_rows.tolist()


@SETTINGS
@given(st.data())
def test_rows_in_any_order_equal_the_concatenation_and_losses_join_by_position(make_sets: Make, data: st.DataObject) -> None:
    shards = data.draw(st.lists(st.integers(0, 10), min_size=1, max_size=5).filter(any))
    wanted = np.array(data.draw(st.lists(st.integers(0, sum(shards) - 1), max_size=30)), dtype=np.int64)
    written, scored = make_sets(shards, 3)
    tokens = TokenSet(written.directory)
    reader = RowReader(tokens, ScoreSet(scored.directory, tokens), cache_groups=data.draw(st.integers(1, 3)))
    got = reader.fetch(wanted)
    assert got.ids_BT.tolist() == written.columns["input_id"][wanted].tolist()
    assert got.document_BT.tolist() == written.columns["document"][wanted].tolist()
    assert got.ref_loss_BT is not None
    assert got.ref_loss_BT.tolist() == [[float(x) for x in row] for row in scored.columns["ref_loss"][wanted]]
    assert (got.ids_BT.dtype, got.document_BT.dtype, got.ref_loss_BT.dtype) == (np.int64, np.int64, np.float32)


def test_without_scores_there_is_no_ref_loss(make_sets: Make) -> None:
    assert RowReader(TokenSet(make_sets([4])[0].directory)).fetch(np.array([1])).ref_loss_BT is None


def test_a_row_that_is_not_there_is_never_another_row(make_sets: Make) -> None:
    reader = RowReader(TokenSet(make_sets([4, 5])[0].directory))
    for row in (-1, -9, 9, 100):
        with pytest.raises((IndexError, ValueError)):
            reader.fetch(np.array([0, row]))


def test_more_shards_than_open_files_are_read(make_sets: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "OPEN_FILES", 2)
    written, _ = make_sets([1] * 7)
    order = np.array([6, 0, 3, 1, 5, 2, 4, 0, 6])
    reader = RowReader(TokenSet(written.directory), cache_groups=1)
    assert reader.fetch(order).ids_BT.tolist() == written.columns["input_id"][order].tolist()
    assert len(reader.tokens._open) <= 2


def test_a_flipped_byte_anywhere_in_a_shard_is_refused(make_sets: Make) -> None:
    written, _ = make_sets([4, 4])
    path = written.directory / "shard-00001.parquet"
    raw = path.read_bytes()
    for at in range(0, len(raw), 5):
        flipped = bytearray(raw)
        flipped[at] ^= 1 << (at % 8)
        path.write_bytes(flipped)
        with pytest.raises(CorruptError, match=r"shard-00001\.parquet is not the file that"):
            read_all(written.directory)
    path.write_bytes(raw)
    assert read_all(written.directory).tolist() == written.columns["input_id"].tolist()


def test_a_shard_cut_off_or_lengthened_is_refused(make_sets: Make) -> None:
    written, _ = make_sets([4])
    path = written.directory / "shard-00000.parquet"
    raw = path.read_bytes()
    for damaged in [raw[:size] for size in range(0, len(raw), 17)] + [raw + b"\0", raw[:-1]]:
        path.write_bytes(damaged)
        with pytest.raises(CorruptError, match=r"shard-00000\.parquet"):
            read_all(written.directory)


def test_missing_and_swapped_shards_are_refused(make_sets: Make) -> None:
    written, _ = make_sets([4, 4, 4])
    one, two = (written.directory / f"shard-0000{i}.parquet" for i in (1, 2))
    aside = written.directory / "aside"
    os.rename(one, aside)
    with pytest.raises(CorruptError, match=r"shard-00001\.parquet cannot be read"):
        read_all(written.directory)
    os.rename(two, one)
    os.rename(aside, two)
    with pytest.raises(CorruptError, match=r"shard-00001\.parquet is not the file that"):
        read_all(written.directory)


def test_a_manifest_whose_row_counts_do_not_fit_the_shard_is_refused(make_sets: Make) -> None:
    """Even where its content hash was made anew."""
    from slmctl.store.manifest import Manifest, Shard

    written, _ = make_sets([4])
    shard = Shard(**{**written.manifest.shards[0].__dict__, "rows": 5})
    Manifest(**{**written.manifest.__dict__, "shards": [shard]}).save(written.directory)
    with pytest.raises(CorruptError, match="wanted"):
        read_all(written.directory)


# --- the join ---


def test_scores_of_other_tokens_are_refused_by_field(make_sets: Make) -> None:
    tokens, _ = make_sets([4, 5], seed=0)
    _, others = make_sets([4, 5], seed=1)
    with pytest.raises(MismatchError, match=rf"tokens: found '.*', wanted '{tokens.manifest.content_hash}'(.|\n)*slmctl score"):
        ScoreSet(others.directory, TokenSet(tokens.directory))


def test_scores_under_other_settings_are_refused_by_field(make_sets: Make) -> None:
    tokens, scores = make_sets([4])
    opened = TokenSet(tokens.directory)
    assert ScoreSet(scores.directory, opened, {"tokens": tokens.manifest.content_hash}).rows == 4
    with pytest.raises(MismatchError, match=r"reference: found None, wanted {'weights': 'x'}"):
        ScoreSet(scores.directory, opened, {"reference": {"weights": "x"}})
    with pytest.raises(MismatchError, match=r"intra_document_mask: found None, wanted False"):
        ScoreSet(scores.directory, opened, {"intra_document_mask": False})


@pytest.mark.parametrize("change", [{"group_rows": 2}, {"seq_len": 2}, {"rows": [5, 4]}])
def test_scores_of_another_shape_are_refused_by_field(make_sets: Make, change: dict[str, Any]) -> None:
    from slmctl.store.manifest import Manifest

    tokens, _ = make_sets([4, 5])
    _, scores = make_sets(**{"rows": [4, 5], **change})
    made_from = {"tokens": tokens.manifest.content_hash}
    Manifest(**{**scores.manifest.__dict__, "made_from": made_from}).save(scores.directory)
    with pytest.raises(MismatchError, match=rf"{next(iter(change))}.*: found .*, wanted"):
        ScoreSet(scores.directory, TokenSet(tokens.directory))


def test_a_token_set_is_no_score_set(make_sets: Make) -> None:
    tokens, scores = make_sets([4])
    with pytest.raises(MismatchError, match="kind"):
        ScoreSet(tokens.directory, TokenSet(tokens.directory))
    with pytest.raises(MismatchError, match="kind"):
        TokenSet(scores.directory)


def test_a_damaged_score_shard_is_refused_while_joining(make_sets: Make) -> None:
    tokens, scores = make_sets([4])
    path = scores.directory / "shard-00000.parquet"
    raw = bytearray(path.read_bytes())
    raw[20] ^= 4
    path.write_bytes(raw)
    opened = TokenSet(tokens.directory)
    with pytest.raises(CorruptError, match="scores"):
        RowReader(opened, ScoreSet(scores.directory, opened)).fetch(np.array([0]))


def test_the_hash_of_a_shard_is_taken_once(make_sets: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Path] = []
    true = module.sha256_file
    monkeypatch.setattr(module, "sha256_file", lambda p: (calls.append(p), true(p))[1])
    tokens = ShardSet(make_sets([4, 4])[0].directory, "tokens")
    for _ in range(3):
        for g in range(len(tokens.group_rows)):
            tokens.read_group(g, ["input_id"])
    assert len(calls) == 2


def test_an_edited_manifest_is_refused(make_sets: Make) -> None:
    written, _ = make_sets([4])
    path = written.directory / "manifest.json"
    data = json.loads(path.read_text())
    data["shards"][0]["sha256"] = "0" * 64
    path.write_text(json.dumps(data))
    with pytest.raises(CorruptError, match="altered after it was written"):
        TokenSet(written.directory)
