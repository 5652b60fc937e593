"""Low reference loss: what the reference finds likely (self-reference)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from slmctl.selection.criterion import Choice, Columns, Criterion

if TYPE_CHECKING:
    from torch import Tensor


def score(columns: Columns, _choice: Choice) -> Tensor:
    return -columns.of("reference")


CRITERION = Criterion(
    name="ref_loss",
    says="the tokens of lowest reference loss",
    formula="−L_RM(x)",
    source="Lin et al. 2024, self-reference (L_RM)",
    score=score,
    reads=("ref_loss",),
    roles=("reference",),
    use="no curated text: the reference is trained on the corpus itself",
    against="keeps what is easy, and so what is learnt already",
)
