"""Do live and reference losses belong to the same tokens? A join that is off by one crashes nothing, and ruins a run.

Aligned losses of two language models correlate strongly (0.84 to 0.95 between small models), shifted ones hardly (at
most 0.13): a join that is off shows as a strong correlation at another shift. A model that has learnt nothing yet
correlates with nothing, but its losses are not all the same: of 288 small models of random weights 93 correlated best at
another shift than 0, by 0.37 at most. So the judge asks how high the correlation is there, besides where it is highest.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from slmctl.system.console import warn
from slmctl.system.errors import MismatchError

SHIFTS = (-2, -1, 0, 1, 2)
WATCHED = 3
"""First steps of a run that are judged, and last ones whose correlations at every shift are written down."""
MARGIN = 0.1
SIZEABLE = 0.5
"""Correlation at another shift from which on it is a sign of scores that belong to other tokens."""
LOW = 0.3
ADVICE = (
    "That is as it should be while the model has learnt nothing yet (random weights); else check that reference and base are "
    "models of this text's language, that the reference has learnt (its held-out losses), and that the scores are of this "
    "corpus (`slmctl score CONFIG --verify`)"
)
"""What to look at where they correlate weakly."""


@dataclass
class AlignmentWatch:
    """Judges the mean correlation of a run's first steps."""

    steps: int = WATCHED
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
        mean = self.mean()
        chance = 5 / max(self.tokens, 1) ** 0.5  # five standard errors of a correlation of unrelated losses
        if elsewhere(mean, max(MARGIN, chance)):
            return "misaligned"
        return "ok" if mean[0] >= LOW else "low"

    def act_on(self, verdict: str | None, name: str, needs_reference: bool, stop: bool) -> None:
        """Warns where the losses of run `name` correlate weakly, unless it chooses by no scores. Where they look misaligned,
        raises `MismatchError` if that is to `stop` the run, and warns if not."""
        if verdict in (None, "ok"):
            return
        listing = ", ".join(f"{s:+d}: {r:.2f}" for s, r in self.mean().items())
        if verdict == "low":
            if needs_reference:
                said = f"live and reference losses correlate weakly over the first steps (by shift {listing})"
                warn(f"{name}: {said}. {ADVICE}.")
            return
        message = (
            f"{name}: live and reference losses look misaligned: they correlate strongly, and best at another shift "
            f"than 0 ({listing}). Make the scores anew with `slmctl score`; alignment_check: warn goes on all the same."
        )
        if stop:
            raise MismatchError(message)
        warn(message)


def elsewhere(by_shift: Mapping[int, float | None], margin: float = MARGIN) -> bool:
    """Whether losses correlate at another shift, and more than a little: by `SIZEABLE` at least, and by `margin` more than at
    shift 0. NaN and None are of figures that do not exist."""
    known = {s: -1.0 if r is None or math.isnan(r) else r for s, r in by_shift.items()}
    best = max((r for s, r in known.items() if s != 0), default=-1.0)
    return best >= SIZEABLE and best > known.get(0, -1.0) + margin
