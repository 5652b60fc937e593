"""What forces a stage to be made anew, what does not, and what a stage run alone refuses."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_pipeline import sentences, tiny_settings, write_jsonl

from slmctl.config.file import check
from slmctl.stages.evaluate import evaluate
from slmctl.stages.prepare import prepare
from slmctl.stages.pretrain import pretrain
from slmctl.stages.run import run
from slmctl.stages.score import score
from slmctl.stages.train_base import train_base
from slmctl.stages.train_ref import train_reference
from slmctl.system.errors import ConfigError, InputError, Interrupted, MismatchError, SlmError
from slmctl.system.files import read_json
from slmctl.workspace import locks as locks_module
from slmctl.workspace.workspace import Workspace

Open = Callable[..., Workspace]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A whole run, made once; tests work on copies."""
    root = tmp_path_factory.mktemp("finished")
    settings = tiny_settings(root)
    run(Workspace(check(settings, "tiny")).open())
    return root, settings


@pytest.fixture
def opened(finished: tuple[Path, dict[str, Any]], tmp_path: Path) -> Open:
    """opened(change): the pipeline on a copy of the finished run, after `change(settings)`."""
    root, settings = finished
    shutil.copytree(root, tmp_path, dirs_exist_ok=True)
    here = json.loads(json.dumps(settings).replace(str(root), str(tmp_path)))

    def make(change: Callable[[dict[str, Any]], Any] = lambda _: None) -> Workspace:
        changed = copy.deepcopy(here)
        change(changed)
        return Workspace(check(changed, "tiny")).open()

    return make


def weights(workspace: Workspace) -> dict[str, int]:
    """When each model was written."""
    return {str(f): f.stat().st_mtime_ns for f in workspace.root.rglob("model.safetensors") if "stale" not in f.parts}


def test_settings_that_do_not_decide_the_weights_force_nothing_anew(opened: Open) -> None:
    before = weights(opened())

    def change(s: dict[str, Any]) -> None:
        other = {"micro_batch": 4, "log_every": 7, "save_every": 5, "keep_last": 1, "eval_every": 3, "eval_tokens": 64}
        for settings in (s["model"]["scratch"]["train"], s["reference"], s["pretrain"]):
            settings.update(other)

    run(opened(change))
    assert weights(opened()) == before


def test_another_heldout_set_is_evaluated_without_training_anything(opened: Open, tmp_path: Path) -> None:
    before = weights(opened())
    more = write_jsonl(tmp_path / "more.jsonl", sentences(9, 8))
    workspace = opened(lambda s: s["data"]["heldout"].update(more={"path": str(more)}))
    run(workspace)
    assert weights(workspace) == before
    results = read_json(workspace.evaluation / "results.json")
    assert results["models"]["slm"]["heldout"]["more"]["loss"] > 0
    assert results["arms"]["slm"]["control"]["target_loss"] > 0


def test_controls_trained_before_the_scores_are_not_trained_again(opened: Open) -> None:
    workspace = opened()
    shutil.rmtree(workspace.root / "scores")
    shutil.rmtree(workspace.arm("clm"))
    pretrain(workspace, ["clm"])
    before = weights(workspace)
    run(workspace)
    assert weights(workspace) == before


def test_a_renamed_text_of_the_same_content_forces_nothing_anew(opened: Open, tmp_path: Path) -> None:
    before = weights(opened())
    (tmp_path / "corpus.jsonl").rename(tmp_path / "web.jsonl")
    workspace = opened(lambda s: s["data"]["corpus"].update(path=str(tmp_path / "web.jsonl")))
    run(workspace)
    assert weights(workspace) == before
    assert not (workspace.root / "stale").exists()


def test_finished_sets_outlive_their_texts_where_that_is_accepted(
    opened: Open, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def accepting(**data: Any) -> Workspace:
        return opened(lambda s: (s.update(missing_inputs="accept"), s["data"].update(data)))

    before = weights(opened())
    for name in ("curated", "corpus", "target"):
        (tmp_path / f"{name}.jsonl").unlink()
    for stage in (prepare, score, pretrain, evaluate):
        with pytest.raises(InputError, match=r"\w+\.jsonl does not exist(.|\n)*missing_inputs=accept"):
            stage(opened())
    run(accepting())
    assert weights(opened()) == before
    said = capsys.readouterr().err
    assert all(f"tokens/{name}: texts that it was made from are gone" in said for name in ("curated", "corpus", "heldout/target"))
    for change in ({"seq_len": 64}, {"corpus": {"path": str(tmp_path / "corpus.jsonl"), "text": "{text}!"}}):
        with pytest.raises(InputError, match=r"cannot be made as the configuration wants it now: .*\.jsonl does not exist"):
            prepare(accepting(**change))
    assert not (tmp_path / "run" / "stale").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s["reference"].update(lr=0.5), r"settings\.lr: found 0\.01, wanted 0\.5(.|\n)*slmctl train-ref"),
        (lambda s: s["model"]["scratch"].update(hidden_size=32), r"model\.hidden_size: found 16, wanted 32(.|\n)*train-base"),
        (lambda s: s["score"].update(entropy=False), r"entropy: found True, wanted False(.|\n)*slmctl score"),
        (lambda s: s["data"].update(intra_document_mask=True), r"intra_document_mask: found False, wanted True"),
        (lambda s: s.update(seed=3), r"seed: found 0, wanted 3(.|\n)*slmctl prepare"),
        (lambda s: s["data"]["corpus"].update(text="{text}!"), r"texts\[0\]\.text: found '\{text\}', wanted '\{text\}!'"),
    ],
)
def test_pretrain_alone_refuses_what_the_configuration_would_make_otherwise(opened: Open, change: Any, message: str) -> None:
    before = weights(opened())
    with pytest.raises(MismatchError, match=message):
        pretrain(opened(change), ["slm"])
    assert weights(opened()) == before


def test_a_base_of_another_tokenizer_is_refused(opened: Open, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "curated.jsonl", [{"text": f"zebra quagga okapi {i}"} for i in range(60)])
    workspace = opened()
    prepare(workspace)
    for stage in (train_reference, score, pretrain, evaluate):
        with pytest.raises(MismatchError, match="tokenizer"):
            stage(workspace)
    train_base(workspace)
    train_reference(workspace)


def test_an_arm_is_reported_as_what_it_was_trained_as(opened: Open, capsys: pytest.CaptureFixture[str]) -> None:
    workspace = opened(lambda s: s["pretrain"]["arms"]["slm"]["selection"].update(ratio=0.1))
    evaluate(workspace)
    assert "selection.ratio: found 0.6, wanted 0.1" in capsys.readouterr().err
    assert read_json(workspace.evaluation / "results.json")["arms"]["slm"]["selection"]["ratio"] == 0.6


def test_no_resume_moves_a_finished_arm_aside_and_trains_it_again(opened: Open) -> None:
    workspace = opened()
    before = weights(workspace)
    pretrain(workspace, ["clm"], resume=False)
    after = weights(workspace)
    assert [k for k in before if before[k] != after[k]] == [str(workspace.arm("clm") / "model" / "model.safetensors")]
    assert len(list((workspace.root / "stale").glob("pretrain-clm-*"))) == 1


def test_an_interrupt_while_a_checkpoint_is_verified_breaks_nothing(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = opened()
    (workspace.arm("clm") / "done.json").unlink()
    checkpoints = sorted(p.name for p in (workspace.arm("clm") / "checkpoints").iterdir())

    def stop(_: Path) -> str:
        raise Interrupted(2, "SIGINT")

    monkeypatch.setattr("slmctl.training.checkpoint_files.sha256_file", stop)
    with pytest.raises(Interrupted):
        pretrain(workspace, ["clm"])
    assert sorted(p.name for p in (workspace.arm("clm") / "checkpoints").iterdir()) == checkpoints


def test_two_processes_do_not_work_on_one_folder(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = opened()
    workspace.locks.lock("pretrain/slm")
    monkeypatch.setattr(locks_module, "_held", {})  # as another process, which holds none of this one's
    with pytest.raises(SlmError, match="another slmctl is working on"):
        pretrain(workspace, ["slm"], resume=False)


def as_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which holds none of the locks that were taken here so far; they stay taken."""
    monkeypatch.setattr(locks_module, "_held", {})
    monkeypatch.setattr(locks_module.time, "sleep", lambda _: None)


def test_nobody_trains_anew_what_is_being_evaluated(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = opened()
    evaluate(workspace)
    as_another_process(monkeypatch)
    before = weights(workspace)
    again: list[Callable[[], None]] = [
        lambda: train_base(workspace, resume=False),
        lambda: train_reference(workspace, resume=False),
        lambda: pretrain(workspace, ["clm"], resume=False),
        lambda: pretrain(workspace, ["clm"], resume=4),
    ]
    for train in again:
        with pytest.raises(SlmError, match=r"another slmctl is working on .*run/(base|reference|pretrain/clm)\. Wait for it"):
            train()
    assert weights(workspace) == before
    assert all((d / "done.json").is_file() for d in (workspace.base, workspace.reference, workspace.arm("clm")))
    run(workspace)  # which finds all complete, and so may be beside an evaluation
    evaluate(workspace)


@pytest.mark.parametrize("label", ["base", "reference", "pretrain/clm"])
def test_what_is_being_replaced_is_not_evaluated(label: str, opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = opened()
    workspace.locks.lock(label)
    as_another_process(monkeypatch)
    with pytest.raises(SlmError, match=f"another slmctl is replacing {label}. Wait for it"):
        evaluate(workspace)


def test_what_is_complete_is_evaluated_beside_training(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that has trained one arm, and trains another, keeps nobody from the first."""
    workspace = opened()
    pretrain(workspace, ["clm"], resume=False)
    workspace.locks.lock("pretrain/random")
    (workspace.arm("random") / "done.json").unlink()
    as_another_process(monkeypatch)
    evaluate(workspace)
    assert set(read_json(workspace.evaluation / "results.json")["arms"]) == {"slm", "clm"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s["pretrain"]["arms"].update(base={}), "pretrain.arms.base"),
        (lambda s: s["pretrain"].update(micro_batch=2), "micro_batch: 2 is less than group_rows 4"),
        (lambda s: s["reference"].update(keep_best_on="target"), "needs reference.eval_every"),
        (lambda s: s.update(eval={"tasks": [{"name": "x", "path": "a"}] * 2}), "two tasks are named 'x'"),
        (lambda s: s["model"].update(attn_implementation="flash_attention_2"), "score.precision: float32 does not work"),
        (lambda s: s["data"]["corpus"].update(text="{"), "data.corpus.text: text template"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(opened: Open, change: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace(".", r"\.")):
        opened(change)


def test_a_warmup_longer_than_the_run_is_refused(opened: Open) -> None:
    with pytest.raises(ConfigError, match="warmup 500 takes all of the 6 steps"):
        pretrain(opened(lambda s: s["pretrain"].update(warmup=500)), ["clm"])
