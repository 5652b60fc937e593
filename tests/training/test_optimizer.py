"""Learning rates by step, and which parameters decay."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from slmctl.config.training import TrainingConfig
from slmctl.training.optim import build_optimizer, lr_at

PEAK = 0.25


def rates(steps=100, **settings):
    config = TrainingConfig(steps=steps, lr=PEAK, **settings)
    return [lr_at(s, steps, config) for s in range(1, steps + 1)]


def falling(values):
    return all(a >= b for a, b in pairwise(values))


@pytest.mark.parametrize("schedule", ["cosine", "linear", "wsd", "constant"])
@pytest.mark.parametrize(("warmup", "last"), [(0.1, 10), (25, 25), (0.0, 0)])
def test_warm_up_rises_evenly_to_the_peak_then_nothing_rises(schedule, warmup, last):
    found = rates(schedule=schedule, warmup=warmup, min_lr_ratio=0.1)
    assert found[:last] == pytest.approx([PEAK * s / last for s in range(1, last + 1)] if last else [])
    assert max(found) <= PEAK
    assert all(r > 0 for r in found)
    assert falling(found[max(0, last - 1) :])


@pytest.mark.parametrize("low", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("schedule", ["cosine", "linear", "wsd"])
def test_the_last_step_is_at_the_minimum(schedule, low):
    assert rates(schedule=schedule, min_lr_ratio=low)[-1] == pytest.approx(PEAK * low, abs=1e-15)


def test_constant_stays_at_the_peak():
    assert rates(schedule="constant", warmup=5)[4:] == [PEAK] * 96


def test_cosine_and_linear_follow_their_curves():
    cosine = rates(schedule="cosine", warmup=20, min_lr_ratio=0.2)
    linear = rates(schedule="linear", warmup=20, min_lr_ratio=0.2)
    for step in range(21, 101):
        x = (step - 20) / 80
        assert cosine[step - 1] == pytest.approx(PEAK * (0.2 + 0.8 * (math.cos(math.pi * x) + 1) / 2))
        assert linear[step - 1] == pytest.approx(PEAK * (1.0 - 0.8 * x))


def test_wsd_is_stable_until_its_decay_begins():
    found = rates(schedule="wsd", warmup=10, wsd_decay=0.3, min_lr_ratio=0.0)
    assert found[9:70] == [PEAK] * 61
    assert found[70:] == pytest.approx([PEAK * (100 - s) / 30 for s in range(71, 101)])


@pytest.mark.parametrize("schedule", ["cosine", "linear", "wsd", "constant"])
@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("warmup", [0.0, 0.5, 1, 10])
def test_the_shortest_runs_have_finite_rates(schedule, steps, warmup):
    assert all(math.isfinite(r) and 0 <= r <= PEAK for r in rates(steps, schedule=schedule, warmup=warmup))


@pytest.mark.parametrize("tied", [True, False])
def test_matrices_decay_and_vectors_do_not(tied, make_llama):
    split = make_llama(tied, torch.float32)
    optimizer = build_optimizer(split, TrainingConfig(steps=1, lr=0.5, weight_decay=0.1, betas=(0.8, 0.9), eps=1e-6))
    decay = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    assert len(decay) == sum(len(g["params"]) for g in optimizer.param_groups), "a tied weight is in the optimizer twice"
    assert decay == {id(p): 0.1 if p.ndim >= 2 else 0.0 for p in split.parameters()}
    assert {0.0, 0.1} == set(decay.values())
    assert all((g["lr"], g["betas"], g["eps"]) == (0.5, (0.8, 0.9), 1e-6) for g in optimizer.param_groups)


def test_a_frozen_parameter_is_left_out(make_llama):
    split = make_llama(True, torch.float32)
    split.model.model.embed_tokens.weight.requires_grad_(False)
    optimizer = build_optimizer(split, TrainingConfig(steps=1))
    assert id(split.model.model.embed_tokens.weight) not in {id(p) for g in optimizer.param_groups for p in g["params"]}


def test_one_step_is_adamw_with_decoupled_decay(make_llama):
    split = make_llama(True, torch.float32)
    optimizer = build_optimizer(split, TrainingConfig(steps=1, lr=0.01, weight_decay=0.1, betas=(0.9, 0.95), eps=1e-8))
    before = {n: p.detach().clone().double() for n, p in split.named_parameters()}
    for i, p in enumerate(split.parameters()):
        p.grad = torch.full_like(p, 0.5 if i % 2 else -2.0)
    optimizer.step()
    for i, (n, p) in enumerate(split.named_parameters()):
        sign = 1 if i % 2 else -1  # Adam's first step is the gradient's sign
        wanted = before[n] * (1 - 0.01 * (0.1 if p.ndim >= 2 else 0.0)) - 0.01 * sign
        assert float((p.detach().double() - wanted).abs().max()) < 1e-6
