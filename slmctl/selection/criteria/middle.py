"""The middle of the losses: both tails are dropped, what is learnt already and what may be noise."""

from __future__ import annotations

from typing import TYPE_CHECKING

from slmctl.selection.criterion import Choice, Columns, Criterion

if TYPE_CHECKING:
    from torch import Tensor


def score(columns: Columns, _choice: Choice) -> Tensor:
    from slmctl.selection.select import top_order

    valid_GM = columns.valid_GM
    order_GM = top_order(columns.live(), valid_GM)
    place_GM = order_GM.argsort(dim=1, stable=True).float()  # 0 is the highest loss
    middle_G1 = (valid_GM.sum(dim=1, keepdim=True).float() - 1) / 2
    return -(place_GM - middle_G1).abs()


CRITERION = Criterion(
    name="middle",
    says="the tokens of middling loss of the model itself",
    formula="−|rank L_θ(x) − median rank|",
    source="middle perplexity of nzhao721/edullm; Marion et al. 2023 (2309.04564) for documents",
    score=score,
    live=("live_loss",),
    competes=False,
    use="a noisy corpus, no reference",
    against="lost to all tokens from scratch (370M, 9.9B tokens: 1.905 bits per byte against 1.652)",
)
