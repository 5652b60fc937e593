"""What a run is after a step, besides its settings: numbers, and what is kept in tensors."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn


@dataclass
class Progress:
    """All that a run is, besides weights, optimizer and token counts. The data order needs the step alone."""

    step: int = 0
    tokens_seen: int = 0
    tokens_selected: int = 0
    best: dict[str, Any] | None = None
    """The best evaluation so far, where a run keeps the best: step, loss, and what all of it was measured on."""
    threshold: float | None = None
    """The running quantile of `scope: threshold`."""
    recent_losses: list[float] = field(default_factory=list)
    """What a loss spike is told by, where spikes are skipped."""
    skipped: int = 0
    skipped_in_a_row: int = 0
    micro_batch: int | None = None
    """What `micro_batch: auto` found."""
    machine: dict[str, Any] = field(default_factory=dict)
    """How many ranks the run has, of which device with how much memory."""
    threads: int | None = None
    """How many threads it computes with on a CPU."""
    evaluated: int = -1
    """Step after which it was evaluated last."""


@dataclass
class TrainingState:
    """What a checkpoint holds in tensors. `counts` [2, V] are this rank's; all ranks' sum is saved."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    counts: Tensor

    @property
    def on_gpu(self) -> bool:
        return next(self.model.parameters()).is_cuda

    def state(self, counts: Tensor) -> dict[str, Any]:
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict

        model, optimizer = get_state_dict(self.model, self.optimizer, options=StateDictOptions(cpu_offload=self.on_gpu))
        return {"model": model, "optimizer": optimizer, "counts": counts}

    def load(self, state: dict[str, Any], first: bool) -> None:
        from torch.distributed.checkpoint.state_dict import set_state_dict

        set_state_dict(self.model, self.optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
        self.counts.copy_(state["counts"]) if first else self.counts.zero_()
