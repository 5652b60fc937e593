"""How each stage of a pipeline stands: complete, unfinished and how far, stale and why, or not there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from slmctl.store.manifest import load_manifest
from slmctl.system.errors import SlmError
from slmctl.workspace.graph import Stage
from slmctl.workspace.planned.decisions import Decision, Found
from slmctl.workspace.planned.steps import steps_of
from slmctl.workspace.planned.walk import RESULTS, Walk

State = Literal["complete", "unfinished", "stale", "not there"]
PAGE = "index.html"


@dataclass(frozen=True)
class Standing:
    stage: Stage
    state: State
    why: tuple[str, ...] = ()
    done: int | None = None
    """Shards or saved steps; None for what is not counted, or not there."""
    of: int | None = None
    """In all; None where that is not known."""
    at: int | None = None
    """The step that a run has logged last."""


def standings(walk: Walk) -> list[Standing]:
    """How every stage stands, in the order of a run; at the end the report, which a run writes anew each time."""
    found: dict[str, Standing] = {}
    for label, stage in walk.stages.items():
        found[label] = _standing(walk, stage, found)
    return [*found.values(), _report(walk, found["eval"])]


def _standing(walk: Walk, stage: Stage, before: dict[str, Standing]) -> Standing:
    decision, there = walk.decisions[stage.label], walk.found.get(stage.label)
    back = (f"a run would take it back from {decision.place}",) if _is_taken_back(decision, there) else ()
    if there is None:
        return Standing(stage, "not there", back)
    done, of, at = _how_far(walk, stage, there)
    state: State = "complete" if there.complete else "unfinished"
    after = tuple(_said_of(walk.decisions[d], before[d]) for d in decision.after)
    why: tuple[str, ...] = decision.why
    if decision.action in ("to be seen", "made"):
        why = after
    elif back:
        state, why = "stale", (*decision.changed, *back)
    elif decision.action == "made anew":
        begun = stage.label == "eval" and not there.complete and not after
        state, why = ("unfinished", ()) if begun else ("stale", (*decision.changed, *after))
    return Standing(stage, state, why, done, of, at)


def _is_taken_back(decision: Decision, there: Found | None) -> bool:
    return decision.place is not None and (there is None or decision.place != there.place)


def _said_of(decision: Decision, standing: Standing) -> str:
    """Of a stage before another one, why that is not as it was."""
    is_open = decision.action == "to be seen" and standing.state == "complete"
    return f"{decision.label} may come out as another one" if is_open else f"{decision.label} is {standing.state}"


def _how_far(walk: Walk, stage: Stage, there: Found) -> tuple[int | None, int | None, int | None]:
    """Done, in all, and logged last."""
    if stage.kind.counted == "shards":
        return (there.done, there.of, None) if there.of is not None else (None, None, None)
    if stage.kind.counted == "steps":
        return there.done, steps_of(walk.looking.config, stage.label, lambda name: _rows(walk, name)), _last_step(walk, stage)
    return None, None, None


def _rows(walk: Walk, name: str) -> int | None:
    try:
        return load_manifest(walk.looking.workspace.tokens(name), "tokens").rows
    except SlmError:  # it is not there as it is wanted
        return None


def _last_step(walk: Walk, stage: Stage) -> int | None:
    return walk.looking.last_step(stage.label) or None


def _report(walk: Walk, evaluation: Standing) -> Standing:
    """The page shows the results that there were when it was written."""
    stage = walk.report
    places = walk.looking.workspace.places
    page, results = places.report / PAGE, places.evaluation / RESULTS
    if not page.is_file():
        return Standing(stage, "not there")
    if evaluation.state != "complete":
        return Standing(stage, "stale", (f"eval is {evaluation.state}",))
    if page.stat().st_mtime_ns < results.stat().st_mtime_ns:
        return Standing(stage, "stale", (f"{results} is newer",))
    return Standing(stage, "complete")
