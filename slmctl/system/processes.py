"""Work spread over processes of this machine, as many as it has cores for: any of them may be killed without leaving the others
waiting."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from types import FrameType
from typing import Any, TypeVar

from slmctl.system.errors import SlmError

PATIENCE = 10
"""Seconds that a process gets to end by itself."""

Job = TypeVar("Job")
Result = TypeVar("Result")


def cores() -> int:
    """Processor cores that this process may use: its share of the machine where several workers run on it."""
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    neighbours = os.environ.get("LOCAL_WORLD_SIZE", "1")
    return max(1, there // max(1, int(neighbours) if neighbours.isdigit() else 1))


def spread(
    jobs: Sequence[Job], setup: Callable[[int], Callable[[Job], Result]], processes: int, threads: int
) -> Iterator[Result]:
    """Yields `setup(threads)(job)` of each job, as they are done, made by so many fresh processes. `setup` runs once in each.

    Raises what a job raised, and `SlmError` where a process died.
    """
    context = multiprocessing.get_context("spawn")
    queue = list(reversed(jobs))
    workers: dict[Connection, SpawnProcess] = {}
    try:
        for _ in range(min(processes, len(jobs))):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, setup, threads, os.getpid()), daemon=True)
            process.start()
            theirs.close()
            workers[ours] = process
            ours.send(queue.pop())
        left = len(jobs)
        while left:
            for ready in wait(list(workers)):
                assert isinstance(ready, Connection)
                try:
                    done, value = ready.recv()
                    if done and queue:
                        ready.send(queue.pop())
                except (EOFError, OSError):
                    workers[ready].join()
                    raise SlmError(
                        f"a worker process died (exit code {workers[ready].exitcode}; -9 often means that memory ran out). "
                        "What was finished is kept; run again to go on, with fewer processes where memory is short."
                    ) from None
                if not done:
                    raise value
                left -= 1
                yield value
    finally:
        for pipe, process in workers.items():
            process.terminate()
            pipe.close()
        for process in workers.values():
            process.join(PATIENCE)
            process.kill()  # one that hangs
            process.join()


def _serve(pipe: Connection, setup: Callable[[int], Callable[[Any], Any]], threads: int, parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent gets it too, and ends this process
    signal.signal(signal.SIGTERM, _end)
    work = None
    while os.getppid() == parent:
        try:
            job = pipe.recv()
        except (EOFError, OSError):
            return
        try:
            work = work or setup(threads)
            result = (True, work(job))
        except SlmError as e:
            result = (False, e)
        except Exception as e:  # of whatever kind: the parent says it
            result = (False, SlmError(f"a worker process failed with {type(e).__name__}: {e}"))
        try:
            pipe.send(result)
        except OSError:
            return


def _end(_signum: int, _frame: FrameType | None) -> None:
    """Ends the process so that what it was writing is removed by whoever wrote it."""
    raise SystemExit(0)
