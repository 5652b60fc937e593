"""Every single flipped bit of a shard, and every length that is not its own, is found by whoever reads it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from damage import cuts, flips, insertions

from slmctl.store.reader import RowReader, ScoreSet, TokenSet
from slmctl.system.errors import CorruptError

Make = Callable[..., tuple[Any, Any]]


@pytest.fixture(params=["tokens", "scores"])
def damaged(request: pytest.FixtureRequest, make_sets: Make) -> tuple[Path, Callable[[], list[np.ndarray]], list[np.ndarray]]:
    """A shard of two row groups; what reads it whole, the set opened anew each time; and what that is to give."""
    written, scored = make_sets([2], group_rows=1, seq_len=4)
    opened = TokenSet(written.directory)

    def read() -> list[np.ndarray]:
        if request.param == "tokens":
            rows = RowReader(TokenSet(written.directory)).fetch(np.arange(2))
            return [rows.ids_BT, rows.document_BT]
        scores = ScoreSet(scored.directory, opened)
        groups = [scores.read_group(g, ["ref_loss", "ref_entropy"]) for g in range(2)]
        return [np.concatenate([g[n] for g in groups]) for n in ("ref_loss", "ref_entropy")]

    chosen = written if request.param == "tokens" else scored
    return chosen.directory / "shard-00000.parquet", read, list(chosen.columns.values())


def outcome(path: Path, read: Callable[[], list[np.ndarray]], want: list[np.ndarray]) -> str:
    """`refused`, or what else came of reading."""
    try:
        got = read()
    except CorruptError as e:
        return "refused" if str(path) in str(e) else f"refused without naming the file: {e}"
    except Exception as e:  # a traceback where a message is due
        return f"raised {type(e).__name__}: {e}"
    return "read" if all(np.array_equal(a, b) for a, b in zip(got, want, strict=True)) else "WRONG VALUES"


def test_every_flipped_bit_is_found(damaged: Any) -> None:
    path, read, want = damaged
    raw = path.read_bytes()
    assert outcome(path, read, want) == "read"
    outcomes: dict[str, list[tuple[int, int]]] = {}
    for at, bit in flips(path):
        outcomes.setdefault(outcome(path, read, want), []).append((at, bit))
    assert {o: where[:9] for o, where in outcomes.items() if o != "refused"} == {}
    assert len(outcomes["refused"]) == 8 * len(raw)
    assert path.read_bytes() == raw
    assert outcome(path, read, want) == "read", "mended, it is read again"


def test_every_other_length_is_found(damaged: Any) -> None:
    path, read, want = damaged
    raw = path.read_bytes()
    for change in (cuts, insertions):
        found = {at: outcome(path, read, want) for at in change(path)}
        assert len(found) >= len(raw)
        assert {at: o for at, o in found.items() if o != "refused"} == {}, change.__name__
    path.write_bytes(raw + raw)
    assert outcome(path, read, want) == "refused"
