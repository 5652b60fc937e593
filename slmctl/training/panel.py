"""The panel that a terminal shows while a run trains: progress, figures of the last steps, held-out losses, the loss's curve."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from slmctl.evaluation.comparability import measure_of, why_not_comparable

MIN_WIDTH, MAX_WIDTH, MIN_HEIGHT = 60, 100, 20
"""Columns and lines of a terminal that has room for the panel, and the columns that it takes at most."""
HELDOUT_SHOWN = 5
"""Held-out sets that the panel has lines for."""
RECENT = 20
"""Steps that speed, loader share and time left are averaged over."""
BARS = "▁▂▃▄▅▆▇█"


def has_room(console: Console) -> bool:
    """Whether `console` is a terminal that the panel fits in."""
    if not (console.is_terminal and console.file.isatty()) or console.is_dumb_terminal or console.options.ascii_only:
        return False
    return console.width >= MIN_WIDTH and console.height >= MIN_HEIGHT


class Screen:
    """The panel. It is told by the training thread and drawn by another, so what it is told replaces what it holds at once."""

    def __init__(self, name: str, steps: int, start: int, skipped: int = 0, clock: Callable[[], float] = time.monotonic) -> None:
        self.name, self.steps, self.done, self.clock = name, steps, start, clock
        self.began = clock()
        self.record: dict[str, Any] = {}
        self.share: float | None = None
        self.skipped = skipped
        self.losses = History()
        self.recent: deque[tuple[float, dict[str, Any]]] = deque(maxlen=RECENT + 1)
        self.heldout: dict[str, tuple[float, float | None]] = {}
        self.evaluation: dict[str, Any] = {}
        self.evaluated_at: int | None = None
        self.now_evaluating: str | None = None
        self.in_hand: int | None = None
        self.last_saved: int | None = start or None

    def step(self, record: dict[str, Any]) -> None:
        self.share = _share_of_step(self.record, record)
        self.skipped += record.get("skipped") is not None
        self.losses.add(record.get("loss"))
        self.recent.append((self.clock(), record))
        self.record, self.done = record, record["step"]

    def evaluating(self, name: str, done: int, batches: int, seconds: float) -> None:
        self.now_evaluating = f"{name} {done:,}/{batches:,} ({seconds:.0f} s)"

    def evaluated(self, record: dict[str, Any]) -> None:
        before, last = self.heldout, self.evaluation
        found = {}
        for name, loss in record["heldout"].items():
            alike = name in before and why_not_comparable(measure_of(last, name), measure_of(record, name)) is None
            found[name] = (loss, loss - before[name][0] if alike else None)
        self.heldout, self.evaluation, self.evaluated_at = found, record, record["step"]
        self.now_evaluating = None

    def saving(self, step: int) -> None:
        self.in_hand = step

    def saved(self, whole: bool) -> None:
        if self.in_hand is not None and whole:
            self.last_saved = self.in_hand
        self.in_hand = None

    # --- what follows from the records ---

    def seconds_left(self) -> float | None:
        """By the last steps' pace, with the evaluations and saves between them."""
        recent = list(self.recent)
        if self.done >= self.steps:
            return 0.0
        if len(recent) < 2 or recent[-1][1]["step"] <= recent[0][1]["step"]:
            return None
        pace: float = (recent[-1][0] - recent[0][0]) / (recent[-1][1]["step"] - recent[0][1]["step"])
        return max(0.0, (self.steps - self.done) * pace - (self.clock() - recent[-1][0]))

    def tokens_per_s(self) -> float | None:
        known = [r for _, r in list(self.recent)[-RECENT:] if finite(r.get("tokens_per_s")) and finite(r.get("seconds"))]
        seconds = sum(r["seconds"] for r in known)
        return sum(r["tokens_per_s"] * r["seconds"] for r in known) / seconds if seconds else None

    def loader_share(self) -> float | None:
        known = [r for _, r in list(self.recent)[-RECENT:] if finite(r.get("loader_seconds")) and finite(r.get("seconds"))]
        seconds = sum(r["seconds"] for r in known)
        return sum(r["loader_seconds"] for r in known) / seconds if seconds else None

    def loss_of_all(self) -> float | None:
        """Mean loss of all tokens of the last step; None where those left out were not computed (random selection)."""
        mean: float | None = self.record.get("live_mean")
        return mean if self.record.get("loss_unselected") is not None or self.share == 1.0 else None

    def checkpoint(self) -> str:
        last = f"step {self.last_saved:,}" if self.last_saved is not None else "none yet"
        return last if self.in_hand is None else f"{last} (writing {self.in_hand:,})"

    # --- drawing ---

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = min(options.max_width, MAX_WIDTH)
        inner = max(1, width - 4)
        parts: list[RenderableType] = [self._progress(inner), self._figures(), self._heldout(inner), self._curve(inner)]
        panel = Panel(Group(*parts), title=Text(self.name, "bold", overflow="ellipsis"), width=width, border_style="dim")
        yield from console.render(panel, options.update(width=width, no_wrap=False, overflow="ellipsis", height=None))

    def _progress(self, width: int) -> Table:
        count = f"step {self.done:,}/{self.steps:,}"
        share = min(1.0, self.done / self.steps) if self.steps else 1.0
        times = f"{share:4.0%}  {clock_time(self.clock() - self.began)}  left {clock_time(self.seconds_left())}"
        room = max(4, width - len(count) - len(times) - 4)
        grid = Table.grid(padding=(0, 2))
        bar = ProgressBar(total=max(1, self.steps), completed=min(self.done, self.steps), width=room)
        grid.add_row(_text(count), bar, _text(times))
        return grid

    def _figures(self) -> Table:
        r = self.record
        seen, selected = r.get("tokens_seen"), r.get("tokens_selected")
        part = f" ({selected / seen:.1%})" if seen and selected is not None else ""
        skipped = number(self.skipped, ",d") + (" (the last)" if r.get("skipped") is not None else "")
        memory = r.get("memory_bytes")
        rows = [
            ("tokens seen", number(seen, ",d"), "learning rate", number(r.get("lr"), ".2e")),
            ("trained on", number(selected, ",d") + part, "gradient norm", number(r.get("grad_norm"), ".4g")),
            ("loss, selected", number(r.get("loss_selected"), ".4f"), "tokens/s", number(self.tokens_per_s(), ",.0f")),
            ("loss, unselected", number(r.get("loss_unselected"), ".4f"), "waits for rows", number(self.loader_share(), ".1%")),
            ("loss, all", number(self.loss_of_all(), ".4f"), "memory", size(memory)),
            ("steps skipped", skipped, "MFU", number(r.get("mfu"), ".1%")),
            ("checkpoint", self.checkpoint(), "", ""),
        ]
        grid = Table.grid(padding=(0, 2), expand=True)
        for ratio in (None, 3, None, 2):
            grid.add_column(ratio=ratio, no_wrap=True, overflow="ellipsis")
        for a, b, c, d in rows:
            grid.add_row(_text(a, "dim"), _text(b), _text(c, "dim"), _text(d))
        return grid

    def _heldout(self, width: int) -> Group:
        now = f"evaluating {self.now_evaluating}" if self.now_evaluating else ""
        if self.evaluated_at is None:
            return Group(_text(f"held-out: {now or 'not evaluated yet'}", "dim"))
        shown = list(self.heldout.items())
        more = len(shown) - HELDOUT_SHOWN
        rest = (f" (and {more} more sets)" if more > 0 else "") + (f"; {now}" if now else "")
        lines = [_text(f"held-out loss, step {self.evaluated_at:,}{rest}", "dim")]
        room = max(8, min(max((len(n) for n, _ in shown), default=0), width - 26))
        for name, (loss, change) in shown[:HELDOUT_SHOWN]:
            line = Text(f"  {shortened(name, room):<{room}}  {number(loss, '.4f'):>9}", no_wrap=True, overflow="ellipsis")
            if change is not None:
                line.append(f"  {change:+.4f}", "green" if change < 0 else "yellow" if change > 0 else "dim")
            lines.append(line)
        return Group(*lines)

    def _curve(self, width: int) -> Text:
        values = self.losses.values()
        if len(values) < 2:
            return _text("loss: no curve yet", "dim")
        ends = f"  {values[0]:.3f} to {values[-1]:.3f}"
        return _text("loss  ", "dim").append(sparkline(values, max(1, width - 6 - len(ends))), "cyan").append(ends, "default")


class History:
    """A run's values as at most `limit` means of equally many of them each; what is not finite is left out."""

    def __init__(self, limit: int = 256) -> None:
        self.limit, self.stride = limit, 1
        self.means: list[float] = []
        self.sum, self.n = 0.0, 0

    def add(self, value: Any) -> None:
        if not finite(value):
            return
        self.sum, self.n = self.sum + value, self.n + 1
        if self.n == self.stride:
            self.means.append(self.sum / self.n)
            self.sum, self.n = 0.0, 0
        if len(self.means) == self.limit:
            self.means = [(a + b) / 2 for a, b in zip(self.means[::2], self.means[1::2], strict=True)]
            self.stride *= 2

    def values(self) -> list[float]:
        """Oldest first; the last may be of fewer values."""
        sum_, n = self.sum, self.n
        return [*self.means, *([sum_ / n] if n else [])]


def sparkline(values: list[float], width: int) -> str:
    """`values` (finite) as bars from the least to the greatest, at most `width` of them, each a mean of its neighbours."""
    n = min(width, len(values))
    parts = [values[i * len(values) // n : (i + 1) * len(values) // n] for i in range(n)]
    means = [sum(p) / len(p) for p in parts]
    low, high = min(means), max(means)
    top = len(BARS) - 1
    return "".join(BARS[round((m - low) / (high - low) * top) if high > low else top // 2] for m in means)


def _share_of_step(before: dict[str, Any], after: dict[str, Any]) -> float | None:
    """Share of a step's tokens that were trained on, by the totals before and after it; without a record before, of all
    steps. None of a step that was not taken."""
    seen = after.get("tokens_seen", 0) - before.get("tokens_seen", 0)
    selected = after.get("tokens_selected", 0) - before.get("tokens_selected", 0)
    return selected / seen if seen > 0 and after.get("skipped") is None else None


def finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def number(value: Any, form: str) -> str:
    """`-` for what is not known."""
    if value is None:
        return "-"
    return format(value, form) if math.isfinite(value) else "not finite"


def size(n_bytes: float | None) -> str:
    if n_bytes is None:
        return "-"
    return f"{n_bytes / 2**30:.1f} GiB" if n_bytes >= 2**30 else f"{n_bytes / 2**20:.0f} MiB"


def clock_time(seconds: float | None) -> str:
    """3:05:09, from days on 2d 03:05; `-` for None."""
    if seconds is None:
        return "-"
    minutes, s = divmod(int(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02d}:{s:02d}" if hours < 48 else f"{hours // 24}d {hours % 24:02d}:{m:02d}"


def shortened(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def _text(text: str, style: str = "") -> Text:
    return Text(text, style, no_wrap=True, overflow="ellipsis")
