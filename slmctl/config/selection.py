"""The part of the configuration that says which tokens an arm is trained on."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from slmctl.config.decides import Weights
from slmctl.config.types import PositiveInt, Section

UNSCORED = ("all", "random")
"""Criteria whose tokens do not compete by a score: the controls."""


class SelectionConfig(Section):
    criterion: Weights[Literal["excess_loss", "all", "random"]] = "excess_loss"
    """excess_loss (Eq. 3), all (plain language modelling) or random; the last two are the controls."""
    ratio: Weights[Annotated[float, Field(gt=0, le=1)]] = 0.6
    """Share of a group's valid tokens that is trained on: exactly ceil(ratio x valid)."""
    group_rows: Weights[PositiveInt] = 8
    """Rows whose tokens compete with each other; 1 selects within each sequence."""
    scope: Weights[Literal["group", "global", "threshold"]] = "group"
    """Who competes: the tokens of a group; global: those of one micro-batch on all ranks; threshold: each token with a
    running quantile of the scores. What the last two select depends on micro_batch and ranks."""
    reference: Weights[str | None] = None
    """Which score set to join; null is the first of score.references."""

    @property
    def needs_reference(self) -> bool:
        return self.criterion == "excess_loss"

    @model_validator(mode="after")
    def _scores_compete(self) -> SelectionConfig:
        if self.scope != "group" and self.criterion in UNSCORED:
            raise ValueError(f"scope {self.scope} is for criterion excess_loss; {self.criterion} has no scores that compete")
        return self
