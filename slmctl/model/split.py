"""A causal LM as trunk and head, so that logits are made only where they are needed, a chunk at a time.

`SplitModel` checks itself against the model's own logits: a model that post-processes them in a way that it does not
know is refused, never computed wrongly.

Shapes: B rows, T tokens of a row, D hidden, V vocabulary, N any number of positions.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from slmctl.errors import InputError
from slmctl.model.memory import keep_freed_blocks


class SplitModel(nn.Module):
    """`model` as `hidden` (the trunk) and `logits` (the head with whatever the model does to its output)."""

    def __init__(self, model: Any, intra_document_mask: bool = False) -> None:
        super().__init__()
        keep_freed_blocks()
        self.model = model
        self.intra_document_mask = intra_document_mask
        config = model.config.get_text_config()
        self.vocab_size = int(config.vocab_size)
        self.softcap: float | None = getattr(config, "final_logit_softcapping", None)
        self.multiplier = 1.0
        if getattr(config, "logit_scale", None) is not None:  # Cohere
            self.multiplier = float(config.logit_scale)
        if getattr(config, "logits_scaling", None) is not None:  # Granite
            self.multiplier = 1.0 / float(config.logits_scaling)
        head = model.get_output_embeddings()
        if not isinstance(head, nn.Linear) or not isinstance(model.base_model, nn.Module) or model.base_model is model:
            raise InputError(f"{type(model).__name__} is not a trunk with a linear head; slmctl cannot split it.")

    @property
    def head(self) -> nn.Linear:
        linear: nn.Linear = self.model.get_output_embeddings()
        return linear

    def hidden(self, ids_BT: Tensor, position_BT: Tensor | None) -> Tensor:
        """Trunk forward. `position_BT` restarts at each document under `intra_document_mask`, else None. [B, T, D]"""
        if self.intra_document_mask:
            assert position_BT is not None
            out = self.model.base_model(input_ids=ids_BT, position_ids=position_BT, use_cache=False)
        else:
            out = self.model.base_model(input_ids=ids_BT, use_cache=False)
        hidden_BTD: Tensor = out[0]
        return hidden_BTD

    def logits(self, hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None) -> Tensor:
        """float32 (or float64) logits [N, V] of hidden states, as the model itself post-processes them."""
        logits_NV = nn.functional.linear(hidden_ND, weight_VD, bias_V)
        logits_NV = logits_NV if logits_NV.dtype == torch.float64 else logits_NV.float()
        if self.multiplier != 1.0:
            logits_NV = logits_NV * self.multiplier
        if self.softcap is not None:
            logits_NV = self.softcap * torch.tanh(logits_NV / self.softcap)
        return logits_NV

    @torch.no_grad()
    def check(self, eos_id: int) -> None:
        """Compares with the model's own logits on a tiny batch, and, where attention restarts at documents, with each
        document alone. Raises `InputError` where they differ by more than rounding."""
        device = self.head.weight.device
        was_training = self.model.training
        self.model.eval()
        try:
            row = (torch.arange(24, device=device) * 7919 + 13) % self.vocab_size
            row[11] = eos_id
            own = self.model(input_ids=row[None], use_cache=False).logits[0].double()
            plain = self.model.base_model(input_ids=row[None], use_cache=False)[0][0]
            self._same(
                self.logits(plain, self.head.weight, self.head.bias), own, "its logits are not head(trunk) as slmctl knows it"
            )
            if self.intra_document_mask:
                position = torch.cat([torch.arange(12), torch.arange(12)]).to(device)
                packed = self.hidden(row[None], position[None])[0]
                parts = [self.model.base_model(input_ids=row[None, a : a + 12], use_cache=False)[0][0] for a in (0, 12)]
                alone = torch.cat(parts)
                reason = f"with {self.model.config._attn_implementation} attention, documents packed in a row see each other"
                self._same(packed, alone.double(), reason)
        finally:
            self.model.train(was_training)

    def _same(self, ours: Tensor, theirs: Tensor, reason: str) -> None:
        tolerance = 2e-2 if self.head.weight.dtype in (torch.bfloat16, torch.float16) else 1e-3
        finite = theirs.isfinite()
        same_places = bool((finite == ours.isfinite()).all() and finite.any())
        worst = (ours.double() - theirs)[finite].abs().max().item() if same_places else math.inf
        size = theirs[finite].abs().max().item() if same_places else math.nan
        if not worst <= tolerance * max(size, 1e-6):
            raise InputError(
                f"{type(self.model).__name__} is refused: {reason} (difference {worst:.3g}, values up to {size:.3g}). "
                "Use another model, or another model.attn_implementation, or data.intra_document_mask: false."
            )
