"""Tiny pipelines, prepared once by single processes; each test works on a copy of their files."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from launch import SEQ_LEN, Left, left_by, settings, succeed, write_config, write_texts

from slmctl.config_file import lay_over

ROWS_16 = {"batch_tokens": 16 * SEQ_LEN}
ARMS: dict[str, Any] = {
    "slm": {**ROWS_16, "selection": {"group_rows": 2}},
    "global": {"micro_batch": 8, "selection": {"group_rows": 2, "scope": "global"}},
    "threshold": {**ROWS_16, "selection": {"group_rows": 2, "scope": "threshold"}},
    "clm": {**ROWS_16, "micro_batch": 4, "selection": {"criterion": "all", "group_rows": 1}},
    "random": {**ROWS_16, "selection": {"criterion": "random", "group_rows": 2}},
    "bf16": {**ROWS_16, "precision": "bf16_autocast", "selection": {"group_rows": 2}},
}


@dataclass
class Pipeline:
    """A pipeline's settings and folder."""

    settings: dict[str, Any]
    root: Path

    def copy(self, to: Path, over: dict[str, Any] | None = None) -> Pipeline:
        shutil.copytree(self.root, to)
        return Pipeline(lay_over(self.settings, over or {}), to)

    @property
    def config(self) -> str:
        return str(write_config(self.root.parent, self.root, self.settings))

    def arm(self, name: str) -> Path:
        return self.root / "pretrain" / name

    def left(self, name: str) -> Left:
        return left_by(self.arm(name))


def prepared(root: Path, over: dict[str, Any]) -> Pipeline:
    write_texts(root / "texts")
    made = Pipeline(lay_over(settings(root / "texts", ARMS), over), root / "made")
    succeed(root, 1, *[[stage, made.config] for stage in ("prepare", "train-base", "train-ref", "score")])
    return made


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
        "reference": {"mix": 0.3, "eval_every": 2, "keep_best_on": "target"},
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


STEPS = 8
STOPPED = {"pretrain": {"steps": STEPS, "save_every": 2, "keep_last": 8, "sharding": "full", "arms": {"slm": {"micro_batch": 4}}}}
"""What runs that are disturbed have in common."""


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
