"""The configuration: one YAML file a pipeline, checked as a whole before anything runs.

Each field says what it decides (`slmctl.config.decides`), and its docstring is its documentation, which
`slmctl.config.documentation` turns into the tables of docs/configuration.md.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from slmctl.config.data import DataConfig
from slmctl.config.decides import Nothing, Rounding, Tokens
from slmctl.config.evaluation import EvalConfig
from slmctl.config.model import ModelConfig
from slmctl.config.score import ScoreConfig
from slmctl.config.training import PretrainConfig, ReferenceConfig, TrackingConfig
from slmctl.config.types import AsList, FieldName, LocalPath, Name, Section, SeedInt, StorePlace


class PipelineConfig(Section):
    name: Nothing[Name]
    """The pipeline's name; an output_dir belongs to one name."""
    output_dir: Nothing[LocalPath]
    """Where every stage reads and writes."""
    store_dir: Nothing[StorePlace | None] = None
    """Folder or URL (s3://, gs://, hf:// or any that fsspec opens) of token and score shards; null is output_dir."""
    accept_mismatch: Nothing[Annotated[list[FieldName], AsList]] = Field(default=[])
    """Fields in which what is found may differ from what the configuration wants, as a refusal names them
    (`tokens/corpus:seed`); recorded in the run. What would break the join by position is never accepted."""
    missing_inputs: Nothing[Literal["stop", "accept"]] = "stop"
    """Texts that a token set was made from are gone, all or some, or cannot be read: stop, or go on with the set as it is. accept
    is for stages on other machines, which have the shards alone."""
    seed: Tokens[SeedInt] = 0
    """Seed of packing, order, random selection and initialisation."""
    device: Rounding[Literal["auto", "cpu", "cuda"]] = "auto"
    """Where models run. A model with dropout draws other masks on another device."""
    model: ModelConfig
    """The base model."""
    data: DataConfig
    """Texts and how they are packed."""
    reference: ReferenceConfig = ReferenceConfig(epochs=3.0)
    """Training of the reference model."""
    score: ScoreConfig = ScoreConfig()
    """The reference model's losses over the corpus."""
    pretrain: PretrainConfig
    """Training of the arms."""
    eval: EvalConfig = EvalConfig()
    """What is evaluated at the end."""
    tracking: TrackingConfig = TrackingConfig()
    """Where curves go besides metrics.jsonl."""
