"""Reading sets: against a naive concatenation, joined by position, and refusing whatever is not what it was."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from slmctl.store import reader as module
from slmctl.store.reader import RowReader, ScoreSet, ShardSet, TokenSet
from slmctl.store.shard_file import ShardFile
from slmctl.system.errors import CorruptError, MismatchError
from slmctl.system.local_storage import LocalFolder

Make = Callable[..., tuple[Any, Any]]
SETTINGS = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
shard_rows = st.lists(st.integers(0, 10), min_size=1, max_size=5).filter(any)


def read_all(directory: Path) -> np.ndarray:
    tokens = TokenSet(directory)
    return RowReader(tokens).fetch(np.arange(tokens.rows)).ids_BT


@SETTINGS
@given(shard_rows, st.integers(1, 4), st.integers(1, 6))
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
    shards = data.draw(shard_rows)
    wanted = np.array(data.draw(st.lists(st.integers(0, sum(shards) - 1), max_size=30)), dtype=np.int64)
    written, scored = make_sets(shards, 3)
    tokens = TokenSet(written.directory)
    reader = RowReader(tokens, ScoreSet(scored.directory, tokens), cache_groups=data.draw(st.integers(1, 3)))
    got = reader.fetch(wanted)
    assert got.ids_BT.tolist() == written.columns["input_id"][wanted].tolist()
    assert got.document_BT.tolist() == written.columns["document"][wanted].tolist()
    assert got.ref_loss_BT is not None
    assert got.ref_loss_BT.tolist() == [[float(x) for x in row] for row in scored.columns["ref_loss"][wanted]]
    assert (got.ids_BT.dtype, got.document_BT.dtype, got.ref_loss_BT.dtype) == (np.uint16, np.int64, np.float32)


@SETTINGS
@given(shard_rows, st.integers(1, 4), st.integers(1, 6))
def test_padding_is_the_same_where_the_document_column_is_not_read(
    make_sets: Make, rows: list[int], group_rows: int, seq_len: int
) -> None:
    """Known from the manifest's token counts, in shards of any size, the empty ones too."""
    written, _ = make_sets(rows, group_rows, seq_len)
    tokens = TokenSet(written.directory)
    got = RowReader(tokens, documents=False).fetch(np.arange(tokens.rows))
    assert ((got.document_BT == -1) == (written.columns["document"] == -1)).all()
    assert set(np.unique(got.document_BT)) <= {-1, 0}
    assert got.ids_BT.tolist() == written.columns["input_id"].tolist()


def test_without_documents_their_column_is_not_read_at_all(make_sets: Make) -> None:
    """So damage to it goes unnoticed by this reader, and is found by one that reads it."""
    written, _ = make_sets([4])
    flip_in_column(written.directory / "shard-00000.parquet", "document")
    tokens = TokenSet(written.directory)
    assert RowReader(tokens, documents=False).fetch(np.arange(4)).ids_BT.tolist() == written.columns["input_id"].tolist()
    with pytest.raises(CorruptError, match=r"shard-00000\.parquet is broken: row group 0, column document"):
        RowReader(tokens).fetch(np.arange(4))


def test_rows_are_written_to_the_room_that_is_given(make_sets: Make) -> None:
    written, scored = make_sets([4, 3])
    tokens = TokenSet(written.directory)
    reader = RowReader(tokens, ScoreSet(scored.directory, tokens))
    out = reader.blank(3)
    ids, losses = out.ids_BT, out.ref_loss_BT
    got = reader.fetch(np.array([6, 0, 6]), out)
    assert got is out
    assert got.ids_BT is ids
    assert got.ref_loss_BT is losses
    assert ids.tolist() == written.columns["input_id"][[6, 0, 6]].tolist()


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


def test_a_set_of_empty_shards_among_others_is_read(make_sets: Make) -> None:
    written, scored = make_sets([0, 5, 0, 0, 2, 0])
    tokens = TokenSet(written.directory)
    assert [s.groups for s in tokens.manifest.shards] == [0, 2, 0, 0, 1, 0]
    got = RowReader(tokens, ScoreSet(scored.directory, tokens)).fetch(np.arange(7))
    assert got.ids_BT.tolist() == written.columns["input_id"].tolist()
    for i, s in enumerate(tokens.manifest.shards):
        assert tokens.file(i).facts["rows"] == s.rows
        tokens.file(i).verify()


def test_a_set_of_nothing_but_empty_shards_has_no_rows(make_sets: Make) -> None:
    written, scored = make_sets([0, 0])
    tokens = TokenSet(written.directory)
    reader = RowReader(tokens, ScoreSet(scored.directory, tokens))
    assert tokens.rows == 0
    assert reader.fetch(np.zeros(0, dtype=np.int64)).ids_BT.shape == (0, 4)
    with pytest.raises(IndexError):
        reader.fetch(np.array([0]))


# --- damage ---


def flip(path: Path, at: int, bit: int = 3) -> None:
    raw = bytearray(path.read_bytes())
    raw[at] ^= 1 << bit
    path.write_bytes(raw)


def flip_in_column(path: Path, column: str, group: int = 0) -> None:
    (offset, n), _ = ShardFile(LocalFolder(path.parent), path.name)._chunks[group, column]
    flip(path, offset + n // 2)


def test_a_flip_between_two_reads_is_noticed_by_the_second(make_sets: Make) -> None:
    """Bytes are verified each time that they are read, not once when the file is opened."""
    written, _ = make_sets([4])
    tokens = TokenSet(written.directory)
    assert tokens.read_group(1, ["input_id"])["input_id"].shape == (1, 4)
    flip_in_column(written.directory / "shard-00000.parquet", "input_id", group=1)
    with pytest.raises(CorruptError, match="row group 1, column input_id is not what was written"):
        tokens.read_group(1, ["input_id"])
    assert tokens.read_group(0, ["input_id"])["input_id"].shape == (3, 4), "the rest can still be read"


def test_a_shard_is_opened_once_however_often_it_is_read(make_sets: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    true = LocalFolder.open
    monkeypatch.setattr(LocalFolder, "open", lambda self, name: (opened.append(name), true(self, name))[1])
    tokens = ShardSet(make_sets([4, 4])[0].directory, "tokens")
    opened.clear()  # what the writers opened
    for _ in range(3):
        for g in range(len(tokens.group_rows)):
            tokens.read_group(g, ["input_id"])
    assert opened == ["shard-00000.parquet", "shard-00001.parquet"]


@pytest.mark.parametrize("change", [{"rows": 5}, {"tokens": 1}, {"groups": 3}, {"groups": 1}])
def test_a_manifest_that_describes_a_shard_otherwise_is_refused_by_field(make_sets: Make, change: dict[str, int]) -> None:
    """Even where its content hash was made anew."""
    written, _ = make_sets([4])
    shard = replace(written.manifest.shards[0], **change)
    replace(written.manifest, shards=[shard]).save(written.directory, replace=True)
    with pytest.raises(CorruptError, match=rf"shard-00000\.parquet .*{next(iter(change))}: found .*, wanted"):
        read_all(written.directory)


@pytest.mark.parametrize("change", [{"group_rows": 2}, {"group_rows": 4}, {"seq_len": 3}])
def test_a_manifest_of_another_shape_than_its_shards_is_refused(make_sets: Make, change: dict[str, int]) -> None:
    written, _ = make_sets([4])
    replace(written.manifest, **change).save(written.directory, replace=True)
    with pytest.raises(CorruptError, match=r"shard-00000\.parquet: row group \d+ has \d+ values, wanted"):
        read_all(written.directory)


# --- which files ---


def test_a_missing_shard_is_refused_by_name_before_anything_is_read(make_sets: Make) -> None:
    written, _ = make_sets([4, 4, 4])
    (written.directory / "shard-00001.parquet").unlink()
    with pytest.raises(CorruptError, match=r"shard-00001\.parquet: missing"):
        TokenSet(written.directory)
    (written.directory / "shard-00002.parquet").unlink()
    with pytest.raises(CorruptError, match=r"shard-00001\.parquet and 1 more: missing"):
        TokenSet(written.directory)


def test_a_shard_that_vanishes_while_the_set_is_open_is_refused_by_name(make_sets: Make) -> None:
    written, _ = make_sets([4, 4])
    tokens = TokenSet(written.directory)
    (written.directory / "shard-00001.parquet").unlink()
    with pytest.raises(CorruptError, match=r"shard-00001\.parquet does not exist"):
        RowReader(tokens).fetch(np.array([0, 5]))


def test_an_extra_shard_is_refused_by_name(make_sets: Make) -> None:
    written, _ = make_sets([4, 4])
    shutil.copy(written.directory / "shard-00001.parquet", written.directory / "shard-00002.parquet")
    with pytest.raises(CorruptError, match=r"shard-00002\.parquet is not named by the manifest"):
        TokenSet(written.directory)


def test_a_renamed_shard_is_refused_by_its_old_name(make_sets: Make) -> None:
    written, _ = make_sets([4, 4])
    os.rename(written.directory / "shard-00001.parquet", written.directory / "shard-00005.parquet")
    with pytest.raises(CorruptError, match=r"shard-00001\.parquet: missing"):
        TokenSet(written.directory)


def test_two_swapped_shards_are_refused_by_name(make_sets: Make) -> None:
    written, _ = make_sets([4, 4, 4])
    one, two = (written.directory / f"shard-0000{i}.parquet" for i in (1, 2))
    aside = written.directory / "aside"
    for a, b in ((one, aside), (two, one), (aside, two)):
        os.rename(a, b)
    with pytest.raises(CorruptError, match=r"shard-00001\.parquet is broken: .* its manifest (says|names)"):
        read_all(written.directory)


def test_a_shard_of_another_run_of_the_same_shape_is_refused_by_name(make_sets: Make) -> None:
    ours, theirs = (make_sets([4, 4], seed=s)[0] for s in (0, 1))
    shutil.copy(theirs.directory / "shard-00001.parquet", ours.directory)
    with pytest.raises(CorruptError, match=r"shard-00001\.parquet is broken: .* its manifest (says|names)"):
        read_all(ours.directory)


def test_the_manifest_of_another_run_is_refused_by_name(make_sets: Make) -> None:
    ours, theirs = (make_sets([4, 4], seed=s)[0] for s in (0, 1))
    shutil.copy(theirs.directory / "manifest.json", ours.directory)
    with pytest.raises(CorruptError, match=r"shard-00000\.parquet is broken: .* its manifest (says|names)"):
        read_all(ours.directory)


def test_an_edited_manifest_is_refused(make_sets: Make) -> None:
    written, _ = make_sets([4])
    path = written.directory / "manifest.json"
    data = json.loads(path.read_text())
    data["shards"][0]["footer_sha256"] = "0" * 64
    path.write_text(json.dumps(data))
    with pytest.raises(CorruptError, match="altered after it was written"):
        TokenSet(written.directory)


# --- the join ---


def test_scores_of_other_tokens_are_refused_by_field(make_sets: Make) -> None:
    tokens, _ = make_sets([4, 5], seed=0)
    _, others = make_sets([4, 5], seed=1)
    with pytest.raises(MismatchError, match=rf"tokens: found '.*', wanted '{tokens.manifest.content_hash}'(.|\n)*slmctl score"):
        ScoreSet(others.directory, TokenSet(tokens.directory))


def test_a_score_shard_of_another_run_of_the_same_shape_is_refused_by_name(make_sets: Make) -> None:
    tokens, ours = make_sets([4, 4], seed=0)
    _, theirs = make_sets([4, 4], seed=1)
    shutil.copy(theirs.directory / "shard-00000.parquet", ours.directory)
    opened = TokenSet(tokens.directory)
    with pytest.raises(CorruptError, match=r"scores.*shard-00000\.parquet is broken: .* its manifest (says|names)"):
        RowReader(opened, ScoreSet(ours.directory, opened)).fetch(np.array([0]))


def test_the_score_manifest_of_another_run_is_refused_by_field(make_sets: Make) -> None:
    tokens, ours = make_sets([4, 4], seed=0)
    _, theirs = make_sets([4, 4], seed=1)
    shutil.copy(theirs.directory / "manifest.json", ours.directory)
    with pytest.raises(MismatchError, match="tokens: found"):
        ScoreSet(ours.directory, TokenSet(tokens.directory))


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
    tokens, _ = make_sets([4, 5])
    _, scores = make_sets(**{"rows": [4, 5], **change})
    made_from = {"tokens": tokens.manifest.content_hash}
    replace(scores.manifest, made_from=made_from).save(scores.directory, replace=True)
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
    flip_in_column(scores.directory / "shard-00000.parquet", "ref_loss")
    opened = TokenSet(tokens.directory)
    with pytest.raises(CorruptError, match=r"scores.*shard-00000\.parquet is broken: row group 0, column ref_loss"):
        RowReader(opened, ScoreSet(scores.directory, opened)).fetch(np.array([0]))
