"""A weighted sum of criteria, each standardised within the group."""

from __future__ import annotations

from typing import TYPE_CHECKING

from slmctl.selection.criterion import Choice, Columns, Criterion

if TYPE_CHECKING:
    from torch import Tensor


def score(columns: Columns, choice: Choice) -> Tensor:
    import torch

    from slmctl.selection.masks import score_of
    from slmctl.selection.select import standardised

    total_GM = torch.zeros_like(columns.valid_GM, dtype=torch.float32)
    for part, weight in zip(choice.parts, choice.weights, strict=True):
        total_GM += weight * standardised(score_of(columns, part), columns.valid_GM)
    return total_GM


CRITERION = Criterion(
    name="blend",
    says="the tokens of the highest weighted sum of several scores",
    formula="Σ_i w_i (S_i(x) − mean) / sd, over the group",
    source="as in ssToken (2510.18250), of any parts",
    score=score,
    composed=True,
    competes=False,
    use="a question about two scores at once",
    against="one more number to choose a part",
)
