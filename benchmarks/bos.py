"""What a beginning-of-sequence token is worth to a model that was trained with one.

python benchmarks/bos.py     # results/bos.json; a minute and three quarters of one core

A tiny Llama is trained on rows that begin with `<s>` (the source texts of Python's standard library). Then slmctl prepares the
same held-out text with `data.bos: always` and `never`, and works out the losses of both sets, for each of three seeds.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import random
import sys
import sysconfig
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer as Backend
from tokenizers import processors

from slmctl.comparison.token_losses import token_losses_of
from slmctl.config.file import check
from slmctl.corpus.packing import PADDING, bos_mask
from slmctl.corpus.train_tokenizer import train_tokenizer
from slmctl.model.loading import load_model
from slmctl.model.source import ModelSource
from slmctl.model.split import SplitModel
from slmctl.stages.prepare import prepare
from slmctl.store.manifest import library_versions
from slmctl.store.reader import RowReader
from slmctl.workspace.workspace import Workspace

VOCAB, SEQ_LEN, BATCH, HELDOUT = 1024, 128, 16, 6
CONTEXTS = ((1, 1), (2, 2), (3, 4), (5, 8), (9, 16), (17, 32), (33, SEQ_LEN))
"""Tokens of text before the predicted one in its row, from and to."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "bos.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    runs = []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_texts(root)
        for seed in range(args.seeds):
            runs.append({"seed": seed, **one_seed(root, seed, args.steps)})
            print(json.dumps(runs[-1]))
    found = {
        "command": " ".join(["python", "benchmarks/bos.py", *sys.argv[1:]]),
        "model": f"Llama, {runs[0]['parameters']:,} parameters, {args.steps} steps of {BATCH} rows of {SEQ_LEN} tokens",
        "text": f"source texts of the standard library of Python {platform.python_version()}, {HELDOUT} files held out",
        "versions": library_versions(),
        "runs": runs,
    }
    args.output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def write_texts(root: Path) -> None:
    """The library's modules as corpus and held-out set, a file a document; and a tokenizer whose template begins with <s>."""
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    random.Random(0).shuffle(files)
    texts = [f.read_text(encoding="utf-8", errors="replace") for f in files]
    for name, part in (("heldout", texts[:HELDOUT]), ("corpus", texts[HELDOUT:])):
        lines = "".join(json.dumps({"text": t}) + "\n" for t in part)
        (root / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    directory = root / "tokenizer"
    train_tokenizer(texts[HELDOUT : HELDOUT + 60], VOCAB - 1, directory)
    backend = Backend.from_file(str(directory / "tokenizer.json"))
    backend.add_special_tokens(["<s>"])
    backend.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", backend.token_to_id("<s>"))])
    backend.save(str(directory / "tokenizer.json"))
    settings = directory / "tokenizer_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "bos_token": "<s>"}))


def workspace_of(root: Path, model: Path, bos: str) -> Workspace:
    texts = {"curated": {"path": "heldout.jsonl"}, "corpus": {"path": "corpus.jsonl"}}
    settings = {
        "name": "bos",
        "output_dir": str(model / f"run-{bos}"),
        "device": "cpu",
        "model": {"path": str(model), "tokenizer": str(root / "tokenizer")},
        "data": {"root": str(root), "seq_len": SEQ_LEN, "bos": bos, **texts, "heldout": {"target": {"path": "heldout.jsonl"}}},
        "pretrain": {"steps": 1, "batch_tokens": SEQ_LEN * 8, "arms": {"clm": None}},
    }
    return Workspace(check(settings, "bos")).open()


def one_seed(root: Path, seed: int, steps: int) -> dict[str, Any]:
    directory, began = root / f"seed-{seed}", time.perf_counter()
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=VOCAB, hidden_size=64, intermediate_size=176, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=SEQ_LEN, tie_word_embeddings=True,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config)
    model.save_pretrained(directory)
    with_bos = workspace_of(root, directory, "auto")
    prepare(with_bos)
    last = train(model, RowReader(with_bos.open_tokens("corpus"), cache_groups=64), seed, steps)
    model.save_pretrained(directory)
    without = workspace_of(root, directory, "never")
    prepare(without)
    measured = SplitModel(load_model(ModelSource(str(directory)), "float32", "cpu"), False).eval()
    always, never = (stream(measured, w) for w in (with_bos, without))
    assert len(always[0]) == len(never[0])
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "last_training_loss": round(last, 4),
        "seconds": round(time.perf_counter() - began),
        **compared(always, never),
    }


def train(model: Any, reader: RowReader, seed: int, steps: int) -> float:
    """Plain language modelling on the set's rows; the mean loss of the last 50 steps."""
    rng, losses = np.random.default_rng(seed), []
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.95), weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps, pct_start=0.1)
    for _ in range(steps):
        rows = reader.fetch(rng.integers(reader.tokens.rows, size=BATCH))
        ids = torch.from_numpy(rows.ids_BT.astype(np.int64))
        labels = ids.masked_fill(torch.from_numpy(rows.document_BT == PADDING), -100)
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return float(np.mean(losses[-50:]))


def stream(model: SplitModel, workspace: Workspace) -> tuple[np.ndarray, np.ndarray]:
    """Of the held-out text's tokens in order: the loss of each (NaN where it is not predicted), and how many tokens of text
    are before it in its row."""
    tokens = workspace.open_tokens("heldout/target")
    reader, rows = RowReader(tokens), np.arange(tokens.rows)
    losses_BT = token_losses_of(model, reader, rows, "cpu", 32)
    document_BT = reader.fetch(rows).document_BT
    at = tokens.manifest.format.get("bos_at")
    text_BT = ~bos_mask(document_BT, at) & (document_BT != PADDING)
    before_BT = np.broadcast_to(np.arange(tokens.seq_len) - (at is not None), document_BT.shape)
    return losses_BT[text_BT].astype(np.float64), before_BT[text_BT]


def compared(always: tuple[np.ndarray, np.ndarray], never: tuple[np.ndarray, np.ndarray]) -> dict[str, Any]:
    both = np.isfinite(always[0]) & np.isfinite(never[0])
    by_context = [
        {
            "tokens_before": [low, high],
            **{name: mean(losses[both & (before >= low) & (before <= high)]) for name, (losses, before) in named(always, never)},
        }
        for low, high in CONTEXTS
    ]
    return {
        "tokens_predicted_either_way": int(both.sum()),
        "loss": {name: mean(losses[both]) for name, (losses, _) in named(always, never)},
        "loss_of_a_rows_first_token": {"always": mean(always[0][always[1] == 0])},
        "loss_by_context": by_context,
    }


def named(always: Any, never: Any) -> tuple[tuple[str, Any], tuple[str, Any]]:
    return ("always", always), ("never", never)


def mean(losses: np.ndarray) -> float:
    return round(float(losses.mean()), 4) if losses.size else math.nan


if __name__ == "__main__":
    main()
