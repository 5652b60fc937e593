"""Intersection and union of masks, each with a ratio of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from slmctl.selection.criterion import Choice, Columns, Criterion

if TYPE_CHECKING:
    from torch import Tensor


def masks(columns: Columns, choice: Choice) -> list[Tensor]:
    from slmctl.selection.masks import mask_of

    return [mask_of(columns, part) for part in choice.parts]


def both(columns: Columns, choice: Choice, _counts_G: Tensor) -> Tensor:
    found, *others = masks(columns, choice)
    for other in others:
        found = found & other
    return found


def either(columns: Columns, choice: Choice, _counts_G: Tensor) -> Tensor:
    found, *others = masks(columns, choice)
    for other in others:
        found = found | other
    return found


INTERSECTION = Criterion(
    name="intersection",
    says="the tokens that each of several criteria keeps",
    formula="∏ I_k%(S_i)",
    source="Lin et al. 2024, self-reference (L_RM ∩ H_RM)",
    mask=both,
    composed=True,
    competes=False,
    use="self-reference: low loss and low entropy, 70% each",
    against="how many are kept follows from how far the parts agree",
)
UNION = Criterion(
    name="union",
    says="the tokens that any of several criteria keeps",
    formula="max I_k%(S_i)",
    source="Lin et al. 2024, self-reference (L_RM ∪ H_RM)",
    mask=either,
    composed=True,
    competes=False,
    use="several domains, each with its own reference",
    against="how many are kept follows from how far the parts agree",
)
