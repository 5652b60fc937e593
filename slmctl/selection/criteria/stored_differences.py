"""Differences of two stored losses: static, known before the model in training sees a token."""

from __future__ import annotations

from typing import TYPE_CHECKING

from slmctl.selection.criterion import Choice, Columns, Criterion, Score

if TYPE_CHECKING:
    from torch import Tensor


def difference(high: str, low: str) -> Score:
    """The loss under the score set of role `high` less that under `low`."""

    def score(columns: Columns, _choice: Choice) -> Tensor:
        return columns.of(high) - columns.of(low)

    return score


BASE_MINUS_REF = Criterion(
    name="base_minus_ref",
    says="the tokens on which the reference improved most over the base",
    formula="L_base(x) − L_RM(x)",
    source="Pang et al. 2025, Token Cleaning (2502.01968); of rows: CoLoR-Filter (2406.10670)",
    score=difference("base", "reference"),
    reads=("ref_loss",),
    roles=("base", "reference"),
    use="excess loss without a live pass: the mask is known beforehand",
    against="never learns that a token has been learnt",
)
LEARNABILITY = Criterion(
    name="learnability",
    says="the tokens that a small proxy learnt in its training",
    formula="L_early(x) − L_late(x)",
    source="Fan & Jaggi 2023, irreducible curriculum (2310.15389)",
    score=difference("early", "late"),
    reads=("ref_loss",),
    roles=("early", "late"),
    use="no curated text: two checkpoints of one small model",
    against="knows no target",
)
CONTRAST = Criterion(
    name="contrast",
    says="the tokens that a model of the unwanted finds less likely than one of the wanted",
    formula="L_anti(x) − L_good(x)",
    source="DExperts-like contrast of two references (2105.03023), as a selection",
    score=difference("anti", "good"),
    reads=("ref_loss",),
    roles=("anti", "good"),
    use="alignment: one reference tuned on what is wanted, one on what is not",
    against="two references to train and to score with",
)
