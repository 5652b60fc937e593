"""Fixtures for all tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_pipeline import tiny_settings

from slmctl.system import console

LONG = (
    "test_cli.py",
    "test_soak_training_small.py",
    "test_same_as_one_process.py",
    "distributed",
    "test_layout.py",
    "test_s3.py",
)
"""Files, and a folder, of minutes: they go first, so that no worker is left with one at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: next((n for n, part in enumerate(LONG) if part in item.path.parts), len(LONG)))


@pytest.fixture(autouse=True)
def nothing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test is as a process of its own to what is said once a process."""
    monkeypatch.setattr(console, "_told", {})


@pytest.fixture
def tiny(tmp_path: Path) -> Callable[..., Path]:
    """Writes the tiny pipeline's YAML, after `change(settings)`, and returns its path."""

    def make(change: Callable[[dict[str, Any]], None] | None = None) -> Path:
        settings = tiny_settings(tmp_path)
        if change is not None:
            change(settings)
        path = tmp_path / "tiny.yaml"
        path.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
        return path

    return make
