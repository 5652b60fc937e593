"""What `validate` tells of a configuration and of the first records of its inputs, before anything is made of them."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from tiny_pipeline import sentences, tiny_settings, write_jsonl

from slmctl.cli.process import main
from slmctl.comparison import task_checks
from slmctl.config.file import check
from slmctl.config.identical_arms import identical_arms
from slmctl.config.sweeps import add_sweeps, parse_over
from slmctl.stages import run as running
from slmctl.stages.validate import look
from slmctl.system.errors import ConfigError

TASK = [{"question": f"{a} + 1 =", "answer": str(a + 1)} for a in range(5)]


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    return tiny_settings(tmp_path)


def with_arms(settings: dict[str, Any], **arms: dict[str, Any]) -> Any:
    settings["pretrain"]["arms"] = arms
    return check(settings, "tiny")


def seen(settings: dict[str, Any], inputs: bool = True) -> Any:
    return look(check(settings, "tiny"), inputs)


# --- arms ---


@pytest.mark.parametrize(
    ("other", "differ"),
    [
        ({}, None),
        ({"log_every": 3, "save_every": 1}, "save_every, log_every"),
        ({"steps": None, "tokens": 6 * 256}, "tokens, steps"),
        ({"seed": 0}, "seed"),
        ({"selection": {"reference": "curated"}}, "selection"),
    ],
)
def test_arms_that_train_the_same_weights_are_named(settings: dict[str, Any], other: dict[str, Any], differ: str | None) -> None:
    [found] = identical_arms(with_arms(settings, slm={}, again=other))
    assert found.startswith("pretrain.arms.again: trains the same weights as arm 'slm'")
    assert (f"differ in {differ}, which does not decide them" in found) == (differ is not None)


@pytest.mark.parametrize(
    "other",
    [{"seed": 1}, {"lr": 0.5}, {"steps": 7}, {"selection": {"ratio": 0.5}}, {"selection": {"criterion": "random"}}],
)
def test_arms_that_differ_are_not_told(settings: dict[str, Any], other: dict[str, Any]) -> None:
    assert identical_arms(with_arms(settings, slm={}, other=other)) == []


def test_the_ratio_of_all_tokens_makes_no_difference_and_that_of_random_ones_does(settings: dict[str, Any]) -> None:
    def two(criterion: str) -> Any:
        return with_arms(
            settings, **{n: {"selection": {"criterion": criterion, "ratio": r}} for n, r in (("a", 0.5), ("b", 0.6))}
        )

    assert len(identical_arms(two("all"))) == 1
    assert identical_arms(two("random")) == []


def test_validate_refuses_identical_arms_and_run_tells_of_them_but_not_of_those_of_sweeps(
    settings: dict[str, Any], tmp_path: Path, capsys: Any
) -> None:
    config = with_arms(settings, slm={}, again={"log_every": 3})
    (tmp_path / "tiny.yaml").write_text(json.dumps(settings))
    with pytest.raises(SystemExit) as e:
        main(["validate", str(tmp_path / "tiny.yaml")])
    assert e.value.code == 2
    said = "pretrain.arms.again: trains the same weights as arm 'slm'"
    assert said in capsys.readouterr().err
    running._tell_identical_arms(config)
    assert f"warning: {said}" in capsys.readouterr().err
    config = with_arms(settings, slm={})
    swept = add_sweeps(tmp_path / "run", config, parse_over(config, "pretrain.arms.slm.micro_batch=4,8"))
    assert len(identical_arms(swept)) == 1
    running._tell_identical_arms(swept)
    assert not capsys.readouterr().err


# --- tasks ---


def tasks_of(settings: dict[str, Any], *tasks: Any) -> list[str]:
    settings["eval"] = {"tasks": list(tasks)}
    return list(seen(settings, inputs=False).mistakes)


def test_a_misspelt_task_of_the_harness_is_told_with_its_near_names(settings: dict[str, Any]) -> None:
    [found] = tasks_of(settings, "arc_easy", {"harness": "hellaswagg"})
    assert found.startswith("eval.tasks.1: lm-evaluation-harness has no task or group named 'hellaswagg'. Near: hellaswag")


def test_a_harness_that_is_not_installed_is_a_mistake_of_this_machine(settings: dict[str, Any], monkeypatch: Any) -> None:
    monkeypatch.setattr(task_checks, "is_installed", lambda: False)
    settings["eval"] = {"tasks": ["hellaswagg", "rho-general", {"suite": "rho-math", "only": ["gsm8k"]}]}
    found = seen(settings)
    assert found.mistakes == []
    assert [w.partition(":")[0] for w in found.wrong] == ["eval.tasks.0", "eval.tasks.1"]
    assert "pip install" in found.wrong[0]
    with pytest.raises(ConfigError, match="is not installed here"):
        task_checks.check_tasks(check(settings, "tiny"))


def test_a_task_that_executes_programs_is_told(settings: dict[str, Any], monkeypatch: Any) -> None:
    monkeypatch.delenv("HF_ALLOW_CODE_EVAL", raising=False)
    assert "HF_ALLOW_CODE_EVAL=1" in tasks_of(settings, "humaneval")[0]
    monkeypatch.setenv("HF_ALLOW_CODE_EVAL", "1")
    assert tasks_of(settings, "humaneval") == []


def test_what_eval_would_refuse_of_suites_and_own_tasks(settings: dict[str, Any], tmp_path: Path) -> None:
    task = {"name": "sums", "path": str(write_jsonl(tmp_path / "sums.jsonl", TASK))}
    settings["data"]["curated"] = {"path": task["path"], "text": "{question} {answer}"}
    suite = tmp_path / "suite"
    write_jsonl(suite / "gsm8k.jsonl", [{"question": "a"}])
    (tmp_path / "bare").mkdir()
    write_jsonl(tmp_path / "rows.jsonl", [{"a": 1}]).open("a").write("not JSON\n")
    for given, message in [
        ({**task, "shots": 6}, "task sums: 6 worked examples are wanted, the curated set offers 5: lower shots"),
        ({**task, "shots": 2, "max_new_tokens": 2048}, "max_new_tokens 2048 fills the model's whole context (2048)"),
        ({"suite": "rho-math", "data": str(suite)}, "gsm8k.jsonl, line 1: no record of task gsm8k: field 'answer' is absent"),
        ({"suite": "rho-math", "data": str(tmp_path / "bare")}, "rho-math: no task can be read"),
        ({"suite": "rho-general", "data": str(tmp_path / "bare")}, "nothing of it can be run from"),
        ({"suite": "rho-math", "shots": 99}, "worked examples, 99 are wanted: lower shots"),
        ({"harness": "arc_easy", "data": str(tmp_path / "rows.jsonl")}, "rows.jsonl, line 2: not valid JSON"),
    ]:
        assert message in "\n".join(tasks_of(settings, given)), given
        with pytest.raises(ConfigError, match="1 mistake in eval"):
            task_checks.check_tasks(check(settings, "tiny"))
    assert tasks_of(settings, {**task, "shots": 5}) == []


# --- first records ---


def test_a_field_that_the_records_lack_is_told_for_every_source(settings: dict[str, Any], tmp_path: Path) -> None:
    table = tmp_path / "more.parquet"
    pq.write_table(pa.table({"body": ["one two"], "title": ["a"]}), table)
    settings["data"]["corpus"] = [settings["data"]["corpus"], {"path": str(table)}]
    settings["data"]["heldout"]["target"]["text"] = "{question}\n{answer}"
    assert seen(settings, inputs=False).wrong == []
    corpus, heldout = seen(settings).wrong
    assert corpus.startswith(f"data.corpus.1: {table}, row 0: field 'text' is absent (the record has: body, title)")
    assert heldout.startswith(f"data.heldout.target: {tmp_path}/target.jsonl, line 1: field 'question' is absent")
    assert "(the record has: text)" in heldout


def test_a_file_that_is_cut_off_is_told(settings: dict[str, Any], tmp_path: Path) -> None:
    text = "".join(json.dumps(s) + "\n" for s in sentences(5, 2000)).encode()
    for name, whole in {"a.jsonl.gz": gzip.compress(text, mtime=0), "a.jsonl.zst": zstandard.compress(text)}.items():
        path = tmp_path / name
        settings["data"]["corpus"] = {"path": str(path)}
        path.write_bytes(whole)
        assert seen(settings).wrong == []
        path.write_bytes(whole[:-100])
        [found] = seen(settings).wrong
        assert found.startswith(f"data.corpus: {path} is broken or cut off")


def test_records_that_are_all_to_be_skipped_are_told(settings: dict[str, Any], tmp_path: Path) -> None:
    settings["data"]["curated"] |= {"text": "{body}", "on_bad": "skip"}
    [found] = seen(settings).wrong
    assert "all of the first 40 records would be left out (on_bad: skip)" in found
    assert "field 'body' is absent" in found
    write_jsonl(tmp_path / "curated.jsonl", [{"other": 1}, {"body": "a text"}])
    assert seen(settings).wrong == []


@pytest.mark.parametrize("name", ["a.jsonl", "b.jsonl", "a.parquet"])
def test_a_set_without_a_document_is_told(settings: dict[str, Any], tmp_path: Path, name: str) -> None:
    (tmp_path / "a.jsonl").touch()
    (tmp_path / "b.jsonl").write_text('\n{"text": " "}\n')
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "a.parquet")
    empty = {"path": str(tmp_path / name)}
    settings["data"]["heldout"]["target"] = empty
    settings["data"]["corpus"] = [settings["data"]["corpus"], empty]
    assert seen(settings, inputs=False).wrong == []
    [found] = seen(settings).wrong
    assert found.startswith("data.heldout.target is empty: there is no document with text in its files")


def test_validate_loads_no_model_library(settings: dict[str, Any], tmp_path: Path) -> None:
    settings["eval"] = {"tasks": ["arc_easy", {"suite": "rho-math", "only": ["gsm8k"]}]}
    (tmp_path / "tiny.yaml").write_text(json.dumps(settings))
    code = (
        "import sys; from slmctl.cli import main\n"
        f"try: main(['validate', {str(tmp_path / 'tiny.yaml')!r}])\n"
        "except SystemExit as e: assert not e.code\n"
        "print([m for m in ('torch', 'transformers', 'lm_eval', 'datasets') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


# --- the base ---


def test_a_base_of_random_weights_is_warned_of(slm_file: Any, capsys: Any) -> None:
    for train, said in ((None, 1), ({"steps": 2, "lr": 1e-3, "batch_tokens": 256}, 0)):
        with pytest.raises(SystemExit) as e:
            main(["validate", slm_file(train)])
        assert not e.value.code
        assert capsys.readouterr().err.count("the base has random weights: model.scratch.train is null") == said


@pytest.fixture
def slm_file(settings: dict[str, Any], tmp_path: Path) -> Any:
    """Writes the tiny pipeline with `train` for its base."""

    def make(train: dict[str, Any] | None) -> str:
        settings["model"]["scratch"]["train"] = train
        (tmp_path / "p.yaml").write_text(json.dumps(settings))
        return str(tmp_path / "p.yaml")

    return make
