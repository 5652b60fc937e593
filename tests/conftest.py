"""Fixtures for all tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_pipeline import tiny_settings


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
