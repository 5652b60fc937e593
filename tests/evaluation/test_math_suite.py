"""The mathematics suite: records of each layout, prompts, worked examples, and which tasks are found."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import pytest
import zstandard

from slmctl.config.evaluation import SuiteConfig
from slmctl.corpus.tokenizer import Tokenizer
from slmctl.evaluation.generation import run_task
from slmctl.evaluation.tasks import math_suite as suite
from slmctl.evaluation.tasks import records
from slmctl.evaluation.tasks.math_suite import examples_of, suite_files, suite_names, suite_tasks, worked_examples
from slmctl.evaluation.tasks.mathematics import NINE, TASKS
from slmctl.evaluation.tasks.records import lettered
from slmctl.system.errors import ConfigError, InputError

TABLE = {
    "table_title": "Hats",
    "table": "Hat | Price\nred | $2",
    "question": "Which hat?",
    "choices": ["red", "blue"],
    "answer": "red",
}
RECORDS = {
    "gsm8k": ({"question": "1 + 1?", "answer": "It is <<1+1=2>>2.\n#### 1,002"}, "1002"),
    "minerva_math": (
        {"problem": "$1+1$?", "solution": "No \\boxed{3}, \\boxed{\\frac{1}{2}}", "answer": "\\frac{1}{2}"},
        "\\frac{1}{2}",
    ),
    "math": ({"problem": "$1+1$?", "level": "Level 1", "solution": "\\boxed{3}, then \\boxed{\\frac{1}{2}}."}, "\\frac{1}{2}"),
    "svamp": ({"Body": "Two hats", "Question": "How many?", "Equation": "2", "Answer": 2.0, "ID": "chal-1"}, "2"),
    "asdiv": ({"body": "Two hats.", "question": "How many?", "answer": "9 (hats)", "formula": "9"}, "9"),
    "mawps": ({"input": "How many?", "target": 0.75, "type": "singleeq"}, "0.75"),
    "tabmwp": (TABLE, "red"),
    "mathqa": ({"problem": "which ?", "options": "a ) 12 , b ) 1,600 , c ) 18 , d ) 24 , e ) none", "correct": "b"}, "B"),
    "mmlu_stem": ({"question": "Which?", "type": "college_physics", "choices": ["1", "2", "3", "4"], "answer": 2}, "C"),
    "sat_math": ({"question": "Which?", "options": "A) $f(-6)=0$ B) 2 C) 3 D) 4", "Answer": "D"}, "D"),
}


def folder(tmp_path: Path, **records: list[dict]) -> str:
    for name, rows in records.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return str(tmp_path)


def config(data: str | None, **over: object) -> SuiteConfig:
    return SuiteConfig.model_validate({"suite": "rho-math", "data": data, **over})


@pytest.mark.parametrize("name", TASKS)
def test_a_record_becomes_question_and_target(name, tmp_path):
    record, target = RECORDS[name]
    tasks, notes = suite_tasks(config(folder(tmp_path, **{name: [record]})), 0)
    assert [t.name for t in tasks] == [name]
    assert len(notes) == len(TASKS) - 1
    (item,) = tasks[0].items
    assert item.target == target
    assert tasks[0].same(target, target)
    assert item.prompt.endswith(("\nAnswer:", "\nSolution:"))
    assert tasks[0].shots == TASKS[name].shots
    assert tasks[0].prefix.count(item.prompt.split()[0]) == tasks[0].shots
    assert any(s in "\n\n" + item.prompt for s in tasks[0].stop)


def test_prompts_as_a_model_sees_them(tmp_path):
    data = folder(tmp_path, **{name: [record] for name, (record, _) in RECORDS.items()})
    prompts = {t.name: t.items[0].prompt for t in suite_tasks(config(data), 0)[0]}
    assert prompts["svamp"] == "Question: Two hats. How many?\nAnswer:"
    assert prompts["asdiv"] == "Question: Two hats. How many?\nAnswer:"
    assert prompts["math"] == "Problem:\n$1+1$?\nSolution:"
    assert prompts["mathqa"].splitlines()[1] == "Which ?"
    assert prompts["mathqa"].splitlines()[3] == "(A) 12, (B) 1,600, (C) 18, (D) 24, (E) none"
    assert prompts["sat_math"].splitlines()[3] == "(A) $f(-6)=0$, (B) 2, (C) 3, (D) 4"
    assert prompts["tabmwp"].startswith('Question: Table "Hats":\nHat | Price\nred | $2\nWhich hat? Choose one of: red, blue.')


def test_other_spellings_of_options():
    mark = r"\s*\)\s*"
    assert lettered("['a ) 462 cm ²', 'b ) 5 , 3', 'c ) 1', 'd ) 2', 'e ) none']", "abcde", mark) == (
        "462 cm ²",
        "5 , 3",
        "1",
        "2",
        "none",
    )
    assert lettered("a ) a ) 4 in , b ) b ) 6 in , c ) 1 , d ) 2 , e ) 3", "abcde", mark) == ("4 in", "6 in", "1", "2", "3")
    assert lettered("A. 1,190 B. 1,900 C. 2,900 D. 19,000", "ABCD", r"[.)]\s*") == ("1,190", "1,900", "2,900", "19,000")


def test_records_that_are_left_out_are_told(tmp_path):
    several = {"body": "b", "question": "q", "answer": "2 (a); 3 (b)"}
    other = {**RECORDS["mmlu_stem"][0], "type": "philosophy"}
    data = folder(tmp_path, asdiv=[several, RECORDS["asdiv"][0]], mmlu_stem=[other])
    tasks, notes = suite_tasks(config(data, only=["asdiv", "mmlu_stem"]), 0)
    assert [(t.name, len(t.items)) for t in tasks] == [("asdiv", 1)]
    assert "asdiv: 1 records left out" in notes[0]
    assert "mmlu_stem: left out" in notes[1]


def test_files_are_found_packed_and_in_folders(tmp_path):
    line = json.dumps(RECORDS["gsm8k"][0]).encode() + b"\n"
    (tmp_path / "gsm8k.jsonl.gz").write_bytes(gzip.compress(line * 3))
    (tmp_path / "svamp").mkdir()
    (tmp_path / "svamp" / "test.jsonl.zst").write_bytes(zstandard.compress(json.dumps(RECORDS["svamp"][0]).encode() + b"\n"))
    (tmp_path / "math_oai").mkdir()
    (tmp_path / "math_oai" / "test.jsonl").write_text(json.dumps(RECORDS["math"][0]) + "\n")
    tasks, _ = suite_tasks(config(str(tmp_path), limit=2), 0)
    assert [(t.name, len(t.items)) for t in tasks] == [("gsm8k", 2), ("minerva_math", 1), ("svamp", 1)]
    assert [Path(f).name for f in suite_files(config(str(tmp_path)))] == ["gsm8k.jsonl.gz", "test.jsonl", "test.jsonl.zst"]


def test_what_cannot_be_read_is_named(tmp_path):
    with pytest.raises(InputError, match="no task can be read"):
        suite_tasks(config(str(tmp_path)), 0)
    with pytest.raises(ConfigError, match="no folder"):
        suite_tasks(config(str(tmp_path / "none")), 0)
    with pytest.raises(ConfigError, match="has no task gsm9k"):
        suite_tasks(config(str(tmp_path), only=["gsm9k"]), 0)
    for broken in ('{"question": "1"}', '{"question": "1", "answer": "#### none"}', "[1]", "{"):
        (tmp_path / "gsm8k.jsonl").write_text(json.dumps(RECORDS["gsm8k"][0]) + "\n" + broken + "\n")
        with pytest.raises(InputError, match=r"gsm8k\.jsonl, line 2"):
            suite_tasks(config(str(tmp_path)), 0)


def test_the_hub_is_read_where_no_folder_is_named(monkeypatch):
    asked = []

    def rows(hub):
        asked.append(hub.path)
        name = next(n for n, kind in TASKS.items() if kind.hub == hub)
        return iter([RECORDS[name][0]])

    monkeypatch.setattr(suite, "_hub_rows", rows)
    tasks, notes = suite_tasks(config(None), 0)
    assert [t.name for t in tasks] == [n for n in NINE if n != "tabmwp"] == suite_names(config(None))
    assert len(asked) == len(NINE) - 1 == 8
    assert len(notes) == 1
    assert "tabmwp: no Hub dataset" in notes[0]
    assert suite_files(config(None)) == []


def test_a_failure_of_the_hub_drops_no_task(monkeypatch):
    def rows(hub):
        if hub.path == "openai/gsm8k":
            return iter([RECORDS["gsm8k"][0]])
        raise ConnectionError("offline")

    monkeypatch.setattr(suite, "_hub_rows", rows)
    message = r"minerva_math: its dataset HuggingFaceH4/MATH-500 .*: offline.*minerva_math\.jsonl.*only: \[gsm8k, svamp,"
    with pytest.raises(InputError, match=message):
        suite_tasks(config(None), 0)
    tasks, notes = suite_tasks(config(None, only=["gsm8k", "tabmwp"]), 0)
    assert [t.name for t in tasks] == ["gsm8k"]
    assert len(notes) == 1
    with pytest.raises(InputError, match=r"svamp: .* that in data\.$"):
        suite_tasks(config(None, only=["svamp"]), 0)


def test_names_of_the_suite_are_those_of_its_tasks(tmp_path):
    data = folder(tmp_path, gsm8k=[RECORDS["gsm8k"][0]], math500=[RECORDS["math"][0]], math=[RECORDS["math"][0]])
    assert suite_names(config(data)) == [t.name for t in suite_tasks(config(data), 0)[0]] == ["gsm8k", "minerva_math", "math"]
    assert suite_names(config(data, only=["math", "svamp"])) == ["math"]
    assert suite_names(config(None, only=["tabmwp", "svamp"])) == ["svamp"]


def test_a_time_is_no_number_of_a_record(tmp_path):
    with pytest.raises(InputError, match="is not one number"):
        suite_tasks(config(folder(tmp_path, svamp=[{**RECORDS["svamp"][0], "Answer": "4:30"}]), only=["svamp"]), 0)


def test_settings_reach_the_tasks(tmp_path):
    data = folder(tmp_path, gsm8k=[RECORDS["gsm8k"][0]])
    (task,) = suite_tasks(config(data, only=["gsm8k"], shots=2, max_new_tokens=9, batch_size=3), 0)[0]
    assert (task.shots, task.max_new_tokens, task.batch_size, task.version) == (2, 9, 3, "3")
    assert task.prefix.count("Question:") == 2
    assert suite_tasks(config(data, shots=0), 0)[0][0].prefix == ""
    with pytest.raises(ConfigError, match="lower shots"):
        suite_tasks(config(data, shots=9), 0)


# --- worked examples ---


@pytest.mark.parametrize("name", TASKS)
def test_every_worked_answer_is_read_back_as_its_target(name):
    kind, examples = TASKS[name], examples_of(name)
    assert len(examples) >= kind.shots
    for example in examples:
        found = kind.read(example.answer, example.choices)
        assert found is not None
        assert kind.same(found, example.target), (found, example.target)
        assert sum(kind.same(found, other.target) for other in examples) < len(examples)
        rambling = example.answer + "\n\n" + "".join(e.prompt + e.answer + "\n\n" for e in examples)
        assert kind.read(rambling, example.choices) == found


def test_worked_examples_are_the_same_ones_unless_fewer_are_asked_for():
    assert worked_examples("mathqa", None, 1) == worked_examples("mathqa", None, 2)
    assert worked_examples("mathqa", None, 1).count("Problem:") == 4
    assert worked_examples("mathqa", 8, 1) == worked_examples("mathqa", 8, 2)
    assert len({worked_examples("gsm8k", 2, seed) for seed in range(9)}) > 1
    assert worked_examples("gsm8k", 2, 3) == worked_examples("gsm8k", 2, 3)


def test_letters_of_worked_answers_are_spread():
    for name in ("mathqa", "mmlu_stem", "sat_math"):
        letters = [e.target for e in examples_of(name)]
        assert len(set(letters)) >= 4


def test_a_suite_task_runs_on_a_tiny_model(make_llama, tokenizer, tmp_path):
    data = folder(tmp_path, **{name: [record] * 3 for name, (record, _) in RECORDS.items()})
    model = make_llama(positions=64).model
    for task in suite_tasks(config(data, shots=0, max_new_tokens=4), 0)[0]:
        found = run_task(model, Tokenizer(tokenizer, "test"), task, "cpu")
        assert (found["items"], found["shots"], found["version"]) == (3, 0, "3")
        json.dumps(found, allow_nan=False)


@pytest.mark.skipif("SLMCTL_TASK_DATA" not in os.environ, reason="SLMCTL_TASK_DATA names no folder of test files")
def test_every_gold_answer_of_the_real_files_equals_itself():
    tasks, _ = suite_tasks(config(os.environ["SLMCTL_TASK_DATA"]), 0)
    for task in tasks:
        form = "The final answer is ${}$." if task.name in ("math", "minerva_math") else "Hence. The answer is {}."
        options = {"mathqa": 5, "mmlu_stem": 4, "sat_math": 4}.get(task.name)
        for item in task.items:
            assert task.same(item.target, item.target), item
            assert options is None or (len(item.choices) == options and all(item.choices)), item
            found = task.read(form.format(item.target), item.choices)
            assert found is not None, item
            assert task.same(found, item.target), item
        print(task.name, len(task.items))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), True, None])
@pytest.mark.parametrize(
    ("read", "record", "field"),
    [
        (records.gsm8k, {"question": "q", "answer": "#### 2"}, "question"),
        (records.gsm8k, {"question": "q", "answer": "#### 2"}, "answer"),
        (records.mathematics, {"problem": "p", "solution": "no box", "answer": "2"}, "answer"),
        (records.svamp, {"Body": "b", "Question": "q", "Answer": 2.0}, "Body"),
        (records.svamp, {"Body": "b", "Question": "q", "Answer": 2.0}, "Answer"),
        (records.mmlu_stem, {"question": "q", "choices": list("abcd"), "answer": 1}, "answer"),
    ],
)
def test_a_missing_value_is_no_record(read, record, field, value):
    assert read(record) is not None
    with pytest.raises((TypeError, ValueError)):
        read(record | {field: value})
