"""Worked examples for a task of one's own, from the curated set's records."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from slmctl.config.data import DataConfig, SourceConfig
from slmctl.config.evaluation import TaskConfig
from slmctl.config.template import FieldError
from slmctl.corpus.documents import whole_records
from slmctl.corpus.slices import plan_slices
from slmctl.evaluation.generation import Item, few_shot_prefix, make_item
from slmctl.system.errors import ConfigError

ENOUGH = 10_000
"""Records that examples are drawn from."""


def few_shots(data: DataConfig, seed: int, task: TaskConfig) -> str:
    """The text before each question, drawn by `seed`, the pipeline's. Raises `ConfigError` where the curated records lack the
    task's fields, or are too few."""
    if task.shots == 0:
        return ""
    examples: list[Item] = []
    problem = None
    for records in curated_records(data.curated, data.shard_bytes, task):
        found, why = examples_among(records, task)
        examples += found
        problem = why or problem
        if len(examples) >= ENOUGH:
            break
    if not examples:
        raise ConfigError(no_example(task, problem or "it holds no record with a number in its answer"))
    return few_shot_prefix(examples, task.shots, seed)


def no_example(task: TaskConfig, problem: str) -> str:
    return (
        f"task {task.name}: its {task.shots} worked examples come from the curated set, which offers none: {problem}. "
        "Set shots: 0, or let prompt and answer name fields that the curated records have too."
    )


def curated_records(sources: list[SourceConfig], shard_bytes: int, task: TaskConfig) -> Iterator[Iterable[dict[str, Any]]]:
    """The records of curated sources, slice by slice, with the fields that the task asks for."""
    asked = [s.model_copy(update={"text": task.prompt + task.answer}) for s in sources]  # of Parquet its columns alone are read
    for piece in plan_slices(asked, shard_bytes):
        yield whole_records(asked[piece.source], piece)


def examples_among(records: Iterable[dict[str, Any]], task: TaskConfig) -> tuple[list[Item], str | None]:
    """The records that make an example, and what the last of the others lacks."""
    found, problem = [], None
    for record in records:
        try:
            item = make_item(task, record)
        except FieldError as e:
            problem = str(e)
            continue
        if item is not None:
            found.append(item)
    return found, problem
