"""What training and scoring cost, against counts by hand; and when an arm reached the control's loss, on made-up curves."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from slmctl.comparison.crossings import Curve
from slmctl.comparison.flop_costs import ForwardFlops, forward_flops
from slmctl.comparison.reach import FEWEST, Comparison, compare_seeds, compare_with_control, control_of
from slmctl.evaluation.comparability import measure_of, why_not_comparable
from slmctl.model.loading import empty_model
from slmctl.model.source import ModelSource

VOCAB, WIDTH, INNER, LAYERS, HEADS, KV_HEADS, HEAD = 101, 24, 40, 3, 4, 2, 6


def llama(tied):
    return LlamaForCausalLM(
        LlamaConfig(
            **{"vocab_size": VOCAB, "hidden_size": WIDTH, "intermediate_size": INNER, "num_hidden_layers": LAYERS},
            **{"num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "tie_word_embeddings": tied},
        )
    )


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("seq_len", [16, 64])
def test_a_llamas_forward_pass_by_hand(tied, seq_len, tmp_path):
    query, keys_and_values, out = WIDTH * HEADS * HEAD, 2 * WIDTH * KV_HEADS * HEAD, HEADS * HEAD * WIDTH
    gate_up_down = 3 * WIDTH * INNER
    scores_and_sums = 2 * HEADS * HEAD * seq_len  # q·k and weights·v with every token of the row
    trunk = LAYERS * 2 * (query + keys_and_values + out + gate_up_down + scores_and_sums)
    model = llama(tied)
    found = forward_flops(model, seq_len)
    assert found.trunk == trunk
    assert found.head == 2 * VOCAB * WIDTH
    assert found.scoring == trunk + 2 * VOCAB * WIDTH
    model.save_pretrained(tmp_path)
    empty = empty_model(ModelSource(str(tmp_path)))
    assert all(p.device == torch.device("meta") for p in empty.parameters())
    assert forward_flops(empty, seq_len) == found


def test_training_by_the_formulas():
    t, h, tokens, k = 1000.0, 300.0, 50, 0.6
    flops = ForwardFlops(t, h)
    assert flops.scoring * tokens == (t + h) * tokens
    assert flops.training({"criterion": "all"}, tokens, tokens) == pytest.approx(3 * (t + h) * tokens)
    assert flops.training({"criterion": "excess_loss"}, tokens, 30) == pytest.approx((3 * t + (1 + 3 * k) * h) * tokens)
    assert flops.training({"criterion": "random"}, tokens, 30) == pytest.approx((3 * t + 3 * k * h) * tokens)


# --- until the control's loss ---

DOCUMENTS = 8


def arm(criterion, losses, flops, reference=None, seen=100, selected=60, seed=0):
    """(facts, curve) of an arm that was kept after 0, 100, 200, … tokens: of each loss that is there, the same in all documents.
    Its losses while training are half as high: pictures, which decide nothing."""
    evals = [{"step": i, "tokens_seen": seen * i, "heldout": {"target": (loss or 2) / 2}} for i, loss in enumerate(losses)]
    facts = {"selection": {"criterion": criterion, "reference": reference}, "evals": evals, "flops": flops, "seed": seed}
    facts |= {"tokens_seen": seen * (len(losses) - 1), "settings": {}}
    there = [i for i, loss in enumerate(losses) if loss is not None]
    nats = np.array([[losses[i]] * DOCUMENTS for i in there])
    points = np.array(there, dtype=float)
    return facts, Curve(seen * points, seen * points, selected * points, nats, np.ones(DOCUMENTS))


OWN = {"curated": "reference"}


def comparison(arms, spent=None, references=None):
    how = Comparison({a: c for a, (_, c) in arms.items()}, spent or {}, references or OWN, 0.95, 0)
    goals = {a: None if isinstance(c, str) else float(c.nats_GM[-1].sum() / c.predicted_M.sum()) for a, (_, c) in arms.items()}
    return {a: f for a, (f, _) in arms.items()}, goals, how


def compared(arms, spent=None, references=None):
    facts, goals, how = comparison(arms, spent, references)
    compare_with_control(facts, goals, how)
    return {a: f.get("control") for a, f in facts.items()}


def without(found, *keys):
    return {k: v for k, v in found.items() if k not in keys}


def test_tokens_and_operations_by_hand():
    spent = {"reference_flops": 1000.0, "scoring_flops": {"curated": 500.0}}
    found = compared(
        {
            "clm": arm("all", [6.0, 5.0, 4.5, 4.0], 9000.0),
            "slm": arm("excess_loss", [6.0, 4.4, 3.6, 3.5], 6000.0),
            "random": arm("random", [6.0, 5.5, 5.0, 4.5], 4500.0),
        },
        spent,
    )
    assert without(found["slm"], "interval") == {
        **{"why": None, "control_tokens": pytest.approx(300), "points": [0, 100, 200, 300]},
        **{
            "arm": "clm",
            "target_loss": 4.0,
            "tokens_to_reach": pytest.approx(150),
            "selected_tokens_to_reach": pytest.approx(90),
        },
        **{
            "times_fewer_tokens": pytest.approx(2.0),
            "flops_to_reach": pytest.approx(3000),
            "times_fewer_flops": pytest.approx(3),
        },
        **{"flops_to_reach_all": pytest.approx(4500), "times_fewer_flops_all": pytest.approx(2)},
    }
    assert found["slm"]["interval"] == {
        **{"level": 0.95, "resamples": 1000, "reached": 1.0, "open": False, "tokens_to_reach": pytest.approx([150, 150])},
        **{"times_fewer_tokens": pytest.approx([2, 2]), "times_fewer_flops": pytest.approx([3, 3])},
        "times_fewer_flops_all": pytest.approx([2, 2]),
    }, "documents that do not differ leave no doubt"
    assert found["clm"]["tokens_to_reach"] == 300
    assert found["clm"]["times_fewer_tokens"] == found["clm"]["times_fewer_flops"] == found["clm"]["times_fewer_flops_all"] == 1
    never = without(found["random"], "arm", "target_loss", "points", "interval")
    assert never.pop("control_tokens") == pytest.approx(300)
    assert set(never.values()) == {None}, "never reached"
    none = found["random"]["interval"]
    assert (none["reached"], none["open"], none["tokens_to_reach"]) == (0.0, True, [None, None])


@pytest.mark.parametrize(("documents", "known"), [(1, False), (4, False), (5, True)])
def test_resamples_of_a_handful_of_documents_are_no_interval(documents, known):
    arms = {"clm": arm("all", [6.0, 5.0, 4.5, 4.0], 9000.0), "slm": arm("excess_loss", [6.0, 4.4, 3.6, 3.5], 6000.0)}
    few = {
        a: (f, replace(c, nats_GM=c.nats_GM[:, :documents], predicted_M=c.predicted_M[:documents])) for a, (f, c) in arms.items()
    }
    found = compared(few)["slm"]
    assert found["times_fewer_tokens"] == pytest.approx(2)
    assert (found["interval"] is not None) is known


def unjudged(found):
    return found["why"] if set(without(found, "arm", "target_loss", "why", "points").values()) == {None} else None


def test_losses_of_training_on_unlike_tokens_are_not_held_against_each_other():
    """By its losses while training slm came down to clm's final one 3.63 times sooner: it was evaluated on another, easier part
    of the set. Its kept checkpoints never come there; and where too few were kept, no one can tell."""
    clm, slm = arm("all", [6.0, 5.0, 4.5, 4.0, 3.8], 1.0), arm("excess_loss", [6.0, 5.5, 5.1, 4.8, 4.6], 1.0)
    measured = {"clm": (clm, 8190, [6.0, 5.0, 4.5, 4.0, 3.8]), "slm": (slm, 1024, [5.6, 4.0, 2.039, 2.0, 2.0])}
    for (facts, _), tokens, losses in measured.values():
        for record, loss in zip(facts["evals"], losses, strict=True):
            record["heldout"] = {"target": loss}
            record["measured"] = {"target": {"tokens": tokens, "rows": str(tokens), "precision": "float32"}}
    before, after, goal = 4.0, 2.039, 3.8
    assert 400 / (100 + 100 * (before - goal) / (before - after)) == pytest.approx(3.63, abs=0.005)
    found = compared({"clm": clm, "slm": slm})["slm"]
    assert (found["target_loss"], found["why"], found["tokens_to_reach"], found["times_fewer_tokens"]) == (goal, None, None, None)
    few = {a: (f, c.at([0, 4])) for a, (f, c) in (("clm", clm), ("slm", slm))}
    why = unjudged(compared(few)["slm"])
    assert "2 common points of training (base, kept checkpoints, end), and at least 4 are wanted; set keep_every" in why
    records = [facts["evals"][0] for (facts, _), _, _ in measured.values()]
    assert (
        why_not_comparable(*(measure_of(r, "target") for r in records)) == "one was measured on 8,190 tokens, the other on 1,024"
    )


def test_the_points_that_only_one_has_are_left_out():
    """slm was kept twice as often, and was low once by chance where clm was not looked at."""
    fine = arm("excess_loss", [6.0, 5.6, 5.2, 3.9, 4.8, 4.7, 4.6, 4.5, 4.3], 1.0, seen=50)
    found = compared({"clm": arm("all", [6.0, 5.0, 4.5, 4.2, 4.0], 1.0), "slm": fine})
    assert found["slm"]["points"] == [0, 100, 200, 300, 400]
    assert (found["slm"]["tokens_to_reach"], found["slm"]["why"]) == (None, None)


def test_a_loss_that_the_base_has_already_is_no_goal():
    """Training on all tokens has made the target worse: whoever does no worse has reached nothing."""
    found = compared({"clm": arm("all", [3.0, 3.5, 3.8, 4.0], 100.0), "random": arm("random", [3.0, 2.5, 2.0, 2.0], 80.0)})
    for facts in found.values():
        assert "the base is at or below that loss already" in unjudged(facts)


def test_where_the_base_is_another_by_now_the_start_is_not_known():
    """Without a point at 0 an arm may have come there at any time before the first."""
    clm, slm = arm("all", [None, 3.5, 3.0, 2.5, 2.0], 1.0), arm("excess_loss", [None, 1.9, 1.5, 1.2, 1.0], 1.0)
    assert "at the first point that was measured" in unjudged(compared({"clm": clm, "slm": slm})["slm"])


def test_a_curve_of_few_points_is_no_curve():
    few = [4.0, 3.0, 2.0]
    assert len(few) == FEWEST - 1
    found = compared({"clm": arm("all", few, 1.0), "slm": arm("excess_loss", [*few, 1.0], 1.0)})
    assert "measured at 3 common points" in unjudged(found["clm"])
    assert "measured at 3 common points" in unjudged(found["slm"])


def test_arms_of_other_grids_share_too_few_points():
    """Each has five, and two of them are the same."""
    slm = arm("excess_loss", [4.0, None, None, 3.0, None, 2.6, 2.5, None, None, 1.0], 1.0)
    found = compared({"clm": arm("all", [4.0, 3.5, 3.2, None, 3.0, None, None, None, None, 2.0], 1.0), "slm": slm})
    assert "measured at 2 common points" in unjudged(found["slm"])


def test_what_was_not_measured_in_float32_has_no_headline():
    why = "models were measured in bfloat16, which is too coarse for it"
    arms = {"clm": (arm("all", [3.0, 2.0], 1.0)[0], why), "slm": (arm("excess_loss", [3.0, 2.0], 1.0)[0], why)}
    assert [unjudged(f) for f in compared(arms).values()] == [why, why]


def test_a_control_that_was_lower_before_its_end_counts_from_where_it_first_was():
    """It overfits: it comes down to what it ends with after 150 tokens, long before the end."""
    found = compared({"clm": arm("all", [5.0, 4.0, 2.0, 3.0], 900.0), "slm": arm("excess_loss", [5.0, 4.5, 4.0, 3.0], 600.0)})
    assert found["slm"]["tokens_to_reach"] == pytest.approx(300)
    assert found["slm"]["control_tokens"] == found["clm"]["tokens_to_reach"] == pytest.approx(150)
    assert found["slm"]["times_fewer_tokens"] == pytest.approx(0.5)
    assert found["slm"]["times_fewer_flops"] == pytest.approx(900 * 150 / 300 / 600)


def test_an_arm_is_held_against_the_control_of_its_own_seed_and_settings():
    def made(criterion, seed, lr):
        return {"selection": {"criterion": criterion}, "seed": seed, "settings": {"lr": lr}}

    arms = {"clm": made("all", 0, 1), "clm-1": made("all", 1, 1), "clm-lr": made("all", 0, 2)}
    arms |= {"a": made("excess_loss", 1, 1), "b": made("excess_loss", 0, 2), "c": made("random", 1, 2), "d": made("random", 9, 9)}
    assert [control_of(arms, a) for a in "abcd"] == ["clm-1", "clm-lr", "clm-1", "clm"]


def test_without_an_arm_of_all_tokens_there_is_nothing_to_reach():
    found = compared({"slm": arm("excess_loss", [3.0, 2.0], 100.0), "random": arm("random", [3.0, 2.0], 80.0)})
    assert found == {"slm": None, "random": None}


def test_checkpoints_whose_loss_is_not_finite_count_for_nothing():
    found = compared(
        {
            "clm": arm("all", [6.0, 5.5, 5.0, 4.5, 4.0], 80.0),
            "slm": arm("excess_loss", [6.0, None, 2.0, 2.0, 2.0], 80.0),
        },
        {"scoring_flops": {}},
    )
    assert found["slm"]["points"] == [0, 200, 300, 400]
    assert found["slm"]["tokens_to_reach"] == pytest.approx(100)
    assert found["slm"]["flops_to_reach"] == pytest.approx(20)


@pytest.mark.parametrize(
    ("reference", "spent", "wanted"),
    [
        (None, {"reference_flops": 7.0, "scoring_flops": {"curated": 5.0, "strong": 90.0}}, 30 + 7 + 5),
        ("curated", {"reference_flops": 7.0, "scoring_flops": {"curated": 5.0, "strong": 90.0}}, 30 + 7 + 5),
        ("strong", {"reference_flops": 7.0, "scoring_flops": {"curated": 5.0, "strong": 90.0}}, 30 + 90),
        ("strong", {"scoring_flops": {"strong": 90.0}}, 30 + 90),
        ("strong", {"reference_flops": 7.0, "scoring_flops": {"curated": 5.0, "strong": None}}, None),
        (None, {"scoring_flops": {"curated": 5.0}}, None),
        (None, {"reference_flops": 7.0}, None),
    ],
)
def test_an_arm_pays_for_the_reference_that_it_uses(reference, spent, wanted):
    """The trained reference's training is part of it; another model was there already. What is not known is not nothing."""
    arms = {"clm": arm("all", [4.0, 3.5, 3.0, 2.0], 90.0), "slm": arm("excess_loss", [4.0, 2.0, 1.0, 1.0], 90.0, reference)}
    found = compared(arms, spent, {"curated": "reference", "strong": "some/model"})
    assert found["slm"]["flops_to_reach"] == pytest.approx(30)
    assert found["slm"]["flops_to_reach_all"] == (pytest.approx(wanted) if wanted is not None else None)
    assert found["slm"]["times_fewer_flops_all"] == (pytest.approx(90 / wanted) if wanted is not None else None)
    assert (found["slm"]["interval"]["times_fewer_flops_all"] is None) == (wanted is None)
    assert found["clm"]["flops_to_reach_all"] == pytest.approx(90), "all tokens need no reference"


# --- over seeds ---


def seeds_of(*arms):
    return [{"arm": names[0], "arms": list(names)} for names in arms]


def test_seeds_are_compared_by_pairs_of_one_seed():
    """The mean curve of slm comes down to 4, the mean of clm's final losses, after 150 tokens; slm-7 has no control of its
    seed and takes no part."""
    arms = {
        "clm": arm("all", [6.0, 5.0, 4.6, 4.1], 90.0),
        "clm-1": arm("all", [6.0, 5.0, 4.4, 3.9], 90.0, seed=1),
        "slm": arm("excess_loss", [6.0, 4.6, 3.8, 3.5], 60.0),
        "slm-1": arm("excess_loss", [6.0, 4.2, 3.4, 3.5], 60.0, seed=1),
        "slm-7": arm("excess_loss", [6.0, 1.0, 1.0, 1.0], 60.0, seed=7),
    }
    facts, goals, how = comparison(arms, {"reference_flops": 5.0, "scoring_flops": {"curated": 10.0}})
    entries = seeds_of(("slm", "slm-1", "slm-7"), ("clm", "clm-1"))
    compare_seeds(entries, facts, goals, how)
    assert "control" not in entries[1]
    found = entries[0]["control"]
    assert (found["arm"], found["arms"], found["seeds"]) == ("clm", [["slm", "clm"], ["slm-1", "clm-1"]], [0, 1])
    assert (found["target_loss"], found["tokens_to_reach"]) == (pytest.approx(4.0), pytest.approx(150))
    assert found["times_fewer_tokens"] == pytest.approx(2.0)
    assert found["times_fewer_flops"] == pytest.approx(3.0)
    assert found["times_fewer_flops_all"] == pytest.approx(90 / (30 + 15))
    one, other = 100 + 100 * (4.6 - 4.1) / 0.8, 100 + 100 * (4.2 - 3.9) / 0.8  # slm against clm; slm-1 against clm-1
    assert found["interval"]["tokens_to_reach"] == pytest.approx([other, one]), "each pair alone is one of four draws"


def test_one_pair_of_a_seed_is_no_comparison_over_seeds():
    arms = {"clm": arm("all", [6.0, 5.0, 4.6, 4.1], 90.0), "slm": arm("excess_loss", [6.0, 4.5, 3.7, 3.5], 60.0)}
    arms["slm-1"] = arm("excess_loss", [6.0, 4.3, 3.5, 3.5], 60.0, seed=1)
    entries = seeds_of(("slm", "slm-1"))
    compare_seeds(entries, *comparison(arms))
    assert "control" not in entries[0]
