"""Losses of whole rows, as scoring and held-out evaluation need them. [B, T] are rows and tokens of a row."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from slmctl.corpus.packing import restarting_positions, target_mask
from slmctl.model.losses import token_losses
from slmctl.model.split import SplitModel


@torch.no_grad()
def row_losses(
    model: SplitModel, ids_BT: np.ndarray, document_BT: np.ndarray, device: str, entropy: bool = False
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    """Losses [B, T], entropies [B, T] where asked for (nats, float32; NaN where nothing is predicted) and the target
    mask [B, T]. The model must be in eval mode: a model in training mode would drop units."""
    if model.model.training:
        raise ValueError("row_losses needs a model in eval mode")
    target_BT = target_mask(document_BT, model.intra_document_mask)
    position = torch.from_numpy(restarting_positions(document_BT)).to(device) if model.intra_document_mask else None
    ids = torch.from_numpy(np.ascontiguousarray(ids_BT, dtype=np.int64)).to(device)
    at = torch.from_numpy(np.flatnonzero(target_BT)).to(device)

    def losses_of(hidden_BTD: Tensor) -> tuple[Tensor, Tensor | None]:
        return token_losses(model, hidden_BTD.flatten(0, 1)[at - 1], ids.flatten()[at], entropy)

    losses, entropies = model(ids, position, None, losses_of)
    out = np.full(target_BT.shape, np.nan, dtype=np.float32)
    out[target_BT] = losses.float().cpu().numpy()
    if entropies is None:
        return out, None, target_BT
    entropy_BT = np.full(target_BT.shape, np.nan, dtype=np.float32)
    entropy_BT[target_BT] = entropies.float().cpu().numpy()
    return out, entropy_BT, target_BT
