"""base/ is itself a model directory, as reference/ is; one that an older slmctl has laid out otherwise goes on being used."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from evaluated_pipeline import Made
from tiny_pipeline import tiny_settings
from transformers import AutoModelForCausalLM, AutoTokenizer

from slmctl.config.file import check
from slmctl.stages.evaluate import evaluate
from slmctl.stages.prepare import prepare
from slmctl.stages.train_base import train_base
from slmctl.system.hashes import sha256_file
from slmctl.workspace.workspace import Workspace

OWN = {"inputs.json", "done.json", "launch.json", "training"}


def lay_out_as_before(base: Path) -> None:
    """Weights in base/model, logs and checkpoints in base/."""
    (base / "model").mkdir()
    for file in [f for f in base.iterdir() if f.name not in {*OWN, "model"}]:
        shutil.move(file, base / "model")
    for file in (base / "training").iterdir():
        shutil.move(file, base)
    (base / "training").rmdir()


def test_base_is_a_model_directory(evaluated: Made) -> None:
    base = evaluated.open().base
    AutoModelForCausalLM.from_pretrained(base)
    AutoTokenizer.from_pretrained(base)
    assert (base / "README.md").is_file()
    assert not (base / "model").exists()
    assert {f.name for f in (base / "training").iterdir()} >= {"metrics.jsonl", "checkpoints", "environment.jsonl"}
    assert not (base / "training" / "model").exists()


def test_a_base_of_the_older_layout_is_used_as_it_is(own_copy: Made, capsys: pytest.CaptureFixture[str]) -> None:
    lay_out_as_before(own_copy.open().base)
    workspace = own_copy.open()
    capsys.readouterr()
    train_base(workspace)
    evaluate(workspace)
    said = capsys.readouterr().err
    assert "train-base: complete, skipped" in said
    assert "eval: complete, skipped" in said
    assert workspace.base_source().path == str(workspace.base / "model")


def test_a_base_of_the_older_layout_that_was_stopped_goes_on_in_it(own_copy: Made) -> None:
    base = own_copy.open().base
    wanted = sha256_file(base / "model.safetensors")
    lay_out_as_before(base)
    shutil.rmtree(base / "model")
    (base / "done.json").unlink()
    workspace = own_copy.open()
    train_base(workspace)
    assert not (base / "training").exists(), "its checkpoints were found"
    assert sha256_file(base / "model" / "model.safetensors") == wanted


def test_a_base_of_random_weights_is_said_to_be_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = tiny_settings(tmp_path)
    settings["model"]["scratch"]["train"] = None
    workspace = Workspace(check(settings, "tiny")).open()
    prepare(workspace)
    train_base(workspace)
    train_base(workspace)
    assert capsys.readouterr().err.count("the base has random weights: model.scratch.train is null") == 1
