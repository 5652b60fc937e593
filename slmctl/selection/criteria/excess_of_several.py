"""Excess loss over several references."""

from __future__ import annotations

from typing import TYPE_CHECKING

from slmctl.selection.criterion import Choice, Columns, Criterion, Option

if TYPE_CHECKING:
    from torch import Tensor


def score(columns: Columns, choice: Choice) -> Tensor:
    import torch

    refs = [columns.of(role) for role in choice.sets]
    combine = choice.options.get("combine", "min")
    if len(refs) == 1:
        return columns.live() - refs[0]
    if combine == "min":
        return columns.live() - torch.stack(refs).amin(dim=0)
    weights = choice.weights if combine == "weighted" else (1.0,) * len(refs)
    total = sum(weights)
    mean_GM = torch.zeros_like(refs[0])
    for weight, ref_GM in zip(weights, refs, strict=True):
        mean_GM += weight / total * ref_GM
    return columns.live() - mean_GM


CRITERION = Criterion(
    name="excess_of_several",
    says="the tokens of highest excess loss over several references",
    formula="L_θ(x) − min_i L_RM,i(x), or the (weighted) mean over i",
    source="Lin et al. 2024, §5 (future work)",
    score=score,
    live=("live_loss",),
    reads=("ref_loss",),
    several=True,
    options={"combine": Option("min", "How the references' losses become one.", ("min", "mean", "weighted"))},
    use="a target of several domains, each with curated text of its own",
    against="min keeps what any one reference knows, and so more of what is merely easy",
)
