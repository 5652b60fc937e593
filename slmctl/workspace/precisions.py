"""`precision: auto` in a stage: what its folder was begun with, else what the device gains by. What was taken is a part of the
stage's inputs, as if it had been asked for, so that whatever goes on with it, here or elsewhere, does so in the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from slmctl.model.precision import gains_by_bf16
from slmctl.system.console import say_if_new, warn
from slmctl.workspace.changes import changes

Inputs = dict[str, Any]


def precision_in(inputs: Inputs) -> str | None:
    """What a record of a stage's inputs names: among a run's settings, or those of a score set."""
    found = (inputs["settings"] if isinstance(inputs.get("settings"), dict) else inputs).get("precision")
    return found if isinstance(found, str) else None


def with_precision(inputs: Inputs, precision: str) -> Inputs:
    if isinstance(inputs.get("settings"), dict):
        return {**inputs, "settings": {**inputs["settings"], "precision": precision}}
    return {**inputs, "precision": precision}


def as_recorded(wanted: Inputs, made: Inputs | None) -> Inputs:
    """`wanted` with what was `made` in the place of `auto`, which whatever was taken is good for."""
    taken = precision_in(made or {})
    return with_precision(wanted, taken) if taken is not None and precision_in(wanted) == "auto" else wanted


def settled(wanted: Inputs, made: Inputs | None, choose: Callable[[], str]) -> Inputs:
    """`wanted` with a precision in the place of `auto`: that of what was `made` from else the same, or what is chosen."""
    if precision_in(wanted) != "auto":
        return wanted
    kept = as_recorded(wanted, made)
    return kept if made is not None and not changes(made, kept) else with_precision(wanted, choose())


def chosen(device: str, width: Callable[[], int], bf16: str = "bf16_autocast") -> str:
    """What `auto` takes for a model of hidden size `width` where nothing is begun yet."""
    return bf16 if gains_by_bf16(device, width) else "float32"


def chosen_for_scores(device: str) -> str:
    """The same for a reference's losses, where less is gained: they are made once, and a CPU's float32 takes at most some three
    times as long; a GPU's takes up to 16 times as long as its bfloat16, more than an arm's training."""
    return "bf16_autocast" if device.startswith("cuda") and gains_by_bf16(device, lambda: 0) else "float32"


def tell(name: str, asked: str, taken: str, device: str, width: Callable[[], int]) -> None:
    """Says what `auto` is where that was not the last that was said of it, and warns of what is slow on the device."""
    if asked == "auto":
        say_if_new("precision auto", taken, f"{name}: precision auto is {taken}")
    if taken != "float32" and not gains_by_bf16(device, width):
        where = "this GPU has no bfloat16 arithmetic" if device.startswith("cuda") else "this CPU gains nothing by bfloat16"
        begun = "It was begun so" if asked == "auto" else "precision: auto takes float32 here"
        warn(f"{name}: precision {taken} is slower than float32 here, perhaps many times: {where}. {begun}.")
