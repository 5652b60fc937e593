"""Excess loss: what the reference knows and the model in training does not yet."""

from __future__ import annotations

from typing import TYPE_CHECKING

from slmctl.selection.criterion import Choice, Columns, Criterion

if TYPE_CHECKING:
    from torch import Tensor


def score(columns: Columns, _choice: Choice) -> Tensor:
    return columns.live() - columns.of("reference")


CRITERION = Criterion(
    name="excess_loss",
    says="the tokens of highest excess loss",
    formula="L_θ(x) − L_RM(x)",
    source="Lin et al. 2024 (2404.07965), Eq. 3",
    score=score,
    live=("live_loss",),
    reads=("ref_loss",),
    roles=("reference",),
    use="a base that knows the language, a narrow target, a noisy corpus, a reference that still knows the corpus",
    against="general loss rises; a reference that has forgotten the corpus selects badly; loses from scratch without a target",
)
