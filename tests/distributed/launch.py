"""Ranks as real processes, started cheaply: each is forked from a clean server that has imported everything beforehand.

What a rank does to itself on the way (`AtStep`, `FullDisk`, ...) is told by small objects, which are called before its command.
Run as a script under torchrun, it kills one rank of the first attempt: `launch.py RANK STEP COMMAND...`.
"""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import random
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
import torch.distributed.checkpoint.state_dict  # here and below: what a rank would else spend seconds on
import torch.distributed.fsdp
import yaml
from safetensors.torch import load_file
from torch.distributed.checkpoint import filesystem, state_dict_loader, state_dict_saver  # noqa: F401
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from transformers.models.llama import modeling_llama  # noqa: F401

from slmctl.cli.process import main
from slmctl.evaluation import heldout
from slmctl.stages import evaluate, prepare, pretrain, run, score, train_base, train_ref  # noqa: F401
from slmctl.training import loop
from slmctl.training.checkpoint_files import all_checkpoints
from slmctl.training.telemetry import read_log
from slmctl.training.validation import Validation

QUIET = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
SEQ_LEN = 32
TIMINGS = {"seconds", "loader_seconds", "tokens_per_s", "memory_bytes", "mfu"}
Before = Callable[[], None]


# --- processes ---


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def rank_variables(rank: int, size: int, local: int, port: int) -> dict[str, str]:
    """What torchrun would set, with `local` ranks on each machine."""
    return {
        **{"RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank % local), "LOCAL_WORLD_SIZE": str(local)},
        **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)},
    }


@contextmanager
def variables(wanted: dict[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ |= wanted
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _work(commands: Sequence[Sequence[str]], env: dict[str, str], log: Path, before: Sequence[Before]) -> None:
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.environ |= env
    torch.set_num_threads(1)
    for each in before:
        each()
    for number, words in enumerate(commands):
        try:
            main(list(words))
        except SystemExit as e:
            if e.code or number == len(commands) - 1:
                raise


def start(commands: Sequence[Sequence[str]], env: dict[str, str], log: Path, before: Sequence[Before] = ()) -> Any:
    """Starts a process that runs commands of slmctl, one after the other; its output is added to `log`."""
    here = Path(__file__).resolve().parent
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["launch"])
    with variables({**QUIET, "PYTHONPATH": f"{here}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}):
        process = context.Process(target=_work, args=(commands, env, log, before))
        process.start()
    return process


@dataclass
class Ended:
    """How one rank ended: its exit code, what it said, and when it ended (seconds since the start)."""

    code: int
    said: str
    seconds: float


def start_ranks(
    folder: Path, size: int, *commands: Sequence[str], local: int | None = None, before: Sequence[Before] = ()
) -> list[Any]:
    """Starts `size` ranks (one: without any of torchrun's variables). Their output goes to `folder`/rank-N.log."""
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    started = []
    for rank in range(size):
        env = rank_variables(rank, size, local or size, port) if size > 1 else {}
        log = folder / f"rank-{rank}.log"
        log.unlink(missing_ok=True)
        started.append(start(commands, env, log, before))
    return started


def wait_for(folder: Path, processes: list[Any], patience: float = 60.0) -> list[Ended]:
    """Waits until all have ended; those that do not are killed, and counted as failed."""
    began = time.monotonic()
    ended: dict[int, float] = {}
    try:
        while len(ended) < len(processes) and time.monotonic() - began < patience:
            for rank, process in enumerate(processes):
                if rank not in ended and not process.is_alive():
                    ended[rank] = time.monotonic() - began
            time.sleep(0.005)
    finally:
        for process in processes:
            if process.is_alive():
                process.kill()
            process.join()
    logs = [(folder / f"rank-{r}.log") for r in range(len(processes))]
    said = [log.read_text() if log.exists() else "" for log in logs]
    assert len(ended) == len(processes), f"ranks hang: only {sorted(ended)} have ended\n" + "\n".join(said)
    return [Ended(p.exitcode, said[r], ended[r]) for r, p in enumerate(processes)]


def ranks(
    folder: Path, size: int, *commands: Sequence[str], local: int | None = None, before: Sequence[Before] = ()
) -> list[Ended]:
    return wait_for(folder, start_ranks(folder, size, *commands, local=local, before=before))


def succeed(
    folder: Path, size: int, *commands: Sequence[str], local: int | None = None, before: Sequence[Before] = ()
) -> list[Ended]:
    """The same, and all must end well."""
    found = ranks(folder, size, *commands, local=local, before=before)
    assert [e.code for e in found] == [0] * size, "\n".join(e.said for e in found)
    return found


# --- what happens to a rank on the way ---


def this_rank() -> int:
    return int(os.environ.get("RANK", "0"))


@dataclass
class AtStep:
    """Sends a signal to rank `rank` as it begins step `step`; one that asks to stop is answered after the step that follows."""

    step: int
    signum: int
    rank: int = 0

    def __call__(self) -> None:
        if this_rank() != self.rank:
            return
        original = loop.Trainer.step

        def step(trainer: loop.Trainer, number: int, signum: int | None) -> Any:
            if number == self.step:
                signal.raise_signal(self.signum)  # at once, in this thread
            return original(trainer, number, signum)

        loop.Trainer.step = step  # type: ignore[method-assign]


@dataclass
class InEvaluation:
    """Sends a signal to rank `rank` after the first batch of the evaluation after step `step`."""

    step: int
    signum: int
    rank: int = 0

    def __call__(self) -> None:
        if this_rank() != self.rank:
            return
        original, losses = Validation.evaluate, heldout.row_losses
        due = []

        def evaluation(validation: Validation) -> None:
            due[:] = [1] * (validation.progress.step == self.step)
            original(validation)

        def row_losses(*given: Any) -> Any:
            if due and due.pop():
                signal.raise_signal(self.signum)  # at once, in this thread
            return losses(*given)

        Validation.evaluate = evaluation  # type: ignore[method-assign]
        heldout.row_losses = row_losses


@dataclass
class FullDisk:
    """Fails what rank `rank` writes for the checkpoint of step `step`."""

    step: int
    rank: int

    def __call__(self) -> None:
        original = filesystem.FileSystemWriter.write_data

        def write_data(writer: Any, *args: Any, **named: Any) -> Any:
            if this_rank() == self.rank and f"step-{self.step:08d}" in str(writer.path):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return original(writer, *args, **named)

        filesystem.FileSystemWriter.write_data = write_data  # type: ignore[method-assign]


@dataclass
class SlowSave:
    """Makes rank `rank` slow at writing checkpoints."""

    seconds: float
    rank: int

    def __call__(self) -> None:
        original = filesystem.FileSystemWriter.write_data

        def write_data(writer: Any, *args: Any, **named: Any) -> Any:
            if this_rank() == self.rank:
                time.sleep(self.seconds)
            return original(writer, *args, **named)

        filesystem.FileSystemWriter.write_data = write_data  # type: ignore[method-assign]


@dataclass
class SaveAgain:
    """Has a run load its newest checkpoint, save it to `root`, and end."""

    root: Path

    def __call__(self) -> None:
        def steps(trainer: loop.Trainer) -> None:
            trainer.checkpoints.root = self.root
            trainer.checkpoints.save(trainer.progress, trainer.state)
            trainer.checkpoints.wait()
            failure = trainer.checkpoints.failed()
            trainer.ranks.barrier()
            raise failure or SystemExit(0)

        loop.Trainer._steps = steps  # type: ignore[method-assign]


# --- a tiny pipeline ---


def sentence(rng: random.Random) -> str:
    """Partly predictable text, so that losses differ between tokens and two models agree on which are hard."""
    a, b = rng.randint(0, 9), rng.randint(0, 9)
    noise = "".join(rng.choices("QWXZ", k=rng.randint(0, 5)))
    return f"the sum of {a} and {b} is {a + b} {noise} and so it goes on."


def write_texts(directory: Path) -> None:
    directory.mkdir(parents=True)
    for name, n in {"curated": 60, "corpus": 200, "target": 12, "general": 12}.items():
        rng = random.Random(name)
        lines = [{"text": " ".join(sentence(rng) for _ in range(rng.randint(1, 4)))} for _ in range(n)]
        (directory / f"{name}.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines), encoding="utf-8")


def settings(texts: Path, arms: dict[str, Any]) -> dict[str, Any]:
    common = {"batch_tokens": 8 * SEQ_LEN, "micro_batch": 2, "precision": "float32", "lr": 5e-3, "log_every": 1000}
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    base = {**common, "steps": 40, "batch_tokens": 16 * SEQ_LEN, "micro_batch": 16, "lr": 2e-2}
    return {
        "name": "tiny",
        "output_dir": "",
        "device": "cpu",
        "model": {"scratch": {"vocab_size": 300, **shape, "train": base}},
        "data": {
            "seq_len": SEQ_LEN,
            "shard_bytes": 12_000,
            "curated": {"path": str(texts / "curated.jsonl")},
            "corpus": {"path": str(texts / "corpus.jsonl")},
            "heldout": {n: {"path": str(texts / f"{n}.jsonl")} for n in ("target", "general")},
        },
        "reference": {**common, "steps": 6},
        "score": {"precision": "float32", "batch_rows": 16},
        "pretrain": {**common, "steps": 6, "eval_every": 3, "eval_tokens": 8 * SEQ_LEN, "save_every": 0, "arms": arms},
        "eval": {"target": "target", "batch_rows": 4},
        "tracking": {"tensorboard": False},
    }


def write_config(root: Path, output_dir: Path, wanted: dict[str, Any]) -> Path:
    path = root / f"{output_dir.name}.yaml"
    path.write_text(yaml.safe_dump({**wanted, "output_dir": str(output_dir)}, sort_keys=False), encoding="utf-8")
    return path


# --- what a run leaves ---


@dataclass
class Left:
    """All that a run leaves, but for its timings."""

    metrics: list[dict[str, Any]]
    evals: list[dict[str, Any]]
    counts: dict[str, list[int]]
    weights: dict[str, torch.Tensor] = field(repr=False)


def left_by(directory: Path) -> Left:
    metrics = [{k: v for k, v in r.items() if k not in TIMINGS} for r in read_log(directory / "metrics.jsonl")]
    counts = pq.read_table(directory / "token_counts.parquet").to_pydict()
    weights = load_file(directory / "model" / "model.safetensors")
    return Left(metrics, read_log(directory / "evals.jsonl"), counts, weights)


def differences(a: Left, b: Left) -> list[str]:
    """What is not equal, to the bit."""
    found = [name for name in ("metrics", "evals", "counts") if getattr(a, name) != getattr(b, name)]
    if a.weights.keys() != b.weights.keys():
        return [*found, "names of weights"]
    return [*found, *[n for n, w in a.weights.items() if not torch.equal(w, b.weights[n])]]


def checkpoint_tensors(directory: Path, scratch: Path) -> dict[str, torch.Tensor]:
    """A checkpoint's tensors by name, whoever wrote it."""
    dcp_to_torch_save(directory, scratch)
    found: dict[str, torch.Tensor] = {}

    def flatten(prefix: str, value: Any) -> None:
        if isinstance(value, torch.Tensor):
            found[prefix] = value
        elif isinstance(value, dict):
            for key, part in value.items():
                flatten(f"{prefix}/{key}", part)

    flatten("", torch.load(scratch, weights_only=False))
    return found


def saved_steps(directory: Path) -> list[int]:
    return [int(d.name.removeprefix("step-")) for d in all_checkpoints(directory / "checkpoints")]


def temporaries(root: Path) -> list[Path]:
    return [f for f in root.rglob("*") if f.name.startswith((".tmp-", ".replaced-"))]


if __name__ == "__main__":
    rank, step, *words = sys.argv[1:]
    if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        AtStep(int(step), signal.SIGKILL, int(rank))()
    main(words)
