"""The part of the configuration that says how a model is trained: budget, optimizer, layout, logs, checkpoints; and the arms."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from slmctl.config.decides import Evaluation, Nothing, Rounding, Weights
from slmctl.config.selection import SelectionConfig
from slmctl.config.types import Name, NonNegativeInt, OffToo, PositiveInt, Section, SeedInt

BUDGET_KEYS = ("tokens", "steps", "epochs")


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


class ArmConfig(TrainingConfig):
    selection: SelectionConfig = SelectionConfig()
    """How tokens are chosen."""


class PretrainConfig(ArmConfig):
    arms: dict[Name, ArmConfig] = Field(min_length=1)
    """Named runs: each is these settings with its own keys laid over them."""


class TrackingConfig(Section):
    tensorboard: Nothing[bool] = True
    """Write TensorBoard events beside metrics.jsonl."""
    wandb_project: Nothing[str | None] = None
    """Log to this Weights & Biases project (needs the extra `wandb`)."""


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
