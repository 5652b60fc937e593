"""Every criterion, soft weights, schedules and several references, in pipelines that run whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from tiny_pipeline import tiny_settings

from slmctl.config.file import load_config
from slmctl.selection.table import CRITERIA
from slmctl.stages.run import run
from slmctl.system.errors import ConfigError
from slmctl.system.files import read_json
from slmctl.training.telemetry import read_log
from slmctl.workspace.workspace import Workspace

TWO = [{"criterion": "ref_loss", "ratio": 0.7}, {"criterion": "ref_entropy", "ratio": 0.7}]
ARMS: dict[str, dict[str, Any]] = {
    "all": {"criterion": "all"},
    "random": {"criterion": "random"},
    "excess": {"criterion": "excess_loss"},
    "own": {"criterion": "own_loss"},
    "low-loss": {"criterion": "ref_loss"},
    "low-entropy": {"criterion": "ref_entropy"},
    "both": {"criterion": "intersection", "parts": TWO},
    "either": {"criterion": "union", "parts": TWO},
    "several": {"criterion": "excess_of_several", "sets": {"a": "curated", "b": "plain"}, "options": {"combine": "mean"}},
    "cleaning": {"criterion": "base_minus_ref", "sets": {"base": "plain"}},
    "learnable": {"criterion": "learnability", "sets": {"early": "plain", "late": "curated"}},
    "contrast": {"criterion": "contrast", "sets": {"anti": "plain", "good": "curated"}},
    "risk": {"criterion": "threshold"},
    "risk-of-entropy": {"criterion": "threshold", "options": {"on": "entropy"}},
    "middle": {"criterion": "middle"},
    "late": {"criterion": "position", "weighting": {"soft": "score"}},
    "frequent": {"criterion": "frequency"},
    "blend": {
        "criterion": "blend",
        "parts": [{"criterion": "excess_loss"}, {"criterion": "base_minus_ref", "sets": {"base": "plain"}}],
    },
    "soft": {"criterion": "excess_loss", "weighting": {"soft": "sigmoid", "temperature": 0.5}},
    "capped": {"criterion": "excess_loss", "weighting": {"soft": "softmax", "temperature": 0.5}},
    "general": {"criterion": "excess_loss", "unselected_weight": 0.2},
    "scheduled": {"criterion": "excess_loss", "schedule": {"kind": "linear", "warmup": 0.3}},
}


def write(root: Path, arms: dict[str, dict[str, Any]], **over: Any) -> Path:
    settings = tiny_settings(root)
    settings["score"]["references"] = {"curated": "reference", "plain": "base"}
    settings["pretrain"]["arms"] = {name: {"selection": selection} for name, selection in arms.items()}
    settings["pretrain"] |= {"keep_every": 2, **over}
    path = root / "strategies.yaml"
    path.write_text(yaml.safe_dump(settings, sort_keys=False))
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output_dir of a pipeline with every arm."""
    root = tmp_path_factory.mktemp("strategies")
    run(Workspace(load_config(write(root, ARMS))).open())
    return root / "run"


def test_every_criterion_has_an_arm_here():
    assert {selection["criterion"] for selection in ARMS.values()} == set(CRITERIA)


def test_every_arm_is_trained_and_compared(made):
    results = read_json(made / "eval" / "results.json")
    assert set(results["arms"]) == set(ARMS)
    assert all(np.isfinite(results["models"][a]["heldout"]["target"]["loss"]) for a in ARMS)
    page = (made / "report" / "index.html").read_text()
    assert all(name in page for name in ARMS)
    losses = {a: results["models"][a]["heldout"]["target"]["loss"] for a in ARMS}
    assert len(set(losses.values())) > len(ARMS) - 3, "they differ"


@pytest.mark.parametrize("name", ARMS)
def test_an_arm_trains_on_as_many_tokens_as_its_selection_says(made, name):
    log, selection = read_log(made / "pretrain" / name / "metrics.jsonl"), ARMS[name]
    seen, chosen = log[-1]["tokens_seen"], log[-1]["tokens_selected"]
    ratio = chosen / seen
    if name in ("both", "either"):
        assert (ratio < 0.68) if name == "both" else (ratio > 0.7)
    elif name == "scheduled":
        assert [r["ratio"] for r in log] == [1.0, 1.0, 0.980952, 0.885714, 0.790476, 0.695238][: len(log)] or log[0][
            "ratio"
        ] == 1.0
        assert log[-1]["ratio"] < log[0]["ratio"]
    elif selection["criterion"] == "all" or "weighting" in selection or "unselected_weight" in selection:
        assert ratio > 0.95, "all but what nothing predicts"
    else:
        assert 0.55 < ratio < 0.66
        assert all(r["ratio"] == 0.6 for r in log)


def test_flops_follow_from_the_table(made):
    results = read_json(made / "eval" / "results.json")
    flops = {a: f["flops"] for a, f in results["arms"].items()}
    assert flops["low-loss"] == flops["random"] == flops["cleaning"], "a mask that is known beforehand costs no live pass"
    assert flops["random"] < flops["all"]
    assert flops["excess"] == flops["own"] > flops["random"]
    assert flops["soft"] > flops["all"], "live losses of all tokens, and the loss of all"
    added = {a: results["arms"][a]["own_reference"] for a in ARMS}
    assert added["own"] is None
    assert added["excess"] is True
    assert added["cleaning"] is True


def test_cards_say_how_tokens_were_chosen(made):
    def card(name: str) -> str:
        return " ".join((made / "pretrain" / name / "model" / "README.md").read_text().split())

    assert "the tokens on which the reference improved most over the base" in card("cleaning")
    assert "loss 70%" in card("both")
    assert "soft weights (sigmoid at temperature 0.5)" in card("soft")
    assert "the others with a weight of 0.2" in card("general")


def test_a_second_run_makes_nothing_anew(made, capsys):
    run(Workspace(load_config(made.parent / "strategies.yaml")).open())
    told = capsys.readouterr()
    assert (told.out + told.err).count("complete, skipped") >= len(ARMS)


@pytest.mark.parametrize(
    ("selection", "wanted"),
    [
        ({"criterion": "exces_loss"}, "there is no criterion 'exces_loss'"),
        ({"criterion": "base_minus_ref"}, "base_minus_ref reads two score sets: give sets: {base: …}"),
        ({"criterion": "base_minus_ref", "sets": {"base": "nobody"}}, "'nobody' is not in score.references (curated, plain)"),
        ({"criterion": "excess_loss", "sets": {"base": "plain"}}, "excess_loss has no score set 'base'; it reads reference"),
        ({"criterion": "blend"}, "blend is made of parts"),
        ({"criterion": "blend", "parts": [{"criterion": "surprise"}]}, "there is no criterion 'surprise'"),
        ({"criterion": "blend", "parts": [{"criterion": "union"}]}, "a part cannot be union"),
        ({"criterion": "excess_loss", "parts": TWO}, "excess_loss has no parts"),
        ({"criterion": "threshold", "options": {"on": "lossy"}}, "option on of threshold is one of loss, entropy, not 'lossy'"),
        ({"criterion": "own_loss", "options": {"on": "loss"}}, "own_loss has no option 'on'; it has none"),
        ({"criterion": "excess_of_several"}, "excess_of_several reads score sets of your choice"),
        (
            {"criterion": "excess_of_several", "sets": {"a": "curated"}, "weights": {"b": 1.0}},
            "weights are those of sets of excess_of_several",
        ),
        ({"criterion": "random", "weighting": {"soft": "sigmoid"}}, "random has no scores to weigh by"),
        ({"criterion": "union", "parts": TWO, "weighting": {"soft": "sigmoid"}}, "union gives a mask, and no scores to weigh by"),
        ({"criterion": "ref_loss", "scope": "global"}, "ref_loss is known before the forward pass"),
        ({"criterion": "excess_loss", "schedule": {"start": 1.2}}, "schedule.start"),
        ({"criterion": "excess_loss", "schedule": {"warmup": 0.5, "until": 0.4}}, "until 0.4 is not after warmup 0.5"),
    ],
)
def test_a_selection_that_cannot_be_is_told_with_its_arm(tmp_path, selection, wanted):
    with pytest.raises(ConfigError) as e:
        load_config(write(tmp_path, {"mine": selection}))
    assert wanted in str(e.value)
    assert "pretrain.arms.mine.selection" in str(e.value)


def test_entropies_that_are_not_stored_are_missed_beforehand(tmp_path):
    path = write(tmp_path, {"mine": {"criterion": "intersection", "parts": TWO}})
    settings = yaml.safe_load(path.read_text())
    settings["score"]["entropy"] = False
    path.write_text(json.dumps(settings))
    with pytest.raises(ConfigError, match=r"parts\.1\.criterion.*ref_entropy reads entropies, which are not stored"):
        load_config(path)
