"""A domain's words: how much more often a token stands in the curated text than in the corpus."""

from __future__ import annotations

from typing import TYPE_CHECKING

from slmctl.selection.criterion import Choice, Columns, Criterion

if TYPE_CHECKING:
    from torch import Tensor


def score(columns: Columns, _choice: Choice) -> Tensor:
    assert columns.log_odds_GM is not None
    return columns.log_odds_GM.float()


CRITERION = Criterion(
    name="frequency",
    says="the tokens that are more frequent in the curated text than in the corpus",
    formula="log((c_x + 1) / (C + V)) − log((k_x + 1) / (K + V))",
    source="Moore & Lewis 2010, with unigrams",
    score=score,
    features=("log_odds",),
    competes=False,
    control=True,
    use="as the control that shows what context adds",
    against="looks at no context: a token is kept wherever it stands",
)
