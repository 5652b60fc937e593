"""What eval.tasks asks for, held against the files that it names: before anything is trained or measured."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

from slmctl.config import PipelineConfig
from slmctl.config_eval import TaskConfig
from slmctl.corpus.sources import files_of
from slmctl.corpus.unreadable import place_problems
from slmctl.errors import ConfigError, InputError, SlmError
from slmctl.evaluation.general_suite import result_names
from slmctl.evaluation.generation import read_items
from slmctl.stages.shots import curated_records, examples_among, no_example

FIRST = 1000
"""Records of a file that are looked at."""


def check_tasks(config: PipelineConfig) -> None:
    """Raises `ConfigError` with every mistake in eval.tasks that its files tell; one that is absent or unreadable is one."""
    absent = [f"{key}: {problem}." for key, place in task_data(config) for problem in place_problems(place)]
    refuse(absent + task_mistakes(config))
    result_names(config.eval.tasks)


def refuse(mistakes: list[str]) -> None:
    """Raises `ConfigError` where there are any."""
    if mistakes:
        listing = "\n".join(f"  {m}" for m in mistakes)
        raise ConfigError(f"{len(mistakes)} mistake{'s' * (len(mistakes) > 1)} in eval.tasks\n{listing}")


def task_data(config: PipelineConfig) -> Iterator[tuple[str, str]]:
    """(key, file or folder) of each task that names one."""
    for i, task in enumerate(config.eval.tasks):
        key, place = ("path", task.path) if isinstance(task, TaskConfig) else ("data", task.data)
        if place is not None:
            yield f"eval.tasks.{i}.{key}", place


def task_mistakes(config: PipelineConfig) -> list[str]:
    """What is wrong with tasks of one's own, by the first records of their files and of the curated set. A file that is not
    here, or cannot be read, tells nothing."""
    found = []
    for i, task in enumerate(config.eval.tasks):
        if isinstance(task, TaskConfig):
            found += [f"eval.tasks.{i}: {problem}" for problem in (_in_items(task), _in_examples(config, task)) if problem]
    return found


def _in_items(task: TaskConfig) -> str | None:
    try:
        if place_problems(task.path):
            return None
    except SlmError:  # out of reach
        return None
    try:
        read_items(task.model_copy(update={"limit": min(task.limit or FIRST, FIRST)}))
    except InputError as e:
        return str(e)
    return None


def _in_examples(config: PipelineConfig, task: TaskConfig) -> str | None:
    """Why none of the first records of any curated file source makes a worked example; None where one does, or that is not
    known: for a Hub dataset, and files that are not here or cannot be read, which `prepare` tells."""
    sources = config.data.curated
    if task.shots == 0 or any(s.hub for s in sources):
        return None
    problem = None
    for source in sources:
        try:
            few = {"path": files_of(source)[:1], "max_documents": min(source.max_documents or FIRST, FIRST)}
            records = curated_records([source.model_copy(update=few)], config.data.shard_bytes, task)
            examples, problem = examples_among(chain.from_iterable(records), task)
        except SlmError:
            return None
        if examples or problem is None:
            return None
    return no_example(task, problem) if problem else None
