"""Tiny pipelines, prepared once by single processes; each test works on a copy of their files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from launch import Left, succeed
from ranked_pipeline import ARMS, STOPPED, Pipeline, prepared


@pytest.fixture(scope="session")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """Tied embeddings; documents of a row see each other."""
    return prepared(tmp_path_factory.mktemp("tied"), {})


@pytest.fixture(scope="session")
def untied(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """Untied embeddings, no document sees another, and a reference with corpus rows among its own."""
    over = {
        "model": {"scratch": {"tie_word_embeddings": False, "train": {"steps": 20}}},
        "data": {"intra_document_mask": True},
        # An epsilon above the gradients' rounding, which AdamW else makes a whole step of where a gradient is all but zero.
        "reference": {"mix": 0.3, "eval_every": 2, "keep_best_on": "target", "eps": 1.0e-6},
    }
    return prepared(tmp_path_factory.mktemp("untied"), over)


@pytest.fixture
def pipeline(tied: Pipeline, tmp_path: Path) -> Callable[..., Pipeline]:
    """pipeline(name, over): a copy of the first one, with `over` laid over its settings."""
    return lambda name="copy", over=None: tied.copy(tmp_path / name, over)


@pytest.fixture(scope="session")
def alone(tied: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Left]:
    """What one process leaves, by arm."""
    made = tied.copy(tmp_path_factory.mktemp("alone") / "made")
    succeed(made.root.parent, 1, ["pretrain", made.config])
    return {arm: made.left(arm) for arm in ARMS}


@pytest.fixture(scope="session")
def undisturbed(tied: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Left]:
    """What an undisturbed run of one and of two ranks leaves."""
    root = tmp_path_factory.mktemp("undisturbed")
    found = {}
    for size in (1, 2):
        made = tied.copy(root / f"of{size}", STOPPED)
        succeed(root, size, ["pretrain", made.config, "--arm", "slm"])
        found[size] = made.left("slm")
    return found
