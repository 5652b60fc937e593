"""A short soak: workers that are killed again and again leave what an undisturbed one makes. The long one is
`python tests/soak/soak_store.py --kills 100`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SOAK = Path(__file__).resolve().parents[1] / "soak"


def test_killed_workers_leave_what_an_undisturbed_one_makes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ["--kills", "6", "--shards", "12", "--pause", "0.25", "--keep", str(tmp_path)]
    done = subprocess.run([sys.executable, SOAK / "soak_store.py", *options], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    counts = json.loads(done.stdout)
    assert counts["identical_to_an_undisturbed_run"]
    assert counts["kills"] == sum(counts["kills_by_phase"].values()) == 6
    assert counts["kills_in_the_middle_of_work"] > 0, "the kills all met idle workers"
    assert counts["temporaries_swept"] == counts["temporaries_orphaned"]
    assert counts["documents"] > 100

    monkeypatch.syspath_prepend(SOAK)
    from soak_store import count_tokens

    store = tmp_path / "round1"
    (store / "tokens" / "corpus" / "shard-00003.parquet").unlink()
    with pytest.raises(AssertionError, match=r"[1-9]\d* documents lost, 0 too many"):
        count_tokens(tmp_path / "corpus.jsonl", tmp_path / "model", store)
