"""Rotary positions whose frequencies depend on the longest text of a batch: transformers' `longrope` and `dynamic`.

Rows of one length share them, whatever the batch; documents that restart within rows do not give what they give alone, and are
refused by `model.check`. Prompts of other lengths must not share a batch.
"""

from __future__ import annotations

from typing import Any

BY_THE_LONGEST = ("longrope", "dynamic", "su")
"""`su` is what Phi-3's configurations called longrope."""


def prompts_together(model: Any, wanted: int) -> int:
    """How many of `wanted` prompts of any length may share a batch, so that each is answered as it is alone."""
    return 1 if _by_the_longest(model.config.to_dict()) else wanted


def _by_the_longest(settings: dict[str, Any]) -> bool:
    for name, value in settings.items():
        if isinstance(value, dict) and _by_the_longest(value):
            return True
        if name in ("rope_type", "type") and value in BY_THE_LONGEST:
            return True
    return False
