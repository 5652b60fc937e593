"""Each criterion beside a plain NumPy reading of its formula; its sign, its shift, and what it says of itself."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slmctl.selection.criterion import Choice, Columns
from slmctl.selection.masks import mask_of, score_of
from slmctl.selection.select import selected_count
from slmctl.selection.table import CRITERIA, features_of, has_known_count, live_of, stored_of

SETS = {
    "excess_loss": {"reference": "one"},
    "ref_loss": {"reference": "one"},
    "ref_entropy": {"reference": "one"},
    "base_minus_ref": {"base": "two", "reference": "one"},
    "learnability": {"early": "two", "late": "one"},
    "contrast": {"anti": "two", "good": "one"},
    "excess_of_several": {"a": "one", "b": "two"},
}
LOW = Choice("ref_loss", 0.7, sets={"reference": "one"})
SURE = Choice("ref_entropy", 0.7, sets={"reference": "one"})


def choice(name: str, ratio: float = 0.6) -> Choice:
    parts = (LOW, SURE) if CRITERIA[name].composed else ()
    return Choice(name, ratio, sets=SETS.get(name, {}), parts=parts, weights=(2.0, -0.5) if name == "blend" else ())


class Group:
    """One group of M tokens in float64, and the same as a criterion gets it."""

    def __init__(self, seed: int, tokens: int = 40, ties: bool = False) -> None:
        rng = np.random.default_rng(seed)
        self.seed, self.valid = seed, rng.random(tokens) < 0.85
        draw = (lambda: rng.integers(0, 4, tokens) / 2) if ties else (lambda: rng.gamma(1.0, 2.0, tokens))
        self.live, self.entropy, self.one, self.two, self.sure = (draw().astype(np.float32) for _ in range(5))
        self.position = rng.integers(0, 60, tokens)
        self.odds = rng.normal(size=tokens).astype(np.float32)

    def columns(self, shift: int = 0) -> Columns:
        def t(values: np.ndarray) -> torch.Tensor:
            return torch.from_numpy(values)[None]

        stored = {("one", "ref_loss"): self.one, ("two", "ref_loss"): self.two, ("one", "ref_entropy"): self.sure}
        return Columns(
            valid_GM=t(self.valid),
            seeds_G=[self.seed],
            live_loss_GM=t(self.live),
            live_entropy_GM=t(self.entropy),
            stored={k: t(np.roll(v, shift)) for k, v in stored.items()},
            position_GM=t(self.position),
            log_odds_GM=t(self.odds),
        )


def top(scores: np.ndarray, valid: np.ndarray, ratio: float) -> np.ndarray:
    """The ceil(ratio x valid) highest valid scores, ties to the earlier."""
    places = sorted(np.flatnonzero(valid), key=lambda i: (-float(scores[i]), i))
    kept = np.zeros(len(valid), bool)
    kept[places[: selected_count(len(places), ratio)]] = True
    return kept


def standard(scores: np.ndarray, valid: np.ndarray) -> np.ndarray:
    values = scores[valid].astype(np.float64)
    spread = values.std()
    return (scores - values.mean()) / spread if spread > 0 else np.zeros(len(scores))


def middling(g: Group) -> np.ndarray:
    order = sorted(np.flatnonzero(g.valid), key=lambda i: (-float(g.live[i]), i))
    place = {i: n for n, i in enumerate(order)}
    return np.array([-abs(place.get(i, 0) - (len(order) - 1) / 2) for i in range(len(g.live))])


READINGS = {
    "excess_loss": lambda g: g.live - g.one,
    "own_loss": lambda g: g.live,
    "ref_loss": lambda g: -g.one,
    "ref_entropy": lambda g: -g.sure,
    "excess_of_several": lambda g: g.live - np.minimum(g.one, g.two),
    "base_minus_ref": lambda g: g.two - g.one,
    "learnability": lambda g: g.two - g.one,
    "contrast": lambda g: g.two - g.one,
    "middle": middling,
    "position": lambda g: np.tanh(g.position / 10).astype(np.float32),
    "frequency": lambda g: g.odds,
    "blend": lambda g: (2 * standard(-g.one, g.valid) - 0.5 * standard(-g.sure, g.valid)).astype(np.float32),
}
"""The score of each criterion that has one a plain reading gives, as its formula says it."""


def test_every_criterion_has_a_reading_here():
    by_mask = {"all", "random", "intersection", "union", "threshold"}
    assert set(READINGS) | by_mask == set(CRITERIA)


@pytest.mark.parametrize("name", READINGS)
@given(seed=st.integers(0, 10**6), ratio=st.sampled_from([0.1, 0.3, 0.6, 0.7, 1.0]), ties=st.booleans())
@settings(max_examples=40, deadline=None)
def test_a_criterion_is_its_formula(name, seed, ratio, ties):
    group = Group(seed, ties=ties)
    wanted = READINGS[name](group)
    one = choice(name, ratio)
    found = score_of(group.columns(), one)[0].numpy()
    np.testing.assert_allclose(found[group.valid], wanted[group.valid], rtol=2e-5, atol=2e-5)
    np.testing.assert_array_equal(mask_of(group.columns(), one)[0].numpy(), top(found, group.valid, ratio))


@given(seed=st.integers(0, 10**6), combine=st.sampled_from(["min", "mean", "weighted"]), weight=st.floats(0.1, 5))
@settings(max_examples=40, deadline=None)
def test_several_references_become_one(seed, combine, weight):
    group = Group(seed)
    one = Choice("excess_of_several", 0.5, {"combine": combine}, SETS["excess_of_several"], weights=(weight, 1.0))
    refs = {
        "min": np.minimum(group.one, group.two),
        "mean": (group.one + group.two) / 2,
        "weighted": (weight * group.one + group.two) / (weight + 1),
    }
    np.testing.assert_allclose(score_of(group.columns(), one)[0].numpy(), group.live - refs[combine], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("combine", ["min", "mean", "weighted"])
def test_several_references_of_which_there_is_one_are_excess_loss_bit_for_bit(combine):
    columns = Group(3).columns()
    one = Choice("excess_of_several", 0.5, {"combine": combine}, {"a": "one"}, weights=(0.3,))
    assert torch.equal(score_of(columns, one), score_of(columns, choice("excess_loss")))


@given(
    seed=st.integers(0, 10**6),
    on=st.sampled_from(["loss", "entropy"]),
    ratio=st.sampled_from([0.1, 0.5, 1.0]),
    ties=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_value_at_risk_keeps_all_that_is_at_or_above_it(seed, on, ratio, ties):
    group = Group(seed, ties=ties)
    values = group.live if on == "loss" else group.entropy
    risk = sorted(values[group.valid], reverse=True)[selected_count(int(group.valid.sum()), ratio) - 1]
    found = mask_of(group.columns(), Choice("threshold", ratio, {"on": on}))[0].numpy()
    np.testing.assert_array_equal(found, group.valid & (values >= risk))
    fixed = mask_of(group.columns(), Choice("threshold", ratio, {"on": on, "at": 1.5}))[0].numpy()
    np.testing.assert_array_equal(fixed, group.valid & (values >= 1.5))


@given(seed=st.integers(0, 10**6), one=st.sampled_from([0.3, 0.7, 1.0]), other=st.sampled_from([0.2, 0.7]))
@settings(max_examples=40, deadline=None)
def test_intersection_and_union_are_those_of_sets(seed, one, other):
    group = Group(seed)
    parts = (Choice("ref_loss", one, sets={"reference": "one"}), Choice("ref_entropy", other, sets={"reference": "one"}))
    low, sure = top(-group.one, group.valid, one), top(-group.sure, group.valid, other)
    for name, wanted in (("intersection", low & sure), ("union", low | sure)):
        np.testing.assert_array_equal(mask_of(group.columns(), Choice(name, parts=parts))[0].numpy(), wanted)


@pytest.mark.parametrize("name", ["intersection", "union"])
@pytest.mark.parametrize("part", ["excess_loss", "ref_loss", "own_loss", "random", "threshold"])
def test_a_mask_with_itself_is_itself(name, part):
    columns, one = Group(5).columns(), choice(part, 0.4)
    assert torch.equal(mask_of(columns, Choice(name, parts=(one, one))), mask_of(columns, one))


@pytest.mark.parametrize("name", CRITERIA)
@pytest.mark.parametrize("seed", range(5))
def test_a_ratio_of_1_is_all_tokens(name, seed):
    columns, one = Group(seed, ties=seed % 2 == 1).columns(), choice(name, 1.0)
    if CRITERIA[name].composed:
        one = Choice(name, 1.0, parts=tuple(Choice(p.criterion, 1.0, sets=p.sets) for p in one.parts), weights=one.weights)
    assert torch.equal(mask_of(columns, one), columns.valid_GM)


def test_nothing_valid_selects_nothing():
    group = Group(1)
    group.valid[:] = False
    for name in CRITERIA:
        assert not mask_of(group.columns(), choice(name)).any(), name


def test_random_tokens_follow_from_the_groups_seed_alone():
    assert torch.equal(score_of(Group(1).columns(), choice("random")), score_of(Group(1, ties=True).columns(), choice("random")))
    assert not torch.equal(score_of(Group(1).columns(), choice("random")), score_of(Group(2).columns(), choice("random")))


# --- sign and shift: what nothing crashes of, and a figure shows ---


class World:
    """Tokens of three kinds: clean and known to the good reference, clean and learnt already, and noise that nobody learns."""

    def __init__(self, tokens: int = 3000) -> None:
        rng = np.random.default_rng(0)
        self.kind = rng.choice(["target", "learnt", "noise"], tokens)
        level = {"target": (3.0, 0.6, 2.8, 0.4), "learnt": (0.5, 0.5, 0.6, 0.3), "noise": (6.0, 6.3, 6.1, 4.0)}
        columns = np.array([level[k] for k in self.kind], np.float32) * rng.uniform(0.9, 1.1, (tokens, 4)).astype(np.float32)
        group = Group(0, tokens)
        group.valid[:] = True
        group.live, group.one, group.two, group.sure = columns.T.copy()
        group.entropy = group.live
        group.position = np.where(self.kind == "target", 50, 3)
        group.odds = np.where(self.kind == "target", 2.0, -1.0).astype(np.float32)
        self.group = group

    def share(self, one: Choice, kind: str, shift: int = 0) -> float:
        """Of what is selected, how much is of a kind."""
        kept = mask_of(self.group.columns(shift), one)[0].numpy()
        return float((self.kind[kept] == kind).mean())


WANTED = {
    **dict.fromkeys(("excess_loss", "excess_of_several", "base_minus_ref", "learnability", "contrast"), "target"),
    **dict.fromkeys(("position", "frequency", "middle"), "target"),
    **dict.fromkeys(("own_loss", "threshold"), "noise"),
    **dict.fromkeys(("ref_loss", "ref_entropy", "intersection", "blend"), "learnt"),
    "union": "learnt",
}
"""The kind of which each keeps most. A third of the tokens is of each."""


@pytest.mark.parametrize("name", WANTED)
def test_the_sign_is_the_formulas(name):
    world = World()
    one = choice(name, 0.3)
    if CRITERIA[name].composed:
        parts = tuple(Choice(p.criterion, 0.3, sets=p.sets) for p in one.parts)
        one = Choice(name, 0.3, parts=parts, weights=(2.0, 0.5) if name == "blend" else ())
    assert world.share(one, WANTED[name]) > 0.9, "reversed, it would be far below chance (0.33)"


@pytest.mark.parametrize("name", [n for n in WANTED if CRITERIA[n].reads or CRITERIA[n].composed])
@pytest.mark.parametrize("shift", [1, -1])
def test_a_score_set_that_is_off_by_one_token_is_told_by_what_is_selected(name, shift):
    world = World()
    one = choice(name, 0.3)
    if CRITERIA[name].composed:
        parts = tuple(Choice(p.criterion, 0.3, sets=p.sets) for p in one.parts)
        one = Choice(name, 0.3, parts=parts, weights=(2.0, 0.5) if name == "blend" else ())
    right, wrong = world.share(one, WANTED[name]), world.share(one, WANTED[name], shift)
    assert right - wrong > 0.3, (right, wrong)


# --- what the table says of them ---


def test_what_a_choice_reads_follows_from_its_parts():
    mixed = Choice("blend", 0.6, parts=(choice("excess_loss"), choice("base_minus_ref"), choice("position")), weights=(1, 1, 1))
    assert live_of(mixed) == ("live_loss",)
    assert stored_of(mixed) == (("one", "ref_loss"), ("two", "ref_loss"))
    assert features_of(mixed) == ("position",)
    assert live_of(choice("intersection")) == ()
    assert live_of(Choice("threshold", options={"on": "entropy"})) == ("live_entropy",)


@pytest.mark.parametrize("name", CRITERIA)
def test_a_criterion_reads_no_more_than_it_says(name):
    group, one = Group(2), choice(name)
    whole = group.columns()
    lean = Columns(
        whole.valid_GM,
        whole.seeds_G,
        whole.live_loss_GM if "live_loss" in live_of(one) else None,
        whole.live_entropy_GM if "live_entropy" in live_of(one) else None,
        {k: v for k, v in whole.stored.items() if k in stored_of(one)},
        whole.position_GM if "position" in features_of(one) else None,
        whole.log_odds_GM if "log_odds" in features_of(one) else None,
    )
    assert torch.equal(mask_of(lean, one), mask_of(whole, one))


@pytest.mark.parametrize("name", CRITERIA)
def test_a_known_count_is_the_count(name):
    columns, one = Group(4, ties=True).columns(), choice(name, 0.37)
    if has_known_count(one) and name != "all":
        assert int(mask_of(columns, one).sum()) == math.ceil(0.37 * int(columns.valid_GM.sum()))


@pytest.mark.parametrize("name", CRITERIA)
def test_every_entry_is_whole(name):
    entry = CRITERIA[name]
    assert all((entry.says, entry.formula, entry.source, entry.use)), name
    assert (entry.score is None) <= (entry.mask is not None)
    assert entry.control or entry.against, "what is known against it is said"


def test_the_table_is_read_without_torch():
    code = "import sys, slmctl.selection.table as t; assert len(t.CRITERIA) > 15; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
