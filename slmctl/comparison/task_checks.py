"""What eval.tasks asks for, held against the files that it names: before anything is trained or measured."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path

from slmctl.comparison.few_shot_examples import curated_records, examples_among, no_example
from slmctl.config.evaluation import HarnessConfig, SuiteConfig, TaskConfig
from slmctl.config.pipeline import PipelineConfig
from slmctl.corpus.file_patterns import place_problems
from slmctl.corpus.json_lines import parse
from slmctl.corpus.source_files import files_of
from slmctl.corpus.text_files import is_folder, open_text, reading
from slmctl.evaluation.general_suite import general_suite, result_names
from slmctl.evaluation.generation import Item, few_shot_prefix, read_items
from slmctl.evaluation.harness_data import data_files
from slmctl.evaluation.harness_tasks import is_installed, refuse_at_sight
from slmctl.evaluation.tasks.math_suite import suite_names, suite_tasks, worked_examples
from slmctl.system.errors import ConfigError, InputError, SlmError

FIRST = 1000
"""Records of a file that are looked at."""


def check_tasks(config: PipelineConfig) -> None:
    """Raises `ConfigError` with every mistake in eval.tasks that its files tell; one that is absent or unreadable is one, and
    a harness that is not installed."""
    absent = [f"{key}: {problem}." for key, place in task_data(config) for problem in place_problems(place)]
    refuse(absent + absent_harness(config) + task_mistakes(config))
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
    """What is wrong with tasks: with one's own and the suites' by the first records of their files and of the curated set, with
    those of the harness by their names. A file that is not here, or cannot be read, tells nothing, nor does a harness that is
    not installed."""
    found = []
    for i, task in enumerate(config.eval.tasks):
        if isinstance(task, TaskConfig):
            problems = [_in_items(task), _in_examples(config, task), _in_room(config, task)]
        else:
            problems = [_in_suite(config, task) if isinstance(task, SuiteConfig) else _in_harness(task)]
        found += [f"eval.tasks.{i}: {problem}" for problem in problems if problem]
    return found


def absent_harness(config: PipelineConfig) -> list[str]:
    """A line on each task that lm-evaluation-harness runs, where that is not installed here."""
    if is_installed():
        return []
    needing = {i: t for i, t in enumerate(config.eval.tasks) if not isinstance(t, TaskConfig)}
    return [
        f'eval.tasks.{i}: is of lm-evaluation-harness, which is not installed here: pip install "slmctl[harness]". Whether it '
        "has such a task was not looked at."
        for i, t in needing.items()
        if isinstance(t, HarnessConfig) or t.suite == "rho-general"
    ]


def _in_harness(task: HarnessConfig) -> str | None:
    """Why the harness cannot run a task, as far as its name and the first line of its data tell."""
    try:
        if is_installed():
            refuse_at_sight(task.harness)
        if task.data is not None and not place_problems(task.data):
            for file in data_files(task.data):
                _look_at_rows(file)
    except (ConfigError, InputError) as e:
        return str(e)
    return None


def _look_at_rows(file: str) -> None:
    """Raises `InputError` where the first lines of a file are no JSON objects."""
    if is_folder(file):  # a URL's, which is not listed
        return
    with reading(file), open_text(file) as stream:
        for number, line in enumerate(islice(stream, FIRST), 1):
            if line.strip() and (problem := parse(line)[1]):
                raise InputError(f"{file}, line {number}: {problem}")


def _in_suite(config: PipelineConfig, suite: SuiteConfig) -> str | None:
    """Why a suite cannot be run, by the first records of its files and its settings; what is on the Hub is not looked at."""
    try:
        if suite.data is not None and place_problems(suite.data):
            return None
        if suite.suite == "rho-general":
            general_suite(suite)
        elif suite.data is not None:
            suite_tasks(suite.model_copy(update={"limit": min(suite.limit or FIRST, FIRST)}), config.seed)
        else:
            for name in suite_names(suite):
                worked_examples(name, suite.shots, config.seed)
    except (ConfigError, InputError) as e:
        return str(e)
    return _in_room(config, suite)


def _in_room(config: PipelineConfig, task: TaskConfig | SuiteConfig) -> str | None:
    """Whether the longest generation leaves room for a prompt, where the base model's context is known here."""
    context, longest = _context(config), task.max_new_tokens
    if context is None or longest is None or longest < context - 1:
        return None
    name = task.name if isinstance(task, TaskConfig) else task.suite
    return f"task {name}: max_new_tokens {longest} fills the model's whole context ({context}): lower it."


def _context(config: PipelineConfig) -> int | None:
    """Tokens that the base model's positions reach; None where that is not known here."""
    if config.model.scratch is not None:
        return max(2048, config.data.seq_len)
    try:
        found = json.loads((Path(str(config.model.path)) / "config.json").read_text(encoding="utf-8"))
        given = found.get("text_config", found).get("max_position_embeddings")
    except (OSError, ValueError, AttributeError):
        return None
    return given if isinstance(given, int) and given > 0 else None


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
            return _too_few_examples(config, task) if len(examples) < task.shots else None
    return no_example(task, problem) if problem else _too_few_examples(config, task)


def _too_few_examples(config: PipelineConfig, task: TaskConfig) -> str | None:
    """Whether the curated set offers fewer worked examples than are wanted, where it is small enough to be read whole."""
    examples: list[Item] = []
    try:
        for source in config.data.curated:
            own = source.max_documents
            few = source.model_copy(update={"max_documents": min(own or FIRST, FIRST)})
            records = list(chain.from_iterable(curated_records([few], config.data.shard_bytes, task)))
            if len(records) >= FIRST and (own is None or own > FIRST):
                return None
            examples += examples_among(records, task)[0]
    except SlmError:  # which `prepare` tells
        return None
    try:
        few_shot_prefix(examples, task.shots, config.seed)
    except ConfigError as e:
        return f"task {task.name}: {e}"
    return None
