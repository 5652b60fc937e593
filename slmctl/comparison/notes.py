"""What a reader of results should know of the arms: what was edited, trained or added since, and arithmetic that is not the
same."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from slmctl.comparison.compared import Arm
from slmctl.comparison.results import is_under_way
from slmctl.config.decides import result_settings
from slmctl.config.training import ArmConfig
from slmctl.store.manifest import differences
from slmctl.system.console import warn
from slmctl.system.files import read_json
from slmctl.workspace.places import Places
from slmctl.workspace.precisions import as_recorded, precision_in
from slmctl.workspace.stale import DONE, INPUTS


def notes_of(arms: Mapping[str, Arm], now: Mapping[str, ArmConfig]) -> list[str]:
    """Of arms that are evaluated. `now` is what the configuration says of them."""
    edited = [note for name, arm in arms.items() for note in edited_settings(name, arm.made_from, now[name])]
    return [*edited, *different_precisions({name: arm.made_from for name, arm in arms.items()})]


def notes_of_now(results: dict[str, Any], wanted: Mapping[str, ArmConfig], places: Places, told: set[str]) -> list[str]:
    """The notes of results, with what is now different from what each arm was trained as, or was measured on; warns of settings
    that were edited, as `warn_once`. `wanted` are the configuration's arms."""
    arms, inputs = results.get("arms", {}), places.evaluation / INPUTS
    done = [a for a in dict.fromkeys([*arms, *wanted]) if (places.arm(a) / DONE).is_file()]
    measured = read_json(inputs).get("runs", {}) if inputs.is_file() else {}
    changed = tuple(f"arm {arm} was trained with other settings" for arm in arms)
    found = [note for note in results.get("notes") or [] if not note.startswith(changed)]
    for name in arms:
        if name not in wanted:
            found.append(f"arm {name} is not in the configuration any more")
        elif name in done:
            edited = edited_settings(name, read_json(places.arm(name) / INPUTS), wanted[name])
            warn_once(edited, told)
            found += edited
        if name not in done:
            found.append(f"arm {name} is not there any more as it was evaluated: its folder is absent, or being trained anew")
        elif name in measured and measured[name] != Arm.read(name, places.arm(name)).run:
            found.append(f"the results are older than arm {name}: run `slmctl eval`")
    if is_under_way(places.evaluation):
        found.append("the results are older than an evaluation that is not finished: run `slmctl eval`")
    for name in (a for a in wanted if a not in arms):
        found.append(f"no results for arm {name}: run `slmctl {'eval' if name in done else 'pretrain'}`")
    return found


def edited_settings(arm: str, made_from: dict[str, Any], now: ArmConfig) -> list[str]:
    """An arm is reported as what it was trained as, not as what the configuration says `now`."""
    made = made_from["settings"]
    found = differences(made, as_recorded(result_settings(now), made))
    return [f"arm {arm} was trained with other settings than the configuration has now: {line}" for line in found]


def different_precisions(made_from: Mapping[str, dict[str, Any]]) -> list[str]:
    """Arms that were trained in other arithmetic than others differ by that, too. `made_from` is by arm."""
    by_kind: dict[str, list[str]] = {}
    for arm, inputs in made_from.items():
        by_kind.setdefault(str(precision_in(inputs)), []).append(arm)
    if len(by_kind) < 2:
        return []
    listing = "; ".join(f"{kind}: {', '.join(named)}" for kind, named in by_kind.items())
    return [f"arms were trained in different precisions ({listing}): a part of their differences may be the arithmetic's"]


def warn_once(notes: Iterable[str], told: set[str]) -> None:
    """Warns of what is not among those that were `told`, and adds it: several stages of one run find the same."""
    for note in notes:
        if note not in told:
            warn(note)
            told.add(note)
