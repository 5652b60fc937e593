"""Arms that would train the very same weights, whatever their names: one of them is a waste, or was meant to be another."""

from __future__ import annotations

from collections.abc import Set
from typing import Any

from slmctl.config.decides import result_settings
from slmctl.config.pipeline import PipelineConfig
from slmctl.config.selection import sets_read
from slmctl.config.training import BUDGET_KEYS, ArmConfig, total_steps


def identical_arms(config: PipelineConfig, but: Set[str] = frozenset()) -> list[str]:
    """A line on each arm that trains what an arm before it trains; those of `but` are not looked at."""
    first: dict[str, dict[str, Any]] = {}
    found = []
    for name, arm in config.pretrain.arms.items():
        decides = _decides(config, arm)
        same = next((a for a, other in first.items() if other == decides), None)
        if same is None:
            first[name] = decides
        elif name not in but:
            found.append(f"pretrain.arms.{name}: {_why(arm, config.pretrain.arms[same], same)}")
    return found


def _decides(config: PipelineConfig, arm: ArmConfig) -> dict[str, Any]:
    """What of an arm decides its weights, each thing said in one way."""
    found = result_settings(arm)
    if arm.epochs is None:  # else how many steps that makes is known with the corpus
        found |= {**dict.fromkeys(BUDGET_KEYS), "steps": total_steps(arm, config.data.seq_len, 0)}
    found["seed"] = config.seed if arm.seed is None else arm.seed
    selection = found["selection"]
    if arm.selection.criterion == "all":
        selection = {"criterion": "all"}
    else:
        selection |= {"reference": None, "sets": None, "read": sets_read(selection, config.score.references)}
    return {**found, "selection": selection}


def _why(arm: ArmConfig, other: ArmConfig, name: str) -> str:
    mine, its = arm.model_dump(mode="json"), other.model_dump(mode="json")
    differ = [key for key in mine if mine[key] != its[key]]
    but = f" (they differ in {', '.join(differ)}, which does not decide them)" if differ else ""
    return f"trains the same weights as arm {name!r}{but}. Leave one of them out, or give it another seed."
