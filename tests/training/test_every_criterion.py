"""Each criterion, and each kind of weight, in a whole step: loss and gradient beside whole logits in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from slmctl.config.selection import SelectionConfig
from slmctl.selection.criterion import Columns
from slmctl.selection.masks import mask_of, score_of
from slmctl.selection.select import selected_count
from slmctl.selection.table import CRITERIA
from slmctl.selection.weights import sigmoid_weights, softmax_weights
from slmctl.store.order import mix_seed
from slmctl.training.batches import Batcher
from slmctl.training.selective import Objective

B, T, V, GROUP = 8, 12, 61, 2
TWO = [{"criterion": "ref_loss", "ratio": 0.7}, {"criterion": "ref_entropy", "ratio": 0.5, "weight": -0.5}]
LIVE = [{"criterion": "excess_loss", "ratio": 0.7}, {"criterion": "own_loss", "ratio": 0.5}]
KINDS = {
    **{name: {"criterion": name} for name in ("all", "random", "excess_loss", "own_loss", "ref_loss", "ref_entropy")},
    **{name: {"criterion": name} for name in ("middle", "position", "frequency", "threshold")},
    "threshold of entropy": {"criterion": "threshold", "options": {"on": "entropy"}},
    "threshold in nats": {"criterion": "threshold", "options": {"at": 4.0}},
    "intersection": {"criterion": "intersection", "parts": TWO},
    "union": {"criterion": "union", "parts": TWO},
    "union of live ones": {"criterion": "union", "parts": LIVE},
    "blend": {"criterion": "blend", "parts": TWO},
    "blend of live ones": {"criterion": "blend", "parts": [*LIVE, {"criterion": "position"}]},
    "excess_of_several": {"criterion": "excess_of_several", "sets": {"a": "one", "b": "two"}},
    "base_minus_ref": {"criterion": "base_minus_ref", "sets": {"base": "two"}},
    "learnability": {"criterion": "learnability", "sets": {"early": "two", "late": "one"}},
    "contrast": {"criterion": "contrast", "sets": {"anti": "two", "good": "one"}},
}
WEIGHTED = {
    "sigmoid": {"criterion": "excess_loss", "weighting": {"soft": "sigmoid", "temperature": 0.7}},
    "softmax": {"criterion": "excess_loss", "weighting": {"soft": "softmax", "temperature": 2.0}},
    "softmax of stored ones": {"criterion": "ref_loss", "weighting": {"soft": "softmax", "temperature": 2.0}},
    "score": {"criterion": "position", "weighting": {"soft": "score"}},
    "general term": {"criterion": "excess_loss", "unselected_weight": 0.3},
    "general term of stored ones": {"criterion": "ref_loss", "unselected_weight": 0.3},
    "general term of random ones": {"criterion": "random", "unselected_weight": 0.3},
    "both": {"criterion": "own_loss", "weighting": {"soft": "sigmoid", "temperature": 0.7}, "unselected_weight": 0.2},
}


@pytest.fixture
def world():
    """Ids, documents and stored columns by set and column: with padding, a group of nothing but padding, a row of one token."""
    rng = np.random.default_rng(0)
    ids, document = rng.integers(0, V, (B, T)), np.sort(rng.integers(0, 3, (B, T)), axis=1)
    document[1, 7:] = document[4:6] = document[6, 1:] = -1
    keys = [("one", "ref_loss"), ("two", "ref_loss"), ("one", "ref_entropy")]
    stored = {key: rng.gamma(2.0, 2.0, (B, T)).astype(np.float32) for key in keys}
    return ids, document, stored


def selection_of(kind, ratio=0.6):
    return SelectionConfig(**{"ratio": ratio, "group_rows": GROUP, "reference": "one", **kind})


ODDS = torch.linspace(-2, 3, V)


def step_of(split, world, list_source, selection, micro_rows=8, seed=0):
    """Loss over the divisor that the step turns out to have, gradients and what was selected [B, T]."""
    ids, document, stored = world
    joined = {key: stored[key] for key in selection.joined}
    source = list_source(ids, document, stored[selection.watched, "ref_loss"], joined)
    odds = ODDS if "log_odds" in selection.features else None
    batcher = Batcher(source, B, micro_rows, selection, False, seed, "cpu", log_odds_V=odds)
    objective = Objective(split, selection, log_odds_V=odds)
    batch, divisor = batcher.step(1), 1.0
    for _ in range(2):  # what it turns out to have is known after the first
        split.zero_grad(set_to_none=True)
        results = []
        for micro in batcher.micro_batches(1, batch):
            results.append(objective(micro, divisor))
            results[-1].loss.backward()
        weights = [r.weights_BT if r.weights_BT is not None else r.selected_BT.double() for r in results]
        divisor = float(sum(w.double().sum() for w in weights))
    gradients = {n: p.grad for n, p in split.named_parameters()}
    split.zero_grad(set_to_none=True)
    loss = sum(float(r.loss.detach()) for r in results)
    return loss, gradients, torch.cat([r.selected_BT for r in results]).numpy(), torch.cat(weights).numpy(), batch


def plain(split, world, selection, seed=0):
    """Losses with gradient [B, T] and weights [B, T], group by group from whole logits."""
    ids, document, stored = world
    logits = split.model(input_ids=torch.from_numpy(ids), use_cache=False).logits.roll(1, 1)
    log_p = torch.log_softmax(logits, dim=-1)
    loss_BT = -log_p.gather(2, torch.from_numpy(ids)[:, :, None])[:, :, 0]
    entropy_BT = -(log_p.exp() * log_p).sum(dim=2)
    valid_BT = torch.from_numpy(document >= 0)
    valid_BT[:, 0] = False
    place = np.array([[t - int(np.flatnonzero(row == row[t])[0]) for t in range(T)] for row in document])
    weights_BT = np.zeros((B, T))
    for g, first in enumerate(range(0, B, GROUP)):
        part = slice(first, first + GROUP)

        def group(values, part=part):
            return values[part].reshape(1, -1)

        valid = group(valid_BT)
        columns = Columns(
            valid,
            [mix_seed("selection", seed, 1, g)],
            group(loss_BT.detach().float()),
            group(entropy_BT.detach().float()),
            {key: group(torch.from_numpy(v)) for key, v in stored.items()},
            group(torch.from_numpy(place)),
            group(ODDS[torch.from_numpy(ids)]),
        )
        choice, count = selection.choice(), torch.tensor([selected_count(int(valid.sum()), selection.ratio)])
        weighting = selection.weighting
        if weighting is None:
            found = mask_of(columns, choice, count).double()
        elif weighting.soft == "score":
            found = score_of(columns, choice).clamp(min=0).double() * valid
        else:
            soft = {"sigmoid": sigmoid_weights, "softmax": softmax_weights}[weighting.soft]
            found = soft(score_of(columns, choice), valid, count, weighting.temperature).double()
        found = torch.where(valid, found + (selection.unselected_weight or 0.0) * (1 - found), 0.0)
        weights_BT[part] = found.reshape(GROUP, T).numpy()
    return loss_BT, weights_BT


def test_every_criterion_is_tried_here():
    assert {kind["criterion"] for kind in KINDS.values()} == set(CRITERIA)


@pytest.mark.parametrize("micro_rows", [2, 8])
@pytest.mark.parametrize("name", [*KINDS, *WEIGHTED])
def test_loss_and_gradient_are_those_of_whole_logits(name, micro_rows, world, list_source, make_llama):
    split, selection = make_llama(), selection_of({**KINDS, **WEIGHTED}[name])
    loss, gradients, selected, weights, batch = step_of(split, world, list_source, selection, micro_rows)
    loss_BT, wanted_BT = plain(split, world, selection)
    np.testing.assert_allclose(weights, wanted_BT, atol=1e-6)
    if selection.has_known_count:
        assert batch.selected == int(selected.sum()), "Eq. 4's divisor, known before the forward pass"
    exact = torch.from_numpy(weights.astype(np.float64))
    wanted = (loss_BT * exact).sum() / exact.sum()
    assert loss == pytest.approx(float(wanted.detach()), abs=1e-9)
    wanted.backward()
    tolerance = 1e-11 if micro_rows == B else 1e-7  # transformers' norms are float32: other rows at once round otherwise
    for n, p in split.named_parameters():
        assert float((gradients[n] - p.grad).abs().max()) < tolerance, n


@pytest.mark.parametrize("name", KINDS)
def test_a_ratio_of_1_trains_as_all_tokens_do_bit_for_bit(name, world, list_source, make_llama):
    if name == "threshold in nats":
        pytest.skip("a fixed threshold has no ratio")
    kind = dict(KINDS[name])
    if "parts" in kind:
        kind["parts"] = [{**p, "ratio": 1.0} for p in kind["parts"]]
    split = make_llama(dtype=torch.float32)
    found = step_of(split, world, list_source, selection_of(kind, 1.0))
    every = step_of(split, world, list_source, selection_of({"criterion": "all"}))
    assert found[0] == every[0]
    assert all(torch.equal(found[1][n], every[1][n]) for n in every[1])


@pytest.mark.parametrize("soft", ["sigmoid", "softmax"])
def test_soft_weights_of_no_temperature_train_as_the_mask_does(soft, world, list_source, make_llama):
    split = make_llama()
    hard = step_of(split, world, list_source, selection_of({"criterion": "excess_loss"}))
    weighting = {"soft": soft, "temperature": 1e-9}
    found = step_of(split, world, list_source, selection_of({"criterion": "excess_loss", "weighting": weighting}))
    np.testing.assert_array_equal(found[3], hard[2].astype(np.float32))
    assert found[0] == pytest.approx(hard[0], abs=1e-12)
    for n, g in hard[1].items():
        assert float((found[1][n] - g).abs().max()) < 1e-12


@pytest.mark.parametrize("name", ["ref_loss", "random", "intersection", "base_minus_ref", "frequency", "blend"])
def test_what_needs_no_live_loss_computes_none(name, world, list_source, make_llama, monkeypatch):
    split, selection = make_llama(), selection_of(KINDS[name])
    made, logits = [], split.logits
    monkeypatch.setattr(split, "logits", lambda hidden, *rest: made.append(len(hidden)) or logits(hidden, *rest))
    *_, selected, _, _ = step_of(split, world, list_source, selection)
    assert sum(made) == 2 * int(selected.sum()), "in two runs, the head runs for selected tokens only"


def test_a_scheduled_ratio_is_the_steps_own(world, list_source):
    ids, document, stored = world
    selection = selection_of({"schedule": {"start": 1.0, "warmup": 0.2}}, 0.5)
    source = list_source(ids, document, stored["one", "ref_loss"])
    batcher = Batcher(source, B, 8, selection, False, 0, "cpu", steps=10)
    ratios = [batcher.step(step).ratio for step in range(1, 12)]
    assert ratios == [1.0, 1.0, 1.0, 0.9375, 0.875, 0.8125, 0.75, 0.6875, 0.625, 0.5625, 0.5]
    for step in (1, 5, 9):
        batch = batcher.step(step)
        assert batch.counts_G.tolist() == [selected_count(int(v), batch.ratio) for v in batch.valid_G]
