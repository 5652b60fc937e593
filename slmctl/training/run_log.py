"""What a run writes and says of its steps: metrics.jsonl, trackers, the dashboard and printed lines."""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Iterator
from typing import Any

import torch

from slmctl.model.flops import flops_per_token, peak_flops
from slmctl.system.console import say, say_if_new
from slmctl.system.cpu_contention import CpuContention
from slmctl.training.dashboard import Monitor, dashboard
from slmctl.training.run import Run
from slmctl.training.state import Progress
from slmctl.training.step import StepResult
from slmctl.training.telemetry import Log, Trackers, not_finite

SETTLING, CROWDED = 10.0, 0.25
"""Seconds of training after which it is said that other processes have the cores, and for which share of the time."""


class RunLog:
    """Is made before the model is laid out over ranks, of which each then holds but a part of the weights that are counted."""

    def __init__(self, run: Run, steps: int) -> None:
        self.run, self.ranks, self.steps = run, run.ranks, steps
        self.flops = flops_per_token(run.model.model, run.seq_len)
        self.peak = peak_flops(run.device)
        self.parameters = sum(p.numel() for p in run.model.parameters())
        self.told_of_others = False

    @contextlib.contextmanager
    def opened(self, progress: Progress) -> Iterator[None]:
        """Within it the run's files are open. What they say of steps after the one that it goes on from is cut off."""
        run, first = self.run, self.ranks.is_first
        last = progress.step or -1  # a run that starts anew logs its step 0 anew
        with contextlib.ExitStack() as stack:
            self.metrics = stack.enter_context(Log(run.directory / "metrics.jsonl", last, on=first))
            self.evals = stack.enter_context(Log(run.directory / "evals.jsonl", progress.evaluated, on=first))
            self.trackers = Trackers(run.tracking, run.directory, run.name, progress.step, self._facts(), on=first)
            stack.push(lambda kind, *_: self.trackers.close(failed=kind is not None))
            yield

    @contextlib.contextmanager
    def shown(self, progress: Progress) -> Iterator[None]:
        """Within it the dashboard is shown, as `live`."""
        with dashboard(self.run.name, self.steps, progress.step, self.ranks.size, progress.skipped) as live:
            self.live: Monitor = live
            yield

    def _facts(self) -> dict[str, Any]:
        """What this run is, for those who look at its curves beside others'."""
        run = self.run
        return {
            **run.facts,
            "run": run.name,
            **run.settings.model_dump(mode="json", exclude={"arms", "selection"}),
            "selection": run.selection.model_dump(mode="json"),
            **{"seq_len": run.seq_len, "seed": run.seed, "steps": self.steps, "device": run.device, "ranks": self.ranks.size},
            "parameters": self.parameters,
        }

    def step(self, progress: Progress, result: StepResult, seconds: float, loader_seconds: float) -> None:
        """Writes down and shows what became of a step, taken or not."""
        rate = result.tokens / seconds
        record = {
            "step": progress.step,
            "tokens_seen": progress.tokens_seen,
            "tokens_selected": progress.tokens_selected,
            **result.metrics,
            "loss": result.loss,
            "grad_norm": result.grad_norm,
            "lr": result.lr,
            "skipped": result.refused,
            "nonfinite": not_finite(
                {"loss": result.loss, "grad_norm": result.grad_norm, "live_mean": result.metrics["live_mean"]}
            ),
            "seconds": seconds,
            "loader_seconds": loader_seconds,
            "tokens_per_s": rate,
            "memory_bytes": memory_bytes(self.run.device),
            "mfu": self._mfu(rate),
        }
        self.metrics.write(record)
        marks = {"skipped": int(result.refused is not None), "nonfinite": int(result.refused == "nonfinite")}
        self.trackers.scalars(progress.step, {**record, **marks}, "train")
        self.live.step(record)

    def _mfu(self, tokens_per_s: float) -> float | None:
        if not self.peak or self.run.settings.precision == "float32":
            return None
        return tokens_per_s * self.flops / (self.peak * self.ranks.size)

    def say_step(self, step: int, result: StepResult, seconds: float) -> None:
        """A line, every `log_every` steps."""
        if step % self.run.settings.log_every == 0 or step == self.steps:
            unselected = result.metrics["loss_unselected"]
            rest = f" unselected {unselected:.4f}" if unselected is not None else ""
            speed = f"lr {result.lr:.2e} grad {result.grad_norm:.3f} {result.tokens / seconds:,.0f} tokens/s"
            say(f"{self.run.name} step {step}/{self.steps}: loss {result.loss:.4f}{rest} {speed}")

    def evaluated(self, record: dict[str, Any]) -> None:
        """Writes down and shows the held-out losses after a step, a record of evals.jsonl."""
        step, losses = record["step"], record["heldout"]
        self.evals.write(record)
        self.trackers.describe(losses)
        self.trackers.scalars(step, losses, "heldout")
        self.live.evaluated(record)
        listing = ", ".join(f"{k} {v:.4f}" for k, v in losses.items())
        say(f"{self.run.name} step {step}/{self.steps}: held-out {listing}")

    def tell_of_others(self, contention: CpuContention) -> None:
        """Says once why training is slow, where other processes have taken the cores from it for a while."""
        if self.told_of_others or contention.seconds() < SETTLING or self.run.device != "cpu":
            return
        self.told_of_others = True
        share = contention.share()
        if share is not None and share > CROWDED:
            say_if_new(
                "crowding",
                "crowded",
                f"note: {self.run.name}: for {share:.0%} of the time so far, it waited for a core that other processes use, and "
                "trains the slower for it. Stop them where you can, and it speeds up.",
            )


def memory_bytes(device: str) -> int:
    """The most memory that was taken so far: the GPU's by tensors, else the process's resident memory."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
