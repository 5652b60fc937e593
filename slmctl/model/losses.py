"""Per-token losses without the whole logits: in chunks, without grad for all tokens, with grad for chosen ones.

The gradient of the selected-token loss is computed chunk by chunk in the forward pass, in the memory of the chunk's logits.
One chunk may be handed from the losses without grad to the loss with it: a micro-batch whose logits fit in one chunk has them
made once. It is exact: equal to masking the full cross-entropy, up to rounding.

Shapes: N positions, D hidden, V vocabulary, K selected, R positions of a chunk. Losses are in nats.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from slmctl.model.split import SplitModel
from slmctl.system.memory import memory_limit, processes_here

CACHE_BYTES = 8 * 2**20
"""On a CPU a chunk of logits that stays in its cache is the fastest."""
MIN_CHUNK_ROWS = 256
"""Below this the head's weights are read too often for the work done with them."""
GPU_SHARE = 64
"""On a GPU a chunk of logits takes this part of the memory (1.25 GB of 80)."""
CPU_BYTES, CPU_SHARE = 2**29, 16
"""On a CPU it takes so many bytes, whatever the machine, so that a resumed run rounds as before; half, or a quarter, where that
is more than this part of the memory."""


@cache
def chunk_rows(vocab_size: int, device: str, gradient: bool = False) -> int:
    """Positions whose logits are made at once.

    With `gradient` as many as their share of the memory holds: once a chunk the head's weights are read, and their gradients
    read and written; and the larger the chunk that is kept, the fewer logits are made twice. Without, on a CPU, a chunk that
    stays in the cache is the fastest.
    """
    on_gpu = device.startswith("cuda")
    cached = 0 if on_gpu else CACHE_BYTES // (4 * vocab_size)
    if not on_gpu and not gradient:
        return max(MIN_CHUNK_ROWS, cached)
    if on_gpu:
        room = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory // GPU_SHARE
    else:
        room, most = CPU_BYTES, memory_limit() // processes_here() // CPU_SHARE
        while room > most:
            room //= 2
    return max(MIN_CHUNK_ROWS, cached, room // (4 * vocab_size))


def head_memory(vocab_size: int, hidden_size: int, device: str, positions: int) -> int:
    """Bytes that the loss of selected tokens among so many positions takes in passing: logits, their gradient and a copy; the
    weights' gradient twice."""
    rows = min(positions, chunk_rows(vocab_size, device, gradient=True))
    return 4 * vocab_size * (3 * rows + 2 * hidden_size)


def arithmetic_of(hidden: Tensor) -> torch.dtype:
    """What the head computes in: autocast's type where it is on, else the hidden states' own."""
    device = hidden.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype


@torch.no_grad()
def token_losses(model: SplitModel, hidden_ND: Tensor, labels_N: Tensor, entropy: bool = False) -> tuple[Tensor, Tensor | None]:
    """-log p(label) of each position [N], and the entropy -sum p log p of its prediction [N] where asked for."""
    device, kind = hidden_ND.device.type, arithmetic_of(hidden_ND)
    size = chunk_rows(model.vocab_size, device)
    weight, bias = _head_in(model, kind)
    # Made before the first chunk: a small block that outlives a chunk, in the hole which that leaves, would have the next
    # chunk, a little too large for what is left of the hole, take new memory.
    losses_N = hidden_ND.new_empty(len(hidden_ND), dtype=torch.float64 if kind == torch.float64 else torch.float32)
    entropy_N = torch.empty_like(losses_N) if entropy else None
    with torch.autocast(device, enabled=False):
        for at in range(0, len(hidden_ND), size):
            logits = model.logits(hidden_ND[at : at + size].to(kind), weight, bias)
            part = slice(at, at + size)
            loss, spread = _chunk_losses(logits, labels_N[part], entropy)
            losses_N[part] = loss
            if entropy_N is not None and spread is not None:
                entropy_N[part] = spread
            del logits, loss, spread  # before the next chunk's are made
    return losses_N, entropy_N


@dataclass
class KeptLogits:
    """The logits of the last R of N positions, handed over once."""

    logits_RV: Tensor | None
    first: int
    """N - R: the position of the first."""

    def take(self, rows_J: Tensor) -> Tensor:
        """Those of rows_J, rising, moved to the front of the same memory. [J, V]"""
        logits_RV, self.logits_RV = self.logits_RV, None
        assert logits_RV is not None, "the logits were taken before"
        for at in range(0, len(rows_J), MIN_CHUNK_ROWS):  # rows_J[j] >= j: what is overwritten has been read
            block = rows_J[at : at + MIN_CHUNK_ROWS]
            logits_RV[at : at + len(block)] = logits_RV[block]
        return logits_RV[: len(rows_J)]


@torch.no_grad()
def live_losses(model: SplitModel, hidden_ND: Tensor, labels_N: Tensor, keep: int) -> tuple[Tensor, KeptLogits]:
    """`token_losses` of all N positions [N], and the logits of the last `keep` of them."""
    first, kind = len(hidden_ND) - keep, arithmetic_of(hidden_ND)
    losses_N = hidden_ND.new_empty(len(hidden_ND), dtype=torch.float64 if kind == torch.float64 else torch.float32)
    if first:
        losses_N[:first], _ = token_losses(model, hidden_ND[:first], labels_N[:first])
    with torch.autocast(hidden_ND.device.type, enabled=False):
        logits_RV = model.logits(hidden_ND[first:].to(kind), *_head_in(model, kind))
    size = max(MIN_CHUNK_ROWS, keep // 16)  # what is made in passing stays small
    for at in range(first, len(hidden_ND), size):
        part = slice(at, at + size)
        losses_N[part] = functional.cross_entropy(logits_RV[at - first : at - first + size], labels_N[part], reduction="none")
    return losses_N, KeptLogits(logits_RV, first)


def _head_in(model: SplitModel, kind: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """The head's weights and biases in a type: once, not once a chunk."""
    head = model.head
    return head.weight.to(kind), head.bias.to(kind) if head.bias is not None else None


def _chunk_losses(logits_RV: Tensor, labels_R: Tensor, entropy: bool) -> tuple[Tensor, Tensor | None]:
    """Losses and entropies of one chunk, in one fused pass over it; the logits' memory is used again."""
    if not entropy:
        return functional.cross_entropy(logits_RV, labels_R, reduction="none"), None
    log_p = functional.log_softmax(logits_RV, dim=-1)
    loss = -log_p.gather(1, labels_R[:, None])[:, 0]
    torch.exp(log_p, out=logits_RV)
    log_p.clamp_(min=-1e4)  # so that 0 · log 0 is 0, not NaN
    return loss, -logits_RV.mul_(log_p).sum(dim=-1)


def selected_loss(
    model: SplitModel,
    hidden_KD: Tensor,
    labels_K: Tensor,
    divisor: Tensor | float,
    kept: KeptLogits | None = None,
    rows_J: Tensor | None = None,
    weights_K: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Sum of -log p(label) over K selected positions, each times its weight where `weights_K` are given, divided by `divisor`
    (Eq. 4's N·k%): a scalar with gradient; and the K losses [K] without, unweighted. The logits of the last J of them are
    rows_J, rising, of `kept`."""
    given = (kept, rows_J) if kept is not None and rows_J is not None and len(rows_J) else None
    if kept is not None and given is None:
        kept.logits_RV = None  # nothing of them is needed
    return _SelectedLoss.apply(  # type: ignore[no-any-return, no-untyped-call]
        hidden_KD, model.head.weight, model.head.bias, labels_K, divisor, model, given, weights_K
    )


def _loss_and_slope(logits_RV: Tensor, labels_R: Tensor, divisor: Any, model: SplitModel) -> tuple[Tensor, Tensor, Tensor]:
    """Losses [R] of one chunk; and, in the logits' memory, the derivative of (sum of losses / divisor) by the head's own
    output, but for a factor [R, 1] of each row: softmax minus one-hot, not yet divided by the softmax's sum."""
    tanh_RV = logits_RV / model.softcap if model.softcap is not None else None
    label_R1 = labels_R[:, None]
    own_R1 = logits_RV.gather(1, label_R1)
    top_R1 = logits_RV.amax(dim=1, keepdim=True)
    logits_RV.sub_(top_R1).exp_()
    sum_R1 = logits_RV.sum(dim=1, keepdim=True)
    loss = (sum_R1.log() + (top_R1 - own_R1))[:, 0]
    logits_RV.scatter_add_(1, label_R1, -sum_R1)
    if tanh_RV is not None:
        logits_RV.mul_(tanh_RV.square_().neg_().add_(1))
    return loss, logits_RV, model.multiplier / (sum_R1 * divisor)


class _SelectedLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_KD: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        labels_K: Tensor,
        divisor: Any,
        model: SplitModel,
        given: tuple[KeptLogits, Tensor] | None,
        weights_K: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        device = hidden_KD.device.type
        kind = arithmetic_of(hidden_KD)
        size = chunk_rows(model.vocab_size, device, gradient=True)
        wide = torch.float64 if hidden_KD.dtype == torch.float64 else torch.float32
        losses_K, grad_hidden = hidden_KD.new_empty(len(hidden_KD), dtype=wide), torch.zeros_like(hidden_KD)
        grad_weight = torch.zeros_like(weight_VD, dtype=wide)  # summed over chunks, so never in 16 bits
        grad_bias = torch.zeros_like(bias_V, dtype=wide) if bias_V is not None else None
        first_made = len(hidden_KD) - (len(given[1]) if given is not None else 0)
        with torch.autocast(device, enabled=False):
            weight, bias = _head_in(model, kind)
            parts = [slice(at, min(at + size, first_made)) for at in range(0, first_made, size)]
            if first_made < len(hidden_KD):
                parts.insert(0, slice(first_made, len(hidden_KD)))  # first, so that no two chunks are in memory
            for part in parts:
                hidden = hidden_KD[part].to(kind)
                if given is not None and part.start == first_made:
                    logits = given[0].take(given[1])
                else:
                    logits = model.logits(hidden, weight, bias)
                loss, slope_RV, scale_R1 = _loss_and_slope(logits, labels_K[part], divisor, model)
                if weights_K is not None:
                    scale_R1 = scale_R1 * weights_K[part, None]
                slope = slope_RV.to(kind)  # of the loss by head(hidden), but for each row's scale, which comes cheaper later
                grad_hidden[part] = torch.mm(slope, weight).mul_(scale_R1)
                scaled = (hidden * scale_R1).to(kind)
                if kind == grad_weight.dtype:
                    grad_weight.addmm_(slope.T, scaled)
                else:
                    grad_weight += torch.mm(slope.T, scaled)
                if grad_bias is not None:
                    grad_bias += torch.mv(slope_RV.T, scale_R1[:, 0])
                losses_K[part] = loss
                del hidden, logits, loss, slope_RV, slope, scale_R1, scaled  # before the next chunk's are made
        ctx.grads = (
            grad_hidden,
            grad_weight.to(weight_VD.dtype),
            grad_bias.to(bias_V.dtype) if grad_bias is not None and bias_V is not None else None,
        )
        ctx.mark_non_differentiable(losses_K)
        total = losses_K.sum() if weights_K is None else (losses_K * weights_K).sum()
        return total / divisor, losses_K

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor, _: Tensor) -> tuple[Any, ...]:
        grads, ctx.grads = ctx.grads, None  # scaled where they are: the head's are as large as the head
        if grads is None:
            raise RuntimeError("the selected-token loss was differentiated twice; run the forward pass again")
        return (*[g.mul_(grad_loss.to(g.dtype)) if g is not None else None for g in grads], None, None, None, None, None)
