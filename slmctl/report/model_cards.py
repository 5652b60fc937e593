"""A README.md beside each model: written when it is trained, and again with its figures when it is evaluated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from slmctl.comparison.flop_costs import ALL, forward_flops
from slmctl.config.decides import RESULTS, decided
from slmctl.config.pipeline import PipelineConfig
from slmctl.corpus.bos import Bos
from slmctl.model.loading import empty_model
from slmctl.model.source import ModelSource
from slmctl.report.card import model_card
from slmctl.report.card_facts import card_facts
from slmctl.system.errors import InputError
from slmctl.system.files import publishing
from slmctl.system.hashes import sha256_json
from slmctl.training.telemetry import read_log
from slmctl.workspace.places import Places


def write_card(places: Places, config: PipelineConfig, name: str, bos: Bos | None, results: dict[str, Any] | None = None) -> None:
    """The card of `base` (one from scratch), `reference` or an arm, where its model lies. `bos` is what its rows begin with."""
    model, run = places.model(name), places.training(name)
    metrics, environments = read_log(run / "metrics.jsonl"), read_log(run / "environment.jsonl")
    reference = read_log(places.training("reference") / "metrics.jsonl")
    flops = _flops(model, config, name, metrics)
    token = bos.token if bos is not None else None
    plain, fingerprint = config.model_dump(mode="json"), sha256_json(decided(config, *RESULTS, places=True))
    facts = card_facts(name, plain, metrics, environments, results, reference, flops, token, fingerprint)
    with publishing(model / "README.md") as temporary:
        temporary.write_text(model_card(facts), encoding="utf-8")


def write_cards(places: Places, config: PipelineConfig, bos: Bos | None, results: dict[str, Any]) -> None:
    """All models' cards, with what the evaluation has found."""
    for name in results["models"]:
        if (name != "base" or config.model.scratch is not None) and places.model(name).is_dir():
            write_card(places, config, name, bos, results)


def _flops(model: Path, config: PipelineConfig, name: str, metrics: list[dict[str, Any]]) -> float | None:
    """Operations of a model's training, by its shape and its log; None where these do not tell."""
    arm = config.pretrain.arms.get(name)
    try:
        forward = forward_flops(empty_model(ModelSource(str(model))), config.data.seq_len)
    except InputError:
        return None
    selection = arm.selection.model_dump(mode="json") if arm is not None else ALL
    return forward.training(selection, metrics[-1]["tokens_seen"], metrics[-1]["tokens_selected"]) if metrics else None
