"""report: results.json, highlights.json and the arms' logs as one self-contained HTML page, and as small tables on stdout."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slmctl.comparison.notes import notes_of_now
from slmctl.comparison.results import HIGHLIGHTS, load_results
from slmctl.report.page import Page, make_page
from slmctl.report.table import print_results
from slmctl.system.console import out, waiting
from slmctl.system.files import publishing, read_json
from slmctl.training.telemetry import read_log
from slmctl.workspace.output_dir import RESOLVED
from slmctl.workspace.workspace import Workspace


@dataclass(frozen=True)
class Reported:
    """What a page is drawn from, and where it goes."""

    results: dict[str, Any]
    """With the notes that are true now."""
    highlighted: dict[str, Any] | None
    logs: dict[str, list[dict[str, Any]]]
    """Of the steps, by arm."""
    config: str
    """YAML, as it was kept by the last stage that was completed."""
    folder: Path


def report(workspace: Workspace, notes: list[str] | None = None) -> Path:
    """Writes report/index.html and its figures as SVG files; returns the page's path. `notes` go below those of the results,
    which are told anew where they are of what has changed since."""
    with waiting("report: drawing its page"):
        found = resolve(workspace)
        page = make_page(found.results, found.highlighted, found.logs, found.config, notes or [])
        return _publish(page, found.folder)


def resolve(workspace: Workspace) -> Reported:
    """Raises `InputError` where there are no results."""
    places = workspace.places
    results, text = load_results(places.evaluation), places.evaluation / HIGHLIGHTS
    results["notes"] = notes_of_now(results, workspace.config.pretrain.arms, places, workspace.noted)
    return Reported(
        results=results,
        highlighted=read_json(text) if text.is_file() else None,
        logs={arm: read_log(places.arm(arm) / "metrics.jsonl") for arm in results.get("arms", {})},
        config=(places.root / RESOLVED).read_text(encoding="utf-8"),
        folder=places.report,
    )


def _publish(page: Page, folder: Path) -> Path:
    """Puts a page and its figures in the place of the former, of which none is left."""
    for old in folder.glob("*.svg") if folder.is_dir() else []:
        if old.name not in page.figures:
            old.unlink()
    for name, figure in page.figures.items():
        _write(folder / name, figure)
    _write(folder / "index.html", page.html)  # last: a page is there when its figures are
    return folder / "index.html"


def _write(path: Path, text: str) -> None:
    with publishing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def print_comparison(workspace: Workspace) -> None:
    """The alarms in words, what was found, and the comparison as small tables, on stdout: of several ranks by the first."""
    if os.environ.get("RANK", "0") == "0":
        print_results(load_results(workspace.places.evaluation), out)
