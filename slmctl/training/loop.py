"""The training loop: read a step's rows, train on the chosen tokens, log, evaluate, save. One loop for every stage."""

from __future__ import annotations

import contextlib
import time
from functools import partial
from pathlib import Path

import torch

from slmctl.config.training import total_steps
from slmctl.store.read_ahead import ReadAhead
from slmctl.system.console import say, waiting, warn
from slmctl.system.cpu_contention import CpuContention
from slmctl.system.errors import Interrupted, TrainingError
from slmctl.system.signals import StopRequest, deferring
from slmctl.training.alignment import SHIFTS, WATCHED, AlignmentWatch
from slmctl.training.budget import check_budget, warn_of_few_rows
from slmctl.training.checkpoint import Checkpoints
from slmctl.training.checkpoint_files import all_checkpoints, directory_of
from slmctl.training.environment import write_environment
from slmctl.training.export import export_run
from slmctl.training.micro_batch import batcher_of
from slmctl.training.optim import build_optimizer
from slmctl.training.parallel import lay_out
from slmctl.training.profiler import profiling
from slmctl.training.run import Run
from slmctl.training.run_log import RunLog
from slmctl.training.safety import HangWatch, StepGuard
from slmctl.training.selective import Objective
from slmctl.training.state import Progress, TrainingState
from slmctl.training.step import StepMaker, StepResult
from slmctl.training.thread_number import settle_threads, training_pass
from slmctl.training.validation import Validation

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


class Trainer:
    def __init__(self, run: Run) -> None:
        """Readies the model and what makes steps of it, as they were after the checkpoint that the run goes on from."""
        self.run, self.ranks = run, run.ranks
        settings = run.settings
        self.steps = total_steps(settings, run.seq_len, run.source.rows)
        check_budget(run.name, settings, run.selection, run.seq_len, run.source.rows, run.ranks.size)
        warn_of_few_rows(run.name, settings, run.seq_len, run.source.rows)
        if run.model.draws:
            say(f"{run.name}: the model has dropout; rows are computed one by one, so that masks follow from row and step alone")
        self.log = RunLog(run, self.steps)
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
        odds = run.log_odds_V
        objective = Objective(run.model, run.selection, run.ranks, odds.to(run.device) if odds is not None else None)
        objective.threshold = self.progress.threshold
        batcher = batcher_of(run, objective, self.progress)
        self.guard = StepGuard(settings.skip_spikes, self.progress.recent_losses, self.progress.skipped_in_a_row)
        self.maker = StepMaker(run.name, objective, self.optimizer, batcher, settings, self.steps, run.seed, self.guard)
        row_flops = self.log.flops * run.seq_len
        measured = partial(training_pass, objective, batcher, self.maker.precision, row_flops)
        settle_threads(run.name, self.progress, batcher, run.threads, measured)
        self.ahead = ReadAhead(batcher.step, self.steps, settings.loader_threads)
        self.watch = AlignmentWatch(steps=min(WATCHED, self.steps - self.progress.step))

    def train(self) -> None:
        run, progress = self.run, self.progress
        run.directory.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            stack.callback(self.ahead.close)
            stack.callback(run.source.close)
            stack.enter_context(self.log.opened(progress))
            self.hang = HangWatch(run.directory / f"hang-rank-{self.ranks.rank}.txt", run.settings.hang_timeout)
            stack.callback(self.hang.close)
            stack.callback(self.checkpoints.wait)
            if self.ranks.is_first:
                write_environment(run.directory / "environment.jsonl", self.ranks, run.device, run.settings.precision)
            if progress.step:
                say(f"{run.name}: resuming after step {progress.step} of {self.steps}")
            self._steps()
        with waiting(f"{run.name}: writing the model"):
            export_run(run, run.keep_best_on is not None and progress.best is not None, self.counts)

    def _steps(self) -> None:
        """Trains to the end of the budget. Where a signal asks to stop before, all is saved, and `Interrupted` raised."""
        progress, alone = self.progress, self.ranks.size == 1
        with deferring() as stop, self.log.shown(progress), profiling(self.run, progress.step) as tick:
            validation = Validation(self.run, self.steps, progress, self.log, self.hang, stop)
            signum = validation.evaluate_if_due()
            contention = CpuContention()
            while progress.step < self.steps and signum is None:
                self.hang.alive()
                result = self.step(progress.step + 1, stop.signum)
                tick()
                agreed = stop.signum if alone else result.signum  # several ranks agree within the next step
                signum = agreed or validation.evaluate_if_due() or (stop.signum if alone else None)
                self.log.tell_of_others(contention)
                if signum is not None and not stop:
                    say(f"{self.run.name}: another rank was asked to stop (signal {signum}); saving")
                self._save_if_due(last=progress.step == self.steps or signum is not None)
        self._end_where_asked(stop)

    def step(self, step: int, signum: int | None) -> StepResult:
        """One optimizer step, with its log. `signum` is a signal that this rank has received."""
        started = time.perf_counter()
        run, progress = self.run, self.progress
        batch = self.ahead.get(step)
        waited = time.perf_counter() - started
        result = self.maker.make(step, batch, self.counts, signum)
        progress.step = step
        progress.tokens_seen += result.tokens
        progress.tokens_selected += result.selected if result.refused is None else 0
        progress.skipped += result.refused is not None
        progress.skipped_in_a_row = self.guard.skipped_in_a_row
        progress.threshold = self.maker.objective.threshold
        seconds = time.perf_counter() - started
        if WATCHED < step <= self.steps - WATCHED:  # a resumed run looks at its own first steps, and logs as one that was not
            result.metrics["correlation_by_shift"] = None
        self.log.step(progress, result, seconds, waited)
        if result.refused is not None:
            skips, exact = run.settings.on_nonfinite == "skip", run.settings.precision == "float32"
            self.guard.act_on(result.refused, f"{run.name}: step {step}", result.figures(), skips, exact, self._all_saved)
        self.log.say_step(step, result, seconds)
        if result.shifted is not None:
            verdict = self.watch.add(result.shifted, result.tokens)
            if self.watch.done:  # the others are the watch's, and of the last steps the report's
                self.maker.shifts = SHIFTS if step >= self.steps - WATCHED else (0,)
            stops = run.settings.alignment_check == "stop"
            chooses = run.selection.needs_reference and run.selection.needs_live  # else none chooses, or few live ones are known
            self.watch.act_on(verdict, run.name, chooses, stops)
        return result

    # --- saving ---

    def _save_if_due(self, last: bool) -> None:
        """Begins to save after this step, where that is due; after the last one, waits until it is saved."""
        run, progress, every = self.run, self.progress, self.run.settings.save_every
        if (last or (every and progress.step % every == 0)) and self.saved != progress.step:
            with waiting(f"{run.name}: waiting for the checkpoint before to be written"):
                self.checkpoints.wait()
            self._tell_failed_save(stops=False)
            self.checkpoints.save(progress, self.state)
            self.log.live.saving(progress.step)
            self.saved = progress.step
        if last:
            with waiting(f"{run.name}: writing the checkpoint of step {progress.step}"):
                self.checkpoints.wait(self.hang.alive)
        self._tell_failed_save(stops=last)

    def _tell_failed_save(self, stops: bool) -> None:
        """A checkpoint that cannot be written does not end a run that still has the one before, until its end."""
        busy, failure = self.checkpoints.busy, self.checkpoints.failed()
        if not busy:
            self.log.live.saved(whole=failure is None)
        if failure is None:
            return
        message = f"a checkpoint could not be written: {(str(failure) or type(failure).__name__).rstrip('.')}."
        if stops:
            raise TrainingError(f"{self.run.name}: {message} What was saved before is kept; run again.") from failure
        warn(f"{self.run.name}: {message} Training goes on; the last good checkpoint is kept.")

    def _all_saved(self) -> list[Path]:
        self.checkpoints.wait()
        return all_checkpoints(self.checkpoints.root)

    # --- stopping ---

    def _end_where_asked(self, stop: StopRequest) -> None:
        """Raises `Interrupted` where any rank was asked to stop, be it in the last step."""
        signum, several = self.ranks.agreed_signal(stop.signum), self.ranks.size > 1
        if signum is None:
            return
        step = self.progress.step
        saved = f"saved {directory_of(self.checkpoints.root, step)}. Run again to go on from there."
        nothing = "nothing had to be saved. Run again to begin."
        message = f"stopped after step {step}; {saved if step else nothing}"

        def tell() -> None:
            self.run.on_stop(signum)
            if several:
                say(message)

        with deferring():  # what starts ranks may signal this one as soon as another has ended
            self.ranks.first(tell)
        raise Interrupted(signum, message, told=several)
