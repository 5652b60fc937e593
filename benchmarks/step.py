"""Training steps side by side in one run: ours against what a user would write today.

python benchmarks/step.py --output benchmarks/results/step-cpu.json
python benchmarks/step.py --device cuda --precision bf16_autocast --output benchmarks/results/step-gpu.json

Arms, on one model of random weights, one batch size and one precision:
  clm            ours, all tokens
  slm            ours, excess loss, 60%, groups of 8 rows
  random         ours, random 60%
  naive          full logits, mask, autograd: the obvious way to select, with stored reference losses
  trainer slm    transformers.Trainer with compute_loss overridden: a live reference model, full logits
  trainer clm    transformers.Trainer, plain
Ours read their rows from a store that is written for the run, join the reference losses, and log; the others get batches that
are in memory. The arms take turns. A step's micro-batches are equal in all arms. `memory` is what a step's peak adds to weights,
gradients, optimizer state and the activations of the trunk (measured as the peak of a trunk-only step); `syncs` counts how often
a step makes the host wait for the GPU. MFU counts 6·N_matmul + 12·L·heads·head_dim·s a token for every arm: work that
selection leaves out is not taken off.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from slmctl.config.selection import SelectionConfig
from slmctl.config.training import TrainingConfig
from slmctl.model.flops import flops_per_token, peak_flops
from slmctl.model.split import SplitModel
from slmctl.store.manifest import Manifest, Shard
from slmctl.store.read_ahead import ReadAhead
from slmctl.store.reader import RowReader, ScoreSet, TokenSet
from slmctl.store.shard_format import shard_name
from slmctl.store.shard_writer import ShardWriter
from slmctl.system.storage import Folder
from slmctl.training.batches import Batcher, OneSet
from slmctl.training.optim import build_optimizer
from slmctl.training.parallel import lay_out
from slmctl.training.ranks import Ranks
from slmctl.training.safety import StepGuard
from slmctl.training.selective import Objective
from slmctl.training.step import StepMaker

SHAPES: dict[str, dict[str, Any]] = {  # vocabulary, width, layers, heads, key-value heads, feed-forward width, tied
    "tiny": {"v": 512, "d": 32, "layers": 2, "heads": 2, "kv": 2, "ff": 64, "tied": True},
    "cpu-32k": {"v": 32_000, "d": 512, "layers": 4, "heads": 8, "kv": 8, "ff": 1376, "tied": True},
    "cpu-150k": {"v": 150_000, "d": 512, "layers": 4, "heads": 8, "kv": 8, "ff": 1376, "tied": True},
    "tinyllama-1.1b": {"v": 32_000, "d": 2048, "layers": 22, "heads": 32, "kv": 4, "ff": 5632, "tied": False},
    "smollm2-135m": {"v": 49_152, "d": 576, "layers": 30, "heads": 9, "kv": 3, "ff": 1536, "tied": True},
    "qwen2.5-0.5b": {"v": 151_936, "d": 896, "layers": 24, "heads": 14, "kv": 2, "ff": 4864, "tied": True},
}
RATIO, GROUP_ROWS = 0.6, 8
Step = Callable[[], None]


def make_model(shape: str, seq_len: int, device: str, precision: str) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    s = SHAPES[shape]
    config = LlamaConfig(
        vocab_size=s["v"], hidden_size=s["d"], intermediate_size=s["ff"], num_hidden_layers=s["layers"],
        num_attention_heads=s["heads"], num_key_value_heads=s["kv"], tie_word_embeddings=s["tied"],
        max_position_embeddings=seq_len, attn_implementation="sdpa",
    )  # fmt: skip
    torch.manual_seed(0)
    with torch.device(device):
        model = LlamaForCausalLM(config)
    return model.to(torch.bfloat16) if precision == "bfloat16" else model


def write_store(root: Path, rows: int, seq_len: int, vocab: int) -> None:
    """Random tokens, and reference losses about as large as an untrained model's."""
    rng = np.random.default_rng(0)
    n, made = rows * seq_len, {}
    ids = rng.integers(0, vocab, n).astype(np.uint16 if vocab <= 2**16 else np.int32)
    losses = (rng.normal(np.log(vocab), 0.5, n)).astype(np.float16).astype(np.float32)
    document = np.arange(n) // 700
    for kind, columns in (("tokens", {"input_id": ids, "document": document}), ("scores", {"ref_loss": losses})):
        folder, types = Folder.at(root / kind), {k: str(c.dtype) for k, c in columns.items()}
        with ShardWriter(folder, shard_name(0), types, n) as writer:
            writer.write(**columns)
            writer.facts = {"rows": rows, "tokens": n}
        s = writer.shard
        shards = [Shard(s.file, 0, s.rows, s.groups, s.tokens, s.bytes, s.footer_sha256)]
        source = {"tokens": made["tokens"]} if kind == "scores" else {}
        manifest = Manifest(kind, seq_len, rows, shards, source, {"columns": types}, {})  # type: ignore[arg-type]
        manifest.save(folder)
        made[kind] = manifest.content_hash


class Arms:
    """The arms of one shape. Each has a model of its own, made when its turn first comes."""

    def __init__(self, args: argparse.Namespace, shape: str, root: Path) -> None:
        self.args, self.shape, self.root = args, shape, root
        self.rows = args.micro * args.accumulate
        self.tokens = self.rows * args.seq_len
        self.settings = TrainingConfig(
            steps=10**6, warmup=0.0, batch_tokens=self.tokens, micro_batch=args.micro, precision=args.precision, lr=1e-4,
            compile=args.compile, activation_checkpointing=args.recompute, sharding=args.sharding,
        )  # fmt: skip
        tokens = TokenSet(root / "tokens")
        self.reader = RowReader(tokens, ScoreSet(root / "scores", tokens), documents=False)
        self.waited = 0.0

    def precision(self) -> Any:
        on = self.args.precision == "bf16_autocast"
        return torch.autocast(self.args.device, torch.bfloat16) if on else contextlib.nullcontext()

    def ours(self, criterion: str) -> Step:
        args = self.args
        selection = SelectionConfig(criterion=criterion, ratio=RATIO, group_rows=min(GROUP_ROWS, args.micro))  # type: ignore[arg-type]
        split = SplitModel(make_model(self.shape, args.seq_len, args.device, args.precision))
        lay_out(split, self.settings, Ranks(), args.device)
        optimizer = build_optimizer(split, self.settings)
        batcher = Batcher(OneSet(self.reader, 0, 2), self.rows, args.micro, selection, False, 0, args.device)
        guard = StepGuard(None, [], 0)
        maker = StepMaker("bench", Objective(split, selection), optimizer, batcher, self.settings, 10**6, 0, guard)
        counts = torch.zeros(2, split.vocab_size, dtype=torch.int64, device=args.device)
        ahead, number = ReadAhead(batcher.step, 10**6, 2), [0]

        def step() -> None:
            number[0] += 1
            started = time.perf_counter()
            batch = ahead.get(number[0])
            self.waited += time.perf_counter() - started
            maker.make(number[0], batch, counts)

        return step

    def naive(self) -> Step:
        """Full logits, a mask by stored reference losses, autograd; blocks compiled like ours."""
        args = self.args
        model = make_model(self.shape, args.seq_len, args.device, args.precision).train()
        lay_out(SplitModel(model), self.settings, Ranks(), args.device)
        optimizer = build_optimizer(model, self.settings)
        order, number = np.random.default_rng(0).permutation(self.reader.tokens.rows), [0]

        def step() -> None:
            at = number[0] * self.rows % (len(order) - self.rows + 1)
            number[0] += 1
            found = self.reader.fetch(order[at : at + self.rows])
            assert found.ref_loss_BT is not None
            ids = torch.from_numpy(found.ids_BT.astype(np.int64)).to(args.device)
            ref = torch.from_numpy(found.ref_loss_BT).to(args.device)
            total = RATIO * self.rows * (args.seq_len - 1)
            for first in range(0, self.rows, args.micro):
                part = slice(first, first + args.micro)
                with self.precision():
                    logits = model(input_ids=ids[part], use_cache=False).logits
                losses = per_token(logits, ids[part])
                mask = top_share(losses.detach() - ref[part][:, 1:].flatten())
                (losses[mask].sum() / total).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0).item()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        return step

    def trainer(self, live_reference: bool) -> Step:
        """transformers.Trainer, made to stop after each step so that the arms can take turns."""
        from transformers import Trainer, TrainingArguments

        args = self.args
        model = make_model(self.shape, args.seq_len, args.device, args.precision)
        reference = make_model(self.shape, args.seq_len, args.device, args.precision).eval() if live_reference else None
        for p in reference.parameters() if reference is not None else ():
            p.requires_grad_(False)
        ids = self.reader.fetch(np.arange(self.reader.tokens.rows)).ids_BT.astype(np.int64)
        data = [{"input_ids": torch.from_numpy(r), "labels": torch.from_numpy(r)} for r in ids]

        class Selecting(Trainer):  # type: ignore[misc, valid-type]
            def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:  # noqa: ARG002
                logits = model(input_ids=inputs["input_ids"], use_cache=False).logits
                losses = per_token(logits, inputs["input_ids"])
                with torch.no_grad():
                    assert reference is not None
                    reference_logits = reference(input_ids=inputs["input_ids"], use_cache=False).logits
                    mask = top_share(losses.detach() - per_token(reference_logits, inputs["input_ids"]))
                return losses[mask].mean()

        compiled = args.compile is True or (args.compile == "auto" and args.device == "cuda")  # as ours is
        how = TrainingArguments(
            output_dir=str(self.root / "trainer"), per_device_train_batch_size=args.micro,
            gradient_accumulation_steps=args.accumulate, max_steps=10**6, bf16=args.precision == "bf16_autocast",
            use_cpu=args.device == "cpu", report_to=[], save_strategy="no", logging_strategy="no", disable_tqdm=True,
            learning_rate=1e-4, max_grad_norm=1.0, optim="adamw_torch_fused", dataloader_pin_memory=args.device != "cpu",
            gradient_checkpointing=args.recompute == "full", torch_compile=compiled,
        )  # fmt: skip
        made = (Selecting if live_reference else Trainer)(model=model, args=how, train_dataset=data)
        return _one_step_at_a_time(made)

    def trunk(self) -> Step:
        """Trunk alone, forward and backward, with the same optimizer: what memory is compared with."""
        args = self.args
        split = SplitModel(make_model(self.shape, args.seq_len, args.device, args.precision))
        split.train()
        lay_out(split, self.settings, Ranks(), args.device)
        optimizer = build_optimizer(split, self.settings)
        ids = torch.randint(0, split.vocab_size, (args.micro, args.seq_len), device=args.device)

        def step() -> None:
            with self.precision():
                split(ids, None, None, lambda hidden: hidden.float().mean()).backward()
            for p in split.parameters():
                p.grad = torch.zeros_like(p) if p.grad is None else p.grad
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        return step

    def make(self, arm: str) -> Step:
        if arm in ("clm", "slm", "random"):
            return self.ours({"clm": "all", "slm": "excess_loss", "random": "random"}[arm])
        if arm == "naive":
            return self.naive()
        return self.trunk() if arm == "trunk" else self.trainer(arm == "trainer slm")


def per_token(logits: Tensor, ids: Tensor) -> Tensor:
    return functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="none")


def top_share(scores: Tensor) -> Tensor:
    return scores >= scores.topk(int(RATIO * len(scores))).values[-1]


def _one_step_at_a_time(trainer: Any) -> Step:
    """Runs the trainer's own loop in a thread that hands over after each optimizer step."""
    import threading

    from transformers import TrainerCallback

    go, done = threading.Semaphore(0), threading.Semaphore(0)
    failure: list[BaseException] = []

    class TakeTurns(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            go.acquire()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            done.release()

    trainer.add_callback(TakeTurns())

    def work() -> None:
        try:
            trainer.train()
        except BaseException as e:
            failure.append(e)
            done.release()

    threading.Thread(target=work, daemon=True).start()

    def step() -> None:
        go.release()
        done.acquire()
        if failure:
            raise failure[0]

    return step


@contextlib.contextmanager
def counting_syncs(device: str) -> Iterator[list[int]]:
    """Counts the warnings that torch gives for each wait of the host for the GPU."""
    found = [0]
    if device != "cuda":
        yield found
        return
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            yield found
            found[0] = sum("synchroniz" in str(w.message) for w in told)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def resident(which: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(which))


def peak_of(step: Step, device: str) -> int:
    """Peak memory of a step: of the GPU's tensors, or resident."""
    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        step()
        return torch.cuda.max_memory_allocated()
    Path("/proc/self/clear_refs").write_text("5")
    step()
    return resident("VmHWM")


def one_shape(args: argparse.Namespace, shape: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        rows = max(64, 4 * args.micro * args.accumulate)
        write_store(root, rows, args.seq_len, SHAPES[shape]["v"])
        arms = Arms(args, shape, root)
        probe = make_model(shape, args.seq_len, args.device, args.precision)
        flops, peak = flops_per_token(probe, args.seq_len), peak_flops(args.device)
        parameters = sum(p.numel() for p in probe.parameters())
        del probe
        found: dict[str, Any] = {"parameters": parameters, "tokens_a_step": arms.tokens, "arms": {}}
        # On a GPU one arm at a time is in memory; on a CPU all are, and take turns step by step.
        groups = [[a] for a in args.arms] * args.rounds if args.device == "cuda" else [args.arms]
        seconds: dict[str, list[float]] = {a: [] for a in args.arms}
        for group in groups:
            steps = {a: arms.make(a) for a in group}
            for name, step in steps.items():
                for _ in range(args.warmup):
                    step()
                table = found["arms"].setdefault(name, {})
                if "peak_bytes" not in table and args.device == "cuda":
                    table["peak_bytes"] = peak_of(step, args.device)
                    with counting_syncs(args.device) as syncs:
                        step()
                    table["host_syncs"] = syncs[0]
            for _ in range(args.steps):
                for name, step in steps.items():
                    wait(args.device)
                    arms.waited, started = 0.0, time.perf_counter()
                    step()
                    wait(args.device)
                    seconds[name].append(time.perf_counter() - started)
                    found["arms"][name].setdefault("loader_seconds", []).append(round(arms.waited, 6))
            del steps, step
            gc.collect()
            if args.device == "cuda":
                torch.cuda.empty_cache()
        for name, taken in seconds.items():
            middle = statistics.median(taken)
            table = found["arms"][name]
            table |= {"seconds": [round(s, 4) for s in taken], "tokens_per_s": round(arms.tokens / middle)}
            table["loader_share"] = round(statistics.median(table.pop("loader_seconds")) / middle, 5)
            if peak and args.precision != "float32":
                table["mfu"] = round(arms.tokens / middle * flops / peak, 4)
        rate = {a: t["tokens_per_s"] for a, t in found["arms"].items()}
        pairs = [("slm", "clm"), ("random", "clm"), ("slm", "naive"), ("slm", "trainer slm"), ("clm", "trainer clm")]
        found["ratios"] = {f"{a} / {b}": round(rate[a] / rate[b], 3) for a, b in pairs if a in rate and b in rate}
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=None)
    parser.add_argument("--arms", nargs="+", default=["clm", "slm", "random", "naive", "trainer slm", "trainer clm"])
    parser.add_argument("--precision", default="float32", choices=["float32", "bf16_autocast", "bfloat16"])
    parser.add_argument("--seq-len", type=int, default=256)
    parser.add_argument("--micro", type=int, default=8, help="rows of a micro-batch")
    parser.add_argument("--accumulate", type=int, default=1, help="micro-batches of a step")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=None, help="default: on a GPU")
    parser.add_argument("--recompute", default="off", choices=["off", "selective", "full"])
    parser.add_argument("--sharding", default="auto", choices=["auto", "full"], help="full: over this one process")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=1, help="on a GPU: turns of each arm")
    parser.add_argument("--warmup", type=int, default=4, help="the first 3 steps log more: selection beside random selection")
    parser.add_argument("--memory", action="store_true", help="on a CPU: the peak of one arm, in a process of its own")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/step-cpu.json"))
    args = parser.parse_args()
    args.compile = "auto" if args.compile is None else args.compile
    shapes = args.shapes or (["cpu-32k", "cpu-150k"] if args.device == "cpu" else list(SHAPES)[3:])
    figures: dict[str, Any] = {"command": " ".join(["python", *sys.argv]), "torch": torch.__version__}
    figures |= {"threads": torch.get_num_threads(), "settings": {k: str(v) for k, v in vars(args).items()}}
    if args.device == "cuda":
        figures["gpu"] = torch.cuda.get_device_name()
    if args.memory:
        with tempfile.TemporaryDirectory() as folder:
            write_store(Path(folder), 64, args.seq_len, SHAPES[shapes[0]]["v"])
            step = Arms(args, shapes[0], Path(folder)).make(args.arms[0])
            step()
            step()
            print(peak_of(step, args.device))
        return
    for shape in shapes:
        figures[shape] = one_shape(args, shape)
        for arm, table in figures[shape]["arms"].items():
            shown = {k: v for k, v in table.items() if k != "seconds"}
            print(f"{shape:16} {arm:12} {shown}", flush=True)
        print(shape, figures[shape]["ratios"], flush=True)
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
