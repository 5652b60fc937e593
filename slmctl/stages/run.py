"""run: every stage in order, each skipping what is complete and still matches its inputs."""

from __future__ import annotations

from pathlib import Path

from slmctl.comparison.task_checks import check_tasks
from slmctl.config.alike import identical_arms
from slmctl.config.sweeps import made_by, read_sweeps
from slmctl.stages.evaluate import evaluate
from slmctl.stages.prepare import prepare
from slmctl.stages.pretrain import pretrain
from slmctl.stages.report import print_comparison, report
from slmctl.stages.score import score
from slmctl.stages.train_base import train_base
from slmctl.stages.train_ref import train_reference
from slmctl.stages.validate import wrong_models
from slmctl.store import manifest as manifests
from slmctl.system.console import say, warn
from slmctl.system.errors import InputError
from slmctl.training.ranks import joined
from slmctl.workspace.workers import find_share
from slmctl.workspace.workspace import Workspace


def run(workspace: Workspace) -> Path:
    """Runs the whole pipeline and prints the comparison. Returns the report's path. Of several ranks, each prepares and
    scores its share, all train together, and the first one evaluates. Raises `ConfigError` for what is wrong with eval.tasks."""
    config = workspace.config
    check_tasks(config)
    with joined(workspace.device) as ranks:
        share = find_share()
        ranks.first(lambda: _look_at_models(workspace))
        ranks.first(lambda: _tell_identical_arms(workspace))
        prepare(workspace, share)
        ranks.barrier()
        if config.model.scratch is not None:
            train_base(workspace)
        if any(arm.selection.needs_reference for arm in config.pretrain.arms.values()):
            if "reference" in config.score.references.values():
                train_reference(workspace)
            score(workspace, None, share)
            ranks.barrier()
        else:
            say("train-ref and score: no arm needs a reference, skipped")
        pretrain(workspace)
        return ranks.first(lambda: _look(workspace))


def _look_at_models(workspace: Workspace) -> None:
    """Raises `InputError` for a model whose files are not whole, before hours of tokenising rather than after."""
    if not manifests.exists(workspace.tokens("corpus")) and (wrong := wrong_models(workspace.config)):
        raise InputError("\n".join(wrong))


def _tell_identical_arms(workspace: Workspace) -> None:
    """Warns of arms that train what another does, but for those of sweeps; `validate` refuses them."""
    for line in identical_arms(workspace.config, made_by(workspace.config, read_sweeps(workspace.root))):
        warn(line)


def _look(workspace: Workspace) -> Path:
    evaluate(workspace)
    page = report(workspace)
    print_comparison(workspace)
    return page
