"""One optimizer step: forward and backward over its micro-batches, one wait for its figures, and the step, if it may be taken."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from slmctl.config.training import TrainingConfig
from slmctl.selection.select import selected_count
from slmctl.store.order import mix_seed
from slmctl.training.alignment import SHIFTS
from slmctl.training.batches import Batcher, StepBatch
from slmctl.training.optim import lr_at
from slmctl.training.parallel import sync_copies
from slmctl.training.ranks import SIGNALS
from slmctl.training.safety import StepGuard
from slmctl.training.selective import MicroResult, Objective
from slmctl.training.step_metrics import StepMetricsCollector

BLIND_STEPS = 3
"""First steps in which selection is compared with what random selection would have taken."""
THRESHOLD_MEMORY = 0.9
"""How much of the running quantile of `scope: threshold` a step keeps."""


@dataclass
class StepResult:
    """What became of a step, over all ranks. Losses are nats."""

    tokens: int
    selected: int
    loss: float
    grad_norm: float
    lr: float
    refused: str | None
    """`nonfinite` or `spike` where the step was not taken."""
    signum: int | None
    """The signal that any rank has received."""
    metrics: dict[str, Any]
    shifted: dict[int, float] | None

    def figures(self) -> str:
        """Those by which a step is refused, in words."""
        figures = f"loss {self.loss:.4g}, gradient norm {self.grad_norm:.4g}"
        mean = self.metrics["live_mean"]
        return figures if mean is None else f"{figures}, mean live loss {mean:.4g}"


class StepMaker:
    """Makes steps of one run."""

    def __init__(
        self,
        name: str,
        objective: Objective,
        optimizer: torch.optim.Optimizer,
        batcher: Batcher,
        settings: TrainingConfig,
        steps: int,
        seed: int,
        guard: StepGuard,
    ) -> None:
        self.name, self.objective, self.optimizer, self.batcher = name, objective, optimizer, batcher
        self.settings, self.steps, self.seed, self.guard = settings, steps, seed, guard
        self.ranks, self.selection = objective.ranks, objective.selection
        self.shifts: tuple[int, ...] = SHIFTS
        """At which live and reference losses are correlated."""
        self.params = [p for group in optimizer.param_groups for p in group["params"]]

    def make(self, step: int, batch: StepBatch, counts: Tensor, signum: int | None = None) -> StepResult:
        """`counts` [2, V] take in which tokens were seen and selected. `signum` is a signal that this rank has received."""
        micro_valid = self.batcher.micro_valid(batch)
        told = [batch.tokens, batch.selected, *[int(signum == s) for s in SIGNALS], *micro_valid]
        tokens, selected, *rest = self.ranks.sum(told)
        stop = next((int(s) for s, n in zip(SIGNALS, rest, strict=False) if n), None)
        counts_of_all, divisor = None, max(1, selected)
        if self.selection.scope == "global":
            counts_of_all = [selected_count(v, batch.ratio) for v in rest[len(SIGNALS) :]]
            divisor = max(1, sum(counts_of_all))
        selection = self.selection
        blind = not selection.entry.control and step <= BLIND_STEPS
        figures = StepMetricsCollector(
            selection.needs_live or selection.is_weighted or selection.criterion == "all", self.shifts, blind
        )
        torch.manual_seed(mix_seed("step", self.seed, step, self.ranks.rank))  # whatever draws besides dropout
        selected_before = counts[1].clone()
        self.forward_backward(step, batch, counts_of_all, divisor, figures, counts)
        grads = [p.grad for p in self.params if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(grads)
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        found, grad_norm = figures.fetch(self.ranks, norm)
        scale = 1.0
        if self.selection.is_weighted:
            scale = divisor / found.weight if found.weight > 0 else 1.0
        elif self.selection.scope != "global" and not self.selection.has_known_count:  # how many are selected is known only now
            scale = divisor / max(1, found.selected)
        grad_norm *= scale
        refused = self.guard.refuses(found.loss, found.finite, grad_norm)
        lr = lr_at(step, self.steps, self.settings)
        if refused is None:
            scale *= min(1.0, (self.settings.grad_clip or math.inf) / (grad_norm + 1e-6))
            if scale != 1.0:
                torch._foreach_mul_(grads, scale)
            for group in self.optimizer.param_groups:
                group["lr"] = lr
            self.optimizer.step()
            self._follow(found.threshold)
        else:
            counts[1].copy_(selected_before)  # nothing was trained on
        self.optimizer.zero_grad(set_to_none=True)
        self.guard.note(found.loss if found.selected else None, refused)
        metrics = {"ratio": batch.ratio, **found.metrics}
        return StepResult(tokens, found.selected, found.loss, grad_norm, lr, refused, stop, metrics, found.shifted)

    def forward_backward(
        self,
        step: int,
        batch: StepBatch,
        counts_of_all: list[int] | None,
        divisor: float,
        figures: StepMetricsCollector,
        counts: Tensor,
    ) -> None:
        """Sums gradients of (sum of selected losses) / divisor over the step's micro-batches, and over ranks."""
        model = self.objective.model
        model.train()
        last = len(self.batcher.micro_valid(batch)) - 1
        for i, micro in enumerate(self.batcher.micro_batches(step, batch, counts_of_all)):
            sync_copies(model, i == last)
            with self.precision():
                result: MicroResult = self.objective(micro, divisor / self.ranks.size)  # since ranks' gradients are averaged
            result.loss.backward()  # type: ignore[no-untyped-call]
            figures.add(micro, result)
            ids_N = micro.ids_BT.flatten()
            counts[0].scatter_add_(0, ids_N, micro.target_BT.flatten().long())
            counts[1].scatter_add_(0, ids_N, result.selected_BT.flatten().long())

    def precision(self) -> Any:
        """The arithmetic of a forward pass."""
        if self.settings.precision == "bf16_autocast":
            return torch.autocast(self.batcher.device, torch.bfloat16)
        return contextlib.nullcontext()

    def _follow(self, threshold: float) -> None:
        """Moves the running quantile towards this step's."""
        if self.selection.scope == "threshold" and math.isfinite(threshold):
            before = self.objective.threshold
            self.objective.threshold = (
                threshold if before is None else THRESHOLD_MEMORY * before + (1 - THRESHOLD_MEMORY) * threshold
            )
