"""The selective objective of whole steps, against plain Python over whole logits."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from slmctl.config.selection import SelectionConfig
from slmctl.config.training import TrainingConfig
from slmctl.model import losses
from slmctl.training import selective
from slmctl.training.batches import Batcher
from slmctl.training.optim import lr_at
from slmctl.training.ranks import SIGNALS, Ranks
from slmctl.training.safety import SPIKE_MINIMUM, StepGuard
from slmctl.training.selective import Objective
from slmctl.training.step import StepMaker

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
    objective = Objective(split, selection)
    batch = batcher.step(step)
    results = []
    for micro in batcher.micro_batches(step, batch):
        result = objective(micro, divisor or batch.selected)
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


@pytest.fixture
def chunks_of(monkeypatch):
    """chunks_of(rows, may_wait): chunks of so many positions; without `may_wait` as on a device that nobody waits for."""
    own = Objective._logits_to_keep

    def patch(rows, may_wait):
        monkeypatch.setattr(losses, "chunk_rows", lambda *_, **__: rows)
        monkeypatch.setattr(selective, "chunk_rows", lambda *_, **__: rows)
        monkeypatch.setattr(Objective, "_logits_to_keep", lambda self, micro, **_: own(self, micro, may_wait))

    return patch


def counting_logits(split):
    """How many positions' logits are made, by call."""
    made, logits = [], split.logits
    split.logits = lambda hidden, *rest: made.append(len(hidden)) or logits(hidden, *rest)
    return made


@pytest.mark.parametrize(
    ("may_wait", "rows", "kept"),  # targets by group of two rows: 17, 22, 0, 11; selected 11, 14, 0, 7
    [
        *[(True, n, n) for n in (1, 13, 49, 50)],
        (True, 1000, 50),
        *[(False, 10, 0), (False, 11, 11), (False, 32, 11), (False, 33, 33), (False, 49, 33), (False, 50, 50), (False, 1000, 50)],
    ],
)
def test_logits_of_one_chunk_are_kept_and_made_once(may_wait, rows, kept, source, make_llama, chunks_of):
    split = make_llama()
    wanted = run_step(split, source, "excess_loss")
    assert wanted[5].valid_G.tolist() == [17, 22, 0, 11]
    last = np.flatnonzero(wanted[5].target_mask)[50 - kept :]
    taken = int(wanted[3].ravel()[last].sum())
    chunks_of(rows, may_wait)
    made = counting_logits(split)
    loss, gradients, live, selected, _, batch = run_step(split, source, "excess_loss")
    assert sum(made) == 50 + batch.selected - taken, "logits are made once, but for those selected of what is not kept"
    assert max(made) <= rows
    assert (selected == wanted[3]).all()
    assert loss == pytest.approx(wanted[0], abs=1e-12)
    np.testing.assert_allclose(live, wanted[2], atol=1e-12)
    for name, gradient in gradients.items():
        assert float((gradient - wanted[1][name]).abs().max()) < 1e-12, name


@pytest.mark.parametrize("scope", ["global", "threshold"])
@pytest.mark.parametrize("rows", [7, 33, 1000])
def test_where_only_the_selection_tells_how_many_it_is_asked_or_nothing_is_kept(scope, rows, source, make_llama, chunks_of):
    split = make_llama()
    masks = []
    for may_wait in (True, False):
        chunks_of(rows, may_wait)
        objective, _, (micro,) = scoped(split, source, scope, 8, threshold=0.4 if scope == "threshold" else None)
        made = counting_logits(split)
        masks.append(objective(micro, 1.0).selected_BT)
        assert (sum(made) < 50 + int(masks[-1].sum())) == may_wait
    assert torch.equal(*masks)


def test_random_selects_exactly_its_share_anew_each_step_and_the_same_when_repeated(source, make_llama):
    split = make_llama()
    ids, document, _ = source.arrays
    masks = []
    for step, seed in [(1, 0), (1, 0), (2, 0), (1, 9)]:
        loss, _, live, selected, _, batch = run_step(split, source, "random", step=step, seed=seed)
        for group in range(4):
            rows = slice(2 * group, 2 * group + 2)
            valid = (document[rows, 1:] >= 0).sum()
            assert selected[rows].sum() == batch.counts_G[group] == math.ceil(Fraction(3, 5) * int(valid))
        assert not selected[document < 0].any()
        assert not selected[:, 0].any()
        plain = full_losses(split, ids)
        wanted = [plain[b][t].item() for b, t in zip(*selected.nonzero(), strict=True)]
        assert loss == pytest.approx(sum(wanted) / len(wanted), abs=1e-12)
        for b in range(B):
            for t in range(T):  # live losses are those of the selected tokens; nothing else was computed
                if selected[b, t]:
                    assert live[b, t] == pytest.approx(plain[b][t].item(), rel=1e-6)
                else:
                    assert np.isnan(live[b, t])
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


# --- scopes ---


def scoped(split, source, scope, micro_rows, threshold=None, ratio=0.6):
    """(objective, batcher, micro-batches of step 1) of the given scope."""
    selection = SelectionConfig(ratio=ratio, group_rows=2, scope=scope)
    batcher = Batcher(source, B, micro_rows, selection, False, 0, "cpu")
    objective = Objective(split, selection)
    objective.threshold = threshold
    batch = batcher.step(1)
    counts = [math.ceil(Fraction(str(ratio)) * v) for v in batcher.micro_valid(batch)] if scope == "global" else None
    return objective, batcher, list(batcher.micro_batches(1, batch, counts))


def plain_scores(split, source):
    """Excess losses of all targets in float32, by (row, position)."""
    ids, document, ref = source.arrays
    losses = full_losses(split, ids)
    targets = [(b, t) for b in range(B) for t in range(1, T) if document[b, t] >= 0]
    return {(b, t): float(np.float32(losses[b][t].item()) - ref[b, t]) for b, t in targets}


def places(mask_BT, first_row):
    return {(first_row + b, t) for b, t in mask_BT.nonzero().tolist()}


@pytest.mark.parametrize("micro_rows", [2, 4, 6, 8])
def test_global_scope_on_one_rank_is_the_top_of_the_whole_micro_batch(micro_rows, source, make_llama):
    split = make_llama()
    objective, _, micros = scoped(split, source, "global", micro_rows)
    scores, row = plain_scores(split, source), 0
    for micro in micros:
        here = [at for at in scores if row <= at[0] < row + len(micro.ids_BT)]
        k = math.ceil(Fraction(3, 5) * len(here))
        chosen = sorted(here, key=lambda at: scores[at], reverse=True)[:k]
        result = objective(micro, 7.0)
        assert places(result.selected_BT, row) == set(chosen)
        assert len(result.threshold_G) == len(micro.ids_BT) // 2
        for lowest in result.threshold_G.tolist():
            assert lowest == pytest.approx(scores[chosen[-1]], abs=1e-6) if k else math.isnan(lowest)
        row += len(micro.ids_BT)
    assert row == B


@pytest.mark.parametrize("micro_rows", [2, 8])
@pytest.mark.parametrize("threshold", [-1e9, -2.0, 0.0, 1.5, 1e9])
def test_threshold_scope_selects_what_scores_above_it(threshold, micro_rows, source, make_llama):
    split = make_llama()
    objective, _, micros = scoped(split, source, "threshold", micro_rows, threshold)
    scores, row = plain_scores(split, source), 0
    for micro in micros:
        result = objective(micro, 7.0)
        here = {at: s for at, s in scores.items() if row <= at[0] < row + len(micro.ids_BT)}
        chosen = {at for at, s in here.items() if s > threshold}
        assert places(result.selected_BT, row) == chosen
        for g, lowest in enumerate(result.threshold_G.tolist()):  # where the share would end, for the threshold to follow
            group = sorted((s for at, s in here.items() if (at[0] - row) // 2 == g), reverse=True)
            k = math.ceil(Fraction(3, 5) * len(group))
            assert lowest == pytest.approx(group[k - 1], abs=1e-6) if k else math.isnan(lowest)
        nats = sum(here[at] + source.arrays[2][at] for at in chosen)
        assert float(result.loss.detach()) == pytest.approx(nats / 7, rel=1e-5)
        row += len(micro.ids_BT)


@pytest.mark.parametrize("micro_rows", [2, 8])
def test_without_a_threshold_tokens_compete_within_their_groups(micro_rows, source, make_llama):
    split = make_llama()
    objective, _, micros = scoped(split, source, "threshold", micro_rows)
    plain, _, others = scoped(split, source, "group", micro_rows)
    for micro, other in zip(micros, others, strict=True):
        a, b = objective(micro, 3.0), plain(other, 3.0)
        for name in ("loss", "live_BT", "selected_BT", "threshold_G"):
            assert torch.equal(getattr(a, name).nan_to_num(nan=7), getattr(b, name).nan_to_num(nan=7)), name


# --- whole steps ---


def without_rounding(split):
    """The same model whose norms do not pass through float32, where a gradient's scale would change its rounding."""
    for module in list(split.modules()):
        for name, norm in list(module.named_children()):
            if type(norm).__name__ == "LlamaRMSNorm":
                setattr(module, name, torch.nn.RMSNorm(norm.weight.shape, norm.variance_epsilon, dtype=torch.float64))
    return split


class Spy(torch.optim.SGD):
    """Keeps the gradients that it is given, and moves nothing."""

    def __init__(self, split):
        super().__init__(split.parameters(), lr=123.0)
        self.named, self.seen, self.rates = dict(split.named_parameters()), [], []

    def step(self):
        self.seen.append({n: p.grad.clone() for n, p in self.named.items()})
        self.rates.append(self.param_groups[0]["lr"])


def make_maker(split, source, selection, micro_rows, guard=None, rows=B, intra=False, **settings):
    settings = TrainingConfig(steps=10, precision="float32", **settings)
    batcher = Batcher(source, rows, micro_rows, selection, intra, 0, "cpu")
    guard = guard or StepGuard(None, [], 0)
    return StepMaker("run", Objective(split, selection), Spy(split), batcher, settings, 10, 0, guard)


def make_step(maker, step=1, signum=None):
    counts = torch.zeros(2, V, dtype=torch.int64)
    result = maker.make(step, maker.batcher.step(step), counts, signum)
    return result, counts


def naive_step(split, source, selection, micro_rows, clip, threshold):
    """Loss, gradients and the threshold afterwards, from whole logits and sorted Python numbers."""
    losses, group_rows = full_losses(split, source.arrays[0]), selection.group_rows
    scores = plain_scores(split, source)
    size = max(1, micro_rows // group_rows) * group_rows if selection.scope == "global" else group_rows
    chosen, ends = set(), []
    for first in range(0, B, size):
        here = [at for at in scores if first <= at[0] < first + size]
        k = math.ceil(Fraction(str(selection.ratio)) * len(here))
        ranked = sorted(here, key=lambda at: scores[at], reverse=True)
        if selection.criterion == "all":
            ranked, k = here, len(here)
        elif k:
            ends += [scores[ranked[k - 1]]] * (min(size, B - first) // group_rows)
        chosen |= set(ranked[:k])
    if threshold is not None:
        chosen = {at for at, s in scores.items() if s > threshold}
    loss = sum(losses[b][t] for b, t in chosen) / len(chosen)
    names, parameters = zip(*split.named_parameters(), strict=True)
    gradients = torch.autograd.grad(loss, parameters)
    norm = math.sqrt(sum(float(g.double().pow(2).sum()) for g in gradients))
    scale = min(1.0, clip / (norm + 1e-6)) if clip else 1.0
    after = np.mean(ends) if ends else math.nan
    return chosen, float(loss.detach()), {n: g * scale for n, g in zip(names, gradients, strict=True)}, norm, after


@pytest.mark.parametrize("clip", [0.0, 0.05, 1000.0])
@pytest.mark.parametrize("micro_rows", [1, 2, 6, 8])
@pytest.mark.parametrize(
    ("criterion", "scope", "threshold"),
    [
        ("excess_loss", "group", None),
        ("excess_loss", "global", None),
        ("excess_loss", "threshold", None),
        ("excess_loss", "threshold", 0.75),
        ("all", "group", None),
    ],
)
def test_the_gradients_of_a_step_equal_autograd_of_the_plain_formula(
    criterion, scope, threshold, micro_rows, clip, source, make_llama
):
    split = without_rounding(make_llama())
    selection = SelectionConfig(criterion=criterion, scope=scope, group_rows=2)
    maker = make_maker(split, source, selection, micro_rows, grad_clip=clip)
    maker.objective.threshold = threshold
    result, counts = make_step(maker)
    split.eval()
    chosen, loss, gradients, norm, end = naive_step(split, source, selection, micro_rows, clip, threshold)
    assert result.selected == len(chosen)
    assert result.loss == pytest.approx(loss, rel=1e-6)
    assert result.grad_norm == pytest.approx(norm, rel=1e-10)
    assert maker.optimizer.rates == [result.lr] == [lr_at(1, 10, maker.settings)]
    [found] = maker.optimizer.seen
    assert found.keys() == gradients.keys()
    for name, wanted in gradients.items():
        assert float((found[name] - wanted).abs().max()) < 1e-10, name
    assert all(p.grad is None for p in split.parameters())
    ids, document, _ = source.arrays
    targets = [(b, t) for b in range(B) for t in range(1, T) if document[b, t] >= 0]
    assert counts[0].tolist() == np.bincount([ids[at] for at in targets], minlength=V).tolist()
    assert counts[1].tolist() == np.bincount([ids[at] for at in chosen], minlength=V).tolist()
    assert result.tokens == (document >= 0).sum()
    after = maker.objective.threshold
    if scope != "threshold":
        assert after is None
    else:
        assert after == pytest.approx(end if threshold is None else 0.9 * threshold + 0.1 * end, abs=1e-6)


@pytest.mark.parametrize("micro_rows", [1, 2, 6, 8])
def test_the_gradients_of_a_random_step_are_of_the_tokens_that_were_drawn(micro_rows, source, make_llama):
    split = make_llama()
    selection = SelectionConfig(criterion="random", group_rows=2)
    selected = run_step(split, source, "random", step=3)[3]
    maker = make_maker(split, source, selection, micro_rows, grad_clip=0.0)
    result, counts = make_step(maker, step=3)
    plain = full_losses(split, source.arrays[0])
    chosen = [(int(b), int(t)) for b, t in zip(*selected.nonzero(), strict=True)]
    loss = sum(plain[b][t] for b, t in chosen) / len(chosen)
    loss.backward()
    [found] = maker.optimizer.seen
    for name, p in split.named_parameters():
        assert float((found[name] - p.grad).abs().max()) < 1e-10, name
    assert result.loss == pytest.approx(float(loss.detach()), rel=1e-6)
    assert result.metrics["loss_unselected"] is None
    assert counts[1].tolist() == np.bincount([source.arrays[0][at] for at in chosen], minlength=V).tolist()


def test_the_threshold_follows_the_share_step_by_step(source, make_llama):
    split = make_llama()
    maker = make_maker(split, source, SelectionConfig(scope="threshold", group_rows=2), 8)
    ends, selected = [], []
    for step in (1, 2, 3):
        result, _ = make_step(maker, step)
        ends.append(result.metrics["threshold"])
        selected.append(result.selected)
    first, second, third = ends
    assert first == second == third, "nothing moved, so the share ends where it did"
    assert maker.objective.threshold == pytest.approx(first, abs=1e-6)
    assert selected[0] == sum(maker.batcher.step(1).counts_G)
    assert selected[1] == selected[2] == sum(s > maker.objective.threshold for s in plain_scores(split, source).values())


def test_a_step_above_whose_threshold_nothing_lies_has_no_gradient(source, make_llama):
    split = make_llama()
    maker = make_maker(split, source, SelectionConfig(scope="threshold", group_rows=2), 4)
    maker.objective.threshold = 1e9
    result, counts = make_step(maker)
    assert (result.selected, result.loss, result.grad_norm, result.refused) == (0, 0.0, 0.0, None)
    assert result.metrics["loss_selected"] is None
    assert counts[1].sum() == 0
    assert all(float(g.abs().max()) == 0.0 for g in maker.optimizer.seen[0].values())


def test_a_refused_step_counts_its_tokens_as_seen_only_and_moves_no_threshold(source, make_llama):
    split = make_llama()
    guard = StepGuard(3.0, [0.1] * SPIKE_MINIMUM, 0)
    maker = make_maker(split, source, SelectionConfig(scope="threshold", group_rows=2), 4, guard)
    maker.objective.threshold = 0.5
    counts = torch.full((2, V), 3)
    result = maker.make(1, maker.batcher.step(1), counts)
    assert result.refused == "spike"
    assert maker.objective.threshold == 0.5
    ids, document, _ = source.arrays
    targets = [ids[b, t] for b in range(B) for t in range(1, T) if document[b, t] >= 0]
    assert (counts[0] - 3).tolist() == np.bincount(targets, minlength=V).tolist()
    assert counts[1].tolist() == [3] * V


@pytest.mark.parametrize("shifts", [(0,), (-1, 0, 2)])
def test_losses_are_correlated_at_the_shifts_that_are_asked_for(shifts, source, make_llama):
    maker = make_maker(make_llama(), source, SelectionConfig(group_rows=2), 4)
    every, _ = make_step(maker)
    maker.shifts = shifts
    found, _ = make_step(maker)
    assert found.shifted == {s: every.shifted[s] for s in shifts}
    logged = {f"{s:+d}": r for s, r in found.shifted.items()} if len(shifts) > 1 else None
    assert found.metrics == {**every.metrics, "correlation_by_shift": logged}


@pytest.mark.parametrize("criterion", CRITERIA)
def test_a_step_that_is_not_finite_is_not_taken(criterion, source, make_llama):
    split = make_llama(tied=False)
    guard = StepGuard(3.0, [1.0], 4)
    maker = make_maker(split, source, SelectionConfig(criterion=criterion, group_rows=2), 4, guard)
    with torch.no_grad():
        split.head.weight[5] = torch.nan
    result, _ = make_step(maker)
    assert result.refused == "nonfinite"
    assert maker.optimizer.seen == []
    assert all(p.grad is None for p in split.parameters())
    assert (guard.recent, guard.skipped_in_a_row) == ([1.0], 5)


def test_a_live_loss_that_is_not_finite_stops_the_step_though_its_token_is_not_selected(source, make_llama):
    """It is ranked last, so that the gradient alone would not tell."""
    ids, document, ref = source.arrays
    ids = ids.copy()
    ids[ids == 5] = 6
    ids[0, T - 1] = 5  # the row's last: no hidden state but its own sees it
    split = make_llama(tied=False)
    with torch.no_grad():
        split.head.weight.requires_grad_(False)
        split.head.bias = torch.nn.Parameter(torch.zeros(V, dtype=torch.float64), requires_grad=False)
        split.head.bias[5] = -torch.inf  # makes this one loss infinite, and others none
    document = document.copy()
    document[0] = 0
    changed = ref.copy()
    changed[0, T - 1] = np.inf  # an excess of NaN
    maker = make_maker(split, type(source)(ids, document, changed), SelectionConfig(group_rows=2), 4)
    result, counts = make_step(maker)
    assert counts[1, 5] == 0
    assert math.isfinite(result.loss)
    assert math.isfinite(result.grad_norm)
    assert result.refused == "nonfinite"


def test_a_spike_is_not_taken_and_does_not_enter_the_history(source, make_llama):
    split = make_llama()
    guard = StepGuard(3.0, [0.1] * SPIKE_MINIMUM, 0)
    maker = make_maker(split, source, SelectionConfig(group_rows=2), 4, guard)
    assert make_step(maker)[0].refused == "spike"
    assert maker.optimizer.seen == []
    assert guard.recent == [0.1] * SPIKE_MINIMUM
    guard.recent = [100.0, 90.0] * SPIKE_MINIMUM
    result, _ = make_step(maker)
    assert result.refused is None
    assert guard.recent[-1] == result.loss
    assert (len(maker.optimizer.seen), guard.skipped_in_a_row) == (1, 0)


@pytest.mark.parametrize("signum", [None, *SIGNALS])
def test_a_signal_that_a_rank_has_received_is_told_to_all(signum, source, make_llama):
    maker = make_maker(make_llama(), source, SelectionConfig(group_rows=2), 8)
    assert make_step(maker, signum=signum)[0].signum == signum


class Half(Ranks):
    """One of two ranks that take turns: what the other has said is known from a run before."""

    def __init__(self, rank, said):
        super().__init__(rank, 2)
        object.__setattr__(self, "said", said)
        object.__setattr__(self, "at", iter(range(100)))

    def _others(self, mine):
        here = self.said.setdefault(next(self.at), {})
        here[self.rank] = mine.clone()
        return here.get(1 - self.rank, torch.zeros_like(mine))

    def sum(self, values):
        return (self._others(torch.tensor(values)) + torch.tensor(values)).tolist()

    def sum_(self, tensor):
        return tensor.add_(self._others(tensor))

    def before(self, tensor):
        other = self._others(tensor)
        return other if self.rank else torch.zeros_like(tensor)


@pytest.mark.parametrize("scope", ["group", "global", "threshold"])
def test_two_ranks_make_the_step_of_one(scope, source, make_llama):
    """Each with half of the rows; the mean of their gradients is the step's. (A collective is settled once what both say in
    it rests on earlier ones that are: so rounds are repeated until they all are.)"""
    split = without_rounding(make_llama())
    selection = SelectionConfig(scope=scope, group_rows=2)
    alone = make_maker(split, source, selection, 8, grad_clip=0.0)
    alone.objective.threshold = 0.75 if scope == "threshold" else None
    wanted, _ = make_step(alone)
    said = {}
    for _ in range(12):
        found = []
        for rank in (0, 1):
            batcher = Batcher(source, B, 4, selection, False, 0, "cpu", rank, 2)
            objective = Objective(split, selection, Half(rank, said))
            objective.threshold = 0.75 if scope == "threshold" else None
            maker = StepMaker("run", objective, Spy(split), batcher, alone.settings, 10, 0, StepGuard(None, [], 0))
            found.append((make_step(maker), maker.optimizer.seen))
    (first, counts), _ = found[0]
    (second, more), _ = found[1]
    assert (first.tokens, first.selected, first.loss) == (second.tokens, second.selected, second.loss)
    assert (first.tokens, first.selected) == (wanted.tokens, wanted.selected)
    assert first.loss == pytest.approx(wanted.loss, rel=1e-6)
    assert first.metrics["threshold"] == pytest.approx(wanted.metrics["threshold"], abs=1e-6)
    assert first.metrics["correlation"] == pytest.approx(wanted.metrics["correlation"], abs=1e-9)
    for name, gradient in alone.optimizer.seen[0].items():
        mean = sum(seen[0][name] for _, seen in found) / 2
        assert float((mean - gradient).abs().max()) < 1e-10, name
    assert int((counts + more)[1].sum()) == wanted.selected
