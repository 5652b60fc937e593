"""run: every stage in order, each skipping what is complete and still matches its inputs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from slmctl.comparison.task_checks import check_tasks
from slmctl.config.identical_arms import identical_arms
from slmctl.config.pipeline import PipelineConfig
from slmctl.config.sweeps import made_by, read_sweeps
from slmctl.stages.evaluate import evaluate
from slmctl.stages.prepare import prepare
from slmctl.stages.pretrain import pretrain
from slmctl.stages.report import print_comparison, report
from slmctl.stages.score import score
from slmctl.stages.train_base import train_base
from slmctl.stages.train_ref import train_reference
from slmctl.store import manifest as manifests
from slmctl.system.console import say, warn
from slmctl.system.errors import InputError
from slmctl.system.storage import Folder
from slmctl.training.ranks import joined
from slmctl.workspace.graph import By, by_command, graph
from slmctl.workspace.named import wrong_models
from slmctl.workspace.workers import find_share
from slmctl.workspace.workspace import Workspace

NOT_NEEDED = {"score": "train-ref and score: no arm needs a reference, skipped"}
"""What is said where a pipeline has no stage of a command."""


def run(workspace: Workspace) -> Path:
    """Runs the whole pipeline and prints the comparison. Returns the report's path. Of several ranks, each prepares and
    scores its share, all train together, and the first one evaluates. Raises `ConfigError` for what is wrong with eval.tasks."""
    config = workspace.config
    check_tasks(config)
    with joined(workspace.device) as ranks:
        share = find_share()
        ranks.first(lambda: _look_at_models(config, workspace.tokens("corpus")))
        ranks.first(lambda: _tell_identical_arms(config))
        make: dict[str, Callable[[], Any]] = {
            "prepare": lambda: prepare(workspace, share),
            "train-base": lambda: train_base(workspace),
            "train-ref": lambda: train_reference(workspace),
            "score": lambda: score(workspace, None, share),
            "pretrain": lambda: pretrain(workspace),
            "eval": lambda: evaluate(workspace),
            "report": lambda: report(workspace),
        }
        page = workspace.report
        for command, stages in by_command(graph(config)).items():
            by = {stage.kind.by for stage in stages}
            if not stages and command in NOT_NEEDED:
                say(NOT_NEEDED[command])
            elif By.WORKERS in by:
                make[command]()
                ranks.barrier()  # the others' shards
            elif By.RANKS in by:
                make[command]()
            elif by:
                page = ranks.first(make[command])
        ranks.first(lambda: print_comparison(workspace))
        return page


def _look_at_models(config: PipelineConfig, corpus: Folder) -> None:
    """Raises `InputError` for a model whose files are not whole, before hours of tokenising rather than after."""
    if not manifests.exists(corpus) and (wrong := wrong_models(config)):
        raise InputError("\n".join(wrong))


def _tell_identical_arms(config: PipelineConfig) -> None:
    """Warns of arms that train what another does, but for those of sweeps; `validate` refuses them."""
    for line in identical_arms(config, made_by(config, read_sweeps(Path(config.output_dir)))):
        warn(line)
