"""Every token: plain language modelling, the control that selection has to beat."""

from __future__ import annotations

from typing import TYPE_CHECKING

from slmctl.selection.criterion import Choice, Columns, Criterion

if TYPE_CHECKING:
    from torch import Tensor


def mask(columns: Columns, _choice: Choice, _counts_G: Tensor) -> Tensor:
    return columns.valid_GM


CRITERION = Criterion(
    name="all",
    says="all tokens",
    formula="1",
    source="plain language modelling",
    mask=mask,
    control=True,
    competes=False,
    use="always, as the control: same rows, same order",
)
