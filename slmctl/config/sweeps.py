"""Sweeps: an arm once more for each value of one setting, as arms of the same pipeline, so that tokens, reference and scores
are shared. They are kept in `<output_dir>/sweeps.json`, and are arms of the pipeline from then on."""

from __future__ import annotations

import re
from collections.abc import Set
from pathlib import Path
from typing import Any

import yaml

from slmctl.config.file import check
from slmctl.config.pipeline import PipelineConfig
from slmctl.config.yaml import apply_override, parse_yaml
from slmctl.system.errors import ConfigError
from slmctl.system.files import read_json, write_json

FILE = "sweeps.json"


def read_sweeps(root: Path) -> list[dict[str, Any]]:
    """Each with `arm`, `key` (within the arm) and `values`, in the order in which they were added."""
    return list(read_json(root / FILE)["sweeps"]) if (root / FILE).is_file() else []


def points_of(config: PipelineConfig, sweep: dict[str, Any]) -> list[tuple[Any, str]]:
    """Each value and the arm that has it: the swept arm itself where that is its own value, as the configuration is now."""
    arm, key = sweep["arm"], sweep["key"]
    own = _own_value(config, arm, key)
    pipelines = config.seed if key == "seed" else None
    values = [pipelines if v is None else v for v in sweep["values"]]
    return [(v, arm if v == own else f"{arm}-{key.split('.')[-1]}-{_in_a_name(v)}") for v in values]


def _own_value(config: PipelineConfig, arm: str, key: str) -> Any:
    found: Any = config.pretrain.arms[arm].model_dump(mode="json")
    for part in key.split("."):
        found = found.get(part) if isinstance(found, dict) else None
    return config.seed if key == "seed" and found is None else found


def _in_a_name(value: Any) -> str:
    text = str(value).lower() if value is None or isinstance(value, bool) else str(value)
    return re.sub(r"[^\w.-]+", "-", text).strip("-.") or "x"


def with_sweeps(config: PipelineConfig, sweeps: list[dict[str, Any]]) -> PipelineConfig:
    """The configuration with the arms of sweeps: each is its own arm as it is now, with one setting changed. A sweep may be
    over an arm that one before it has made.

    Raises `ConfigError` where that makes no valid arm, its own arm is gone, or the file has another arm of the same name.
    """
    found = config
    for sweep in sweeps:
        if sweep["arm"] not in found.pretrain.arms:
            raise ConfigError(
                f"{FILE} has a sweep over arm {sweep['arm']!r}, which the configuration lacks. Add the arm, or delete that file."
            )
        found = _with_sweep(found, sweep)
    for name, arm in config.pretrain.arms.items():
        if found.pretrain.arms[name] != arm:
            raise ConfigError(f"arm {name!r} of the configuration has the name of another that {FILE} adds. Rename it.")
    return found


def _with_sweep(config: PipelineConfig, sweep: dict[str, Any]) -> PipelineConfig:
    data = config.model_dump(mode="json")
    for value, name in points_of(config, sweep):
        if name != sweep["arm"]:
            holder = {"arm": config.pretrain.arms[sweep["arm"]].model_dump(mode="json")}
            apply_override(holder, f"arm.{sweep['key']}={yaml.safe_dump(value, default_flow_style=True)}")
            data["pretrain"]["arms"][name] = holder["arm"]
    return check(data, "the sweep")


def made_by(config: PipelineConfig, sweeps: list[dict[str, Any]]) -> set[str]:
    """Names of the arms that sweeps have added to the configuration."""
    return {name for sweep in sweeps for _, name in points_of(config, sweep) if name != sweep["arm"]}


def parse_over(config: PipelineConfig, over: str, added: Set[str] = frozenset()) -> list[dict[str, Any]]:
    """`pretrain.arms.slm.selection.ratio=0.4,0.5`, or `pretrain.lr=1e-4,2e-4` for every arm but those that sweeps have
    `added`, as sweeps. Raises `ConfigError` for other keys, and without values."""
    path, sep, text = over.partition("=")
    parts = path.strip().split(".")
    if not sep or not text.strip() or parts[0] != "pretrain" or not all(parts) or len(parts) < 2:
        raise ConfigError(
            f"--over {over}: want a key below pretrain and its values, as in pretrain.arms.slm.selection.ratio=0.4,0.5,0.6. For "
            "what comes before pretraining give each value its own run (-o key=value -o output_dir=...), and put them side by "
            "side with `slmctl compare`."
        )
    values, _ = parse_yaml(f"[{text}]", f"--over {over}")
    if not isinstance(values, list) or not values:
        raise ConfigError(f"--over {over}: want values with commas between them.")
    if parts[1] == "arms":
        within = ".".join(parts[2:])
        arm = max((a for a in config.pretrain.arms if within.startswith(f"{a}.")), key=len, default=None)  # names may have dots
        if arm is None:
            raise ConfigError(f"--over {over}: want pretrain.arms.NAME.KEY=…; the arms are {', '.join(config.pretrain.arms)}.")
        return [{"arm": arm, "key": within.removeprefix(f"{arm}."), "values": values}]
    return [{"arm": a, "key": ".".join(parts[1:]), "values": values} for a in config.pretrain.arms if a not in added]


def add_sweeps(root: Path, config: PipelineConfig, new: list[dict[str, Any]]) -> PipelineConfig:
    """Keeps sweeps beside those that are there (one over the same key takes its values in), and returns the configuration
    with their arms."""
    kept = read_sweeps(root)
    for sweep in new:
        same = next((s for s in kept if (s["arm"], s["key"]) == (sweep["arm"], sweep["key"])), None)
        if same is None:
            same = {**sweep, "values": []}
            kept.append(same)
        same["values"] += [v for i, v in enumerate(sweep["values"]) if v not in same["values"] + sweep["values"][:i]]
    found = with_sweeps(config, kept)
    write_json(root / FILE, {"sweeps": kept})
    return found
