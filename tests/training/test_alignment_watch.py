"""What the watch makes of live and reference losses that belong together, are shifted, or are strangers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import transformers as tf

from slmctl.comparison.token_losses import token_losses_of
from slmctl.config.selection import SelectionConfig
from slmctl.model.split import SplitModel
from slmctl.store.reader import RowReader, ScoreSet
from slmctl.training.alignment import SHIFTS, AlignmentWatch
from slmctl.training.batches import Batcher
from slmctl.training.ranks import Ranks
from slmctl.training.selective import MicroResult
from slmctl.training.step_metrics import StepMetricsCollector


def losses(noise=0.3, b=8, t=64, seed=0):
    """Live and reference losses that share what makes a token hard, and a target mask with padding."""
    rng = np.random.default_rng(seed)
    hardness = rng.gamma(1.0, 2.0, (b, t))
    live, ref = (hardness + noise * rng.normal(size=(b, t)) for _ in range(2))
    target = np.ones((b, t), dtype=bool)
    target[:, 0] = False
    target[-1, t // 2 :] = False
    live[~target] = np.nan
    ref[~target] = -1.0
    return live.astype(np.float32), ref.astype(np.float32), target


@pytest.fixture
def correlations(list_source):
    """correlations(live, ref, target): what a step's figures say of them, by shift."""

    def shifted(live, ref, target):
        document = np.where(target, 0, -1)
        document[:, 0] = 0
        source = list_source(np.ones_like(document), document, ref)
        batcher = Batcher(source, len(live), len(live), SelectionConfig(group_rows=1), False, 0, "cpu")
        [micro] = batcher.micro_batches(1, batcher.step(1))
        assert (micro.target_BT.numpy() == target).all()
        nothing = torch.zeros(live.shape, dtype=torch.bool)
        figures = StepMetricsCollector(all_known=True)
        figures.add(micro, MicroResult(torch.zeros(()), torch.from_numpy(live), nothing, torch.zeros(len(live))))
        return figures.fetch(Ranks(), torch.zeros(()))[0].shifted

    return shifted


def judged(*found):
    watch = AlignmentWatch(steps=len(found))
    verdicts = [watch.add(f, 10_000) for f in found]
    assert verdicts[:-1] == [None] * (len(found) - 1)
    return verdicts[-1]


def test_correlations_equal_numpy_over_pairs_of_targets(correlations):
    live, ref, target = losses()
    found = correlations(live, ref, target)
    assert set(found) == set(SHIFTS)
    for shift in SHIFTS:
        pairs = [
            (live[b, t], ref[b, t + shift])
            for b in range(live.shape[0])
            for t in range(live.shape[1])
            if 0 <= t + shift < live.shape[1] and target[b, t] and target[b, t + shift]
        ]
        assert found[shift] == pytest.approx(np.corrcoef(np.array(pairs, dtype=np.float64).T)[0, 1], abs=1e-12)


@pytest.mark.parametrize("value", [1.0, 0.1, 10.3972])
@pytest.mark.parametrize(("shape", "constant"), [((1, 2), False), ((2, 1), False), ((4, 8), True), ((64, 1024), True)])
def test_too_little_to_correlate_is_nan_not_a_crash(shape, constant, value, correlations):
    live = np.full(shape, value, np.float32) if constant else np.arange(math.prod(shape), dtype=np.float32).reshape(shape)
    target = np.ones(shape, dtype=bool)
    target[:, 0] = False
    ref = np.random.default_rng(0).gamma(1.0, 2.0, shape).astype(np.float32)
    for one, other in ((live, live), (live, ref), (ref, live)) if constant else ((live, live),):
        found = correlations(one, other, target)
        assert all(math.isnan(found[s]) for s in (SHIFTS if constant else [2]))
        assert judged(found) in {"low", "ok"}


def test_aligned_losses_are_ok(correlations):
    assert judged(*(correlations(*losses(seed=s)) for s in range(3))) == "ok"


@pytest.mark.parametrize("shift", [-2, -1, 1, 2])
def test_losses_shifted_by_a_token_or_two_are_misaligned(shift, correlations):
    found = []
    for seed in range(3):
        live, ref, target = losses(seed=seed)
        found.append(correlations(live, np.roll(ref, shift, axis=1), target))
    assert judged(*found) == "misaligned"


def test_losses_of_other_tokens_are_low(correlations):
    found = []
    for seed in range(3):
        live, _, target = losses(seed=seed)
        found.append(correlations(live, losses(seed=seed + 50)[1], target))
    assert judged(*found) == "low"


def test_the_verdict_comes_once_at_the_last_watched_step():
    watch = AlignmentWatch(steps=2)
    good = {s: 0.9 if s == 0 else 0.0 for s in SHIFTS}
    done = [watch.done]
    verdicts = []
    for _ in range(5):
        verdicts.append(watch.add(good, 10_000))
        done.append(watch.done)
    assert verdicts == [None, "ok", None, None, None]
    assert done == [False, False, True, True, True, True]


def test_a_step_without_a_correlation_does_not_pass_for_aligned():
    nan = dict.fromkeys(SHIFTS, math.nan)
    assert judged({s: 0.9 if s == 1 else 0.0 for s in SHIFTS}, nan) != "ok"


def by_shift(at, value, zero, rest=0.0):
    return {s: value if s == at else zero if s == 0 else rest for s in SHIFTS}


@pytest.mark.parametrize("at", [-2, -1, 1, 2])
def test_it_takes_a_sizeable_correlation_at_another_shift(at):
    """What small models of random weights show at another shift than 0 goes up to 0.37; a join that is off shows 0.8."""
    assert judged(by_shift(at, 0.37, -0.1)) == "low"
    assert judged(by_shift(at, 0.8, 0.1)) == "misaligned"
    assert judged(by_shift(at, 0.55, 0.5)) == "ok", "that much more may be chance"
    assert judged(by_shift(at, 0.8, math.nan)) == "misaligned"


@pytest.mark.parametrize("seed", range(12))
def test_a_model_that_has_learnt_nothing_stops_no_run(seed, correlations):
    """Its losses are a number for each token, whatever stands before it; the text repeats itself, so that tokens two apart go
    together; a reference that has learnt the text. The same reference shifted under a live model that has learnt is caught."""
    rng = np.random.default_rng(seed)
    ids = (np.cumsum(rng.integers(1, 3, (8, 64)), axis=1) + rng.integers(0, 12, (8, 1))) % 12
    target = np.ones(ids.shape, dtype=bool)
    target[:, 0] = False
    random_weights = (2.5 + 0.1 * rng.normal(size=12))[ids].astype(np.float32)
    hard = rng.gamma(1.0, 1.0, 12)[ids] + rng.gamma(1.0, 0.5, ids.shape)
    ref, learnt = ((hard + 0.2 * rng.normal(size=ids.shape)).astype(np.float32) for _ in range(2))
    for losses_BT in (random_weights, learnt, ref):
        losses_BT[~target] = np.nan if losses_BT is not ref else -1.0
    assert judged(correlations(random_weights, ref, target)) in ("low", "ok")
    assert judged(correlations(learnt, ref, target)) == "ok"
    assert judged(correlations(learnt, np.roll(ref, 1, axis=1), target)) == "misaligned"


def test_no_real_model_of_random_weights_is_taken_for_misaligned(pipeline):
    """Eight models against the scores of a reference that has learnt; by where it is highest alone, some would be stopped."""
    workspace = pipeline()
    corpus = workspace.open_tokens("corpus")
    reader = RowReader(corpus, ScoreSet(workspace.scores("curated"), corpus, {"intra_document_mask": False}))
    rows = np.arange(min(48, corpus.rows))
    found = reader.fetch(rows)
    elsewhere_highest = 0
    for seed in range(8):
        torch.manual_seed(seed)
        shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
        model = tf.LlamaForCausalLM(tf.LlamaConfig(vocab_size=len(workspace.tokenizer().hf), **shape))
        live = token_losses_of(SplitModel(model, False).eval(), reader, rows, "cpu", 16)
        known = np.isfinite(live)
        by_shift = {}
        for s in SHIFTS:
            a, b = slice(max(0, -s), min(live.shape[1], live.shape[1] - s)), slice(max(0, s), live.shape[1] + min(0, s))
            both = known[:, a] & known[:, b]
            by_shift[s] = float(np.corrcoef(live[:, a][both], found.ref_loss_BT[:, b][both])[0, 1])
        elsewhere_highest += max(by_shift, key=lambda s: by_shift[s]) != 0
        assert judged(by_shift, by_shift, by_shift) in ("low", "ok")
    assert elsewhere_highest >= 2
