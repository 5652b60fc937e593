"""How OpenMP's threads, with which PyTorch computes on a CPU, wait for each other; and whether a person has set their number.

A pass of a small model is hundreds of short parallel parts, and each ends when its last thread does. Where other processes
use the cores, a thread that has no core for a moment holds up all of them, and those that spin while they wait keep it from
theirs. So threads sleep instead.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, MutableMapping

ASKED = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
"""Environment variables by which a person sets the number. torchrun sets the first to 1 where it starts several ranks."""
WAITS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
"""Those by which a person sets how threads wait."""
SPINS = "1000"
"""Turns of GNU OpenMP's loop before a thread that waits sleeps: 10 to 60 µs, about what waking it takes."""


def wait_asleep(env: MutableMapping[str, str] = os.environ) -> None:
    """Has OpenMP's threads sleep while they wait, unless the environment says how. Before PyTorch is imported, whose OpenMP
    reads it then."""
    if not any(name in env for name in WAITS):
        env.update({"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": SPINS})


def asked(env: Mapping[str, str] = os.environ) -> str | None:
    """The environment variable by which a person has set the number of threads."""
    return next((name for name in ASKED if env.get(name)), None)
