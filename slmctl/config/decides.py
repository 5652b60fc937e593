"""What each field of the configuration decides, declared where the field is: `lr: Weights[float]`.

Results lie in a chain: tokens, then weights (of base and reference), scores, weights (of arms), evaluation. A field declares
the first that it changes; what comes after follows. So a stage's inputs are read from the declarations (`decided`), and what
decides something only under another setting is a rule of `RULES`.

A field that says where something lies decides by what is found there: `path: Weights[ByContent[str]]`. It is no input itself.

A field that holds a section declares nothing: the section's own fields do. Any other without a declaration is refused when
its class is made.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Annotated, Any, TypeVar, get_args

from pydantic import BaseModel

T = TypeVar("T")


class Decides(Enum):
    TOKENS = "tokens"
    """Token sets, with their tokenizer and their order of documents."""
    WEIGHTS = "weights"
    """A trained model."""
    SCORES = "scores"
    """The losses of a reference."""
    EVALUATION = "evaluation"
    """Figures: what is measured, at which steps, and of which kept checkpoints."""
    FINDINGS = "findings"
    """What is said of the texts: an input of what says it, as it was found, and no figure of a model."""
    ROUNDING = "rounding"
    """Nothing but the order in which numbers are summed: results are equal to rounding."""
    NOTHING = "nothing"
    """Whether, where and how fast there is a result, never which: its bits are the same."""


Tokens = Annotated[T, Decides.TOKENS]
Weights = Annotated[T, Decides.WEIGHTS]
Scores = Annotated[T, Decides.SCORES]
Evaluation = Annotated[T, Decides.EVALUATION]
Findings = Annotated[T, Decides.FINDINGS]
Rounding = Annotated[T, Decides.ROUNDING]
Nothing = Annotated[T, Decides.NOTHING]


class Place(Enum):
    BY_CONTENT = "by content"


ByContent = Annotated[T, Place.BY_CONTENT]
RESULTS = (Decides.TOKENS, Decides.WEIGHTS, Decides.SCORES, Decides.EVALUATION, Decides.FINDINGS)
"""What decides any result at all."""


@dataclass(frozen=True)
class Rule:
    """Fields that decide more than they declare, under other settings of the same section."""

    fields: tuple[str, ...]
    decide: Decides
    where: Callable[[Any], bool]
    """Of a section that has the fields."""
    told: str
    """The same for the reader of the fields' documentation."""


RULES = (
    Rule(
        ("micro_batch",),
        Decides.WEIGHTS,
        lambda run: hasattr(run, "selection") and run.selection.scope != "group",  # then tokens of a micro-batch compete
        "with selection.scope global or threshold the weights",
    ),
    Rule(
        ("eval_every", "eval_tokens"),
        Decides.WEIGHTS,
        lambda run: getattr(run, "keep_best_on", None) is not None,
        "with reference.keep_best_on which weights are kept",
    ),
)


def declared(model: type[BaseModel]) -> dict[str, Decides | None]:
    """What each field of a section's class declares; None for those that hold sections, whose own fields do.

    Raises `TypeError` for a field that declares nothing, or two things.
    """
    found: dict[str, Decides | None] = {}
    for name, field in model.model_fields.items():
        kinds = [m for m in field.metadata if isinstance(m, Decides)]
        if len(kinds) > 1 or (not kinds and not _holds_sections(field.annotation)):
            said = " and ".join(k.name for k in kinds) or "nothing"
            raise TypeError(
                f"{model.__name__}.{name} declares {said}; want what it decides, once: {name}: Weights[...], or another of "
                "slmctl.config.decides."
            )
        found[name] = kinds[0] if kinds else None
    return found


def by_content(model: type[BaseModel]) -> set[str]:
    """The fields of a section's class that say where something lies."""
    return {name for name, field in model.model_fields.items() if Place.BY_CONTENT in field.metadata}


def _holds_sections(annotation: Any) -> bool:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return True
    return any(_holds_sections(a) for a in get_args(annotation))


def decides(section: BaseModel) -> dict[str, Decides | None]:
    """What each field of a section decides as the section is: its declaration, and the rules."""
    found = declared(type(section))
    for rule in RULES:
        for name in rule.fields:
            if name in found and rule.where(section):
                found[name] = rule.decide
    return found


def decided(section: BaseModel, *kinds: Decides, places: bool = False) -> dict[str, Any]:
    """The fields that decide one of `kinds`, with their values as plain data; of sections within, theirs. Without those that say
    where something lies, unless `places` are asked for."""
    plain = section.model_dump(mode="json")
    left_out = set() if places else by_content(type(section))
    found = {}
    for name, kind in decides(section).items():
        if name in left_out:
            continue
        if kind is None:
            found[name] = _decided_in(getattr(section, name), plain[name], kinds, places)
        elif kind in kinds:
            found[name] = plain[name]
    return found


def _decided_in(value: Any, plain: Any, kinds: tuple[Decides, ...], places: bool) -> Any:
    if isinstance(value, BaseModel):
        return decided(value, *kinds, places=places)
    if isinstance(value, list):
        return [_decided_in(v, p, kinds, places) for v, p in zip(value, plain, strict=True)]
    if isinstance(value, dict):
        return {k: _decided_in(v, plain[k], kinds, places) for k, v in value.items()}
    return plain


def result_settings(settings: BaseModel) -> dict[str, Any]:
    """The settings that decide a run's weights: not those of logs, checkpoints, evaluations and memory."""
    return decided(settings, Decides.WEIGHTS)
