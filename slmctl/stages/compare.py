"""compare: several runs side by side, what differs between them, and what cannot be compared."""

from __future__ import annotations

import json
from pathlib import Path

from slmctl.comparison.runs import load_runs
from slmctl.comparison.side_by_side import compare_runs
from slmctl.report.compare_tables import show
from slmctl.system.console import out


def compare(paths: list[Path], as_json: bool = False) -> None:
    """Prints the runs whose output_dirs are `paths` side by side, or the same as JSON.

    Raises `InputError` where a run has no results, `MismatchError` where they are of another schema, `ConfigError` where a
    run is given twice.
    """
    comparison = compare_runs(load_runs(paths))
    if as_json:
        out.print(json.dumps(comparison, indent=2, ensure_ascii=False), soft_wrap=True, markup=False)
    else:
        show(comparison, out)
