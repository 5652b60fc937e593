"""Own loss: what the model in training finds hard, whether or not it can be learnt."""

from __future__ import annotations

from typing import TYPE_CHECKING

from slmctl.selection.criterion import Choice, Columns, Criterion

if TYPE_CHECKING:
    from torch import Tensor


def score(columns: Columns, _choice: Choice) -> Tensor:
    return columns.live()


CRITERION = Criterion(
    name="own_loss",
    says="the tokens of highest loss of the model itself",
    formula="L_θ(x)",
    source="control of Lin et al. 2024; Loshchilov & Hutter 2015 (1511.06343) for examples",
    score=score,
    live=("live_loss",),
    use="as the control that shows what the reference adds",
    against="prefers noise, whose loss never falls",
)
