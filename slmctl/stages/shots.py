"""Worked examples for a task of one's own, from the curated set's records."""

from __future__ import annotations

from slmctl.config_eval import TaskConfig
from slmctl.corpus.sources import plan, whole_records
from slmctl.errors import InputError
from slmctl.evaluation.generation import Item, few_shot_prefix, make_item
from slmctl.stages.workspace import Workspace
from slmctl.template import FieldError

ENOUGH = 10_000
"""Records that examples are drawn from."""


def few_shots(workspace: Workspace, task: TaskConfig) -> str:
    """The text before each question. Raises `InputError` where the curated records lack the task's fields."""
    if task.shots == 0:
        return ""
    data = workspace.config.data
    examples: list[Item] = []
    problem = "it has no record"
    for piece in plan(data.curated, data.shard_bytes):
        for record in whole_records(data.curated[piece.source], piece):
            try:
                item = make_item(task, record)
            except FieldError as e:
                problem = str(e)
                continue
            if item is not None:
                examples.append(item)
        if len(examples) >= ENOUGH:
            break
    if not examples:
        raise InputError(
            f"task {task.name}: the curated set offers no worked example: {problem}. Set shots: 0 or match the fields."
        )
    return few_shot_prefix(examples, task.shots, workspace.config.seed)
