"""Under the real torchrun: a whole pipeline, and a run that torchrun itself starts again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from launch import QUIET, Left, differences, settings, temporaries, write_config, write_texts
from ranked_pipeline import STOPPED, Pipeline

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]


def torchrun(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *words]
    env = {**os.environ, **QUIET, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    return subprocess.run(command, capture_output=True, text=True, env=env, timeout=200)


def test_two_ranks_run_the_whole_pipeline(tmp_path: Path) -> None:
    write_texts(tmp_path / "texts")
    arms = {"slm": {"selection": {"group_rows": 2}}, "clm": {"selection": {"criterion": "all", "group_rows": 1}}}
    wanted = settings(tmp_path / "texts", arms)
    wanted["model"]["scratch"]["train"]["steps"] = 8
    wanted["pretrain"]["steps"] = 3
    store = tmp_path / "store"
    done = torchrun("-m", "slmctl", "run", str(write_config(tmp_path, store, wanted)))
    assert done.returncode == 0, done.stderr[-9000:]
    assert "report: " in done.stdout
    assert list((store / "report").glob("*.html"))
    found = json.loads((store / "eval" / "results.json").read_text())
    assert {"base", "slm", "clm"} <= set(json.dumps(found).replace('"', " ").split())
    assert done.stderr.count("slm step 0/3") == 1, "of several ranks one speaks"
    assert not temporaries(store)


def test_torchrun_starts_a_run_again_that_goes_on_by_itself(
    pipeline: Callable[..., Pipeline], undisturbed: dict[int, Left]
) -> None:
    made = pipeline("made", STOPPED)
    words = ("1", "6", "pretrain", made.config, "--arm", "slm", "--resume", "never")
    done = torchrun("--max-restarts", "1", str(HERE / "launch.py"), *words)
    assert done.returncode == 0, done.stderr[-9000:]
    assert "slm: resuming after step" in done.stderr
    assert differences(made.left("slm"), undisturbed[2]) == []
    assert not temporaries(made.root)
