"""report: results.json and the arms' logs as one self-contained HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader
from rich.table import Table

from slmctl.console import out
from slmctl.errors import InputError
from slmctl.files import publishing, read_json
from slmctl.report.plots import curves, training_curve
from slmctl.report.table import comparison
from slmctl.stages.evaluate import RESULTS
from slmctl.stages.workspace import RESOLVED, Workspace
from slmctl.training.telemetry import read_log

METRICS = {
    "loss_selected": (
        "Loss of the tokens trained on",
        "Mean live loss of each step's selected tokens; arms select different tokens.",
    ),
    "loss_unselected": ("Loss of the tokens left out", "With selection this is meant to stay high: noise is not learnt."),
    "correlation": (
        "Live and reference loss: correlation",
        "Aligned losses correlate strongly; a value near 0 means a broken join.",
    ),
    "grad_norm": ("Gradient norm", "Before clipping."),
}


def load_results(workspace: Workspace) -> dict[str, Any]:
    path = workspace.evaluation / RESULTS
    if not path.is_file():
        raise InputError(f"{path} does not exist. Run `slmctl eval` first.")
    found: dict[str, Any] = read_json(path)
    return found


def report(workspace: Workspace, notes: list[str] | None = None) -> Path:
    """Writes report/index.html and its plots as SVG files; returns the page's path."""
    results = load_results(workspace)
    figures = []
    for heldout in next(iter(results["models"].values()))["heldout"]:
        series = {}
        for arm, facts in results["arms"].items():
            found = [(float(e["tokens_seen"]), e["heldout"][heldout]) for e in facts["evals"] if heldout in e["heldout"]]
            if found:
                series[arm] = ([x for x, _ in found], [y for _, y in found])
        title = f"Held-out loss: {heldout}"
        svg = curves(series, "tokens seen", "nats a token", title)
        figures.append(
            {"name": f"heldout-{heldout}", "title": title, "svg": svg, "caption": "Held-out evaluations during training."}
        )
    logs = {arm: read_log(workspace.arm(arm) / "metrics.jsonl") for arm in results["arms"]}
    for key, (title, caption) in METRICS.items():
        series = {arm: training_curve(log, key) for arm, log in logs.items()}
        series = {arm: xy for arm, xy in series.items() if xy[0]}
        if series:
            svg = curves(series, "tokens seen", "nats a token" if key.startswith("loss") else key.replace("_", " "), title)
            figures.append({"name": key, "title": title, "svg": svg, "caption": caption})
    header, rows = comparison(results)
    environment = Environment(loader=PackageLoader("slmctl.report"), autoescape=True)
    page = environment.get_template("report.html.j2").render(
        name=results["pipeline"],
        seed=results["seed"],
        target=results["target"],
        header=header,
        rows=rows,
        notes=[*results.get("notes", []), *(notes or [])],
        figures=figures,
        config=(workspace.root / RESOLVED).read_text(encoding="utf-8"),
        versions=results["versions"],
    )
    for figure in figures:
        _write(workspace.report / f"{figure['name']}.svg", figure["svg"])
    _write(workspace.report / "index.html", page)
    return workspace.report / "index.html"


def _write(path: Path, text: str) -> None:
    with publishing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def print_comparison(workspace: Workspace) -> None:
    """The comparison as a table on stdout."""
    results = load_results(workspace)
    header, rows = comparison(results)
    table = Table(title=f"{results['pipeline']}: losses in nats a token, lower is better (one seed: {results['seed']})")
    for i, cell in enumerate(header):
        table.add_column(cell, justify="right" if i else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    out.print(table)
    for note in results.get("notes", []):
        out.print(f"note: {note}", markup=False)
