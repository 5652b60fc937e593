"""The number of threads: the fastest of those tried, kept where it was chosen, and never over what a person asked for."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch

from slmctl.system import threads
from slmctl.system.cpu_contention import CpuContention
from slmctl.system.openmp import WAITS, asked, wait_asleep
from slmctl.system.threads import ThreadRecord, candidates, choose, settle


class Machine:
    """A machine whose passes take `seconds[threads]`, times what `noise` gives for each in turn."""

    def __init__(self, seconds, noise=lambda _: 1.0):
        self.seconds, self.noise = seconds, noise
        self.now, self.threads, self.passes = 0.0, None, []

    def set_number(self, n):
        self.threads = n

    def work(self):
        self.passes.append(self.threads)
        self.now += self.seconds[self.threads] * self.noise(len(self.passes))

    def chosen(self):
        return choose(self.work, max(self.seconds), self.set_number, lambda: self.now)


def test_candidates_rise_from_one_to_all():
    assert [candidates(n) for n in (1, 2, 3, 4, 6, 12)] == [
        [1],
        [1, 2],
        [1, 2, 3],
        [1, 2, 4],
        [1, 2, 3, 4, 6],
        [1, 2, 4, 6, 8, 12],
    ]


@pytest.mark.parametrize(
    ("seconds", "wanted"),
    [
        ({1: 0.3, 2: 0.16, 4: 0.09}, 4),
        ({1: 0.3, 2: 0.2, 4: 0.9}, 2),
        ({1: 0.3, 2: 1.2, 4: 12.0}, 1),
        ({1: 0.31, 2: 0.3, 4: 0.3}, 1),  # as good as the best: the fewer
        ({1: 0.001, 2: 0.0005}, 2),
    ],
)
def test_the_fastest_number_is_taken_and_set(seconds, wanted):
    machine = Machine(seconds)
    found = machine.chosen()
    assert (found.threads, found.of, machine.threads) == (wanted, max(seconds), wanted)
    assert found.seconds == {str(n): pytest.approx(s, rel=1e-3) for n, s in seconds.items()}


def test_a_moment_in_which_the_machine_did_something_else_does_not_decide():
    for moment in range(3, 12):
        machine = Machine({1: 0.3, 2: 0.16}, lambda n, at=moment: 3.0 if n == at else 1.0)
        assert machine.chosen().threads == 2, moment


def test_measuring_is_bounded_and_leaves_out_what_is_far_slower():
    machine = Machine({1: 0.5, 2: 0.26, 4: 0.14, 8: 0.08})
    machine.chosen()
    assert machine.passes.count(1) == machine.passes.count(2) == 1
    assert machine.now < 2 * threads.SECONDS
    short = Machine({1: 0.0004, 2: 0.0005})
    short.chosen()
    assert short.now < 1.0
    assert min(short.passes.count(1), short.passes.count(2)) > 100, "too short a turn tells nothing"


# --- what a person asked for, and what was chosen before ---


@pytest.fixture
def of_four(monkeypatch):
    """A machine of four cores, without anything in its environment; what is set is noted."""
    number = [4]
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(threads, "_most", None)
    monkeypatch.setattr(torch, "get_num_threads", lambda: number[-1])
    monkeypatch.setattr(torch, "set_num_threads", number.append)
    return number


@pytest.mark.parametrize("name", ["OMP_NUM_THREADS", "MKL_NUM_THREADS"])
def test_a_number_that_was_asked_for_stays(name, of_four, monkeypatch, tmp_path):
    monkeypatch.setenv(name, "4")
    record = ThreadRecord(tmp_path / "threads.json", "arms")
    settle("slm", "cpu", lambda: pytest.fail("measured"), record)
    assert of_four == [4]
    assert not record.path.exists()
    assert (asked({"OMP_NUM_THREADS": ""}), asked({})) == (None, None)


def test_a_gpu_measures_nothing(of_four):
    settle("slm", "cuda", lambda: pytest.fail("measured"))
    assert of_four == [4]


def test_what_was_chosen_is_said_kept_and_taken_again(of_four, monkeypatch, tmp_path, capsys):
    machine = Machine({1: 0.2, 2: 0.1, 4: 0.3})
    monkeypatch.setattr(threads, "choose", lambda work, most: choose(work, most, machine.set_number, lambda: machine.now))
    record = ThreadRecord(tmp_path / ".cache" / "threads.json", "arms")
    settle("slm", "cpu", lambda: machine.work, record)
    assert capsys.readouterr().err == "slm: 2 of 4 threads, the fastest now (a pass with 1: 200 ms; 2: 100 ms; 4: 300 ms)\n"
    assert json.loads(record.path.read_text())["arms"]["threads"] == 2
    settle("clm", "cpu", lambda: pytest.fail("measured again"), record)
    assert of_four[-1] == 2
    settle("base", "cpu", lambda: None, ThreadRecord(record.path, "base"))
    assert of_four[-1] == 4, "a large model takes all, whatever another took"
    settle("clm", "cpu", lambda: pytest.fail("measured again"), record)
    assert of_four[-1] == 2


@pytest.mark.usefixtures("of_four")
def test_a_number_that_was_chosen_on_another_machine_is_chosen_anew(monkeypatch, tmp_path):
    record = ThreadRecord(tmp_path / "threads.json", "arms")
    record.keep(threads.ThreadChoice(7, 8, {}))
    monkeypatch.setattr(threads, "choose", lambda *_: threads.ThreadChoice(1, 4, {}))
    settle("slm", "cpu", lambda: print, record)
    assert record.read(4) == 1
    record.path.write_text("{")
    assert record.read(4) is None, "a broken record was read"
    settle("slm", "cpu", lambda: print, record)
    assert record.read(4) == 1


# --- how threads wait ---


def test_threads_sleep_while_they_wait_unless_the_environment_says_how():
    env = {}
    wait_asleep(env)
    assert env == {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "1000"}
    for name in WAITS:
        env = {name: "x"}
        wait_asleep(env)
        assert env == {name: "x"}


@pytest.mark.parametrize("entry", ["import slmctl.cli", "import runpy; runpy.run_module('slmctl', run_name='other')"])
def test_every_entry_sets_it_before_pytorch_is_imported(entry):
    code = f"""
import os, sys
class Watch:
    def find_spec(self, name, *_):
        if name == "torch":
            print(os.environ.get("OMP_WAIT_POLICY"))
            sys.meta_path.remove(self)
sys.meta_path.insert(0, Watch())
{entry}
import slmctl.training.loop
"""
    env = {k: v for k, v in os.environ.items() if k not in WAITS}
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, timeout=300, check=True).stdout
    assert said == "passive\n"


# --- a crowded machine ---


def test_the_share_of_time_without_a_core_is_told(tmp_path):
    now, file = [5.0], tmp_path / "schedstat"
    file.write_text("100 2000000000 7\n")
    contention = CpuContention(file, lambda: now[0])
    assert contention.share() is None
    now[0] = 15.0
    file.write_text("900 6000000000 9\n")
    assert (contention.share(), contention.seconds()) == (0.4, 10.0)
    assert CpuContention(tmp_path / "no-linux", lambda: now[0]).share() is None


@pytest.mark.parametrize("kept", [[], {"arms": 3}, {"arms": {"of": 4, "threads": "x"}}, {"arms": {"of": 4, "threads": 9}}])
def test_a_record_that_names_no_number_is_as_none(kept, tmp_path):
    path = tmp_path / "threads.json"
    path.write_text(json.dumps(kept), encoding="utf-8")
    assert ThreadRecord(path, "arms").read(4) is None
