"""Model FLOPs and, where the device's peak is known, their utilisation (MFU)."""

from __future__ import annotations

import re
from typing import Any

import torch

from slmctl.model.experts import matrices

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
    """6·N + 6·A·s: forward and backward of all-token training, with N the weights of the matrices that a token passes (of
    experts, those of the chosen ones) and A the widths of keys and values of all heads and layers with attention. What selection
    leaves out is not subtracted, so the figure compares arms by the work that plain training would do. What recurrences, linear
    attention and the choice of tokens to attend to take besides is not counted."""
    passed = sum(parameter.numel() * share for parameter, share in matrices(model))
    return float(6 * passed + 6 * _attention_width(model.config.get_text_config()) * seq_len)


def _attention_width(config: Any) -> int:
    """heads x (width of a key + width of a value), summed over the layers that attend to tokens one by one; 0 for state spaces
    and recurrences."""
    of_all = getattr(config, "num_hidden_layers", 0)
    kinds = getattr(config, "layer_types", None) or ["attention"] * getattr(config, "decoder_layers", of_all)
    differ = getattr(config, "is_heterogeneous", False)
    configs = config.per_layer_config if differ else [config] * len(kinds)
    attending = [("attention" in kind and "linear" not in kind) or "hybrid" in kind for kind in kinds]
    return sum(_layer_width(layer) for layer, attends in zip(configs, attending, strict=False) if attends)


def _layer_width(config: Any) -> int:
    heads = getattr(config, "num_attention_heads", None)
    if not isinstance(heads, int) or heads < 1:
        return 0
    key = getattr(config, "head_dim", None) or config.hidden_size // heads
    value = getattr(config, "v_head_dim", None) or key
    if getattr(config, "qk_nope_head_dim", None):  # keys in two parts, with and without position (DeepSeek)
        key = config.qk_nope_head_dim + config.qk_rope_head_dim
    return int(heads * (key + value))


def peak_flops(device: str) -> float | None:
    """The device's dense bfloat16 peak; None where it is not known."""
    if not device.startswith("cuda"):
        return None
    name = torch.cuda.get_device_name()
    return next((peak for key, peak in PEAK_BF16.items() if re.search(rf"\b{key}\b", name)), None)
