"""The part of the configuration that says what is evaluated: tasks in their three forms, mistakes, paths, round trip."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from slmctl.config.evaluation import HarnessConfig, SuiteConfig, TaskConfig
from slmctl.config.file import dump_config, load_config
from slmctl.config.pipeline import PipelineConfig
from slmctl.system.errors import ConfigError

TEXT = """\
name: test
output_dir: out
model: {path: some/model}
data:
  curated: {path: a.jsonl}
  corpus: {path: [b.jsonl, /abs/c.jsonl]}
  heldout: {target: {path: t.jsonl}}
pretrain: {steps: 6, arms: {slm: {}}}
"""


def load(tmp_path: Path, more: str, overrides: list[str] | None = None) -> PipelineConfig:
    path = tmp_path / "c.yaml"
    path.write_text(TEXT + more, encoding="utf-8")
    return load_config(path, overrides)


def mistakes(tmp_path: Path, more: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, more)
    head, *lines = str(caught.value).split("\n")
    assert head.endswith(f"{len(lines)} mistake{'s' * (len(lines) > 1)}")
    return [line.strip() for line in lines]


ALL_KINDS = """\
eval:
  tasks:
    - rho-math
    - hellaswag
    - {suite: rho-general, data: tasks/general, only: [boolq], limit: 3}
    - {harness: arc_easy, data: /abs/arc.jsonl, shots: 5}
    - {name: own, path: items.jsonl, prompt: "{q}", answer: "{a}"}
"""


def test_tasks_by_name_and_in_full(tmp_path: Path) -> None:
    tasks = load(tmp_path, ALL_KINDS).eval.tasks
    assert tasks == [
        SuiteConfig(suite="rho-math"),
        HarnessConfig(harness="hellaswag"),
        SuiteConfig(suite="rho-general", data="tasks/general", only=["boolq"], limit=3),
        HarnessConfig(harness="arc_easy", data="/abs/arc.jsonl", shots=5),
        TaskConfig(name="own", path="items.jsonl", prompt="{q}", answer="{a}"),
    ]


def test_overrides_reach_into_tasks(tmp_path: Path) -> None:
    found = load(
        tmp_path, ALL_KINDS, ["eval.tasks.2.limit=7", "eval.tasks.0=rho-general", "eval.tasks.2.suite=rho-math"]
    ).eval.tasks
    assert (found[0], found[2].limit) == (SuiteConfig(suite="rho-general"), 7)
    assert load(tmp_path, "", ["eval.tasks=[rho-math, piqa]"]).eval.tasks == [
        SuiteConfig(suite="rho-math"),
        HarnessConfig(harness="piqa"),
    ]


@pytest.mark.parametrize("root", ["/texts", "texts", "s3://bucket/texts/"])
def test_the_root_is_put_before_relative_paths(tmp_path: Path, root: str) -> None:
    config = load(tmp_path, ALL_KINDS, [f"data.root={root}"])
    before = root.rstrip("/")
    _, harness, suite, absolute, own = config.eval.tasks
    assert isinstance(suite, SuiteConfig)
    assert isinstance(own, TaskConfig)
    assert isinstance(harness, HarnessConfig)
    assert isinstance(absolute, HarnessConfig)
    assert suite.data == f"{before}/tasks/general"
    assert own.path == f"{before}/items.jsonl"
    assert (harness.data, absolute.data) == (None, "/abs/arc.jsonl")
    assert config.data.curated[0].path == [f"{before}/a.jsonl"]
    assert config.data.corpus[0].path == [f"{before}/b.jsonl", "/abs/c.jsonl"]
    assert config.data.heldout["target"][0].path == [f"{before}/t.jsonl"]
    assert config.data.root is None, "so that reading it again puts nothing before them twice"


def test_the_resolved_configuration_reads_back_equal(tmp_path: Path) -> None:
    more = ALL_KINDS + "  level: 0.9\n  dynamics_tokens: 4096\n  highlighted: 0\n  checkpoints: false\n"
    config = load(tmp_path, more, ["data.root=texts", "pretrain.seed=5", "reference.seed=7"])
    (tmp_path / "resolved.yaml").write_text(dump_config(config), encoding="utf-8")
    again = load_config(tmp_path / "resolved.yaml")
    assert again == config
    assert dump_config(again) == dump_config(config)
    assert (again.eval.level, again.eval.checkpoints, again.pretrain.arms["slm"].seed, again.reference.seed) == (0.9, False, 5, 7)


MISTAKES: list[tuple[str, str]] = [
    ("{suite: rho-math, prompt: x}", "0.prompt: unknown key; known here: batch_size, data, limit"),
    ("{suite: rho-math, shot: 3}", "0.shot: unknown key; did you mean 'shots'?"),
    ("{suite: rho-maths}", "0.suite: 'rho-maths' is not one of 'rho-math' or 'rho-general'; did you mean 'rho-math'?"),
    ("{suite: rho-general, only: mmlu}", "0.only: Input should be a valid list (found 'mmlu')"),
    ("{suite: rho-general, limit: 0}", "0.limit: Input should be greater than 0 (found 0)"),
    (
        "{harness: a, max_new_tokens: 3}",
        "0.max_new_tokens: unknown key; known here: batch_size, data, harness, limit, seed, shots",
    ),
    ("{harness: 3}", "0.harness: Input should be a valid string (found 3)"),
    ("{harness: a, suite: rho-math}", "0.harness: unknown key; known here: batch_size, data, limit"),
    ("{name: x, path: y, shots: many}", "0.shots: Input should be a valid integer (found 'many')"),
    ("{name: x, path: y, prompt: '{q'}", "0.prompt: text template"),
    ("{name: a/b, path: y}", "0.name: use letters, digits"),
    ("{name: x}", "0.path: is required but absent"),
    ("5", "0: want a mapping of settings, found int"),
    ("[rho-math]", "0: want a mapping of settings, found list"),
]


@pytest.mark.parametrize(("task", "message"), MISTAKES)
def test_a_tasks_mistake_is_told_with_its_line(tmp_path: Path, task: str, message: str) -> None:
    (found,) = mistakes(tmp_path, f"eval:\n  precision: float32\n  tasks:\n    - {task}\n")
    line = TEXT.count("\n") + 4
    assert found.startswith(f"line {line}: eval.tasks.{message}")


def test_every_tasks_mistakes_are_told_at_once(tmp_path: Path) -> None:
    found = mistakes(tmp_path, "eval:\n  tasks:\n" + "".join(f"    - {t}\n" for t, _ in MISTAKES))
    for i, (_, message) in enumerate(MISTAKES):
        wanted = f"line {TEXT.count(chr(10)) + 3 + i}: eval.tasks.{i}{message.removeprefix('0')}"
        assert any(line.startswith(wanted) for line in found), wanted


@pytest.mark.parametrize(
    ("tasks", "name"),
    [
        ("[rho-math, {suite: rho-math}]", "rho-math"),
        ("[arc, {harness: arc}]", "arc"),
        ("[piqa, {name: piqa, path: x}]", "piqa"),
        ("[{name: x, path: a}, {name: x, path: b}]", "x"),
    ],
)
def test_two_tasks_of_one_name(tmp_path: Path, tasks: str, name: str) -> None:
    (found,) = mistakes(tmp_path, f"eval: {{tasks: {tasks}}}\n")
    assert found.endswith(f"eval.tasks: two tasks are named '{name}'")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("level: 95", "eval.level: Input should be less than 1 (found 95)"),
        ("level: 0.5", "eval.level: Input should be greater than 0.5 (found 0.5)"),
        ("dynamics: 1", "eval.dynamics: Input should be a valid boolean (found 1)"),
        ("dynamics_tokens: 0", "eval.dynamics_tokens: Input should be greater than 0 (found 0)"),
        ("highlighted: -1", "eval.highlighted: Input should be greater than or equal to 0 (found -1)"),
        ("checkpoint: true", "eval.checkpoint: unknown key; did you mean 'checkpoints'?"),
        ("precision: bf16_autocast", "eval.precision: 'bf16_autocast' is not one of 'auto', 'float32' or 'bfloat16'"),
        ("heldout: [other]", "eval.heldout: 'other' is not a set of data.heldout (there are: target)"),
        ("tasks: rho-math", "eval.tasks: Input should be a valid list (found 'rho-math')"),
    ],
)
def test_other_settings(tmp_path: Path, setting: str, message: str) -> None:
    assert any(
        line.startswith(f"line {TEXT.count(chr(10)) + 2}: {message}") for line in mistakes(tmp_path, f"eval:\n  {setting}\n")
    )


@pytest.mark.parametrize("where", ["reference", "pretrain", "pretrain.arms.slm"])
@pytest.mark.parametrize(
    ("value", "message"), [("-1", "greater than or equal to 0"), ("1.5", "valid integer"), ("one", "valid integer")]
)
def test_a_seed_is_a_whole_number(tmp_path: Path, where: str, value: str, message: str) -> None:
    with pytest.raises(ConfigError, match=f"{where}.seed: Input should be (a )?{message}"):
        load(tmp_path, "", [f"{where}.seed={value}"])


def test_arms_take_over_the_seed_of_pretrain(tmp_path: Path) -> None:
    settings: Any = yaml.safe_load(TEXT)
    settings["pretrain"] |= {"seed": 3, "arms": {"slm": {}, "own": {"seed": 4}, "pipelines": {"seed": None}}}
    (tmp_path / "seeds.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    arms = load_config(tmp_path / "seeds.yaml").pretrain.arms
    assert {n: a.seed for n, a in arms.items()} == {"slm": 3, "own": 4, "pipelines": None}
