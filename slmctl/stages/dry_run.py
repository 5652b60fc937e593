"""run --dry-run: what a run would do with every stage, why, and roughly what that takes. Changes nothing on disk."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from slmctl.config.identical_arms import identical_arms
from slmctl.config.pipeline import PipelineConfig
from slmctl.config.sweeps import made_by, read_sweeps
from slmctl.stages.validate import look
from slmctl.system.console import out, quiet
from slmctl.system.errors import ConfigError
from slmctl.workspace.build import duration
from slmctl.workspace.graph import key_of
from slmctl.workspace.identity import Inputs
from slmctl.workspace.planned.decisions import KEPT, Decision
from slmctl.workspace.planned.estimator import Estimate, Estimator
from slmctl.workspace.planned.walk import Walk, walk
from slmctl.workspace.workspace import Workspace

FEWEST_STEPS, MOST_EPOCHS = 10, 5
"""Of a training stage; less, and more passes over the corpus, are seldom meant."""


@dataclass(frozen=True)
class Planned:
    """What a run would do, and what it takes."""

    stages: list[tuple[Decision, Estimate]]
    problems: list[str]
    """What would stop it."""
    warnings: list[str]
    """What would not, and is worth a thought."""
    how: list[str]
    """How the estimates were made."""
    free: int | None
    """Bytes free where output_dir lies; None where that cannot be told."""
    store_is_elsewhere: bool = False

    @property
    def seconds(self) -> float | None:
        """Of all that can be estimated; None where nothing can."""
        known = [e.seconds for _, e in self.stages if e.seconds is not None]
        return sum(known) if known else None

    @property
    def bytes(self) -> tuple[float, float]:
        known = [e.bytes for _, e in self.stages if e.bytes is not None]
        return sum(b[0] for b in known), sum(b[1] for b in known)

    @property
    def bytes_here(self) -> tuple[float, float]:
        """What of it lies in output_dir."""
        sets = ("tokens/", "scores/") if self.store_is_elsewhere else ()
        known = [e.bytes for d, e in self.stages if e.bytes is not None and not d.label.startswith(sets)]
        return sum(b[0] for b in known), sum(b[1] for b in known)

    @property
    def not_estimated(self) -> list[str]:
        return [d.label for d, e in self.stages if d.action not in KEPT and (e.seconds is None or e.bytes is None)]


def dry_run(config: PipelineConfig, as_json: bool = False) -> None:
    """Prints what `run` would do. Raises `ConfigError` with all that would stop it."""
    planned = plan_run(config)
    if as_json:
        out.print(json.dumps(as_data(planned), indent=2, ensure_ascii=False), soft_wrap=True, markup=False)
    else:
        show(planned)
    if planned.problems:
        raise ConfigError("\n  ".join(["this would stop the run:", *planned.problems]))


def plan_run(config: PipelineConfig) -> Planned:
    """Looks at what is there, and decides on every stage. Raises `ConfigError` where output_dir is another pipeline's."""
    with quiet():
        found = walk(config, resolve_results)
        looking, decisions = found.looking, found.decisions
        made = frozenset(made_by(looking.config, read_sweeps(looking.root)))
        seen = look(config, made_by_sweeps=made)
        alike = identical_arms(config, made)
        problems = [*(m for m in seen.mistakes if m not in alike), *_that_matter(found, seen.wrong), *found.problems]
        estimator = Estimator(looking.workspace, decisions)
        stages = [(d, estimator.of(d)) for d in decisions.values()]
        problems += [*estimator.problems, *_unwritable(looking.root)]
        told, elsewhere = list(dict.fromkeys(problems)), config.store_dir is not None
        warnings = [*alike, *seen.warnings, *unusual_budgets(stages)]
        return Planned(stages, told, warnings, estimator.how, _free(looking.root), elsewhere)


def resolve_results(workspace: Workspace) -> Inputs:
    """What results.json would be made from, of the arms that are complete. Raises `SlmError` where that cannot be told."""
    from slmctl.stages.evaluate import resolve

    return resolve(workspace).inputs


def unusual_budgets(stages: list[tuple[Decision, Estimate]]) -> list[str]:
    """A line on each training stage to be made that has next to no steps, or sees the corpus many times."""
    found = []
    for decision, estimate in stages:
        if decision.action in KEPT or estimate.steps is None:
            continue
        if estimate.steps < FEWEST_STEPS:
            found.append(f"{decision.label}: {counted(estimate)} will hardly change it. Give it more, or a smaller batch_tokens.")
        if decision.label != "reference" and (estimate.epochs or 0) > MOST_EPOCHS:
            found.append(f"{decision.label}: {counted(estimate)} of the corpus, which it may come to know by heart.")
    return found


def counted(estimate: Estimate) -> str:
    """Steps and epochs, as far as they are known."""
    if estimate.steps is None:
        return ""
    steps = f"{estimate.steps:,} step{'s' * (estimate.steps != 1)}"
    if estimate.epochs is None:
        return steps
    short = f"{estimate.epochs:.2g}" if estimate.epochs < 100 else f"{estimate.epochs:,.0f}"
    return f"{steps}, {short} epoch{'s' * (short != '1')}"


def _that_matter(found: Walk, wrong: list[str]) -> list[str]:
    """What is absent, without the texts of sets that are kept without them."""
    if found.looking.config.missing_inputs == "stop":
        return wrong
    kept = [key_of(s.name) for label, s in found.stages.items() if label.startswith("tokens/") and found.ready(label)]
    return [line for line in wrong if not line.startswith(tuple(f"{k}{end}" for k in kept for end in (":", ".")))]


def _existing(place: Path) -> Path:
    """A folder, or the first above it that is there."""
    place = place.absolute()
    while not place.exists():
        place = place.parent
    return place


def _unwritable(root: Path) -> list[str]:
    """Says that nothing can be written where every run writes at least its locks and its report."""
    place = _existing(root)
    if os.access(place, os.W_OK | os.X_OK):
        return []
    return [f"cannot write to {place}. Choose another output_dir, or change its rights."]


def _free(root: Path) -> int | None:
    try:
        return shutil.disk_usage(_existing(root)).free
    except OSError:
        return None


# --- what is shown ---


def as_data(planned: Planned) -> dict[str, Any]:
    """The same as plain data, for --json."""
    of_decisions = ("label", "action", "why", "done", "place")
    stages = [{**{k: getattr(d, k) for k in of_decisions}, "why": list(d.why), **asdict(e)} for d, e in planned.stages]
    return {
        "stages": stages,
        "problems": planned.problems,
        "warnings": planned.warnings,
        "seconds": planned.seconds,
        "bytes": list(planned.bytes),
        "free_bytes": planned.free,
        "not_estimated": planned.not_estimated,
        "how": planned.how,
    }


def show(planned: Planned) -> None:
    """The plan as a table, its reasons below each stage, and the sums."""
    table = Table(box=None, pad_edge=False)
    table.add_column("stage")
    table.add_column("would be")
    table.add_column("training")
    for column in ("time", "disk"):
        table.add_column(column, justify="right")
    table.add_column("why", overflow="fold")
    for decision, estimate in planned.stages:
        works = decision.action not in KEPT
        cost = [duration(estimate.seconds) if estimate.seconds is not None else "?", sizes(estimate.bytes)] if works else ["", ""]
        at = f" (after {decision.done})" if decision.action == "gone on with" and decision.done else ""
        table.add_row(decision.label, f"{decision.action}{at}", counted(estimate), *cost, "; ".join(decision.why))
    width = out.width if out.is_terminal else max(out.width, 160)  # in a log nothing is cut off
    Console(file=out.file, width=width, highlight=False, markup=False).print(table)
    for line in [*_sums(planned), *(f"warning: {w}" for w in planned.warnings)]:
        out.print(line, soft_wrap=True, markup=False)


def _sums(planned: Planned) -> list[str]:
    if all(d.action in KEPT for d, _ in planned.stages):
        back = [d.label for d, _ in planned.stages if d.action == "taken back"]
        first = f"take back {', '.join(back)}, and then " if back else ""
        return [f"nothing is to be made: a run would {first}only write the report again. Nothing was changed."]
    low, high = planned.bytes
    total = f"about {duration(planned.seconds)}" if planned.seconds is not None else "time not known"
    free = f", of {planned.free / 1e9:,.1f} GB that are free" if planned.free is not None else ""
    lines = [f"in all {total} and {sizes((low, high))} of disk{free}. Rough, and nothing was changed."]
    if any(d.action == "made anew" for d, _ in planned.stages):
        lines.append("  made anew: what is there now is kept in stale/, and its disk space is not freed")
    lines += [f"  {line}" for line in planned.how]
    if planned.not_estimated:
        lines.append(f"  not estimated, or not whole: {', '.join(planned.not_estimated)}")
    low, high = planned.bytes_here
    if planned.free is not None and high > planned.free:
        fits = "may not fit" if low <= planned.free else "does not fit"
        lines.append(f"warning: this {fits} on the disk. Free some space, keep fewer checkpoints, or give another output_dir.")
    return lines


def sizes(found: tuple[float, float] | None) -> str:
    """A range of bytes, in the unit of its upper end."""
    if found is None:
        return "?"
    low, high = found
    unit, name = next(((u, n) for u, n in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")) if high >= u), (1.0, "B"))
    ends = [f"{low / unit:.3g}", f"{high / unit:.3g}"]
    return f"{ends[1]} {name}" if ends[0] == ends[1] else f"{ends[0]} to {ends[1]} {name}"
