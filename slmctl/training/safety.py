"""What keeps a long run from going wrong unseen: steps that must not be taken, and a watch for hangs."""

from __future__ import annotations

import faulthandler
import math
import threading
import time
from collections.abc import Callable
from pathlib import Path

from slmctl.system.console import err, warn
from slmctl.system.errors import TrainingError

SPIKE_WINDOW = 128
SPIKE_MINIMUM = 16
"""Losses that have to be known before one can stand out."""
SKIPS_IN_A_ROW = 10
TELLING = 6
"""Seconds that are left for saying that a process hangs, before it ends."""


class StepGuard:
    """Decides whether a step may be taken. `recent` (the last losses of steps that were) belongs to the run's state."""

    def __init__(self, skip_spikes: float | None, recent: list[float], skipped_in_a_row: int) -> None:
        self.skip_spikes, self.recent, self.skipped_in_a_row = skip_spikes, recent, skipped_in_a_row

    def refuses(self, loss: float, finite: bool, grad_norm: float) -> str | None:
        """`nonfinite` or `spike` where the step must not be taken."""
        if not (finite and math.isfinite(loss) and math.isfinite(grad_norm)):
            return "nonfinite"
        if self.skip_spikes is not None and len(self.recent) >= SPIKE_MINIMUM:
            mean = sum(self.recent) / len(self.recent)
            spread = math.sqrt(sum((x - mean) ** 2 for x in self.recent) / len(self.recent))
            if loss > mean + self.skip_spikes * max(spread, 1e-6 * abs(mean)):
                return "spike"
        return None

    def note(self, loss: float | None, refused: str | None) -> None:
        """Records what became of a step; `loss` is None where no token was selected."""
        self.skipped_in_a_row = self.skipped_in_a_row + 1 if refused else 0
        if refused is None and self.skip_spikes is not None and loss is not None:
            self.recent.append(loss)
            del self.recent[:-SPIKE_WINDOW]

    @property
    def lost(self) -> bool:
        return self.skipped_in_a_row >= SKIPS_IN_A_ROW

    def act_on(self, refused: str, name: str, figures: str, skips: bool, exact: bool, saved: Callable[[], list[Path]]) -> None:
        """Warns of a step that was not taken (`name` says of which run and which), or raises `TrainingError`: after one that
        is not finite unless the run `skips` those, and after `SKIPS_IN_A_ROW`. `exact`: it computes in float32; `saved`
        waits for the run's checkpoints, and gives them."""
        what = "is not finite" if refused == "nonfinite" else "is a spike"
        if not self.lost and (refused == "spike" or skips):
            warn(f"{name} {what} ({figures}); it is not taken")
            return
        found = saved()
        last = f"the last good checkpoint is {found[-1]}" if found else "no checkpoint was saved yet"
        row = f", the {self.skipped_in_a_row}th in a row" if self.lost else ""
        ways = "Lower lr or raise warmup," if exact else "Lower lr, raise warmup, or use precision: float32,"
        raise TrainingError(
            f"{name} {what} ({figures}){row}; the step was not taken, and {last}. {ways} and run again: "
            "a changed setting starts this run anew and keeps its old folder under stale/."
        )


class HangWatch:
    """Ends the process, with every thread's stack in `file`, where `alive` was not called for `seconds` (0: never). It does
    so from a thread of the interpreter's own, which needs nobody's leave; another says so a moment before, if it can run."""

    def __init__(self, file: Path, seconds: int) -> None:
        self.path, self.seconds = file, seconds
        self._file = open(file, "a", encoding="utf-8") if seconds else None
        self._closed = threading.Event()
        self._last = math.inf
        if seconds:
            threading.Thread(target=self._tell, name="hang watch", daemon=True).start()

    def alive(self) -> None:
        if self._file is not None:
            self._last = time.monotonic()
            faulthandler.dump_traceback_later(self.seconds + TELLING, exit=True, file=self._file)

    def _tell(self) -> None:
        told = math.inf
        while not self._closed.wait(min(self.seconds / 4, 5)):
            if time.monotonic() - self._last >= self.seconds and told != self._last:
                told = self._last
                err.print(
                    f"error: no step, evaluation or save has ended for {self.seconds} s (hang_timeout). Unless one does, this "
                    f"process ends within {TELLING} s, with every thread's stack in {self.path}. Run again to go on from the "
                    "last checkpoint.",
                    style="red",
                    markup=False,
                )

    def close(self) -> None:
        self._closed.set()
        if self._file is not None:
            faulthandler.cancel_dump_traceback_later()
            self._file.close()
            if not self.path.stat().st_size:
                self.path.unlink()
