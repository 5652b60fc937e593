"""How often intervals of a held-out loss hold the truth, where documents are unequal in length.

python benchmarks/intervals.py     # results/intervals.json; some ten minutes of one core

Documents are made up, of known mean: M of them, their lengths even (20 to 400 tokens), lognormal or Pareto; their losses as in
`LOSSES`. Each is drawn anew many times, and its interval of 95% is slmctl's (`mean_interval`), and the same without what unequal
lengths add to it (`widening`: the plain bootstrap-t).
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from slmctl.evaluation.intervals import FEW, OWN, effective_documents, mean_interval, widening
from slmctl.store.manifest import library_versions

LEVEL, RESAMPLES = 0.95, 500
DOCUMENTS = (12, 60, 300)
Floats = Any

LENGTHS: dict[str, Callable[[np.random.Generator, int], Floats]] = {
    "even, 20 to 400": lambda rng, m: rng.integers(20, 400, m).astype(float),
    "lognormal, sigma 1": lambda rng, m: np.ceil(rng.lognormal(5, 1.0, m)),
    "lognormal, sigma 1.5": lambda rng, m: np.ceil(rng.lognormal(5, 1.5, m)),
    "Pareto, 1.5": lambda rng, m: np.ceil(50 * (1 + rng.pareto(1.5, m))),
}
"""Tokens of M documents."""


def loss(rng: np.random.Generator, length_M: Floats) -> Floats:
    return rng.gamma(3, 2 / 3, len(length_M)) + rng.normal(0, 1.5, len(length_M)) / np.sqrt(length_M)


def paired(rng: np.random.Generator, length_M: Floats) -> Floats:
    return 0.1 + rng.normal(0, 0.3, len(length_M)) + rng.normal(0, 0.5, len(length_M)) / np.sqrt(length_M)


def skewed(rng: np.random.Generator, length_M: Floats) -> Floats:
    return 0.1 * rng.gamma(1, 1, len(length_M)) + rng.normal(0, 0.2, len(length_M)) / np.sqrt(length_M)


def falling(power: float) -> Callable[[np.random.Generator, Floats], Floats]:
    def of(rng: np.random.Generator, length_M: Floats) -> Floats:
        level_M = 1.5 + 0.5 * rng.gamma(4, 0.25, len(length_M))
        return level_M * (length_M / 150) ** -power + rng.normal(0, 1.5, len(length_M)) / np.sqrt(length_M)

    return of


LOSSES: dict[str, tuple[Callable[[np.random.Generator, Floats], Floats], float | None, float]] = {
    "a loss: mean 2, sd 1.2 between documents, skewed": (loss, 2.0, 0.0),
    "a difference of two models: mean 0.1, sd 0.3, normal": (paired, 0.1, 0.0),
    "a difference of two models: mean 0.1, sd 0.1, exponential": (skewed, 0.1, 0.0),
    "a loss that falls with length, as its power of -0.03": (falling(0.03), None, 0.03),
    "a loss that falls with length, as its power of -0.1": (falling(0.1), None, 0.1),
}
"""Nats a token of documents of given lengths; the true mean, or None where it follows from the lengths; and the power."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=1000)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "intervals.json")
    args = parser.parse_args()
    rows = []
    for lengths in LENGTHS:
        for losses in LOSSES:
            for m in DOCUMENTS:
                rows.append(measured(lengths, losses, m, args.repetitions))
                print(json.dumps(rows[-1]), flush=True)
    found = {
        "command": f"python benchmarks/intervals.py --repetitions {args.repetitions}",
        "level": LEVEL,
        "resamples": RESAMPLES,
        "repetitions": args.repetitions,
        "versions": {k: v for k, v in library_versions().items() if k in ("python", "slmctl", "numpy")},
        "rows": rows,
    }
    args.output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def measured(lengths: str, losses: str, m: int, repetitions: int) -> dict[str, Any]:
    """Coverage and width of both intervals, and how many documents of equal length the M are worth, at the median."""
    rng, truth = np.random.default_rng(m), true_mean(lengths, losses)
    held, widths, effective = {"slmctl": 0, "plain": 0}, [], []
    for seed in range(repetitions):
        length_M = LENGTHS[lengths](rng, m)
        nats_M = LOSSES[losses][0](rng, length_M) * length_M
        interval = mean_interval(nats_M, length_M, LEVEL, seed, RESAMPLES)
        assert interval is not None
        middle, factor = nats_M.sum() / length_M.sum(), widening(length_M, LEVEL)
        factor = 1 + OWN * (factor - 1) if m >= FEW else factor
        for name, by in (("slmctl", 1.0), ("plain", factor)):
            low, high = (middle + (end - middle) / by for end in interval)
            held[name] += low <= truth <= high
        widths.append(factor)
        effective.append(effective_documents(length_M))
    return {
        **{"lengths": lengths, "losses": losses, "documents": m, "effective_documents": round(float(np.median(effective)), 1)},
        "coverage": round(held["slmctl"] / repetitions, 4),
        "coverage_plain_bootstrap_t": round(held["plain"] / repetitions, 4),
        "wider": round(float(np.median(widths)), 3),
    }


@cache
def true_mean(lengths: str, losses: str) -> float:
    """Nats over tokens of all documents there might be; where the loss falls with length by 20M of them."""
    _, mean, power = LOSSES[losses]
    if mean is not None:
        return mean
    length_M = LENGTHS[lengths](np.random.default_rng(0), 20_000_000)
    return 2.0 * math.fsum((length_M / 150) ** -power * length_M) / math.fsum(length_M)


if __name__ == "__main__":
    main()
