"""validate: what can be said of a configuration without running it. Touches no GPU and loads no model."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass
from pathlib import Path

from slmctl.comparison.task_checks import absent_harness, task_data, task_mistakes
from slmctl.config.evaluation import HarnessConfig, SuiteConfig, TaskConfig
from slmctl.config.identical_arms import identical_arms
from slmctl.config.pipeline import PipelineConfig
from slmctl.corpus.file_patterns import place_problems
from slmctl.evaluation.general_suite import result_names
from slmctl.system.console import out, say, warn
from slmctl.system.errors import ConfigError, SlmError
from slmctl.workspace.named import (
    absent_models,
    hub_names,
    missing_texts,
    random_base,
    wrong_models,
    wrong_texts,
    wrong_tokenizers,
)
from slmctl.workspace.output_dir import refuse_places


def validate(config: PipelineConfig, file: Path, inputs: bool = False) -> None:
    """Says what there is to say of the configuration in `file`. Raises `ConfigError` with all of its mistakes; with `inputs` what
    it names and is not here, or not whole, is one."""
    refuse_places(config)
    seen = look(config, inputs)
    told = [f"{len(seen.mistakes)} mistake{'s' * (len(seen.mistakes) > 1)}", *seen.mistakes] if seen.mistakes else []
    told += ["inputs that are not here, or not whole", *seen.wrong] if inputs and seen.wrong else []
    if told:
        raise ConfigError(f"{file}: " + "\n  ".join(told))
    for line in [*seen.wrong, *seen.notes]:
        say(f"note: {line}")
    for line in seen.warnings:
        warn(line)
    out.print(f"{file}: valid")


@dataclass(frozen=True)
class Seen:
    """What can be said of a configuration, a line each."""

    mistakes: list[str]
    """Of the configuration itself."""
    wrong: list[str]
    """What it names that is not here, or not whole: a mistake for who has to read it."""
    notes: list[str]
    """What was not looked at."""
    warnings: list[str]
    """What is allowed, and seldom meant."""


def look(config: PipelineConfig, inputs: bool = False, made_by_sweeps: Set[str] = frozenset()) -> Seen:
    """Looks at a configuration and at the files that it names; with `inputs` also at the first records of its texts and at what
    local models hold."""
    mistakes = identical_arms(config, made_by_sweeps) + task_mistakes(config)
    if not mistakes:
        try:
            result_names([t for t in config.eval.tasks if not _is_absent(t)])
        except SlmError as e:
            mistakes.append(str(e))
    absent = [*missing_texts(config, look_inside=inputs), *_missing_tasks(config)]
    wrong = [*absent, *absent_models(config), *absent_harness(config)]
    if inputs:
        wrong += [*wrong_texts(config), *wrong_models(config), *wrong_tokenizers(config)]
    return Seen(mistakes, wrong, hub_names(config), random_base(config))


def _missing_tasks(config: PipelineConfig) -> list[str]:
    return [f"{key}: {problem}." for key, place in task_data(config) for problem in _place_problems(place)]


def _is_absent(task: TaskConfig | SuiteConfig | HarnessConfig) -> bool:
    place = task.path if isinstance(task, TaskConfig) else task.data
    return place is not None and bool(_place_problems(place))


def _place_problems(place: str) -> list[str]:
    try:
        return place_problems(place)
    except SlmError as e:
        return [str(e).rstrip(".")]
