"""How long a training stage is meant to be: rows of its epoch, and steps."""

from __future__ import annotations

from collections.abc import Callable

from slmctl.config.pipeline import PipelineConfig
from slmctl.config.training import TrainingConfig, total_steps

Rows = Callable[[str], float | None]
"""By name of a token set: its rows; None where that is not known."""


def settings_of(config: PipelineConfig, label: str) -> TrainingConfig | None:
    """The settings of a training stage; None for any other, and for a base that stays random."""
    kind, _, name = label.partition("/")
    if kind == "base":
        return config.model.scratch.train if config.model.scratch is not None else None
    if kind == "reference":
        return config.reference
    return config.pretrain.arms[name] if kind == "pretrain" else None


def epoch_rows(config: PipelineConfig, label: str, rows: Rows) -> float | None:
    """Rows that a training stage passes over in an epoch: of the reference its own and those that are mixed in."""
    if label != "reference":
        return rows("corpus")
    own, mix = rows("curated"), config.reference.mix
    return own + round(own * mix / (1 - mix)) if own is not None else None


def steps_of(config: PipelineConfig, label: str, rows: Rows) -> int | None:
    """Steps of a training stage in all; None for any other, and where its budget is in epochs of what is not known yet."""
    settings = settings_of(config, label)
    if settings is None:
        return None
    found = epoch_rows(config, label, rows) if settings.epochs is not None else 0
    return total_steps(settings, config.data.seq_len, int(found)) if found is not None else None
