"""sweep: an arm once more for each value of a setting, on the same tokens, reference and scores."""

from __future__ import annotations

from pathlib import Path

from slmctl.console import say
from slmctl.stages.run import run
from slmctl.stages.workspace import Workspace
from slmctl.sweeps import add_sweeps, parse_over
from slmctl.training.ranks import joined


def sweep(workspace: Workspace, overs: list[str]) -> Path:
    """Adds the arms of each `KEY=VALUE,VALUE,…`, and runs the pipeline, which skips what is complete. Returns the report."""
    config = workspace.config
    new = [s for over in overs for s in parse_over(config, over)]
    with joined(workspace.device) as ranks:
        workspace.config = ranks.first(lambda: add_sweeps(workspace.root, config, new))
        for one in new:
            say(f"sweep: {one['arm']} over {one['key']}: {', '.join(one['arms'])}")
        return run(workspace)
