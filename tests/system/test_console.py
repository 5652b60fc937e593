"""What is said of waits: nothing of short ones, of long ones what is waited for; and never two voices at once."""

from __future__ import annotations

import io
import time

import pytest

from slmctl.system import console
from slmctl.system.console import Wait, progress, quiet, say, waiting

SOON = 0.05
LONG = 0.3
"""Seconds in which something would be said, were it said at all."""


def until(true, seconds=30):
    """Waits for something to come true, on however slow a machine."""
    ends = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < ends
        time.sleep(0.01)


def heard(capsys, text):
    said = []
    until(lambda: said.append(capsys.readouterr().err) or text in "".join(said))
    return "".join(said)


def test_a_short_wait_says_nothing(capsys):
    with waiting("loading a model", seconds=30):
        pass
    assert capsys.readouterr().err == ""


def test_a_long_wait_says_what_for_while_it_lasts_and_then_is_silent(capsys):
    with waiting("loading a model", seconds=SOON):
        assert heard(capsys, "\n") == "loading a model …\n"
    time.sleep(LONG)
    assert capsys.readouterr().err == ""


def test_it_is_said_again_with_the_time_that_it_took(capsys):
    wait = Wait("hashing", seconds=SOON, again=SOON)
    wait._began -= 100
    said = heard(capsys, "s)\nhashing")
    wait.end()
    assert said.startswith("hashing … (100 s)\n")


def test_a_wait_that_raises_has_ended(capsys):
    with pytest.raises(ValueError, match="no"), waiting("loading", seconds=SOON):
        raise ValueError("no")
    time.sleep(LONG)
    assert capsys.readouterr().err == ""
    assert Wait._all == []


def test_of_waits_within_each_other_the_innermost_speaks(capsys):
    with waiting("evaluating", seconds=SOON), waiting("loading the model", seconds=SOON):
        said = heard(capsys, "\n")
        time.sleep(LONG)
    assert said + capsys.readouterr().err == "loading the model …\n"


def test_ranks_that_are_quiet_say_nothing(capsys):
    with quiet(), waiting("loading", seconds=SOON):
        time.sleep(LONG)
    assert capsys.readouterr().err == ""


def test_work_in_units_says_how_far_it_is_before_its_first_is_done(capsys, monkeypatch):
    monkeypatch.setattr(console, "PATIENCE", SOON)
    with progress("score curated", 7, "shards"):
        assert "score curated: 0/7 shards" in heard(capsys, "\n")


@pytest.fixture
def terminal(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    made = Terminal()
    monkeypatch.setattr(console, "err", console.Console(file=made, force_terminal=True, width=80))
    monkeypatch.delenv("TERM", raising=False)
    return made


def test_a_terminal_shows_a_spinner_that_goes_away(terminal):
    with waiting("loading a model", seconds=SOON):
        until(lambda: "loading a model …" in terminal.getvalue())
        say("a line meanwhile")
    shown = terminal.getvalue()
    assert "a line meanwhile\n" in shown
    assert shown.endswith("\x1b[2K") or shown.rstrip("\x1b[?25h").endswith("\x1b[2K"), repr(shown[-40:])


def test_no_spinner_is_drawn_over_a_bar(terminal):
    with progress("score", 7, "shards") as ticker:
        ticker.advance(1)
        with waiting("loading a model", seconds=SOON) as wait:
            until(lambda: "loading a model …" in terminal.getvalue())
            assert wait._spinner is None
    with waiting("outside", seconds=SOON) as wait:
        until(lambda: wait._spinner is not None)
        with progress("score", 7, "shards"):
            assert wait._spinner is None, "the bar has the terminal"
