"""What fields declare that they decide: no field without, and the rules under which one decides more."""

from __future__ import annotations

import pytest
from tiny_pipeline import tiny_settings

from slmctl.config import decides as config_decides
from slmctl.config import evaluation as config_eval
from slmctl.config.data import DataConfig, SourceConfig
from slmctl.config.decides import RESULTS, RULES, Decides, Nothing, Weights, by_content, decided, decides, declared
from slmctl.config.file import check
from slmctl.config.score import ScoreConfig
from slmctl.config.training import ArmConfig, ReferenceConfig, TrainingConfig
from slmctl.config.types import Section


def sections(parent=Section):
    for one in parent.__subclasses__():
        if one.__module__.startswith("slmctl."):
            yield one
            yield from sections(one)


def test_every_field_of_the_configuration_declares_what_it_decides():
    found = {s.__name__: declared(s) for s in sections()}
    assert {"PipelineConfig", "TrainingConfig", "ScratchConfig", "EvalConfig", "HarnessConfig"} <= set(found)
    assert found["TrainingConfig"]["lr"] == Decides.WEIGHTS
    assert found["ScratchConfig"]["train"] is None, "a section's own fields declare"
    inherited = {k: v for k, v in found["ReferenceConfig"].items() if k in found["TrainingConfig"]}
    assert inherited == found["TrainingConfig"]


def test_a_field_that_declares_nothing_is_refused_when_its_class_is_made():
    with pytest.raises(TypeError, match=r"Bare\.size declares nothing; want what it decides, once: size: Weights\[\.\.\.\]"):

        class Bare(Section):
            size: int = 3

    with pytest.raises(TypeError, match=r"Twice\.size declares NOTHING and WEIGHTS"):

        class Twice(Section):
            size: Weights[Nothing[int]] = 3


def test_what_is_decided_is_read_from_the_declarations_of_sections_within():
    found = decided(ArmConfig(steps=3, log_every=7, selection={"ratio": 0.5}), Decides.NOTHING, Decides.WEIGHTS)
    assert found["log_every"] == 7
    assert found["selection"]["ratio"] == 0.5
    assert "micro_batch" not in found
    tasks = decided(config_eval.EvalConfig(tasks=["arc_easy", {"name": "a", "path": "b"}]), Decides.EVALUATION)["tasks"]
    assert [("batch_size" in t, t.get("limit", 0)) for t in tasks] == [(False, None), (False, None)]


@pytest.mark.parametrize(
    ("before", "after", "names"),
    [
        (ArmConfig(steps=3), ArmConfig(steps=3, selection={"scope": "global"}), {"micro_batch"}),
        (ArmConfig(steps=3), ArmConfig(steps=3, selection={"scope": "threshold"}), {"micro_batch"}),
        (ReferenceConfig(), ReferenceConfig(keep_best_on="target", eval_every=5), {"eval_every", "eval_tokens"}),
    ],
)
def test_rules_say_where_a_field_decides_more(before, after, names):
    changed = {k for k in decides(before) if decides(before)[k] != decides(after)[k]}
    assert changed == names
    assert {decides(after)[k] for k in names} == {Decides.WEIGHTS}


def test_rules_are_of_fields_that_there_are():
    known = set(TrainingConfig.model_fields)
    assert {name for rule in RULES for name in rule.fields} <= known
    assert config_decides.Decides.TOKENS in declared(DataConfig).values()
    assert set(declared(config_eval.EvalConfig).values()) == {Decides.EVALUATION, Decides.FINDINGS, Decides.ROUNDING, None}


def test_what_says_where_something_lies_is_no_input_but_where_places_are_asked_for():
    source = SourceConfig(path=["a.jsonl"], text="{q}")
    found = decided(source, Decides.TOKENS)
    assert "text" in found
    assert not set(found) & by_content(SourceConfig)
    assert by_content(SourceConfig) == {"path", "hub", "hub_config", "split", "revision"}
    assert decided(source, Decides.TOKENS, places=True)["path"] == ["a.jsonl"]
    score = ScoreConfig(references={"a": {"path": "b"}})
    assert set(decided(score, Decides.SCORES)) == {"entropy", "dtype", "precision"}
    assert decided(score, Decides.SCORES, places=True)["references"] == {"a": {"path": "b", "revision": None, "gguf_file": None}}


def test_what_decides_any_result_changes_with_that_and_with_places_alone(tmp_path):
    settings = tiny_settings(tmp_path)
    before = decided(check(settings, "tiny"), *RESULTS, places=True)
    settings["pretrain"] |= {"log_every": 3, "loader_threads": 0}
    assert decided(check({**settings, "name": "other", "device": "auto"}, "tiny"), *RESULTS, places=True) == before
    settings["data"]["corpus"]["path"] = "elsewhere.jsonl"
    assert decided(check(settings, "tiny"), *RESULTS, places=True) != before
    assert "path" not in decided(check(settings, "tiny"), *RESULTS)["data"]["corpus"][0]
