"""What the precision of forward passes moves in a selection, and what bfloat16 gains or costs a CPU.

python benchmarks/precision.py selection CONFIG scores/curated --rows 48     # needs train-ref of CONFIG; results/precision.json
python benchmarks/precision.py speed                                         # results/precision.json

selection: losses of CONFIG's base (as the live model) and reference in float32, bf16_autocast and bfloat16 on rows of its
corpus, in all nine pairs, beside the selection by float32 losses; and the figures of `slmctl inspect --storage`.
speed: CPU seconds of forward passes and of training steps of Llama-style models of random weights, in the three precisions in
turns (the fastest of three), on one thread, by hidden size; once as the CPU is, and once for each narrower instruction set,
which oneDNN is told to keep to.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from slmctl.comparison import storage_costs
from slmctl.comparison.storage_costs import PRECISIONS, change, measured, passes, take_sample
from slmctl.config.file import load_config
from slmctl.model.precision import autocast
from slmctl.stages.inspect import resolve_storage
from slmctl.workspace.workspace import Workspace

SHAPES = {64: (2, 128, 8), 128: (3, 128, 8), 256: (4, 256, 8), 512: (3, 256, 4), 1024: (2, 256, 2)}
"""Hidden size to blocks, tokens in a row and rows."""
SETS = {"amx": "", "avx512_bf16": "AVX512_CORE_BF16", "avx512": "AVX512_CORE"}
"""Instruction sets by oneDNN's name for the widest that it may use; empty is whatever the CPU has."""


def selection(config: Path, which: str, rows: int, seconds: float) -> dict[str, Any]:
    storage_costs.SECONDS = seconds
    workspace = Workspace(load_config(config)).open()
    asked = resolve_storage(workspace, which)
    sample = take_sample(asked, rows)
    ref = passes(asked, "reference", workspace.reference_source(asked.name), sample)
    live = passes(asked, "live model", workspace.base_source(), sample)
    exact = live["float32"].losses_BT - ref["float32"].losses_BT
    pairs = [(a, b) for a in PRECISIONS for b in PRECISIONS]
    grid = [{"live": a, "reference": b, **change(sample, exact, live[a].losses_BT - ref[b].losses_BT)} for a, b in pairs]
    at = sample.target_BT
    return {
        "rows": len(at), "tokens": int(at.sum()), "seq_len": at.shape[1], "ratio": sample.ratio, "group_rows": sample.group_rows,
        "mean_live_loss": float(live["float32"].losses_BT[at].mean()),
        "mean_reference_loss": float(ref["float32"].losses_BT[at].mean()),
        "standard_deviation_of_excess": float(exact[at].std()),
        "figures": measured(sample, ref, live), "pairs": grid,
    }  # fmt: skip


def speed(sets: list[str]) -> dict[str, Any]:
    found = {}
    for name, narrowest in ((n, SETS[n]) for n in sets):
        env = {**os.environ, "OMP_NUM_THREADS": "1", **({"ONEDNN_MAX_CPU_ISA": narrowest} if narrowest else {})}
        command = [sys.executable, __file__, "speed-here"]
        found[name] = json.loads(subprocess.run(command, env=env, check=True, capture_output=True, text=True).stdout)
        for line in found[name]:
            print(name, line, file=sys.stderr, flush=True)
    return found


def speed_here() -> list[dict[str, Any]]:
    torch.set_num_threads(1)
    return [seconds_of(width, training) for width in SHAPES for training in (False, True)]


def seconds_of(width: int, training: bool) -> dict[str, Any]:
    from transformers import LlamaConfig, LlamaForCausalLM

    blocks, seq_len, rows = SHAPES[width]
    shape = LlamaConfig(
        vocab_size=4096, hidden_size=width, intermediate_size=int(width * 2.75), num_hidden_layers=blocks,
        num_attention_heads=max(4, width // 64), tie_word_embeddings=True,
    )  # fmt: skip
    models = {"float32": LlamaForCausalLM(shape), "bfloat16": LlamaForCausalLM(shape).to(torch.bfloat16)}
    models["bf16_autocast"] = models["float32"]
    ids = torch.randint(0, 4096, (rows, seq_len))
    best = dict.fromkeys(PRECISIONS, float("inf"))
    for turn in range(4):
        for precision in PRECISIONS:
            started = time.process_time()
            with autocast("cpu", precision == "bf16_autocast"), contextlib.nullcontext() if training else torch.no_grad():
                loss = models[precision](input_ids=ids, labels=ids).loss
            if training:
                loss.backward()
                models[precision].zero_grad()
            if turn:  # the first makes ready what the others use
                best[precision] = min(best[precision], time.process_time() - started)
    gains = {p: best["float32"] / best[p] for p in PRECISIONS[1:]}
    return {"hidden_size": width, "pass": "training" if training else "forward", "seconds": best, "times_float32": gains}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["selection", "speed", "speed-here"])
    parser.add_argument("config", nargs="?", type=Path)
    parser.add_argument("which", nargs="?", default="scores/curated")
    parser.add_argument("--rows", type=int, default=48)
    parser.add_argument("--seconds", type=float, default=3600.0)
    parser.add_argument("--sets", nargs="*", choices=list(SETS), default=list(SETS))
    parser.add_argument("--model", help="what the models are, in words, for the record")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "precision.json")
    args = parser.parse_args()
    if args.what == "speed-here":
        print(json.dumps(speed_here()))
        return
    if args.what == "selection":
        found = {"model": args.model, **selection(args.config, args.which, args.rows, args.seconds)}
    else:
        found = {"torch": torch.__version__, "machine": platform.machine(), "by_instruction_set": speed(args.sets)}
    kept = json.loads(args.output.read_text()) if args.output.is_file() else {}
    if args.what == "speed":  # those of other instruction sets stay
        found["by_instruction_set"] = {**kept.get("speed", {}).get("by_instruction_set", {}), **found["by_instruction_set"]}
    args.output.write_text(json.dumps({**kept, args.what: found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
