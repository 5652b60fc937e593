"""How sure a figure is: intervals by bootstrap over documents, which is what a held-out set samples.

The tokens of a document are not independent, so documents are resampled, not tokens. Shapes: M documents, R resamples,
I items of a task, K columns of sums.
"""

from __future__ import annotations

import math
from functools import lru_cache
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
METHOD = 2
"""Which form of the intervals this is: results of another are measured again."""
CHUNK = 2**20
"""Documents drawn at once: some 20 MB, however many there are."""
FEW = 5
"""With fewer documents too many resamples have no spread, and Student's t is used."""
OWN = 0.5
"""Share of what unequal documents take from an interval that the bootstrap's own quantiles make good, by simulation
(benchmarks/intervals.py): they are drawn from the same few long documents, and see some of it."""


def mean_interval(
    nats_M: ArrayLike, predicted_M: ArrayLike, level: float, seed: int, resamples: int = 2000
) -> tuple[float, float] | None:
    """The interval of sum(nats) / sum(predicted), a set's loss in nats a token, as its documents vary.

    A studentised bootstrap (bootstrap-t, Efron and Tibshirani 1993, section 12.5) with the linearised standard error of a
    ratio: unlike percentiles it holds close to its level with dozens of documents of skewed losses. It is wider where few
    long documents hold most of the tokens (`widening`), so that it holds its level there too, as long as a document's loss
    does not depend on its length: what the longest texts are like, a sample that has few of them cannot tell.
    Any other additive figure may stand in for nats, any size for `predicted` (bytes, for bits per byte).
    None where there are fewer than two documents with a predicted token, where one is all but everything, or where a loss is
    not finite. The same seed and
    documents give the same resamples. Raises `ValueError` for shapes that differ.
    """
    nats_M, predicted_M = np.asarray(nats_M, np.float64), np.asarray(predicted_M, np.float64)
    if nats_M.ndim != 1 or nats_M.shape != predicted_M.shape:
        raise ValueError(f"nats and predicted are one number a document, not of shapes {nats_M.shape} and {predicted_M.shape}")
    used_M = predicted_M > 0
    nats_M, predicted_M = nats_M[used_M], predicted_M[used_M]
    documents, wider = len(nats_M), widening(predicted_M, level)
    if documents < 2 or not np.isfinite(nats_M).all() or math.isinf(wider):
        return None
    loss = nats_M.sum() / predicted_M.sum()
    apart_M = nats_M - loss * predicted_M
    error = float(_standard_error(np.square(apart_M).sum(), predicted_M.sum(), documents))
    if documents < FEW:
        low, high = student_quantiles(level, documents - 1)
    else:
        t_R = _studentised(apart_M, predicted_M, error, seed, resamples)
        low, high = (float(q) for q in np.quantile(t_R, [(1 - level) / 2, (1 + level) / 2]))
        wider = 1 + OWN * (wider - 1)
    return float(loss - high * error * wider), float(loss - low * error * wider)


def difference_interval(
    nats_a_M: ArrayLike, nats_b_M: ArrayLike, predicted_M: ArrayLike, level: float, seed: int, resamples: int = 2000
) -> tuple[float, float] | None:
    """The interval of loss a - loss b, nats a token, of two models on the same documents: `mean_interval` of the
    documents' differences, so that what makes a document hard for both cancels."""
    nats_a_M, nats_b_M = np.asarray(nats_a_M, np.float64), np.asarray(nats_b_M, np.float64)
    if nats_a_M.shape != nats_b_M.shape:
        raise ValueError(f"both models' losses are of the same documents, not {nats_a_M.shape} and {nats_b_M.shape}")
    return mean_interval(nats_a_M - nats_b_M, predicted_M, level, seed, resamples)


def effective_documents(size_M: ArrayLike) -> float:
    """How many documents of equal size would tell as much as these: (sum of sizes)^2 / sum of squares, from 1 to M (Kish)."""
    share_M = _shares(size_M)
    return float(1 / np.square(share_M).sum()) if len(share_M) else 0.0


def widening(size_M: ArrayLike, level: float) -> float:
    """The factor by which unequal sizes lengthen Student's interval of a ratio: 1 where all are equal, 1.1 to 3 where few
    documents hold most of the tokens.

    A long document pulls the loss towards its own, so that its residual, and with it the standard error, is too small; and
    that error, a sum of few large squares, has fewer degrees of freedom than M - 1. Both follow from the sizes alone, for
    documents whose loss a token varies alike (Bell and McCaffrey, Survey Methodology 28, 2002): the residuals are y = B z of
    independent z, and E y'y = tr BB', with Satterthwaite's (tr BB')^2 / tr (BB')^2 degrees of freedom.
    """
    w_M = _shares(size_M)
    documents = len(w_M)
    if documents < 2:
        return 1.0
    two, three, four, five = (float((w_M**k).sum()) for k in (2, 3, 4, 5))
    trace = two - 2 * three + two**2
    square = four + 2 * (two * four + three**2) + two**4 - 4 * five + 2 * two * four - 4 * two**2 * three
    if not (trace > 1e-12 * two and square > 0):  # one document is all there is
        return math.inf
    bias = math.sqrt(two / (trace * documents / (documents - 1)))
    freedom = max(1.0, min(documents - 1.0, trace**2 / square))
    return max(1.0, bias * student_quantiles(level, freedom)[1] / student_quantiles(level, documents - 1)[1])


def _shares(size_M: ArrayLike) -> Floats:
    """Each document's share of all tokens, of those that have any."""
    size_M = np.asarray(size_M, np.float64)
    size_M = size_M[size_M > 0]
    found: Floats = size_M / size_M.sum()
    return found


def _standard_error(squares: Floats, size: Floats, documents: int) -> Floats:
    """Of a ratio, linearised: from the sum of squared residuals (documents / (documents - 1) for the one that is fitted)."""
    found: Floats = np.sqrt(np.maximum(squares, 0) * (documents / (documents - 1))) / size
    return found


def _studentised(apart_M: Floats, size_M: Floats, error: float, seed: int, resamples: int) -> Floats:
    """(loss of a resample - loss) / the resample's own standard error [R]. `apart` are residuals of the whole sample.

    A resample of one document over and over has no spread of its own (less than rounding leaves); it takes the sample's.
    """
    if error == 0:
        return np.zeros(resamples)
    sums_RK = _resampled_sums(np.stack([apart_M, size_M, apart_M**2, apart_M * size_M, size_M**2], axis=1), seed, resamples)
    apart_R, size_R, squares_R, cross_R, sizes_R = sums_RK.T
    shift_R = apart_R / size_R
    residual_R = squares_R - 2 * shift_R * cross_R + shift_R**2 * sizes_R
    error_R = _standard_error(residual_R, size_R, len(apart_M))
    flat_R = residual_R <= 1e-12 * squares_R
    found: Floats = shift_R / np.where(flat_R, error, error_R)
    return found


def _resampled_sums(values_MK: Floats, seed: int, resamples: int) -> Floats:
    """Sums over M documents drawn with replacement, for each resample. [R, K]"""
    documents = len(values_MK)
    rng = np.random.default_rng(seed)
    sums, at_once = [], max(1, CHUNK // documents)
    for at in range(0, resamples, at_once):
        rows = min(at_once, resamples - at)
        drawn_RM = rng.integers(0, documents, (rows, documents)) + documents * np.arange(rows)[:, None]
        counts_RM = np.bincount(drawn_RM.ravel(), minlength=rows * documents).reshape(rows, documents)
        sums.append(counts_RM @ values_MK)
    return np.concatenate(sums)


@lru_cache(maxsize=256)
def student_quantiles(level: float, freedom: float) -> tuple[float, float]:
    """The quantiles of Student's t that hold `level` between them: its density over the angle t = sqrt(freedom) tan(angle)
    is cos(angle)^(freedom - 1), summed up."""
    angle = np.linspace(-math.pi / 2, math.pi / 2, 200_001)
    density = np.cos(angle) ** (freedom - 1)
    area = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
    high = math.sqrt(freedom) * math.tan(float(np.interp((1 + level) / 2 * area[-1], area, angle)))
    return -high, high


def paired_accuracy(
    correct_a_I: ArrayLike, correct_b_I: ArrayLike, level: float
) -> tuple[float, tuple[float, float] | None, float | None]:
    """Accuracy a - accuracy b on the same items, its interval, and the exact two-sided p of McNemar's test.

    Only items that one of the two answers count as evidence. The interval is Wald's with half an item of each kind added
    (Bonett and Price 2012), closed and near its level; p is a binomial test on those items, and conservative.
    (nan, None, None) without items; raises `ValueError` for shapes that differ.
    """
    a_I, b_I = np.asarray(correct_a_I, bool), np.asarray(correct_b_I, bool)
    if a_I.shape != b_I.shape or a_I.ndim != 1:
        raise ValueError(f"both models' answers are of the same items, not of shapes {a_I.shape} and {b_I.shape}")
    items, a_alone, b_alone = len(a_I), int((a_I & ~b_I).sum()), int((b_I & ~a_I).sum())
    if items == 0:
        return math.nan, None, None
    share_a, share_b = (a_alone + 1) / (items + 2), (b_alone + 1) / (items + 2)
    middle = share_a - share_b
    reach = NormalDist().inv_cdf((1 + level) / 2) * math.sqrt((share_a + share_b - middle**2) / (items + 2))
    interval = max(-1.0, middle - reach), min(1.0, middle + reach)
    return (a_alone - b_alone) / items, interval, mcnemar_p(a_alone, b_alone)


def mcnemar_p(a_alone: int, b_alone: int) -> float:
    """Of so many items that just one of two models answers, how likely a split at least this uneven is by chance."""
    n = a_alone + b_alone
    ways = tail = 1  # of n items: to choose 0; to choose at most 0
    for k in range(min(a_alone, b_alone)):
        ways = ways * (n - k) // (k + 1)
        tail += ways
    return float(min(1.0, 2 * tail / 2**n))
