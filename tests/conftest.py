"""Fixtures for all tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import slow_tests
import yaml
from tiny_pipeline import tiny_settings

from slmctl.system import console

HERE = Path(__file__).resolve().parent


def pytest_configure() -> None:
    try:
        slow_tests.check_entries([*slow_tests.SLOW, *slow_tests.FAST], HERE)
    except ValueError as e:
        raise pytest.UsageError(str(e)) from e


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks what is slow, and puts files with slow tests first."""
    for item in items:
        if slow_tests.is_slow(item.path.relative_to(HERE), item.name.partition("[")[0]):
            item.add_marker("slow")
    items.sort(key=lambda item: slow_tests.rank(item.path.relative_to(HERE)))


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
