"""What a stage says of a folder that was made from other inputs: which settings changed, in words that a reader takes in."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tiny_pipeline import tiny_settings

from slmctl.comparison.results import begin_results
from slmctl.config.file import check
from slmctl.system.errors import MismatchError, SlmError
from slmctl.system.files import write_json
from slmctl.workspace import locks
from slmctl.workspace.stale import INPUTS
from slmctl.workspace.workspace import Workspace

HASHES = ("1f" * 32, "e0" * 32)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(check(tiny_settings(tmp_path), "tiny")).open()


def said(workspace: Workspace, was: object, now: object, capsys: pytest.CaptureFixture[str]) -> list[str]:
    capsys.readouterr()
    assert workspace.changed("arm", was, now) == (was != now)
    head, *lines = re.sub(r"\n(?!  )", " ", capsys.readouterr().err).strip().split("\n") or [""]
    assert head == ("arm: made from other inputs, so it is made anew. Changed:" if was != now else "")
    return [line.strip() for line in lines]


@pytest.mark.parametrize(
    ("was", "now", "lines"),
    [
        ({"lr": 0.01}, {"lr": 0.01}, []),
        ({"settings": {"lr": 0.01}}, {"settings": {"lr": 0.001}}, ["settings.lr: was 0.01, is now 0.001"]),
        ({"steps": None}, {"steps": 4}, ["steps: was not set, is now 4"]),
        ({"on": True}, {"on": False}, ["on: was true, is now false"]),
        ({"text": "{a}"}, {"text": "{a}!"}, ['text: was "{a}", is now "{a}!"']),
        ({"betas": [0.9, 0.95]}, {"betas": [0.9, 0.99]}, ["betas: was [0.9, 0.95], is now [0.9, 0.99]"]),
        ({"corpus": HASHES[0]}, {"corpus": HASHES[1]}, ["corpus: was 1f1f1f1f1f1f…, is now e0e0e0e0e0e0…"]),
        ({"base": None}, {"base": {"dtype": "x"}}, ['base: was not set, is now dtype "x"']),
        (
            {"texts": [{"path": "a"}]},
            {"texts": [{"path": "b"}, {"path": "c", "hub": None}]},
            ['texts[0].path: was "a", is now "b"', 'texts[1]: is new (path "c")'],
        ),
        ({"texts": [{"path": "a"}, {"path": "b"}]}, {"texts": [{"path": "a"}]}, ['texts[1]: is no longer there (path "b")']),
    ],
)
def test_each_change_is_a_key_path_with_what_it_was_and_is_now(
    workspace: Workspace, was: object, now: object, lines: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert said(workspace, was, now, capsys) == lines


def test_no_python_dict_is_shown_and_long_values_are_shortened(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    was = {"base": {"weights": HASHES[0], "config": {"layers": 2}}, "texts": [{"path": "x" * 300}], "tokenizer": None}
    now = {"base": None, "texts": [{"path": "y" * 300}], "tokenizer": {f"key{i}": HASHES[1] for i in range(9)}}
    lines = said(workspace, was, now, capsys)
    assert [line.split(":")[0] for line in lines] == ["base", "texts[0].path", "tokenizer"]
    assert not any("{" in line or "None" in line for line in lines)
    assert all(len(line) < 140 for line in lines)


def test_of_many_changes_a_handful_is_listed_and_the_rest_counted(
    workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = said(workspace, {f"k{i}": 0 for i in range(20)}, {f"k{i}": 1 for i in range(20)}, capsys)
    assert lines == [*[f"k{i}: was 0, is now 1" for i in range(6)], "and 14 more"]


def test_a_run_to_go_back_in_says_what_changed(workspace: Workspace) -> None:
    folder = workspace.arm("slm")
    workspace.begin(folder, {"settings": {"lr": 0.01}})
    with pytest.raises(MismatchError, match=r"made from other inputs:\n  settings\.lr: was 0\.01, is now 0\.5\nDo this\.$"):
        workspace.refuse_change(folder, {"settings": {"lr": 0.5}}, "Do this.")


def test_arms_that_a_sweep_adds_are_new_arms_not_changed_inputs(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    def inputs(**arms: int) -> dict[str, object]:
        return {"seed": 0, "models": {"base": 1, **arms}, "runs": arms, "checkpoints": arms, "sweeps": list(arms)}

    write_json(workspace.evaluation / INPUTS, inputs(slm=1))
    capsys.readouterr()
    begin_results(workspace.stage("eval"), inputs(slm=1, **{"slm-ratio-0.4": 1}))
    assert capsys.readouterr().err == "eval: new arm slm-ratio-0.4\n"
    begin_results(workspace.stage("eval"), inputs(clm=1, random=2))
    assert capsys.readouterr().err == "eval: new arms clm, random\neval: no longer in the comparison: arm slm\n"
    begin_results(workspace.stage("eval"), {**inputs(slm=2, clm=1), "seed": 1})
    head, *changed = capsys.readouterr().err.strip().split("\n")
    assert (head, changed[0][:5]) == ("eval: new arm clm", "eval:")
    assert [c.split(":")[0].strip() for c in changed[1:]] == ["seed", "models.slm", "runs.slm", "checkpoints.slm"]


@pytest.mark.parametrize("kind", ["lock", "alone", "planning"])
def test_a_folder_of_another_user_is_a_clear_message(workspace: Workspace, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """As someone meets it who may read a run and not write to it."""

    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(locks, "_open", refuse)
    use = {
        "lock": lambda: workspace.locks.lock("eval"),
        "alone": lambda: workspace.locks.alone("x").__enter__(),
        "planning": lambda: workspace.locks.planning().__enter__(),
    }[kind]
    with pytest.raises(SlmError, match=r"cannot write .*/run/\.cache/locks/\S*\.lock: Permission denied\. Choose another"):
        use()
