"""What a criterion of selection is: an entry of the table that configuration, costs, documents and report read.

Nothing here imports torch when it is imported: a configuration is checked without it. Shapes: G selection groups, M tokens of a
group (its rows flattened).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import Tensor

Live = Literal["live_loss", "live_entropy"]
Column = str
"""`ref_loss` or `ref_entropy`."""
Feature = Literal["position", "log_odds"]


@dataclass(frozen=True)
class Columns:
    """What is known of a micro-batch's tokens, each [G, M] float32 on one device; whatever no criterion reads is absent."""

    valid_GM: Tensor
    """Whether a token is predicted, and so may be selected (bool)."""
    seeds_G: Sequence[int] = ()
    """A seed for each group, which follows from the run's, the step and the group's place in it."""
    live_loss_GM: Tensor | None = None
    """-log p of each token under the model in training (nats)."""
    live_entropy_GM: Tensor | None = None
    """Entropy of its prediction by the model in training (nats)."""
    stored: Mapping[tuple[str, Column], Tensor] = field(default_factory=dict)
    """By the role of a score set and its column (nats)."""
    position_GM: Tensor | None = None
    """How many tokens of its document, or of its row, stand before a token."""
    log_odds_GM: Tensor | None = None
    """log(share of curated tokens that are this id) - log(the same of the corpus)."""

    def live(self, name: Live = "live_loss") -> Tensor:
        found = self.live_loss_GM if name == "live_loss" else self.live_entropy_GM
        assert found is not None, f"{name} was not computed"
        return found.float()

    def of(self, role: str, column: Column = "ref_loss") -> Tensor:
        return self.stored[role, column].float()


@dataclass(frozen=True)
class Option:
    """A setting that one criterion has and others have not."""

    default: Any
    doc: str
    among: tuple[str, ...] = ()
    """Words that it may be; else it is a number, or what the default is."""


@dataclass(frozen=True)
class Choice:
    """How an arm chooses tokens: a criterion of the table with its settings."""

    criterion: str
    ratio: float = 1.0
    options: Mapping[str, Any] = field(default_factory=dict)
    sets: Mapping[str, str] = field(default_factory=dict)
    """By role: the score set that is read."""
    parts: tuple[Choice, ...] = ()
    weights: tuple[float, ...] = ()
    """Of the parts of a blend, or of several references in the order of `sets`."""


Score = Callable[[Columns, Choice], "Tensor"]
Mask = Callable[[Columns, Choice, "Tensor"], "Tensor"]


@dataclass(frozen=True)
class Criterion:
    """An entry of the table."""

    name: str
    says: str
    """What it keeps, in a few words: `the tokens of …`."""
    formula: str
    """Of the score; the highest are kept."""
    source: str
    score: Score | None = None
    """[G, M] float32, higher is kept. None where a mask is made of other criteria's."""
    mask: Mask | None = None
    """The tokens that are kept [G, M], given how many of each group would be by ratio [G]; None: those of the highest score."""
    live: tuple[Live, ...] | Callable[[Choice], tuple[Live, ...]] = ()
    """What it reads of the model in training, which may follow from its options; nothing: the mask is known before the forward
    pass."""
    reads: tuple[Column, ...] = ()
    """Columns of each of its score sets."""
    roles: tuple[str, ...] = ()
    """Its score sets by what they are to it; the first that is called `reference` is the configuration's own by default."""
    several: bool = False
    """Whether it reads any number of score sets, by names of the user's own, in place of roles."""
    features: tuple[Feature, ...] = ()
    composed: bool = False
    """Whether it is made of parts, which are criteria themselves."""
    options: Mapping[str, Option] = field(default_factory=dict)
    control: bool = False
    """Whether it is what others have to beat."""
    competes: bool = True
    """Whether its scores may compete beyond a group (scopes global and threshold)."""
    use: str = ""
    """When to use it."""
    against: str = ""
    """What is known against it."""
