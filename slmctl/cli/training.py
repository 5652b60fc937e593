"""Commands that train: train-base, train-ref, pretrain."""

from __future__ import annotations

from typing import Annotated

import typer

from slmctl.cli.options import LOADING, Config, NoResume, Override, Resume, open_workspace, resume_from
from slmctl.system.console import waiting


def train_base(config: Config, override: Override = None, resume: Resume = "auto", no_resume: NoResume = False) -> None:
    """Make the base model of a pipeline with `model.scratch`.

    Example: `slmctl train-base pipelines/math-scratch.yaml`
    """
    how = resume_from(resume, no_resume)
    workspace = open_workspace(config, override)
    with waiting(LOADING):
        from slmctl.stages.train_base import train_base as stage

    stage(workspace, how)


def train_ref(config: Config, override: Override = None, resume: Resume = "auto", no_resume: NoResume = False) -> None:
    """Continue the base model on the curated set: the reference model.

    Example: `slmctl train-ref pipelines/math-smollm2.yaml -o reference.epochs=1`
    """
    how = resume_from(resume, no_resume)
    workspace = open_workspace(config, override)
    with waiting(LOADING):
        from slmctl.stages.train_ref import train_reference as stage

    stage(workspace, how)


def pretrain(
    config: Config,
    override: Override = None,
    arm: Annotated[list[str] | None, typer.Option("--arm", help="Only this arm; repeatable.")] = None,
    resume: Resume = "auto",
    no_resume: NoResume = False,
) -> None:
    """Train the arms: the same base and data, each with its own selection.

    Example: `slmctl pretrain pipelines/math-smollm2.yaml --arm slm`
    """
    how = resume_from(resume, no_resume)
    workspace = open_workspace(config, override)
    with waiting(LOADING):
        from slmctl.stages.pretrain import pretrain as stage

    stage(workspace, arm, how)
