"""Reading the YAML: every mistake at once, each with its key path and line, and `-o key.path=value` laid over it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from slmctl.config.cross_checks import cross_mistakes
from slmctl.config.evaluation import TaskConfig
from slmctl.config.mistakes import as_listing, model_mistakes, told_once
from slmctl.config.pipeline import PipelineConfig
from slmctl.config.selection import COMPETING
from slmctl.config.yaml import Path_, apply_overrides, lay_over, mapping_at, parse_yaml, value_at
from slmctl.system.errors import ConfigError
from slmctl.system.file_signatures import HEAD, not_text
from slmctl.system.repair_hints import convert
from slmctl.system.storage import is_url


def _expand_arms(data: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Replaces each arm by pretrain's settings with the arm's laid over them. Returns the arms as written."""
    pretrain = data.get("pretrain")
    if not isinstance(pretrain, dict) or not isinstance(pretrain.get("arms"), dict):
        return {}
    written = {k: ({} if v is None else v) for k, v in pretrain["arms"].items()}
    shared = {k: v for k, v in pretrain.items() if k != "arms"}
    pretrain["arms"] = {k: lay_over(shared, v) if isinstance(v, dict) else v for k, v in written.items()}
    for name, arm in written.items():  # a scope for all arms is none of those whose tokens do not compete
        if (
            value_at(pretrain["arms"], name, "selection", "criterion", default="excess_loss") not in COMPETING
            and value_at(arm, "selection", "scope") is None
        ):
            pretrain["arms"][name]["selection"] = {
                k: v for k, v in mapping_at(pretrain["arms"][name], "selection").items() if k != "scope"
            }
    return {k: v for k, v in written.items() if isinstance(v, dict)}


def check(data: Any, name: str, lines: dict[Path_, int] | None = None, overrides: list[str] | None = None) -> PipelineConfig:
    """Validates a parsed document, over which `overrides` are laid already. Raises `ConfigError` with every mistake in it, and
    where it was written: the line of its key path, or the override."""
    if not isinstance(data, dict):
        raise ConfigError(f"{name}: want a mapping of settings, found {type(data).__name__}. See pipelines/ for examples.")
    written = copy.deepcopy(data)
    data = copy.deepcopy(data)
    arms = _expand_arms(data)
    mistakes = [(path, f"{'.'.join(map(str, path))}: {message}") for path, message in cross_mistakes(data)]
    try:
        config = PipelineConfig.model_validate(data)
        if not mistakes:
            return _rooted(config)
    except ValidationError as e:
        mistakes += model_mistakes(e, data, written, arms)
    mistakes = told_once(mistakes, mapping_at(data, "pretrain", "arms"), arms)
    raise ConfigError(as_listing(name, mistakes, lines or {}, overrides or []))


def _rooted(config: PipelineConfig) -> PipelineConfig:
    """Puts data.root before every relative path of a text or task."""
    if config.data.root is not None:
        root = config.data.root
        for sources in (config.data.curated, config.data.corpus, *config.data.heldout.values()):
            for source in sources:
                source.path = [below(root, p) for p in source.path] if source.path else source.path
        for task in config.eval.tasks:
            if isinstance(task, TaskConfig):
                task.path = below(root, task.path)
            elif task.data is not None:
                task.data = below(root, task.data)
        config.data.root = None
    return config


def below(root: str, path: str) -> str:
    """A relative path put under `root`, either of which may be a URL."""
    if is_url(path) or Path(path).is_absolute():
        return path
    return f"{root.rstrip('/')}/{path}" if is_url(root) else str(Path(root) / path)


def load_config(path: Path | str, overrides: list[str] | None = None) -> PipelineConfig:
    """Reads and validates a pipeline's YAML. Raises `ConfigError` with every mistake in it."""
    try:
        raw = Path(path).read_bytes()
        text = raw.decode("utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist. Examples are in pipelines/; `slmctl init {path}` writes one.") from None
    except UnicodeDecodeError as e:
        line = raw[: e.start].count(b"\n") + 1
        why = (
            not_text(raw[:HEAD], str(path))
            or f"is not UTF-8 text (line {line}); {convert('WINDOWS-1252', str(path))} may mend it"
        )
        raise ConfigError(f"cannot read {path}, which {why}.") from None
    except OSError as e:
        raise ConfigError(f"cannot read {path}: {e.strerror}.") from None
    data, lines = parse_yaml(text, str(path))
    if overrides and not isinstance(data, dict):
        raise ConfigError(f"{path}: want a mapping of settings.")
    apply_overrides(data, overrides or [])
    return check(data, str(path), lines, overrides)


def dump_config(config: PipelineConfig) -> str:
    """The resolved configuration as YAML; `load_config` reads it back to an equal one."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
