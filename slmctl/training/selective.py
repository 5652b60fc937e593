"""One micro-batch of selective language modelling: trunk once, live losses without grad, selection, loss on the chosen.

Trunk, head and selection run within the model's one forward, so that the whole may be sharded. How many tokens are chosen is
known beforehand (but for the scopes `global` and `threshold`), so that nothing here waits for the device.
Shapes: B rows, T tokens, D hidden, G selection groups, M tokens of a group, N valid targets, K selected.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from slmctl.config.selection import SelectionConfig
from slmctl.model.losses import chunk_rows, live_losses, selected_loss, token_losses
from slmctl.model.split import SplitModel
from slmctl.selection.criterion import Columns
from slmctl.selection.masks import mask_of, score_of
from slmctl.selection.quantile import select_top_of_all
from slmctl.selection.select import chosen_positions, random_scores, top_order
from slmctl.selection.table import has_known_count, live_of
from slmctl.selection.weights import soft_weights, with_unselected
from slmctl.training.batches import MicroBatch
from slmctl.training.ranks import Ranks


class MicroResult(NamedTuple):
    """`loss` has the gradient; the rest is for the log. Losses are nats, NaN where a position is no target, or where a
    criterion that does not look at live losses did not compute one."""

    loss: Tensor
    live_BT: Tensor
    selected_BT: Tensor
    threshold_G: Tensor
    """Lowest selected score of each group (NaN for groups that select nothing, or without scores)."""
    weights_BT: Tensor | None = None
    """What each token weighs, where tokens have weights in place of a mask."""


class Objective:
    """The selective objective (Eq. 4) of a causal LM."""

    def __init__(
        self,
        model: SplitModel,
        selection: SelectionConfig,
        ranks: Ranks = Ranks(),  # noqa: B008 - frozen
        log_odds_V: Tensor | None = None,
    ) -> None:
        """`log_odds_V` are of each id of the vocabulary, where the criterion reads them, on the model's device."""
        self.model, self.selection, self.ranks, self.log_odds_V = model, selection, ranks, log_odds_V
        self.choice, self.live = selection.choice(), live_of(selection.choice())
        self.threshold: float | None = None
        """The running quantile of `scope: threshold`; while there is none, tokens compete within their groups."""

    def __call__(self, micro: MicroBatch, divisor: float) -> MicroResult:
        """Loss of the selected tokens over `divisor`."""

        def then(hidden_BTD: Tensor) -> MicroResult:
            return self._of(hidden_BTD.flatten(0, 1), micro, divisor)

        result: MicroResult = self.model(micro.ids_BT, micro.position_BT, micro.starts_S, then, micro.row_seeds)
        return result

    def _of(self, hidden_ND: Tensor, micro: MicroBatch, divisor: float) -> MicroResult:
        ids_N, target = micro.ids_BT.flatten(), micro.target_N
        live = torch.full_like(ids_N, torch.nan, dtype=torch.float32)
        threshold_G = live.new_full((len(micro.counts),), torch.nan)
        weights_N = None
        takes_all = not self.selection.is_weighted and micro.counts == micro.valid and self.selection.has_known_count
        # hidden state p - 1 predicts token p; a target is never first in its row
        if takes_all:
            loss, losses_K = selected_loss(self.model, hidden_ND[target - 1], ids_N[target], divisor)
            chosen, live[target] = target, losses_K.float()
        elif self.selection.needs_live and not self.selection.is_weighted and self.live == ("live_loss",):
            keep, taken = self._logits_to_keep(micro, may_wait=ids_N.device.type == "cpu")
            losses_N, kept = live_losses(self.model, hidden_ND.detach()[target - 1], ids_N[target], keep)
            live[target] = losses_N.float()
            chosen, threshold_G = self._select(micro, live, None)
            if taken is None:
                taken = int((chosen >= target[len(target) - keep]).sum()) if keep else 0
            rows_J = torch.searchsorted(target, chosen[len(chosen) - taken :]) - kept.first
            loss, _ = selected_loss(self.model, hidden_ND[chosen - 1], ids_N[chosen], divisor, kept, rows_J)
        else:
            entropy = None
            if self.selection.needs_live:
                wanted = "live_entropy" in self.live
                losses_N, entropy_N = token_losses(self.model, hidden_ND.detach()[target - 1], ids_N[target], wanted)
                live[target] = losses_N.float()
                if entropy_N is not None:
                    entropy = torch.full_like(live, torch.nan)
                    entropy[target] = entropy_N.float()
            if self.selection.is_weighted:
                chosen, weights_N = target, self._weights(micro, live, entropy)
            elif self.selection.needs_live:
                chosen, threshold_G = self._select(micro, live, entropy)
            else:
                chosen = micro.chosen_K if micro.chosen_K is not None else target
            weights_K = weights_N[chosen] if weights_N is not None else None
            loss, losses_K = selected_loss(self.model, hidden_ND[chosen - 1], ids_N[chosen], divisor, weights_K=weights_K)
            live[chosen] = losses_K.float()
        selected = torch.zeros_like(ids_N, dtype=torch.bool)
        selected[chosen] = True
        shape = micro.ids_BT.shape
        weights_BT = weights_N.view(shape) if weights_N is not None else None
        return MicroResult(loss, live.view(shape), selected.view(shape), threshold_G, weights_BT)

    def _columns(self, micro: MicroBatch, live: Tensor, entropy: Tensor | None) -> Columns:
        """What the criterion reads, by groups."""
        groups = len(micro.counts)

        def by_group(values: Tensor | None) -> Tensor | None:
            return values.reshape(groups, -1) if values is not None else None

        stored = {key: values.reshape(groups, -1) for key, values in micro.joined.items()}
        if micro.ref_loss_BT is not None:
            stored[self.selection.watched, "ref_loss"] = micro.ref_loss_BT.reshape(groups, -1)
        odds = self.log_odds_V[micro.ids_BT] if self.log_odds_V is not None else None
        valid_GM = micro.target_BT.reshape(groups, -1)
        return Columns(
            *(valid_GM, micro.group_seeds, by_group(live), by_group(entropy), stored),
            *(by_group(micro.place_BT), by_group(odds)),
        )

    def _weights(self, micro: MicroBatch, live: Tensor, entropy: Tensor | None) -> Tensor:
        """What each token weighs [N]: all positions, 0 where nothing is predicted."""
        valid_GM = micro.target_BT.reshape(len(micro.counts), -1)
        counts_G = torch.tensor(micro.counts, device=valid_GM.device)
        weighting = self.selection.weighting
        if not self.selection.needs_live and weighting is None:
            mask = torch.zeros_like(micro.target_BT.flatten())
            mask[micro.chosen_K if micro.chosen_K is not None else micro.target_N] = True
            weights_GM = mask.view_as(valid_GM).float()
        else:
            columns = self._columns(micro, live, entropy)
            if weighting is None:
                weights_GM = mask_of(columns, self.choice, counts_G).float()
            else:
                scores_GM = score_of(columns, self.choice)
                weights_GM = soft_weights(weighting.soft, scores_GM, valid_GM, counts_G, weighting.temperature)
        return with_unselected(weights_GM, valid_GM, self.selection.unselected_weight or 0.0).flatten()

    def _logits_to_keep(self, micro: MicroBatch, may_wait: bool) -> tuple[int, int | None]:
        """How many of the last targets' logits are kept for the loss of those that will be selected: as many as fit in one
        chunk; and how many of these will be, or None where the selection has to be asked. Where nobody may wait for the
        answer, they are those of whole groups, whose number is known beforehand."""
        most = chunk_rows(self.model.vocab_size, micro.ids_BT.device.type, gradient=True)
        if may_wait:
            return min(most, len(micro.target_N)), None
        keep = taken = 0
        for valid, count in zip(reversed(micro.valid), reversed(micro.counts), strict=True):
            if keep + valid > most or not self.selection.has_known_count:
                break
            keep, taken = keep + valid, taken + count
        return keep, taken

    def _select(self, micro: MicroBatch, live: Tensor, entropy: Tensor | None) -> tuple[Tensor, Tensor]:
        """Flat positions of the selected tokens [K], rising; and the lowest selected score of each group [G]."""
        groups, columns = len(micro.counts), self._columns(micro, live, entropy)
        if not has_known_count(self.choice):
            counts_G = torch.tensor(micro.counts, device=live.device)
            mask_GM = mask_of(columns, self.choice, counts_G)
            return mask_GM.flatten().nonzero()[:, 0], live.new_full((groups,), torch.nan)
        scores_GM, valid_GM = score_of(columns, self.choice), columns.valid_GM
        if self.selection.scope == "global":
            flat = scores_GM.flatten()
            picked, lowest = select_top_of_all(flat, valid_GM.flatten(), micro.count_of_all, self.ranks)
            return picked.nonzero()[:, 0], lowest.expand(groups)
        highest_K = chosen_positions(top_order(scores_GM, valid_GM), micro.places_K)
        lowest_G = lowest_of(scores_GM, highest_K)
        if self.selection.scope == "threshold" and self.threshold is not None:
            return (valid_GM & (scores_GM > self.threshold)).flatten().nonzero()[:, 0], lowest_G
        return highest_K, lowest_G


def random_positions(micro: MicroBatch) -> Tensor:
    """What random selection takes of a micro-batch: as many tokens of each group as are selected, by the groups' seeds. Flat
    positions [K], rising."""
    groups = len(micro.counts)
    tokens = micro.ids_BT.numel() // groups
    scores_GM = random_scores(groups, tokens, micro.group_seeds, micro.ids_BT.device)
    return chosen_positions(top_order(scores_GM, micro.target_BT.view_as(scores_GM)), micro.places_K)


def lowest_of(scores_GM: Tensor, chosen_K: Tensor) -> Tensor:
    """The lowest score of each group among flat positions [K]; NaN for groups that have none. [G]"""
    among = torch.zeros(scores_GM.numel(), dtype=torch.bool, device=scores_GM.device)
    among[chosen_K] = True
    lowest_G = scores_GM.masked_fill(~among.view_as(scores_GM), torch.inf).amin(dim=1)
    return lowest_G.masked_fill(lowest_G == torch.inf, torch.nan)
