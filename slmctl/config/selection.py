"""The `selection` of an arm: which criterion of the table, its settings, and how what it says becomes weights.

What a criterion may be told follows from its entry (`slmctl.selection.table`), so that a new one needs nothing here.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from slmctl.config.decides import Weights
from slmctl.config.types import PositiveInt, Section
from slmctl.selection.criterion import Choice, Criterion
from slmctl.selection.schedules import RatioSchedule
from slmctl.selection.table import CRITERIA, features_of, has_known_count, live_of, stored_of

COMPETING = tuple(name for name, entry in CRITERIA.items() if entry.competes)
"""Criteria whose scores may compete beyond a group."""
Ratio = Annotated[float, Field(gt=0, le=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Options = dict[str, float | int | str | None]


class ScheduleConfig(Section):
    kind: Weights[Literal["constant", "linear", "cosine"]] = "linear"
    """How the ratio goes from start to `selection.ratio`, by tokens seen; constant: it is that after the warm-up."""
    start: Weights[Ratio] = 1.0
    """Ratio after the warm-up."""
    warmup: Weights[Annotated[float, Field(ge=0, lt=1)]] = 0.0
    """Share of the run's tokens in which all tokens are trained on first."""
    until: Weights[Annotated[float, Field(gt=0, le=1)]] = 1.0
    """Share of the run's tokens at which `selection.ratio` is reached."""

    @model_validator(mode="after")
    def _in_order(self) -> ScheduleConfig:
        if self.until <= self.warmup:
            raise ValueError(f"until {self.until} is not after warmup {self.warmup}")
        return self

    def to(self, ratio: float) -> RatioSchedule:
        start = ratio if self.kind == "constant" else self.start
        return RatioSchedule(self.kind, start, ratio, self.warmup, self.until)


class WeightingConfig(Section):
    soft: Weights[Literal["sigmoid", "softmax", "score"]] = "sigmoid"
    """sigmoid: 1 / (1 + exp((t - S) / T)), t the edge of hard selection; softmax: min(1, c exp(S / T)), weights that sum to what
    hard selection keeps; score: the scores themselves, none below 0."""
    temperature: Weights[Annotated[float, Field(gt=0)]] = 1.0
    """T, in the score's own unit (nats for losses); towards 0 sigmoid and softmax are the mask."""


class PartConfig(Section):
    criterion: Weights[str] = "excess_loss"
    """A criterion of the table."""
    ratio: Weights[Ratio] = 0.6
    """Share that the part keeps, in an intersection or a union."""
    weight: Weights[float] = 1.0
    """Weight of the part in a blend."""
    sets: Weights[dict[str, str] | None] = None
    """Score sets by role, as in selection."""
    options: Weights[Options | None] = None
    """Settings of the criterion's own."""

    @field_validator("criterion")
    @classmethod
    def _is_known(cls, name: str) -> str:
        return known_criterion(name)

    @model_validator(mode="after")
    def _fits(self) -> PartConfig:
        criterion = CRITERIA[self.criterion]
        if criterion.composed:
            raise ValueError(f"a part cannot be {self.criterion}, which is made of parts itself")
        refuse_misfits(criterion, self.sets, self.options)
        return self

    def choice(self, reference: str | None) -> Choice:
        sets = sets_of(CRITERIA[self.criterion], self.sets, reference)
        return Choice(self.criterion, self.ratio, self.options or {}, sets)


class SelectionConfig(Section):
    criterion: Weights[str] = "excess_loss"
    """Which tokens: excess_loss (Eq. 3), the controls all (plain language modelling) and random, or another of
    docs/strategies.md."""
    ratio: Weights[Ratio] = 0.6
    """Share of a group's valid tokens that is trained on: exactly ceil(ratio x valid)."""
    schedule: ScheduleConfig | None = None
    """How a run comes to its ratio; null: it has it from the first step on."""
    group_rows: Weights[PositiveInt] = 8
    """Rows whose tokens compete with each other; 1 selects within each sequence."""
    scope: Weights[Literal["group", "global", "threshold"]] = "group"
    """Who competes: the tokens of a group; global: those of one micro-batch on all ranks; threshold: each token with a
    running quantile of the scores. What the last two select depends on micro_batch and ranks."""
    reference: Weights[str | None] = None
    """Which score set is the criterion's `reference`; null is the first of score.references."""
    sets: Weights[dict[str, str] | None] = None
    """The criterion's other score sets: role to a name of score.references (`{base: base, reference: curated}` of
    base_minus_ref); of excess_of_several any number, by names of one's own."""
    weights: Weights[dict[str, float] | None] = None
    """Of the sets of excess_of_several, by the same names, with `options: {combine: weighted}`."""
    options: Weights[Options | None] = None
    """Settings of the criterion's own, as docs/strategies.md names them."""
    parts: list[PartConfig] | None = None
    """What intersection, union and blend are made of."""
    weighting: WeightingConfig | None = None
    """Soft weights in place of a mask; null is the mask."""
    unselected_weight: Weights[Share | None] = None
    """What tokens that are not selected weigh beside the 1 of those that are: a general term against forgetting. null is 0."""

    @field_validator("criterion")
    @classmethod
    def _is_known(cls, name: str) -> str:
        return known_criterion(name)

    @property
    def entry(self) -> Criterion:
        return CRITERIA[self.criterion]

    def choice(self) -> Choice:
        """What selects, with score sets by name; the name of the first of score.references is empty. Who selects under a
        schedule gives the step's own ratio."""
        parts = self.parts or []
        weights: tuple[float, ...] = tuple(p.weight for p in parts)
        if self.entry.several:
            weights = tuple((self.weights or {}).get(name, 1.0) for name in self.sets or {})
        sets = sets_of(self.entry, self.sets, self.reference)
        made_of = tuple(p.choice(self.reference) for p in parts)
        return Choice(self.criterion, self.ratio, self.options or {}, sets, made_of, weights)

    def ratio_at(self, seen: int, budget: int) -> float:
        """The ratio of a step that begins when `seen` of `budget` tokens were seen; 1 of all tokens."""
        if self.criterion == "all":
            return 1.0
        return self.schedule.to(self.ratio).at(seen, budget) if self.schedule is not None else self.ratio

    @property
    def needs_reference(self) -> bool:
        """Whether stored scores are read."""
        return bool(stored_of(self.choice()))

    @property
    def watched(self) -> str:
        """The score set whose losses are held against the live ones while training: the criterion's `reference`, else the first
        that is read, else the first of score.references ('')."""
        choice = self.choice()
        own = [choice.sets["reference"]] if "reference" in choice.sets and "ref_loss" in self.entry.reads else []
        return next(iter([*own, *(name for name, column in stored_of(choice) if column == "ref_loss")]), self.reference or "")

    @property
    def joined(self) -> tuple[tuple[str, str], ...]:
        """What is read of score sets besides the losses that are watched."""
        return tuple(key for key in stored_of(self.choice()) if key != (self.watched, "ref_loss"))

    @property
    def needs_live(self) -> bool:
        """Whether the live losses of all tokens come before the selection."""
        return bool(live_of(self.choice()))

    @property
    def is_weighted(self) -> bool:
        """Whether tokens have weights in place of a mask."""
        return self.weighting is not None or bool(self.unselected_weight)

    @property
    def scores_on_device(self) -> bool:
        """Whether scores are made where the model is: of live losses, or to weigh by."""
        return self.needs_live or self.weighting is not None

    @property
    def has_known_count(self) -> bool:
        """Whether how many tokens count, and for how much, is known before any forward pass: Eq. 4's divisor."""
        known = has_known_count(self.choice()) or not self.needs_live
        return known and not self.is_weighted and self.scope == "group"

    @property
    def features(self) -> tuple[str, ...]:
        return features_of(self.choice())

    @model_validator(mode="after")
    def _fits(self) -> SelectionConfig:
        entry = self.entry
        refuse_misfits(entry, self.sets, self.options)
        if self.scope != "group" and not (entry.competes and entry.score is not None and self.needs_live):
            why = "is known before the forward pass" if not self.needs_live else "does not compete beyond a group"
            raise ValueError(
                f"scope {self.scope} is for criteria that compare live losses, such as excess_loss; {self.criterion} {why}"
            )
        if self.scope != "group" and self.is_weighted:
            raise ValueError(f"scope {self.scope} selects, and weights nothing; leave weighting and unselected_weight out")
        if entry.composed and not self.parts:
            raise ValueError(f"{self.criterion} is made of parts: give parts: [{{criterion: …}}, …]")
        if self.parts and not entry.composed:
            raise ValueError(f"{self.criterion} has no parts; intersection, union and blend have")
        if self.weights is not None and (not entry.several or set(self.weights) != set(self.sets or {})):
            raise ValueError("weights are those of sets of excess_of_several, one each, by the same names")
        if self.weights is not None and (sum(self.weights.values()) <= 0 or min(self.weights.values()) < 0):
            raise ValueError("weights are at least 0, and one of them is more")
        if self.weighting is not None and entry.score is None:
            raise ValueError(f"{self.criterion} gives a mask, and no scores to weigh by")
        if self.weighting is not None and self.criterion in ("all", "random"):
            raise ValueError(f"{self.criterion} has no scores to weigh by")
        return self


def known_criterion(name: str) -> str:
    """Raises `ValueError` for one that is not in the table."""
    if name not in CRITERIA:
        near = difflib.get_close_matches(name, CRITERIA, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"there is no criterion {name!r} (there are {', '.join(CRITERIA)}){hint}")
    return name


def sets_of(entry: Criterion, sets: dict[str, str] | None, reference: str | None) -> dict[str, str]:
    """Score sets by role; of the role `reference`, where it is not named, the configuration's own ('' is the first)."""
    if entry.several:
        return dict(sets or {})
    own = {"reference": reference or ""} if "reference" in entry.roles else {}
    return {role: {**own, **(sets or {})}[role] for role in entry.roles}


def refuse_misfits(entry: Criterion, sets: dict[str, str] | None, options: dict[str, Any] | None) -> None:
    """Raises `ValueError` for roles and options that a criterion has not, and for roles that it needs."""
    for name, value in (options or {}).items():
        option = entry.options.get(name)
        if option is None:
            has = f"it has {', '.join(entry.options)}" if entry.options else "it has none"
            raise ValueError(f"{entry.name} has no option {name!r}; {has}")
        if option.among and value not in option.among:
            raise ValueError(f"option {name} of {entry.name} is one of {', '.join(option.among)}, not {value!r}")
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not option.among and not is_number and not (value is None and option.default is None):
            raise ValueError(f"option {name} of {entry.name} is a number, not {value!r}")
    given = set(sets or {})
    if entry.several:
        if not given:
            raise ValueError(f"{entry.name} reads score sets of your choice: give sets: {{NAME: a name of score.references, …}}")
        return
    if unknown := sorted(given - set(entry.roles)):
        has = f"it reads {', '.join(entry.roles)}" if entry.roles else "it reads no score set"
        raise ValueError(f"{entry.name} has no score set {unknown[0]!r}; {has}")
    if absent := [r for r in entry.roles if r != "reference" and r not in given]:
        example = ", ".join(f"{role}: …" for role in absent)
        raise ValueError(f"{entry.name} reads two score sets: give sets: {{{example}}}, names of score.references")


# --- of a selection as it is recorded: in inputs.json and results.json ---


def _entries(found: Mapping[str, Any]) -> list[Criterion]:
    """The criterion of a recorded selection and those of its parts; without such as this slmctl does not know."""
    names = [found.get("criterion", "all"), *(p.get("criterion") for p in found.get("parts") or [])]
    return [CRITERIA[n] for n in names if n in CRITERIA]


def is_control(found: Mapping[str, Any]) -> bool:
    """Whether a recorded selection is one that others have to beat."""
    return bool(entries := _entries(found)) and entries[0].control


def reads_scores(found: Mapping[str, Any]) -> bool:
    """Whether a recorded selection reads stored scores; one that this slmctl does not know is taken to."""
    return not (entries := _entries(found)) or any(e.reads for e in entries)


def sets_read(found: Mapping[str, Any], references: Iterable[str]) -> list[str]:
    """The score sets that a recorded selection reads, by their names among score.references."""
    first = found.get("reference") or next(iter(references), "")
    names: list[str] = []
    for one in (found, *(found.get("parts") or [])):
        entry = CRITERIA.get(one.get("criterion", "all"))
        if entry is None:
            names.append(first)
        elif entry.reads:
            names += sets_of(entry, one.get("sets"), first).values()
    return list(dict.fromkeys(names))


def reads_live(found: Mapping[str, Any]) -> bool:
    """Whether the losses of all tokens came before the selection."""
    return not (entries := _entries(found)) or any(e.live for e in entries)


def weighs_all(found: Mapping[str, Any]) -> bool:
    """Whether tokens had weights in place of a mask, so that each was trained on."""
    return found.get("weighting") is not None or bool(found.get("unselected_weight"))
