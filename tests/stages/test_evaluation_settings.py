"""eval with parts of it off, and with little to go by: one arm, no scores, one document, a reference from elsewhere."""

from __future__ import annotations

import json
import shutil

import pytest
from evaluated_pipeline import ARMS, SEQ_LEN, STEPS, results_of, set_rows
from tiny_pipeline import sentences, write_jsonl

from slmctl.stages.evaluate import evaluate
from slmctl.stages.prepare import prepare
from slmctl.stages.pretrain import pretrain
from slmctl.stages.report import print_comparison, report
from slmctl.stages.score import score
from slmctl.system.errors import ConfigError
from slmctl.system.files import read_json


def evaluated_anew(workspace):
    evaluate(workspace)
    print_comparison(workspace)
    return results_of(workspace)


def test_without_diagnostics(own_copy):
    before = results_of(own_copy.open())
    workspace = own_copy.open(lambda s: s["eval"].update(dynamics=False))
    found = evaluated_anew(workspace)
    assert found["diagnostics"] == {}
    assert found["models"] == before["models"]
    for arm in ARMS:
        assert found["arms"][arm]["checkpoints"] == before["arms"][arm]["checkpoints"]
        assert set(found["arms"][arm]["kinds"]) == {"by_kind", "by_frequency"}
    assert read_json(workspace.evaluation / "highlights.json")["documents"] == []


def test_without_checkpoints_there_are_still_diagnostics(own_copy):
    before = results_of(own_copy.open())
    found = evaluated_anew(own_copy.open(lambda s: s["eval"].update(checkpoints=False)))
    for arm in ARMS:
        assert [c["step"] for c in found["arms"][arm]["checkpoints"]] == list(STEPS)
        assert all(c["heldout"] == {} for c in found["arms"][arm]["checkpoints"])
        assert "kept checkpoints were not evaluated; set eval.checkpoints: true" in found["arms"][arm]["control"]["why"]
    assert found["diagnostics"]["fit"] == {}, "no target loss to fit"
    for key in ("dynamics", "fixed_mask", "matrix"):
        assert found["diagnostics"][key] == before["diagnostics"][key]


def test_without_both_and_with_the_page(own_copy):
    workspace = own_copy.open(lambda s: s["eval"].update(checkpoints=False, dynamics=False))
    found = evaluated_anew(workspace)
    assert all(a["checkpoints"] == [] for a in found["arms"].values())
    assert all(set(a["kinds"]) == {"by_kind", "by_frequency"} for a in found["arms"].values())
    report(workspace)


def test_no_document_need_be_shown(own_copy):
    workspace = own_copy.open(lambda s: s["eval"].update(highlighted=0, dynamics_tokens=1))
    found = evaluated_anew(workspace)
    assert read_json(workspace.evaluation / "highlights.json")["documents"] == []
    assert (found["diagnostics"]["rows"], found["diagnostics"]["tokens"]) == (1, SEQ_LEN - 1)


@pytest.mark.parametrize("arm", ["slm", "clm"])
def test_one_arm_alone(own_copy, arm):
    def only(s):
        s["pretrain"]["arms"] = {arm: s["pretrain"]["arms"][arm]}

    found = evaluated_anew(own_copy.open(only))
    assert list(found["models"]) == ["base", "reference", arm]
    assert {(d["a"], d["b"]) for d in found["differences"]} == {(arm, "base"), ("reference", "base")}
    assert ("control" in found["arms"][arm]) == (arm == "clm")
    assert ("fixed_mask" in found["diagnostics"]) == (arm == "slm")


def test_controls_alone_need_no_scores(own_copy):
    def controls(s):
        s["pretrain"]["arms"].pop("slm")

    workspace = own_copy.open(controls)
    shutil.rmtree(workspace.root / "scores")
    shutil.rmtree(workspace.reference)
    found = evaluated_anew(workspace)
    assert list(found["models"]) == ["base", "clm", "random"]
    assert found["costs"] == {}
    assert "fixed_mask" not in found["diagnostics"]
    assert set(found["diagnostics"]["dynamics"]) == {"clm", "random"}
    assert found["arms"]["random"]["control"]["arm"] == "clm"
    shown = read_json(workspace.evaluation / "highlights.json")["documents"][0]["tokens"]
    assert set(shown["ref"]) == {None}
    assert set(shown["selected"]) == {"clm", "random"}


def test_settings_of_scores_that_were_edited_since_stop_no_evaluation(own_copy):
    """The arms, and the scores that they were trained by, are there all the same."""
    before = results_of(own_copy.open())
    workspace = own_copy.open(lambda s: (s["score"].update(entropy=False), s["reference"].update(lr=0.5)))
    evaluate(workspace)
    after = results_of(workspace)
    assert after["diagnostics"] == before["diagnostics"]
    assert after["costs"] == before["costs"]


def test_arms_by_two_references_pay_each_for_its_own(own_copy, tmp_path):
    """A second reference, which was there already."""
    other = tmp_path / "other"
    shutil.copytree(own_copy.open().arm("clm") / "model", other)

    def two(s):
        s["score"]["references"] = {"curated": "reference", "strong": str(other)}
        s["pretrain"]["arms"]["strong"] = {"selection": {"criterion": "excess_loss", "reference": "strong"}}

    workspace = own_copy.open(two)
    score(workspace)
    pretrain(workspace, ["strong"])
    found = evaluated_anew(workspace)
    costs = found["costs"]
    assert set(costs["scoring_flops"]) == set(costs["scored_tokens"]) == {"curated", "strong"}
    assert costs["scoring_flops"]["strong"] == costs["scoring_flops"]["curated"], "models of one shape"
    for arm, added in {"slm": costs["scoring_flops"]["curated"] + costs["reference_flops"], "clm": 0, "random": 0}.items():
        assert found["arms"][arm]["control"]["why"] is None
        control = found["arms"][arm]["control"]
        if control["flops_to_reach"] is not None:
            assert control["flops_to_reach_all"] == control["flops_to_reach"] + added
    matrix = found["diagnostics"]["matrix"]
    assert set(matrix) == {"slm", "strong"}
    shown = read_json(workspace.evaluation / "highlights.json")["documents"]
    assert any(d["tokens"]["selected"]["slm"] != d["tokens"]["selected"]["strong"] for d in shown)
    shutil.rmtree(other)  # scores outlive their model
    evaluate(own_copy.open(lambda s: (two(s), s["eval"].update(highlighted=1))))
    after = results_of(workspace)
    assert after["costs"]["scoring_flops"] == {**costs["scoring_flops"], "strong": None}
    assert after["diagnostics"]["matrix"] == matrix


def test_arms_of_two_seeds_are_held_against_the_controls_of_their_seeds(own_copy, capsys):
    def two_seeds(s):
        for arm in ("slm", "clm"):
            s["pretrain"]["arms"][f"{arm}-1"] = {**s["pretrain"]["arms"][arm], "seed": 1}

    workspace = own_copy.open(two_seeds)
    pretrain(workspace, ["slm-1", "clm-1"])
    found = evaluated_anew(workspace)
    slm, clm = found["seeds"]
    assert "control" not in clm
    control = slm["control"]
    assert (control["arms"], control["seeds"], control["why"]) == ([["slm", "clm"], ["slm-1", "clm-1"]], [0, 1], None)
    assert control["target_loss"] == pytest.approx(clm["target_loss"]["mean"])
    assert found["arms"]["slm-1"]["control"]["arm"] == "clm-1"
    said = [a["text"] for a in found["alarms"] if a["name"] == "cost" and "slm" in a["text"]]
    assert len(said) == 1, "once for both seeds"
    assert said[0].startswith("Over 2 seeds, too few for more than a rough interval, slm ")
    assert not any(a["level"] == "good" for a in found["alarms"] if a["name"] == "cost")
    assert "slm, 2 seeds" in capsys.readouterr().out
    report(workspace)
    assert "Over 2 seeds, too few" in (workspace.report / "index.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("records", [1, 2])
def test_a_heldout_set_of_few_documents(own_copy, tmp_path, records):
    write_jsonl(tmp_path / "few.jsonl", sentences(9, records, words=60))
    workspace = own_copy.open(lambda s: s["data"]["heldout"].update(few={"path": str(tmp_path / "few.jsonl")}))
    prepare(workspace)
    assert set_rows(workspace, "heldout/few").shape[0] > 1
    found = evaluated_anew(workspace)
    few = found["models"]["slm"]["heldout"]["few"]
    assert few["documents"] == records
    assert (few["interval"] is None) == (few["bits_per_byte_interval"] is None) == (records == 1)
    for one in (d for d in found["differences"] if d["set"] == "few"):
        assert (one["interval"] is None) == (records == 1)
        assert one["documents"] == records


def test_some_heldout_sets_alone(own_copy):
    found = evaluated_anew(own_copy.open(lambda s: s["eval"].update(heldout=["target"])))
    assert all(set(m["heldout"]) == {"target"} for m in found["models"].values())
    assert {d["set"] for d in found["differences"]} == {"target"}
    assert all(set(e["heldout"]) == {"target"} for a in found["arms"].values() for e in a["evals"])


# --- tasks ---


def task(tmp_path, **more):
    items = [{"q": f"one two {a}", "a": f"it is {a}"} for a in range(4)]
    write_jsonl(tmp_path / "task.jsonl", items)
    own = {"name": "sums", "path": str(tmp_path / "task.jsonl"), "prompt": "{q}", "answer": "{a}"}
    return {**own, "shots": 0, "max_new_tokens": 2, **more}


def test_outputs_with_line_ends_of_their_own_are_compared_item_by_item(own_copy, tmp_path, monkeypatch):
    """An output may hold what Python, but not JSON Lines, takes for the end of a line."""
    from slmctl.evaluation import generation

    def results(*_):
        outputs = [{"output": "one\u2028two\x85", "found": "1", "target": "1", "correct": i % 2 == 0} for i in range(4)]
        return {
            "accuracy": 0.5,
            "standard_error": 0.25,
            "items": 4,
            "shots": 0,
            "version": 1,
            "metric": "accuracy",
            "outputs": outputs,
        }

    monkeypatch.setattr(generation, "run_task", results)
    found = evaluated_anew(own_copy.open(lambda s: s["eval"].update(tasks=[task(tmp_path)])))
    assert {(d["a"], d["b"]) for d in found["task_differences"]} == {("slm", "clm"), ("slm", "random"), ("random", "clm")}
    for one in found["task_differences"]:
        assert (one["task"], one["items"], one["difference"], one["p"]) == ("sums", 4, 0, 1)
        low, high = one["interval"]
        assert low < 0 < high
    lines = (own_copy.open().evaluation / "tasks" / "sums" / "slm.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
    assert [json.loads(line)["output"] for line in lines] == ["one\u2028two\x85"] * 4


def test_a_task_whose_file_is_absent_or_whose_name_is_taken_is_refused(own_copy, tmp_path):
    with pytest.raises(ConfigError, match=r"eval\.tasks\.0\.path: absent\.jsonl does not exist"):
        evaluate(own_copy.open(lambda s: s["eval"].update(tasks=[task(tmp_path, path="absent.jsonl")])))
    folder = tmp_path / "math"
    write_jsonl(folder / "svamp.jsonl", [{"Body": "one", "Question": "two?", "Answer": "3", "question_concat": "x"}])
    suite = {"suite": "rho-math", "data": str(folder), "shots": 0}
    with pytest.raises(ConfigError, match="two entries give a result named 'svamp'"):
        evaluate(own_copy.open(lambda s: s["eval"].update(tasks=[suite, task(tmp_path, name="svamp")])))
