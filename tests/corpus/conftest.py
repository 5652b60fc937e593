"""Small pipelines over generated text, and an independent reading of the shards they make."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from slmctl.config.file import check
from slmctl.workspace.workspace import Workspace

WORDS = ["apple", "river", "naïve", "漢字", "seven 7", "fox", "emoji 🦊", "the", "stone", "a+b=c"]


def _texts(n: int, salt: int) -> list[str]:
    return [" ".join(WORDS[(i * 7 + k * salt) % len(WORDS)] for k in range(1 + (i * i + salt) % 40)) + f" #{i}" for i in range(n)]


@pytest.fixture
def texts() -> Callable[[int, int], list[str]]:
    """(number, salt) to distinct texts of very different lengths."""
    return _texts


@pytest.fixture
def jsonl() -> Callable[[Path, list[str]], Path]:
    """Writes texts as JSON Lines."""

    def write(path: Path, lines: list[str]) -> Path:
        path.write_text("".join(json.dumps({"text": t}, ensure_ascii=False) + "\n" for t in lines), encoding="utf-8")
        return path

    return write


@pytest.fixture
def pipeline(tmp_path: Path, jsonl: Callable[[Path, list[str]], Path]) -> Callable[..., Workspace]:
    """Makes a workspace of a pipeline that trains its own tokenizer; the texts are written once."""
    for name, n, salt in (("curated", 20, 3), ("corpus", 60, 5), ("target", 8, 7)):
        jsonl(tmp_path / f"{name}.jsonl", _texts(n, salt))

    def make(output: str = "out", seed: int = 0, **data: Any) -> Workspace:
        config = {
            "name": "test",
            "output_dir": str(tmp_path / output),
            "seed": seed,
            "model": {"scratch": {"vocab_size": 300, "tokenizer_sample_mb": 1}},
            "data": {
                "root": str(tmp_path),
                "seq_len": 32,
                "shard_bytes": 1024,
                "curated": {"path": "curated.jsonl"},
                "corpus": {"path": "corpus.jsonl"},
                "heldout": {"target": {"path": "target.jsonl"}},
                **data,
            },
            "reference": {"batch_tokens": 1024},
            "pretrain": {"steps": 1, "batch_tokens": 1024, "arms": {"slm": None}},
        }
        return Workspace(check(config, "test")).open()

    return make


@pytest.fixture
def documents_of() -> Callable[[Path], list[list[int]]]:
    """Reads a token set with pyarrow and plain lists: each document's ids, in the order of the input."""

    def read(directory: Path) -> list[list[int]]:
        found: dict[int, list[int]] = {}
        for file in sorted(directory.glob("shard-*.parquet")):
            table = pq.read_table(file)
            for token, document in zip(table["input_id"].to_pylist(), table["document"].to_pylist(), strict=True):
                if document >= 0:
                    found.setdefault(document, []).append(token)
        return [found[d] for d in sorted(found)]

    return read
