"""status: how every stage stands, for those who only look: nothing is locked, kept, fetched or written."""

from __future__ import annotations

import json
from typing import Any

from rich.console import Console
from rich.table import Table

from slmctl.config.pipeline import PipelineConfig
from slmctl.stages.dry_run import resolve_results
from slmctl.system.console import out, quiet
from slmctl.workspace.planned.standing import Standing, standings
from slmctl.workspace.planned.walk import walk


def status(config: PipelineConfig, as_json: bool = False) -> None:
    """Prints how every stage stands. Raises `ConfigError` where output_dir is another pipeline's."""
    with quiet():
        found = walk(config, resolve_results)
        all_ = standings(found)
    if as_json:
        data = {"output_dir": str(found.looking.root), "stages": [as_data(s) for s in all_], "problems": found.problems}
        out.print(json.dumps(data, indent=2, ensure_ascii=False), soft_wrap=True, markup=False)
    else:
        show(all_, found.problems)


def as_data(standing: Standing) -> dict[str, Any]:
    """The same as plain data, for --json."""
    stage = standing.stage
    return {
        **{"label": stage.label, "command": stage.command, "makes": stage.kind.makes, "needs": list(stage.needs)},
        **{"state": standing.state, "why": list(standing.why), "counted": stage.kind.counted or None},
        **{"done": standing.done, "of": standing.of, "at": standing.at},
    }


def show(all_: list[Standing], problems: list[str]) -> None:
    """A line a stage, and at the end what is in the way, and what is to be done."""
    table = Table(box=None, pad_edge=False)
    for column in ("stage", "state", "how far"):
        table.add_column(column)
    table.add_column("why", overflow="fold")
    for one in all_:
        table.add_row(one.stage.label, one.state, how_far(one), "; ".join(one.why))
    width = out.width if out.is_terminal else max(out.width, 160)  # in a log nothing is cut off
    Console(file=out.file, width=width, highlight=False, markup=False).print(table)
    for problem in problems:
        out.print(f"note: {problem}", soft_wrap=True, markup=False)
    out.print(summary(all_), soft_wrap=True, markup=False)


def how_far(standing: Standing) -> str:
    """`300 of 500 steps, logged up to 340`; empty for what is complete, or not counted."""
    if standing.state != "unfinished" or standing.done is None:
        return ""
    counted = standing.stage.kind.counted
    of = f" of {standing.of:,}" if standing.of is not None else ""
    logged = f", logged up to {standing.at:,}" if standing.at is not None and standing.at > standing.done else ""
    return f"{standing.done:,}{of} {counted}{' saved' * (counted == 'steps')}{logged}"


def summary(all_: list[Standing]) -> str:
    """How many stages are complete, and which command makes the first that is not."""
    left = [s for s in all_ if s.state != "complete"]
    if not left:
        return "all stages are complete"
    which = f"{len(all_) - len(left)} of {len(all_)} stages are complete"
    return f"{which}; next: slmctl {left[0].stage.command} (or slmctl run, which makes all that is left)"
