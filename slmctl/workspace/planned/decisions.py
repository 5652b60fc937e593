"""What a run would do with each stage: pure functions of what is there, what is wanted, and what becomes of the stages before.

Nothing here reads or writes a file. `slmctl.workspace.planned.walk` looks, and asks `decide` stage by stage, in a run's order.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from slmctl.workspace.changes import changes, few

Action = Literal["skipped", "taken back", "gone on with", "made", "made anew", "to be seen"]
"""to be seen: kept if a stage before it comes out as it was, else made anew."""
KEPT: tuple[Action, ...] = ("skipped", "taken back")
WORK: tuple[Action, ...] = ("gone on with", "made", "made anew")


@dataclass(frozen=True)
class Found:
    """A result that is there, complete or not."""

    inputs: dict[str, Any] | None
    """What it was made from; None where that is not recorded."""
    complete: bool
    done: int = 0
    """Steps or shards."""
    place: str = ""
    of: int | None = None
    """Shards in all; None for what is not counted in shards."""


@dataclass(frozen=True)
class Wanted:
    """What a stage's result should be made from now."""

    inputs: dict[str, Any]
    """As far as it can be told before the stages that it depends on are done."""
    depends: tuple[str, ...] = ()
    """Labels of these stages."""
    unknown: str = ""
    """Why some of it cannot be told here, besides."""


@dataclass(frozen=True)
class Decision:
    """What a run would do with one stage."""

    label: str
    action: Action
    why: tuple[str, ...] = ()
    done: int = 0
    """Steps or shards that are there already, where it is gone on with."""
    place: str | None = None
    """Where the result lies that is kept or taken back."""
    changed: tuple[str, ...] = ()
    """Of `why`: what it was made from and is other now."""
    after: tuple[str, ...] = ()
    """Stages before it that are not as they were when it was made: made anew, or still to be made."""

    @property
    def is_other(self) -> bool:
        """Whether what comes out is certainly other than what was there."""
        return self.action == "made anew"


def decide(label: str, wanted: Wanted, found: Found | None, stale: Found | None, before: Mapping[str, Decision]) -> Decision:
    """What becomes of a stage. `stale` is the result in stale/ that has the wanted inputs, if there is one; `before` are the
    decisions on the stages before. A result that depends on one that is made anew is made anew itself."""
    others = [d for d in wanted.depends if d in before and before[d].is_other]
    open_ = [d for d in wanted.depends if d in before and before[d].action not in KEPT and d not in others]
    if found is None:
        if stale is not None and not others and not open_:
            return _taken_back(label, stale, ())
        return Decision(label, "made")
    partly = bool(open_ or others or wanted.unknown)
    changed = (
        ["what it was made from is not recorded"] if found.inputs is None else differing(found.inputs, wanted.inputs, partly)
    )
    why = (*few(changed), *(f"depends on {d}, which is made anew" for d in others))
    if why:
        if stale is not None and not others and not open_:
            return _taken_back(label, stale, tuple(changed[:1]))
        return Decision(label, "made anew", why, changed=tuple(few(changed)), after=tuple(others))
    if open_:
        first = ", ".join(f"{d} ({before[d].action})" for d in open_)
        return Decision(
            label, "to be seen", (f"kept if it still fits what comes of {first}, else made anew",), after=tuple(open_)
        )
    as_far = (f"as far as can be told: {wanted.unknown}",) if wanted.unknown else ()
    if found.complete:
        return Decision(label, "skipped", as_far, place=found.place)
    return Decision(label, "gone on with", as_far, done=found.done, place=found.place)


def _taken_back(label: str, stale: Found, why: tuple[str, ...]) -> Decision:
    done = 0 if stale.complete else stale.done
    more = () if stale.complete else (f"and then gone on with after {done}",)
    action: Action = "taken back" if stale.complete else "gone on with"
    return Decision(label, action, (*why, f"taken back from {stale.place}", *more), done, stale.place, changed=why)


def differing(was: dict[str, Any], now: dict[str, Any], partly: bool = False) -> list[str]:
    """What has changed since a result was made; with `partly` only what `now` can tell yet."""
    return changes({k: v for k, v in was.items() if k in now} if partly else was, now)
