"""torch's profiler over the steps that `profile` names."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from slmctl.system.console import say
from slmctl.training.run import Run


@contextlib.contextmanager
def profiling(run: Run, step: int) -> Iterator[Callable[[], None]]:
    """Records what `profile` asks for of a run that goes on after `step`. Yields what is called after each step."""
    window = run.settings.profile
    if window is None or not step < window[0] <= window[1]:
        yield lambda: None
        return
    from torch.profiler import profile, schedule

    folder = run.directory / "profile"
    folder.mkdir(parents=True, exist_ok=True)

    def write(found: Any) -> None:
        path = folder / f"steps-{window[0]}-{window[1]}-rank-{run.ranks.rank}.json.gz"
        found.export_chrome_trace(str(path))
        say(f"{run.name}: profile written to {path}")

    wait = window[0] - step - 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is no warm-up: the steps before are
        steps = schedule(wait=wait, warmup=0, active=window[1] - window[0] + 1, repeat=1)
    with profile(schedule=steps, on_trace_ready=write, with_stack=False, record_shapes=True) as recorder:
        yield recorder.step
