"""Mistakes in eval.tasks, as the first records of files show them: in `validate`, and before anything is trained or measured."""

from __future__ import annotations

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from evaluated_pipeline import results_of
from tiny_pipeline import tiny_settings, write_jsonl

from slmctl.cli.process import main
from slmctl.comparison import few_shot_examples as shots
from slmctl.comparison import task_checks
from slmctl.comparison.task_checks import check_tasks
from slmctl.config.file import check
from slmctl.stages.evaluate import evaluate
from slmctl.stages.run import run
from slmctl.system.errors import ConfigError

SUMS = [{"question": f"{a} + 1 =", "answer": f"{a} and 1 is {a + 1}"} for a in range(20)]


@pytest.fixture
def configure(tmp_path):
    """configure(task, …): a pipeline with these tasks (of sums.jsonl, if they name no file), and settings laid over it."""

    def make(*tasks, **data):
        settings = tiny_settings(tmp_path)
        write_jsonl(tmp_path / "sums.jsonl", SUMS)
        settings["data"] |= data
        settings["eval"] = {"tasks": [{"name": "sums", "path": str(tmp_path / "sums.jsonl"), **t} for t in tasks]}
        return settings

    return make


def exit_code(tmp_path, settings, command="validate", *options):
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    try:
        main([command, str(path), *options])
    except SystemExit as e:
        return e.code or 0
    return 0


def test_the_default_shots_want_the_tasks_fields_in_the_curated_set(configure, tmp_path, capsys):
    """The curated records have `text` alone."""
    settings = configure({})
    assert exit_code(tmp_path, settings) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "eval.tasks.0: task sums: its 8 worked examples come from the curated set, which offers none" in said
    assert "'question' is absent (the record has: text). Set shots: 0, or" in said
    assert exit_code(tmp_path, configure({"shots": 0})) == 0
    fitting = {"path": str(tmp_path / "sums.jsonl"), "text": "{question}"}
    assert exit_code(tmp_path, configure({}, curated=fitting)) == 0


def test_every_mistake_is_told_at_once(configure):
    settings = configure(
        {"prompt": "{q}", "shots": 0},
        {"name": "second", "answer": "{wrong}", "shots": 0},
        {"name": "third", "path": "absent.jsonl"},
    )
    with pytest.raises(ConfigError) as e:
        check_tasks(check(settings, "tiny"))
    for text in ("4 mistakes", "eval.tasks.2.path: absent.jsonl does not exist", "eval.tasks.2: task third: its 8 worked"):
        assert text in str(e.value)
    assert "sums.jsonl, line 1: field 'q' is absent (the record has: question, answer). Correct prompt and answer" in str(e.value)
    assert "eval.tasks.1" in str(e.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no item"),
        (b"[1, 2]\n", "'question' is absent"),
        (b'{"question": "1"\n', "line 1: no JSON.*JSON Lines"),
        (b'{"question": "1", "answer": "none"}\n', "line 1: the answer holds no number"),
        (gzip.compress(b'{"question": "1", "answer": "1"}\n' * 50, mtime=0)[:40], "broken or cut off"),
    ],
)
def test_a_file_that_cannot_be_read_is_a_mistake(configure, tmp_path, content, message):
    path = tmp_path / ("task.jsonl.gz" if content[:2] == b"\x1f\x8b" else "task.jsonl")
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=f"(?s){message}"):
        check_tasks(check(configure({"path": str(path), "shots": 0}), "tiny"))


def test_a_file_that_is_not_here_is_a_note_of_validate_and_a_mistake_of_what_reads_it(configure, tmp_path, capsys):
    suites = [{"suite": s, "data": str(tmp_path / "absent")} for s in ("rho-math", "rho-general")]
    settings = configure({"path": "absent.jsonl", "shots": 0})
    settings["eval"]["tasks"] += suites
    assert exit_code(tmp_path, settings) == 0
    assert "note: eval.tasks.0.path: absent.jsonl does not exist" in capsys.readouterr().err
    assert exit_code(tmp_path, settings, "run") == 2
    assert not (tmp_path / "run" / "tokens").exists(), "nothing was begun"
    (tmp_path / "absent").mkdir()
    settings["eval"]["tasks"] = [{"suite": "rho-math", "data": str(tmp_path / "absent"), "only": ["gsm9k"]}]
    assert exit_code(tmp_path, settings) == 2
    assert "rho-math has no task gsm9k" in capsys.readouterr().err


def test_few_records_are_read_and_those_beyond_are_eval_s_own_matter(configure, tmp_path, monkeypatch):
    monkeypatch.setattr(task_checks, "FIRST", 5)
    write_jsonl(tmp_path / "later.jsonl", [*SUMS[:5], {"other": 1}])
    check_tasks(check(configure({"path": str(tmp_path / "later.jsonl"), "shots": 0}), "tiny"))
    write_jsonl(tmp_path / "sums.jsonl", SUMS)
    seen = []
    make_item = shots.make_item
    monkeypatch.setattr(shots, "make_item", lambda task, record: (seen.append(record), make_item(task, record))[1])
    check_tasks(check(configure({}, curated={"path": str(tmp_path / "sums.jsonl"), "text": "{question}"}), "tiny"))
    assert seen == SUMS[:5]


def test_any_of_several_curated_sources_may_offer_the_examples(configure, tmp_path):
    both = [{"path": str(tmp_path / "curated.jsonl")}, {"path": str(tmp_path / "sums.jsonl"), "text": "{question}"}]
    check_tasks(check(configure({}, curated=both), "tiny"))


def test_parquet_has_the_tasks_columns_whatever_its_own_text_is(configure, tmp_path):
    """Of Parquet the columns that are asked for are read alone."""
    columns = {k: [s[k] for s in SUMS] for k in ("question", "answer")}
    pq.write_table(pa.table({**columns, "text": ["one two"] * len(SUMS)}), tmp_path / "curated.parquet")
    config = check(configure({}, curated={"path": str(tmp_path / "curated.parquet")}), "tiny")
    check_tasks(config)
    prefix = shots.few_shots(config.data, config.seed, config.eval.tasks[0])
    assert sum(f"Question: {s['question']}\nAnswer: {s['answer']}\n\n" in prefix for s in SUMS) == 8


def test_what_the_first_records_do_not_tell_is_a_mistake_of_the_configuration_too(configure, tmp_path):
    config = check(configure({"shots": 21}, curated={"path": str(tmp_path / "sums.jsonl"), "text": "{question}"}), "tiny")
    with pytest.raises(ConfigError, match="21 worked examples are wanted, the curated set offers 20: lower shots"):
        shots.few_shots(config.data, config.seed, config.eval.tasks[0])


@pytest.mark.parametrize("begin", [evaluate, run])
def test_nothing_is_begun_with_a_mistake(own_copy, tmp_path, begin):
    write_jsonl(tmp_path / "sums.jsonl", SUMS)
    task = {"name": "sums", "path": str(tmp_path / "sums.jsonl")}
    workspace = own_copy.open(lambda s: s["eval"].update(tasks=[task]))
    before = results_of(workspace)
    with pytest.raises(ConfigError, match="offers none"):
        begin(workspace)
    assert results_of(workspace) == before
    assert not (workspace.evaluation / "under_way.json").exists()


def test_a_failure_while_running_exits_with_1(own_copy, tmp_path, capsys):
    """A record beyond the first ones that is no item, which shows when all are read."""
    write_jsonl(tmp_path / "sums.jsonl", [*SUMS * 60, {"question": "1"}])
    own_copy.settings["eval"]["tasks"] = [{"name": "sums", "path": str(tmp_path / "sums.jsonl"), "shots": 0}]
    assert exit_code(tmp_path, own_copy.settings, "eval") == 1
    assert "sums.jsonl, line 1201" in capsys.readouterr().err.replace("\n", " ")
    assert json.loads((tmp_path / "run" / "eval" / "results.json").read_text(encoding="utf-8"))["schema"] == 2


def test_every_data_file_that_cannot_be_read_is_named_before_anything_is_measured(configure, tmp_path, capsys):
    """A task whose file is a dangling link would else be left out of a suite as if it had none."""
    data = tmp_path / "suite"
    write_jsonl(data / "svamp.jsonl", [{"Body": "a", "Question": "b", "Answer": 1}])
    (data / "gsm8k.jsonl").symlink_to("/no/such/disk")
    (data / "mawps.jsonl.gz").write_bytes(b"")
    (data / "asdiv.jsonl").mkdir()
    (data / "notes.md").symlink_to("/nowhere")
    pointer = write_jsonl(tmp_path / "own.jsonl", SUMS)
    pointer.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 9\n")
    (tmp_path / "piqa.train.jsonl").symlink_to("/no/such/disk")
    write_jsonl(tmp_path / "piqa.jsonl", [{"goal": "x"}])
    settings = configure({"path": str(pointer), "shots": 0})
    settings["eval"]["tasks"] += [
        {"suite": "rho-math", "data": str(data)},
        {"harness": "piqa", "data": str(tmp_path / "piqa.jsonl")},
    ]
    wanted = (
        "own.jsonl is a Git LFS pointer",
        "gsm8k.jsonl is a link to /no/such/disk",
        "mawps.jsonl.gz has no bytes",
        "asdiv.jsonl is a folder",
        "piqa.train.jsonl is a link to /no/such/disk",
    )
    with pytest.raises(ConfigError) as e:
        check_tasks(check(settings, "tiny"))
    assert all(line in str(e.value) for line in wanted)
    assert "notes.md" not in str(e.value)
    assert exit_code(tmp_path, settings, "validate", "--inputs") == 2
    said = " ".join(capsys.readouterr().err.split())
    assert all(line in said for line in wanted)


@pytest.mark.parametrize(("value", "why"), [(float("nan"), "NaN, a missing value"), (True, "a boolean")])
def test_a_tasks_missing_values_are_no_text(configure, tmp_path, value, why):
    write_jsonl(tmp_path / "own.jsonl", [{"question": "1 + 1 =", "answer": 2}, {"question": value, "answer": 2}])
    with pytest.raises(ConfigError, match=rf"line 2: field 'question' is {why}"):
        check_tasks(check(configure({"path": str(tmp_path / "own.jsonl"), "shots": 0}), "tiny"))


def test_validate_looks_into_every_input_where_it_is_asked_to(configure, tmp_path, capsys):
    settings = configure()
    (tmp_path / "web").mkdir()
    for k in range(3):
        (tmp_path / "web" / f"{k}.jsonl.gz").write_bytes(gzip.compress(b'{"text": "x"}\n') if k == 1 else b'{"text": "x"}\n')
    settings["data"]["corpus"] = {"path": str(tmp_path / "web" / "*.gz")}
    assert exit_code(tmp_path, settings) == 0
    assert exit_code(tmp_path, settings, "validate", "--inputs") == 2
    said = " ".join(capsys.readouterr().err.split())
    assert all(f"web/{k}.jsonl.gz is plain text, not .gz" in said for k in (0, 2))
