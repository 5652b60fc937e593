"""validate: what can be said of a configuration without running it. Touches no GPU and loads no model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from slmctl.comparison.task_checks import absent_harness, task_data, task_mistakes
from slmctl.config.alike import identical_arms
from slmctl.config.evaluation import HarnessConfig, SuiteConfig, TaskConfig
from slmctl.config.pipeline import PipelineConfig, ReferenceModel, SourceConfig
from slmctl.corpus.first_records import empty_sets, wrong_records
from slmctl.corpus.sources import files_of
from slmctl.corpus.unreadable import place_problems, wrong_heads
from slmctl.evaluation.general_suite import result_names
from slmctl.system.errors import SlmError

RANDOM_BASE = (
    "the base has random weights: model.scratch.train is null. Give it tokens and lr, that reference and arms start from a model "
    "of the corpus."
)


def sources_of(config: PipelineConfig) -> Iterator[tuple[str, SourceConfig]]:
    """Every text source with its key path."""
    for key, sources in _sets(config).items():
        for i, source in enumerate(sources):
            yield key + (f".{i}" if len(sources) > 1 else ""), source


def _sets(config: PipelineConfig) -> dict[str, list[SourceConfig]]:
    """The sources of every set by its key path."""
    heldout = {f"data.heldout.{n}": s for n, s in config.data.heldout.items()}
    return {"data.curated": config.data.curated, "data.corpus": config.data.corpus, **heldout}


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
    wrong = [*missing_inputs(config, look_inside=inputs), *absent_models(config), *absent_harness(config)]
    if inputs:
        wrong += [
            *wrong_records(sources_of(config)),
            *empty_sets(_sets(config)),
            *wrong_models(config),
            *wrong_tokenizers(config),
        ]
    return Seen(mistakes, wrong, hub_names(config), random_base(config))


def _is_absent(task: TaskConfig | SuiteConfig | HarnessConfig) -> bool:
    place = task.path if isinstance(task, TaskConfig) else task.data
    return place is not None and bool(_place_problems(place))


def _place_problems(place: str) -> list[str]:
    try:
        return place_problems(place)
    except SlmError as e:
        return [str(e).rstrip(".")]


def missing_inputs(config: PipelineConfig, look_inside: bool = False) -> list[str]:
    """Files that the configuration names and this machine lacks, or cannot read; with `look_inside` also those whose first bytes
    are not what their names say."""
    missing = []
    for where, source in sources_of(config):
        try:
            found = files_of(source)
            missing += [f"{where}: {problem}" for problem in (wrong_heads(found) if look_inside else ())]
        except SlmError as e:
            missing.append(f"{where}: {e}")
    return missing + [f"{key}: {problem}." for key, place in task_data(config) for problem in _place_problems(place)]


def absent_models(config: PipelineConfig) -> list[str]:
    """Models of the configuration that can be nothing but a folder here, and are none."""
    found = {where: path for where, (path, _) in _models(config).items() if not Path(path).is_dir()}
    return [
        f"{where}: {path} is no folder. Correct the path in the configuration, or give it with -o."
        for where, path in found.items()
        if path.startswith((".", "/", "~")) or path.count("/") > 1
    ]


def random_base(config: PipelineConfig) -> list[str]:
    """Says so where the base has learnt nothing."""
    scratch = config.model.scratch
    return [RANDOM_BASE] if scratch is not None and scratch.train is None else []


def hub_names(config: PipelineConfig) -> list[str]:
    """Models that are named as a folder may be, and are none here."""
    found = {where: path for where, (path, _) in _models(config).items() if not Path(path).is_dir()}
    return [
        f"{w}: there is no folder {p} here, so it is a model of the Hub, which was not asked"
        for w, p in found.items()
        if "/" not in p
    ]


def wrong_models(config: PipelineConfig) -> list[str]:
    """Local models whose files do not hold the weights that their configuration describes, by names and shapes; those on the
    Hub are not looked at."""
    from slmctl.model.loading import ModelSource, check_source

    here = {where: ModelSource(*model) for where, model in _models(config).items() if Path(model[0]).is_dir()}
    return _problems({where: partial(check_source, source) for where, source in here.items()})


def wrong_tokenizers(config: PipelineConfig) -> list[str]:
    """Tokenizers of local models that cannot be used."""
    from slmctl.corpus.tokenizer import load_tokenizer

    model = config.model
    source = model.tokenizer or model.path
    if source is None or not Path(source).is_dir():
        return []
    gguf_file = model.gguf_file if model.tokenizer is None else None
    return _problems({"model.tokenizer" if model.tokenizer else "model": partial(load_tokenizer, source, gguf_file)})


def _models(config: PipelineConfig) -> dict[str, tuple[str, str | None]]:
    """The models that a pipeline does not make itself, path and GGUF file, by the key that names them."""
    base = config.model
    found = {"model": (str(base.path), base.gguf_file)} if base.scratch is None else {}
    for name, given in config.score.references.items():
        if given != "reference":
            model = ReferenceModel(path=given) if isinstance(given, str) else given
            found[f"score.references.{name}"] = (model.path, model.gguf_file)
    return found


def _problems(looks: Mapping[str, Callable[[], object]]) -> list[str]:
    """What each look raises, behind its key."""
    found = []
    for where, look in looks.items():
        try:
            look()
        except SlmError as e:
            found.append(f"{where}: {e}")
    return found
