"""The part of the configuration that says what is evaluated."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag

from slmctl.config.decides import Evaluation, Findings, Rounding
from slmctl.config.types import Name, NonNegativeInt, OffToo, PositiveInt, Section, TextTemplate

SUITES = ("rho-math", "rho-general")


class TaskConfig(Section):
    name: Evaluation[Name]
    """Name in results.json."""
    path: Evaluation[str]
    """JSON Lines with the task's items."""
    prompt: Evaluation[TextTemplate] = "Question: {question}\nAnswer:"
    """Template of the prompt over an item's fields."""
    answer: Evaluation[TextTemplate] = "{answer}"
    """Template of the worked answer; the number after `####`, else the last number, is the target."""
    shots: Evaluation[NonNegativeInt] = 8
    """Worked examples before the question, drawn by seed from the curated set (same fields)."""
    limit: Evaluation[PositiveInt | None] = None
    """Use the first so many items; null uses all."""
    max_new_tokens: Evaluation[PositiveInt] = 256
    """Longest generation."""
    batch_size: Rounding[PositiveInt] = 8
    """Prompts generated together."""


class SuiteConfig(Section):
    suite: Evaluation[Literal["rho-math", "rho-general"]]
    """rho-math: the paper's nine mathematics tasks, few-shot chain of thought; rho-general: its 15 general tasks."""
    data: Evaluation[str | None] = None
    """Folder with a JSON Lines file for each task, named as the task (`gsm8k.jsonl`, also .gz and .zst), or a folder of such;
    tasks without one are left out. null reads the Hub."""
    only: Evaluation[list[str] | None] = None
    """Some of the suite's tasks, by name; null takes all."""
    shots: Evaluation[NonNegativeInt | None] = None
    """Worked examples before the question; null is each task's own number."""
    limit: Evaluation[PositiveInt | None] = None
    """Use the first so many items of each task; null uses all."""
    max_new_tokens: Evaluation[PositiveInt | None] = None
    """Longest generation; null is each task's own."""
    batch_size: Rounding[PositiveInt] = 8
    """Prompts worked on together."""


class HarnessConfig(Section):
    harness: Evaluation[str]
    """A task or group of EleutherAI's lm-evaluation-harness (needs the extra `harness`)."""
    data: Evaluation[str | None] = None
    """JSON Lines that take the place of the task's Hub dataset, with the same fields: a file (few-shot examples from
    NAME.train.jsonl beside it, else from itself), or, for a group, a folder with a file for each task; null reads the Hub."""
    shots: Evaluation[NonNegativeInt | None] = None
    """Examples before the question; null is the task's own number."""
    limit: Evaluation[PositiveInt | None] = None
    """Use the first so many items; null uses all."""
    seed: Evaluation[NonNegativeInt | None] = None
    """Of drawn examples and of whatever else the task draws; null is the harness' own (1234 for examples), not the pipeline's."""
    batch_size: Rounding[PositiveInt] = 8
    """Prompts worked on together."""


TASK_KINDS: dict[str, type[Section]] = {"task": TaskConfig, "suite": SuiteConfig, "harness": HarnessConfig}
"""By the tag that `AnyTask` tells them by."""


def _by_name(task: Any) -> Any:
    """A bare name is a suite's, or a task's of the harness."""
    if isinstance(task, str):
        return {"suite": task} if task in SUITES else {"harness": task}
    return task


def _kind(task: Any) -> str:
    keys = task if isinstance(task, dict) else type(task).model_fields if isinstance(task, Section) else {}
    return next((k for k in ("suite", "harness") if k in keys), "task")


AnyTask = Annotated[
    Annotated[TaskConfig, Tag("task")] | Annotated[SuiteConfig, Tag("suite")] | Annotated[HarnessConfig, Tag("harness")],
    Discriminator(_kind),
]


class EvalConfig(Section):
    target: Evaluation[str] = "target"
    """The held-out set that arms are judged by."""
    heldout: Evaluation[list[str] | None] = None
    """Held-out sets to evaluate; null takes all."""
    tasks: list[Annotated[AnyTask, BeforeValidator(_by_name)]] = Field(default=[])
    """Tasks: a file of one's own (`name`, `path`, …; greedy generation, exact match on the final number), a suite
    (`rho-math`, `rho-general`) or a task of lm-evaluation-harness by its name."""
    contamination: Findings[Annotated[Literal["warn", "stop", "off"], OffToo]] = "warn"
    """Held-out documents that also stand in curated or corpus text: warn and go on, stop (`prepare` and `eval` refuse), or do not
    look for any."""
    contamination_overlap: Findings[Annotated[float, Field(gt=0, le=1)]] = 0.5
    """Share of a held-out document's runs of 13 words (GPT-3's measure) that stand in the other text from which on it counts as
    contaminated; one that is there word for word always does. One changed word spoils 13 runs, so a copy with changes stays well
    below 1, while texts that share phrases alone stay near 0."""
    precision: Evaluation[Literal["auto", "float32", "bfloat16"]] = "float32"
    """Weights and arithmetic of the evaluation. auto: bfloat16 where the device gains by it, else float32; results that are there
    keep theirs. Under bfloat16 a token's loss is off by about 0.01 nats, which differences between arms may be smaller than."""
    batch_rows: Rounding[PositiveInt] = 8
    """Rows in one forward pass."""
    level: Evaluation[Annotated[float, Field(gt=0.5, lt=1)]] = 0.95
    """Of the intervals: how often they are meant to hold the truth."""
    rolling: Evaluation[bool] = True
    """Measure base, reference and arms (not checkpoints) on held-out sets a second time, as lm-evaluation-harness does: each
    document by itself, in windows of the model's context. Its bits per byte compare with those that others report."""
    checkpoints: Evaluation[bool] = True
    """Evaluate every kept checkpoint of each arm on the held-out sets (see keep_every)."""
    dynamics: Evaluation[bool] = True
    """Keep the losses of `dynamics_tokens` corpus tokens under base and every kept checkpoint: the paper's diagnostics."""
    dynamics_tokens: Evaluation[PositiveInt] = 65_536
    """Corpus tokens that the diagnostics are made of: whole rows, spread over the set."""
    highlighted: Evaluation[NonNegativeInt] = 8
    """Documents that the report shows with their selected tokens."""
