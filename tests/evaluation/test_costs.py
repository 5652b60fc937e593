"""What training and scoring cost, against counts by hand; and when an arm reached the control's loss, on made-up curves."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from slmctl.evaluation.costs import ForwardFlops, forward_flops
from slmctl.model.loading import ModelSource, empty_model
from slmctl.stages.reach import FEWEST, compare_with_control, control_of

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
    assert flops.training("all", tokens, tokens) == pytest.approx(3 * (t + h) * tokens)
    assert flops.training("excess_loss", tokens, 30) == pytest.approx((3 * t + (1 + 3 * k) * h) * tokens)
    assert flops.training("random", tokens, 30) == pytest.approx((3 * t + 3 * k * h) * tokens)


# --- until the control's loss ---


def arm(criterion, losses, flops, reference=None, seen=100, selected=60):
    """An arm evaluated after 0, 100, 200, … tokens."""
    evals = [
        {"step": i, "tokens_seen": seen * i, "tokens_selected": selected * i, "heldout": {"target": loss}}
        for i, loss in enumerate(losses)
    ]
    facts = {"selection": {"criterion": criterion, "reference": reference}, "evals": evals}
    return {**facts, "tokens_seen": evals[-1]["tokens_seen"], "flops": flops}


OWN = {"curated": "reference"}


def compared(arms, spent=None, references=None):
    compare_with_control(arms, "target", spent or {}, references or OWN)
    return {a: f.get("control") for a, f in arms.items()}


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
    assert found["slm"] == {
        **{"why": None, "control_tokens": pytest.approx(300)},
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
    assert found["clm"]["tokens_to_reach"] == 300
    assert found["clm"]["times_fewer_tokens"] == found["clm"]["times_fewer_flops"] == found["clm"]["times_fewer_flops_all"] == 1
    never = {k: v for k, v in found["random"].items() if k not in ("arm", "target_loss")}
    assert never.pop("control_tokens") == pytest.approx(300)
    assert set(never.values()) == {None}, "never reached"


def unjudged(found):
    return found["why"] if {v for k, v in found.items() if k not in ("arm", "target_loss", "why")} == {None} else None


def test_a_loss_that_the_base_has_already_is_no_goal():
    """Training on all tokens has made the target worse: whoever does no worse has reached nothing."""
    found = compared({"clm": arm("all", [3.0, 3.5, 3.8, 4.0], 100.0), "random": arm("random", [3.0, 2.5, 2.0, 2.0], 80.0)})
    for facts in found.values():
        assert "the base is at or below that loss already" in unjudged(facts)


def test_a_curve_of_few_points_is_no_curve():
    few = [4.0, 3.0, 2.0]
    assert len(few) == FEWEST - 1
    found = compared({"clm": arm("all", few, 1.0), "slm": arm("excess_loss", [*few, 1.0], 1.0)})
    assert all("fewer than 4 evaluations" in unjudged(facts) for facts in found.values())


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


def test_a_control_that_was_not_evaluated_on_this_set():
    found = compared({"clm": arm("all", [3.0, 2.5, 2.0, None], 1.0), "slm": arm("excess_loss", [3.0, 2.0, 1.5, 1.0], 1.0)})
    assert all("was not evaluated on this target" in unjudged(facts) for facts in found.values())


def test_an_arm_that_was_never_measured_on_this_set_has_not_failed_to_reach_it():
    arms = {"clm": arm("all", [5.0, 4.0, 3.0, 2.0], 1.0), "slm": arm("excess_loss", [None] * 4, 1.0)}
    assert "was not evaluated on this target" in unjudged(compared(arms)["slm"])


def test_evaluations_that_were_not_finite_count_for_nothing():
    """null is what a log has for them."""
    found = compared(
        {"clm": arm("all", [6.0, 5.5, 5.0, 4.0, 4.0], 80.0), "slm": arm("excess_loss", [6.0, None, 2.0, 2.0, 2.0], 80.0)},
        {"scoring_flops": {}},
    )
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
    assert found["clm"]["flops_to_reach_all"] == pytest.approx(90), "all tokens need no reference"
