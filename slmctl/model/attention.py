"""Attention within documents only, for rows that hold several: nothing is computed between documents, and no mask is made.

Shapes: B rows, H heads, T tokens, d of a head; S documents in all rows.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from slmctl.system.errors import InputError

VARLEN = "varlen"
"""Its name among transformers' attention implementations."""
_INSTEAD = "Use model.attn_implementation: sdpa."


def register() -> None:
    """Makes `attn_implementation="varlen"` known to transformers."""
    from transformers import AttentionInterface

    AttentionInterface.register(VARLEN, varlen_attention)


def varlen_attention(
    _module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    _mask: Tensor | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each of the documents that `cu_seq_lens_q` [S + 1] bounds. Of [1, H, N, d] makes [1, N, H, d].

    On a GPU torch's variable-length flash attention; elsewhere one document after another.
    """
    if cu_seq_lens_q is None or max_length_q is None:
        raise InputError(f"{VARLEN} attention: this model does not pass the documents' bounds on to its layers. {_INSTEAD}")
    if (sliding_window and sliding_window < max_length_q) or softcap or dropout:
        raise InputError(f"{VARLEN} attention knows no sliding window shorter than a row, no softcap and no dropout. {_INSTEAD}")
    if torch.is_autocast_enabled(query.device.type):  # rotated queries and keys are float32, values are not
        kind = torch.get_autocast_dtype(query.device.type)
        query, key, value = query.to(kind), key.to(kind), value.to(kind)
    if query.shape[1] != key.shape[1]:
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    if query.is_cuda and query.dtype in (torch.bfloat16, torch.float16):
        return _flash(query, key, value, cu_seq_lens_q, max_length_q, scaling), None
    bounds = cu_seq_lens_q.tolist()
    parts = [slice(a, b) for a, b in pairwise(bounds)]
    found = [
        functional.scaled_dot_product_attention(
            query[:, :, p], key[:, :, p], value[:, :, p], is_causal=True, scale=scaling
        ).transpose(1, 2)
        for p in parts
    ]
    return torch.cat(found, dim=1), None


def _flash(query: Tensor, key: Tensor, value: Tensor, starts: Tensor, longest: int, scale: float | None) -> Tensor:
    from torch.nn.attention import varlen

    kernel: Any = varlen.varlen_attn
    newer = "window_size" in inspect.signature(kernel).parameters
    causal: dict[str, Any] = {"window_size": (-1, 0)} if newer else {"is_causal": True}
    flat = [x[0].transpose(0, 1).contiguous() for x in (query, key, value)]
    out: Tensor = kernel(*flat, starts, starts, longest, longest, scale=scale, **causal)
    return out[None]


def refuse_dropout(config: Any) -> None:
    """Raises `InputError` where a model would drop attention in training, which is not seen before its first step."""
    named = {n: getattr(config.get_text_config(), n, 0) for n in ("attention_dropout", "attn_pdrop")}
    if found := [f"{n} {v}" for n, v in named.items() if v]:
        raise InputError(f"{VARLEN} attention knows no dropout; the model has {', '.join(found)}. {_INSTEAD}")


@contextlib.contextmanager
def plain_attention(model: Any) -> Iterator[None]:
    """Within it a model with varlen attention takes rows of one document, or generates."""
    if model.config._attn_implementation != VARLEN:
        yield
        return
    try:
        model.set_attn_implementation("sdpa")
    except ValueError:  # some have their own way only
        model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(VARLEN)
