"""A short soak: a training run that is killed again and again ends as an undisturbed one. The long one is
`python tests/soak/soak_training.py --kills 100`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SOAK = Path(__file__).resolve().parents[1] / "soak" / "soak_training.py"


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_run_that_is_killed_again_and_again_ends_as_an_undisturbed_one(ranks: int, tmp_path: Path) -> None:
    options = ["--kills", "5", "--ranks", str(ranks), "--seed", "1", "--keep", str(tmp_path)]
    done = subprocess.run([sys.executable, SOAK, *options], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    counts = json.loads(done.stdout)
    assert counts["identical_to_an_undisturbed_run"]
    assert counts["kills"] == sum(counts["kills_by_phase"].values()) == 5
    assert counts["temporaries_swept"] == counts["temporaries_orphaned"]
    assert counts["longest_survivor_seconds"] < 30
