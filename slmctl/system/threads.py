"""How many threads PyTorch computes with on a CPU: the number that is fastest beside whatever else the machine does."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from slmctl.system.console import say, waiting
from slmctl.system.errors import SlmError
from slmctl.system.files import read_json, write_json
from slmctl.system.openmp import asked

SMALL = 3e10
"""Operations of a pass that are enough to measure by: under a second of one core."""
SECONDS, ROUNDS, TURN = 2.0, 5, 0.05
"""Measuring ends after so many seconds or rounds (but for two rounds); what takes less than a turn's seconds is repeated."""
FAR, NEAR = 2.0, 1.05
"""Times the fastest: numbers beyond the first are not tried again; within the second, the lower number is as good."""


_most: int | None = None


def most_threads() -> int:
    """The number that PyTorch took by itself: its cores, or what was set before slmctl set any."""
    global _most
    import torch

    if _most is None:
        _most = torch.get_num_threads()
    return _most


def use(threads: int) -> None:
    import torch

    most_threads()
    if threads != torch.get_num_threads():
        torch.set_num_threads(threads)


def threads_of(device: str) -> dict[str, str]:
    """The number in use, for a record of what a result was made with: sums round by it."""
    import torch

    return {"threads": str(torch.get_num_threads())} if device == "cpu" else {}


def candidates(most: int) -> list[int]:
    """1, 2, 4, … half of all, all; rising."""
    powers = [2**i for i in range(most.bit_length()) if 2**i < most]
    return sorted({*powers, max(1, most // 2), most})


@dataclass(frozen=True)
class ThreadChoice:
    threads: int
    of: int
    """The most there were to choose from."""
    seconds: dict[str, float]
    """Median seconds of a pass, by number of threads."""

    def __str__(self) -> str:
        others = "; ".join(f"{n}: {1000 * s:.0f} ms" for n, s in self.seconds.items())
        return f"{self.threads} of {self.of} threads, the fastest now (a pass with {others})"


def choose(
    work: Callable[[], object],
    most: int,
    set_number: Callable[[int], None] = use,
    clock: Callable[[], float] = time.perf_counter,
) -> ThreadChoice:
    """Times `work` with each candidate in turn, round after round, so that what else the machine does meets all alike; takes
    the lowest number whose median is as good as the best. The chosen number is set."""
    numbers = candidates(most)
    set_number(most)
    work()  # what is done once: memory is taken, kernels are chosen
    began = clock()
    work()
    repeats = max(1, int(TURN / max(clock() - began, 1e-6)))
    times: dict[int, list[float]] = {n: [] for n in numbers}
    tried = numbers
    for done in range(1, ROUNDS + 1):
        for n in tried:
            set_number(n)
            started = clock()
            for _ in range(repeats):
                work()
            times[n].append((clock() - started) / repeats)
        medians = {n: statistics.median(times[n]) for n in numbers}
        best = min(medians.values())
        tried = [n for n in tried if medians[n] <= FAR * best]
        if len(tried) == 1 or (done >= 2 and clock() - began > SECONDS):
            break
    threads = min(n for n in tried if medians[n] <= NEAR * best)
    set_number(threads)
    return ThreadChoice(threads, most, {str(n): round(s, 6) for n, s in medians.items()})


@dataclass(frozen=True)
class ThreadRecord:
    """What was chosen for one kind of work of a pipeline, so that all that is compared rounds alike."""

    path: Path
    kind: str

    def read(self, of: int) -> int | None:
        """None where nothing was chosen yet, or from another number of cores, or what is kept is no number of threads."""
        found = self._all().get(self.kind)
        threads = found.get("threads") if isinstance(found, dict) and found.get("of") == of else None
        return threads if isinstance(threads, int) and 0 < threads <= of else None

    def keep(self, choice: ThreadChoice) -> None:
        with suppress(OSError, SlmError):  # it is measured again
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_json(self.path, {**self._all(), self.kind: asdict(choice)})

    def _all(self) -> dict[str, Any]:
        try:
            found = read_json(self.path)
        except (OSError, SlmError):
            return {}
        return found if isinstance(found, dict) else {}


def settle(
    label: str, device: str, make_work: Callable[[], Callable[[], object] | None], record: ThreadRecord | None = None
) -> None:
    """Sets the number of threads for what comes: as asked, as recorded, or as measured by what `make_work` gives, a pass of it;
    all where that is None, of models so large that threads hardly wait. Says what it has measured."""
    if device != "cpu" or asked() is not None:
        return
    most = most_threads()
    known = record.read(most) if record is not None else None
    if most == 1 or known is not None or (work := make_work()) is None:
        use(known or most)
        return
    with waiting(f"{label}: trying numbers of threads"):
        choice = choose(work, most)
    if record is not None:
        record.keep(choice)
    say(f"{label}: {choice}")
