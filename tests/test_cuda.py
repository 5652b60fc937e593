"""The whole pipeline on a GPU, in the precisions that are used there. Runs where torch sees a CUDA device."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from slmctl.cli.process import main

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")


@pytest.mark.parametrize("precision", ["float32", "bf16_autocast", "bfloat16"])
def test_every_stage_runs_on_cuda(tiny: Callable[..., Path], tmp_path: Path, precision: str) -> None:
    overrides = ["-o", "device=cuda", "-o", f"reference.precision={precision}", "-o", f"pretrain.precision={precision}"]
    main(["run", str(tiny()), *overrides, "-o", "score.precision=bfloat16"])
    results = json.loads((tmp_path / "run" / "eval" / "results.json").read_text())
    base = results["models"]["base"]["heldout"]["target"]["loss"]
    for arm in ("slm", "clm", "random"):
        assert results["models"][arm]["heldout"]["target"]["loss"] < base
