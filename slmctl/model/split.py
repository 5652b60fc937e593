"""A causal LM as trunk and head, so that logits are made only where they are needed, a chunk at a time.

`SplitModel.check` compares it with the model itself: one that does something else than it knows is refused, never computed
wrongly.

Shapes: B rows, T tokens of a row, D hidden, V vocabulary, N any number of positions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from slmctl.corpus.packing import document_starts
from slmctl.model.attention import VARLEN, refuse_dropout
from slmctl.model.dropout import draws_in_training, row_by_row
from slmctl.model.start_check import check
from slmctl.system.errors import ConfigError, InputError, MismatchError
from slmctl.system.memory import keep_freed_blocks

R = TypeVar("R")

SOFTCAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
"""What configurations call c where logits are made c·tanh(logits / c)."""
MULTIPLIERS = ("logit_scale", "lm_head_multiplier", "output_multiplier")
DIVISORS = ("logits_scaling", "logits_mup_width_multiplier")
CONTEXTS = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length", "max_target_positions")
"""What they call the tokens that a model has positions for."""
MULTIPLIED_BY_SCALING = ("hyperclovax",)
"""Types whose `logits_scaling` multiplies; all others divide by it."""


def logit_changes(config: Any) -> tuple[float, float | None]:
    """What a model does to its head's output, as far as its configuration says: the factor and then the softcap."""

    def numbers(names: tuple[str, ...]) -> list[float]:
        found = [getattr(config, n, None) for n in names]
        return [float(v) for v in found if isinstance(v, int | float) and not isinstance(v, bool) and v != 0]

    divisors = numbers(DIVISORS)
    if config.model_type in MULTIPLIED_BY_SCALING:
        divisors = [1 / d for d in divisors]
    return math.prod(numbers(MULTIPLIERS)) / math.prod(divisors), next(iter(numbers(SOFTCAPS)), None)


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
    room = _positions(model)
    if room is not None and seq_len > room:
        raise MismatchError(
            f"rows of {seq_len} tokens are longer than the {room} positions of {path}. Use data.seq_len of at most {room}, or "
            "another model."
        )


def _positions(model: SplitModel) -> int | None:
    """How many tokens a model has positions for; None where it does not say."""
    config = model.model.config.get_text_config()
    named = [v for n in CONTEXTS if isinstance(v := getattr(config, n, None), int) and v > 0]
    for name, module in model.model.base_model.named_modules():
        # RoBERTa and its kin begin to count at the padding's id: of their table, the first rows are never used.
        if isinstance(module, nn.Embedding) and "position" in name and module.padding_idx is not None:
            named.append(module.num_embeddings - module.padding_idx - 1)
    return min(named, default=None)


class SplitModel(nn.Module):
    """`model` as `hidden` (the trunk) and `logits` (the head with whatever the model does to its output)."""

    def __init__(self, model: Any, intra_document_mask: bool = False) -> None:
        super().__init__()
        keep_freed_blocks()
        self.model = model
        self.intra_document_mask = intra_document_mask
        self.draws = draws_in_training(model)
        self.gathered: str | None = None
        """What float32 weights become where ranks gather them; None where they stay as they are."""
        if model.config._attn_implementation == VARLEN and not intra_document_mask:
            raise ConfigError("model.attn_implementation: varlen is for data.intra_document_mask: true; use sdpa.")
        if model.config._attn_implementation == VARLEN:
            refuse_dropout(model.config)
        config = model.config.get_text_config()
        self.vocab_size = int(getattr(config, "vocab_size", 0))
        self.multiplier, self.softcap = logit_changes(config)
        head = model.get_output_embeddings()
        if not isinstance(head, nn.Linear) or not isinstance(model.base_model, nn.Module) or model.base_model is model:
            raise InputError(f"{type(model).__name__} is not a trunk with a linear head; slmctl cannot split it.")

    @property
    def head(self) -> nn.Linear:
        linear: nn.Linear = self.model.get_output_embeddings()
        return linear

    def forward(
        self,
        ids_BT: Tensor,
        position_BT: Tensor | None,
        starts_S: Tensor | None,
        then: Callable[[Tensor], R],
        seeds: Sequence[int] = (),
    ) -> R:
        """`then` of the trunk's hidden states [B, T, D]: whatever needs the head's weights runs within this one forward, so
        that the whole may be sharded. In training, a model that has dropout draws it for each row from the row's of `seeds`."""
        if seeds and self.draws and self.training:
            return then(row_by_row(self.hidden, ids_BT, position_BT, seeds))
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

    def check(self, eos_id: int, seq_len: int, low_precision: bool = False) -> None:
        """Raises `InputError` where the model is not what slmctl takes it for in rows of `seq_len` tokens (`model.check`)."""
        check(self, eos_id, seq_len, low_precision)
