"""What the report says of a pipeline that has changed since it was evaluated. Its folders are made up: no model is trained."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_pipeline import tiny_settings, write_jsonl

from slmctl.comparison.notes import edited_settings, warn_once
from slmctl.comparison.results import EARLIER, load_results
from slmctl.config.decides import result_settings
from slmctl.config.file import check
from slmctl.report.page import Page
from slmctl.stages.report import report
from slmctl.system.files import read_json, write_json
from slmctl.system.hashes import sha256_json
from slmctl.workspace.stale import DONE, INPUTS
from slmctl.workspace.workspace import Workspace

ARMS = ("slm", "clm", "random")
EVALS = [{"step": 6, "heldout": {"target": 2.5}}]


class Evaluated:
    """A pipeline's folder as `eval` leaves it, as far as `report` reads it."""

    def __init__(self, root: Path) -> None:
        self.settings = tiny_settings(root)
        workspace = self.open()
        workspace.record()
        runs = {}
        for arm in ARMS:
            made = {"settings": result_settings(workspace.config.pretrain.arms[arm]), "seed": 0}
            write_json(workspace.arm(arm) / INPUTS, made)
            write_json(workspace.arm(arm) / DONE, {})
            write_jsonl(workspace.arm(arm) / "evals.jsonl", EVALS)
            runs[arm] = [made, sha256_json(EVALS)]
        write_json(workspace.evaluation / INPUTS, {"runs": runs})
        old = "arm clm was trained with other settings than the configuration has now: settings.lr: found 1, wanted 2"
        write_json(workspace.evaluation / "results.json", {"arms": {a: {} for a in ARMS}, "notes": ["a note of a task", old]})

    def open(self, change: Callable[[dict[str, Any]], Any] = lambda _: None) -> Workspace:
        settings = copy.deepcopy(self.settings)
        change(settings)
        return Workspace(check(settings, "tiny")).open()


def notes(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    found: list[str] = []

    def page(results: dict[str, Any], *_: Any) -> Page:
        found.extend(results["notes"])
        return Page("", {})

    monkeypatch.setattr("slmctl.stages.report.make_page", page)
    report(workspace)
    return found


@pytest.fixture
def evaluated(tmp_path: Path) -> Evaluated:
    return Evaluated(tmp_path)


def test_notes_of_settings_are_those_of_now(
    evaluated: Evaluated, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert notes(evaluated.open(), monkeypatch) == ["a note of a task"], "the note that is true no more is gone"

    def change(settings: dict[str, Any]) -> None:
        settings["pretrain"]["arms"]["slm"]["lr"] = 0.5

    workspace = evaluated.open(change)
    made = read_json(workspace.arm("slm") / INPUTS)
    edited = edited_settings("slm", made, workspace.config.pretrain.arms["slm"])
    assert edited
    warn_once(edited, workspace.noted)  # as eval does before
    first, second = notes(workspace, monkeypatch)
    assert capsys.readouterr().err.count("warning: arm slm was trained with other settings") == 1
    assert first == "a note of a task"
    assert second.startswith("arm slm was trained with other settings than the configuration has now")
    assert "0.5" in second


@pytest.mark.parametrize("what", ["evals", "inputs"])
def test_results_that_are_older_than_an_arm_are_said_to_be(
    evaluated: Evaluated, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    folder = evaluated.open().arm("clm")
    if what == "evals":
        write_jsonl(folder / "evals.jsonl", [{"step": 6, "heldout": {"target": 2.4}}])
    else:
        write_json(folder / INPUTS, {**read_json(folder / INPUTS), "seed": 1})
    assert notes(evaluated.open(), monkeypatch)[1:] == ["the results are older than arm clm: run `slmctl eval`"]


def test_arms_without_results_and_results_without_arms_are_named(evaluated: Evaluated, monkeypatch: pytest.MonkeyPatch) -> None:
    def change(settings: dict[str, Any]) -> None:
        arms = settings["pretrain"]["arms"]
        del arms["random"]
        arms |= {"trained": {"selection": {"criterion": "all"}}, "planned": {"selection": {"criterion": "all"}}}

    write_json(evaluated.open().arm("trained") / DONE, {})
    (evaluated.open().arm("slm") / DONE).unlink()
    assert notes(evaluated.open(change), monkeypatch)[1:] == [
        "arm slm is not there any more as it was evaluated: its folder is absent, or being trained anew",
        "arm random is not in the configuration any more",
        "no results for arm trained: run `slmctl eval`",
        "no results for arm planned: run `slmctl pretrain`",
    ]


def test_results_of_an_earlier_slmctl_are_judged_by_todays_rules(evaluated: Evaluated) -> None:
    false = {"name": "cost", "level": "good", "text": "slm reached clm's final target loss after 100 tokens, 3.63 times fewer"}
    models = {"base": {"kind": "base", "heldout": {"target": {"loss": 2.5, "documents": 7}}}}
    results = {"target": "target", "models": models, "arms": {}, "alarms": [false]}
    workspace = evaluated.open()
    write_json(workspace.evaluation / "results.json", results)
    found = load_results(workspace.evaluation)
    assert [a["name"] for a in found["alarms"]] == ["documents"]
    assert found["notes"] == [EARLIER]
    write_json(workspace.evaluation / "results.json", results | {"sets": {}})
    assert load_results(workspace.evaluation)["alarms"] == [false], "today's are shown as they were written"
