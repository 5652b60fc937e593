"""report: results.json, highlights.json and the arms' logs as one self-contained HTML page, and as small tables on stdout."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from slmctl.comparison.arms import warn_of_changes
from slmctl.comparison.results import HIGHLIGHTS, is_under_way, load_results, run_of
from slmctl.report.page import make_page
from slmctl.report.table import print_results
from slmctl.system.console import out, waiting
from slmctl.system.files import publishing, read_json
from slmctl.training.telemetry import read_log
from slmctl.workspace.folders import DONE, INPUTS, RESOLVED
from slmctl.workspace.workspace import Workspace


def report(workspace: Workspace, notes: list[str] | None = None) -> Path:
    """Writes report/index.html and its figures as SVG files; returns the page's path. `notes` go below those of the results,
    which are told anew where they are of what has changed since."""
    with waiting("report: drawing its page"):
        return _report(workspace, notes)


def _report(workspace: Workspace, notes: list[str] | None) -> Path:
    results = load_results(workspace)
    results["notes"] = _notes(workspace, results)
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


def _notes(workspace: Workspace, results: dict[str, Any]) -> list[str]:
    """The notes of the results, with what is now different from what each arm was trained as, or was measured on."""
    arms, wanted = results.get("arms", {}), workspace.config.pretrain.arms
    done = [a for a in dict.fromkeys([*arms, *wanted]) if (workspace.arm(a) / DONE).is_file()]
    inputs = workspace.evaluation / INPUTS
    measured = read_json(inputs).get("runs", {}) if inputs.is_file() else {}
    changed = tuple(f"arm {arm} was trained with other settings" for arm in arms)
    found = [note for note in results.get("notes") or [] if not note.startswith(changed)]
    for arm in arms:
        if arm not in wanted:
            found.append(f"arm {arm} is not in the configuration any more")
        elif arm in done:
            found += warn_of_changes(workspace, arm)
        if arm not in done:
            found.append(f"arm {arm} is not there any more as it was evaluated: its folder is absent, or being trained anew")
        elif arm in measured and measured[arm] != run_of(workspace, arm):
            found.append(f"the results are older than arm {arm}: run `slmctl eval`")
    if is_under_way(workspace):
        found.append("the results are older than an evaluation that is not finished: run `slmctl eval`")
    for arm in (a for a in wanted if a not in arms):
        found.append(f"no results for arm {arm}: run `slmctl {'eval' if arm in done else 'pretrain'}`")
    return found


def _write(path: Path, text: str) -> None:
    with publishing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def print_comparison(workspace: Workspace) -> None:
    """The alarms in words, what was found, and the comparison as small tables, on stdout: of several ranks by the first."""
    if os.environ.get("RANK", "0") != "0":
        return
    print_results(load_results(workspace), out)
