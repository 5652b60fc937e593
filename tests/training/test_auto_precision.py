"""`precision: auto`: chosen once for a run or a score set, recorded, and kept wherever it goes on."""

from __future__ import annotations

import json
import signal

import pytest
import torch
from safetensors.torch import load_file
from test_training_loop import STEPS, assert_same, at_step, result, send, train_arm

from slmctl.config.training import ArmConfig
from slmctl.model import precision
from slmctl.stages import score as scoring
from slmctl.stages.score import score
from slmctl.stages.train_base import train_base
from slmctl.store.build import PLAN, read_plan
from slmctl.store.manifest import load_manifest
from slmctl.system import console
from slmctl.system.errors import Interrupted
from slmctl.system.files import read_json
from slmctl.system.signals import raising
from slmctl.training.ranks import Ranks
from slmctl.training.telemetry import read_log
from slmctl.workspace.precisions import as_recorded, chosen_for_scores, settled, tell
from slmctl.workspace.start import settle
from slmctl.workspace.workers import Share

AUTO = {"pretrain": {"precision": "auto"}}


@pytest.fixture
def cpu(monkeypatch):
    """cpu(gains): from now on this machine's CPU gains by bfloat16 at any width, or at none."""
    monkeypatch.setattr(precision, "AMX_WIDTH", 1)
    return lambda gains: monkeypatch.setattr(precision, "has_amx", lambda: gains)


def stopped(workspace, monkeypatch):
    with monkeypatch.context() as patch, raising():
        at_step(patch, 4, send(signal.SIGINT))
        with pytest.raises(Interrupted):
            train_arm(workspace)
    return workspace


def taken(directory):
    """Everything that says what a run is made in."""
    states = [read_json(d / "state.json")["made_from"] for d in (directory / "checkpoints").glob("step-*")]
    made = [read_json(directory / "inputs.json"), *states]
    return {m["settings"]["precision"] for m in made} | {e["precision"] for e in read_log(directory / "environment.jsonl")}


@pytest.mark.parametrize(("here", "there", "kept"), [(False, True, "float32"), (True, False, "bf16_autocast")])
def test_a_run_goes_on_in_what_it_began_with_on_another_machine(here, there, kept, cpu, pipeline, monkeypatch, capsys):
    cpu(here)
    whole = train_arm(pipeline("whole", {"pretrain": {"precision": kept}}))
    workspace = stopped(pipeline("stopped", AUTO), monkeypatch)
    cpu(there)
    capsys.readouterr()
    monkeypatch.setattr(console, "_told", {})
    directory = train_arm(workspace)
    said = capsys.readouterr().err
    assert_same(result(directory), result(whole))
    assert taken(directory) == {kept}
    assert f"slm: precision auto is {kept}" in said
    assert f"resuming after step 4 of {STEPS}" in said
    assert ("is slower than float32 here" in said) == (kept != "float32")
    assert not (workspace.root / "stale").exists()
    card = (directory / "model" / "README.md").read_text(encoding="utf-8")
    assert any("precision" in line and kept in line.replace("\\", "") for line in card.splitlines())


def change(workspace, **settings):
    arms = workspace.config.pretrain.arms
    arms["slm"] = arms["slm"].model_copy(update=settings)
    return workspace


def test_another_precision_that_is_asked_for_starts_anew_and_so_does_auto_with_another_setting(cpu, pipeline, monkeypatch):
    cpu(False)
    workspace = stopped(pipeline("run", AUTO), monkeypatch)
    cpu(True)
    directory = train_arm(change(workspace, precision="bf16_autocast"))
    assert taken(directory) == {"bf16_autocast"}
    assert len(list((workspace.root / "stale").iterdir())) == 1
    cpu(False)
    assert taken(train_arm(change(workspace, precision="auto"))) == {"bf16_autocast"}, "what is complete is good for auto"
    assert len(list((workspace.root / "stale").iterdir())) == 1
    assert taken(train_arm(change(workspace, lr=1e-3))) == {"float32"}, "a run that starts anew takes what is best here"
    assert len(list((workspace.root / "stale").iterdir())) == 2


def test_starting_over_takes_what_is_best_here(cpu, pipeline, monkeypatch):
    cpu(False)
    workspace = stopped(pipeline("run", AUTO), monkeypatch)
    cpu(True)
    assert taken(train_arm(workspace, resume=False)) == {"bf16_autocast"}


def test_every_rank_takes_what_the_first_one_finds(cpu, tmp_path):
    class Second(Ranks):
        def first(self, _work):
            return "float32"

    cpu(True)
    settings = ArmConfig(steps=2)
    inputs = {"settings": {"precision": "auto", "lr": 1.0}}
    for ranks, wanted in ((Second(1, 2), "float32"), (Ranks(), "bf16_autocast")):
        found, made = settle(settings, inputs, tmp_path, True, ranks, "cpu", lambda: 16)
        assert found.precision == made["settings"]["precision"] == wanted
    assert inputs["settings"]["precision"] == "auto", "what was given is changed"


def test_a_base_in_bfloat16_is_one_and_reference_and_arms_of_auto_accept_it(cpu, pipeline):
    cpu(False)
    scratch = {"train": {"precision": "bfloat16", "tokens": None, "steps": 1}}
    workspace = pipeline("bf16", {"model": {"scratch": scratch}})
    train_base(workspace)
    assert {t.dtype for t in load_file(workspace.base_model / "model.safetensors").values()} == {torch.bfloat16}
    workspace.config.model.scratch.train = workspace.config.model.scratch.train.model_copy(update={"precision": "auto"})
    workspace.base_source()  # raises where it is held for a base of other settings


@pytest.mark.parametrize(
    ("asked", "took", "gains", "said"),
    [
        ("auto", "float32", False, ["it: precision auto is float32"]),
        ("auto", "bf16_autocast", True, ["it: precision auto is bf16_autocast"]),
        (
            "auto",
            "bf16_autocast",
            False,
            ["it: precision auto is bf16_autocast", "warning: it: precision bf16_autocast is slower"],
        ),
        ("bfloat16", "bfloat16", False, ["warning: it: precision bfloat16 is slower than float32 here"]),
        ("bfloat16", "bfloat16", True, []),
        ("float32", "float32", False, []),
    ],
)
def test_what_is_taken_is_said_and_what_is_slow_is_warned_of(asked, took, gains, said, cpu, capsys):
    cpu(gains)
    tell("it", asked, took, "cpu", lambda: 16)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == len(said)
    assert all(line.startswith(start) for line, start in zip(lines, said, strict=True))


def test_what_auto_takes_is_said_once_and_again_where_it_differs(cpu, capsys):
    cpu(True)
    for name, took in (("base", "float32"), ("reference", "float32"), ("slm", "bf16_autocast"), ("eval", "float32")):
        tell(name, "auto", took, "cpu", lambda: 16)
    said = [f"{n}: precision auto is {p}" for n, p in (("base", "float32"), ("slm", "bf16_autocast"), ("eval", "float32"))]
    assert capsys.readouterr().err.splitlines() == said


# --- records ---


def test_what_is_recorded_counts_only_where_all_else_is_the_same():
    wanted, made = {"settings": {"precision": "auto", "lr": 1}, "seed": 0}, {"settings": {"precision": "old", "lr": 1}, "seed": 0}
    assert settled(wanted, made, lambda: "new") == made
    assert settled(wanted, None, lambda: "new")["settings"]["precision"] == "new"
    assert settled(wanted, {**made, "seed": 1}, lambda: "new")["settings"]["precision"] == "new"
    explicit = {"precision": "float32", "dtype": "float16"}
    assert settled(explicit, {"precision": "bfloat16", "dtype": "float16"}, lambda: "new") == explicit
    assert as_recorded(explicit, {"precision": "bfloat16"}) == explicit
    assert as_recorded({"precision": "auto"}, {"precision": "bfloat16"}) == {"precision": "bfloat16"}
    assert as_recorded({"precision": "auto"}, {}) == {"precision": "auto"}, "a record that tells nothing is not good for auto"


# --- scores ---


def without_scores(pipeline, name, precision):
    workspace = pipeline(name, {"score": {"precision": precision}})
    for file in workspace.scores("curated").path.iterdir():
        file.unlink()
    return workspace


def content(workspace):
    found = load_manifest(workspace.scores("curated"), "scores")
    return found.made_from["precision"], found.content_hash


def test_all_workers_take_what_the_set_was_planned_with(pipeline, monkeypatch):
    wanted = {}
    for precision_ in ("float32", "bf16_autocast"):
        alone = without_scores(pipeline, precision_, precision_)
        score(alone)
        wanted[precision_] = content(alone)
    assert wanted["float32"][1] != wanted["bf16_autocast"][1], "both give the same losses: the test shows nothing"
    workspace = without_scores(pipeline, "both", "auto")
    for index, here in enumerate(("bf16_autocast", "float32")):
        monkeypatch.setattr(scoring, "chosen_for_scores", lambda _device, here=here: here)
        score(workspace, share=Share(index, 2))
    assert content(workspace) == wanted["bf16_autocast"]
    corpus = workspace.open_tokens("corpus")
    assert workspace.open_scores("curated", corpus).manifest.made_from["precision"] == "bf16_autocast"
    assert scoring.resolve_planned(workspace, None)[1], "status and verify refuse a set that is good for auto"


def test_of_two_workers_that_plan_at_once_the_first_to_publish_decides(pipeline, monkeypatch):
    workspace = without_scores(pipeline, "race", "auto")
    folder = workspace.scores("curated")
    plan = json.loads(json.dumps(read_plan(pipeline("whole").scores("curated"))))
    plan["made_from"]["precision"] = "bf16_autocast"

    def meanwhile(_device):
        folder.put_json(PLAN, plan)
        return "float32"

    monkeypatch.setattr(scoring, "chosen_for_scores", meanwhile)
    score(workspace)
    assert content(workspace)[0] == "bf16_autocast"


def test_float32_scores_on_a_cpu_and_bfloat16_on_a_gpu_that_has_it(cpu, monkeypatch):
    cpu(True)
    assert chosen_for_scores("cpu") == "float32"
    for native, wanted in ((True, "bf16_autocast"), (False, "float32")):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda n=native, **_how: n)
        assert chosen_for_scores("cuda") == wanted
