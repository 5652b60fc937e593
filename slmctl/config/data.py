"""The part of the configuration that names texts, and says how they become rows of tokens."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from slmctl.config.decides import ByContent, Tokens, Weights
from slmctl.config.types import AsList, Name, PositiveInt, Section, TextTemplate


class SourceConfig(Section):
    path: Tokens[ByContent[Annotated[list[str], AsList] | None]] = None
    """File, glob or list of them: .jsonl, .jsonl.gz, .jsonl.zst, .parquet, .txt (also .txt.gz, .txt.zst)."""
    hub: Tokens[ByContent[str | None]] = None
    """Instead of `path`: a dataset that `datasets.load_dataset` opens, streamed (a Hub id or a local directory)."""
    hub_config: Tokens[ByContent[str | None]] = None
    """Configuration name of the Hub dataset."""
    split: Tokens[ByContent[str]] = "train"
    """Split of the Hub dataset."""
    revision: Tokens[ByContent[str | None]] = None
    """Revision of the Hub dataset. Give a full commit: else a change on the Hub makes the set anew at the next run, and every
    stage has to reach the Hub."""
    text: Tokens[TextTemplate] = "{text}"
    """Template of a document over the record's fields; `{a.b}` reaches into nested ones, `{{` is a brace. A number is text only
    beside text, of the template or another field; NaN, infinities and booleans never are. Where all fields are blank, the
    document is empty, whatever the template adds."""
    txt_split: Tokens[Literal["file", "paragraph", "line"]] = "file"
    """What a document is in a .txt file; paragraphs end at an empty line."""
    max_documents: Tokens[PositiveInt | None] = None
    """Stop after so many records of this source (empty and skipped ones count too); null reads all."""
    on_bad: Tokens[Literal["stop", "skip"]] = "stop"
    """A broken line, invalid UTF-8, a field that is absent or no text: stop with its place, or skip and count it."""
    parse_special_tokens: Tokens[bool] = False
    """Read `<|endoftext|>` and the like in the text as special tokens; false keeps them plain text."""

    @model_validator(mode="after")
    def _one_place(self) -> SourceConfig:
        if (self.path is None) == (self.hub is None):
            raise ValueError("give exactly one of `path` and `hub`")
        return self


Sources = Annotated[list[SourceConfig], AsList, Field(min_length=1)]


class DataConfig(Section):
    root: Tokens[ByContent[str | None]] = None
    """Folder that relative paths of texts and tasks start from; null is the folder where slmctl runs."""
    seq_len: Tokens[Annotated[int, Field(ge=2)]] = 2048
    """Tokens in a row."""
    intra_document_mask: Weights[bool] = False
    """True: attention and positions restart at each document of a row."""
    bos: Tokens[Literal["auto", "always", "never"]] = "auto"
    """Begin each row (with intra_document_mask each document, and what is left of it in a further row) and each prompt with the
    tokenizer's beginning-of-sequence token; auto: where the tokenizer's own template puts one in front of a text."""
    shard_bytes: Tokens[Annotated[int, Field(ge=1024)]] = 64 * 2**20
    """Bytes of text that one token shard is made from (uncompressed)."""
    curated: Sources
    """The text that the reference model learns from."""
    corpus: Sources
    """The large noisy text that the arms are trained on."""
    heldout: dict[Name, Sources] = Field(min_length=1)
    """Texts to evaluate on, by name; never trained on."""
