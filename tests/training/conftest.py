"""A tiny pipeline, prepared, with base, reference and scores made once; each test works on a copy of its files."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as tf

from slmctl.config.file import check
from slmctl.config.yaml import lay_over
from slmctl.model.split import SplitModel
from slmctl.stages.prepare import prepare
from slmctl.stages.score import score
from slmctl.stages.train_base import train_base
from slmctl.stages.train_ref import train_reference
from slmctl.store.reader import Rows
from slmctl.workspace.workspace import Workspace

SEQ_LEN = 32
STEPS = 8


def sentence(rng: random.Random) -> str:
    """Partly predictable text, so that losses differ between tokens and two models agree on which are hard."""
    a, b = rng.randint(0, 9), rng.randint(0, 9)
    noise = "".join(rng.choices("QWXZ", k=rng.randint(0, 5)))
    return f"the sum of {a} and {b} is {a + b} {noise} and so it goes on."


def write_texts(directory: Path) -> None:
    directory.mkdir(parents=True)
    for name, n in {"curated": 60, "corpus": 300, "target": 12, "general": 12}.items():
        rng = random.Random(name)
        lines = [{"text": " ".join(sentence(rng) for _ in range(rng.randint(1, 4)))} for _ in range(n)]
        (directory / f"{name}.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines), encoding="utf-8")


def settings(texts: Path, output_dir: Path) -> dict[str, Any]:
    common = {"batch_tokens": 8 * SEQ_LEN, "micro_batch": 4, "precision": "float32", "lr": 5e-3, "log_every": 1000}
    return {
        "name": "tiny",
        "output_dir": str(output_dir),
        "device": "cpu",
        "model": {
            "scratch": {
                "vocab_size": 300,
                "hidden_size": 16,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "intermediate_size": 32,
                "train": {**common, "steps": 60, "batch_tokens": 16 * SEQ_LEN, "micro_batch": 16, "lr": 2e-2},
            }
        },
        "data": {
            "seq_len": SEQ_LEN,
            "shard_bytes": 12_000,
            "curated": {"path": str(texts / "curated.jsonl")},
            "corpus": {"path": str(texts / "corpus.jsonl")},
            "heldout": {n: {"path": str(texts / f"{n}.jsonl")} for n in ("target", "general")},
        },
        "reference": {**common, "steps": 10},
        "score": {"precision": "float32", "batch_rows": 16},
        "pretrain": {
            **common,
            "steps": STEPS,
            "eval_every": 3,
            "eval_tokens": 4 * SEQ_LEN,
            "arms": {
                "slm": {"selection": {"criterion": "excess_loss", "ratio": 0.6, "group_rows": 2}},
                "clm": {"selection": {"criterion": "all"}},
                "random": {"selection": {"criterion": "random", "ratio": 0.55, "group_rows": 4}},
            },
        },
        "eval": {"target": "target", "batch_rows": 8},
        "tracking": {"tensorboard": False},
    }


@pytest.fixture(scope="session")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """The pipeline up to its scores. Not to be written to: take a copy with `pipeline`."""
    root = tmp_path_factory.mktemp("tiny")
    write_texts(root / "texts")
    workspace = Workspace(check(settings(root / "texts", root / "made"), "tiny")).open()
    prepare(workspace)
    train_base(workspace)
    train_reference(workspace)
    score(workspace)
    return workspace


@pytest.fixture(scope="session")
def configured(scored: Workspace) -> Callable[[dict[str, Any]], Workspace]:
    """configured(over): the pipeline where it lies, with `over` laid over its configuration; not to be written to."""
    data = settings(scored.root.parent / "texts", scored.root)
    return lambda over: Workspace(check(lay_over(data, over), "tiny"))


@pytest.fixture(scope="session")
def copied(scored: Workspace) -> Callable[..., Workspace]:
    """copied(directory, over): a copy of the pipeline's files, with `over` laid over its configuration. `before(directory)` may
    change the files."""

    def make(directory: Path, over: dict[str, Any] | None = None, before: Callable[[Path], Any] = lambda _: None) -> Workspace:
        shutil.copytree(scored.root, directory)
        before(directory)
        data = lay_over(settings(scored.root.parent / "texts", directory), over or {})
        return Workspace(check(data, directory.name)).open()

    return make


@pytest.fixture
def pipeline(copied: Callable[..., Workspace], tmp_path: Path) -> Callable[..., Workspace]:
    """pipeline(name, over): as `copied`, to a folder of the test."""
    return lambda name="copy", over=None: copied(tmp_path / name, over)


class ListSource:
    """Rows of arrays, in order, for ever."""

    def __init__(
        self,
        ids_BT: np.ndarray,
        document_BT: np.ndarray,
        ref_loss_BT: np.ndarray | None = None,
        joined: dict[tuple[str, str], np.ndarray] | None = None,
    ) -> None:
        self.arrays, self.joined = (ids_BT, document_BT, ref_loss_BT), joined or {}
        self.rows = len(ids_BT)

    def blank(self, rows: int) -> Rows:
        room = [np.empty((rows, a.shape[1]), a.dtype) if a is not None else None for a in self.arrays]
        return Rows(*room, {key: np.empty((rows, a.shape[1]), a.dtype) for key, a in self.joined.items()})

    def fetch(self, start: int, stop: int, out: Rows) -> Rows:
        at = np.arange(start, stop) % self.rows
        for room, array in zip((out.ids_BT, out.document_BT, out.ref_loss_BT), self.arrays, strict=True):
            if array is not None:
                room[:] = array[at]
        for key, array in self.joined.items():
            out.joined[key][:] = array[at]
        return out


@pytest.fixture
def list_source() -> type[ListSource]:
    return ListSource


@pytest.fixture
def make_llama() -> Callable[..., SplitModel]:
    """make_llama(tied, dtype): a tiny Llama of 61 tokens with strong logits, in eval mode."""

    def make(tied: bool = True, dtype: torch.dtype = torch.float64, seed: int = 0) -> SplitModel:
        torch.manual_seed(seed)
        model = tf.LlamaForCausalLM(
            tf.LlamaConfig(
                vocab_size=61,
                hidden_size=16,
                intermediate_size=24,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                tie_word_embeddings=tied,
                bos_token_id=1,
                eos_token_id=1,
            )
        )
        torch.nn.init.normal_(model.lm_head.weight)
        return SplitModel(model.to(dtype).eval())

    return make
