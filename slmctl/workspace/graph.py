"""The stages of a pipeline, declared once: what each needs, what it makes, which command makes it, and who works on it.

A stage goes by its label, which is also the folder that it fills: below output_dir, and of a set below store_dir. Whatever walks
the stages, says what has become of them or lists the sets of a pipeline reads them from here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from slmctl.config.data import SourceConfig
from slmctl.config.pipeline import PipelineConfig
from slmctl.config.training import ArmConfig


class By(Enum):
    """Who makes a result."""

    WORKERS = "workers"
    """Any number of processes, each its share of the shards, that need not know of each other."""
    RANKS = "ranks"
    """The ranks of one torchrun, together."""
    ONE = "one"
    """One process; of several ranks the first, or whichever plans."""


@dataclass(frozen=True)
class Kind:
    """What stages of one kind have in common."""

    command: str
    """That makes them: `slmctl COMMAND CONFIG`."""
    makes: str
    by: By
    counted: str = ""
    """In what it is told how far an unfinished one is."""


KINDS = {
    "tokenizer": Kind("prepare", "the tokenizer of a pipeline from scratch", By.ONE),
    "tokens": Kind("prepare", "token shards", By.WORKERS, "shards"),
    "base": Kind("train-base", "the base model of a pipeline from scratch", By.RANKS, "steps"),
    "reference": Kind("train-ref", "the reference model", By.RANKS, "steps"),
    "scores": Kind("score", "the reference's losses of the corpus", By.WORKERS, "shards"),
    "pretrain": Kind("pretrain", "an arm: its model, checkpoints and logs", By.RANKS, "steps"),
    "eval": Kind("eval", "results.json", By.ONE),
    "report": Kind("report", "index.html", By.ONE),
}
"""By the first part of their labels, in the order in which a run makes them."""
COMMANDS = tuple(dict.fromkeys(kind.command for kind in KINDS.values()))
"""In that order, too."""


@dataclass(frozen=True)
class Stage:
    label: str
    """`KIND`, or `KIND/NAME`."""
    needs: tuple[str, ...] = ()
    """Labels of the stages that its result depends on."""

    @property
    def kind(self) -> Kind:
        return KINDS[self.label.partition("/")[0]]

    @property
    def name(self) -> str:
        """What tells it from others of its kind; empty where there is one."""
        return self.label.partition("/")[2]

    @property
    def command(self) -> str:
        return self.kind.command


# --- sets ---


def token_sets(config: PipelineConfig) -> list[str]:
    """`curated`, `corpus`, and `heldout/NAME` of each held-out set."""
    return ["curated", "corpus", *(f"heldout/{n}" for n in config.data.heldout)]


def sources_of(config: PipelineConfig, name: str) -> list[SourceConfig]:
    """The text sources of a token set."""
    data = config.data
    named = {"curated": data.curated, "corpus": data.corpus}
    return named[name] if name in named else data.heldout[name.removeprefix("heldout/")]


def key_of(name: str) -> str:
    """Where the configuration has the sources of a token set: `data.corpus`, `data.heldout.NAME`."""
    return f"data.{name.replace('/', '.')}"


def score_sets(config: PipelineConfig) -> list[str]:
    """The names of score.references."""
    return list(config.score.references)


def joined_scores(config: PipelineConfig, arm: ArmConfig) -> str:
    """The score set whose losses are held against an arm's own while it trains."""
    return arm.selection.watched or score_sets(config)[0]


def further_scores(config: PipelineConfig, arm: ArmConfig) -> list[str]:
    """The other score sets that an arm's selection reads."""
    names = dict.fromkeys(name or score_sets(config)[0] for name, _ in arm.selection.joined)
    return [name for name in names if name != joined_scores(config, arm)]


# --- the graph ---


def needs_scores(config: PipelineConfig) -> bool:
    """Whether any arm selects by a reference's losses: a run trains and asks no reference for others."""
    return any(arm.selection.needs_reference for arm in config.pretrain.arms.values())


def graph(config: PipelineConfig) -> dict[str, Stage]:
    """The stages of a run by label, each after those that it needs."""
    return {stage.label: stage for stage in _stages(config)}


def _stages(config: PipelineConfig) -> Iterator[Stage]:
    own = config.model.scratch is not None
    tokenizer, base = (("tokenizer",), ("base",)) if own else ((), ())
    sets = tuple(f"tokens/{name}" for name in token_sets(config))
    scores = tuple(f"scores/{name}" for name in score_sets(config)) if needs_scores(config) else ()
    references = ("reference",) if scores and "reference" in config.score.references.values() else ()
    arms = tuple(f"pretrain/{name}" for name in config.pretrain.arms)
    if own:
        yield Stage("tokenizer")
    for label in sets:
        yield Stage(label, tokenizer)
    if own:
        yield Stage("base", (*tokenizer, "tokens/corpus"))
    for label in references:
        yield Stage(label, (*base, *(f"tokens/{name}" for name in _reference_rows(config))))
    for label, model in zip(scores, config.score.references.values(), strict=False):
        scorer = {"reference": references, "base": base}.get(model, ()) if isinstance(model, str) else ()
        yield Stage(label, ("tokens/corpus", *scorer))
    for label, arm in zip(arms, config.pretrain.arms.values(), strict=True):
        read = [joined_scores(config, arm), *further_scores(config, arm)] if arm.selection.needs_reference else []
        counted = ("tokens/curated",) if "log_odds" in arm.selection.features else ()
        yield Stage(label, (*base, "tokens/corpus", *counted, *(f"scores/{name}" for name in read)))
    yield Stage("eval", (*tokenizer, *sets, *base, *references, *scores, *arms))
    yield Stage("report", ("eval",))


def _reference_rows(config: PipelineConfig) -> list[str]:
    """The token sets that decide the reference."""
    settings = config.reference
    mixed = ["corpus"] if settings.mix > 0 else []
    return ["curated", *mixed, *([f"heldout/{settings.keep_best_on}"] if settings.keep_best_on is not None else [])]


def by_command(stages: dict[str, Stage]) -> dict[str, list[Stage]]:
    """Every command of a run, in order, with the stages that it makes; none where the pipeline has none of these."""
    return {command: [s for s in stages.values() if s.command == command] for command in COMMANDS}
