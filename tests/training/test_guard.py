"""Which steps are not taken, and what becomes of a process that hangs."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest

from slmctl.training.safety import SKIPS_IN_A_ROW, SPIKE_MINIMUM, SPIKE_WINDOW, HangWatch, StepGuard

STEADY = [2.0, 2.1, 1.9, 2.0] * 8


def guard(skip_spikes=3.0, recent=(), skipped=0):
    return StepGuard(skip_spikes, list(recent), skipped)


@pytest.mark.parametrize(
    ("loss", "finite", "grad_norm"),
    [(math.nan, True, 1.0), (math.inf, True, 1.0), (2.0, False, 1.0), (2.0, True, math.nan), (2.0, True, math.inf)],
)
@pytest.mark.parametrize("skip_spikes", [None, 3.0])
def test_what_is_not_finite_is_refused_whatever_else_is_asked(loss, finite, grad_norm, skip_spikes):
    assert guard(skip_spikes, STEADY).refuses(loss, finite, grad_norm) == "nonfinite"


@pytest.mark.parametrize("deviations", [0.5, 2.0, 6.0])
def test_a_spike_lies_more_than_the_given_deviations_above_the_mean(deviations):
    limit = np.mean(STEADY) + deviations * np.std(STEADY)
    one = guard(deviations, STEADY)
    assert one.refuses(float(limit) + 1e-6, True, 1.0) == "spike"
    assert one.refuses(float(limit) - 1e-6, True, 1.0) is None
    assert one.refuses(-100.0, True, 1.0) is None, "a fall is no spike"


def test_without_the_setting_nothing_is_a_spike_and_nothing_is_kept():
    one = guard(None, STEADY)
    assert one.refuses(1e9, True, 1.0) is None
    one.note(1e9, None)
    assert one.recent == STEADY


def test_nothing_stands_out_of_a_history_that_is_too_short():
    one = guard()
    for _ in range(SPIKE_MINIMUM):
        assert one.refuses(1e6, True, 1.0) is None
        one.note(2.0, None)
    assert one.refuses(1e6, True, 1.0) == "spike"


def test_a_constant_history_lets_rounding_pass_and_stops_a_spike():
    one = guard(3.0, [2.0] * SPIKE_MINIMUM)
    assert one.refuses(2.0 + 1e-7, True, 1.0) is None
    assert one.refuses(2.1, True, 1.0) == "spike"


def test_the_history_is_the_last_losses_of_steps_that_were_taken():
    one = guard(1e9)
    losses = [math.sin(i) for i in range(SPIKE_WINDOW + 50)]
    for i, loss in enumerate(losses):
        one.note(loss, None)
        if i % 7 == 0:
            one.note(math.nan if i % 2 else 50.0, "nonfinite" if i % 2 else "spike")
    assert one.recent == losses[-SPIKE_WINDOW:]
    assert one.recent is not losses


def test_a_run_is_lost_after_so_many_refused_steps_in_a_row_and_one_taken_begins_anew():
    one = guard()
    for n in range(1, SKIPS_IN_A_ROW):
        one.note(9.0, "spike" if n % 2 else "nonfinite")
        assert (one.skipped_in_a_row, one.lost) == (n, False)
    one.note(2.0, None)
    assert one.skipped_in_a_row == 0
    for _ in range(SKIPS_IN_A_ROW):
        assert not one.lost
        one.note(9.0, "spike")
    assert one.lost


def test_a_resumed_guard_goes_on_counting():
    one = guard(3.0, STEADY, SKIPS_IN_A_ROW - 1)
    assert one.refuses(50.0, True, 1.0) == "spike"
    one.note(50.0, "spike")
    assert one.lost


def test_a_watch_that_nothing_happened_to_leaves_no_file(tmp_path):
    watch = HangWatch(tmp_path / "hang.txt", 60)
    watch.alive()
    watch.close()
    assert not list(tmp_path.iterdir())
    off = HangWatch(tmp_path / "hang.txt", 0)
    off.alive()
    off.close()
    assert not list(tmp_path.iterdir())


def test_a_process_that_hangs_ends_with_its_stacks_written(tmp_path):
    path = tmp_path / "hang.txt"
    program = f"""
import threading
from pathlib import Path
from slmctl.training.safety import HangWatch
def waits_for_ever():
    threading.Event().wait()
watch = HangWatch(Path({str(path)!r}), 1)
watch.alive()
waits_for_ever()
"""
    ended = subprocess.run([sys.executable, "-c", program], timeout=60, capture_output=True, text=True)
    assert ended.returncode == 1
    assert "waits_for_ever" in path.read_text()
    assert "no step, evaluation or save has ended for 1 s" in ended.stderr
    assert str(path) in "".join(ended.stderr.split("\n"))
