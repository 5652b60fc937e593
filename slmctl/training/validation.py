"""Held-out evaluations of a run that trains: when they are due, what becomes of their losses, and the best weights so far."""

from __future__ import annotations

import math
import time
from typing import Any

from slmctl.evaluation.comparability import measure_of, why_not_comparable
from slmctl.system.console import warn
from slmctl.system.errors import TrainingError
from slmctl.system.signals import StopRequest
from slmctl.training.export import export_model
from slmctl.training.run import Run
from slmctl.training.run_log import RunLog
from slmctl.training.safety import HangWatch
from slmctl.training.state import Progress


class _BrokenOffError(Exception):
    """An evaluation was broken off between two batches, on all ranks."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


class Validation:
    """The evaluations of one run of `steps` steps. `stop` notes signals, for which one is broken off."""

    def __init__(self, run: Run, steps: int, progress: Progress, log: RunLog, hang: HangWatch, stop: StopRequest) -> None:
        self.run, self.ranks, self.steps, self.progress = run, run.ranks, steps, progress
        self.log, self.hang, self.stop = log, hang, stop

    def evaluate_if_due(self) -> int | None:
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
            self.log.live.evaluating(name, done, batches, time.monotonic() - started)
            if (signum := self.ranks.agreed_signal(self.stop.signum)) is not None:
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
        self.log.evaluated(record)
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
        unlike = why_not_comparable(measure_of(best, heldout), measure_of(record, heldout))
        if unlike is None:
            return bool(loss < best["loss"])
        if self.ranks.is_first:
            warn(
                f"{self.run.name}: keep_best_on cannot hold the loss on {heldout} at step {record['step']} ({loss:.4f}) against "
                f"the lowest before, of step {best['step']} ({best['loss']:.4f}): {unlike}. The best weights are looked for anew "
                "from here on."
            )
        return True
