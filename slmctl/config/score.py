"""The part of the configuration that says which reference losses are made, by which models and how they are stored."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from slmctl.config.decides import ByContent, Rounding, Scores
from slmctl.config.types import Name, PositiveInt, Section


class ReferenceModel(Section):
    path: Scores[ByContent[str]]
    """A local directory or a Hub id."""
    revision: Scores[ByContent[str | None]] = None
    """Hub revision; null is the default branch."""
    gguf_file: Scores[ByContent[str | None]] = None
    """Name of a GGUF file in `path`, loaded dequantised (needs the extra `gguf`)."""


OWN_MODELS = ("reference", "base")
"""What score.references calls the pipeline's own models."""


class ScoreConfig(Section):
    references: ByContent[dict[Name, str | ReferenceModel]] = Field(default={"curated": "reference"}, min_length=1)
    """Score sets to make: name to model (`reference` is the trained one, `base` what all begin with, else a directory, a Hub id,
    or `path`, `revision` and `gguf_file`), of any size that shares the corpus's vocabulary. More may be added at any time."""
    entropy: Scores[bool] = True
    """Store each prediction's entropy beside its loss (same pass)."""
    dtype: Scores[Literal["float16", "compact", "float32"]] = "float16"
    """Precision that is stored. compact is float16 rounded to 6 mantissa bits, about 0.5 bytes a token smaller; `slmctl
    inspect CONFIG scores/NAME --storage` measures what each does to the selection."""
    precision: Scores[Literal["auto", "float32", "bf16_autocast", "bfloat16"]] = "auto"
    """float32, float32 weights with bfloat16 arithmetic, or all in bfloat16 (half the memory). auto: bf16_autocast on a GPU from
    compute capability 8.0 on, where float32 may take 16 times as long, else float32; all workers take what the set was planned
    with. Each moves a selection; how far, `slmctl inspect CONFIG scores/NAME --storage` measures. Of SmolLM2-135M's top 60%
    beside a near twin bf16_autocast replaces 5.0%, bfloat16 5.7%, storing float16 0.06% (benchmarks/README.md)."""
    batch_rows: Rounding[PositiveInt] = 8
    """Rows in one forward pass."""
