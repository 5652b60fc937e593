"""Many threads read one set: the same rows as one thread, and an error in one is an error in all that wait for it."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from slmctl.store import reader as module
from slmctl.store.reader import RowReader, Rows, ScoreSet, TokenSet
from slmctl.system.errors import CorruptError

Make = Callable[..., tuple[Any, Any]]


@pytest.fixture(autouse=True)
def restless() -> Iterator[None]:
    """Threads take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def at_once(work: list[Callable[[], Any]]) -> list[Any]:
    """Runs each in a thread of its own, begun together; returns what each returned or raised."""
    barrier = threading.Barrier(len(work))

    def run(one: Callable[[], Any]) -> Any:
        barrier.wait()
        try:
            return one()
        except Exception as e:
            return e

    with ThreadPoolExecutor(len(work)) as pool:
        return [f.result(timeout=60) for f in [pool.submit(run, one) for one in work]]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_number_of_threads_read_what_the_concatenation_holds(make_sets: Make, data: st.DataObject) -> None:
    shards = data.draw(st.lists(st.integers(0, 8), min_size=1, max_size=5).filter(any))
    row = st.lists(st.integers(0, sum(shards) - 1), max_size=20)
    asked = [np.array(r, dtype=np.int64) for r in data.draw(st.lists(row, min_size=1, max_size=8))]
    written, scored = make_sets(shards, data.draw(st.integers(1, 4)))
    tokens = TokenSet(written.directory)
    reader = RowReader(tokens, ScoreSet(scored.directory, tokens), cache_groups=data.draw(st.integers(1, 4)))
    found = at_once([lambda rows=rows: reader.fetch(rows) for rows in asked])
    for rows, got in zip(asked, found, strict=True):
        assert isinstance(got, Rows), got
        assert got.ids_BT.tolist() == written.columns["input_id"][rows].tolist()
        assert got.document_BT.tolist() == written.columns["document"][rows].tolist()
        assert got.ref_loss_BT is not None
        assert got.ref_loss_BT.tolist() == scored.columns["ref_loss"][rows].tolist()
    assert len(reader._cache) <= reader.cache_groups


def test_more_threads_than_open_files_read_every_shard(make_sets: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is put away while another thread reads from it stays open for that one."""
    monkeypatch.setattr(module, "OPEN_FILES", 1)
    written, _ = make_sets([2] * 9, group_rows=1)
    reader = RowReader(TokenSet(written.directory), cache_groups=1)
    rng = np.random.default_rng(0)
    asked = [rng.permutation(18) for _ in range(8)]
    for rows, got in zip(asked, at_once([lambda rows=rows: reader.fetch(rows) for rows in asked]), strict=True):
        assert isinstance(got, Rows), got
        assert got.ids_BT.tolist() == written.columns["input_id"][rows].tolist()


def test_a_group_that_many_ask_for_at_once_is_read_once(make_sets: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    written, _ = make_sets([3])
    tokens, calls = TokenSet(written.directory), []
    true = tokens.read_group

    def slow(group: int, *rest: Any) -> dict[str, np.ndarray]:
        calls.append(group)
        time.sleep(0.05)
        return true(group, *rest)

    monkeypatch.setattr(tokens, "read_group", slow)
    reader = RowReader(tokens)
    found = at_once([lambda: reader.group(0)] * 8)
    assert calls == [0]
    assert all(rows is found[0] for rows in found)


def test_a_group_that_cannot_be_read_is_an_error_in_all_threads_and_is_read_once_it_is_mended(
    make_sets: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    written, _ = make_sets([3, 3])
    path: Path = written.directory / "shard-00000.parquet"
    whole = path.read_bytes()
    broken = bytearray(whole)
    broken[30] ^= 1
    path.write_bytes(broken)
    tokens = TokenSet(written.directory)
    true = tokens.read_group

    def slow(group: int, *rest: Any) -> dict[str, np.ndarray]:
        time.sleep(0.05)  # so that the others wait for it
        return true(group, *rest)

    monkeypatch.setattr(tokens, "read_group", slow)
    reader = RowReader(tokens)
    found = at_once([lambda: reader.fetch(np.array([0])), lambda: reader.fetch(np.array([4, 1]))] * 4)
    assert all(isinstance(e, CorruptError) and str(path) in str(e) for e in found), found
    assert reader.fetch(np.array([5])).ids_BT.tolist() == written.columns["input_id"][[5]].tolist(), "the other shard is whole"
    path.write_bytes(whole)
    for got in at_once([lambda: reader.fetch(np.arange(6))] * 4):
        assert isinstance(got, Rows), got
        assert got.ids_BT.tolist() == written.columns["input_id"].tolist()
