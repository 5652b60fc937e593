"""The loss of selected tokens and its gradients: our chunked form beside the others that are at hand, in one run.

python benchmarks/head.py --output benchmarks/results/head-cpu.json
python benchmarks/head.py --device cuda --dtype bfloat16 --output benchmarks/results/head-gpu.json

Each variant gives the K losses and the gradients of their sum / K by hidden states and head weights. `exact` is the largest
error of the gradients against float64 full logits, over their largest value. Peak memory is what a call adds to what was
there before it: on a GPU by the allocator, on a CPU by resident memory in a process of its own. Variants: `full` (logits of
all, plain autograd), `slmctl` (at several chunk sizes; `slmctl` alone is the size that it chooses),
`torch linear_cross_entropy` (torch >= 2.13, chunked and not), Liger (>= 0.8.2) and cut_cross_entropy (on a GPU, where they
are installed).
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from slmctl.model import losses as ours
from slmctl.model.split import SplitModel

SHAPES = {  # vocabulary, width, selected tokens
    "cpu": {"V=4k": (4096, 256, 1228), "V=32k": (32_000, 512, 614), "V=49k": (49_152, 576, 614), "V=150k": (150_000, 896, 614)},
    "cuda": {"TinyLlama": (32_000, 2048, 9830), "SmolLM2": (49_152, 576, 19_660), "Qwen2.5-0.5B": (151_936, 896, 9830)},
}
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(hidden [K, D], weight [V, D], labels [K]) to losses [K], or to their mean."""


class Head:
    """As much of a split model as the loss needs."""

    def __init__(self, weight: Tensor) -> None:
        self.head = SimpleNamespace(weight=weight, bias=None)
        self.vocab_size, self.multiplier, self.softcap = len(weight), 1.0, None
        self.logits = lambda hidden, w, b: SplitModel.logits(self, hidden, w, b)  # type: ignore[arg-type]


def slmctl(rows: int | None = None) -> Loss:
    def loss(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
        chosen = ours.chunk_rows
        if rows is not None:
            ours.chunk_rows = lambda *_, **__: rows  # type: ignore[assignment]
        try:
            return ours.selected_loss(Head(weight), hidden, labels, len(labels))[0]  # type: ignore[arg-type]
        finally:
            ours.chunk_rows = chosen

    return loss


def full(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    return functional.cross_entropy((hidden @ weight.T).float(), labels)


def variants(device: str) -> dict[str, Loss]:
    found: dict[str, Loss] = {"full": full, "slmctl": slmctl()}
    for rows in (256, 1024, 4096):
        found[f"slmctl, chunks of {rows}"] = slmctl(rows)
    fused: Any = getattr(functional, "linear_cross_entropy", None)
    if fused is not None:
        found["torch linear_cross_entropy"] = lambda h, w, y: fused(h, w, y)
        options = torch.nn.LinearCrossEntropyOptions()  # type: ignore[attr-defined]
        found["torch linear_cross_entropy, chunked"] = lambda h, w, y: fused(h, w, y, options=options)
    if device == "cuda":
        try:
            from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss  # type: ignore[import-not-found]

            liger = LigerFusedLinearCrossEntropyLoss()
            found["Liger"] = lambda h, w, y: liger(w, h, y)
        except ImportError:
            pass
        try:
            from cut_cross_entropy import linear_cross_entropy  # type: ignore[import-not-found]

            found["cut_cross_entropy"] = lambda h, w, y: linear_cross_entropy(h, w, y)
        except ImportError:
            pass
    return found


def inputs(shape: tuple[int, int, int], device: str, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    vocab, width, selected = shape
    made = torch.Generator().manual_seed(0)
    hidden = torch.randn(selected, width, generator=made).to(device, dtype).requires_grad_()
    weight = (torch.randn(vocab, width, generator=made) / width**0.5).to(device, dtype).requires_grad_()
    return hidden, weight, torch.randint(0, vocab, (selected,), generator=made).to(device)


def once(loss: Loss, hidden: Tensor, weight: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    hidden.grad = weight.grad = None
    loss(hidden, weight, labels).mean().backward()
    assert hidden.grad is not None
    assert weight.grad is not None
    return hidden.grad, weight.grad


def error(loss: Loss, device: str, dtype: torch.dtype) -> float:
    """On a small shape, against float64."""
    hidden, weight, labels = inputs((997, 64, 300), device, dtype)
    got = [g.double() for g in once(loss, hidden, weight, labels)]
    wanted = once(full_double, hidden.detach().double().requires_grad_(), weight.detach().double().requires_grad_(), labels)
    return max(float((g - w).abs().max() / w.abs().max()) for g, w in zip(got, wanted, strict=True))


def full_double(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    return functional.cross_entropy(hidden @ weight.T, labels)


def peak_cpu(name: str, shape: str, dtype: str) -> int:
    command = [sys.executable, __file__, "--peak", name, "--shape", shape, "--dtype", dtype]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def resident(which: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(which))


def measure(args: argparse.Namespace) -> dict[str, Any]:
    dtype, figures = getattr(torch, args.dtype), {}
    for label, shape in SHAPES[args.device].items():
        if args.shapes and label not in args.shapes:
            continue
        data, rates = inputs(shape, args.device, dtype), {n: [] for n in variants(args.device)}
        table: dict[str, Any] = {}
        for name, loss in variants(args.device).items():
            table[name] = {"error": error(loss, args.device, dtype)}
            if args.device == "cuda":
                torch.cuda.synchronize()
                before = torch.cuda.memory_allocated()
                torch.cuda.reset_peak_memory_stats()
                once(loss, *data)
                table[name]["peak_bytes"] = torch.cuda.max_memory_allocated() - before
            else:
                once(loss, *data)
                table[name]["peak_bytes"] = peak_cpu(name, label, args.dtype)
        for _ in range(args.rounds):  # in turns, so that whatever else the machine does falls on all alike
            for name, loss in variants(args.device).items():
                if args.device == "cuda":
                    torch.cuda.synchronize()
                started = time.perf_counter()
                once(loss, *data)
                if args.device == "cuda":
                    torch.cuda.synchronize()
                rates[name].append(time.perf_counter() - started)
        best = statistics.median(rates["slmctl"])
        for name, seconds in rates.items():
            table[name] |= {"ms": round(1e3 * statistics.median(seconds), 2)}
            table[name] |= {"speed_over_slmctl": round(best / statistics.median(seconds), 3)}
            t = table[name]
            mb = t["peak_bytes"] / 1e6
            print(
                f"{label:14} {name:38} {t['ms']:9.2f} ms  x{t['speed_over_slmctl']:<6} {mb:8.0f} MB  {t['error']:.1e}", flush=True
            )
        figures[label] = {"shape": dict(zip("VDK", shape, strict=True)), "variants": table}
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--shapes", nargs="+", help="some of the shapes, by name")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/head-cpu.json"))
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    parser.add_argument("--shape", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peak:
        loss, data = variants("cpu")[args.peak], inputs(SHAPES["cpu"][args.shape], "cpu", getattr(torch, args.dtype))
        once(loss, *inputs((997, 64, 300), "cpu", getattr(torch, args.dtype)))
        Path("/proc/self/clear_refs").write_text("5")  # the peak of resident memory counts from here
        before = resident("VmRSS")
        once(loss, *data)
        print(resident("VmHWM") - before)
        return
    figures = {"command": " ".join(["python", *sys.argv]), "torch": torch.__version__, "dtype": args.dtype}
    if args.device == "cuda":
        figures["gpu"] = torch.cuda.get_device_name()
    figures["shapes"] = measure(args)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
