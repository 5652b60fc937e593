"""What training and scoring cost in floating-point operations: what selection spends, as well as what it saves.

Of one token's forward pass the trunk takes T and the head H = 2·V·D. Training on all tokens takes 3(T + H) a token; with
selection by excess loss 3T + (1 + 3k)H, since live losses of all tokens come before the loss of the selected ones; with
random selection 3T + 3kH. Scoring takes T + H.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from slmctl.model.flops import flops_per_token


@dataclass(frozen=True)
class ForwardFlops:
    """Operations of one token's forward pass."""

    trunk: float
    head: float

    @property
    def scoring(self) -> float:
        return self.trunk + self.head

    def training(self, criterion: str, tokens: int, selected: int) -> float:
        """Of a run that has seen `tokens` and trained on `selected` of them."""
        live = tokens if criterion not in ("all", "random") else 0
        return 3 * self.trunk * tokens + self.head * (live + 3 * selected)


def forward_flops(model: Any, seq_len: int) -> ForwardFlops:
    """Of a Hugging Face causal LM in rows of `seq_len` tokens. Weights are not read: they may be on the meta device."""
    vocab_size, hidden_size = model.get_output_embeddings().weight.shape
    head = 2.0 * vocab_size * hidden_size
    return ForwardFlops(flops_per_token(model, seq_len) / 3 - head, head)
