"""The part of the configuration that names the base model, or says how one is made from scratch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from slmctl.config.decides import ByContent, Tokens, Weights
from slmctl.config.training import TrainingConfig
from slmctl.config.types import PositiveInt, Section


class ScratchConfig(Section):
    vocab_size: Tokens[Annotated[int, Field(ge=260)]] = 4096
    """Size of the BPE vocabulary (bytes included), trained on curated and corpus text."""
    tokenizer_sample_mb: Tokens[PositiveInt] = 64
    """Megabytes of text that the tokenizer is trained on, taken evenly from the curated and the corpus files."""
    hidden_size: Weights[PositiveInt] = 256
    """Width of the Llama-style model."""
    num_hidden_layers: Weights[PositiveInt] = 4
    """Number of blocks."""
    num_attention_heads: Weights[PositiveInt] = 4
    """Attention heads; must divide hidden_size."""
    intermediate_size: Weights[PositiveInt] = 704
    """Width of the feed-forward layer."""
    tie_word_embeddings: Weights[bool] = True
    """Share the input embedding with the output head."""
    train: TrainingConfig | None = None
    """How the base is pretrained on the corpus (all tokens) before anything else; null leaves random weights."""

    @model_validator(mode="after")
    def _heads_divide(self) -> ScratchConfig:
        if self.hidden_size % self.num_attention_heads or (self.hidden_size // self.num_attention_heads) % 2:
            raise ValueError("hidden_size must be an even multiple of num_attention_heads")
        return self


class ModelConfig(Section):
    path: Weights[ByContent[str | None]] = None
    """The base model: a local directory or a Hub id. The reference and every arm start from it."""
    revision: Weights[ByContent[str | None]] = None
    """Hub revision of `path`; null is the default branch."""
    gguf_file: Weights[ByContent[str | None]] = None
    """Name of a GGUF file in `path`, loaded dequantised (needs the extra `gguf`)."""
    tokenizer: Tokens[ByContent[str | None]] = None
    """Directory or Hub id of the tokenizer; null takes the model's own. Its tokenizer.json decides, not a class that is named."""
    attn_implementation: Weights[Literal["sdpa", "eager", "flash_attention_2", "flex_attention", "varlen"]] = "sdpa"
    """Attention kernel, as transformers names it; sdpa takes the GPU's flash kernels. varlen computes nothing between
    documents, and wants data.intra_document_mask: true (flash kernels on a GPU)."""
    scratch: ScratchConfig | None = None
    """Instead of `path`: train a tokenizer and a small base model from scratch."""

    @model_validator(mode="after")
    def _one_origin(self) -> ModelConfig:
        if (self.path is None) == (self.scratch is None):
            raise ValueError("give exactly one of `path` and `scratch`")
        if self.scratch is not None and (self.gguf_file or self.tokenizer or self.revision):
            raise ValueError("`gguf_file`, `tokenizer` and `revision` belong to `path`, not to `scratch`")
        return self
