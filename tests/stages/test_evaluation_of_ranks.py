"""eval, started under the real torchrun: one rank works and speaks, whatever there is to say."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import yaml
from evaluated_pipeline import results_of

ROOT = Path(__file__).resolve().parents[2]
QUIET = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}


def torchrun(*words):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "slmctl", *words]
    env = {**os.environ, **QUIET, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    return subprocess.run(command, capture_output=True, text=True, env=env, timeout=200)


def test_the_first_of_two_ranks_evaluates(own_copy):
    workspace = own_copy.open()
    before = results_of(workspace)
    shutil.rmtree(workspace.evaluation)
    path = own_copy.root / "tiny.yaml"
    path.write_text(yaml.safe_dump(own_copy.settings, sort_keys=False), encoding="utf-8")
    done = torchrun("eval", str(path))
    assert done.returncode == 0, done.stderr[-9000:]
    after = results_of(workspace)
    assert after["made_on"].pop("command") != before["made_on"].pop("command")
    assert after == before
    assert done.stderr.count("eval slm: target loss") == 1
    assert done.stdout.count("Held-out set target") == 1
