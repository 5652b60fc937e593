"""Rough estimates of what stages take: operations to seconds, tokens and parameters to bytes. Null rather than a guess."""

from __future__ import annotations

import time
from dataclasses import dataclass

from slmctl.config.pipeline import PipelineConfig
from slmctl.config.score import ScoreConfig
from slmctl.config.selection import SelectionConfig
from slmctl.config.training import TrainingConfig

TOKEN_BYTES = (0.5, 1.5)
"""Bytes of a token shard a token."""
SHARE_OF_MATMUL = 0.25
"""Of the rate of a bare product of matrices that training is taken to reach, where it was never measured here."""
Range = tuple[float, float]


@dataclass(frozen=True)
class Shape:
    """A model, as far as its costs go."""

    parameters: int
    matrices: int
    """Parameters of the matrices that a token passes, head included."""
    head: int
    """Of these, the head's."""
    attention: int
    """Widths of keys and values, summed over heads and layers."""

    def forward(self, seq_len: int) -> tuple[float, float]:
        """FLOPs a token of trunk and head."""
        head = 2.0 * self.head
        return 2.0 * (self.matrices + self.attention * seq_len) - head, head

    def scoring(self, seq_len: int) -> float:
        return sum(self.forward(seq_len))

    def training(self, selection: SelectionConfig, seq_len: int) -> float:
        """FLOPs a token seen: 3(T + H), of random tokens 3T + 3kH, with live losses of all tokens 3T + (1 + 3k)H."""
        trunk, head = self.forward(seq_len)
        share = 1.0 if selection.criterion == "all" or selection.is_weighted else selection.ratio
        return 3 * trunk + (3 * share + selection.needs_live) * head


def shape(parameters: int, vocab_size: int, hidden_size: int, layers: int, tied: bool) -> Shape:
    """The shape of a dense transformer, by its configuration."""
    embedding = vocab_size * hidden_size
    return Shape(parameters, parameters - (0 if tied else embedding), embedding, 2 * hidden_size * layers)


def scratch_shape(config: PipelineConfig) -> Shape:
    """The shape of `model.scratch`."""
    s = config.model.scratch
    assert s is not None
    block = 4 * s.hidden_size**2 + 3 * s.hidden_size * s.intermediate_size + 2 * s.hidden_size
    embeddings = s.vocab_size * s.hidden_size * (1 if s.tie_word_embeddings else 2)
    total = embeddings + s.num_hidden_layers * block + s.hidden_size
    return shape(total, s.vocab_size, s.hidden_size, s.num_hidden_layers, s.tie_word_embeddings)


def training_flops(
    model: Shape, run: TrainingConfig, selection: SelectionConfig, seq_len: int, steps: int, left: int, heldout: float
) -> float:
    """FLOPs of the `left` last of `steps` steps, and of the evaluations (of `heldout` tokens each) on the way."""
    evaluations = 1 + (left // run.eval_every if run.eval_every else 0) + (left == steps)
    return left * run.batch_tokens * model.training(selection, seq_len) + evaluations * heldout * model.scoring(seq_len)


def training_bytes(model: Shape, run: TrainingConfig, steps: int) -> float:
    """Bytes of a run's checkpoints at their most, and of the model that is written at the end."""
    wide = 2 if run.precision == "bfloat16" else 4
    saves = 1 + (steps // run.save_every if run.save_every else 0)
    kept = steps // run.keep_every if run.keep_every else 0
    return model.parameters * wide * (3.0 * min(saves, run.keep_last + 1 + kept) + 1)


def score_bytes(score: ScoreConfig) -> Range:
    """Bytes of a score shard a token."""
    if score.dtype == "float32":
        return (4.0, 8.0) if score.entropy else (3.0, 4.0)
    less = 0.5 if score.dtype == "compact" else 0.0
    return (2.7 - 2 * less, 3.4 - 2 * less) if score.entropy else (1.7 - less, 1.7 - less)


def matmul_rate(device: str, seconds: float = 0.2) -> float:
    """FLOP/s of a product of square matrices on a device, measured for a moment: bfloat16 on a GPU, float32 on a CPU."""
    import torch

    gpu = device.startswith("cuda")
    n = 8192 if gpu else 1024
    a = torch.ones(n, n, device=device, dtype=torch.bfloat16 if gpu else torch.float32)

    def wait() -> None:
        if gpu:
            torch.cuda.synchronize()

    _ = a @ a
    wait()
    started, done = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        _ = a @ a
        wait()
        done += 1
    return 2.0 * n**3 * done / (time.perf_counter() - started)
