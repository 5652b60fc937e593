"""What each kind of result is made from, and so which result it is: the one place that says so.

Pure functions of the configuration and of facts: fingerprints of models and tokenizers, content hashes of sets, what a
beginning-of-sequence token says of itself. They read no file. A result is recorded with what these functions gave; one that is
there is kept where they give the same again, and is else made anew.

A fact may be `UNKNOWN`: not there yet, or not to be told on this machine. What it would have decided is then left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any

from slmctl.config.decides import Decides, decided, result_settings
from slmctl.config.model import ScratchConfig
from slmctl.config.pipeline import PipelineConfig
from slmctl.config.training import ArmConfig
from slmctl.store.order import ORDER_VERSION

Inputs = dict[str, Any]
"""JSON-like, as it is recorded."""


class Unknown(Enum):
    UNKNOWN = "unknown"


UNKNOWN = Unknown.UNKNOWN
Hash = str | Unknown
"""Of the content of a set or a tokenizer."""
Fingerprint = dict[str, Any] | Unknown
"""Of a model: hashes of its files."""
BosInputs = dict[str, Any] | None | Unknown
"""`Bos.inputs()`; None where rows begin with none."""


def known(inputs: Inputs) -> Inputs:
    """Without what is unknown."""
    return {k: v for k, v in inputs.items() if v is not UNKNOWN}


# --- texts to tokens ---


def tokenizer(scratch: ScratchConfig, curated: Any, corpus: Any) -> Inputs:
    """The tokenizer of a pipeline from scratch; `curated` and `corpus` as `input_fingerprint` gives them."""
    sizes = {"vocab_size": scratch.vocab_size, "sample_mb": scratch.tokenizer_sample_mb}
    return known({**sizes, "curated": curated, "corpus": corpus})


def packing(config: PipelineConfig, tokenizer: Hash, bos: BosInputs) -> Inputs:
    """What decides a token set, given its texts. A BOS is named only where there is one: sets of before know of none."""
    found = {
        "tokenizer": tokenizer,
        "seq_len": config.data.seq_len,
        "seed": config.seed,
        "shard_bytes": config.data.shard_bytes,
    }
    return known({**found, **({"bos": bos} if bos is not None else {})})


def token_set(config: PipelineConfig, texts: Any, tokenizer: Hash, bos: BosInputs) -> Inputs:
    """A token set; `texts` as `input_fingerprint` gives them."""
    return known({"texts": texts, **packing(config, tokenizer, bos)})


def packing_found(made: Inputs, wanted: Inputs) -> Inputs:
    """What a token set was made from, as far as `wanted` names it; and its BOS, which is not named where there is none."""
    return {k: made.get(k) for k in (*wanted, "bos")}


# --- models ---


def training(config: PipelineConfig, bos: BosInputs) -> Inputs:
    """What decides every trained model, besides its own settings, its start and its rows."""
    return known(
        {
            "order_version": ORDER_VERSION,
            "seed": config.seed,
            "seq_len": config.data.seq_len,
            "intra_document_mask": config.data.intra_document_mask,
            "bos": bos,
            "attn_implementation": config.model.attn_implementation,
        }
    )


def base(config: PipelineConfig, scratch: ScratchConfig, bos: BosInputs, corpus: Hash) -> Inputs:
    """A base from scratch."""
    shape = {k: v for k, v in decided(scratch, Decides.TOKENS, Decides.WEIGHTS).items() if k != "train"}
    settings = result_settings(scratch.train) if scratch.train is not None else None
    return known({**training(config, bos), "model": shape, "settings": settings, "corpus": corpus})


def reference(
    config: PipelineConfig, bos: BosInputs, curated: Hash, base: Fingerprint, corpus: Hash = UNKNOWN, kept_by: Hash = UNKNOWN
) -> Inputs:
    """The reference model. `corpus` counts where its rows are mixed in, `kept_by` (a held-out set) where it says which weights
    are kept."""
    settings = config.reference
    found = {**training(config, bos), "settings": result_settings(settings), "curated": curated, "base": base}
    if settings.mix > 0:
        found["corpus"] = corpus
    if settings.keep_best_on is not None:
        found["kept_by"] = {"heldout": kept_by} if kept_by is not UNKNOWN else UNKNOWN
    return known(found)


def arm(
    config: PipelineConfig,
    settings: ArmConfig,
    bos: BosInputs,
    base: Fingerprint,
    corpus: Hash,
    scores: Hash | None,
    further: Mapping[str, Hash] | None = None,
    curated: Hash | None = None,
) -> Inputs:
    """An arm. `scores` (None: it joins none) count only where its selection reads them; `further` are the other score sets that
    it reads, by name, and `curated` the set whose tokens it counts."""
    found = {**training(config, bos), "settings": result_settings(settings), "base": base, "corpus": corpus}
    if scores is not None and settings.selection.needs_reference:
        found["scores"] = scores
    if further:
        found["more_scores"] = known(dict(further))
    if curated is not None:
        found["curated"] = curated
    return known(found)


# --- scores ---


def scoring(config: PipelineConfig) -> Inputs:
    """What of the configuration decides a score set, given its tokens and its model."""
    return {
        "intra_document_mask": config.data.intra_document_mask,
        "attn_implementation": config.model.attn_implementation,
        **decided(config.score, Decides.SCORES),
    }


def score_set(config: PipelineConfig, tokens: Hash, tokenizer: Hash, reference: Fingerprint) -> Inputs:
    """A score set of the corpus `tokens`, which were made with `tokenizer`."""
    return known({"tokens": tokens, "tokenizer": tokenizer, "reference": reference, **scoring(config)})


# --- figures ---


def measuring(config: PipelineConfig) -> Inputs:
    """What of the configuration decides figures, given models, texts and tasks."""
    return {
        "settings": decided(config.eval, Decides.EVALUATION),
        "seed": config.seed,
        "intra_document_mask": config.data.intra_document_mask,
        "attn_implementation": config.model.attn_implementation,
    }
