"""Model FLOPs and, where the device's peak is known, their utilisation (MFU)."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import nn

PEAK_BF16 = {
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10": 125e12,
    "RTX 4090": 165e12,
}
"""Dense bfloat16 peaks from the vendor's data sheets, FLOP/s."""


def flops_per_token(model: Any, seq_len: int) -> float:
    """6·N_matmul + 12·L·heads·head_dim·s: forward and backward of all-token training. What selection leaves out is not
    subtracted, so the figure compares arms by the work that plain training would do."""
    config = model.config.get_text_config()
    head = id(model.get_output_embeddings().weight)
    lookups = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)} - {head}
    matrices = {id(p): p.numel() for p in model.parameters() if p.ndim >= 2 and id(p) not in lookups}
    heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    return float(6 * sum(matrices.values()) + 12 * config.num_hidden_layers * heads * head_dim * seq_len)


def peak_flops(device: str) -> float | None:
    """The device's dense bfloat16 peak; None where it is not known."""
    if not device.startswith("cuda"):
        return None
    name = torch.cuda.get_device_name()
    return next((peak for key, peak in PEAK_BF16.items() if re.search(rf"\b{key}\b", name)), None)
