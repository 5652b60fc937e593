"""Low reference entropy: where the reference is sure of what comes next (self-reference)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from slmctl.selection.criterion import Choice, Columns, Criterion

if TYPE_CHECKING:
    from torch import Tensor


def score(columns: Columns, _choice: Choice) -> Tensor:
    return -columns.of("reference", "ref_entropy")


CRITERION = Criterion(
    name="ref_entropy",
    says="the tokens of lowest reference entropy",
    formula="−H_RM(x) = Σ_v p_RM(v) log p_RM(v)",
    source="Lin et al. 2024, self-reference (H_RM)",
    score=score,
    reads=("ref_entropy",),
    roles=("reference",),
    use="no curated text: the reference is trained on the corpus itself",
    against="keeps what is predictable, whether or not the token that came is the one that was foreseen",
)
