"""What is decided of a stage, and what it is estimated to take: pure functions, held against plain cases."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_pipeline import tiny_settings
from transformers import LlamaConfig, LlamaForCausalLM

from slmctl.comparison.flop_costs import forward_flops
from slmctl.config.file import check
from slmctl.config.score import ScoreConfig
from slmctl.config.selection import SelectionConfig
from slmctl.config.training import TrainingConfig
from slmctl.stages.dry_run import sizes
from slmctl.workspace.graph import COMMANDS, By, by_command, graph, joined_scores, token_sets
from slmctl.workspace.planned.cost_model import score_bytes, scratch_shape, training_bytes, training_flops
from slmctl.workspace.planned.decisions import Decision, Found, Wanted, decide

ONE, TWO = {"lr": 1, "corpus": "a"}, {"lr": 2, "corpus": "a"}
DONE, HALF = Found(ONE, True, 6, "here"), Found(ONE, False, 4, "here")
OLD = Found(TWO, True, 6, "stale/x")


@pytest.mark.parametrize(
    ("wanted", "found", "stale", "action", "said"),
    [
        (ONE, None, None, "made", ""),
        (ONE, DONE, None, "skipped", ""),
        (ONE, HALF, None, "gone on with", ""),
        (TWO, DONE, None, "made anew", "lr: was 1, is now 2"),
        (TWO, HALF, None, "made anew", "lr: was 1, is now 2"),
        (TWO, DONE, OLD, "taken back", "lr: was 1, is now 2; taken back from stale/x"),
        (TWO, None, OLD, "taken back", "taken back from stale/x"),
        (TWO, DONE, Found(TWO, False, 4, "stale/x"), "gone on with", "taken back from stale/x; and then gone on with after 4"),
        (ONE, Found(None, False, 0, "here"), None, "made anew", "not recorded"),
    ],
)
def test_one_stage_alone(wanted, found, stale, action, said):
    decision = decide("x", Wanted(wanted), found, stale, {})
    assert decision.action == action
    assert said in "; ".join(decision.why)


@pytest.mark.parametrize(
    ("before", "wanted", "found", "action", "said"),
    [
        ("skipped", ONE, DONE, "skipped", ""),
        ("taken back", ONE, DONE, "skipped", ""),
        ("made anew", {"lr": 1}, DONE, "made anew", "depends on b, which is made anew"),
        ("made anew", {"lr": 2}, DONE, "made anew", "lr: was 1, is now 2; depends on b"),
        ("made anew", {"lr": 1}, None, "made", ""),
        ("made", {"lr": 1}, DONE, "to be seen", "kept if it still fits what comes of b (made)"),
        ("gone on with", {"lr": 1}, HALF, "to be seen", "b (gone on with)"),
        ("to be seen", {"lr": 1}, DONE, "to be seen", "b (to be seen)"),
        ("made", {"lr": 2}, DONE, "made anew", "lr: was 1, is now 2"),
    ],
)
def test_a_stage_after_another(before, wanted, found, action, said):
    decision = decide("x", Wanted(wanted, ("b",)), found, None, {"b": Decision("b", before)})
    assert decision.action == action
    assert said in "; ".join(decision.why)


def test_nothing_is_taken_back_before_what_it_depends_on_is_known():
    assert decide("x", Wanted(TWO, ("b",)), DONE, OLD, {"b": Decision("b", "made")}).action == "made anew"


def test_what_cannot_be_told_is_said():
    decision = decide("x", Wanted({"lr": 1}, unknown="the Hub was not asked"), DONE, None, {})
    assert (decision.action, decision.why) == ("skipped", ("as far as can be told: the Hub was not asked",))


def test_the_order_of_a_run_and_what_depends_on_what(tmp_path: Path):
    settings = tiny_settings(tmp_path)
    found = graph(check(settings, "tiny"))
    assert list(found) == [
        *("tokenizer", "tokens/curated", "tokens/corpus", "tokens/heldout/target", "base", "reference", "scores/curated"),
        *("pretrain/slm", "pretrain/clm", "pretrain/random", "eval", "report"),
    ]
    assert found["pretrain/slm"].needs == ("base", "tokens/corpus", "scores/curated")
    assert found["pretrain/clm"].needs == ("base", "tokens/corpus")
    assert found["eval"].needs == tuple(list(found)[:-2])
    del settings["pretrain"]["arms"]["slm"]
    assert not {"reference", "scores/curated"} & set(graph(check(settings, "tiny")))


def test_every_stage_stands_behind_those_that_it_needs(tmp_path: Path):
    settings = tiny_settings(tmp_path)
    settings["reference"] |= {"mix": 0.5, "keep_best_on": "target", "eval_every": 2}
    settings["score"]["references"] = {"other": str(tmp_path), "curated": "reference"}
    settings["pretrain"]["arms"]["slm"]["selection"]["reference"] = "curated"
    for change in (lambda: None, lambda: settings.update(model={"path": str(tmp_path)})):
        change()
        config = check(settings, "tiny")
        stages, seen = graph(config), set()
        for label, stage in stages.items():
            assert set(stage.needs) <= seen, label
            seen.add(label)
        assert set(stages["reference"].needs) >= {"tokens/curated", "tokens/corpus", "tokens/heldout/target"}
        assert stages["scores/other"].needs == ("tokens/corpus",)
        assert stages["scores/curated"].needs == ("tokens/corpus", "reference")
        assert joined_scores(config, config.pretrain.arms["slm"]) == "curated"
        assert [s.name for s in stages.values() if s.command == "prepare" and s.name] == token_sets(config)


def test_commands_in_their_order_and_who_works_on_what_they_make(tmp_path: Path):
    settings = tiny_settings(tmp_path)
    found = by_command(graph(check(settings, "tiny")))
    assert tuple(found) == COMMANDS == ("prepare", "train-base", "train-ref", "score", "pretrain", "eval", "report")
    by = {command: {stage.kind.by for stage in stages} for command, stages in found.items()}
    assert {c for c, b in by.items() if By.WORKERS in b} == {"prepare", "score"}
    assert {c for c, b in by.items() if By.RANKS in b} == {"train-base", "train-ref", "pretrain"}
    del settings["pretrain"]["arms"]["slm"]
    assert by_command(graph(check(settings, "tiny")))["score"] == []


# --- estimates ---


def test_a_model_from_scratch_costs_what_the_model_itself_does(tmp_path: Path):
    config = check(tiny_settings(tmp_path), "tiny")
    s = config.model.scratch
    with torch.device("meta"):
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=s.vocab_size,
                hidden_size=s.hidden_size,
                intermediate_size=s.intermediate_size,
                num_hidden_layers=s.num_hidden_layers,
                num_attention_heads=s.num_attention_heads,
                tie_word_embeddings=True,
            )
        )
    shape, real = scratch_shape(config), forward_flops(model, 32)
    assert shape.parameters == sum(p.numel() for p in model.parameters())
    assert shape.scoring(32) == pytest.approx(real.scoring, rel=0.01)
    for criterion, ratio in (("all", 1.0), ("random", 0.6), ("excess_loss", 0.6)):
        selection = SelectionConfig(criterion=criterion, ratio=ratio)
        assert shape.training(selection, 32) == pytest.approx(
            real.training({"criterion": criterion}, 1000, 1000 * ratio) / 1000, rel=0.01
        )


def test_flops_and_bytes_of_a_run(tmp_path: Path):
    shape, every = scratch_shape(check(tiny_settings(tmp_path), "tiny")), SelectionConfig(criterion="all")
    run = TrainingConfig(steps=100, batch_tokens=64, save_every=10, keep_every=50, keep_last=2, eval_every=25)
    token, scored = shape.training(every, 32), shape.scoring(32)
    assert training_flops(shape, run, every, 32, 100, 100, 1000) == 6400 * token + 6 * 1000 * scored
    assert training_flops(shape, run, every, 32, 100, 50, 1000) == 3200 * token + 3 * 1000 * scored
    assert training_bytes(shape, run, 100) == shape.parameters * (12 * (2 + 1 + 2) + 4)
    once = run.model_copy(update={"save_every": 0, "keep_every": 0})
    assert training_bytes(shape, once, 100) == shape.parameters * (12 + 4)


def test_bytes_are_those_of_the_readme():
    assert score_bytes(ScoreConfig()) == (2.7, 3.4)
    assert score_bytes(ScoreConfig(entropy=False)) == (1.7, 1.7)
    assert sizes((2.7e9, 3.4e9)) == "2.7 to 3.4 GB"
    assert sizes((12e6, 12e6)) == "12 MB"
    assert sizes(None) == "?"
