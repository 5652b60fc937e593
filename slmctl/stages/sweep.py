"""sweep: an arm once more for each value of a setting, on the same tokens, reference and scores."""

from __future__ import annotations

from pathlib import Path

from slmctl.config.pipeline import PipelineConfig
from slmctl.config.sweeps import FILE, add_sweeps, made_by, parse_over, points_of, read_sweeps
from slmctl.stages.run import run
from slmctl.system.console import say
from slmctl.training.ranks import joined
from slmctl.workspace.workspace import Workspace


def sweep(workspace: Workspace, overs: list[str]) -> Path:
    """Adds the arms of each `KEY=VALUE,VALUE,…`, and runs the pipeline, which skips what is complete. Returns the report."""
    config = workspace.config
    added = made_by(config, read_sweeps(workspace.root))
    new = [s for over in overs for s in parse_over(config, over, added)]

    def add() -> PipelineConfig:
        """The configuration with the new arms, and those that another process has added meanwhile."""
        with workspace.locks.alone(FILE):
            return add_sweeps(workspace.root, workspace.config, new)

    with joined(workspace.device) as ranks:
        workspace.config = ranks.first(add)
        for one in new:
            say(f"sweep: {one['arm']} over {one['key']}: {', '.join(name for _, name in points_of(config, one))}")
        return run(workspace)
