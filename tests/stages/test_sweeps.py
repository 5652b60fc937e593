"""Sweeps: what `--over` means, the arms it adds, and what the command makes of them on the tiny pipeline."""

from __future__ import annotations

import contextlib
import json
import threading

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from evaluated_pipeline import ARMS, evaluated_settings, results_of
from safetensors.torch import load_file

from slmctl.cli.process import main
from slmctl.config import sweeps
from slmctl.config.file import check
from slmctl.config.sweeps import FILE, add_sweeps, made_by, parse_over, points_of, read_sweeps, with_sweeps
from slmctl.config.yaml import lay_over
from slmctl.stages import run as running
from slmctl.stages import sweep as sweeping
from slmctl.stages.evaluate import evaluate
from slmctl.system.errors import ConfigError
from slmctl.training.telemetry import read_log
from slmctl.workspace.workspace import Workspace

RATIO = "pretrain.arms.slm.selection.ratio"


@pytest.fixture
def config(tmp_path):
    return check(evaluated_settings(tmp_path), "tiny")


def points(config, over):
    return [(s["arm"], s["key"], points_of(config, s)) for s in parse_over(config, over)]


# --- what --over means ---


@pytest.mark.parametrize(
    ("over", "wanted"),
    [
        (f"{RATIO}=0.4,0.5", [(0.4, "slm-ratio-0.4"), (0.5, "slm-ratio-0.5")]),
        (f"{RATIO}= 0.4 , 0.6", [(0.4, "slm-ratio-0.4"), (0.6, "slm")]),
        ("pretrain.arms.slm.lr=1e-4,2E-3,0.01", [(1e-4, "slm-lr-0.0001"), (2e-3, "slm-lr-0.002"), (0.01, "slm")]),
        ("pretrain.arms.slm.seed=null,1", [(0, "slm"), (1, "slm-seed-1")]),
        ("pretrain.arms.slm.seed=0", [(0, "slm")]),
        ("pretrain.arms.slm.skip_spikes=null,6", [(None, "slm"), (6, "slm-skip_spikes-6")]),
        (
            "pretrain.arms.slm.compile=true,false,auto",
            [(True, "slm-compile-true"), (False, "slm-compile-false"), ("auto", "slm")],
        ),
        (
            "pretrain.arms.slm.betas=[0.9, 0.95],[0.8, 0.9]",
            [([0.9, 0.95], "slm"), ([0.8, 0.9], "slm-betas-0.8-0.9")],
        ),
        ("pretrain.arms.slm.selection.scope=global", [("global", "slm-scope-global")]),
        ("pretrain.arms.slm.steps=6,9", [(6, "slm"), (9, "slm-steps-9")]),
    ],
)
def test_values_and_names(config, over, wanted):
    ((arm, _, found),) = points(config, over)
    assert (arm, found) == ("slm", wanted)
    assert [type(v) for v, _ in found] == [type(v) for v, _ in wanted]
    arms = with_sweeps(config, parse_over(config, over)).pretrain.arms
    assert set(arms) == {*ARMS, *(name for _, name in wanted)}


def test_a_key_of_pretrain_is_for_every_arm(config):
    assert [(arm, key) for arm, key, _ in points(config, "pretrain.seed=1")] == [(a, "seed") for a in ARMS]


@pytest.mark.parametrize(
    ("over", "message"),
    [
        (RATIO, "want a key below pretrain and its values"),
        (f"{RATIO}=", "want a key below pretrain and its values"),
        (f"{RATIO}= ", "want a key below pretrain and its values"),
        ("pretrain=1", "want a key below pretrain"),
        ("pretrain..lr=1", "want a key below pretrain"),
        ("reference.lr=1e-4", "give each value its own run"),
        ("seed=1,2", "give each value its own run"),
        ("pretrain.arms=1", "want pretrain.arms.NAME.KEY"),
        ("pretrain.arms.slm=1", "want pretrain.arms.NAME.KEY"),
        ("pretrain.arms.sml.lr=1", "the arms are slm, clm, random"),
        (f"{RATIO}=0.4]", "not valid YAML|want values"),
        (f"{RATIO}=[0.4", "not valid YAML"),
        (f"{RATIO}={{0.4", "not valid YAML"),
    ],
)
def test_what_is_no_sweep_is_refused(config, over, message):
    with pytest.raises(ConfigError, match=message):
        parse_over(config, over)


@pytest.mark.parametrize(
    ("over", "message"),
    [
        (f"{RATIO}=0.4,1.5", "slm-ratio-1.5.selection.ratio: Input should be less than or equal to 1"),
        (f"{RATIO}=half", r"slm-ratio-half.selection.ratio: Input should be a valid number \(found 'half'\)"),
        ("pretrain.arms.slm.selection.ration=0.4", "unknown key; did you mean 'ratio'"),
        ("pretrain.arms.slm.batch_tokens=100", "100 is not a multiple of seq_len x group_rows"),
    ],
)
def test_values_that_make_no_arm_leave_no_file(config, tmp_path, over, message):
    with pytest.raises(ConfigError, match=message):
        add_sweeps(tmp_path, config, parse_over(config, over))
    assert not (tmp_path / FILE).exists()


# --- arms of sweeps ---


def test_a_sweeps_arm_is_its_own_arm_with_one_setting_changed(config):
    found = with_sweeps(config, parse_over(config, f"{RATIO}=0.4")).pretrain.arms
    own, arm = (found[a].model_dump() for a in ("slm", "slm-ratio-0.4"))
    assert arm["selection"].pop("ratio") == 0.4
    assert own["selection"].pop("ratio") == 0.6
    assert arm == own
    assert {a: found[a] for a in ARMS} == config.pretrain.arms


def test_a_budget_in_another_unit_takes_the_place_of_the_arms_own(config):
    arm = with_sweeps(config, parse_over(config, "pretrain.arms.slm.tokens=512")).pretrain.arms["slm-tokens-512"]
    assert (arm.tokens, arm.steps) == (512, None)


def test_adding_twice_adds_nothing_and_values_come_together(config, tmp_path):
    over = [f"{RATIO}=0.4,0.6,0.4", "pretrain.seed=1,2"]

    def add(config, overs):
        """As the command does: on the configuration that has the sweeps' arms already."""
        opened = with_sweeps(config, read_sweeps(tmp_path))
        added = made_by(opened, read_sweeps(tmp_path))
        return add_sweeps(tmp_path, opened, [s for o in overs for s in parse_over(opened, o, added)])

    first = add(config, over)
    assert list(first.pretrain.arms) == [*ARMS, "slm-ratio-0.4", *(f"{a}-seed-{s}" for a in ARMS for s in (1, 2))]
    kept = (tmp_path / FILE).read_text(encoding="utf-8")
    assert add(config, over) == first
    assert (tmp_path / FILE).read_text(encoding="utf-8") == kept
    more = add(config, [f"{RATIO}=0.5,0.4"])
    assert set(more.pretrain.arms) == {*first.pretrain.arms, "slm-ratio-0.5"}
    assert read_sweeps(tmp_path)[0]["values"] == [0.4, 0.6, 0.5]
    again = add(config, ["pretrain.arms.slm-ratio-0.5.seed=7"])  # of an arm that a sweep has made
    assert set(again.pretrain.arms) == {*more.pretrain.arms, "slm-ratio-0.5-seed-7"}
    assert again.pretrain.arms["slm-ratio-0.5-seed-7"].selection.ratio == 0.5
    assert with_sweeps(config, read_sweeps(tmp_path)) == again, "the next command finds the same"


def test_after_the_file_was_edited_arms_are_what_it_says_now(config, tmp_path):
    settings = evaluated_settings(tmp_path)
    add_sweeps(tmp_path, config, parse_over(config, f"{RATIO}=0.4,0.6"))
    edited = check(lay_over(settings, {"pretrain": {"arms": {"slm": {"lr": 0.5, "selection": {"ratio": 0.4}}}}}), "edited")
    found = with_sweeps(edited, read_sweeps(tmp_path))
    assert set(found.pretrain.arms) == {*ARMS, "slm-ratio-0.6"}, "0.4 is the arm itself now, and 0.6 another"
    assert found.pretrain.arms["slm-ratio-0.6"].lr == 0.5
    assert points_of(found, read_sweeps(tmp_path)[0]) == [(0.4, "slm"), (0.6, "slm-ratio-0.6")]


def test_two_commands_at_once_lose_no_arm(tmp_path, monkeypatch):
    """The first one to write has read before the second one writes, unless the second waits for it."""
    settings = evaluated_settings(tmp_path)
    read, both_read = sweeps.read_sweeps, threading.Barrier(2)

    def slow(root):
        found = read(root)
        with contextlib.suppress(threading.BrokenBarrierError):
            both_read.wait(timeout=1)
        return found

    def one(over):
        sweeping.sweep(workspaces[over], [over])

    overs = [f"{RATIO}=0.4", "pretrain.arms.clm.lr=0.5"]
    workspaces = {over: Workspace(check(settings, "tiny")).open() for over in overs}
    monkeypatch.setattr(sweeping, "run", lambda workspace: workspace.report)
    monkeypatch.setattr(sweeps, "read_sweeps", slow)
    threads = [threading.Thread(target=one, args=(over,)) for over in overs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = read(workspaces[overs[0]].root)
    assert {(s["arm"], s["key"]) for s in found} == {("slm", "selection.ratio"), ("clm", "lr")}


def test_an_arm_that_is_gone_or_has_the_same_name_is_told(config, tmp_path):
    settings = evaluated_settings(tmp_path)
    add_sweeps(tmp_path, config, parse_over(config, f"{RATIO}=0.4"))
    without = {k: v for k, v in settings["pretrain"]["arms"].items() if k != "slm"}
    gone = check({**settings, "pretrain": {**settings["pretrain"], "arms": without}}, "gone")
    with pytest.raises(ConfigError, match=r"sweeps\.json has a sweep over arm 'slm', which the configuration lacks"):
        with_sweeps(gone, read_sweeps(tmp_path))
    own = {"pretrain": {"arms": {"slm-ratio-0.4": {"selection": {"ratio": 0.4}}}}}
    same = check(lay_over(settings, own), "same")
    assert with_sweeps(same, read_sweeps(tmp_path)) == same, "the very same arm may be in the file, too"
    own["pretrain"]["arms"]["slm-ratio-0.4"]["lr"] = 0.7
    with pytest.raises(ConfigError, match=r"'slm-ratio-0\.4' of the configuration has the name of another"):
        with_sweeps(check(lay_over(settings, own), "other"), read_sweeps(tmp_path))


# --- the command ---


@pytest.fixture(scope="module")
def swept(evaluated, tmp_path_factory):
    """A sweep over a second ratio, and one over a second seed; and an arm of the same settings with the pipeline's own seed."""
    made = evaluated.copy_to(tmp_path_factory.mktemp("swept"))
    made.settings["pretrain"]["arms"]["same"] = {"seed": 0, "selection": {"criterion": "excess_loss"}}
    path = made.root / "tiny.yaml"
    path.write_text(yaml.safe_dump(made.settings, sort_keys=False), encoding="utf-8")
    command = ["sweep", str(path), "--over", f"{RATIO}=0.3,0.6", "--over", "pretrain.arms.slm.seed=0,1"]
    assert slmctl(command) == 0
    return made, command


def slmctl(command):
    """Exit code of a command that makes no page, which takes its time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(running, "report", lambda workspace: workspace.report / "index.html")
        try:
            main(command)
        except SystemExit as e:
            return e.code or 0
    return 0


def weights(workspace, arm):
    return load_file(workspace.arm(arm) / "model" / "model.safetensors")


def equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.values(), b.values(), strict=True))


def test_the_command_trains_and_evaluates_what_is_new(swept):
    made, command = swept
    workspace = made.open()
    assert set(results_of(workspace)["arms"]) == {*ARMS, "same", "slm-ratio-0.3", "slm-seed-1"}
    times = {f: f.stat().st_mtime_ns for f in workspace.root.rglob("*.safetensors")}
    assert not list((workspace.root / "stale").glob("[!e]*")), "base, reference or an arm was trained anew for the sweep"
    assert slmctl(command) == 0
    assert {f: f.stat().st_mtime_ns for f in workspace.root.rglob("*.safetensors")} == times, "the second time it is all there"
    assert set(made.open().config.pretrain.arms) == set(results_of(workspace)["arms"])


def test_seeds_change_the_order_and_the_same_seed_changes_nothing(swept):
    workspace = swept[0].open()
    assert equal(weights(workspace, "same"), weights(workspace, "slm"))
    assert not equal(weights(workspace, "slm-seed-1"), weights(workspace, "slm"))
    logs = {a: read_log(workspace.arm(a) / "metrics.jsonl") for a in ("slm", "same", "slm-seed-1")}
    losses = {a: [m["loss"] for m in log] for a, log in logs.items()}
    assert losses["same"] == losses["slm"]
    assert losses["slm-seed-1"][0] != losses["slm"][0], "other rows from the first step on"
    seen = {a: pq.read_table(workspace.arm(a) / "token_counts.parquet")["seen"].to_numpy() for a in logs}
    assert (seen["same"] == seen["slm"]).all()
    assert (seen["slm-seed-1"] != seen["slm"]).any()


def test_results_sum_up_seeds_and_sweeps(swept):
    results = results_of(swept[0].open())
    (seeds,) = results["seeds"]
    arms = ["slm", "slm-seed-1"]
    assert (seeds["arm"], seeds["arms"]) == ("slm", arms), "the same seed twice is one run"
    losses = [results["models"][a]["heldout"]["target"]["loss"] for a in arms]
    assert seeds["target_loss"] == {
        **{"mean": pytest.approx(np.mean(losses)), "n": 2},
        "sd": pytest.approx((sum((x - np.mean(losses)) ** 2 for x in losses) / 1) ** 0.5),
    }
    assert [results["arms"][a]["seed"] for a in arms] == [0, 1]
    ratio, seed = results["sweeps"]
    assert (ratio["arm"], ratio["key"], seed["key"]) == ("slm", "selection.ratio", "seed")
    assert [(p["value"], p["arm"]) for p in ratio["points"]] == [(0.3, "slm-ratio-0.3"), (0.6, "slm")]
    assert [(p["value"], p["arm"]) for p in seed["points"]] == list(enumerate(arms))
    for point in ratio["points"] + seed["points"]:
        heldout = results["models"][point["arm"]]["heldout"]
        assert point["target_loss"] == heldout["target"]["loss"]
        assert point["interval"] == heldout["target"]["interval"]
        assert point["general"] == {"general": heldout["general"]["loss"]}
    assert results["arms"]["slm-ratio-0.3"]["selected"]["ratio"] == pytest.approx(0.3, abs=0.02)


def test_the_command_ends_with_a_table_of_means_over_seeds(swept, capsys):
    made, command = swept
    capsys.readouterr()
    assert slmctl(command) == 0
    said = capsys.readouterr().out
    losses = [results_of(made.open())["models"][a]["heldout"]["target"]["loss"] for a in ("slm", "slm-seed-1")]
    row = f"target   slm       2     {np.mean(losses):.4f}  {np.std(losses, ddof=1):.4f}".split()
    assert row in [line.split() for line in said.partition("Means over seeds")[2].splitlines()]
    assert "Held-out" not in said.partition("Means over seeds")[2]


def test_a_point_stands_at_the_value_it_was_trained_with(swept, tmp_path):
    made = swept[0].copy_to(tmp_path)
    workspace = made.open(lambda s: s["pretrain"]["arms"]["slm"].update(selection={"criterion": "excess_loss", "ratio": 0.9}))
    evaluate(workspace)
    ratio = results_of(workspace)["sweeps"][0]
    assert [(p["value"], p["arm"]) for p in ratio["points"]] == [(0.3, "slm-ratio-0.3")], "slm-ratio-0.6 is not trained"
    (kept := json.loads((workspace.root / FILE).read_text(encoding="utf-8")))["sweeps"][0]["values"].append(0.9)
    (workspace.root / FILE).write_text(json.dumps(kept), encoding="utf-8")
    workspace = made.open(lambda s: s["pretrain"]["arms"]["slm"].update(selection={"criterion": "excess_loss", "ratio": 0.9}))
    evaluate(workspace)
    ratio = results_of(workspace)["sweeps"][0]
    assert [(p["value"], p["arm"]) for p in ratio["points"]] == [(0.3, "slm-ratio-0.3"), (0.6, "slm")]
