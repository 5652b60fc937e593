"""What one undisturbed worker makes, once for all tests of the store; and a store for each test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_store
from evaluated_pipeline import Made, evaluated_settings
from tiny_store import Store, open_workspace

from slmctl.stages import run as running
from slmctl.stages.prepare import prepare
from slmctl.stages.score import score


@pytest.fixture(scope="session")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """What one undisturbed worker makes."""
    root = tmp_path_factory.mktemp("alone")
    settings = tiny_store.store_settings(root)
    prepare(open_workspace(settings))
    score(open_workspace(settings))
    tiny_store.release_locks()
    return settings, root / "run"


@pytest.fixture
def store(alone: tuple[dict[str, Any], Path], tmp_path: Path) -> Iterator[Store]:
    yield Store(alone[0], tmp_path, alone[1])
    tiny_store.release_locks()


@pytest.fixture(scope="session")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """The tiny pipeline, evaluated. Not to be written to."""
    root = tmp_path_factory.mktemp("evaluated")
    made = Made(root, evaluated_settings(root))
    with pytest.MonkeyPatch.context() as patch:  # the page takes its time, and is no matter here
        patch.setattr(running, "report", lambda workspace: workspace.report / "index.html")
        running.run(made.open())
    return made


@pytest.fixture
def own_copy(evaluated: Made, tmp_path: Path) -> Made:
    return evaluated.copy_to(tmp_path)
