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

from slmctl.config.alike import identical_arms
from slmctl.config.pipeline import PipelineConfig
from slmctl.config.sweeps import made_by, read_sweeps
from slmctl.stages.validate import look
from slmctl.system.console import out, quiet
from slmctl.system.errors import ConfigError, SlmError
from slmctl.system.files import read_json
from slmctl.system.storage import LocalFolder
from slmctl.workspace.build import duration
from slmctl.workspace.changes import few
from slmctl.workspace.contamination_told import read_report
from slmctl.workspace.folders import INPUTS
from slmctl.workspace.gone import Kept
from slmctl.workspace.planned.decide import KEPT, Decision, Found, Wanted, decide, differing, order
from slmctl.workspace.planned.estimating import Estimate, Estimator
from slmctl.workspace.planned.looking import Looking
from slmctl.workspace.stale import same_results, strict

RESULTS = "results.json"
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
        workspace = Looking(config)
        problems: list[str] = []
        decisions: dict[str, Decision] = {}
        for label, depends in order(workspace.config).items():
            decided = _eval(workspace, depends, decisions, problems) if label == "eval" else None
            decisions[label] = decided or _stage(workspace, label, depends, decisions, problems)
            if decisions[label].action not in KEPT and label != "eval":
                workspace.put(label, None)
            elif decisions[label].action == "taken back" and label != "eval":
                workspace.put(label, Path(str(decisions[label].place)))
        made = frozenset(made_by(workspace.config, read_sweeps(workspace.root)))
        seen = look(config, made_by_sweeps=made)
        alike = identical_arms(config, made)
        problems = [*(m for m in seen.mistakes if m not in alike), *_that_matter(workspace, seen.wrong, decisions), *problems]
        estimator = Estimator(workspace, decisions)
        stages = [(d, estimator.of(d)) for d in decisions.values()]
        problems += [*estimator.problems, *_unwritable(workspace)]
        told, elsewhere = list(dict.fromkeys(problems)), config.store_dir is not None
        return Planned(
            stages, told, [*alike, *seen.warnings, *unusual_budgets(stages)], estimator.how, _free(workspace), elsewhere
        )


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


def _stage(
    workspace: Looking, label: str, depends: tuple[str, ...], before: dict[str, Decision], problems: list[str]
) -> Decision:
    found = workspace.found(label)
    if label.startswith("tokens/") and (kept := _kept_without_texts(workspace, label, found, problems)) is not None:
        return kept
    stale_possible = (workspace.root / "stale").is_dir()
    if found is None and not stale_possible:
        return decide(label, Wanted({}, depends), None, None, before)
    try:
        inputs, unknown = workspace.wanted(label)
    except SlmError as e:
        if not label.startswith("token"):  # of texts it is told by what names all that is absent
            problems.append(f"{label}: {e}")
        inputs, unknown = {}, str(e)
    inputs = workspace.settle(label, inputs, found)
    settled = not unknown and all(before[d].action in KEPT for d in depends if d in before)
    stale = workspace.in_stale(label, inputs) if settled and stale_possible else None
    decision = decide(label, Wanted(inputs, depends, unknown), found, stale, before)
    if decision.action == "made anew" and label.startswith(("tokens/", "scores/")) and not _moves_aside(workspace):
        problems.append(
            f"{workspace.store / label} holds a set that was made from other inputs. Give another store_dir, or delete that "
            "folder."
        )
    return decision


def _moves_aside(workspace: Looking) -> bool:
    return isinstance(workspace.store, LocalFolder) and workspace.config.store_dir is None


def _kept_without_texts(workspace: Looking, label: str, found: Found | None, problems: list[str]) -> Decision | None:
    """A set whose texts are gone, where the configuration accepts that; None for any other."""
    if found is None or workspace.config.missing_inputs == "stop":
        return None
    name = label.partition("/")[2]
    if any(s.hub and not Path(s.hub).is_dir() for s in workspace.sources(name)):  # which would be asked for over the network
        return None
    try:
        here = workspace.inputs_here(name, found.inputs)
    except SlmError:  # which is told with the others
        return None
    if not isinstance(here, Kept):
        return None
    wanted = {**workspace.packing_inputs(), **here.inputs}
    if not found.complete or differing(found.inputs or {}, wanted, partly=True):
        problems.append(f"{label} cannot be made as the configuration wants it now: {here.why}")
    return Decision(label, "skipped", ("its texts are gone, which missing_inputs accepts",), place=found.place)


def _eval(workspace: Looking, depends: tuple[str, ...], before: dict[str, Decision], problems: list[str]) -> Decision | None:
    """eval where all that it measures is there already; None where something is made first."""
    folder = workspace.evaluation
    found = folder / RESULTS
    if not found.is_file():
        work = [d for d in depends if before[d].action not in KEPT]
        if work or not (workspace.root / "stale").is_dir():
            return Decision("eval", "made")
    elif any(before[d].action not in KEPT for d in depends):
        made = [d for d in depends if before[d].action not in KEPT]
        return Decision("eval", "made anew", tuple(few([f"depends on {d}, which is {before[d].action}" for d in made])))
    from slmctl.stages.evaluate import resolve

    told = read_report(workspace.root)
    if told is not None and told["overlap"] != workspace.config.eval.contamination_overlap:
        return Decision("eval", "made anew", ("eval.contamination_overlap has changed",))
    try:
        inputs = resolve(workspace).inputs
    except SlmError as e:
        problems.append(f"eval: {e}")
        return Decision("eval", "made anew" if found.is_file() else "made", (str(e),))
    record = folder / INPUTS
    was = strict(read_json(record)) if record.is_file() and not (folder / "under_way.json").is_file() else None
    there = Found(was, True, place=str(folder)) if found.is_file() else None
    aside = same_results(workspace.root, inputs, RESULTS)
    stale = Found(inputs, True, place=str(aside)) if aside is not None else None
    return decide("eval", Wanted(inputs, depends), there, stale, before)


def _that_matter(workspace: Looking, wrong: list[str], decisions: dict[str, Decision]) -> list[str]:
    """What is absent, without the texts of sets that are kept without them."""
    if workspace.config.missing_inputs == "stop":
        return wrong
    kept = [f"data.{label.removeprefix('tokens/').replace('/', '.')}" for label, d in decisions.items() if d.action in KEPT]
    return [line for line in wrong if not line.startswith(tuple(f"{k}{end}" for k in kept for end in (":", ".")))]


def _existing(place: Path) -> Path:
    """A folder, or the first above it that is there."""
    place = place.absolute()
    while not place.exists():
        place = place.parent
    return place


def _unwritable(workspace: Looking) -> list[str]:
    """Says that nothing can be written where every run writes at least its locks and its report."""
    place = _existing(workspace.root)
    if os.access(place, os.W_OK | os.X_OK):
        return []
    return [f"cannot write to {place}. Choose another output_dir, or change its rights."]


def _free(workspace: Looking) -> int | None:
    place = _existing(workspace.root)
    try:
        return shutil.disk_usage(place).free
    except OSError:
        return None


# --- what is shown ---


def as_data(planned: Planned) -> dict[str, Any]:
    """The same as plain data, for --json."""
    stages = [{**asdict(d), "why": list(d.why), **asdict(e)} for d, e in planned.stages]
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
