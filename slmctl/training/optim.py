"""AdamW and the learning-rate schedules: the rate at a step is a pure function of the step."""

from __future__ import annotations

import math

import torch
from torch import nn

from slmctl.config.training import TrainingConfig


def build_optimizer(model: nn.Module, settings: TrainingConfig) -> torch.optim.AdamW:
    """AdamW with decoupled weight decay on matrices, none on vectors (norms, biases)."""
    params = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in params if p.ndim >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in params if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(
        [g for g in groups if g["params"]],
        lr=settings.lr,
        betas=(settings.betas[0], settings.betas[1]),
        eps=settings.eps,
        fused=True,
    )
    for p in params:  # made now: what is saved before the first step would else count as one
        zero = torch.zeros((), dtype=torch.float32, device=p.device)
        optimizer.state[p] = {"step": zero, "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
    return optimizer


def warmup_steps(settings: TrainingConfig, steps: int) -> int:
    return int(settings.warmup) if settings.warmup >= 1 else round(settings.warmup * steps)


def lr_at(step: int, steps: int, settings: TrainingConfig) -> float:
    """Learning rate of step `step` (from 1) of `steps`.

    Linear warm-up reaches the peak at its last step; the end of the schedule is `min_lr_ratio` of the peak.
    """
    warmup = warmup_steps(settings, steps)
    if step <= warmup:
        return settings.lr * step / warmup
    low = settings.min_lr_ratio
    done = (step - warmup) / max(1, steps - warmup)
    if settings.schedule == "cosine":
        share = low + (1 - low) * 0.5 * (1 + math.cos(math.pi * done))
    elif settings.schedule == "linear":
        share = low + (1 - low) * (1 - done)
    elif settings.schedule == "wsd":
        decay = max(1, min(round(settings.wsd_decay * steps), steps - warmup))  # both may round up
        share = low + (1 - low) * min(1.0, (steps - step) / decay)
    else:
        share = 1.0
    return settings.lr * share
