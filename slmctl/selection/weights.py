"""Weights of tokens in place of a mask: soft ones around the selection's edge, and what is not selected counted for less.

A run's loss is the sum of weight x loss over the sum of weights of the whole optimizer step. G selection groups, M tokens.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from slmctl.selection.select import ranked

Soft = Literal["sigmoid", "softmax", "score"]


def sigmoid_weights(scores_GM: Tensor, valid_GM: Tensor, counts_G: Tensor, temperature: float) -> Tensor:
    """1 / (1 + exp((t - S) / T)), t half-way between the lowest score that hard selection keeps and the next [G, M]; 1 throughout
    a group of which all is kept. Towards T = 0 it is the mask, but for ties at the edge, which weigh a half."""
    falling_GM = ranked(scores_GM, valid_GM).sort(dim=1, descending=True).values.double()
    last = falling_GM.shape[1] - 1
    kept_G1, next_G1 = (falling_GM.gather(1, (counts_G[:, None] + at).clamp(0, last)) for at in (-1, 0))
    whole_G1 = counts_G[:, None] >= valid_GM.sum(dim=1, keepdim=True)
    edge_G1 = torch.where(whole_G1, -torch.inf, (kept_G1 + next_G1) / 2)
    weights_GM = torch.sigmoid((ranked(scores_GM, valid_GM).double() - edge_G1) / temperature)
    return torch.where(valid_GM & (counts_G[:, None] > 0), weights_GM, 0.0).float()


def softmax_weights(scores_GM: Tensor, valid_GM: Tensor, counts_G: Tensor, temperature: float) -> Tensor:
    """min(1, c exp(S / T)), c such that a group's weights sum to its count [G, M]: the weights of that sum with the highest
    sum of weight x score plus T times their entropy. Towards T = 0 it is the mask, towards infinity the ratio throughout."""
    order_GM = ranked(scores_GM, valid_GM).argsort(dim=1, descending=True, stable=True)
    logits_GM = (ranked(scores_GM, valid_GM).double() / temperature).gather(1, order_GM)
    # of m tokens that weigh 1: log of the sum of the others' exponentials, from the lowest up
    rest_GM = logits_GM.flip(1).logcumsumexp(dim=1).flip(1)
    place_GM = torch.arange(logits_GM.shape[1], device=logits_GM.device)
    left_GM = (counts_G[:, None] - place_GM).double()  # what is to be shared where `place` tokens weigh 1
    log_c_GM = left_GM.clamp(min=1e-300).log() - rest_GM
    fits_GM = (left_GM > 0) & (log_c_GM + logits_GM <= 0)  # the highest of the others weighs at most 1
    none_G1 = ~fits_GM.any(dim=1, keepdim=True)
    first_G1 = fits_GM.long().argmax(dim=1, keepdim=True)
    capped_G1 = torch.where(none_G1, counts_G[:, None], first_G1)
    log_c_G1 = torch.where(none_G1, -torch.inf, log_c_GM.gather(1, first_G1))
    sorted_GM = torch.where(place_GM < capped_G1, 1.0, (log_c_G1 + logits_GM).exp())
    weights_GM = torch.zeros_like(sorted_GM).scatter_(1, order_GM, sorted_GM)
    return torch.where(valid_GM & (counts_G[:, None] > 0), weights_GM, 0.0).float()


def soft_weights(kind: Soft, scores_GM: Tensor, valid_GM: Tensor, counts_G: Tensor, temperature: float) -> Tensor:
    """Weights of one of the three kinds [G, M]; `counts_G` are what hard selection keeps."""
    if kind == "score":
        return score_weights(scores_GM, valid_GM)
    weigh = sigmoid_weights if kind == "sigmoid" else softmax_weights
    return weigh(scores_GM, valid_GM, counts_G, temperature)


def score_weights(scores_GM: Tensor, valid_GM: Tensor) -> Tensor:
    """The scores themselves, none below 0 [G, M]."""
    return torch.where(valid_GM, scores_GM.nan_to_num(nan=0.0).clamp(min=0.0), 0.0).float()


def with_unselected(weights_GM: Tensor, valid_GM: Tensor, unselected: float) -> Tensor:
    """w + u (1 - w): what is not selected weighs `unselected` in place of 0, a general term against forgetting [G, M]. 0 is
    selection as it is, 1 all tokens."""
    return torch.where(valid_GM, weights_GM + unselected * (1 - weights_GM).clamp(min=0), 0.0)
