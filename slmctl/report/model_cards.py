"""A README.md beside each model: written when it is trained, and again with its figures when it is evaluated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from slmctl.comparison.costs import forward_flops
from slmctl.model.loading import ModelSource, empty_model
from slmctl.report.card import model_card
from slmctl.report.card_facts import card_facts
from slmctl.system.errors import InputError
from slmctl.system.files import publishing
from slmctl.training.telemetry import read_log
from slmctl.workspace.workspace import Workspace


def write_card(workspace: Workspace, name: str, results: dict[str, Any] | None = None) -> None:
    """The card of `base` (one from scratch), `reference` or an arm, where its model lies."""
    model, run = _places(workspace, name)
    config = workspace.config.model_dump(mode="json")
    metrics, environments = read_log(run / "metrics.jsonl"), read_log(run / "environment.jsonl")
    reference = read_log(workspace.reference / "training" / "metrics.jsonl")
    flops = _flops(workspace, name, metrics)
    bos = workspace.bos()
    token = bos.token if bos is not None else None
    card = model_card(card_facts(name, config, metrics, environments, results, reference, flops, token))
    with publishing(model / "README.md") as temporary:
        temporary.write_text(card, encoding="utf-8")


def write_cards(workspace: Workspace, results: dict[str, Any]) -> None:
    """All models' cards, with what the evaluation has found."""
    for name in results["models"]:
        model, _ = _places(workspace, name)
        if (name != "base" or workspace.config.model.scratch is not None) and model.is_dir():
            write_card(workspace, name, results)


def _flops(workspace: Workspace, name: str, metrics: list[dict[str, Any]]) -> float | None:
    """Operations of a model's training, by its shape and its log; None where these do not tell."""
    arm = workspace.config.pretrain.arms.get(name)
    try:
        forward = forward_flops(empty_model(ModelSource(str(_places(workspace, name)[0]))), workspace.config.data.seq_len)
    except InputError:
        return None
    criterion = arm.selection.criterion if arm is not None else "all"
    return forward.training(criterion, metrics[-1]["tokens_seen"], metrics[-1]["tokens_selected"]) if metrics else None


def _places(workspace: Workspace, name: str) -> tuple[Path, Path]:
    """Where a model lies, and the logs of its training."""
    if name == "base":
        return workspace.base_model, workspace.base_training
    if name == "reference":
        return workspace.reference, workspace.reference / "training"
    return workspace.arm(name) / "model", workspace.arm(name)
