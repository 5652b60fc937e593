"""Do live and reference losses belong to the same tokens? A join that is off by one crashes nothing, and ruins a run.

Aligned losses of two language models correlate strongly (0.84 to 0.95 between small models), shifted ones hardly (at
most 0.13). A model that has learnt nothing yet correlates with nothing, so the judge looks at where the correlation is
highest, not only at how high it is.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

SHIFTS = (-2, -1, 0, 1, 2)
MARGIN = 0.1
LOW = 0.3


@dataclass
class AlignmentWatch:
    """Judges the mean correlation of a run's first steps."""

    steps: int = 3
    seen: list[dict[int, float]] = field(default_factory=list)
    tokens: int = 0

    def add(self, found: dict[int, float], tokens: int) -> str | None:
        """Records the correlations of one step over `tokens` tokens. Returns `misaligned`, `low` or `ok` once, at the
        last watched step; None otherwise."""
        if len(self.seen) >= self.steps:
            return None
        self.seen.append(found)
        self.tokens += tokens
        return self.verdict() if len(self.seen) == self.steps else None

    @property
    def done(self) -> bool:
        return len(self.seen) >= self.steps

    def mean(self) -> dict[int, float]:
        return {s: float(np.mean([f[s] for f in self.seen])) for s in SHIFTS}

    def verdict(self) -> str:
        mean = {s: (-1.0 if np.isnan(r) else r) for s, r in self.mean().items()}
        best = max(mean, key=lambda s: mean[s])
        chance = 5 / max(self.tokens, 1) ** 0.5  # five standard errors of a correlation of unrelated losses
        if best != 0 and mean[best] > mean[0] + max(MARGIN, chance):
            return "misaligned"
        return "low" if mean[0] < LOW else "ok"
