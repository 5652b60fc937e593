"""`slmctl status`: what it says of each stage is what is there, and it changes nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from evaluated_pipeline import Change, Made
from test_dry_run import tree
from tiny_pipeline import tiny_settings

from slmctl.cli.process import main
from slmctl.config.file import check
from slmctl.stages.dry_run import resolve_results
from slmctl.stages.prepare import prepare
from slmctl.stages.run import run
from slmctl.stages.status import how_far, show, summary
from slmctl.system.errors import ConfigError
from slmctl.system.files import read_json, write_json
from slmctl.workspace.planned.standing import Standing, standings
from slmctl.workspace.planned.walk import walk
from slmctl.workspace.workspace import Workspace

ARMS = ("pretrain/slm", "pretrain/clm", "pretrain/random")


def standing(made: Made, change: Change = lambda _: None) -> dict[str, Standing]:
    """Of every stage, as `change` makes the settings."""
    settings = json.loads(json.dumps(made.settings))
    change(settings)
    before = tree(made.root)
    found = standings(walk(check(settings, "tiny"), resolve_results))
    assert tree(made.root) == before, "it changed something"
    return {one.stage.label: one for one in found}


def states(found: dict[str, Standing]) -> dict[str, str]:
    return {label: one.state for label, one in found.items()}


def not_complete(found: dict[str, Standing]) -> dict[str, tuple[str, tuple[str, ...]]]:
    return {label: (one.state, one.why) for label, one in found.items() if one.state != "complete"}


def with_page(made: Made) -> Path:
    """The report's page, which the pipeline was made without."""
    page = made.root / "run" / "report" / "index.html"
    page.parent.mkdir()
    page.write_text("<html></html>")
    return page


def test_of_nothing_nothing_is_there(tmp_path: Path, capsys: Any) -> None:
    settings = tiny_settings(tmp_path)
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(settings))
    before = tree(tmp_path)
    with pytest.raises(SystemExit) as e:
        main(["status", str(tmp_path / "tiny.yaml"), "--json"])
    assert not e.value.code
    assert tree(tmp_path) == before
    found = json.loads(capsys.readouterr().out)
    assert {s["state"] for s in found["stages"]} == {"not there"}
    assert [s["label"] for s in found["stages"]][-2:] == ["eval", "report"]
    corpus = next(s for s in found["stages"] if s["label"] == "tokens/corpus")
    assert (corpus["command"], corpus["needs"], corpus["counted"], corpus["of"]) == ("prepare", ["tokenizer"], "shards", None)


def test_all_is_complete(own_copy: Made, capsys: Any) -> None:
    with_page(own_copy)
    found = standing(own_copy)
    assert set(states(found).values()) == {"complete"}
    assert (found["pretrain/slm"].done, found["pretrain/slm"].of, found["reference"].of, found["base"].of) == (6, 6, 6, 4)
    corpus = found["tokens/corpus"]
    assert corpus.done == corpus.of == len(list((own_copy.root / "run" / "tokens" / "corpus").glob("shard-*")))
    show(list(found.values()), [])
    said = capsys.readouterr().out.splitlines()
    assert len(said) == len(found) + 2, "a head, a line a stage, and a sum"
    assert said[-1] == "all stages are complete"


def test_what_is_unfinished_and_how_far(own_copy: Made) -> None:
    root = own_copy.root / "run"
    for name in ("done.json", "checkpoints/step-00000006/state.json"):
        (root / "pretrain" / "clm" / name).unlink()
    shards = sorted((root / "tokens" / "corpus").glob("shard-*"))
    shards[0].unlink()
    found = standing(own_copy)
    clm, corpus = found["pretrain/clm"], found["tokens/corpus"]
    assert (clm.state, clm.done, clm.of, clm.at) == ("unfinished", 4, 6, 6)
    assert how_far(clm) == "4 of 6 steps saved, logged up to 6"
    assert (corpus.state, corpus.done, corpus.of) == ("unfinished", len(shards) - 1, len(shards))
    assert how_far(corpus) == f"{len(shards) - 1} of {len(shards)} shards"
    assert (found["base"].state, found["base"].why) == ("complete", ("tokens/corpus is unfinished",))
    assert found["pretrain/slm"].why == (
        *("base may come out as another one", "tokens/corpus is unfinished", "scores/curated may come out as another one"),
    )
    assert found["eval"].state == "stale"
    assert {"tokens/corpus is unfinished", "pretrain/clm is unfinished"} <= set(found["eval"].why)


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        (
            lambda s: s["pretrain"]["arms"]["random"].update(lr=0.5),
            {
                "pretrain/random": ("stale", ("settings.lr: was 0.01, is now 0.5",)),
                "eval": ("stale", ("pretrain/random is stale",)),
            },
        ),
        (lambda s: s["eval"].update(level=0.9), {"eval": ("stale", ("settings.level: was 0.95, is now 0.9",))}),
        (lambda s: s["pretrain"].update(log_every=3, keep_last=3), {}),
        (
            lambda s: s["reference"].update(lr=0.5),
            {
                "reference": ("stale", ("settings.lr: was 0.01, is now 0.5",)),
                "scores/curated": ("stale", ("reference is stale",)),
                "pretrain/slm": ("stale", ("scores/curated is stale",)),
                "eval": ("stale", ("reference is stale", "scores/curated is stale", "pretrain/slm is stale")),
            },
        ),
    ],
)
def test_what_is_stale_and_why(evaluated: Made, change: Change, wanted: dict[str, Any]) -> None:
    assert not_complete(standing(evaluated, change)) == {**wanted, "report": ("not there", ())}


def test_what_a_run_would_take_back(own_copy: Made) -> None:
    root = own_copy.root / "run"
    stale = root / "stale" / "reference-20250101T000000-000001"
    stale.parent.mkdir()
    shutil.move(root / "reference", stale)
    back = f"a run would take it back from {stale}"
    assert not_complete(standing(own_copy))["reference"] == ("not there", (back,))
    shutil.copytree(stale, root / "reference")
    write_json(root / "reference" / "inputs.json", {**read_json(stale / "inputs.json"), "seed": 9})
    assert not_complete(standing(own_copy))["reference"] == ("stale", ("seed: was 9, is now 0", back))


def test_results_and_page_that_are_behind(own_copy: Made) -> None:
    page, folder = with_page(own_copy), own_copy.root / "run" / "eval"
    assert not_complete(standing(own_copy)) == {}
    write_json(folder / "results.json", read_json(folder / "results.json"))
    assert not_complete(standing(own_copy)) == {"report": ("stale", (f"{folder / 'results.json'} is newer",))}
    page.write_text("<html></html>")
    write_json(folder / "under_way.json", read_json(folder / "inputs.json"))
    wanted = {"eval": ("unfinished", ()), "report": ("stale", ("eval is unfinished",))}
    assert not_complete(standing(own_copy)) == wanted
    (folder / "results.json").unlink()
    assert not_complete(standing(own_copy)) == wanted


def test_what_comes_after_what_is_not_there_is_told_so(own_copy: Made) -> None:
    shutil.rmtree(own_copy.root / "run" / "tokens" / "corpus")
    found = standing(own_copy)
    assert found["tokens/corpus"].state == "not there"
    assert (found["base"].state, found["base"].why) == ("complete", ("tokens/corpus is not there",))
    assert found["scores/curated"].why == ("tokens/corpus is not there", "reference may come out as another one")
    assert found["tokens/curated"].why == ()


def test_it_says_what_a_run_then_does(tmp_path: Path) -> None:
    settings = tiny_settings(tmp_path)
    made = Made(tmp_path, settings)
    prepare(made.open())
    found = standing(made)
    done = {"tokenizer", "tokens/curated", "tokens/corpus", "tokens/heldout/target"}
    assert {label for label, state in states(found).items() if state == "complete"} == done
    assert (
        summary(list(found.values()))
        == "4 of 12 stages are complete; next: slmctl train-base (or slmctl run, which makes all that is left)"
    )
    run(made.open())
    assert not_complete(standing(made)) == {}


def test_a_pipeline_that_needs_no_reference_has_none(evaluated: Made) -> None:
    found = standing(evaluated, lambda s: s["pretrain"]["arms"].pop("slm"))
    assert not {"reference", "scores/curated"} & set(found)
    assert found["eval"].state == "stale"


def test_another_pipelines_output_dir_is_refused_and_what_is_in_the_way_is_told(
    own_copy: Made, tmp_path: Path, capsys: Any
) -> None:
    with pytest.raises(ConfigError, match="belongs to pipeline 'tiny'"):
        standing(own_copy, lambda s: s.update(name="other"))
    store = tmp_path / "shared"
    shutil.copytree(own_copy.root / "run" / "tokens", store / "tokens")
    shutil.copytree(own_copy.root / "run" / "scores", store / "scores")
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump({**own_copy.settings, "store_dir": str(store), "seed": 3}))
    with pytest.raises(SystemExit) as e:
        main(["status", str(tmp_path / "tiny.yaml")])
    assert not e.value.code, "who looks is told, and not refused"
    said = capsys.readouterr().out
    assert "seed: was 0, is now 3" in said
    assert "note: " in said
    assert "Give another store_dir" in said


def test_who_only_looks_is_in_nobodys_way(own_copy: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    from slmctl.workspace import locks

    at_work = own_copy.open()
    at_work.locks.lock("pretrain/slm")
    monkeypatch.setattr(locks, "_held", {})  # as another process, which holds none of this one's
    assert standing(own_copy)["pretrain/slm"].state == "complete"
    assert isinstance(at_work, Workspace)
