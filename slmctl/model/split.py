"""A causal LM as trunk and head, so that logits are made only where they are needed, a chunk at a time.

`SplitModel` checks itself against the model's own logits: a model that post-processes them in a way that it does not
know is refused, never computed wrongly.

Shapes: B rows, T tokens of a row, D hidden, V vocabulary, N any number of positions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from slmctl.corpus.packing import document_starts
from slmctl.errors import ConfigError, InputError, MismatchError
from slmctl.memory import keep_freed_blocks
from slmctl.model.attention import VARLEN, plain_attention, refuse_dropout

R = TypeVar("R")


def refuse_ids_beyond(max_id: int, vocab_size: int, path: str) -> None:
    """Raises `MismatchError` where a token set holds an id that has no row in the model's embedding."""
    if max_id >= vocab_size:
        raise MismatchError(
            f"the tokens hold id {max_id}, beyond the vocabulary of {vocab_size} of {path}. "
            "Tokens and model do not belong together; run `slmctl prepare` with this model, or use one that shares its tokenizer."
        )


def refuse_rows_beyond(seq_len: int, model: SplitModel, path: str) -> None:
    """Raises `MismatchError` where rows are longer than the context of a model: what it says beyond is not a language
    model's loss."""
    room = getattr(model.model.config.get_text_config(), "max_position_embeddings", None)
    if room is not None and seq_len > room:
        raise MismatchError(
            f"rows of {seq_len} tokens are longer than the {room} positions of {path}. Use data.seq_len of at most {room}, or "
            "another model."
        )


class SplitModel(nn.Module):
    """`model` as `hidden` (the trunk) and `logits` (the head with whatever the model does to its output)."""

    def __init__(self, model: Any, intra_document_mask: bool = False) -> None:
        super().__init__()
        keep_freed_blocks()
        self.model = model
        self.intra_document_mask = intra_document_mask
        if model.config._attn_implementation == VARLEN and not intra_document_mask:
            raise ConfigError("model.attn_implementation: varlen is for data.intra_document_mask: true; use sdpa.")
        if model.config._attn_implementation == VARLEN:
            refuse_dropout(model.config)
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

    def forward(self, ids_BT: Tensor, position_BT: Tensor | None, starts_S: Tensor | None, then: Callable[[Tensor], R]) -> R:
        """`then` of the trunk's hidden states [B, T, D]: whatever needs the head's weights runs within this one forward, so
        that the whole may be sharded."""
        return then(self.hidden(ids_BT, position_BT, starts_S))

    def hidden(self, ids_BT: Tensor, position_BT: Tensor | None, starts_S: Tensor | None = None) -> Tensor:
        """Trunk forward [B, T, D]. Under `intra_document_mask` `position_BT` restarts at each document, and `starts_S` says
        where (`corpus.packing.document_starts`; it is found from the positions where it is not given); else both are None."""
        if not self.intra_document_mask:
            out = self.model.base_model(input_ids=ids_BT, use_cache=False)
        elif self.model.config._attn_implementation == VARLEN:
            assert position_BT is not None
            if starts_S is None:
                starts_S = torch.from_numpy(document_starts(position_BT.cpu().numpy())).to(ids_BT.device)
            one_row = {"input_ids": ids_BT.view(1, -1), "position_ids": position_BT.view(1, -1), "use_cache": False}
            out = self.model.base_model(**one_row, cu_seq_lens_q=starts_S, max_length_q=ids_BT.shape[1])
            hidden_1ND: Tensor = out[0]
            return hidden_1ND.view(*ids_BT.shape, -1)
        else:
            assert position_BT is not None
            out = self.model.base_model(input_ids=ids_BT, position_ids=position_BT, use_cache=False)
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
    def check(self, eos_id: int, low_precision: bool = False) -> None:
        """Compares with the model's own logits on a tiny batch, and, where attention restarts at documents, with each
        document alone. Raises `InputError` where they differ by more than rounding (bfloat16's, under autocast)."""
        device = self.head.weight.device
        was_training = self.model.training
        self.model.eval()
        try:
            ids_BT = (torch.arange(48, device=device).view(2, 24) * 7919 + 13) % self.vocab_size
            ids_BT[:, 11] = eos_id
            with plain_attention(self.model):
                own = self.model(input_ids=ids_BT, use_cache=False).logits
                plain = self.model.base_model(input_ids=ids_BT, use_cache=False)[0]
            ours = self.logits(plain, self.head.weight, self.head.bias)
            self._same(ours, own.double(), "its logits are not head(trunk) as slmctl knows it", low_precision)
            if self.intra_document_mask:
                lengths = (12, 7)  # of each row's first document: a mask shared by rows would show
                position = torch.stack([torch.cat([torch.arange(n), torch.arange(24 - n)]) for n in lengths]).to(device)
                packed = self.hidden(ids_BT, position)
                alone = torch.zeros_like(packed)
                with plain_attention(self.model):
                    for b, n in enumerate(lengths):
                        for part in (slice(0, n), slice(n, 24)):
                            alone[b, part] = self.model.base_model(input_ids=ids_BT[b : b + 1, part], use_cache=False)[0][0]
                attention = self.model.config._attn_implementation
                reason = f"with {attention} attention, documents packed in a row see each other"
                self._same(packed, alone.double(), reason, low_precision)
        finally:
            self.model.train(was_training)

    def _same(self, ours: Tensor, theirs: Tensor, reason: str, low_precision: bool) -> None:
        low_precision = low_precision or self.head.weight.dtype in (torch.bfloat16, torch.float16)
        tolerance = 2e-2 if low_precision else 1e-3
        finite = theirs.isfinite()
        same_places = bool((finite == ours.isfinite()).all() and finite.any())
        worst = (ours.double() - theirs)[finite].abs().max().item() if same_places else math.inf
        size = theirs[finite].abs().max().item() if same_places else math.nan
        if not worst <= tolerance * max(size, 1e-6):
            raise InputError(
                f"{type(self.model).__name__} is refused: {reason} (difference {worst:.3g}, values up to {size:.3g}). "
                "Use another model, or another model.attn_implementation, or data.intra_document_mask: false."
            )
