"""What training and scoring cost in floating-point operations: what selection spends, as well as what it saves.

Of one token's forward pass the trunk takes T and the head H = 2·V·D. Training on all tokens takes 3(T + H) a token; with
a criterion that reads the live loss, such as excess loss, 3T + (1 + 3k)H, since live losses of all tokens come before the loss of
the selected ones; with one that does not, such as random, 3T + 3kH. Scoring takes T + H.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from slmctl.comparison.compared import Compared
from slmctl.config.score import OWN_MODELS, ReferenceModel
from slmctl.config.selection import reads_live
from slmctl.model.flops import flops_per_token
from slmctl.model.loading import empty_model
from slmctl.model.source import ModelSource
from slmctl.system.console import say
from slmctl.system.errors import InputError
from slmctl.training.telemetry import read_log

ALL: dict[str, Any] = {"criterion": "all"}


@dataclass(frozen=True)
class ForwardFlops:
    """Operations of one token's forward pass."""

    trunk: float
    head: float

    @property
    def scoring(self) -> float:
        return self.trunk + self.head

    def training(self, selection: Mapping[str, Any], tokens: int, selected: int) -> float:
        """Of a run with a recorded selection that has seen `tokens` and trained on `selected` of them."""
        live = tokens if reads_live(selection) else 0
        return 3 * self.trunk * tokens + self.head * (live + 3 * selected)


def forward_flops(model: Any, seq_len: int) -> ForwardFlops:
    """Of a Hugging Face causal LM in rows of `seq_len` tokens. Weights are not read: they may be on the meta device."""
    vocab_size, hidden_size = model.get_output_embeddings().weight.shape
    head = 2.0 * vocab_size * hidden_size
    return ForwardFlops(flops_per_token(model, seq_len) / 3 - head, head)


def flops_of_references(compared: Compared) -> dict[str, ForwardFlops]:
    """Operations of each reference's forward pass, by score set; without those whose model cannot be told from here."""
    found = {}
    for name, given in compared.config.score.references.items():
        own = compared.models.get(given) if isinstance(given, str) and given in OWN_MODELS else None
        source = own.source if own is not None else None
        if given not in OWN_MODELS:  # its weights need not be here
            model = ReferenceModel(path=given) if isinstance(given, str) else given
            source = ModelSource(model.path, model.gguf_file, model.revision)
        try:
            if source is None:
                raise InputError(f"{compared.places.reference} is absent or not complete.")
            found[name] = forward_flops(empty_model(source), compared.config.data.seq_len)
        except InputError as e:
            say(f"eval: the cost of scoring with {name} is not known: {e}")
    return found


def costs_of_references(compared: Compared, flops: dict[str, ForwardFlops]) -> dict[str, Any]:
    """Tokens and operations that went into the reference and its scores: part of what selection costs. `flops` are of a
    forward pass, by score set."""
    found: dict[str, Any] = {}
    references = compared.config.score.references
    log = read_log(compared.places.training("reference") / "metrics.jsonl")
    own = next((flops[n] for n, model in references.items() if model == "reference" and n in flops), None)
    if log and own is not None:
        found["reference_tokens"] = log[-1]["tokens_seen"]
        found["reference_flops"] = own.training(ALL, log[-1]["tokens_seen"], log[-1]["tokens_selected"])
    for name in references:
        if name in compared.scores:
            tokens = compared.scores[name].manifest.counts["predicted"]
            found.setdefault("scored_tokens", {})[name] = tokens
            found.setdefault("scoring_flops", {})[name] = flops[name].scoring * tokens if name in flops else None
    return found
