"""Scoring beside the bare forward pass of trunk and head, in one process, and its peak memory by vocabulary size.

python benchmarks/score.py --output benchmarks/results/score.json
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from slmctl.config.score import ScoreConfig
from slmctl.model.losses import chunk_rows
from slmctl.model.scoring import score_group
from slmctl.model.split import SplitModel
from slmctl.store.reader import Rows
from slmctl.store.scores import columns_of
from slmctl.store.shard_format import shard_name
from slmctl.store.shard_writer import ShardWriter
from slmctl.system.console import Ticker
from slmctl.system.storage import Folder

SHAPES = {  # vocabulary, width, layers: small models of the vocabularies that are in use
    "V=32k": (32_000, 512, 6),
    "V=49k": (49_152, 576, 6),
    "V=150k": (150_000, 512, 6),
}
SEQ_LEN, ROWS = 256, 16


def make_model(vocab: int, width: int, layers: int, device: str) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocab, hidden_size=width, intermediate_size=width * 8 // 3, num_hidden_layers=layers,
        num_attention_heads=8, num_key_value_heads=8, tie_word_embeddings=True, max_position_embeddings=SEQ_LEN,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    return model.to(device, torch.float32 if device == "cpu" else torch.bfloat16)


def rows(vocab: int) -> Rows:
    ids = np.random.default_rng(0).integers(0, vocab, (ROWS, SEQ_LEN)).astype(np.int32)
    return Rows(ids, np.zeros(ids.shape, np.int8))


def one_shape(name: str, rounds: int, batch_rows: int, device: str) -> dict[str, Any]:
    """Tokens a second of both, alternating, so that whatever else the machine does falls on both alike."""
    vocab, width, layers = SHAPES[name]
    model = make_model(vocab, width, layers, device)
    split, found = SplitModel(model), rows(vocab)
    ids = torch.from_numpy(found.ids_BT).long().to(device)
    folder = Folder.at(tempfile.mkdtemp())
    times: dict[str, list[float]] = {"bare": [], "losses": [], "losses and entropy": []}

    def bare() -> None:
        with torch.no_grad():
            for at in range(0, ROWS, batch_rows):
                model(input_ids=ids[at : at + batch_rows], use_cache=False).logits  # noqa: B018

    def ours(entropy: bool) -> None:
        settings = ScoreConfig(entropy=entropy, batch_rows=batch_rows, precision="float32")
        ticker = Ticker("", 1, "", None, seconds=1e9)
        with ShardWriter(folder, shard_name(len(os.listdir(str(folder)))), columns_of(settings), ROWS * SEQ_LEN) as writer:
            columns, n = score_group(found, split, settings, device, "", ticker)
            writer.write(**columns)
            writer.facts = {"rows": ROWS, "tokens": ROWS * SEQ_LEN, "predicted": n}

    for round_ in range(rounds + 1):
        for label, work in (("bare", bare), ("losses", lambda: ours(False)), ("losses and entropy", lambda: ours(True))):
            started = time.perf_counter()
            work()
            if device == "cuda":
                torch.cuda.synchronize()
            if round_:  # the first warms up
                times[label].append(time.perf_counter() - started)
    tokens = ROWS * SEQ_LEN
    figures: dict[str, Any] = {"shape": dict(zip(("vocab", "width", "layers"), SHAPES[name], strict=True)), "rounds": rounds}
    for label, taken in times.items():
        figures[label] = {"tokens_per_s": round(tokens / statistics.median(taken)), "seconds": [round(t, 4) for t in taken]}
        figures[label]["ratio_to_bare"] = round(statistics.median(b / t for b, t in zip(times["bare"], taken, strict=True)), 3)
    return figures


def resident(which: str) -> int:
    """Resident memory of this process now (VmRSS) or at its highest (VmHWM), in bytes."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{which}:")[1].split()[0]) * 1024


def peak(name: str) -> dict[str, Any]:
    """Resident memory that scoring adds to the loaded model, in a process of its own."""
    vocab, width, layers = SHAPES[name]
    split, found = SplitModel(make_model(vocab, width, layers, "cpu")), rows(vocab)
    settings = ScoreConfig(entropy=True, batch_rows=8, precision="float32")
    split.hidden(torch.from_numpy(found.ids_BT[:8]).long(), None)  # the trunk's own memory is not what is asked for
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak of loading
    before = resident("VmRSS")
    score_group(found, split, settings, "cpu", "", Ticker("", 1, "", None, seconds=1e9))
    after = resident("VmHWM")
    return {
        "added_bytes": after - before,
        "one_chunk_bytes": 4 * vocab * chunk_rows(vocab, "cpu"),
        "whole_logits_bytes": 4 * vocab * 8 * SEQ_LEN,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch-rows", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/score.json"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.peak:
        print(json.dumps(peak(args.peak)))
        return
    figures: dict[str, Any] = {"command": " ".join(["python", *sys.argv]), "threads": args.threads}
    for name in SHAPES:
        figures[name] = one_shape(name, args.rounds, args.batch_rows, args.device)
        if args.device == "cpu":
            found = subprocess.run([sys.executable, __file__, "--peak", name], check=True, capture_output=True, text=True)
            figures[name]["memory"] = json.loads(found.stdout)
        ratios = {k: v["ratio_to_bare"] for k, v in figures[name].items() if isinstance(v, dict) and "ratio_to_bare" in v}
        print(name, ratios, figures[name].get("memory"), flush=True)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
