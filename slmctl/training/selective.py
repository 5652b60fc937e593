"""One micro-batch of selective language modelling: trunk once, live losses without grad, selection, loss on the chosen.

Trunk, head and selection live in this one module's forward, so that it can be wrapped as a whole.
Shapes: B rows, T tokens, D hidden, G selection groups, N valid targets, K selected.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from slmctl.config import SelectionConfig
from slmctl.model.losses import selected_loss, token_losses
from slmctl.model.split import SplitModel
from slmctl.selection.select import excess_loss, random_scores, select_top
from slmctl.training.batches import MicroBatch


@dataclass
class MicroResult:
    """`loss` has the gradient; the rest is for the log. Losses are nats, NaN where a position is no target."""

    loss: Tensor
    live_BT: Tensor
    selected_BT: Tensor
    threshold_G: Tensor
    """Lowest selected score of each group (NaN for groups that select nothing, or without scores)."""


class SelectiveLM(nn.Module):
    """A causal LM with the selective objective (Eq. 4)."""

    def __init__(self, model: SplitModel, selection: SelectionConfig) -> None:
        super().__init__()
        self.model, self.selection = model, selection

    def forward(self, micro: MicroBatch, divisor: int) -> MicroResult:
        hidden_BTD = self.model.hidden(micro.ids_BT, micro.position_BT)
        target = micro.target_BT.flatten().nonzero()[:, 0]
        before = target - 1  # the position whose hidden state predicts the target; a target is never first in its row
        hidden_ND = hidden_BTD.flatten(0, 1)
        ids_N = micro.ids_BT.flatten()
        live = torch.full_like(ids_N, torch.nan, dtype=torch.float32)
        threshold_G = torch.full_like(micro.counts_G, torch.nan, dtype=torch.float32)
        if self.selection.criterion == "all":
            chosen = target
            loss, losses = selected_loss(self.model, hidden_ND[before], ids_N[target], divisor)
            live[target] = losses.float()
        else:
            live[target] = token_losses(self.model, hidden_ND.detach()[before], ids_N[target])[0].float()
            scores_GM = self._scores(micro, live.view_as(micro.ids_BT))
            picked_GM = select_top(scores_GM, micro.target_BT.view_as(scores_GM), micro.counts_G)
            lowest_G = scores_GM.masked_fill(~picked_GM, torch.inf).min(dim=1).values
            threshold_G = torch.where(micro.counts_G > 0, lowest_G, threshold_G)
            chosen = picked_GM.flatten().nonzero()[:, 0]
            loss, _ = selected_loss(self.model, hidden_ND[chosen - 1], ids_N[chosen], divisor)
        selected = torch.zeros_like(ids_N, dtype=torch.bool)
        selected[chosen] = True
        return MicroResult(loss, live.view_as(micro.ids_BT), selected.view_as(micro.ids_BT), threshold_G)

    def _scores(self, micro: MicroBatch, live_BT: Tensor) -> Tensor:
        """Selection scores [G, M]."""
        groups = len(micro.counts_G)
        tokens = micro.ids_BT.numel() // groups
        if self.selection.criterion == "random":
            return random_scores(groups, tokens, micro.group_seeds, micro.ids_BT.device)
        assert micro.ref_loss_BT is not None, "excess_loss needs a joined score set"
        return excess_loss(live_BT, micro.ref_loss_BT).view(groups, tokens)
