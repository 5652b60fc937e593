"""A step's figures, gathered by micro-batch and by moments, against NumPy over the whole step."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from slmctl.config.selection import SelectionConfig
from slmctl.training.alignment import SHIFTS
from slmctl.training.batches import Batcher
from slmctl.training.ranks import Ranks
from slmctl.training.selective import MicroResult, random_positions
from slmctl.training.step_metrics import QUANTILES, StepMetricsCollector

B, T, GROUP = 8, 17, 2
METRICS = [
    *("loss_selected", "loss_unselected", "live_mean", "live_share", "ref_mean", "excess_quantiles", "threshold", "correlation"),
    *("correlation_by_shift", "excess_selected", "excess_unselected", "overlap_with_random"),
]


def nothing_selected(_live, target):
    return np.zeros_like(target)


@pytest.fixture
def make_step(list_source):
    """make_step(...): the micro-batches of a step with made-up results, and the arrays of the whole step."""

    def make(micro=2, intra=False, ref=True, random=False, seed=0, padding=True, choose=None):
        rng = np.random.default_rng(seed)
        document = np.sort(rng.integers(0, 4, (B, T)), axis=1)
        if padding:
            document[1, 9:] = -1
            document[4:6] = -1  # a whole group
            document[6, 1:] = -1
        target = np.array(
            [
                [t > 0 and row[t] >= 0 and not (intra and row[t - 1] != row[t]) for t in range(T)]
                for row in document
            ]
        )  # fmt: skip
        hard = rng.gamma(2.0, 1.0, (B, T))
        live = np.where(target, hard + 0.3 * rng.normal(size=(B, T)), np.nan).astype(np.float32)
        ref_BT = np.where(target, hard + 0.3 * rng.normal(size=(B, T)), -1.0).astype(np.float32) if ref else None
        selected = target & (rng.random((B, T)) < 0.6) if choose is None else choose(live, target)
        if random:
            live[~selected] = np.nan
        threshold = rng.normal(size=B // GROUP).astype(np.float32)
        threshold[2] = np.nan
        source = list_source(np.ones_like(document), document, ref_BT)
        batcher = Batcher(source, B, micro, SelectionConfig(group_rows=GROUP), intra, 0, "cpu")
        steps, at = [], 0
        for m in batcher.micro_batches(1, batcher.step(1)):
            rows, groups = slice(at, at + len(m.ids_BT)), slice(at // GROUP, (at + len(m.ids_BT)) // GROUP)
            assert (m.target_BT.numpy() == target[rows]).all()
            parts = (live[rows], selected[rows], threshold[groups])
            steps.append((m, MicroResult(torch.zeros(()), *(torch.from_numpy(p.copy()) for p in parts))))
            at = rows.stop
        whole = SimpleNamespace(live=live, ref=ref_BT, target=target, selected=selected, threshold=threshold)
        whole.known = selected if random else target
        return steps, whole

    return make


def figures_of(steps, random=False, ranks=None, norm=0.0):
    figures = StepMetricsCollector(all_known=not random)
    for micro, result in steps:
        figures.add(micro, result)
    return figures.fetch(ranks or Ranks(), torch.tensor(norm))


def mean(values):
    return pytest.approx(float(np.mean(values.astype(np.float64))), abs=1e-12) if values.size else None


def pairs(whole, shift):
    """(live[t], ref[t + shift]) where both are known."""
    return np.array(
        [
            (whole.live[b, t], whole.ref[b, t + shift])
            for b in range(B)
            for t in range(T)
            if 0 <= t + shift < T and whole.known[b, t] and whole.known[b, t + shift]
        ],
        dtype=np.float64,
    )


@pytest.mark.parametrize("random", [False, True])
@pytest.mark.parametrize("ref", [False, True])
@pytest.mark.parametrize("intra", [False, True])
@pytest.mark.parametrize("micro", [2, 6, 8])
def test_every_figure_of_a_step_equals_numpy_over_the_whole_step(micro, intra, ref, random, make_step):
    steps, w = make_step(micro, intra, ref, random, seed=micro)
    found, norm = figures_of(steps, random, norm=2.5)
    assert norm == 2.5
    assert list(found.metrics) == METRICS
    rest = w.known & ~w.selected
    assert found.selected == w.selected.sum() == sum(int(r.selected_BT.sum()) for _, r in steps)
    assert found.finite
    assert found.metrics["loss_selected"] == found.loss == mean(w.live[w.selected])
    assert found.metrics["loss_unselected"] == (None if random else mean(w.live[rest]))
    assert found.metrics["live_mean"] == (None if random else mean(w.live[w.known]))
    assert found.metrics["live_share"] == pytest.approx(w.known.sum() / w.target.sum())
    assert found.metrics["threshold"] == found.threshold == mean(w.threshold[np.isfinite(w.threshold)])
    assert found.metrics["overlap_with_random"] is None
    if ref:
        excess = w.live.astype(np.float64) - w.ref
        assert found.metrics["excess_selected"] == mean(excess[w.selected])
        assert found.metrics["excess_unselected"] == (None if random else mean(excess[rest]))
    else:
        assert found.metrics["excess_selected"] is found.metrics["excess_unselected"] is None
    if not ref:
        assert found.shifted is None
        assert found.metrics["ref_mean"] is found.metrics["correlation"] is found.metrics["excess_quantiles"] is None
        return
    assert found.metrics["ref_mean"] == mean(w.ref[w.target])
    excess = (w.live.astype(np.float64) - w.ref)[w.known]
    wanted = {f"q{round(100 * q):02d}": pytest.approx(np.quantile(excess, q), abs=1e-12) for q in QUANTILES}
    assert found.metrics["excess_quantiles"] == wanted
    assert list(wanted) == ["q05", "q25", "q50", "q75", "q95"]
    assert set(found.shifted) == set(SHIFTS)
    for shift in SHIFTS:
        assert found.shifted[shift] == pytest.approx(np.corrcoef(pairs(w, shift).T)[0, 1], abs=1e-10)
    assert found.metrics["correlation"] == found.shifted[0]
    assert found.metrics["correlation_by_shift"] == {"-2": found.shifted[-2], "-1": found.shifted[-1]} | {
        f"+{s}": found.shifted[s] for s in (0, 1, 2)
    }


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_quantiles_of_a_few_values_equal_numpys(count, make_step):
    def first(_live, target):
        chosen = np.zeros_like(target)
        chosen.flat[np.flatnonzero(target)[:count]] = True
        return chosen

    steps, w = make_step(random=True, choose=first)
    found, _ = figures_of(steps, random=True)
    excess = (w.live.astype(np.float64) - w.ref)[w.selected]
    assert len(excess) == count
    assert list(found.metrics["excess_quantiles"].values()) == pytest.approx(np.quantile(excess, QUANTILES).tolist(), abs=1e-12)


def test_a_step_that_selects_nothing_has_no_losses_and_is_finite(make_step):
    steps, _ = make_step(random=True, choose=nothing_selected)
    found, _ = figures_of(steps, random=True)
    assert (found.selected, found.loss, found.finite) == (0, 0.0, True)
    assert found.metrics["loss_selected"] is found.metrics["live_mean"] is found.metrics["excess_quantiles"] is None
    assert all(math.isnan(r) for r in found.shifted.values())


def test_without_thresholds_there_is_none(make_step):
    steps, _ = make_step()
    found, _ = figures_of([(m, r._replace(threshold_G=torch.full_like(r.threshold_G, torch.nan))) for m, r in steps])
    assert found.metrics["threshold"] is None
    assert math.isnan(found.threshold)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["selected", "unselected"])
def test_a_live_loss_that_is_not_finite_is_told_wherever_it_is(bad, where, make_step):
    steps, w = make_step()
    assert figures_of(steps)[0].finite
    among = w.selected if where == "selected" else w.target & ~w.selected
    row, t = np.argwhere(among)[-1]
    micro, at = steps[row // 2], row % 2
    micro[1].live_BT[at, t] = bad
    found, _ = figures_of(steps)
    assert not found.finite
    assert found.selected == w.selected.sum()
    if where == "unselected":
        assert found.loss == mean(w.live[w.selected])


def test_what_no_target_holds_is_no_matter(make_step):
    """Sentinels, NaN and infinities of positions that are no targets reach no figure."""
    steps, w = make_step()
    wanted, _ = figures_of(steps)
    for micro, result in steps:
        outside = ~micro.target_BT
        result.live_BT[outside] = math.inf
        micro.ref_loss_BT[outside] = -1e30
    found, _ = figures_of(steps)
    assert found == wanted
    assert found.selected == w.selected.sum()


def test_several_ranks_tell_the_figures_of_all_their_tokens(make_step):
    """All but the quantiles, which are the means of the ranks' own."""
    both = [make_step(seed=s) for s in (1, 2)]
    sent = []

    def heard(total):
        def sum_(tensor):
            sent.append(tensor.clone())
            return total if total is not None else tensor

        return SimpleNamespace(size=2, sum_=sum_)

    for (steps, _), norm in zip(both, (7.0, 7.5), strict=True):
        figures_of(steps, ranks=heard(None), norm=norm)
    total = sum(sent)
    results = [figures_of(steps, ranks=heard(total)) for steps, _ in both]
    assert results[0] == results[1]
    found, norm = results[0]
    assert norm == 7.25, "ranks go on with the same norm"
    joined = SimpleNamespace(**{k: np.concatenate([getattr(w, k) for _, w in both]) for k in vars(both[0][1])})
    assert found.selected == joined.selected.sum()
    assert found.loss == mean(joined.live[joined.selected])
    assert found.metrics["loss_unselected"] == mean(joined.live[joined.target & ~joined.selected])
    assert found.metrics["ref_mean"] == mean(joined.ref[joined.target])
    assert found.threshold == mean(joined.threshold[np.isfinite(joined.threshold)])
    for shift in SHIFTS:
        known = np.concatenate([pairs(w, shift) for _, w in both])
        assert found.shifted[shift] == pytest.approx(np.corrcoef(known.T)[0, 1], abs=1e-10)
    own = [np.quantile((w.live.astype(np.float64) - w.ref)[w.target], QUANTILES) for _, w in both]
    assert list(found.metrics["excess_quantiles"].values()) == pytest.approx(np.mean(own, axis=0).tolist(), abs=1e-12)


@pytest.mark.parametrize("micro", [2, 8])
@pytest.mark.parametrize("same", [True, False])
def test_the_overlap_is_with_what_the_random_control_takes_of_the_same_groups(micro, same, make_step):
    """All of it for a selection that is the control's own, chance for one that is not; by the objective's own draws."""
    steps, _ = make_step(micro)
    figures, common, chosen = StepMetricsCollector(all_known=True, blind=True), 0, 0
    for m, result in steps:
        blind = torch.zeros(m.ids_BT.numel(), dtype=torch.bool)
        blind[random_positions(m)] = True
        mine = blind.view_as(m.ids_BT) if same else result.selected_BT
        figures.add(m, result._replace(selected_BT=mine))
        common += int((mine & blind.view_as(mine)).sum())
        chosen += int(mine.sum())
    found, _ = figures.fetch(Ranks(), torch.tensor(0.0))
    assert found.metrics["overlap_with_random"] == pytest.approx(common / chosen)
    assert (found.metrics["overlap_with_random"] == 1.0) == same
