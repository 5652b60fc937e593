"""What one training run is given: its model, rows, settings and folder, and how it is evaluated."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from slmctl.config.selection import SelectionConfig
from slmctl.config.training import TrackingConfig, TrainingConfig
from slmctl.corpus.tokenizer import Tokenizer
from slmctl.evaluation.heldout import Measured
from slmctl.model.split import SplitModel
from slmctl.system.threads import ThreadRecord
from slmctl.training.batches import RowSource
from slmctl.training.ranks import Ranks

Beat = Callable[[str, int, int], None]
"""Is told, before each batch of an evaluation, the set's name, its batches that are done, and all of them."""
Evaluator = Callable[[SplitModel, Ranks, Beat], dict[str, Measured]]
"""Held-out loss by set name and what it was measured on, worked out by all ranks together, which call the beat equally often."""


@dataclass
class Run:
    """All that one training run needs. `directory` is its own."""

    name: str
    directory: Path
    model: SplitModel
    tokenizer: Tokenizer
    settings: TrainingConfig
    selection: SelectionConfig
    source: RowSource
    seq_len: int
    seed: int
    device: str
    evaluate: Evaluator
    tracking: TrackingConfig
    keep_best_on: str | None = None
    made_from: dict[str, Any] = field(default_factory=dict)
    """What the run depends on, by content: a checkpoint names it, and is not loaded into another run."""
    facts: dict[str, Any] = field(default_factory=dict)
    """What is told of the pipeline to those who look at the run's curves."""
    ranks: Ranks = Ranks()  # noqa: RUF009 - frozen
    resume_from: int | None = None
    """Step of the checkpoint to go on from; None takes the newest."""
    threads: ThreadRecord | None = None
    """Where it is kept how many threads this kind of run computes with on a CPU."""
    log_odds_V: Tensor | None = None
    """Of each id, between curated text and corpus, where the criterion reads them (`selection.features.log_odds`)."""
    on_stop: Callable[[int], None] = lambda _: None
    """Told, on the first rank, of the signal that all ranks have agreed to stop for."""
