"""report: results.json, highlights.json and the arms' logs as one self-contained HTML page, and as small tables on stdout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from slmctl.console import out
from slmctl.errors import InputError
from slmctl.files import publishing, read_json
from slmctl.report.page import make_page
from slmctl.report.table import print_results
from slmctl.stages.evaluate import HIGHLIGHTS, RESULTS
from slmctl.stages.workspace import RESOLVED, Workspace
from slmctl.training.telemetry import read_log


def load_results(workspace: Workspace) -> dict[str, Any]:
    path = workspace.evaluation / RESULTS
    if not path.is_file():
        raise InputError(f"{path} does not exist. Run `slmctl eval` first.")
    found: dict[str, Any] = read_json(path)
    return found


def report(workspace: Workspace, notes: list[str] | None = None) -> Path:
    """Writes report/index.html and its figures as SVG files; returns the page's path. `notes` go below those of the results."""
    results = load_results(workspace)
    text = workspace.evaluation / HIGHLIGHTS
    page = make_page(
        results,
        read_json(text) if text.is_file() else None,
        {arm: read_log(workspace.arm(arm) / "metrics.jsonl") for arm in results.get("arms", {})},
        (workspace.root / RESOLVED).read_text(encoding="utf-8"),
        notes or [],
    )
    for old in workspace.report.glob("*.svg") if workspace.report.is_dir() else []:
        if old.name not in page.figures:
            old.unlink()
    for name, figure in page.figures.items():
        _write(workspace.report / name, figure)
    _write(workspace.report / "index.html", page.html)  # last: a page is there when its figures are
    return workspace.report / "index.html"


def _write(path: Path, text: str) -> None:
    with publishing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def print_comparison(workspace: Workspace) -> None:
    """The alarms in words, what was found, and the comparison as small tables, on stdout."""
    print_results(load_results(workspace), out)
