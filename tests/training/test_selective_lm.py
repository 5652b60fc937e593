"""The selective objective of whole steps, against plain Python over whole logits."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from slmctl.config import SelectionConfig
from slmctl.training.batches import Batcher
from slmctl.training.selective import SelectiveLM

B, T, V = 8, 12, 61
CRITERIA = ["excess_loss", "all", "random"]


@pytest.fixture
def source(list_source):
    rng = np.random.default_rng(0)
    ids = rng.integers(0, V, (B, T))
    document = np.sort(rng.integers(0, 3, (B, T)), axis=1)
    document[1, 7:] = -1  # some padding
    document[4:6] = -1  # a group of nothing but padding
    document[6, 1:] = -1  # a row with one token, which nothing predicts
    ref = rng.gamma(2.0, 2.0, (B, T)).astype(np.float32)
    ref[document < 0] = -1.0  # the sentinel
    ref[:, 0] = -1.0
    return list_source(ids, document, ref)


def run_step(split, source, criterion, micro_rows=8, step=1, group_rows=2, ratio=0.6, divisor=None, seed=0):
    """All micro-batches of a step. Returns loss, gradients, live [B, T], selected [B, T], thresholds [G]."""
    selection = SelectionConfig(criterion=criterion, ratio=ratio, group_rows=group_rows)
    batcher = Batcher(source, B, micro_rows, selection, False, seed, "cpu")
    module = SelectiveLM(split, selection)
    batch = batcher.step(step)
    results = []
    for micro in batcher.micro_batches(step, batch):
        result = module(micro, divisor or batch.selected)
        result.loss.backward()
        results.append(result)
    gradients = {n: p.grad.clone() for n, p in split.named_parameters()}
    split.zero_grad(set_to_none=True)
    live, selected, threshold = (torch.cat([getattr(r, k) for r in results]) for k in ("live_BT", "selected_BT", "threshold_G"))
    return sum(float(r.loss.detach()) for r in results), gradients, live.numpy(), selected.numpy(), threshold.numpy(), batch


def full_losses(split, ids_BT):
    """loss[b][t] of token t from whole logits, with gradient. [B, T], nothing at t = 0."""
    logits = split.model(input_ids=torch.from_numpy(ids_BT), use_cache=False).logits
    log_p = torch.log_softmax(logits, dim=-1)
    return [[None] + [-log_p[b, t - 1, int(ids_BT[b, t])] for t in range(1, T)] for b in range(len(ids_BT))]


def plain_selection(losses, document, ref, criterion, ratio, group_rows):
    """The positions selected, group by group, by sorting Python numbers."""
    chosen = set()
    for first in range(0, len(document), group_rows):
        valid = [(b, t) for b in range(first, first + group_rows) for t in range(1, T) if document[b, t] >= 0]
        if criterion == "all":
            chosen |= set(valid)
            continue
        k = math.ceil(Fraction(str(ratio)) * len(valid))
        ranked = sorted(valid, key=lambda at: losses[at[0]][at[1]].item() - float(ref[at]), reverse=True)
        chosen |= set(ranked[:k])
    return chosen


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("group_rows", [1, 2, 4, 8])
@pytest.mark.parametrize("criterion", ["excess_loss", "all"])
def test_loss_mask_live_losses_and_gradients_equal_plain_python(criterion, group_rows, tied, source, make_llama):
    split = make_llama(tied)
    loss, gradients, live, selected, threshold, batch = run_step(split, source, criterion, group_rows=group_rows)
    ids, document, ref = source.arrays
    plain = full_losses(split, ids)
    chosen = plain_selection(plain, document, ref, criterion, 0.6, group_rows)
    assert {(int(b), int(t)) for b, t in zip(*selected.nonzero(), strict=True)} == chosen
    assert batch.selected == len(chosen)
    for b in range(B):
        for t in range(T):
            if t > 0 and document[b, t] >= 0:
                assert live[b, t] == pytest.approx(plain[b][t].item(), rel=1e-6)
            else:
                assert np.isnan(live[b, t])
                assert not selected[b, t]
    wanted = sum(plain[b][t] for b, t in chosen) / len(chosen)
    assert loss == pytest.approx(float(wanted.detach()), abs=1e-12)
    wanted.backward()
    for name, p in split.named_parameters():
        assert float((gradients[name] - p.grad).abs().max()) < 1e-12, name
    for group in range(B // group_rows):
        excess = [live[b, t] - ref[b, t] for b, t in chosen if b // group_rows == group]
        if criterion == "excess_loss" and excess:
            assert threshold[group] == pytest.approx(min(excess), abs=1e-6)
        else:
            assert np.isnan(threshold[group])


def test_random_selects_exactly_its_share_anew_each_step_and_the_same_when_repeated(source, make_llama):
    split = make_llama()
    ids, document, _ = source.arrays
    masks = []
    for step, seed in [(1, 0), (1, 0), (2, 0), (1, 9)]:
        loss, _, _, selected, _, batch = run_step(split, source, "random", step=step, seed=seed)
        for group in range(4):
            rows = slice(2 * group, 2 * group + 2)
            valid = (document[rows, 1:] >= 0).sum()
            assert selected[rows].sum() == batch.counts_G[group] == math.ceil(Fraction(3, 5) * int(valid))
        assert not selected[document < 0].any()
        assert not selected[:, 0].any()
        plain = full_losses(split, ids)
        wanted = [plain[b][t].item() for b, t in zip(*selected.nonzero(), strict=True)]
        assert loss == pytest.approx(sum(wanted) / len(wanted), abs=1e-12)
        masks.append(selected.tobytes())
    assert masks[0] == masks[1]
    assert len(set(masks)) == 3


def test_random_draws_nothing_from_the_global_generator(source, make_llama):
    before = torch.get_rng_state()
    split = make_llama()
    torch.set_rng_state(before)
    run_step(split, source, "random")
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("micro_rows", [1, 2, 3, 4, 6])
def test_micro_batches_change_neither_selection_nor_gradient(micro_rows, criterion, source, make_llama):
    split = make_llama()
    loss, gradients, live, selected, threshold, _ = run_step(split, source, criterion, micro_rows=8)
    other = run_step(split, source, criterion, micro_rows=micro_rows)
    assert other[0] == pytest.approx(loss, abs=1e-12)
    assert all(float((gradients[n] - other[1][n]).abs().max()) < 1e-12 for n in gradients)
    assert (other[3] == selected).all()
    np.testing.assert_allclose(other[2], live, rtol=1e-6)
    np.testing.assert_allclose(other[4], threshold, rtol=1e-5)


def test_the_divisor_is_the_whole_step_not_the_micro_batch(source, make_llama):
    """Groups select different numbers of tokens, so means of means would differ from the step's mean."""
    split = make_llama()
    loss, _, live, selected, _, batch = run_step(split, source, "excess_loss", micro_rows=2)
    means = [live[2 * g : 2 * g + 2][selected[2 * g : 2 * g + 2]].mean() for g in range(4) if batch.counts_G[g]]
    assert loss == pytest.approx(float(live[selected].astype(np.float64).mean()), rel=1e-6)
    assert abs(loss - float(np.mean(means))) > 1e-3


def test_a_step_of_nothing_but_padding_gives_zero_and_finite_gradients(list_source, make_llama):
    document = np.full((B, T), -1)
    source = list_source(np.ones_like(document), document, np.full((B, T), -1.0, np.float32))
    for criterion in CRITERIA:
        loss, gradients, live, selected, threshold, batch = run_step(make_llama(), source, criterion, divisor=1)
        assert batch.selected == 0
        assert loss == 0.0
        assert np.isnan(live).all()
        assert np.isnan(threshold).all()
        assert not selected.any()
        assert all(float(g.abs().max()) == 0.0 for g in gradients.values())


def test_reference_losses_steer_the_selection(source, make_llama):
    """A token that the reference finds impossible is never worth training on; lower its loss and it is."""
    split = make_llama()
    ids, document, ref = source.arrays
    _, _, _, selected, _, _ = run_step(split, source, "excess_loss")
    left_out = next((b, t) for b in range(B) for t in range(1, T) if document[b, t] >= 0 and not selected[b, t])
    changed = ref.copy()
    changed[left_out] = -100.0
    _, _, _, now, _, _ = run_step(split, type(source)(ids, document, changed), "excess_loss")
    assert now[left_out]
