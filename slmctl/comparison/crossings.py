"""How much an arm needed to come down to the loss that its control ends with, and how sure that is.

Losses are those of kept checkpoints, each measured whole on the same documents, so that a resample of the documents gives every
curve anew: the goal, where the arm comes down to it and where the control first did. Between two points a curve is a straight
line; as losses level off, an arm is so called later rather than earlier.

Shapes: G points of a curve, M documents, R resamples, S seeds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slmctl.evaluation.heldout import DocumentLosses

Floats = NDArray[np.float64]
RESAMPLES = 1000
MOST = 2000
"""Documents, or groups of them, that are resampled."""


@dataclass(frozen=True)
class Curve:
    """Losses of one arm on the way, by rising tokens; the last point is its end."""

    place_G: Floats
    """Tokens of the rows up to there, padding included: at the same place two arms have had as many rows, of whatever seed."""
    tokens_G: Floats
    """Seen."""
    selected_G: Floats
    """Trained on."""
    nats_GM: Floats
    """Sum of each document's losses."""
    predicted_M: Floats
    """Each document's predicted tokens."""

    def at(self, points: Sequence[int]) -> Curve:
        keep = list(points)
        return Curve(self.place_G[keep], self.tokens_G[keep], self.selected_G[keep], self.nats_GM[keep], self.predicted_M)

    def losses(self, counts_RM: Floats) -> Floats:
        """Nats a token [R, G], where each document counts so many times."""
        found: Floats = (counts_RM @ self.nats_GM.T) / (counts_RM @ self.predicted_M)[:, None]
        return found


def one_grid(a_G: Floats, b_H: Floats) -> tuple[list[int], list[int], int]:
    """Which points of two curves are compared, by their places: those that both have, which the third value counts, and the end
    of each. A curve with more points would have more chances to be low by chance. Where one was trained on further than the
    other ever was, it has its own points there."""
    both = np.intersect1d(a_G, b_H)

    def kept(own_G: Floats, other_G: Floats) -> list[int]:
        wanted_G = np.isin(own_G, both) | (own_G > other_G[-1])
        return sorted({*np.flatnonzero(wanted_G).tolist(), len(own_G) - 1})

    return kept(a_G, b_H), kept(b_H, a_G), len(both)


def in_step(curves: Sequence[Curve]) -> list[Curve]:
    """The same arm's curves of S seeds at the points that all have, and the end of each."""
    shared = set.intersection(*(set(c.place_G[:-1].tolist()) for c in curves))
    return [c.at([*(i for i, p in enumerate(c.place_G[:-1].tolist()) if p in shared), len(c.place_G) - 1]) for c in curves]


def crossings(x_G: Floats, loss_RG: Floats, goal_R: Floats) -> Floats:
    """Where each curve first comes down to its goal, on straight lines between its points [R]; infinite where it never does."""
    low_RG = loss_RG <= goal_R[:, None]
    at_R = low_RG.argmax(axis=1)
    before_R = np.maximum(at_R - 1, 0)
    rows_R = np.arange(len(loss_RG))
    high_R, reached_R = loss_RG[rows_R, before_R], loss_RG[rows_R, at_R]
    fall_R = np.where(at_R > 0, high_R - reached_R, 1.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        share_R = np.where(at_R > 0, (high_R - goal_R) / fall_R, 0.0)
        found: Floats = x_G[before_R] + share_R * (x_G[at_R] - x_G[before_R])
    return np.where(low_RG.any(axis=1), found, np.inf)


def grouped(losses: DocumentLosses, most: int = MOST) -> DocumentLosses:
    """Sums over groups of documents where there are more than `most`: as many groups are resampled as well, and take no more
    room and time however many documents there are. Neighbours go into different groups."""
    groups = min(len(losses.document_M), most)
    of_M = np.arange(len(losses.document_M)) % max(1, groups)
    nats, predicted = (np.bincount(of_M, v, groups) for v in (losses.nats_M, losses.predicted_M))
    return DocumentLosses(np.arange(groups), nats, predicted)


@dataclass(frozen=True)
class Crossed:
    """Of R resamples: when arm and control came down to the control's final loss."""

    tokens_R: Floats
    selected_R: Floats
    control_R: Floats
    """Tokens after which the control itself first was there."""
    above_R: NDArray[np.bool_]
    """Whether both began above it: else when they came down to it is not known."""
    goal_R: Floats

    def times(self, each: float, control_each: float, added: float = 0.0) -> Floats:
        """How many times less the arm needed, at `each` a token and `added` once against the control's [R]; 0 where it never
        was there."""
        with np.errstate(invalid="ignore", divide="ignore"):
            found: Floats = control_each * self.control_R / (each * self.tokens_R + added)
        return np.where(np.isinf(self.tokens_R), 0.0, found)


def cross(mine: Sequence[Curve], its: Sequence[Curve], counts_RM: Floats, weights_RS: Floats) -> Crossed:
    """The crossings of an arm's mean curve with its control's final mean loss. `mine` and `its` are of S seeds, each all at the
    same points; a seed counts `weights` times, a document `counts` times."""

    def mean(curves: Sequence[Curve]) -> Floats:
        losses_SRG = np.stack([c.losses(counts_RM) for c in curves])
        found: Floats = np.einsum("rs,srg->rg", weights_RS, losses_SRG) / weights_RS.sum(axis=1)[:, None]
        return found

    mine_RG, its_RG = mean(mine), mean(its)
    goal_R = its_RG[:, -1]  # the very numbers that the control's own curve ends with, so that it always gets there
    tokens_G, selected_G = (np.mean([getattr(c, k) for c in mine], axis=0) for k in ("tokens_G", "selected_G"))
    return Crossed(
        crossings(tokens_G, mine_RG, goal_R),
        crossings(selected_G, mine_RG, goal_R),
        crossings(np.mean([c.tokens_G for c in its], axis=0), its_RG, goal_R),
        (mine_RG[:, 0] > goal_R) & (its_RG[:, 0] > goal_R),
        goal_R,
    )


def resampled(n: int, seed: int | list[int], resamples: int = RESAMPLES) -> Floats:
    """How often each of `n` is drawn in so many draws with replacement [R, n]; the same for the same seed."""
    drawn_RN = np.random.default_rng(seed).integers(0, n, (resamples, n)) + n * np.arange(resamples)[:, None]
    counts = np.bincount(drawn_RN.ravel(), minlength=resamples * n)
    return counts.reshape(resamples, n).astype(np.float64)


def ends(values_R: Floats, known_R: NDArray[np.bool_], level: float) -> list[float | None]:
    """The percentile interval of R resamples: the values that leave out (1 - level) / 2 on each side. What is not known counts
    on both sides, as lower than all and as higher than all. An end that is not finite is None: the interval is open there."""
    out = int((1 - level) / 2 * len(values_R) + 1e-9)
    low = float(np.sort(np.where(known_R, values_R, -np.inf))[out])
    high = float(np.sort(np.where(known_R, values_R, np.inf))[len(values_R) - 1 - out])
    return [low if math.isfinite(low) else None, high if math.isfinite(high) else None]


def interval_of(found: Crossed, level: float, ratios: dict[str, Floats | None]) -> dict[str, Any]:
    """`interval` of results.json: for each figure [low, high], where null is an open end, which `open` says of any; and the
    share of resamples in which the arm was there at all. A resample in which it never was counts as infinitely many tokens, and
    as a ratio below all others."""
    spans: dict[str, Any] = {"tokens_to_reach": ends(found.tokens_R, found.above_R, level)}
    there_R = np.isfinite(found.tokens_R)
    for key, values_R in ratios.items():
        spans[key] = None if values_R is None else ends(np.where(there_R, values_R, -np.inf), found.above_R, level)
    reached = float(np.mean(there_R & found.above_R))
    is_open = any(None in span for span in spans.values() if span is not None)
    return {"level": level, "resamples": len(found.tokens_R), "reached": reached, "open": is_open, **spans}
