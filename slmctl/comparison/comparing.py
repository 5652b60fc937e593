"""What results.json says about two models, or about one arm, in words and figures: what alarms are made of."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, TypeGuard

from slmctl.evaluation.intervals import student_quantiles

Results = dict[str, Any]
Alarm = dict[str, str]
CLOSE = 0.01
"""Share by which the tokens of two arms may differ and still be called the same."""
ALIKE = 0.0005
"""Nats a token below which two losses are called the same, everywhere and whatever the interval says: they are to three
digits."""
SEEDS = 3
"""Seeds from which on an arm is judged by their mean."""


def alarm(name: str, level: str, text: str) -> Alarm:
    """As it stands in results.json; `level` is bad, warning, note or good."""
    return {"name": name, "level": level, "text": text}


def arms_of(results: Results, *criteria: str) -> list[str]:
    """Names of the arms that select by one of these criteria."""
    return [name for name, facts in results.get("arms", {}).items() if facts["selection"]["criterion"] in criteria]


def controls_of(results: Results, arm: str, *criteria: str) -> list[str]:
    """The control arms that an arm is held against: those of its own seed where there are such, else all."""
    arms, found = results["arms"], arms_of(results, *criteria)
    return [c for c in found if arms[c].get("seed") == arms[arm].get("seed")] or found


def known(value: float | None) -> TypeGuard[float]:
    """Whether a figure exists: null stands for what is not finite or was not measured."""
    return value is not None and math.isfinite(value)


def loss_of(results: Results, model: str, heldout: str) -> float | None:
    """Nats a token, None where there is none."""
    loss = results["models"].get(model, {}).get("heldout", {}).get(heldout, {}).get("loss")
    return float(loss) if known(loss) else None


@dataclass(frozen=True)
class Gap:
    """Loss of one model minus another's, nats a token, and its interval where it is known."""

    difference: float
    interval: tuple[float, float] | None
    level: float

    @property
    def verdict(self) -> str:
        """same (to three digits), better, worse, open (the interval holds 0) or unknown (no interval), of the first model."""
        if abs(self.difference) < ALIKE:
            return "same"
        if self.interval is None:
            return "unknown"
        low, high = self.interval
        return "better" if high < 0 else "worse" if low > 0 else "open"

    @property
    def words(self) -> str:
        """`lower by 0.027 nats a token (95% interval 0.012 to 0.041 lower)`."""
        side = "lower" if self.difference < 0 else "higher"
        text = f"{side} by {nats(abs(self.difference))} nats a token"
        if self.interval is None:
            return f"{text} (no interval is known)"
        low, high = sorted(-end if side == "lower" else end for end in self.interval)
        if low >= 0:
            return f"{text} ({self.level:.3g}% interval {nats(low)} to {nats(high)} {side})"
        other = "higher" if side == "lower" else "lower"
        return f"{text} ({self.level:.3g}% interval {nats(-low)} {other} to {nats(high)} {side})"


def gap_between(results: Results, heldout: str, a: str, b: str) -> Gap | None:
    """Model a against model b on a held-out set: the paired difference, else that of their losses; None without either."""
    level = 100 * float(results.get("level", 0.95))
    for found in results.get("differences", []):
        if found["set"] == heldout and {found["a"], found["b"]} == {a, b} and known(found["difference"]):
            sign = 1 if found["a"] == a else -1
            ends = found.get("interval")
            interval = tuple(sorted(sign * float(end) for end in ends)) if ends and all(map(known, ends)) else None
            return Gap(sign * float(found["difference"]), interval, level)  # type: ignore[arg-type]
    of_a, of_b = loss_of(results, a, heldout), loss_of(results, b, heldout)
    return None if of_a is None or of_b is None else Gap(of_a - of_b, None, level)


def seeded(results: Results) -> list[dict[str, Any]]:
    """Entries of `seeds` with enough seeds to tell one arm from another, all of whose losses are finite."""
    enough = [entry for entry in results.get("seeds") or [] if (entry["target_loss"].get("n") or 0) >= SEEDS]
    return [entry for entry in enough if known(entry["target_loss"]["mean"]) and known(entry["target_loss"]["sd"])]


def seeds_of(results: Results, arm: str) -> dict[str, Any] | None:
    """The entry of `seeded` that an arm is one of."""
    return next((e for e in seeded(results) if arm == e["arm"] or arm in e["arms"]), None)


@dataclass(frozen=True)
class SeedGap:
    """Mean target loss of one arm's seeds minus another's, nats a token; Welch's interval is `difference` ± `reach`."""

    difference: float
    reach: float
    level: float
    seeds: tuple[int, int]

    @property
    def told(self) -> bool:
        """Whether the interval leaves out zero, and the means are not the same to three digits."""
        return abs(self.difference) > self.reach and abs(self.difference) >= ALIKE


def seed_gap(results: Results, mine: dict[str, Any], its: dict[str, Any]) -> SeedGap:
    """Two entries of `seeded` against each other, with the fewer seeds' degrees of freedom, which errs to the wide side."""
    level = float(results.get("level") or 0.95)
    a, b = mine["target_loss"], its["target_loss"]
    error = math.sqrt(a["sd"] ** 2 / a["n"] + b["sd"] ** 2 / b["n"])
    reach = error * student_quantiles(level, min(a["n"], b["n"]) - 1)[1]
    return SeedGap(a["mean"] - b["mean"], reach, 100 * level, (a["n"], b["n"]))


def holm(p_T: list[float]) -> list[float]:
    """Holm's step-down correction of T tests' p values (Scandinavian Journal of Statistics 6, 1979), in their order."""
    found = [1.0] * len(p_T)
    least = 0.0
    for rank, i in enumerate(sorted(range(len(p_T)), key=lambda i: p_T[i])):
        least = max(least, min(1.0, (len(p_T) - rank) * p_T[i]))
        found[i] = least
    return found


def same_tokens(results: Results, a: str, b: str) -> tuple[float, str]:
    """Tokens that arm a saw, as a share of arm b's; and how to say so."""
    of_a, of_b = (results["arms"][arm]["tokens_seen"] for arm in (a, b))
    share = of_a / of_b if of_b else math.inf
    if abs(share - 1) <= CLOSE:
        return 1.0, "at the same tokens"
    return share, f"but not at the same tokens: {a} saw {count(of_a)}, {b} {count(of_b)}"


def nats(value: float) -> str:
    """Three digits after the point, more for what is small."""
    return f"{value:.3f}" if abs(value) >= 0.01 or value == 0 else f"{value:.2g}" if abs(value) >= 1e-4 else f"{value:.1e}"


def signed(value: float) -> str:
    """+0.020, −0.020."""
    return f"{value:+.3f}".replace("-", "−")


def count(value: float) -> str:
    """381k, 2.10M, 14.0B."""
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.0f}"


def percent(share: float) -> str:
    return f"{100 * share:.3g}%"
