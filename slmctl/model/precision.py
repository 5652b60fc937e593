"""What `precision: auto` stands for: bfloat16 arithmetic where a device has it and gains by it, else float32.

Decided by what the device says of itself and by the model's width, so that every run of a pipeline on one machine takes the same.
Nothing is timed: a busy machine would decide otherwise from arm to arm. Importing this imports no torch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

AMX_WIDTH = 256
"""Hidden size from which on AMX's bfloat16 tiles gain more than the casts of autocast cost (benchmarks/results/precision.json).
AVX512_BF16 without tiles, and emulation, gain at no width."""


def gains_by_bf16(device: str, width: Callable[[], int]) -> bool:
    """Whether bfloat16 arithmetic is the faster one on `device`, for a model whose hidden size `width` gives where it matters."""
    if device.startswith("cuda"):
        import torch

        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return has_amx() and width() >= AMX_WIDTH


def has_amx() -> bool:
    """Whether this machine's CPU multiplies matrices of bfloat16 by AMX."""
    import torch

    told: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(told["amx_bf16"]) if "amx_bf16" in told else "amx_bf16" in _linux_flags()


def _linux_flags() -> set[str]:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("flags"):
                return set(line.partition(":")[2].split())
    return set()


def weights_of(precision: str) -> str:
    """The type of a model's weights under a precision."""
    return "bfloat16" if precision == "bfloat16" else "float32"


def autocast(device: str, on: bool) -> Any:
    """A context in which float32 weights compute in bfloat16, where it is `on`."""
    import torch

    return torch.autocast(device, torch.bfloat16) if on else contextlib.nullcontext()
