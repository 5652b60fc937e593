"""The configuration: one YAML file a pipeline, checked as a whole before anything runs.

Each field says what it decides (`slmctl.config.decides`), and its docstring is its documentation, which
`slmctl.config.reference` turns into the tables of docs/configuration.md.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from slmctl.config.decides import ByContent, Evaluation, Nothing, Rounding, Scores, Tokens, Weights
from slmctl.config.evaluation import EvalConfig
from slmctl.config.types import (
    AsList,
    FieldName,
    LocalPath,
    Name,
    NonNegativeInt,
    OffToo,
    PositiveInt,
    Section,
    SeedInt,
    StorePlace,
    TextTemplate,
)

BUDGET_KEYS = ("tokens", "steps", "epochs")
UNSCORED = ("all", "random")
"""Criteria whose tokens do not compete by a score: the controls."""


# --- model ------------------------------------------------------------------------------------------------------------


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


# --- data -------------------------------------------------------------------------------------------------------------


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


# --- training ---------------------------------------------------------------------------------------------------------


class TrainingConfig(Section):
    tokens: Weights[PositiveInt | None] = None
    """Budget in tokens seen (rounded up to whole steps)."""
    steps: Weights[PositiveInt | None] = None
    """Budget in optimizer steps. Give exactly one of tokens, steps and epochs."""
    epochs: Weights[Annotated[float, Field(gt=0)] | None] = None
    """Budget in passes over the data (rounded up to whole steps)."""
    seed: Weights[SeedInt | None] = None
    """Seed of this run's data order and random selection; null is the pipeline's. Arms that differ in it alone are summed up."""
    batch_tokens: Weights[PositiveInt] = 524_288
    """Tokens of an optimizer step, over all micro-batches and ranks; a multiple of seq_len x group_rows."""
    micro_batch: Rounding[PositiveInt | Literal["auto"]] = 8
    """Rows in one forward pass of a rank, in whole selection groups (at least one); auto: as many as memory holds."""
    lr: Weights[Annotated[float, Field(gt=0)]] = 8.0e-5
    """Peak learning rate."""
    min_lr_ratio: Weights[Annotated[float, Field(ge=0, le=1)]] = 0.1
    """Learning rate at the end, as a share of the peak (cosine, linear and wsd)."""
    schedule: Weights[Literal["cosine", "linear", "wsd", "constant"]] = "cosine"
    """Shape after warm-up; wsd is warm-up, stable, decay."""
    warmup: Weights[Annotated[float, Field(ge=0)]] = 0.03
    """Linear warm-up: below 1 a share of the steps, from 1 on a number of steps."""
    wsd_decay: Weights[Annotated[float, Field(gt=0, le=1)]] = 0.2
    """Share of the steps in which wsd decays."""
    weight_decay: Weights[Annotated[float, Field(ge=0)]] = 0.1
    """AdamW's decoupled weight decay, on matrices only."""
    betas: Weights[tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]]] = Field(
        default=(0.9, 0.95), strict=False
    )
    """AdamW's betas."""
    eps: Weights[Annotated[float, Field(gt=0)]] = 1.0e-8
    """AdamW's epsilon."""
    grad_clip: Weights[Annotated[float, Field(ge=0)]] = 1.0
    """Largest global gradient norm; 0 turns clipping off."""
    precision: Weights[Literal["auto", "float32", "bf16_autocast", "bfloat16"]] = "auto"
    """float32; float32 weights with bfloat16 arithmetic (gathered as bfloat16 under sharding full or hybrid); or all in bfloat16,
    whose rounding swallows small updates. auto: bf16_autocast where the device gains by it (a GPU from compute capability 8.0 on;
    a CPU with AMX, from hidden size 256 on), else float32; a run goes on with what it began with."""
    sharding: Rounding[Literal["auto", "full", "hybrid", "replicate"]] = "auto"
    """Of several ranks, each holds a part of weights, gradients and optimizer state (full), a part within its machine and
    the same as the other machines (hybrid), or all of it (replicate). auto: replicate where that takes less than a quarter of
    the GPU's memory, else full."""
    compile: Rounding[bool | Literal["auto"]] = "auto"
    """torch.compile each block; auto: on a GPU."""
    activation_checkpointing: Nothing[Annotated[Literal["off", "selective", "full"], OffToo]] = "off"
    """Compute the activations of no block, of every second block or of all blocks again in the backward pass, to save memory."""
    on_nonfinite: Nothing[Literal["stop", "skip"]] = "stop"
    """A step whose loss or gradient is not finite is never taken: stop, or go on with the next (ten in a row stop)."""
    skip_spikes: Weights[Annotated[float, Field(gt=0)] | None] = None
    """Do not take steps whose loss lies more than so many standard deviations above the last 128 steps' mean; null takes all."""
    eval_every: Evaluation[NonNegativeInt] = 0
    """Steps between held-out evaluations; 0 evaluates at the start and at the end only."""
    eval_tokens: Evaluation[PositiveInt | None] = 131_072
    """Tokens of each held-out set used while training, its first; null uses all. `slmctl eval` measures whole sets."""
    save_every: Evaluation[NonNegativeInt] = 500
    """Steps between checkpoints; 0 saves at the end only (and when interrupted)."""
    keep_last: Evaluation[PositiveInt] = 2
    """Newest checkpoints kept."""
    keep_every: Evaluation[NonNegativeInt] = 0
    """Checkpoints that are saved at multiples of this stay for good (a multiple of save_every); 0 keeps the newest only."""
    log_every: Nothing[PositiveInt] = 10
    """Steps between printed lines; metrics.jsonl has every step."""
    loader_threads: Nothing[NonNegativeInt] = 2
    """Threads that read the next steps' rows while one trains; 0 reads when asked."""
    hang_timeout: Nothing[NonNegativeInt] = 1800
    """Seconds without a finished step, evaluation or save after which every thread's stack is written and the process ends;
    0 waits for ever."""
    profile: Nothing[tuple[PositiveInt, PositiveInt] | None] = Field(default=None, strict=False)
    """First and last step to record with torch's profiler, into the run's profile/ (Chrome traces); null records none."""
    alignment_check: Nothing[Literal["stop", "warn"]] = "stop"
    """When live and reference losses correlate best at a shift other than 0: stop, or warn and go on."""

    @model_validator(mode="after")
    def _one_budget(self) -> TrainingConfig:
        given = [k for k in BUDGET_KEYS if getattr(self, k) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of tokens, steps and epochs (found {', '.join(given) or 'none'})")
        if self.profile is not None and self.profile[0] > self.profile[1]:
            raise ValueError(f"profile: the first step, {self.profile[0]}, is after the last, {self.profile[1]}")
        if self.keep_every and self.save_every and self.keep_every % self.save_every:
            raise ValueError(f"keep_every {self.keep_every} is not a multiple of save_every {self.save_every}")
        if (self.steps is not None or self.warmup < 1) and (beyond := self.decay_beyond(self.steps)) is not None:
            raise ValueError(beyond)
        return self

    def decay_beyond(self, steps: int | None) -> str | None:
        """What is wrong where wsd decays for longer than warm-up leaves. Without a number of steps both are shares."""
        warmup = self.warmup if self.warmup < 1 else self.warmup / steps if steps else 0.0
        left = 1 - warmup
        if self.schedule != "wsd" or self.wsd_decay <= left + 1e-9 or left <= 0:  # warm-up over all steps is told by itself
            return None
        most = math.floor(left * 1000 + 1e-6) / 1000
        both = f"warmup {self.warmup:g} and wsd_decay {self.wsd_decay:g} take more than {steps or 'all'} steps together"
        return (
            f"schedule wsd: {both}, so lr would fall from below its peak. Warm-up leaves a share of {most:g}: set wsd_decay to "
            "that or less, or shorten warmup."
        )


class ReferenceConfig(TrainingConfig):
    """Defaults are the paper's for a 1B model (section 3.1): 3 epochs, cosine, peak 5e-5."""

    lr: Weights[Annotated[float, Field(gt=0)]] = 5.0e-5
    """Peak learning rate."""
    batch_tokens: Weights[PositiveInt] = 65_536
    """Tokens of an optimizer step."""
    mix: Weights[Annotated[float, Field(ge=0, lt=1)]] = 0.0
    """Share of corpus rows among the rows of an epoch, so that the reference stays a good model of the corpus."""
    keep_best_on: Weights[str | None] = None
    """Name of a held-out set: keep the weights with the lowest loss on it; null keeps the last."""

    @model_validator(mode="before")
    @classmethod
    def _three_epochs(cls, data: Any) -> Any:
        if isinstance(data, dict) and all(data.get(k) is None for k in BUDGET_KEYS):
            return {**data, "epochs": 3.0}
        return data


class SelectionConfig(Section):
    criterion: Weights[Literal["excess_loss", "all", "random"]] = "excess_loss"
    """excess_loss (Eq. 3), all (plain language modelling) or random; the last two are the controls."""
    ratio: Weights[Annotated[float, Field(gt=0, le=1)]] = 0.6
    """Share of a group's valid tokens that is trained on: exactly ceil(ratio x valid)."""
    group_rows: Weights[PositiveInt] = 8
    """Rows whose tokens compete with each other; 1 selects within each sequence."""
    scope: Weights[Literal["group", "global", "threshold"]] = "group"
    """Who competes: the tokens of a group; global: those of one micro-batch on all ranks; threshold: each token with a
    running quantile of the scores. What the last two select depends on micro_batch and ranks."""
    reference: Weights[str | None] = None
    """Which score set to join; null is the first of score.references."""

    @property
    def needs_reference(self) -> bool:
        return self.criterion == "excess_loss"

    @model_validator(mode="after")
    def _scores_compete(self) -> SelectionConfig:
        if self.scope != "group" and self.criterion in UNSCORED:
            raise ValueError(f"scope {self.scope} is for criterion excess_loss; {self.criterion} has no scores that compete")
        return self


class ArmConfig(TrainingConfig):
    selection: SelectionConfig = SelectionConfig()
    """How tokens are chosen."""


class PretrainConfig(ArmConfig):
    arms: dict[Name, ArmConfig] = Field(min_length=1)
    """Named runs: each is these settings with its own keys laid over them."""


class ReferenceModel(Section):
    path: Scores[ByContent[str]]
    """A local directory or a Hub id."""
    revision: Scores[ByContent[str | None]] = None
    """Hub revision; null is the default branch."""
    gguf_file: Scores[ByContent[str | None]] = None
    """Name of a GGUF file in `path`, loaded dequantised (needs the extra `gguf`)."""


class ScoreConfig(Section):
    references: ByContent[dict[Name, str | ReferenceModel]] = Field(default={"curated": "reference"}, min_length=1)
    """Score sets to make: name to model (`reference` is the trained one, else a directory, a Hub id, or `path`, `revision`
    and `gguf_file`), of any size that shares the corpus's vocabulary. More may be added at any time."""
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


# --- the whole ---------------------------------------------------------------------------------------------------------


class TrackingConfig(Section):
    tensorboard: Nothing[bool] = True
    """Write TensorBoard events beside metrics.jsonl."""
    wandb_project: Nothing[str | None] = None
    """Log to this Weights & Biases project (needs the extra `wandb`)."""


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


def rows_per_step(run: TrainingConfig, seq_len: int) -> int:
    """Rows of one optimizer step."""
    return run.batch_tokens // seq_len


def total_steps(run: TrainingConfig, seq_len: int, rows_per_epoch: int) -> int:
    """Optimizer steps of a budget; `rows_per_epoch` is read only where the budget is in epochs."""
    if run.steps is not None:
        return run.steps
    rows = rows_per_step(run, seq_len)
    if run.tokens is not None:
        return math.ceil(run.tokens / (rows * seq_len))
    assert run.epochs is not None
    return max(1, math.ceil(round(run.epochs * rows_per_epoch, 6) / rows))


ScratchConfig.model_rebuild()
