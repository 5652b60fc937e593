"""Place in the document: the cheap control of whatever gives weight to late tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

from slmctl.selection.criterion import Choice, Columns, Criterion, Option

if TYPE_CHECKING:
    from torch import Tensor


def score(columns: Columns, choice: Choice) -> Tensor:
    assert columns.position_GM is not None
    return (columns.position_GM.float() / float(choice.options.get("scale", 10.0))).tanh()


CRITERION = Criterion(
    name="position",
    says="the tokens far from their document's beginning",
    formula="tanh(position / 10)",
    source="control: tokens with more context are learnt from more",
    score=score,
    features=("position",),
    options={"scale": Option(10.0, "Tokens over which the weight rises.")},
    control=True,
    competes=False,
    use="with `weighting: {soft: score}`, as the control of soft weights",
    against="knows no token",
)
