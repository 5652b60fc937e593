"""Reading ahead changes when a step is fetched, never what it is, nor where its error shows."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slmctl.store.read_ahead import ReadAhead

THREADS = [0, 1, 4]


class Fetch:
    """Notes which steps were fetched; those of `fails` raise."""

    def __init__(self, fails: tuple[int, ...] = (), delay: Callable[[int], float] = lambda _: 0.0) -> None:
        self.fails, self.delay = fails, delay
        self.begun: list[int] = []
        self.lock = threading.Lock()

    def __call__(self, step: int) -> str:
        with self.lock:
            self.begun.append(step)
        time.sleep(self.delay(step))
        if step in self.fails:
            raise ValueError(f"step {step}")
        return f"rows of {step}"


def within(seconds: float, work: Callable[[], Any]) -> Any:
    """What `work` returns, done in a thread of its own; fails where that takes too long."""
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(work()), daemon=True)
    thread.start()
    thread.join(seconds)
    assert not thread.is_alive(), "it hangs"
    return found[0] if found else None


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(THREADS), st.lists(st.integers(1, 12), max_size=12))
def test_steps_in_any_order_are_what_fetching_them_gives(threads: int, steps: list[int]) -> None:
    ahead = ReadAhead(Fetch(), 10, threads)
    try:
        assert [ahead.get(s) for s in steps] == [f"rows of {s}" for s in steps]
    finally:
        ahead.close()


@pytest.mark.parametrize("threads", THREADS)
def test_in_order_each_step_is_fetched_once_and_none_beyond_the_last(threads: int) -> None:
    fetch = Fetch(delay=lambda s: 0.004 * (s % 3))
    ahead = ReadAhead(fetch, 20, threads)
    assert [ahead.get(s) for s in range(1, 21)] == [f"rows of {s}" for s in range(1, 21)]
    ahead.close()
    assert sorted(fetch.begun) == list(range(1, 21))


@pytest.mark.parametrize("threads", [1, 4])
def test_the_next_steps_are_fetched_while_this_one_is_used(threads: int) -> None:
    fetch = Fetch()
    ahead = ReadAhead(fetch, 20, threads)
    ahead.get(3)
    end = time.monotonic() + 30
    while sorted(fetch.begun) != list(range(3, 4 + threads)) and time.monotonic() < end:
        time.sleep(0.001)
    assert sorted(fetch.begun) == list(range(3, 4 + threads))
    ahead.close()


@pytest.mark.parametrize("threads", THREADS)
def test_an_error_shows_at_its_own_step_and_the_others_go_on(threads: int) -> None:
    ahead = ReadAhead(Fetch(fails=(3, 4)), 6, threads)
    assert [ahead.get(s) for s in (1, 2)] == ["rows of 1", "rows of 2"]
    for step in (3, 3, 4):
        with pytest.raises(ValueError, match=f"step {step}"):
            ahead.get(step)
    assert ahead.get(5) == "rows of 5"
    ahead.close()


def test_an_error_ahead_that_no_one_asks_for_is_no_error() -> None:
    ahead = ReadAhead(Fetch(fails=(2, 3)), 6, 2)
    assert ahead.get(1) == "rows of 1"
    within(20, ahead.close)


def test_a_step_that_failed_is_fetched_anew_when_it_is_asked_for_again() -> None:
    fetch = Fetch(fails=(1,))
    ahead = ReadAhead(fetch, 1, 1)
    with pytest.raises(ValueError, match="step 1"):
        ahead.get(1)
    fetch.fails = ()
    assert ahead.get(1) == "rows of 1"
    ahead.close()


@pytest.mark.parametrize("threads", THREADS)
def test_closing_never_hangs(threads: int) -> None:
    """Before any step, in the midst of steps, after an error, and twice."""
    within(20, ReadAhead(Fetch(), 5, threads).close)
    for steps in ((1,), (1, 2, 5), (4,)):
        ahead = ReadAhead(Fetch(fails=(3,), delay=lambda _: 0.02), 50, threads)
        for step in steps:
            ahead.get(step)
        within(20, ahead.close)
        within(20, ahead.close)


def test_closing_waits_for_what_is_being_fetched_and_drops_what_is_not() -> None:
    """Nothing reads on once it is closed, so that files may be moved or removed."""
    release, begun = threading.Event(), []

    def fetch(step: int) -> int:
        begun.append(step)
        if step > 1:
            release.wait(60)
        return step

    ahead = ReadAhead(fetch, 50, 1)
    assert ahead.get(1) == 1
    while 2 not in begun:
        time.sleep(0.001)
    for step in range(3, 9):  # as if many were asked for: they wait in line behind step 2
        ahead._ahead[step] = ahead._pool.submit(fetch, step)  # type: ignore[union-attr]
    closing = threading.Thread(target=ahead.close, daemon=True)
    closing.start()
    closing.join(0.05)
    assert closing.is_alive(), "it does not wait for the step that is being fetched"
    release.set()
    closing.join(20)
    assert not closing.is_alive()
    assert begun == [1, 2]


def test_without_threads_nothing_runs_in_another_thread() -> None:
    seen: list[threading.Thread] = []
    ahead = ReadAhead(lambda _: seen.append(threading.current_thread()), 5, 0)
    ahead.get(1)
    ahead.close()
    assert seen == [threading.current_thread()]
