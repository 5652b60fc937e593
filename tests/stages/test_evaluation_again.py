"""What eval measures again and what not: after a stop, another arm, another setting, files that are gone."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
from evaluated_pipeline import ARMS, STEPS, results_of

from slmctl.comparison import measure as measuring
from slmctl.comparison.measure_tasks import Tasks
from slmctl.comparison.notes import different_precisions, edited_settings
from slmctl.stages.evaluate import evaluate, resolve, resolve_conditions
from slmctl.stages.pretrain import pretrain
from slmctl.stages.report import report
from slmctl.system.errors import CorruptError, Interrupted
from slmctl.system.files import read_json, write_json
from slmctl.training.telemetry import read_log
from slmctl.workspace import precisions

CHECKPOINTS = [f"{a}/step-{s:08d}" for a in ARMS for s in STEPS]
MODELS = ["base", "reference", *(f"{a}/model" for a in ARMS)]


@pytest.fixture
def measured(monkeypatch):
    """What is measured: models and checkpoints whose held-out losses are worked out, in order."""
    found, model, checkpoint = [], measuring.Measure.load, measuring.load_weights
    losses = measuring.document_losses
    last = []

    def load(self, source):
        last[:] = ["/".join(source.path.split("/")[-(1 if source.path.endswith(("base", "reference")) else 2) :])]
        return model(self, source)

    def load_weights(directory, into):
        last[:] = [f"{directory.parent.parent.name}/{directory.name}"]
        return checkpoint(directory, into)

    def count(*args):
        if found[-1:] != last:
            found.extend(last)
        return losses(*args)

    monkeypatch.setattr(measuring.Measure, "load", load)
    monkeypatch.setattr(measuring, "load_weights", load_weights)
    monkeypatch.setattr(measuring, "document_losses", count)
    return found


def stale(workspace):
    return sorted((workspace.root / "stale").glob("eval-*/results.json"))


def test_a_complete_evaluation_is_skipped(own_copy, measured, capsys):
    workspace = own_copy.open()
    before = results_of(workspace)
    evaluate(workspace)
    assert measured == []
    assert "eval: complete, skipped" in capsys.readouterr().err
    assert results_of(workspace) == before


def test_everything_is_measured_once(own_copy, measured):
    workspace = own_copy.open()
    before, shown = results_of(workspace), (workspace.evaluation / "highlights.json").read_text(encoding="utf-8")
    shutil.rmtree(workspace.evaluation)
    evaluate(workspace)
    assert sorted(measured) == sorted(MODELS + CHECKPOINTS)
    assert results_of(workspace) == before
    assert (workspace.evaluation / "highlights.json").read_text(encoding="utf-8") == shown


@pytest.mark.parametrize("when", [2, 7, 12])
def test_after_a_stop_nothing_is_measured_twice(own_copy, measured, monkeypatch, when):
    """`when`: so many parts are written before it."""
    workspace = own_copy.open()
    undisturbed = results_of(workspace)
    shutil.rmtree(workspace.evaluation)
    keep = measuring.Measure._keep_part
    kept = []

    def stop(self, name, identity, found):
        if len(kept) == when:
            raise Interrupted(15, "stopped")
        kept.append(name)
        return keep(self, name, identity, found)

    monkeypatch.setattr(measuring.Measure, "_keep_part", stop)
    with pytest.raises(Interrupted):
        evaluate(workspace)
    assert not (workspace.evaluation / "results.json").exists()
    before = list(measured)
    assert len(before) == when + 1, "the one that was stopped in the middle"
    measured.clear()
    monkeypatch.setattr(measuring.Measure, "_keep_part", keep)
    evaluate(own_copy.open())
    assert sorted(before[:-1] + measured) == sorted(MODELS + CHECKPOINTS)
    assert results_of(workspace) == undisturbed
    assert not stale(workspace)


def test_what_was_measured_while_training_moves_no_headline(own_copy, measured):
    """slm's evaluations are on a tenth of the tokens from step 4 on, as if eval_tokens had changed across a resume, and its
    losses are lower for it; clm has every second of its own, as if eval_every differed."""
    before = results_of(own_copy.open())
    workspace = own_copy.open()
    logs = {a: read_log(workspace.arm(a) / "evals.jsonl") for a in ("slm", "clm")}
    for record in logs["slm"][2:]:
        record["heldout"]["target"] -= 1
        record["measured"]["target"] |= {"tokens": 9, "rows": "others"}
    for arm, records in {"slm": logs["slm"], "clm": logs["clm"][::2]}.items():
        (workspace.arm(arm) / "evals.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    evaluate(workspace)
    after = results_of(workspace)
    assert measured == []
    assert {a: f["control"] for a, f in after["arms"].items()} == {a: f["control"] for a, f in before["arms"].items()}
    assert after["alarms"] == before["alarms"]
    tokens = [e["measured"]["target"]["tokens"] for e in after["arms"]["slm"]["evals"]]
    whole = after["models"]["slm"]["heldout"]["target"]["predicted_tokens"]
    assert tokens == [whole, whole, 9, 9]
    assert after["arms"]["slm"]["evals"][0]["measured"]["target"]["rows"] == after["models"]["slm"]["heldout"]["target"]["rows"]


def test_logs_of_before_measures_were_recorded_are_read(own_copy):
    workspace = own_copy.open()
    before = results_of(workspace)
    records = [{k: v for k, v in r.items() if k != "measured"} for r in read_log(workspace.arm("slm") / "evals.jsonl")]
    (workspace.arm("slm") / "evals.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    evaluate(workspace)
    after = results_of(workspace)
    assert [e["measured"] for e in after["arms"]["slm"]["evals"]] == [{}] * 4
    assert after["arms"]["slm"]["control"] == before["arms"]["slm"]["control"]


def test_a_checkpoint_whose_documents_are_gone_is_measured_again(own_copy, measured):
    workspace = own_copy.open(lambda s: s["eval"].update(level=0.9))
    evaluate(workspace)
    measured.clear()
    (workspace.evaluation / "on_the_way" / "slm@4.parquet").unlink()
    (workspace.evaluation / "results.json").unlink()
    evaluate(workspace)
    assert measured == ["slm/step-00000004"]


def test_another_arm_alone_is_measured(own_copy, measured):
    before = results_of(own_copy.open())
    workspace = own_copy.open(lambda s: s["pretrain"]["arms"].update(own={"selection": {"ratio": 0.3}}))
    pretrain(workspace, ["own"])
    evaluate(workspace)
    assert sorted(measured) == sorted(["own/model", *(f"own/step-{s:08d}" for s in STEPS)])
    after = results_of(workspace)
    assert list(after["models"]) == ["base", "reference", *ARMS, "own"]
    assert {n: after["models"][n] for n in before["models"]} == before["models"]
    for arm in ARMS:
        assert after["arms"][arm]["checkpoints"] == before["arms"][arm]["checkpoints"]
        assert after["diagnostics"]["dynamics"][arm] == before["diagnostics"]["dynamics"][arm]
    assert {"own", "slm"} == set(after["diagnostics"]["matrix"])
    (old,) = stale(workspace)
    assert json.loads(old.read_text(encoding="utf-8")) == before


def test_an_arm_that_is_trained_again_is_measured_again(own_copy, measured):
    workspace = own_copy.open(lambda s: s["pretrain"]["arms"]["slm"].update(seed=5))
    pretrain(workspace, ["slm"])
    evaluate(workspace)
    assert sorted(measured) == sorted(["slm/model", *(f"slm/step-{s:08d}" for s in STEPS)])
    assert results_of(workspace)["arms"]["slm"]["seed"] == 5


def test_another_precision_measures_all_again_and_its_old_parts_are_of_no_use(own_copy, measured):
    before = results_of(own_copy.open())
    workspace = own_copy.open(lambda s: s["eval"].update(precision="bfloat16"))
    evaluate(workspace)
    assert sorted(measured) == sorted(MODELS + CHECKPOINTS)
    rough = results_of(workspace)
    for name, model in rough["models"].items():
        exact = before["models"][name]["heldout"]["target"]["loss"]
        assert model["heldout"]["target"]["loss"] != exact
        assert model["heldout"]["target"]["loss"] == pytest.approx(exact, rel=0.02)
        if name in ARMS:
            last = rough["arms"][name]["checkpoints"][-1]["heldout"]["target"]["loss"]
            assert last == model["heldout"]["target"]["loss"], "float32 weights become bfloat16 as a model's do"
            assert model["heldout"]["target"]["precision"] == "bfloat16"
            assert "measured in bfloat16" in rough["arms"][name]["control"]["why"]
            assert before["arms"][name]["control"]["why"] is None


def test_another_attention_measures_all_again(own_copy, measured):
    base = str(own_copy.open().base)

    def from_elsewhere(s):
        s["model"] = {"path": base}

    evaluate(own_copy.open(from_elsewhere))
    measured.clear()
    evaluate(own_copy.open(lambda s: (from_elsewhere(s), s["model"].update(attn_implementation="eager"))))
    assert sorted(measured) == sorted(MODELS + CHECKPOINTS)


def test_former_results_stay_until_new_ones_take_their_place(own_copy, monkeypatch, capsys):
    before = results_of(own_copy.open())
    keep, workspace = measuring.Measure._keep_part, own_copy.open(lambda s: s["eval"].update(level=0.9))

    def stop(self, name, identity, found):
        if name == "clm":
            raise Interrupted(15, "stopped")
        return keep(self, name, identity, found)

    monkeypatch.setattr(measuring.Measure, "_keep_part", stop)
    with pytest.raises(Interrupted):
        evaluate(workspace)
    assert results_of(workspace) == before
    report(workspace)
    page = (workspace.report / "index.html").read_text(encoding="utf-8")
    assert "the results are older than an evaluation that is not finished" in page
    assert not stale(workspace)
    capsys.readouterr()
    monkeypatch.setattr(measuring.Measure, "_keep_part", keep)
    evaluate(workspace)
    assert results_of(workspace)["level"] == 0.9
    (old,) = stale(workspace)
    assert json.loads(old.read_text(encoding="utf-8")) == before
    assert {f.name for f in old.parent.iterdir()} == {"results.json", "inputs.json", "highlights.json"}
    assert "the former results are kept in" in capsys.readouterr().err
    assert not (workspace.evaluation / "under_way.json").exists()
    evaluate(workspace)
    assert "eval: complete, skipped" in capsys.readouterr().err


def test_settings_that_are_taken_back_after_a_stop_measure_what_was_overwritten(own_copy, measured, monkeypatch):
    """A part of the old settings must not be taken beside files of the new ones."""
    before = results_of(own_copy.open())
    measure, workspace = Tasks.measure, own_copy.open(lambda s: s["eval"].update(precision="bfloat16"))

    def stop(self, model, name):
        if name == "base":  # its documents' losses are written by now
            raise Interrupted(15, "stopped")
        return measure(self, model, name)

    monkeypatch.setattr(Tasks, "measure", stop)
    with pytest.raises(Interrupted):
        evaluate(workspace)
    measured.clear()
    monkeypatch.setattr(Tasks, "measure", measure)
    workspace = own_copy.open()
    evaluate(workspace)
    assert measured == ["base"]
    assert results_of(workspace) == before
    assert results_of(workspace)["differences"] == before["differences"]


@pytest.mark.parametrize("gone", ["tokens", "documents", "parts"])
def test_what_is_deleted_is_made_again(own_copy, measured, gone):
    workspace = own_copy.open()
    before = results_of(workspace)
    files = sorted(f.relative_to(workspace.evaluation) for f in workspace.evaluation.rglob("*") if f.is_file())
    shutil.rmtree(workspace.evaluation / gone)
    (workspace.evaluation / "results.json").unlink()
    evaluate(workspace)
    wanted = {"tokens": ["base", *CHECKPOINTS], "documents": MODELS, "parts": MODELS + CHECKPOINTS}[gone]
    assert sorted(measured) == sorted(wanted)
    assert results_of(workspace) == before
    assert sorted(f.relative_to(workspace.evaluation) for f in workspace.evaluation.rglob("*") if f.is_file()) == files


def test_a_checkpoint_that_is_deleted_is_left_out_of_the_curves(own_copy, measured):
    workspace = own_copy.open()
    before = results_of(workspace)
    shutil.rmtree(workspace.arm("slm") / "checkpoints" / "step-00000004")
    shutil.rmtree(workspace.arm("random") / "checkpoints")
    evaluate(workspace)
    report(workspace)
    assert measured == []
    after = results_of(workspace)
    assert [c["step"] for c in after["arms"]["slm"]["checkpoints"]] == [2, 6]
    assert after["arms"]["random"]["checkpoints"] == []
    assert after["arms"]["clm"]["checkpoints"] == before["arms"]["clm"]["checkpoints"]
    assert after["diagnostics"]["dynamics"]["slm"]["steps"] == [0, 2, 6]
    assert set(after["diagnostics"]["fixed_mask"]["arms"]) == {"slm", "clm"}
    assert after["models"] == before["models"]
    assert after["arms"]["random"]["kinds"]["by_kind"] == before["arms"]["random"]["kinds"]["by_kind"]
    columns = pq.read_schema(workspace.evaluation / "tokens" / "slm.parquet").names
    assert [c for c in columns if c.startswith("loss_")] == ["loss_00000000", "loss_00000002", "loss_00000006"]


def test_a_broken_checkpoint_says_which_to_delete(own_copy):
    workspace = own_copy.open()
    directory = workspace.arm("clm") / "checkpoints" / "step-00000004"
    state = json.loads((directory / "state.json").read_text(encoding="utf-8"))
    (directory / "state.json").write_text(json.dumps({**state, "more": 1}), encoding="utf-8")
    shutil.rmtree(workspace.evaluation)
    with pytest.raises(CorruptError, match="clm/checkpoints/step-00000004 is broken"):
        evaluate(workspace)


def test_a_setting_that_was_edited_since_is_a_note(own_copy, measured):
    """Also where eval was complete; figures are of what was trained."""
    before = results_of(own_copy.open())
    workspace = own_copy.open(lambda s: s["pretrain"]["arms"]["slm"]["selection"].update(ratio=0.1))
    evaluate(workspace)
    after = results_of(workspace)
    assert measured == []
    (note,) = after["notes"]
    assert "selection.ratio: found 0.6, wanted 0.1" in note
    assert {k: after[k] for k in ("arms", "diagnostics")} == {k: before[k] for k in ("arms", "diagnostics")}


def test_scores_that_were_made_again_since_are_not_taken_for_the_arms_own(own_copy):
    workspace = own_copy.open()
    manifest = json.loads((workspace.arm("slm") / "inputs.json").read_text(encoding="utf-8"))
    (workspace.arm("slm") / "inputs.json").write_text(json.dumps({**manifest, "scores": "other"}), encoding="utf-8")
    evaluate(workspace)
    report(workspace)
    found = results_of(workspace)["diagnostics"]
    assert "fixed_mask" not in found
    assert found["matrix"] == {}
    assert np.sum([c["tokens"] for c in found["dynamics"]["slm"]["categories"].values()]) == found["tokens"]


# --- precision: auto ---


def test_auto_keeps_what_results_were_measured_in_and_they_say_so(own_copy, measured, monkeypatch):
    monkeypatch.setattr(precisions, "gains_by_bf16", lambda _device, _width: True)
    workspace = own_copy.open(lambda s: s["eval"].update(precision="auto"))
    evaluate(workspace)
    assert not measured, "float32 results that are there are good for auto"
    found = results_of(workspace)["precisions"]
    assert found == {"evaluation": "float32", "base": "float32", "reference": "float32", "scores": {"curated": "float32"}}
    base = workspace.base_source()
    assert resolve_conditions(workspace, base).precision == "float32"
    (workspace.evaluation / "inputs.json").unlink()
    assert resolve_conditions(workspace, base).precision == "bfloat16", "nothing is begun yet"
    write_json(workspace.evaluation / "under_way.json", {"settings": {"precision": "float32"}})
    assert resolve_conditions(workspace, base).precision == "float32", "what is half made goes on as it began"


def test_arms_of_different_precisions_are_told(own_copy, capsys):
    workspace = own_copy.open()
    assert resolve(workspace).notes == []
    file = workspace.arm("clm") / "inputs.json"
    made = read_json(file)
    write_json(file, {**made, "settings": {**made["settings"], "precision": "bf16_autocast"}})
    (note,) = different_precisions({a: read_json(workspace.arm(a) / "inputs.json") for a in ARMS})
    assert note in resolve(workspace).notes
    assert "different precisions (float32: slm, random; bf16_autocast: clm)" in note
    assert note in capsys.readouterr().err.replace("\n", " ")
    own_copy.settings["pretrain"]["precision"] = "auto"
    auto = own_copy.open().config.pretrain.arms["clm"]
    assert edited_settings("clm", read_json(file), auto) == [], "auto is whatever an arm was trained in"
