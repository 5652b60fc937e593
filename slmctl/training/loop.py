"""The training loop: read a step's rows, train on the chosen tokens, log, evaluate, save. One loop for every stage."""

from __future__ import annotations

import contextlib
import math
import resource
import shutil
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from slmctl.config.selection import SelectionConfig
from slmctl.config.training import TrackingConfig, TrainingConfig, rows_per_step, total_steps
from slmctl.corpus.tokenizer import Tokenizer
from slmctl.evaluation.heldout import Measured
from slmctl.evaluation.measures import measure_of, why_unlike
from slmctl.model.flops import flops_per_token, peak_flops
from slmctl.model.split import SplitModel
from slmctl.store.read_ahead import ReadAhead
from slmctl.system.console import say, say_news, waiting, warn
from slmctl.system.crowding import Crowding
from slmctl.system.errors import Interrupted, MismatchError, TrainingError
from slmctl.system.files import publishing
from slmctl.system.signals import StopRequest, deferring
from slmctl.system.threads import Record
from slmctl.training.alignment import ADVICE, SHIFTS, WATCHED, AlignmentWatch
from slmctl.training.batches import Batcher, RowSource
from slmctl.training.budget import check_budget, warn_of_few_rows
from slmctl.training.checkpoint import Checkpoints
from slmctl.training.checkpoint_files import all_checkpoints, directory_of
from slmctl.training.dashboard import dashboard
from slmctl.training.environment import write_environment
from slmctl.training.export import export_model
from slmctl.training.micro_batch import fitting_rows
from slmctl.training.optim import build_optimizer
from slmctl.training.parallel import lay_out
from slmctl.training.ranks import Ranks, machine
from slmctl.training.safety import HangWatch, StepGuard
from slmctl.training.selective import Objective
from slmctl.training.state import Progress, TrainingState
from slmctl.training.step import SIGNALS, StepMaker, StepResult
from slmctl.training.telemetry import Log, Trackers, not_finite
from slmctl.training.thread_number import settle_threads, training_pass

Beat = Callable[[str, int, int], None]
"""Is told, before each batch of an evaluation, the set's name, its batches that are done, and all of them."""
Evaluator = Callable[[SplitModel, Ranks, Beat], dict[str, Measured]]
"""Held-out loss by set name and what it was measured on, worked out by all ranks together, which call the beat equally often."""


@dataclass
class Run:
    """All that one training run needs. `directory` is its own."""

    name: str
    directory: Path
    model: SplitModel
    tokenizer: Tokenizer
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
    facts: dict[str, Any] = field(default_factory=dict)
    """What is told of the pipeline to those who look at the run's curves."""
    ranks: Ranks = Ranks()  # noqa: RUF009 - frozen
    resume_from: int | None = None
    """Step of the checkpoint to go on from; None takes the newest."""
    threads: Record | None = None
    """Where it is kept how many threads this kind of run computes with on a CPU."""
    on_stop: Callable[[int], None] = lambda _: None
    """Told, on the first rank, of the signal that all ranks have agreed to stop for."""


SETTLING, CROWDED = 10.0, 0.25
"""Seconds of training after which it is said that other processes have the cores, and for which share of the time."""
LOST = ("Dist", "gloo", "Gloo", "NCCL", "Connection", "process group", "Timed out", "timed out")
"""What the errors of a collective say whose other ranks have gone."""


def train(run: Run) -> None:
    """Trains to the end of the budget and writes `model/`. Resumes from the newest whole checkpoint.

    Raises `TrainingError` on a loss or gradient that is not finite (the step is not taken), `MismatchError` where live and
    reference losses look misaligned, `Interrupted` after saving on a signal.
    """
    try:
        Trainer(run).train()
    except RuntimeError as e:
        if run.ranks.size == 1 or not any(sign in f"{type(e).__name__} {e}" for sign in LOST):
            raise
        reason = str(e).strip().split("\n")[0]
        raise TrainingError(
            f"{run.name}: rank {run.ranks.rank} of {run.ranks.size} cannot go on, perhaps since another has ended ({reason}). "
            "Run again, to go on from the last checkpoint; torchrun --max-restarts does so by itself."
        ) from e


class _BrokenOffError(Exception):
    """An evaluation was broken off between two batches, on all ranks."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


class Trainer:
    def __init__(self, run: Run) -> None:
        self.run, self.ranks = run, run.ranks
        settings = run.settings
        self.steps = total_steps(settings, run.seq_len, run.source.rows)
        check_budget(run.name, settings, run.selection, run.seq_len, run.source.rows, run.ranks.size)
        warn_of_few_rows(run.name, settings, run.seq_len, run.source.rows)
        if run.model.draws:
            say(f"{run.name}: the model has dropout; rows are computed one by one, so that masks follow from row and step alone")
        self.flops = flops_per_token(run.model.model, run.seq_len)
        self.peak = peak_flops(run.device)
        self.parameters = sum(p.numel() for p in run.model.parameters())
        lay_out(run.model, settings, run.ranks, run.device)
        self.optimizer = build_optimizer(run.model, settings)
        self.counts = torch.zeros(2, run.model.vocab_size, dtype=torch.int64, device=run.device)  # seen and selected, by token id
        self.state = TrainingState(run.model, self.optimizer, self.counts)
        self.checkpoints = Checkpoints(
            run.directory / "checkpoints", run.made_from, settings.keep_last, settings.keep_every, run.ranks
        )
        with waiting(f"{run.name}: reading the checkpoint"):
            self.progress = self.checkpoints.load(self.state, run.resume_from) or Progress()
        self.saved = self.progress.step
        self.stop = StopRequest()
        self.told_of_others = False
        objective = Objective(run.model, run.selection, run.ranks)
        objective.threshold = self.progress.threshold
        self.batcher = self._batcher(objective)
        guard = StepGuard(settings.skip_spikes, self.progress.recent_losses, self.progress.skipped_in_a_row)
        self.maker = StepMaker(run.name, objective, self.optimizer, self.batcher, settings, self.steps, run.seed, guard)
        row_flops = self.flops * run.seq_len
        measured = partial(training_pass, objective, self.batcher, self.maker.precision, row_flops)
        settle_threads(run.name, self.progress, self.batcher, run.threads, measured)
        self.ahead = ReadAhead(self.batcher.step, self.steps, settings.loader_threads)
        self.watch = AlignmentWatch(steps=min(WATCHED, self.steps - self.progress.step))

    def _batcher(self, objective: Objective) -> Batcher:
        """Cuts steps; with `micro_batch: auto` into what memory holds, as the run found it when it began on this machine."""
        run, settings = self.run, self.run.settings
        before, self.progress.machine = self.progress.machine, machine(run.device, self.ranks)
        if before not in ({}, self.progress.machine):
            if run.selection.scope == "group":
                self.progress.micro_batch = None  # it may not fit here, and changes nothing
            elif before["ranks"] != self.ranks.size:
                warn(
                    f"{run.name}: it was trained by {before['ranks']} ranks so far, and goes on with {self.ranks.size}: what "
                    f"scope {run.selection.scope} selects depends on that."
                )
        rows, group_rows = rows_per_step(settings, run.seq_len), run.selection.group_rows
        given = settings.micro_batch if settings.micro_batch != "auto" else self.progress.micro_batch or group_rows
        batcher = Batcher(
            run.source, rows, given, run.selection, run.model.intra_document_mask, run.seed, run.device,
            self.ranks.rank, self.ranks.size,
        )  # fmt: skip
        if settings.micro_batch == "auto" and self.progress.micro_batch is None:
            self.progress.micro_batch = fitting_rows(objective, batcher, settings, run.seq_len, run.device)
            batcher.micro_groups = self.progress.micro_batch // group_rows
            say(f"{run.name}: micro_batch auto is {self.progress.micro_batch} rows")
        return batcher

    def train(self) -> None:
        run, progress = self.run, self.progress
        last = progress.step or -1  # a run that starts anew logs its step 0 anew
        run.directory.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            stack.callback(self.ahead.close)
            stack.callback(run.source.close)
            self.metrics = stack.enter_context(Log(run.directory / "metrics.jsonl", last, on=self.ranks.is_first))
            self.evals = stack.enter_context(Log(run.directory / "evals.jsonl", progress.evaluated, on=self.ranks.is_first))
            self.trackers = Trackers(run.tracking, run.directory, run.name, progress.step, self._facts(), on=self.ranks.is_first)
            stack.push(lambda kind, *_: self.trackers.close(failed=kind is not None))
            self.hang = HangWatch(run.directory / f"hang-rank-{self.ranks.rank}.txt", run.settings.hang_timeout)
            stack.callback(self.hang.close)
            stack.callback(self.checkpoints.wait)
            if self.ranks.is_first:
                write_environment(run.directory / "environment.jsonl", self.ranks, run.device, run.settings.precision)
            if progress.step:
                say(f"{run.name}: resuming after step {progress.step} of {self.steps}")
            self._steps()
        with waiting(f"{run.name}: writing the model"):
            self.export()

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

    def _steps(self) -> None:
        run, progress, settings = self.run, self.progress, self.run.settings
        shown = dashboard(run.name, self.steps, progress.step, self.ranks.size, progress.skipped)
        with deferring() as stop, shown as self.live, self._profiler() as tick:
            self.stop = stop
            signum = self._evaluate_if_due()
            crowding = Crowding()
            while progress.step < self.steps and signum is None:
                self.hang.alive()
                result = self.step(progress.step + 1, stop.signum)
                tick()
                done = progress.step == self.steps
                agreed = result.signum if self.ranks.size > 1 else stop.signum  # several ranks agree within the next step
                signum = agreed or self._evaluate_if_due() or (stop.signum if self.ranks.size == 1 else None)
                self._tell_of_others(crowding)
                if signum is not None and not stop:
                    say(f"{run.name}: another rank was asked to stop (signal {signum}); saving")
                due = done or signum is not None or (settings.save_every and progress.step % settings.save_every == 0)
                if due and self.saved != progress.step:
                    with waiting(f"{run.name}: waiting for the checkpoint before to be written"):
                        self.checkpoints.wait()
                    self._tell_failed_save(stops=False)
                    self.checkpoints.save(progress, self.state)
                    self.live.saving(progress.step)
                    self.saved = progress.step
                if due and (done or signum is not None):
                    with waiting(f"{run.name}: writing the checkpoint of step {progress.step}"):
                        self.checkpoints.wait(self.hang.alive)
                self._tell_failed_save(stops=done or signum is not None)
        told = self.ranks.sum([int(stop.signum == s) for s in SIGNALS])  # also of a signal that came in the last step
        signum = next((int(s) for s, n in zip(SIGNALS, told, strict=True) if n), None)
        if signum is not None:
            saved = f"saved {directory_of(self.checkpoints.root, progress.step)}. Run again to go on from there."
            nothing = "nothing had to be saved. Run again to begin."
            message = f"stopped after step {progress.step}; {saved if progress.step else nothing}"
            several = self.ranks.size > 1
            with deferring():  # what starts ranks may signal this one as soon as another has ended
                self.ranks.first(lambda: self._stopping(signum, message if several else None))
            raise Interrupted(signum, message, told=several)

    def _tell_of_others(self, crowding: Crowding) -> None:
        """Says once why training is slow, where other processes have taken the cores from it for a while."""
        if self.told_of_others or crowding.seconds() < SETTLING or self.run.device != "cpu":
            return
        self.told_of_others = True
        share = crowding.share()
        if share is not None and share > CROWDED:
            say_news(
                "crowding",
                "crowded",
                f"note: {self.run.name}: for {share:.0%} of the time so far, it waited for a core that other processes use, and "
                "trains the slower for it. Stop them where you can, and it speeds up.",
            )

    def _stopping(self, signum: int, message: str | None) -> None:
        self.run.on_stop(signum)
        if message is not None:
            say(message)

    def _tell_failed_save(self, stops: bool) -> None:
        """A checkpoint that cannot be written does not end a run that still has the one before, until its end."""
        busy, failure = self.checkpoints.busy, self.checkpoints.failed()
        if not busy:
            self.live.saved(whole=failure is None)
        if failure is None:
            return
        message = f"a checkpoint could not be written: {(str(failure) or type(failure).__name__).rstrip('.')}."
        if stops:
            raise TrainingError(f"{self.run.name}: {message} What was saved before is kept; run again.") from failure
        warn(f"{self.run.name}: {message} Training goes on; the last good checkpoint is kept.")

    def step(self, step: int, signum: int | None) -> StepResult:
        """One optimizer step, with its log."""
        started = time.perf_counter()
        run, progress = self.run, self.progress
        batch = self.ahead.get(step)
        waited = time.perf_counter() - started
        result = self.maker.make(step, batch, self.counts, signum)
        progress.step = step
        progress.tokens_seen += result.tokens
        progress.tokens_selected += result.selected if result.refused is None else 0
        progress.skipped += result.refused is not None
        progress.skipped_in_a_row = self.maker.guard.skipped_in_a_row
        progress.threshold = self.maker.objective.threshold
        seconds = time.perf_counter() - started
        rate = result.tokens / seconds
        if WATCHED < step <= self.steps - WATCHED:  # a resumed run looks at its own first steps, and logs as one that was not
            result.metrics["correlation_by_shift"] = None
        record = {
            "step": step,
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
            "loader_seconds": waited,
            "tokens_per_s": rate,
            "memory_bytes": memory_bytes(run.device),
            "mfu": self._mfu(rate),
        }
        self.metrics.write(record)
        marks = {"skipped": int(result.refused is not None), "nonfinite": int(result.refused == "nonfinite")}
        self.trackers.scalars(step, {**record, **marks}, "train")
        self.live.step(record)
        if result.refused is not None:
            self._refused(step, result)
        if step % run.settings.log_every == 0 or step == self.steps:
            unselected = result.metrics["loss_unselected"]
            rest = f" unselected {unselected:.4f}" if unselected is not None else ""
            speed = f"lr {result.lr:.2e} grad {result.grad_norm:.3f} {rate:,.0f} tokens/s"
            say(f"{run.name} step {step}/{self.steps}: loss {result.loss:.4f}{rest} {speed}")
        if result.shifted is not None:
            self.judge(result.shifted, result.tokens)
        return result

    def _mfu(self, tokens_per_s: float) -> float | None:
        if not self.peak or self.run.settings.precision == "float32":
            return None
        return tokens_per_s * self.flops / (self.peak * self.ranks.size)

    def _refused(self, step: int, result: StepResult) -> None:
        """Goes on without the step, or raises `TrainingError`, by `on_nonfinite` and how many were refused in a row."""
        guard, settings = self.maker.guard, self.run.settings
        what = "is not finite" if result.refused == "nonfinite" else "is a spike"
        figures = f"loss {result.loss:.4g}, gradient norm {result.grad_norm:.4g}"
        if (mean := result.metrics["live_mean"]) is not None:
            figures += f", mean live loss {mean:.4g}"
        if not guard.lost and (result.refused == "spike" or settings.on_nonfinite == "skip"):
            warn(f"{self.run.name}: step {step} {what} ({figures}); it is not taken")
            return
        self.checkpoints.wait()
        found = all_checkpoints(self.checkpoints.root)
        last = f"the last good checkpoint is {found[-1]}" if found else "no checkpoint was saved yet"
        row = f", the {guard.skipped_in_a_row}th in a row" if guard.lost else ""
        exact = settings.precision == "float32"
        ways = "Lower lr or raise warmup," if exact else "Lower lr, raise warmup, or use precision: float32,"
        raise TrainingError(
            f"{self.run.name}: step {step} {what} ({figures}){row}; the step was not taken, and {last}. {ways} and run again: "
            "a changed setting starts this run anew and keeps its old folder under stale/."
        )

    def judge(self, shifted: dict[int, float], tokens: int) -> None:
        verdict = self.watch.add(shifted, tokens)
        if self.watch.done:  # the others are the watch's, and of the last steps the report's
            self.maker.shifts = SHIFTS if self.progress.step >= self.steps - WATCHED else (0,)
        if verdict in (None, "ok"):
            return
        listing = ", ".join(f"{s:+d}: {r:.2f}" for s, r in self.watch.mean().items())
        if verdict == "low":
            if self.run.selection.needs_reference:  # a control chooses by no scores
                said = f"live and reference losses correlate weakly over the first steps (by shift {listing})"
                warn(f"{self.run.name}: {said}. {ADVICE}.")
            return
        message = (
            f"{self.run.name}: live and reference losses look misaligned: they correlate strongly, and best at another shift "
            f"than 0 ({listing}). Make the scores anew with `slmctl score`; alignment_check: warn goes on all the same."
        )
        if self.run.settings.alignment_check == "stop":
            raise MismatchError(message)
        warn(message)

    @contextlib.contextmanager
    def _profiler(self) -> Iterator[Callable[[], None]]:
        """Records the steps that `profile` names. Yields what is called after each step."""
        window = self.run.settings.profile
        if window is None or not self.progress.step < window[0] <= window[1]:
            yield lambda: None
            return
        from torch.profiler import profile, schedule

        folder = self.run.directory / "profile"
        folder.mkdir(parents=True, exist_ok=True)

        def write(found: Any) -> None:
            path = folder / f"steps-{window[0]}-{window[1]}-rank-{self.ranks.rank}.json.gz"
            found.export_chrome_trace(str(path))
            say(f"{self.run.name}: profile written to {path}")

        wait = window[0] - self.progress.step - 1
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that there is no warm-up: the steps before are
            steps = schedule(wait=wait, warmup=0, active=window[1] - window[0] + 1, repeat=1)
        with profile(schedule=steps, on_trace_ready=write, with_stack=False, record_shapes=True) as recorder:
            yield recorder.step

    def _evaluate_if_due(self) -> int | None:
        """Evaluates where that is due after this step and was not done yet. Returns the signal that all ranks have agreed to
        stop for meanwhile: the evaluation is then made when the run goes on."""
        progress, every = self.progress, self.run.settings.eval_every
        due = progress.step in (0, self.steps) or (every and progress.step % every == 0)
        if not due or progress.evaluated == progress.step:
            return None
        self.stop.finishing = "a batch of the evaluation"
        try:
            self.evaluate()
        except _BrokenOffError as e:
            return e.signum
        finally:
            self.stop.finishing = "the step"
        return None

    def evaluate(self) -> None:
        run, progress = self.run, self.progress
        started = time.monotonic()

        def beat(name: str, done: int, batches: int) -> None:
            self.hang.alive()
            self.live.evaluating(name, done, batches, time.monotonic() - started)
            told = self.ranks.sum([int(self.stop.signum == s) for s in SIGNALS])
            if signum := next((int(s) for s, n in zip(SIGNALS, told, strict=True) if n), None):
                raise _BrokenOffError(signum)

        self.hang.alive()
        measured = run.evaluate(run.model, self.ranks, beat)
        losses = {n: m.loss for n, m in measured.items()}
        if not all(math.isfinite(v) for v in losses.values()):
            raise TrainingError(
                f"{run.name}: held-out loss is not finite at step {progress.step} ({losses}). Check the base model and lr."
            )
        record = {
            "step": progress.step,
            "tokens_seen": progress.tokens_seen,
            "tokens_selected": progress.tokens_selected,
            "heldout": losses,
            "measured": {n: m.measure for n, m in measured.items()},
        }
        progress.evaluated = progress.step
        self.evals.write(record)
        self.trackers.describe(losses)
        self.trackers.scalars(progress.step, losses, "heldout")
        self.live.evaluated(record)
        listing = ", ".join(f"{k} {v:.4f}" for k, v in losses.items())
        say(f"{run.name} step {progress.step}/{self.steps}: held-out {listing}")
        if run.keep_best_on is not None and progress.step > 0 and self._is_best(run.keep_best_on, record):
            one = {"heldout": losses, "measured": record["measured"]}
            progress.best = {"step": progress.step, "loss": losses[run.keep_best_on], **one}
            export_model(run.model, run.tokenizer, run.directory / "best", self.ranks)

    def _is_best(self, heldout: str, record: dict[str, Any]) -> bool:
        """Whether a record's loss is the lowest so far. One that was measured on other tokens than the best is not held against
        it: the best is looked for anew, from there on."""
        best, loss = self.progress.best, record["heldout"][heldout]
        if best is None:
            return True
        unlike = why_unlike(measure_of(best, heldout), measure_of(record, heldout))
        if unlike is None:
            return bool(loss < best["loss"])
        if self.ranks.is_first:
            warn(
                f"{self.run.name}: keep_best_on cannot hold the loss on {heldout} at step {record['step']} ({loss:.4f}) against "
                f"the lowest before, of step {best['step']} ({best['loss']:.4f}): {unlike}. The best weights are looked for anew "
                "from here on."
            )
        return True

    def export(self) -> None:
        """Writes `model/`, an HF model directory, and token_counts.parquet (seen and selected, by token id)."""
        run = self.run
        final = run.directory / "model"
        if run.keep_best_on is not None and self.progress.best is not None:
            self.ranks.first(self._publish_best)
        else:
            export_model(run.model, run.tokenizer, final, self.ranks)
        seen, selected = self.ranks.sum_(self.counts.clone()).cpu().numpy()
        if self.ranks.is_first:
            table = pa.table({"token_id": np.arange(len(seen), dtype=np.int32), "seen": seen, "selected": selected})
            with publishing(run.directory / "token_counts.parquet") as temporary:
                pq.write_table(table, temporary)
        self.ranks.barrier()

    def _publish_best(self) -> None:
        with publishing(self.run.directory / "model") as temporary:
            shutil.copytree(self.run.directory / "best", temporary)


def memory_bytes(device: str) -> int:
    """The most memory that was taken so far: the GPU's by tensors, else the process's resident memory."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
