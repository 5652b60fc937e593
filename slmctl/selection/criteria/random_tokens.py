"""Tokens drawn blindly: whether it matters which tokens are trained on, or just how many."""

from __future__ import annotations

from typing import TYPE_CHECKING

from slmctl.selection.criterion import Choice, Columns, Criterion

if TYPE_CHECKING:
    from torch import Tensor


def score(columns: Columns, _choice: Choice) -> Tensor:
    from slmctl.selection.select import random_scores

    groups, tokens = columns.valid_GM.shape
    return random_scores(groups, tokens, list(columns.seeds_G), columns.valid_GM.device)


CRITERION = Criterion(
    name="random",
    says="tokens drawn at random",
    formula="u ~ U(0, 1)",
    source="control of Lin et al. 2024, §3",
    score=score,
    control=True,
    competes=False,
    use="always, as the control of any mask of the same ratio",
    against="worse than all tokens at the same tokens seen: it trains on fewer",
)
