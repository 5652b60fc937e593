"""The training loop: read a step's rows, train on the chosen tokens, log, evaluate, save. One loop for every stage."""

from __future__ import annotations

import contextlib
import math
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from slmctl.config import SelectionConfig, TrackingConfig, TrainingConfig, rows_per_step, total_steps
from slmctl.console import progress as progress_bar
from slmctl.console import say, warn
from slmctl.errors import ConfigError, Interrupted, MismatchError, TrainingError
from slmctl.files import publishing
from slmctl.model.loading import save_model
from slmctl.model.split import SplitModel
from slmctl.signals import deferring
from slmctl.store.read_ahead import ReadAhead
from slmctl.training import checkpoint
from slmctl.training.alignment import AlignmentWatch
from slmctl.training.batches import Batcher, RowSource, StepBatch, mix_seed
from slmctl.training.flops import flops_per_token, peak_flops
from slmctl.training.optim import build_optimizer, lr_at, warmup_steps
from slmctl.training.selective import MicroResult, SelectiveLM
from slmctl.training.telemetry import Log, Trackers, loss_metrics

Evaluator = Callable[[SplitModel], dict[str, float]]
"""Held-out loss (nats a token) by set name."""


@dataclass
class Run:
    """All that one training run needs. `directory` is its own."""

    name: str
    directory: Path
    model: SplitModel
    tokenizer: Any
    settings: TrainingConfig
    selection: SelectionConfig
    source: RowSource
    seq_len: int
    seed: int
    device: str
    evaluate: Evaluator
    tracking: TrackingConfig
    keep_best_on: str | None = None
    made_from: dict[str, Any] = field(default_factory=dict)
    """What the run depends on, by content: a checkpoint names it, and is not loaded into another run."""


def train(run: Run) -> None:
    """Trains to the end of the budget and writes `model/`. Resumes from the newest whole checkpoint.

    Raises `TrainingError` on a non-finite loss or gradient (the weights of the last checkpoint are untouched),
    `MismatchError` where live and reference losses look misaligned, `Interrupted` after saving on a signal.
    """
    Trainer(run).train()


class Trainer:
    def __init__(self, run: Run) -> None:
        self.run = run
        self.steps = total_steps(run.settings, run.seq_len, run.source.rows)
        self.module = SelectiveLM(run.model, run.selection)
        self.optimizer = build_optimizer(run.model, run.settings)
        self.counts = torch.zeros(2, run.model.vocab_size, dtype=torch.int64)  # seen and selected, by token id
        self.checkpoints = run.directory / "checkpoints"
        found = checkpoint.load_latest(self.checkpoints, run.model, self.optimizer, self.counts, run.made_from)
        self.progress = found or checkpoint.Progress()
        rows = rows_per_step(run.settings, run.seq_len)
        self.batcher = Batcher(
            run.source, rows, run.settings.micro_batch_rows, run.selection, run.model.intra_document_mask, run.seed, run.device
        )
        if rows > run.source.rows:
            size = f"{run.source.rows} rows ({run.source.rows * run.seq_len:,} tokens)"
            count = f"{self.steps} step{'s' * (self.steps > 1)}"
            warn(f"{run.name}: an epoch has {size}, a step {rows} rows: only {count}, each repeating rows. Lower batch_tokens.")
        if self.steps <= warmup_steps(run.settings, self.steps):
            raise ConfigError(
                f"{run.name}: warmup {run.settings.warmup:g} takes all of the {self.steps} steps, so lr never reaches its peak. "
                "Give it as a share (below 1), or as fewer steps."
            )
        self.ahead = ReadAhead(self.batcher.step, self.steps, run.settings.loader_threads)
        self.flops = flops_per_token(run.model.model, run.seq_len)
        self.peak = peak_flops(run.device)
        self.watch = AlignmentWatch(steps=min(3, self.steps - self.progress.step))

    def train(self) -> None:
        run, progress = self.run, self.progress
        last = progress.step or -1  # a run that starts anew logs its step 0 anew
        self.metrics = Log(run.directory / "metrics.jsonl", last)
        self.evals = Log(run.directory / "evals.jsonl", last)
        self.trackers = Trackers(run.tracking, run.directory, run.name, progress.step)
        if progress.step:
            say(f"{run.name}: resuming after step {progress.step} of {self.steps}")
        try:
            with deferring() as stop, progress_bar(run.name, self.steps, "steps") as ticker:
                ticker.advance(progress.step)
                if progress.step == 0:
                    self.evaluate()
                while progress.step < self.steps:
                    record = self.step(progress.step + 1)
                    ticker.advance(1, f"loss {record['loss_selected'] or math.nan:.3f}")
                    due_eval = run.settings.eval_every and progress.step % run.settings.eval_every == 0
                    if due_eval or progress.step == self.steps:
                        self.evaluate()
                    due_save = run.settings.save_every and progress.step % run.settings.save_every == 0
                    if due_save or stop or progress.step == self.steps:
                        self.save()
                    if stop:
                        break
            if stop.signum is not None:
                saved = checkpoint.directory_of(self.checkpoints, progress.step)
                raise Interrupted(
                    stop.signum, f"stopped after step {progress.step}; saved {saved}. Run again to go on from there."
                )
        except BaseException:
            self.trackers.close(failed=True)
            raise
        else:
            self.trackers.close(failed=False)
        finally:
            self.ahead.close()
            run.source.close()
            self.metrics.close()
            self.evals.close()
        self.export()

    def step(self, step: int) -> dict[str, Any]:
        """One optimizer step; returns its metrics record."""
        started = time.perf_counter()
        run, settings = self.run, self.run.settings
        torch.manual_seed(mix_seed(run.seed, step))  # dropout, if the model has any, depends on the step alone
        batch = self.ahead.get(step)
        results = self.forward_backward(step, batch)
        loss = sum(float(r.loss.detach()) for r in results)
        clip = settings.grad_clip or math.inf
        grad_norm = float(torch.nn.utils.clip_grad_norm_(run.model.parameters(), clip))
        lr = lr_at(step, self.steps, settings)
        figures, shifted = loss_metrics(batch, results)
        if not (math.isfinite(loss) and math.isfinite(grad_norm)) or not math.isfinite(figures["live_mean"] or 0.0):
            self.stop_on_nonfinite(step, loss, grad_norm, figures["live_mean"])
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.count(batch, results)
        progress = self.progress
        progress.step = step
        progress.tokens_seen += batch.tokens
        progress.tokens_selected += batch.selected
        seconds = time.perf_counter() - started
        rate = batch.tokens / seconds
        record = {
            "step": step,
            "tokens_seen": progress.tokens_seen,
            "tokens_selected": progress.tokens_selected,
            **figures,
            "loss": loss,
            "grad_norm": grad_norm,
            "lr": lr,
            "seconds": seconds,
            "tokens_per_s": rate,
            "mfu": rate * self.flops / self.peak if self.peak and settings.precision != "float32" else None,
        }
        self.metrics.write(record)
        self.trackers.scalars(step, record, "train")
        if step % settings.log_every == 0 or step == self.steps:
            unselected = figures["loss_unselected"]
            rest = f" unselected {unselected:.4f}" if unselected is not None else ""
            speed = f"lr {lr:.2e} grad {grad_norm:.3f} {rate:,.0f} tokens/s"
            say(f"{run.name} step {step}/{self.steps}: loss {loss:.4f}{rest} {speed}")
        if shifted is not None:
            self.judge(shifted, batch.tokens)
        return record

    def forward_backward(self, step: int, batch: StepBatch) -> list[MicroResult]:
        run = self.run
        run.model.train()
        if run.settings.precision == "bf16_autocast":
            precision: Any = torch.autocast(run.device, torch.bfloat16)
        else:
            precision = contextlib.nullcontext()
        results = []
        for micro in self.batcher.micro_batches(step, batch):
            with precision:
                result = self.module(micro, max(1, batch.selected))
            result.loss.backward()
            results.append(result)
        return results

    def stop_on_nonfinite(self, step: int, loss: float, grad_norm: float, live_mean: float) -> None:
        found = checkpoint.all_checkpoints(self.checkpoints)
        last = f"the last good checkpoint is {found[-1]}" if found else "no checkpoint was saved yet"
        raise TrainingError(
            f"{self.run.name}: step {step} is not finite (loss {loss}, gradient norm {grad_norm}, live loss {live_mean}); "
            f"the step was not taken, and {last}. Lower lr, raise warmup, or use precision: float32, and run again: a changed "
            "setting starts this run anew and keeps its old folder under stale/."
        )

    def judge(self, shifted: dict[int, float], tokens: int) -> None:
        verdict = self.watch.add(shifted, tokens)
        if verdict in (None, "ok"):
            return
        listing = ", ".join(f"{s:+d}: {r:.2f}" for s, r in self.watch.mean().items())
        if verdict == "low":
            warn(f"{self.run.name}: live and reference losses correlate weakly over the first steps (by shift {listing}).")
            return
        message = (
            f"{self.run.name}: live and reference losses look misaligned: they correlate best at another shift than 0 "
            f"({listing}). Make the scores anew with `slmctl score`; alignment_check: warn goes on all the same."
        )
        if self.run.settings.alignment_check == "stop":
            raise MismatchError(message)
        warn(message)

    def count(self, batch: StepBatch, results: list[MicroResult]) -> None:
        """Counts by token id what could be and what was trained on."""
        ids = batch.ids_BT.long()
        chosen: Tensor = torch.cat([r.selected_BT for r in results]).cpu()
        for i, mask in enumerate((batch.target_BT, chosen)):
            self.counts[i] += torch.bincount(ids[mask], minlength=self.counts.shape[1])

    def evaluate(self) -> None:
        run, progress = self.run, self.progress
        losses = run.evaluate(run.model)
        if not all(math.isfinite(v) for v in losses.values()):
            raise TrainingError(
                f"{run.name}: held-out loss is not finite at step {progress.step} ({losses}). Check the base model and lr."
            )
        record = {
            "step": progress.step,
            "tokens_seen": progress.tokens_seen,
            "tokens_selected": progress.tokens_selected,
            "heldout": losses,
        }
        self.evals.write(record)
        self.trackers.scalars(progress.step, losses, "heldout")
        listing = ", ".join(f"{k} {v:.4f}" for k, v in losses.items())
        say(f"{run.name} step {progress.step}/{self.steps}: held-out {listing}")
        if run.keep_best_on is not None and progress.step > 0:
            loss = losses[run.keep_best_on]
            if progress.best is None or loss < progress.best["loss"]:
                progress.best = {"step": progress.step, "loss": loss}
                with publishing(run.directory / "best") as temporary:
                    save_model(run.model.model, run.tokenizer, temporary)

    def save(self) -> Path:
        run = self.run
        return checkpoint.save(
            self.checkpoints, run.settings.keep_last, self.progress, run.model, self.optimizer, self.counts, run.made_from
        )

    def export(self) -> None:
        """Writes `model/`, an HF model directory, and token_counts.parquet (seen and selected, by token id)."""
        run = self.run
        final = run.directory / "model"
        with publishing(final) as temporary:
            if run.keep_best_on is not None and self.progress.best is not None:
                shutil.copytree(run.directory / "best", temporary)
            else:
                save_model(run.model.model, run.tokenizer, temporary)
        seen, selected = self.counts.numpy()
        table = pa.table({"token_id": np.arange(len(seen), dtype=np.int32), "seen": seen, "selected": selected})
        with publishing(run.directory / "token_counts.parquet") as temporary:
            pq.write_table(table, temporary)
