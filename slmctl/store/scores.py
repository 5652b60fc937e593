"""What a score shard holds: its columns, what stands where nothing is predicted, and what its manifest says of them."""

from __future__ import annotations

from typing import Any

from slmctl.config.score import ScoreConfig
from slmctl.selection.storage_precision import COMPACT_BITS

SENTINEL = -1.0
"""Stored where nothing is predicted: padding and first tokens. A real loss is never negative."""
MANTISSA_BITS = {"float16": 10, "compact": COMPACT_BITS, "float32": 23}


def columns_of(settings: ScoreConfig) -> dict[str, str]:
    """Values of every precision lie in float32 columns, which every tool reads and whose empty bits compress to nothing."""
    return {"ref_loss": "float32", **({"ref_entropy": "float32"} if settings.entropy else {})}


def format_of(settings: ScoreConfig) -> dict[str, Any]:
    """`format` of the manifest."""
    return {
        "columns": columns_of(settings),
        "unit": "nats",
        "shift": "value i is the loss of predicting token i from the tokens before it in its row",
        "sentinel": SENTINEL,
        "mantissa_bits": MANTISSA_BITS[settings.dtype],
    }
