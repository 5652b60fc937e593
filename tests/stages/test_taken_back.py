"""What lies in stale/ and is what is wanted now is taken back: switching a setting to and fro makes nothing twice."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from evaluated_pipeline import Made, results_of
from tiny_store import CORPUS, Store, content, of, shards

from slmctl.stages import evaluate as evaluating
from slmctl.stages import prepare as preparing
from slmctl.stages import pretrain as training_arms
from slmctl.stages import run as running
from slmctl.stages import score as scoring
from slmctl.stages import train_base as training_base
from slmctl.stages import train_ref as training_reference
from slmctl.stages.prepare import prepare
from slmctl.stages.pretrain import pretrain
from slmctl.stages.run import run
from slmctl.stages.train_ref import train_reference
from slmctl.system.errors import SlmError
from slmctl.system.files import read_json, write_json
from slmctl.workspace import locks as locks_module
from slmctl.workspace import own_tokenizer
from slmctl.workspace.locks import Locks
from slmctl.workspace.stale import moved_aside, same_stage
from slmctl.workspace.workspace import Workspace

STAGES = ("tokenizer", "base", "reference", "pretrain/slm", "pretrain/clm", "pretrain/random")
SETS = ("tokens/curated", "tokens/corpus", "tokens/heldout/target", "tokens/heldout/general", "scores/curated")
AT = "20250101T000000-000001"


def swap(root: Path, label: str, record: str = "inputs.json") -> Path:
    """As if `label` had been made from other inputs since: what it was lies in stale/. Returns where."""
    stale = root / "stale" / f"{label.replace('/', '-')}-{AT}"
    stale.parent.mkdir(exist_ok=True)
    shutil.move(root / label, stale)
    (root / label).mkdir(parents=True)
    made = read_json(stale / record)
    other = {**made, "made_from": {**made["made_from"], "seed": 99}} if record == "plan.json" else {**made, "seed": 99}
    write_json(root / label / record, other)
    return stale


def nothing_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any, **__: Any) -> Any:
        raise AssertionError("made again")

    for place, name in [
        *[(training_base, "train"), (training_base, "new_model"), (training_reference, "train"), (training_arms, "train")],
        *[(scoring, "score_shard"), (preparing, "make_shards")],
        *[(own_tokenizer, "train_tokenizer"), (evaluating, "begin_results")],
    ]:
        real = getattr(place, name)
        fake = (lambda w, jobs, share, r=real: r(w, jobs, share) if not jobs else refused()) if name == "make_shards" else refused
        monkeypatch.setattr(place, name, fake)
    monkeypatch.setattr(running, "report", lambda workspace: workspace.report / "index.html")


def files(root: Path) -> dict[str, int]:
    """What was made, and when."""
    kinds = ("*.safetensors", "shard-*.parquet", "metrics.jsonl", "tokenizer.json")
    found = (f for kind in kinds for f in root.rglob(kind) if "stale" not in f.parts)
    return {str(f.relative_to(root)): f.stat().st_mtime_ns for f in found}


def test_every_kind_of_result_is_taken_back(own_copy: Made, monkeypatch: Any, capsys: Any) -> None:
    root = own_copy.root / "run"
    before, results = files(root), results_of(own_copy.open())
    for label in STAGES:
        swap(root, label)
    for label in SETS:
        swap(root, label, "plan.json")
    aside = root / "stale" / f"eval-{AT}"
    aside.mkdir()
    for name in ("inputs.json", "results.json", "highlights.json"):
        shutil.copy(root / "eval" / name, aside / name)
    write_json(root / "eval" / "inputs.json", {**read_json(aside / "inputs.json"), "seed": 99})
    write_json(root / "eval" / "results.json", {"other": 1})
    nothing_is_made(monkeypatch)
    run(own_copy.open())
    assert files(root) == before
    assert results_of(own_copy.open()) == results
    said = capsys.readouterr().err
    for label in (*STAGES, *SETS, "eval"):
        assert f"{label}: taken back from {root}/stale/{label.replace('/', '-')}-{AT}" in said, label
        assert "made anew" not in said
        [kept] = moved_aside(root, label)
        assert not kept.name.endswith(AT), "the others are kept in its place"
    run(own_copy.open())
    assert "taken back" not in capsys.readouterr().err


def test_a_setting_that_is_switched_to_and_fro_costs_nothing(own_copy: Made, monkeypatch: Any) -> None:
    root = own_copy.root / "run"

    def other() -> Workspace:
        return own_copy.open(lambda s: s["pretrain"]["arms"]["random"].update(lr=0.002))

    first = files(root)
    pretrain(other(), ["random"])
    second = files(root)
    assert first != second
    monkeypatch.setattr(training_arms, "train", lambda _: pytest.fail("trained again"))
    for wanted, workspace in ((first, own_copy.open), (second, other), (first, own_copy.open)):
        pretrain(workspace(), ["random"])
        assert files(root) == wanted


def test_a_run_that_is_not_complete_is_taken_back_and_gone_on_with(own_copy: Made, capsys: Any) -> None:
    root = own_copy.root / "run"
    stale = swap(root, "pretrain/clm")
    (stale / "done.json").unlink()
    shutil.rmtree(stale / "model")
    shutil.rmtree(stale / "checkpoints" / "step-00000006")
    pretrain(own_copy.open(), ["clm"])
    said = capsys.readouterr().err
    assert "taken back" in said
    assert "resuming after step 4 of 6" in said
    assert (root / "pretrain" / "clm" / "model" / "model.safetensors").is_file()


def test_starting_over_takes_nothing_back(own_copy: Made, capsys: Any) -> None:
    stale = swap(own_copy.root / "run", "pretrain/clm")
    pretrain(own_copy.open(), ["clm"], resume=False)
    assert "taken back" not in capsys.readouterr().err
    assert (stale / "done.json").is_file()


@pytest.mark.parametrize("what", ["model", "checkpoints of a run that is not complete"])
def test_what_was_thinned_out_is_not_taken_back(own_copy: Made, what: str) -> None:
    root = own_copy.root / "run"
    stale = swap(root, "pretrain/clm")
    inputs = read_json(stale / "inputs.json")
    assert same_stage(root, "pretrain/clm", inputs, "done.json") == stale
    if what == "model":
        (stale / "model" / "model.safetensors").unlink()
    else:
        (stale / "done.json").unlink()
        shutil.rmtree(stale / "checkpoints")
    assert same_stage(root, "pretrain/clm", inputs, "done.json") is None
    assert same_stage(root, "pretrain/cl", inputs, "done.json") is None


def test_nothing_changes_places_under_a_process_that_works_there(own_copy: Made, monkeypatch: Any) -> None:
    root = own_copy.root / "run"
    stale = swap(root, "pretrain/clm")
    Locks(root, own_copy.open().store, ()).lock("pretrain/clm")
    monkeypatch.setattr(locks_module, "_held", {})  # as another process, which holds none of this one's
    with pytest.raises(SlmError, match="another slmctl is working on"):
        pretrain(own_copy.open(), ["clm"])
    assert (stale / "done.json").is_file()


def test_others_may_read_what_a_process_has_taken_back(own_copy: Made, monkeypatch: Any) -> None:
    swap(own_copy.root / "run", "reference")
    train_reference(own_copy.open())
    others: dict[Path, Any] = {}
    with monkeypatch.context() as as_another_process:
        as_another_process.setattr(locks_module, "_held", others)
        train_reference(own_copy.open())
    assert any(path.name == "reference.lock" for path in others)


def test_a_set_that_is_not_complete_is_taken_back_with_the_shards_it_has(store: Store, capsys: Any) -> None:
    store.copy(scored=False)
    stale = swap(store.store, CORPUS, "plan.json")
    (stale / "manifest.json").unlink()
    (gone := stale / "shard-00001.parquet").unlink()
    kept = {f.name: f.stat().st_mtime_ns for f in stale.glob("shard-*")}
    prepare(store.open())
    assert f"{CORPUS}: taken back" in capsys.readouterr().err
    there = {f.name: f.stat().st_mtime_ns for f in (store.store / CORPUS).glob("shard-*")}
    assert gone.name in there
    assert {n: t for n, t in there.items() if n in kept} == kept
    assert shards(store.path(CORPUS)) == store.wanted[CORPUS][1]
    assert of(content(store.store), "tokens") == of(store.wanted, "tokens")
