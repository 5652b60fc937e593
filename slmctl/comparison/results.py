"""eval/results.json: whether it is up to date, and how new results take the place of the former, which stay until then."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from slmctl.comparison.alarms.alarms import alarms
from slmctl.store.manifest import differences
from slmctl.system.console import say
from slmctl.system.errors import InputError
from slmctl.system.files import publishing, read_json, sweep, write_json
from slmctl.workspace.handles import StageFolder
from slmctl.workspace.stale import ACCEPTED, INPUTS

SCHEMA = 2
"""Of results.json."""
RESULTS = "results.json"
HIGHLIGHTS = "highlights.json"
UNDER_WAY = "under_way.json"
"""Holds the inputs of an evaluation that is not finished: what lies beside the results is perhaps not theirs any more."""
EARLIER = "the results are of an earlier slmctl, and what is said of them is by today's rules: run `slmctl eval`"


def load_results(folder: Path) -> dict[str, Any]:
    """The results in eval/. Raises `InputError` where there are none."""
    path = folder / RESULTS
    if not path.is_file():
        raise InputError(f"{path} does not exist. Run `slmctl eval` first.")
    found: dict[str, Any] = read_json(path)
    return judged_anew(found) if "alarms" in found and "sets" not in found else found


def judged_anew(results: dict[str, Any]) -> dict[str, Any]:
    """Results of an slmctl whose rules claimed more than was checked (they have no `sets`), with today's alarms."""
    notes = [*(results.get("notes") or []), EARLIER]
    return {**results, "alarms": alarms(results), "notes": list(dict.fromkeys(notes))}


def are_current(stage: StageFolder, inputs: dict[str, Any]) -> bool:
    """Whether the results that are there were made from these very inputs, and no evaluation has been begun since."""
    return not is_under_way(stage.path) and stage.is_complete(inputs, RESULTS)


def is_under_way(folder: Path) -> bool:
    return (folder / UNDER_WAY).is_file()


def take_back_results(
    stage: StageFolder, inputs: dict[str, Any], aside: Path, write_cards: Callable[[dict[str, Any]], None]
) -> None:
    """Puts the results of `aside`, of stale/, which were made from these very inputs, in the place of those that are there, which
    go to stale/. What lies beside them stays: it is the last evaluation's, and each part of it knows whose."""
    folder = stage.path
    stage.lock()
    results = read_json(aside / RESULTS)
    if (folder / RESULTS).is_file():
        _keep_former(stage)
    write_cards(results)
    write_json(folder / UNDER_WAY, inputs)
    for name in (HIGHLIGHTS, RESULTS, INPUTS):
        if (aside / name).is_file():
            with publishing(folder / name) as temporary:
                shutil.copyfile(aside / name, temporary)
    (folder / UNDER_WAY).unlink()
    for name in (HIGHLIGHTS, RESULTS, INPUTS):
        (aside / name).unlink(missing_ok=True)
    with suppress(OSError):  # something else was put there
        aside.rmdir()
    say(f"eval: taken back from {aside}, which was made from what is wanted now")
    stage.record()


def begun_from(folder: Path) -> dict[str, Any]:
    """What the evaluation that is under way, else the one that is there, is made from; empty where there is neither."""
    files = [folder / name for name in (UNDER_WAY, INPUTS)]
    found: dict[str, Any] = next((read_json(f) for f in files if f.is_file()), {})
    return found


def begin_results(stage: StageFolder, inputs: dict[str, Any]) -> None:
    """Keeps other processes out of eval/, and says what has changed since the results that are there, which stay."""
    folder = stage.path
    stage.lock()
    sweep(folder)
    if (folder / INPUTS).is_file():
        former = _former_inputs(folder)
        new, gone = (
            [a for a in x.get("runs", {}) if a not in y.get("runs", {})] for x, y in ((inputs, former), (former, inputs))
        )
        for arms, what in ((new, "new"), (gone, "no longer in the comparison:")):
            if arms:
                say(f"eval: {what} {'arms' if len(arms) > 1 else 'arm'} {', '.join(arms)}")
        stage.changed(*(_without(x, {*new, *gone}) for x in (former, inputs)))
    write_json(folder / UNDER_WAY, inputs)


def publish_results(stage: StageFolder, inputs: dict[str, Any], results: dict[str, Any], shown: dict[str, Any]) -> None:
    """Puts results and highlights (`shown`) in the place of the former. Those that were made from other inputs are kept in
    stale/."""
    folder = stage.path
    if (folder / RESULTS).is_file() and differences(_former_inputs(folder), inputs):
        _keep_former(stage)
    stage.record()
    write_json(folder / HIGHLIGHTS, shown)
    write_json(folder / RESULTS, results)
    write_json(folder / INPUTS, {**inputs, **({ACCEPTED: sorted(stage.accepted)} if stage.accepted else {})})
    (folder / UNDER_WAY).unlink()


def _without(inputs: dict[str, Any], arms: set[str]) -> dict[str, Any]:
    """What results were made from, but for arms that have come or gone, and the sweeps that made them."""
    kept = {k: {n: x for n, x in inputs.get(k, {}).items() if n not in arms} for k in ("models", "runs", "checkpoints")}
    return {k: kept.get(k, v) for k, v in inputs.items() if not (arms and k == "sweeps")}


def _former_inputs(folder: Path) -> dict[str, Any]:
    path = folder / INPUTS
    return {k: v for k, v in read_json(path).items() if k != ACCEPTED} if path.is_file() else {}


def _keep_former(stage: StageFolder) -> None:
    aside = stage.stale_place()
    aside.mkdir(parents=True)
    for name in (INPUTS, HIGHLIGHTS, RESULTS):
        if (stage.path / name).is_file():
            shutil.copy2(stage.path / name, aside / name)
    say(f"eval: the former results are kept in {aside}; delete them when you no longer need them")
