"""Tasks of lm-evaluation-harness: what a name stands for, and building its tasks on the Hub's data or on local files."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from slmctl.evaluation.harness_data import Rows, Splits, to_dataset
from slmctl.system.errors import ConfigError, InputError

CODE_VARIABLE = "HF_ALLOW_CODE_EVAL"
_CODE = re.compile(rb"^unsafe_code[ \t]*:[ \t]*true", re.MULTILINE)
_DEFINITION = re.compile(rb"""^["']?(?:task|group)["']?[ \t]*:[ \t]*["']?([\w.:\-]+)["']?[ \t]*$""", re.MULTILINE)


@dataclass(frozen=True)
class Leaf:
    """One task: its name, its configuration as written in YAML (functions by name), and what its group changes in that."""

    name: str
    config: dict[str, Any]
    overrides: dict[str, Any]


class _ElsewhereError(Exception):
    """Part of a group is defined outside the folder that was indexed."""


def require_harness() -> None:
    """Imports the harness. Raises `ConfigError` where it is absent."""
    before = set(os.environ)
    try:
        import lm_eval.models.huggingface
        import lm_eval.tasks  # noqa: F401
    except ImportError as e:
        raise ConfigError(
            f'a task of lm-evaluation-harness is asked for, but it cannot be imported ({e}): pip install "slmctl[harness]"'
        ) from None
    finally:
        for name in set(os.environ) - before:  # its import sets variables of the Hub's client for every process that follows
            del os.environ[name]


def is_installed() -> bool:
    """Whether the harness is there; it is not imported."""
    return find_spec("lm_eval") is not None


def refuse_at_sight(name: str) -> None:
    """Raises `ConfigError` for a name that is nowhere in the harness' files, and for a task that by its own file executes the
    model's programs where that is not allowed. Imports nothing; what it lets through, `find` may still refuse."""
    folders = _definitions().get(name, set())
    if not folders and not _mentioned(name):
        raise _unknown(name)
    texts = (f.read_bytes() for folder in folders for f in folder.glob("*.yaml"))
    own = [t for t in texts if name.encode() in _DEFINITION.findall(t)]
    refuse_code(Leaf(name, {"unsafe_code": any(_CODE.search(t) for t in own)}, {}))


def find(name: str) -> tuple[Any, list[Leaf], bool]:
    """The harness' task manager, the tasks that `name` stands for, and whether it is a group (or tag).

    To index all of its 14,000 files takes the harness many seconds. So the one folder that defines `name` is tried first,
    and all of them only where that is not enough. Raises `ConfigError` with near matches for an unknown name.
    """
    folders = _definitions().get(name, set())
    if len(folders) == 1:
        manager = _manager(next(iter(folders)))
        try:
            return manager, *_expand(manager, name, whole=False)
        except (_ElsewhereError, KeyError):
            pass
    if not folders and not _mentioned(name):
        raise _unknown(name)
    manager = _manager(None)
    if name not in manager.task_index:
        raise _unknown(name)
    return manager, *_expand(manager, name, whole=True)


def build(manager: Any, leaf: Leaf, rows: Rows | None, train: Rows | None, place: str | None) -> Any:
    """The task, on `rows` where there are any (read from `place`), else on the Hub's data.

    Few-shot examples: those written into the task stay. Others come from `train`, else from `rows` less the item itself.
    Raises `ConfigError` for what is not installed, `InputError` for data that cannot be had or lack the task's fields.
    """
    overrides = {**leaf.overrides, "task": leaf.name}
    if rows is not None:
        splits = Splits(to_dataset(rows, place or leaf.name))
        overrides["custom_dataset"] = lambda **_: splits
    try:  # a group of one is the harness' way to change settings of a task that it has
        tasks = manager.load([{"group": "slmctl", "task": [overrides]}])["tasks"]
        task = next(iter(tasks.values()))
        if rows is not None:
            _use_local_splits(task, splits, to_dataset(train, place or leaf.name) if train is not None else None)
    except Exception as e:  # datasets, the Hub's client and the tasks' own code raise many kinds
        raise _explained(leaf, e, place) from e
    return task


def _use_local_splits(task: Any, splits: Splits, train: Any) -> None:
    """Says which split is evaluated and which one gives the examples. The harness leaves the item itself out of the
    examples only where it takes them from what it calls the test split."""
    evaluated = task.config.test_split or task.config.validation_split
    if train is not None:
        splits.others = train
    if task.fewshot_cfg.split is None and task.fewshot_cfg.samples is not None:
        return
    task.config.test_split = evaluated
    task.fewshot_cfg.split = evaluated if train is None else f"{evaluated} examples"
    splits.evaluated = evaluated
    task.sampler.replace_df(list(task.fewshot_docs()))


def runs_code(leaf: Leaf) -> bool:
    """Whether the task executes what the model writes."""
    return bool(leaf.config.get("unsafe_code"))


def refuse_code(leaf: Leaf) -> None:
    """Raises `ConfigError` for a task that executes the model's programs where the user has not allowed that."""
    if runs_code(leaf) and os.environ.get(CODE_VARIABLE) != "1":
        raise ConfigError(
            f"task {leaf.name} executes programs that the model writes. Run it in a container, "
            f"and set {CODE_VARIABLE}=1 to allow it."
        )


def _explained(leaf: Leaf, e: Exception, place: str | None) -> Exception:
    reason = f"{type(e).__name__}: {str(e).strip().splitlines()[0] if str(e).strip() else 'no reason given'}"
    if isinstance(e, (ConfigError, InputError)):
        return e
    if isinstance(e, ImportError):
        return ConfigError(f"task {leaf.name} needs a package that is not installed: {str(e).strip()}")
    if place is not None and isinstance(e, OSError):  # such as the scorer of code tasks
        return InputError(f"task {leaf.name} needs something from the Hub besides its data, and cannot have it: {reason}")
    if place is not None:
        return InputError(f"task {leaf.name}: {place} does not have the form of its dataset ({dataset_of(leaf)}): {reason}")
    return InputError(
        f"task {leaf.name}: its dataset {dataset_of(leaf)} cannot be loaded from the Hub: {reason}. "
        f"Give a JSON Lines file with the same fields: {{harness: {leaf.name}, data: FILE.jsonl}}."
    )


def dataset_of(leaf: Leaf) -> str:
    """The Hub dataset of a task, with its subset."""
    path, subset = leaf.config.get("dataset_path"), leaf.config.get("dataset_name")
    return f"{path} ({subset})" if subset else str(path)


@cache
def _definitions() -> dict[str, set[Path]]:
    """The folders in which a task or group of each name is defined (found by lines that look so: 0.4 s for all files)."""
    found: dict[str, set[Path]] = {}
    for file in _root().glob("**/*.yaml"):
        for name in _DEFINITION.findall(file.read_bytes()):
            found.setdefault(name.decode(), set()).add(file.parent)
    return found


def _mentioned(name: str) -> bool:
    """Whether any file has this name in it, as a tag's must."""
    return any(name.encode() in file.read_bytes() for file in _root().glob("**/*yaml"))


def _root() -> Path:
    """Where its tasks are defined, without importing it."""
    found = find_spec("lm_eval")
    assert found is not None
    assert found.submodule_search_locations
    return Path(found.submodule_search_locations[0]) / "tasks"


@cache
def _manager(folder: Path | None) -> Any:
    from lm_eval.tasks import TaskManager

    return TaskManager() if folder is None else TaskManager(include_defaults=False, include_path=str(folder))


def _unknown(name: str) -> ConfigError:
    near = difflib.get_close_matches(name, _definitions(), 5, 0.6)
    hint = f" Near: {', '.join(near)}." if near else ""
    return ConfigError(f"lm-evaluation-harness has no task or group named {name!r}.{hint} `lm_eval ls tasks` lists all.")


def _expand(manager: Any, name: str, whole: bool) -> tuple[list[Leaf], bool]:
    index = manager.task_index
    leaves = {leaf.name: leaf for leaf in _leaves(index, name, {}, whole)}
    return list(leaves.values()), index[name].kind.name in {"GROUP", "TAG"}


def _leaves(index: Any, name: str, overrides: dict[str, Any], whole: bool) -> Iterator[Leaf]:
    entry = index[name]
    kind = entry.kind.name
    if kind == "TAG":
        if not whole:
            raise _ElsewhereError
        for tagged in sorted(entry.tags):
            yield from _leaves(index, tagged, overrides, whole)
    elif kind == "GROUP":
        yield from _members(index, name, entry.cfg, overrides, whole)
    else:
        yield Leaf(name, {**entry.cfg, **overrides}, overrides)


def _members(index: Any, group: str, config: dict[str, Any], overrides: dict[str, Any], whole: bool) -> Iterator[Leaf]:
    """A group's tasks. Its settings that are none of a group hold for its tasks; what a group above says wins over them."""
    from lm_eval.config.group import GroupConfig

    of_groups = {field.name for field in fields(GroupConfig)}
    merged = {**{k: v for k, v in config.items() if k not in of_groups}, **overrides}
    tasks = config.get("task") or []
    for item in [tasks] if isinstance(tasks, (str, dict)) else tasks:
        settings = dict(item) if isinstance(item, dict) else {}
        name = item if isinstance(item, str) else settings.pop("group", None) or settings.pop("task", None)
        if name in index:
            yield from _leaves(index, name, {**merged, **settings}, whole)
        elif isinstance(item, dict) and "group" in item:
            yield from _members(index, name, settings, merged, whole)
        elif not whole:
            raise _ElsewhereError
        else:
            raise ConfigError(
                f"group {group} of lm-evaluation-harness defines task {name!r} within itself; name other tasks of it one by one."
            )
