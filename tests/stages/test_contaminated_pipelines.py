"""Held-out documents planted in the texts that models learn from: counted by prepare, by any number of workers, and refused."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny_store
from evaluated_pipeline import Made, results_of
from tiny_pipeline import sentences, write_jsonl

from slmctl.config.file import check
from slmctl.corpus import contamination_scan, shard_jobs
from slmctl.stages.evaluate import evaluate
from slmctl.stages.prepare import prepare
from slmctl.system.errors import InputError
from slmctl.workspace import contamination as stage
from slmctl.workspace.workers import Share
from slmctl.workspace.workspace import Workspace


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    found = tiny_store.store_settings(tmp_path)
    found["data"]["heldout"] = {n: {"path": str(tmp_path / f"{n}.jsonl")} for n in ("target", "other")}
    target, other = sentences(31, 12, 40), sentences(32, 6, 40)
    write_jsonl(tmp_path / "target.jsonl", target)
    write_jsonl(tmp_path / "other.jsonl", other)
    corpus, curated = sentences(33, 90, 30), sentences(34, 30, 30)
    corpus[3] = target[0]
    corpus[40] = {"text": "Then:\n\n" + target[1]["text"].upper().replace(" ", ",  ") + " And so on."}
    corpus[70] = {"text": " ".join(target[2]["text"].split()[:32]) + " of which the rest is another's"}  # 20 of 28 runs
    corpus[71] = {"text": " ".join(target[3]["text"].split()[:18]) + " of which the rest is another's"}  # 6 of 28
    curated[5] = other[4]
    write_jsonl(tmp_path / "corpus.jsonl", corpus)
    write_jsonl(tmp_path / "curated.jsonl", curated)
    return found


def opened(settings: dict[str, Any], **how: Any) -> Workspace:
    changed = copy.deepcopy(settings)
    changed.setdefault("eval", {}).update(how)
    return Workspace(check(changed, "tiny")).open()


def report_of(settings: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((Path(settings["output_dir"]) / "contamination.json").read_text(encoding="utf-8"))
    return found


def counts(report: dict[str, Any]) -> dict[str, tuple[int, int]]:
    sides = ((n, s, f[s]) for n, f in report["heldout"].items() for s in ("curated", "corpus") if s in f)
    return {f"{n} in {s}": (f["exact"], f["overlap"]) for n, s, f in sides}


PLANTED = {"other in curated": (1, 0), "other in corpus": (0, 0), "target in curated": (0, 0), "target in corpus": (1, 2)}


@pytest.fixture(autouse=True)
def _no_locks_are_left():
    yield
    tiny_store.release_locks()


def no_texts(*_: Any) -> None:
    raise AssertionError("texts were read again")


def test_what_is_planted_is_counted_and_said(settings, capsys):
    prepare(opened(settings))
    report = report_of(settings)
    assert counts(report) == PLANTED
    assert report["not_checked"] == {}
    said = capsys.readouterr().err
    line = "heldout/target: 3 of 12 documents also stand in corpus (1 word for word, 2 by 13-gram overlap >= 50%)"
    assert line in said
    assert "heldout/other: 1 of 6 documents also stands in curated" in said
    assert "18 held-out documents checked against curated and corpus" in said
    assert f"{settings['output_dir']}/contamination.json names some of those found" in said.replace("\n", " ")
    examples = report["heldout"]["target"]["corpus"]["examples"]
    assert [(e["document"], e["kind"]) for e in examples] == [(0, "exact"), (1, "overlap"), (2, "overlap")]
    assert examples[2]["share"] == round(20 / 28, 4)
    assert examples[0]["in"]["file"] == settings["data"]["corpus"]["path"]


def test_clean_texts_raise_no_alarm(settings, tmp_path, capsys):
    write_jsonl(tmp_path / "corpus.jsonl", sentences(33, 90, 30))
    write_jsonl(tmp_path / "curated.jsonl", sentences(34, 30, 30))
    prepare(opened(settings, contamination="stop"))
    assert set(counts(report_of(settings)).values()) == {(0, 0)}
    assert "none stands there" in capsys.readouterr().err


def test_a_second_time_nothing_is_read(settings, monkeypatch, capsys):
    prepare(opened(settings))
    before = (Path(settings["output_dir"]) / "contamination.json").stat()
    capsys.readouterr()
    for module, name in ((stage, "index_heldout"), (stage, "scan_slice"), (stage, "unreadable"), (shard_jobs, "make_shard")):
        monkeypatch.setattr(module, name, no_texts)
    prepare(opened(settings))
    assert (Path(settings["output_dir"]) / "contamination.json").stat().st_mtime_ns == before.st_mtime_ns
    said = capsys.readouterr().err
    figures = "other: 1 of 6 in curated, target: 3 of 12 in corpus"
    line = f"as before, held-out documents also stand in what models learn from ({figures}); {settings['output_dir']}/contamin"
    assert line in said
    assert "warning" not in said, "which was said when it was found"


def test_another_share_needs_no_text(settings, monkeypatch):
    prepare(opened(settings))
    monkeypatch.setattr(stage, "index_heldout", no_texts)
    monkeypatch.setattr(stage, "scan_slice", no_texts)
    for share, overlap in ((0.2, 3), (0.75, 1), (20 / 28, 2), (1.0, 1)):
        prepare(opened(settings, contamination_overlap=share))
        assert counts(report_of(settings))["target in corpus"] == (1, overlap)


def shards_of(settings: dict[str, Any]) -> dict[str, int]:
    folder = Path(settings["output_dir"]) / "tokens"
    return {str(f.relative_to(folder)): f.stat().st_mtime_ns for f in sorted(folder.rglob("shard-*.parquet"))}


@pytest.mark.parametrize("lost", ["all", "some", "report"])
def test_findings_that_are_missing_are_made_from_the_texts_alone(settings, lost, monkeypatch):
    prepare(opened(settings))
    wanted, shards, root = report_of(settings), shards_of(settings), Path(settings["output_dir"])
    (root / "contamination.json").unlink()
    if lost == "all":  # as an older slmctl leaves it
        shutil.rmtree(root / "contamination")
        for file in (root / ".cache").glob("heldout-*"):
            file.unlink()
    elif lost == "some":
        for part in sorted((root / "contamination").rglob("*.json"))[::2]:
            part.unlink()
    else:
        monkeypatch.setattr(stage, "scan_slice", no_texts)
    monkeypatch.setattr(shard_jobs, "make_shard", no_texts)
    prepare(opened(settings))
    assert report_of(settings) == wanted
    assert shards_of(settings) == shards


def test_another_held_out_set_makes_no_other_shard_anew(settings, tmp_path):
    prepare(opened(settings))
    shards = shards_of(settings)
    corpus = [json.loads(line) for line in (tmp_path / "corpus.jsonl").read_text().splitlines()]
    write_jsonl(tmp_path / "other.jsonl", [corpus[60], *sentences(35, 5, 40)])
    prepare(opened(settings))
    assert counts(report_of(settings)) == {**PLANTED, "other in curated": (0, 0), "other in corpus": (1, 0)}
    kept = {k: v for k, v in shards_of(settings).items() if not k.startswith("heldout/other")}
    assert kept.items() <= shards.items()
    settings["data"]["heldout"] = dict(reversed(settings["data"]["heldout"].items()))
    prepare(opened(settings))
    assert counts(report_of(settings))["other in corpus"] == (1, 0)
    del settings["data"]["heldout"]["target"]
    prepare(opened(settings, target="other"))
    assert counts(report_of(settings)) == {"other in curated": (0, 0), "other in corpus": (1, 0)}


def test_many_workers_find_what_one_finds(settings, capsys):
    prepare(opened(settings))
    wanted = report_of(settings)
    shutil.rmtree(settings["output_dir"])
    for index in (2, 0, 1):
        assert not (Path(settings["output_dir"]) / "contamination.json").exists()
        prepare(opened(settings), Share(index, 3))
        tiny_store.release_locks()
    assert report_of(settings) == wanted
    assert "slices are not looked at yet" in capsys.readouterr().err


def test_a_worker_that_ends_between_a_shard_and_its_findings(settings, monkeypatch):
    kept: list[Any] = []

    def keep(part: contamination_scan.SliceFindings, watch: Any) -> None:
        if len(kept) == 2:
            raise KeyboardInterrupt
        kept.append(part)
        original(part, watch)

    original = contamination_scan.SliceFindings.keep
    monkeypatch.setattr(contamination_scan.SliceFindings, "keep", keep)
    with pytest.raises(KeyboardInterrupt):
        prepare(opened(settings))
    monkeypatch.undo()
    tiny_store.release_locks()
    prepare(opened(settings))
    assert counts(report_of(settings)) == PLANTED


def test_processes_of_their_own(settings, monkeypatch):
    """As for large texts of sets that are there already."""
    prepare(opened(settings))
    wanted = report_of(settings)
    for file in Path(settings["output_dir"]).glob("contamination*"):
        shutil.rmtree(file) if file.is_dir() else file.unlink()
    monkeypatch.setattr(stage, "WORTH_A_PROCESS", 1)
    monkeypatch.setattr(stage, "cores", lambda: 2)
    monkeypatch.setattr(stage, "scan_slice", no_texts)
    prepare(opened(settings))
    assert report_of(settings) == wanted


def test_stop_refuses_with_what_to_do(settings):
    with pytest.raises(InputError) as e:
        prepare(opened(settings, contamination="stop"))
    for part in ("target: 3 of 12", "other: 1 of 6", "word for word", "shard 0, record 3", "-o eval.contamination=warn", "Take"):
        assert part in str(e.value)
    shards = shards_of(settings)
    with pytest.raises(InputError):
        prepare(opened(settings, contamination="stop"))
    prepare(opened(settings))  # which makes nothing anew
    assert shards_of(settings) == shards


def test_texts_that_are_not_here_are_not_called_clean(settings, tmp_path, capsys):
    settings["missing_inputs"] = "accept"
    prepare(opened(settings))
    wanted, root = report_of(settings), Path(settings["output_dir"])
    (tmp_path / "corpus.jsonl").rename(tmp_path / "away.jsonl")
    prepare(opened(settings))  # what was found before stands
    assert report_of(settings) == wanted
    shutil.rmtree(root / "contamination")
    (root / "contamination.json").unlink()
    prepare(opened(settings))
    report = report_of(settings)
    assert counts(report) == {"other in curated": (1, 0), "target in curated": (0, 0)}
    assert list(report["not_checked"]) == ["corpus"]
    assert "corpus is not checked" in capsys.readouterr().err
    (tmp_path / "away.jsonl").rename(tmp_path / "corpus.jsonl")
    (tmp_path / "target.jsonl").rename(tmp_path / "away.jsonl")
    for file in (root / ".cache").glob("heldout-*"):
        file.unlink()
    prepare(opened(settings))
    report = report_of(settings)
    assert counts(report) == {k: v for k, v in PLANTED.items() if k.startswith("other")}
    assert list(report["not_checked"]) == ["heldout/target"]
    (tmp_path / "away.jsonl").rename(tmp_path / "target.jsonl")
    prepare(opened(settings))
    assert counts(report_of(settings)) == PLANTED


def test_off_looks_at_nothing(settings, monkeypatch):
    monkeypatch.setattr(stage, "index_heldout", no_texts)
    prepare(opened(settings, contamination="off"))
    assert not list(Path(settings["output_dir"]).glob("contamination*"))


# --- eval ---


def plant(made: Made) -> None:
    """The second document of the target becomes part of the corpus's findings, as if it had always been there."""
    for part in sorted((made.root / "run" / "contamination").glob("corpus-*/*.json"))[:1]:
        part.write_text(json.dumps({"runs": [], "texts": [[0, 7]]}))
    (made.root / "run" / "contamination.json").unlink()
    prepare(made.open())
    tiny_store.release_locks()


def test_eval_tells_and_refuses_and_nothing_is_made_anew(own_copy, capsys, monkeypatch):
    before = results_of(own_copy.open())
    assert [a["level"] for a in before["alarms"] if a["name"] == "contamination"] == ["good"]
    plant(own_copy)
    models = {f: f.stat().st_mtime_ns for f in (own_copy.root / "run").rglob("done.json")}
    from slmctl.comparison.measure import Measure

    monkeypatch.setattr(Measure, "load", no_texts)  # no figure is measured again
    evaluate(own_copy.open())
    tiny_store.release_locks()
    results = results_of(own_copy.open())
    assert sum(f["corpus"]["exact"] for f in results["contamination"]["heldout"].values()) == 1
    assert [a["level"] for a in results["alarms"] if a["name"] == "contamination"] == ["bad"]
    assert {f: f.stat().st_mtime_ns for f in models} == models
    capsys.readouterr()
    for how in ({"contamination_overlap": 0.7}, {"contamination": "warn"}):
        evaluate(own_copy.open(lambda s, how=how: s["eval"].update(how)))
        tiny_store.release_locks()
    assert results_of(own_copy.open())["models"] == before["models"]
    with pytest.raises(InputError, match="contamination: stop"):
        evaluate(own_copy.open(lambda s: s["eval"].update(contamination="stop")))


@pytest.mark.parametrize("state", ["absent", "other", "off"])
def test_eval_says_that_it_was_not_checked(own_copy, state):
    path = own_copy.root / "run" / "contamination.json"
    if state == "absent":
        path.unlink()
    elif state == "other":
        path.write_text(path.read_text().replace('"corpus": "', '"corpus": "0'))
    evaluate(own_copy.open(lambda s: s["eval"].update(contamination="off" if state == "off" else "stop")))
    (said,) = [a for a in results_of(own_copy.open())["alarms"] if a["name"] == "contamination"]
    assert said["level"] == "note"
    assert "not checked" in said["text"]
