"""Arms that differ in one thing alone: those of several seeds summed up, and those of a sweep by its value."""

from __future__ import annotations

from typing import Any

import numpy as np

from slmctl.config.pipeline import PipelineConfig
from slmctl.config.sweeps import points_of


def seeds(arms: dict[str, Any], models: dict[str, Any], target: str) -> list[dict[str, Any]]:
    """Arms that differ in their seed alone, summed up: mean and standard deviation (n - 1) of the target loss."""
    alike: dict[str, dict[int, str]] = {}
    for arm, facts in arms.items():
        if models[arm]["heldout"][target]["loss"] is not None:
            same = alike.setdefault(repr((facts["selection"], sorted(facts["settings"].items(), key=str))), {})
            same.setdefault(facts["seed"], arm)  # the same seed twice is the same run
    found = []
    for by_seed in alike.values():
        names = list(by_seed.values())
        if len(names) > 1:
            losses = [models[n]["heldout"][target]["loss"] for n in names]
            sd = float(np.std(losses, ddof=1))
            found.append(
                {"arm": names[0], "arms": names, "target_loss": {"mean": float(np.mean(losses)), "sd": sd, "n": len(losses)}}
            )
    return found


def sweeps(
    asked: list[dict[str, Any]], config: PipelineConfig, arms: dict[str, Any], models: dict[str, Any], target: str
) -> list[dict[str, Any]]:
    """The arms of each sweep that was `asked` for, by the value that was varied (Fig. 9), as they were trained."""
    found = []
    for sweep in asked:
        points = []
        for wanted, arm in points_of(config, sweep):
            if arm in arms:
                heldout = models[arm]["heldout"]
                general = {n: f["loss"] for n, f in heldout.items() if n != target}
                at = {"target_loss": heldout[target]["loss"], "interval": heldout[target]["interval"], "general": general}
                points.append({"value": _trained_with(arms[arm], sweep["key"], wanted), "arm": arm, **at})
        if points:
            found.append({"arm": sweep["arm"], "key": sweep["key"], "points": points})
    return found


def _trained_with(facts: dict[str, Any], key: str, wanted: Any) -> Any:
    """An arm's value of a setting; `wanted` for one that does not decide its result, and so is not kept."""
    found: Any = {**facts["settings"], "selection": facts["selection"], "seed": facts["seed"]}
    for part in key.split("."):
        if not isinstance(found, dict) or part not in found:
            return wanted
        found = found[part]
    return found
