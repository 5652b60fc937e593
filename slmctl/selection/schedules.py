"""The ratio of selection over a run, by tokens seen."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Kind = Literal["constant", "linear", "cosine"]


@dataclass(frozen=True)
class RatioSchedule:
    """From `start` to `end` over what is left of a run after `warmup` of it, in which all tokens are trained on."""

    kind: Kind
    start: float
    end: float
    warmup: float = 0.0
    """Share of the run's tokens, 0 to 1."""
    until: float = 1.0
    """Share of the run's tokens at which `end` is reached."""

    def at(self, seen: int, budget: int) -> float:
        """The ratio of a step that begins when `seen` of `budget` tokens were seen; of six decimals, so that it reads as it is
        written down."""
        done = seen / max(1, budget)
        if done < self.warmup:
            return 1.0
        if self.kind == "constant":
            return self.start
        part = min(1.0, (done - self.warmup) / max(1e-12, self.until - self.warmup))
        share = part if self.kind == "linear" else (1 - math.cos(math.pi * part)) / 2
        return round(self.start + (self.end - self.start) * share, 6)
