"""Rows read window by window are the rows of the order, whoever asks, in whatever pieces; an error reaches who asks."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from slmctl.store.order import RowOrder
from slmctl.store.reader import RowReader, ScoreSet, TokenSet
from slmctl.store.windows import KEPT, WindowReader
from slmctl.system.errors import CorruptError

Make = Callable[..., tuple[Any, Any]]


@pytest.fixture(autouse=True)
def restless() -> Iterator[None]:
    """Threads take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_rows_are_those_of_the_order(make_sets: Make, data: st.DataObject) -> None:
    shards = data.draw(st.lists(st.integers(0, 8), min_size=1, max_size=5).filter(any))
    written, scored = make_sets(shards, data.draw(st.integers(1, 4)))
    tokens = TokenSet(written.directory)
    documents = data.draw(st.booleans())
    reader = RowReader(tokens, ScoreSet(scored.directory, tokens), documents=documents)
    order = RowOrder(tokens.group_rows, seed=data.draw(st.integers(0, 3)), window=data.draw(st.integers(1, 5)))
    pieces = st.tuples(st.integers(0, 3 * order.rows), st.integers(0, 2 * order.rows))
    asked = [(start, start + n) for start, n in data.draw(st.lists(pieces, min_size=1, max_size=8))]
    windows = WindowReader(reader, order, threads=data.draw(st.integers(0, 3)))
    with ThreadPoolExecutor(data.draw(st.integers(1, 4))) as pool:
        found = list(pool.map(lambda piece: windows.fetch(*piece), asked))
    windows.close()
    for (start, stop), got in zip(asked, found, strict=True):
        rows = order.at(start, stop)
        assert got.ids_BT.tolist() == written.columns["input_id"][rows].tolist()
        document = written.columns["document"][rows]
        assert got.document_BT.tolist() == (document if documents else np.where(document < 0, -1, 0)).tolist()
        assert got.ref_loss_BT is not None
        assert got.ref_loss_BT.tolist() == scored.columns["ref_loss"][rows].tolist()
    assert len(windows._windows) <= KEPT


@pytest.mark.parametrize("threads", [0, 2])
def test_a_broken_group_is_an_error_for_whoever_needs_it_until_it_is_mended(make_sets: Make, threads: int) -> None:
    written, _ = make_sets([3, 3])
    path = written.directory / "shard-00000.parquet"
    whole = path.read_bytes()
    broken = bytearray(whole)
    broken[30] ^= 1
    path.write_bytes(broken)
    tokens = TokenSet(written.directory)
    order = RowOrder(tokens.group_rows, seed=0, window=1)
    good = next(w for w in range(len(tokens.group_rows)) if tokens.place[int(order.groups(0, w)[0])][0] == 1)
    bad = next(w for w in range(len(tokens.group_rows)) if tokens.place[int(order.groups(0, w)[0])] == (0, 0))
    starts = [int(b) for b in order._epoch(0)[1]]
    windows = WindowReader(RowReader(tokens), order, threads)
    assert len(windows.fetch(starts[good], starts[good] + 1).ids_BT) == 1, "what is read ahead in vain harms nobody"
    for _ in range(2):
        with pytest.raises(CorruptError, match="shard-00000"):
            windows.fetch(starts[bad], starts[bad] + 1)
    path.write_bytes(whole)
    got = windows.fetch(starts[bad], starts[bad] + 1)
    assert got.ids_BT.tolist() == written.columns["input_id"][order.at(starts[bad], starts[bad] + 1)].tolist()
    windows.close()


def test_each_group_is_read_once_an_epoch(make_sets: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    written, _ = make_sets([8, 8, 8], group_rows=2)
    reader = RowReader(TokenSet(written.directory))
    order = RowOrder(reader.tokens.group_rows, seed=0, window=3)
    read, true = [], reader.read_into
    monkeypatch.setattr(reader, "read_into", lambda group, out: (read.append(group), true(group, out)))
    windows = WindowReader(reader, order, threads=2)
    for at in range(0, 24, 2):
        windows.fetch(at, at + 2)
    windows.close()
    ahead = set(order.groups(1, 0).tolist())
    assert sorted(read[:12]) == list(range(12))
    assert set(read[12:]) <= ahead
