"""The panel shown while training: in one screen, its numbers right, its terminal left whole; and what is shown elsewhere."""

from __future__ import annotations

import io
import math
import re
import statistics
import sys

import pytest
from rich.console import Console

from slmctl.system import console as console_module
from slmctl.system.console import quiet
from slmctl.training.dashboard import Lines, dashboard
from slmctl.training.panel import BARS, History, Screen, has_room, sparkline

CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Terminal(io.StringIO):
    def isatty(self):
        return True


def terminal(width=80, height=24, file=None, **how):
    return Console(file=file or Terminal(), force_terminal=True, width=width, height=height, soft_wrap=True, **how)


@pytest.fixture
def clock():
    class Clock:
        now = 100.0

        def __call__(self):
            return self.now

    return Clock()


def record(step, **over):
    return {
        "step": step,
        "tokens_seen": 1000 * step,
        "tokens_selected": 600 * step,
        "loss_selected": 2.5,
        "loss_unselected": 1.25,
        "live_mean": 2.0,
        "loss": 2.5,
        "grad_norm": 0.75,
        "lr": 8e-5,
        "skipped": None,
        "seconds": 2.0,
        "loader_seconds": 0.5,
        "tokens_per_s": 500.0,
        "memory_bytes": 3 * 2**30,
        "mfu": 0.412,
        **over,
    }


def lines_of(screen, width=80, height=24):
    console = terminal(width, height)
    console.print(screen)
    return CONTROL.sub("", console.file.getvalue()).splitlines()


def value(lines, label):
    """What stands beside a label, up to the next gap."""
    (line,) = [x for x in lines if label in x]
    return re.split(r"\s{2,}", line.split(label, 1)[1].strip("│ "))[0]


def evaluation(step, tokens=100, **losses):
    measure = {"tokens": tokens, "rows": "first", "precision": "float32"}
    return {"step": step, "heldout": losses, "measured": dict.fromkeys(losses, measure)}


def test_no_change_is_shown_of_a_loss_on_other_tokens(clock):
    screen = Screen("slm", 2000, 0, clock=clock)
    screen.evaluated(evaluation(0, target=3.0))
    screen.evaluated(evaluation(100, tokens=200, target=2.0))
    assert not any("-1.0000" in line for line in lines_of(screen))
    screen.evaluated(evaluation(200, tokens=200, target=1.5))
    assert any("1.5000" in line and "-0.5000" in line for line in lines_of(screen))
    screen.evaluated({"step": 300, "heldout": {"target": 1.0}})
    assert not any("-0.5000" in line for line in lines_of(screen)), "what it was measured on is not known"


def test_the_panel_fits_a_screen_and_no_line_is_wider(clock):
    screen = Screen("an-arm-with-a-name-that-is-longer-than-any-terminal-" * 3, 10**9, 0, clock=clock)
    for step in range(1, 400):
        screen.step(record(999_999_000 + step, loss=5 / step, tokens_seen=10**13, tokens_selected=10**13, memory_bytes=2**41))
    screen.evaluated({"step": 10**8, "heldout": {f"set-{i}-of-a-very-long-name-{'x' * 60}": 1e8 for i in range(12)}})
    screen.saving(10**8)
    for width in (60, 61, 80, 100, 200):
        lines = lines_of(screen, width)
        assert len(lines) <= 20
        assert {len(x) for x in lines} == {min(width, 100)}
    assert "and 7 more sets" in "\n".join(lines)


def test_numbers_are_those_of_the_records(clock):
    screen = Screen("slm", 2000, 0, clock=clock)
    screen.evaluated(evaluation(0, target=3.0, general=4.0))
    for step in range(1, 101):
        clock.now += 3.0  # of which two in the step itself
        screen.step(record(step, skipped="spike" if step in (7, 9) else None))
    screen.evaluated(evaluation(100, target=2.75, general=4.5, new=1.0))
    screen.saving(100)
    screen.saved(whole=True)
    lines = lines_of(screen)
    assert "slm" in lines[0]
    assert "step 100/2,000" in lines[1]
    assert "5%  0:05:00  left 1:35:00" in lines[1]  # 1,900 steps of 3 s
    assert value(lines, "tokens seen") == "100,000"
    assert value(lines, "trained on") == "60,000 (60.0%)"
    assert value(lines, "learning rate") == "8.00e-05"
    assert value(lines, "gradient norm") == "0.75"
    assert value(lines, "loss, selected") == "2.5000"
    assert value(lines, "loss, unselected") == "1.2500"
    assert value(lines, "loss, all") == "2.0000"
    assert value(lines, "tokens/s") == "500"
    assert value(lines, "waits for rows") == "25.0%"
    assert value(lines, "memory") == "3.0 GiB"
    assert value(lines, "MFU") == "41.2%"
    assert value(lines, "steps skipped") == "2"
    assert value(lines, "checkpoint") == "step 100"
    at = next(i for i, x in enumerate(lines) if "held-out loss, step 100" in x)
    assert [x.strip("│ ").split() for x in lines[at + 1 : at + 4]] == [
        ["target", "2.7500", "-0.2500"],
        ["general", "4.5000", "+0.5000"],
        ["new", "1.0000"],
    ]


def test_speed_is_that_of_the_last_steps_weighted_by_their_time(clock):
    screen = Screen("slm", 100, 0, clock=clock)
    screen.step(record(1, seconds=1000.0, tokens_per_s=1.0, loader_seconds=999.0))
    for step in range(2, 22):
        screen.step(record(step, seconds=1.0 if step % 2 else 3.0, tokens_per_s=900.0 if step % 2 else 100.0))
    assert screen.tokens_per_s() == pytest.approx((900 * 1 + 100 * 3) / 4)
    assert screen.loader_share() == pytest.approx(0.5 / 2)


def test_what_is_not_known_is_a_dash(clock):
    screen = Screen("slm", 10, 0, clock=clock)
    assert "held-out: not evaluated yet" in "\n".join(lines_of(screen))
    nothing = {k: None for k in record(1) if k != "step"}
    screen.step({**nothing, "step": 1, "tokens_seen": 0, "tokens_selected": 0})
    screen.step(record(2, loss=math.nan, grad_norm=math.inf, skipped="nonfinite", loss_unselected=None, live_mean=None))
    screen.evaluated({"step": 2, "heldout": {}})
    lines = lines_of(screen)
    assert value(lines, "loss, unselected") == "-"
    assert value(lines, "loss, all") == "-"
    assert value(lines, "gradient norm") == "not finite"
    assert value(lines, "steps skipped") == "1 (the last)"
    assert value(lines, "checkpoint") == "none yet"
    assert "loss: no curve yet" in "\n".join(lines)


@pytest.mark.parametrize(("selected", "shown"), [(1000, "2.0000"), (600, "-")])
def test_the_loss_of_all_is_shown_only_where_all_were_computed(clock, selected, shown):
    """Random selection computes no loss of what it leaves out: its mean is of the selected alone."""
    screen = Screen("arm", 10, 0, clock=clock)
    for step in (1, 2):
        screen.step(record(step, tokens_selected=selected * step, loss_unselected=None))
    assert value(lines_of(screen), "loss, all") == shown


def test_a_run_that_goes_on_starts_from_its_step(clock):
    screen = Screen("slm", 100, 40, skipped=3, clock=clock)
    lines = lines_of(screen)
    assert "step 40/100" in lines[1]
    assert "40%" in lines[1]
    assert "left -" in lines[1]
    assert value(lines, "checkpoint") == "step 40"
    for step in (41, 42):
        clock.now += 10
        screen.step(record(step))
    clock.now += 4
    lines = lines_of(screen)
    assert "left 0:09:36" in lines[1]  # 58 steps of 10 s, 4 s into the first of them
    assert value(lines, "steps skipped") == "3"


def test_a_checkpoint_counts_once_it_is_written(clock):
    screen = Screen("slm", 100, 0, clock=clock)
    screen.saved(whole=True)  # nothing was in hand
    assert screen.checkpoint() == "none yet"
    screen.saving(10)
    assert screen.checkpoint() == "none yet (writing 10)"
    screen.saved(whole=True)
    screen.saving(20)
    assert screen.checkpoint() == "step 10 (writing 20)"
    screen.saved(whole=False)
    assert screen.checkpoint() == "step 10"


def test_the_curve_keeps_a_long_run_in_little_room():
    history, values = History(limit=8), [math.sin(i / 50) for i in range(1000)]
    for v in values:
        history.add(v)
        history.add(math.nan)
        history.add(None)
    found, stride = history.values(), history.stride
    assert len(found) <= 8
    for i, mean in enumerate(found):
        assert mean == pytest.approx(statistics.fmean(values[i * stride : (i + 1) * stride]))


def test_a_sparkline_goes_from_the_least_to_the_greatest():
    assert sparkline([0.0, 1, 2, 3, 4, 5, 6, 7], 8) == BARS
    assert sparkline([7.0, 7, 0, 0], 2) == BARS[-1] + BARS[0]
    assert len(set(sparkline([1.5] * 9, 5))) == 1
    assert len(sparkline([float(i) for i in range(1000)], 37)) == 37


def test_messages_stand_above_the_panel_whole(clock, monkeypatch):
    console = terminal()
    monkeypatch.setattr(console_module, "err", console)
    with dashboard("slm", 5, 0, console=console, clock=clock) as live:
        live.step(record(1))
        console_module.say("slm step 1/5: " + "a long message " * 10)
        live.step(record(2))
        console_module.warn("[bold]markup[/bold] is text")
    plain = CONTROL.sub("", console.file.getvalue())
    assert "slm step 1/5: " + "a long message " * 9 in plain
    assert "warning: [bold]markup[/bold] is text" in plain
    last = plain[plain.rindex("warning:") :]
    assert last.count("╭") == last.count("╰") >= 1
    assert "step 2/5" in last


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_leaves_the_cursor_shown(clock, error):
    console = terminal()

    def run():
        with dashboard("slm", 5, 0, console=console, clock=clock) as live:
            raw = console.file.getvalue()
            assert raw.rindex("\x1b[?25h") > raw.rindex("\x1b[?25l")  # also while it runs: it may be killed
            live.step(record(1))
            raise error

    with pytest.raises(error):
        run()
    raw = console.file.getvalue()
    assert raw.rindex("\x1b[?25h") > raw.rindex("\x1b[?25l")
    assert raw.endswith("\n") or raw.endswith("\x1b[?25h")
    assert sys.stderr is not None
    assert not hasattr(sys.stderr, "rich_proxied_file")  # stderr is its own again


def test_where_the_panel_has_no_room():
    assert has_room(terminal())
    assert not has_room(terminal(width=59))
    assert not has_room(terminal(height=19))
    assert not has_room(Console(file=io.StringIO(), width=80, height=24))
    assert not has_room(Console(file=io.StringIO(), force_terminal=True, width=80, height=24))  # FORCE_COLOR in a log
    assert not has_room(terminal(_environ={"TERM": "dumb"}))


@pytest.mark.parametrize("console", [terminal(width=50), Console(file=io.StringIO(), width=80)])
def test_elsewhere_there_are_lines(console, capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(console_module.time, "monotonic", lambda: now[0])
    with dashboard("slm", 40, 10, console=console) as live:
        assert isinstance(live, Lines)
        live.evaluated({"step": 10, "heldout": {"target": 1.0}})
        for step in range(11, 31):
            now[0] += 1.0
            live.step(record(step, loss=step / 10))
        live.saving(30)
        live.saved(whole=True)
    assert capsys.readouterr().err.splitlines() == ["slm: 25/40 steps (1.00/s) loss 2.500"]


def test_of_several_ranks_the_first_has_lines_and_the_others_nothing(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(console_module.time, "monotonic", lambda: now[0])

    def run():
        with dashboard("slm", 40, 0, ranks=2, console=terminal()) as live:
            now[0] += 15.0
            live.step(record(1))
            assert isinstance(live, Lines)

    run()
    assert capsys.readouterr().err == "slm: 1/40 steps (0.07/s) loss 2.500\n"
    with quiet():
        run()
    assert capsys.readouterr().err == ""


def test_an_evaluation_shows_how_far_it_is(clock, capsys):
    screen = Screen("slm", 40, 0, clock=clock)
    screen.evaluating("target", 3, 16, 12.0)
    assert value(lines_of(screen), "held-out: evaluating") == "target 3/16 (12 s)"
    screen.evaluated({"step": 0, "heldout": {"target": 1.0}})
    assert not any("evaluating" in line for line in lines_of(screen))
    screen.evaluating("target", 1, 16, 4.0)
    assert value(lines_of(screen), "held-out loss, step 0; evaluating") == "target 1/16 (4 s)"
    with dashboard("slm", 40, 0, console=Console(file=io.StringIO(), width=80)) as live:
        for done in range(100):  # of half a second each
            live.evaluating("target", done, 100, done / 2)
        live.evaluating("target", 0, 2, 0.0)
        live.evaluating("target", 1, 2, 2.5)
    told = [line for line in capsys.readouterr().err.splitlines() if "evaluating" in line]
    first = "slm: evaluating on held-out target, 6 of 100 batches (3 s so far)"
    assert told == [first, *[first.replace("6 of", f"{n} of").replace("3 s", f"{n // 2} s") for n in (36, 66, 96)]]
