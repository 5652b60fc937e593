"""run: every stage in order, each skipping what is complete and still matches its inputs."""

from __future__ import annotations

from pathlib import Path

from slmctl.console import say
from slmctl.stages.evaluate import evaluate
from slmctl.stages.prepare import prepare
from slmctl.stages.report import print_comparison, report
from slmctl.stages.score import score
from slmctl.stages.train import pretrain, train_base, train_reference
from slmctl.stages.workspace import Workspace


def run(workspace: Workspace) -> Path:
    """Runs the whole pipeline and prints the comparison. Returns the report's path."""
    config = workspace.config
    prepare(workspace)
    if config.model.scratch is not None:
        train_base(workspace)
    if any(arm.selection.needs_reference for arm in config.pretrain.arms.values()):
        if "reference" in config.score.references.values():
            train_reference(workspace)
        score(workspace)
    else:
        say("train-ref and score: no arm needs a reference, skipped")
    pretrain(workspace)
    evaluate(workspace)
    page = report(workspace)
    print_comparison(workspace)
    return page
