"""Sweeps: an arm once more for each value of one setting, as arms of the same pipeline, so that tokens, reference and scores
are shared. They are kept in `<output_dir>/sweeps.json`, and are arms of the pipeline from then on."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from slmctl.config import PipelineConfig
from slmctl.config_file import apply_override, check, parse_yaml
from slmctl.errors import ConfigError
from slmctl.files import read_json, write_json

FILE = "sweeps.json"


def read_sweeps(root: Path) -> list[dict[str, Any]]:
    """Each with `arm`, `key` (within the arm), `values` and `arms` (their names)."""
    return list(read_json(root / FILE)["sweeps"]) if (root / FILE).is_file() else []


def with_sweeps(config: PipelineConfig, sweeps: list[dict[str, Any]]) -> PipelineConfig:
    """The configuration with the arms of sweeps: each is its own arm as it is now, with one setting changed.

    Raises `ConfigError` where that makes no valid arm, or its own arm is gone.
    """
    if not sweeps:
        return config
    data = config.model_dump(mode="json")
    arms = data["pretrain"]["arms"]
    for sweep in sweeps:
        if sweep["arm"] not in config.pretrain.arms:
            raise ConfigError(
                f"{FILE} has a sweep over arm {sweep['arm']!r}, which the configuration lacks. Add the arm, or delete that file."
            )
        for value, name in zip(sweep["values"], sweep["arms"], strict=True):
            if name == sweep["arm"]:
                continue
            holder = {"arm": config.pretrain.arms[sweep["arm"]].model_dump(mode="json")}
            apply_override(holder, f"arm.{sweep['key']}={yaml.safe_dump(value, default_flow_style=True)}")
            arms[name] = holder["arm"]
    return check(data, "the sweep")


def parse_over(config: PipelineConfig, over: str) -> list[dict[str, Any]]:
    """`pretrain.arms.slm.selection.ratio=0.4,0.5`, or `pretrain.lr=1e-4,2e-4` for every arm, as sweeps.

    A value that the arm has already stands for the arm itself. Raises `ConfigError` for other keys, and without values.
    """
    path, sep, text = over.partition("=")
    parts = path.strip().split(".")
    if not sep or not text.strip() or parts[0] != "pretrain" or len(parts) < 2:
        raise ConfigError(
            f"--over {over}: want a key below pretrain and its values, as in pretrain.arms.slm.selection.ratio=0.4,0.5,0.6. For "
            "what comes before pretraining give each value its own run (-o key=value -o output_dir=...), and put them side by "
            "side with `slmctl compare`."
        )
    values, _ = parse_yaml(f"[{text}]", f"--over {over}")
    if parts[1] == "arms":
        if len(parts) < 4 or parts[2] not in config.pretrain.arms:
            raise ConfigError(f"--over {over}: want pretrain.arms.NAME.KEY=…; the arms are {', '.join(config.pretrain.arms)}.")
        return [_sweep(config, parts[2], ".".join(parts[3:]), values)]
    return [_sweep(config, arm, ".".join(parts[1:]), values) for arm in config.pretrain.arms]


def _sweep(config: PipelineConfig, arm: str, key: str, values: list[Any]) -> dict[str, Any]:
    own: Any = config.pretrain.arms[arm].model_dump(mode="json")
    for part in key.split("."):
        own = own.get(part) if isinstance(own, dict) else None
    if key == "seed" and own is None:
        own = config.seed
    names = [arm if v == own else f"{arm}-{key.split('.')[-1]}-{_in_a_name(v)}" for v in values]
    return {"arm": arm, "key": key, "values": values, "arms": names}


def _in_a_name(value: Any) -> str:
    return re.sub(r"[^\w.-]+", "-", str(value)).strip("-.") or "x"


def add_sweeps(root: Path, config: PipelineConfig, new: list[dict[str, Any]]) -> PipelineConfig:
    """Keeps sweeps beside those that are there (one over the same key takes its values in), and returns the configuration
    with their arms."""
    kept = read_sweeps(root)
    for sweep in new:
        same = next((s for s in kept if (s["arm"], s["key"]) == (sweep["arm"], sweep["key"])), None)
        if same is None:
            kept.append(sweep)
            continue
        for value, name in zip(sweep["values"], sweep["arms"], strict=True):
            if name not in same["arms"]:
                same["values"].append(value)
                same["arms"].append(name)
    found = with_sweeps(config, kept)
    write_json(root / FILE, {"sweeps": kept})
    return found
