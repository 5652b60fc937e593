"""`run --dry-run`: what it says is what a run then does, and it changes nothing."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from evaluated_pipeline import Change, Made
from tiny_pipeline import tiny_settings
from tiny_store import Store

from slmctl.cli.process import main
from slmctl.config.file import check
from slmctl.model import precision
from slmctl.stages import dry_run as dry
from slmctl.stages.dry_run import Planned, plan_run, show
from slmctl.system.errors import ConfigError
from slmctl.system.files import read_json


def tree(root: Path) -> dict[str, Any]:
    """Every file and folder below `root`, with its content and its time."""
    return {
        str(f.relative_to(root)): (f.stat().st_mtime_ns, hashlib.sha256(f.read_bytes()).hexdigest() if f.is_file() else "")
        for f in sorted(root.rglob("*"))
    }


def planned(made: Made, change: Change = lambda _: None) -> Planned:
    settings = json.loads(json.dumps(made.settings))
    change(settings)
    before = tree(made.root)
    found = plan_run(check(settings, "tiny"))
    assert tree(made.root) == before, "it changed something"
    return found


def actions(found: Planned) -> dict[str, str]:
    return {d.label: d.action for d, _ in found.stages}


def why(found: Planned, label: str) -> str:
    return next("; ".join(d.why) for d, _ in found.stages if d.label == label)


def test_nothing_is_there_and_nothing_is_made(tmp_path: Path, capsys: Any) -> None:
    settings = tiny_settings(tmp_path)
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(settings))
    before = tree(tmp_path)
    with pytest.raises(SystemExit) as e:
        main(["run", str(tmp_path / "tiny.yaml"), "--dry-run", "--json"])
    assert not e.value.code
    found = json.loads(capsys.readouterr().out)
    assert tree(tmp_path) == before
    assert {s["action"] for s in found["stages"]} == {"made"}
    assert found["problems"] == found["not_estimated"] == []
    assert found["seconds"] > 0
    assert 0 < found["bytes"][0] < found["bytes"][1] < found["free_bytes"]
    assert any("no tokenizer is here yet" in line for line in found["how"])
    corpus = next(s for s in found["stages"] if s["label"] == "tokens/corpus")
    size = sum(len(json.loads(line)["text"]) for line in (tmp_path / "corpus.jsonl").open())
    assert 0.5 * size / 4 <= corpus["bytes"][0] <= 1.2 * 0.5 * size / 4


def test_all_is_complete(evaluated: Made, capsys: Any) -> None:
    found = planned(evaluated)
    assert set(actions(found).values()) == {"skipped"}
    assert found.seconds == 0
    show(found)
    assert "nothing is to be made: a run would only write the report again" in capsys.readouterr().out


def anew(*labels: str) -> set[str]:
    return set(labels)


ARMS = ("pretrain/slm", "pretrain/clm", "pretrain/random")
BELOW_CORPUS = ("base", "reference", "scores/curated", *ARMS, "eval")


@pytest.mark.parametrize(
    ("change", "wanted", "label", "said"),
    [
        (
            lambda s: s["pretrain"]["arms"]["random"].update(lr=0.5),
            anew("pretrain/random", "eval"),
            "pretrain/random",
            "settings.lr: was 0.01, is now 0.5",
        ),
        (lambda s: s["eval"].update(level=0.9), anew("eval"), "eval", "settings.level: was 0.95, is now 0.9"),
        (lambda s: s["pretrain"].update(log_every=3, keep_last=3), anew(), "eval", ""),
        (
            lambda s: s["reference"].update(lr=0.5),
            anew("reference", "scores/curated", "pretrain/slm", "eval"),
            "scores/curated",
            "depends on reference, which is made anew",
        ),
        (
            lambda s: s["data"].update(seq_len=64),
            anew("tokens/curated", "tokens/corpus", "tokens/heldout/target", "tokens/heldout/general", *BELOW_CORPUS),
            "tokens/corpus",
            "seq_len: was 32, is now 64",
        ),
    ],
)
def test_what_a_change_touches(evaluated: Made, change: Change, wanted: set[str], label: str, said: str) -> None:
    found = planned(evaluated, change)
    assert {d for d, a in actions(found).items() if a == "made anew"} == wanted
    assert {a for d, a in actions(found).items() if d not in wanted} <= {"skipped"}
    assert said in why(found, label)
    assert found.problems == []
    if wanted & set(ARMS):
        assert any("metrics.jsonl" in line for line in found.how), "the rate is that of the logs"


def test_what_is_gone_on_with_taken_back_or_made_again(own_copy: Made) -> None:
    root = own_copy.root / "run"
    for name in ("done.json", "checkpoints/step-00000006/state.json"):
        (root / "pretrain" / "clm" / name).unlink()
    stale = root / "stale" / "reference-20250101T000000-000001"
    stale.parent.mkdir()
    shutil.move(root / "reference", stale)
    shutil.copytree(stale, root / "reference")
    other = {**read_json(stale / "inputs.json"), "seed": 9}
    (root / "reference" / "inputs.json").write_text(json.dumps(other))
    shards = sorted((root / "tokens" / "heldout" / "general").glob("shard-*"))
    shards[0].unlink()
    found = planned(own_copy)
    assert {d: a for d, a in actions(found).items() if a != "skipped"} == {
        "reference": "taken back",
        "pretrain/clm": "gone on with",
        "tokens/heldout/general": "gone on with",
        "eval": "made anew",
    }
    assert why(found, "reference") == f"seed: was 9, is now 0; taken back from {stale}"
    left = next(e.seconds for d, e in found.stages if d.label == "pretrain/clm")
    whole = planned(own_copy, lambda s: s["pretrain"]["arms"]["clm"].update(lr=0.3))
    assert left < next(e.seconds for d, e in whole.stages if d.label == "pretrain/clm")


def test_what_is_deleted_is_made_and_what_follows_is_to_be_seen(own_copy: Made) -> None:
    shutil.rmtree(own_copy.root / "run" / "tokens" / "corpus")
    found = actions(planned(own_copy))
    assert found["tokens/corpus"] == "made"
    assert found["base"] == found["pretrain/slm"] == "to be seen"
    assert found["tokens/curated"] == "skipped"


def test_problems_are_listed_and_end_with_2(own_copy: Made, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "corpus.jsonl").unlink()
    s = own_copy.settings
    s["pretrain"]["arms"]["slm"]["warmup"] = 500
    s["eval"]["tasks"] = [{"name": "x", "path": "absent.jsonl", "shots": 0}, "hellaswagg"]
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(s))
    before = tree(tmp_path)
    with pytest.raises(SystemExit) as e:
        main(["run", str(tmp_path / "tiny.yaml"), "--dry-run"])
    assert e.value.code == 2
    said = capsys.readouterr().err
    for text in (
        f"data.corpus: {tmp_path}/corpus.jsonl does not exist",
        "slm: warmup 500 takes all of the 6 steps",
        "eval.tasks.0.path: absent.jsonl does not exist",
        "no task or group named 'hellaswagg'",
    ):
        assert text in said
    assert said.count("corpus.jsonl does not exist") == 1, "each mistake once"
    assert tree(tmp_path) == before


def test_a_place_that_cannot_be_written_is_a_problem(evaluated: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    assert planned(evaluated).problems == []
    access = os.access  # which lets root write wherever the disk itself allows it
    monkeypatch.setattr(os, "access", lambda place, how: not how & os.W_OK and access(place, how))
    assert planned(evaluated).problems == [
        f"cannot write to {evaluated.root / 'run'}. Choose another output_dir, or change its rights."
    ]


def test_identical_arms_are_a_warning(evaluated: Made) -> None:
    again = {"selection": {"criterion": "all"}, "log_every": 3}
    found = planned(evaluated, lambda s: s["pretrain"]["arms"].update(again=again))
    assert found.problems == []
    assert found.warnings[0].startswith("pretrain.arms.again: trains the same weights as arm 'clm'")
    assert actions(found)["pretrain/again"] == "made"


def test_texts_that_are_gone_are_no_problem_where_that_is_accepted(own_copy: Made, tmp_path: Path) -> None:
    (tmp_path / "corpus.jsonl").unlink()
    found = planned(own_copy, lambda s: s.update(missing_inputs="accept"))
    assert found.problems == []
    assert actions(found)["tokens/corpus"] == "skipped"
    assert "texts are gone" in why(found, "tokens/corpus")


def test_the_output_dir_of_another_pipeline_is_refused(evaluated: Made) -> None:
    with pytest.raises(ConfigError, match="belongs to pipeline 'tiny'"):
        planned(evaluated, lambda s: s.update(name="other"))


def test_a_set_elsewhere_is_never_moved_aside(store: Store) -> None:
    settings = {**store.settings, "store_dir": str(store.root / "shared"), "output_dir": str(store.root / "other")}
    store.copy(scored=False)
    shutil.copytree(store.store / "tokens", store.root / "shared" / "tokens")
    found = plan_run(check({**settings, "seed": 3}, "tiny"))
    assert any("Give another store_dir" in p for p in found.problems)
    assert not (store.root / "other").exists()
    assert plan_run(check(settings, "tiny")).problems == []


def test_a_disk_that_is_too_small_is_a_warning(evaluated: Made, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setattr(dry, "_free", lambda _: 1000)
    show(planned(evaluated, lambda s: s["pretrain"]["arms"]["random"].update(lr=0.5)))
    said = capsys.readouterr().out
    assert "warning: this does not fit on the disk" in said
    assert "what is there now is kept in stale/" in said
    show(planned(evaluated))
    assert "warning" not in capsys.readouterr().out


def test_a_model_of_the_hub_is_not_fetched(tmp_path: Path) -> None:
    settings = tiny_settings(tmp_path)
    settings["model"] = {"path": "nobody/no-such-model"}
    before = tree(tmp_path)
    found = plan_run(check(settings, "tiny"))
    assert tree(tmp_path) == before
    assert "pretrain/slm" in found.not_estimated


def test_what_auto_took_is_kept_and_only_what_changes_otherwise_takes_another(evaluated: Made, monkeypatch: Any) -> None:
    monkeypatch.setattr(precision, "AMX_WIDTH", 1)
    monkeypatch.setattr(precision, "has_amx", lambda: True)  # a machine that would take bf16_autocast

    def auto(settings: dict[str, Any]) -> None:
        for section in (
            settings["model"]["scratch"]["train"],
            *(settings[n] for n in ("reference", "score", "pretrain", "eval")),
        ):
            section["precision"] = "auto"

    assert set(actions(planned(evaluated, auto)).values()) == {"skipped"}
    found = planned(evaluated, lambda s: (auto(s), s["pretrain"]["arms"]["random"].update(lr=0.5)))
    assert actions(found)["pretrain/random"] == "made anew"
    assert 'was "float32", is now "bf16_autocast"' in why(found, "pretrain/random")
    assert {a for label, a in actions(found).items() if label not in ("pretrain/random", "eval")} == {"skipped"}


def test_steps_and_epochs_are_told_and_what_is_unusual_of_them_warned_of(tmp_path: Path, capsys: Any) -> None:
    settings = tiny_settings(tmp_path)
    settings["pretrain"] |= {"steps": 4000, "tokens": None, "warmup": 1}
    settings["reference"] |= {"steps": 3, "epochs": None}
    settings["model"]["scratch"]["train"] = None
    found = plan_run(check(settings, "tiny"))
    of = {d.label: e for d, e in found.stages}
    assert (of["reference"].steps, of["pretrain/slm"].steps, of["base"].steps) == (3, 4000, None)
    rows = of["pretrain/slm"].epochs
    assert rows is not None
    assert rows > 5
    said = "\n".join(found.warnings)
    assert "reference: 3 steps, " in said
    assert "pretrain/slm: 4,000 steps, " in said
    assert "of the corpus, which it may come to know by heart" in said
    assert "the base has random weights" in said
    show(found)
    assert "4,000 steps, " in capsys.readouterr().out
