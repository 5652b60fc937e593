"""Commands that evaluate and compare what was trained: eval, report, compare."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from slmctl.cli.options import LOADING, Config, Override, open_workspace
from slmctl.system.console import out, waiting


def evaluate(config: Config, override: Override = None) -> None:
    """Held-out loss, perplexity, bits per byte and tasks, for base, reference and arms.

    Example: `slmctl eval pipelines/math-smollm2.yaml`
    """
    workspace = open_workspace(config, override)
    with waiting(LOADING):
        from slmctl.stages.evaluate import evaluate as stage
        from slmctl.stages.report import print_comparison

    stage(workspace)
    print_comparison(workspace)


def report(config: Config, override: Override = None) -> None:
    """One self-contained HTML page with the comparison and the arms' curves.

    Example: `slmctl report pipelines/math-smollm2.yaml`
    """
    workspace = open_workspace(config, override)
    with waiting(LOADING):
        from slmctl.stages.report import report as stage

    out.print(f"report: {stage(workspace).resolve()}", soft_wrap=True)


def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="The output_dir of each run; each has been evaluated.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the same as JSON.")] = False,
) -> None:
    """Several evaluated runs side by side: losses, tokens, tasks, seeds, and what differs in their configurations.

    Examples: `slmctl compare runs/mine runs/try` · `slmctl compare --json runs/seed-*`
    """
    with waiting(LOADING):
        from slmctl.stages.compare import compare as stage

    stage(runs, as_json)
