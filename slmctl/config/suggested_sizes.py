"""Sizes of a first run, by how many tokens there are: rows, steps, checkpoints and, without a base at hand, a model."""

from __future__ import annotations

import math
from dataclasses import dataclass

GROUP_ROWS = 8
REFERENCE_STEPS, REFERENCE_ROWS = 100, 4
"""Steps of the reference that are aimed at, and the rows of a step that it takes at the least: fewer are mostly noise."""
REFERENCE_EPOCHS = (3, 8)
"""The paper's (section 3.1), and the most: beyond, the reference learns a small set by heart, and its losses tell nothing."""
STEPS, FEWEST_STEPS = 400, 48
"""Steps of an arm that are aimed at, and below which it goes through the corpus more than once."""
MOST_TOKENS = 20_000_000
"""Of an arm, in a first run."""
KEPT = {"scratch": 8, "base": 5}
"""Checkpoints of an arm that are kept, at the least: what it takes to reach the control is read from them, and takes four."""
LENGTHS = (64, 128, 256, 512, 1024)
MODELS = (
    (2_000_000, 1024, 128, 3, 4, 352),
    (20_000_000, 4096, 192, 4, 4, 512),
    (200_000_000, 8192, 320, 6, 5, 864),
    (math.inf, 16384, 512, 8, 8, 1376),
)
"""Of a base from scratch: tokens of the corpus up to which it is taken, vocabulary, width, blocks, heads, feed-forward width."""


@dataclass(frozen=True)
class Sizes:
    """All counts are tokens or steps."""

    seq_len: int
    tokens: int
    batch_tokens: int
    passes: float
    """Over the corpus."""
    steps: int
    micro_batch: int
    eval_every: int
    save_every: int
    reference_epochs: int
    reference_mix: float
    reference_steps: int
    reference_batch: int
    base_tokens: int
    model: tuple[int, int, int, int, int]
    """Of a base from scratch: vocabulary, width, blocks, heads, feed-forward width."""


def sizes(curated: int, corpus: int, scratch: bool, longest: int | None = None) -> Sizes:
    """Of so many tokens of text; `longest` is the base model's context, where it is known."""
    # rows enough for a first run's steps, and for some of the reference's
    fitting = [n for n in LENGTHS if corpus / n >= 2000 and curated / n >= 64 and n <= (longest or n)]
    seq_len = max(fitting, default=min(LENGTHS[0], longest or LENGTHS[0]))
    unit = seq_len * GROUP_ROWS
    seen = min(MOST_TOKENS, corpus)
    batch = _multiple(seen / STEPS, unit, 524_288)
    steps = max(FEWEST_STEPS, math.ceil(seen / batch))
    evaluated = max(1, steps // (2 * KEPT["scratch" if scratch else "base"]))
    mix = 0.3 if scratch else 0.0  # a base that has barely learnt the corpus forgets it without
    epochs, reference_batch, reference_steps = _reference(curated / (1 - mix), seq_len)
    *_, (_, *model) = (m for i, m in enumerate(MODELS) if i == 0 or corpus > MODELS[i - 1][0])
    return Sizes(
        seq_len=seq_len,
        tokens=steps * batch,
        batch_tokens=batch,
        passes=steps * batch / corpus,
        steps=steps,
        micro_batch=max(n for n in (8, 16, 32) if n == GROUP_ROWS or (scratch and batch // seq_len % n == 0)),
        eval_every=evaluated,
        save_every=2 * evaluated,
        reference_epochs=epochs,
        reference_batch=reference_batch,
        reference_mix=mix,
        reference_steps=reference_steps,
        base_tokens=max(20, steps // 5) * batch,
        model=(model[0], model[1], model[2], model[3], model[4]),
    )


def _reference(epoch: float, seq_len: int) -> tuple[int, int, int]:
    """Epochs of so many tokens, tokens of a step, and the steps that they make: by small steps first, then by more epochs."""
    fewest, most = REFERENCE_EPOCHS
    batch = max(_multiple(epoch * fewest / REFERENCE_STEPS, seq_len, 65_536), REFERENCE_ROWS * seq_len)
    epochs = min(most, max(fewest, math.ceil(REFERENCE_STEPS * batch / epoch * 0.9)))  # 90 are some hundred too
    return epochs, batch, math.ceil(epochs * epoch / batch)


def _multiple(value: float, unit: int, most: int) -> int:
    """The multiple of `unit` that is nearest to a value: at least one, and at most `most`."""
    return max(1, min(round(value / unit), max(1, most // unit))) * unit
