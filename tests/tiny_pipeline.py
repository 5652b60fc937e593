"""A pipeline small enough to run whole in seconds: its own tokenizer, a tiny base from scratch, generated texts."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

WORDS = "one two three four five six seven eight nine ten red green blue cat dog bird runs sleeps eats sees".split()


def write_jsonl(path: Path, records: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    return path


def sentences(seed: int, n: int, words: int = 20) -> list[dict[str, Any]]:
    rng = random.Random(seed)
    return [{"text": " ".join(rng.choices(WORDS, k=words)) + "."} for _ in range(n)]


def tiny_settings(root: Path) -> dict[str, Any]:
    """A pipeline's settings as a plain mapping; the texts are written to `root`."""
    write_jsonl(root / "curated.jsonl", sentences(1, 40))
    write_jsonl(root / "corpus.jsonl", sentences(2, 80))
    write_jsonl(root / "target.jsonl", sentences(3, 8))
    train = {"batch_tokens": 256, "micro_batch": 8, "lr": 1e-2, "precision": "float32", "log_every": 100}
    return {
        "name": "tiny",
        "output_dir": str(root / "run"),
        "device": "cpu",
        "model": {
            "scratch": {
                **{"vocab_size": 300, "tokenizer_sample_mb": 1, "hidden_size": 16, "num_hidden_layers": 1},
                **{"num_attention_heads": 2, "intermediate_size": 32, "train": {**train, "steps": 4}},
            }
        },
        "data": {
            "seq_len": 32,
            "shard_bytes": 4096,
            "curated": {"path": str(root / "curated.jsonl")},
            "corpus": {"path": str(root / "corpus.jsonl")},
            "heldout": {"target": {"path": str(root / "target.jsonl")}},
        },
        "reference": {**train, "steps": 6},
        "score": {"precision": "float32"},
        "pretrain": {
            **train,
            **{"steps": 6, "eval_every": 2, "save_every": 2, "selection": {"group_rows": 4}},
            "arms": {
                "slm": {"selection": {"criterion": "excess_loss"}},
                "clm": {"selection": {"criterion": "all"}},
                "random": {"selection": {"criterion": "random"}},
            },
        },
        "tracking": {"tensorboard": False},
    }
