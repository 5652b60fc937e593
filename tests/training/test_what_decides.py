"""What fields declare that they decide is true: what decides no weights is changed, and the weights of a tiny run are the same,
bit for bit, or to rounding where that is what is declared; and the same of scores.

The fields are those of the declarations: a new one without a value to try fails here.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from test_training_loop import result, train_arm

from slmctl.config.decides import Decides, declared
from slmctl.config.evaluation import EvalConfig, HarnessConfig, SuiteConfig, TaskConfig
from slmctl.config.pipeline import PipelineConfig
from slmctl.config.score import ScoreConfig
from slmctl.config.training import ArmConfig, TrackingConfig
from slmctl.stages.pretrain import pretrain
from slmctl.stages.score import score

TESTS = Path(__file__).parents[1]
NO_WEIGHTS = (Decides.NOTHING, Decides.EVALUATION, Decides.ROUNDING)
TRAINING = {
    "micro_batch": 2,
    "sharding": "full",
    "activation_checkpointing": "full",
    "on_nonfinite": "skip",
    "eval_every": 2,
    "eval_tokens": 32,
    "save_every": 1,
    "keep_last": 1,
    "keep_every": 500,
    "log_every": 1,
    "loader_threads": 0,
    "hang_timeout": 60,
    "profile": [2, 2],
    "alignment_check": "warn",
}
"""A value to try of each field of a run that does not decide its weights."""
GENERATED = "test_greedy_generation_equals_an_argmax_loop_and_padding_changes_nothing"
ELSEWHERE = {
    (ArmConfig, "compile"): "training/test_layout.py::test_compiled_blocks_give_the_same_losses",
    (PipelineConfig, "device"): "test_cuda.py::test_every_stage_runs_on_cuda",
    (EvalConfig, "batch_rows"): "evaluation/test_heldout_loss.py::test_documents_losses_equal_whole_logits",
    (TaskConfig, "batch_size"): f"evaluation/test_generation_tasks.py::{GENERATED}",
    (SuiteConfig, "batch_size"): f"evaluation/test_generation_tasks.py::{GENERATED}",
    (HarnessConfig, "batch_size"): "evaluation/test_harness.py::test_multiple_choice_agrees_with_plain_transformers",
}
"""Fields that change nothing, or round, whose test is another."""


def claiming(section, *kinds):
    return {name: kind for name, kind in declared(section).items() if kind in kinds and (section, name) not in ELSEWHERE}


@pytest.mark.parametrize("where", ELSEWHERE.values())
def test_what_is_tested_elsewhere_is_tested_there(where):
    file, _, name = where.partition("::")
    assert f"def {name}(" in (TESTS / file).read_text(encoding="utf-8")


# --- the fields of a run ---


FEW = {"steps": 4, "eval_every": 0}


@pytest.fixture(scope="module")
def runs(copied, tmp_path_factory):
    """One arm for each field, with that field changed, and one as it is; 4 steps each."""
    arms = {"plain": {}, **{arm_of(name): {name: value} for name, value in TRAINING.items()}}
    slm = {"selection": {"criterion": "excess_loss", "ratio": 0.6, "group_rows": 2}}
    over = {"pretrain": {**FEW, "arms": {name: {**slm, **changed} for name, changed in arms.items()}}}
    workspace = copied(tmp_path_factory.mktemp("decides") / "made", over)
    pretrain(workspace, list(arms))
    return {arm: result(workspace.arm(arm)) for arm in arms}


def arm_of(field):
    return field.replace("_", "-")


def test_every_field_of_a_run_that_decides_no_weights_has_a_value_to_try():
    assert set(TRAINING) == set(claiming(ArmConfig, *NO_WEIGHTS))
    plain = ArmConfig(steps=4)
    assert [n for n, v in TRAINING.items() if plain.model_dump(mode="json")[n] == v] == []


@pytest.mark.parametrize(("field", "kind"), claiming(ArmConfig, *NO_WEIGHTS).items())
def test_a_field_that_decides_no_weights_changes_none(field, kind, runs):
    plain, found = runs["plain"], runs[arm_of(field)]
    assert found["counts"] == plain["counts"]
    if kind == Decides.ROUNDING:
        assert losses(found) == pytest.approx(losses(plain), rel=1e-5)
        return
    assert found["weights"] == plain["weights"]
    assert found["metrics"] == plain["metrics"]
    if kind == Decides.NOTHING:
        assert found["evals"] == plain["evals"]


def losses(found):
    return [r["loss"] for r in found["metrics"]]


def test_a_field_that_decides_the_weights_would_have_been_found(pipeline, runs):
    other = result(train_arm(pipeline("other", {"pretrain": {**FEW, "lr": 4e-3}})))
    assert other["weights"] != runs["plain"]["weights"]
    assert losses(other) != pytest.approx(losses(runs["plain"]), rel=1e-5)


# --- the pipeline's own ---


def to_a_store(directory):
    for name in ("tokens", "scores"):
        shutil.move(directory / name, directory.with_name("store") / name)


def rename(directory):
    path = directory / "config.resolved.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), "name": "another"}))


PIPELINE = {
    "name": ({"name": "another"}, rename),
    "output_dir": ({}, None),  # each is a copy elsewhere
    "store_dir": ({"store_dir": "{parent}/store"}, to_a_store),
    "accept_mismatch": ({"accept_mismatch": ["reference:base.config.json"]}, None),
    "missing_inputs": ({"missing_inputs": "accept"}, None),
    "tensorboard": ({"tracking": {"tensorboard": True}}, None),
    "wandb_project": ({"tracking": {"wandb_project": "tiny"}}, None),
}
"""What is laid over the configuration, and what is done to the folder before."""


def test_every_field_of_the_pipeline_that_changes_nothing_has_a_value_to_try():
    found = [*claiming(PipelineConfig, *NO_WEIGHTS), *claiming(TrackingConfig, *NO_WEIGHTS)]
    assert sorted(PIPELINE) == sorted(found)


@pytest.mark.parametrize("field", PIPELINE)
def test_a_field_of_the_pipeline_that_changes_nothing_makes_nothing_anew_and_changes_no_bit(
    field, copied, runs, tmp_path, monkeypatch, capsys
):
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=lambda **_: MagicMock()))
    over, before = PIPELINE[field]
    over = {k: v.format(parent=tmp_path) if isinstance(v, str) else v for k, v in over.items()}
    workspace = copied(tmp_path / "made", {**over, "pretrain": FEW}, before or (lambda _: None))
    capsys.readouterr()
    score(workspace)
    assert "score curated: complete, skipped" in capsys.readouterr().err
    assert result(train_arm(workspace))["weights"] == runs["plain"]["weights"]
    assert not (workspace.root / "stale").exists()


# --- scores ---

SCORE = {"batch_rows": 3}


def test_every_field_of_scoring_that_changes_nothing_has_a_value_to_try():
    assert set(SCORE) == set(claiming(ScoreConfig, *NO_WEIGHTS))


@pytest.mark.parametrize("field", SCORE)
def test_a_field_of_scoring_that_rounds_makes_no_scores_anew_and_changes_them_by_rounding(field, pipeline, capsys):
    workspace = pipeline("scores", {"score": {field: SCORE[field]}})
    before = values(workspace)
    capsys.readouterr()
    score(workspace)
    assert "score curated: complete, skipped" in capsys.readouterr().err
    shutil.rmtree(workspace.root / "scores")
    score(workspace)
    for name, column in values(workspace).items():
        np.testing.assert_allclose(column, before[name], rtol=2e-3, atol=1e-4, err_msg=name)  # float16's last bit


def values(workspace):
    files = sorted((workspace.root / "scores" / "curated").glob("*.parquet"))
    table = pa.concat_tables([pq.read_table(f) for f in files])
    return {n: table[n].to_numpy() for n in table.column_names}
