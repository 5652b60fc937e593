"""What is wrong with a configuration, in words: each mistake once, with its key path and where it was written."""

from __future__ import annotations

import difflib
import re
from typing import Any, Union, get_args, get_origin

from pydantic import ValidationError

from slmctl.config.evaluation import TASK_KINDS
from slmctl.config.pipeline import PipelineConfig
from slmctl.config.score import ReferenceModel
from slmctl.config.selection import SelectionConfig
from slmctl.config.yaml import Path_

Mistake = tuple[Path_, str]
"""Where in the document, and what: a sentence that begins with the key path."""
WANTED = {
    "micro_batch": "want a whole number of rows, 1 or more, or auto",
    "compile": "want true, false or auto",
    "profile": "want [first step, last step], counted from 1",
}
"""What fields of several types want, in place of one message for each."""


def model_mistakes(
    e: ValidationError, data: dict[str, Any], written: dict[str, Any], arms: dict[str, dict[str, Any]]
) -> list[Mistake]:
    """What pydantic has found in `data`. `written` is the document before pretrain's settings were laid under those of its
    `arms`, which are as they were written, too."""
    mistakes: list[Mistake] = []
    for error in e.errors():
        if error["loc"][:2] == ("score", "references") and len(error["loc"]) > 3:  # the fourth is a type's name
            if error["loc"][3] == "str" and not isinstance(error["input"], str):
                continue  # the other type's error says it
            error = {**error, "loc": (*error["loc"][:3], *error["loc"][4:])}
        tagged = error["loc"][:2] == ("eval", "tasks") and len(error["loc"]) > 3  # then the fourth is the kind of task
        given = (*error["loc"][:3], *error["loc"][4:]) if tagged else error["loc"]
        loc: Path_ = tuple(p for p in given if not (isinstance(p, str) and "[" in p))
        field = next((i for i in range(len(loc)) if loc[i] in WANTED and _is_training(loc[:i])), None)
        field = None if error["type"] == "extra_forbidden" else field
        if field is not None:  # without the name of one of its types, or an item's index
            loc = loc[: field + 1]
        path = _clean(loc, written)
        if path[:2] == ("pretrain", "arms") and len(path) > 3 and str(path[2]) in arms:
            inherited = _has(written["pretrain"], path[3:]) and not _has(arms[str(path[2])], path[3:])
            if inherited and (error["type"] != "missing" or field is not None):
                continue  # pretrain's own mistake, which is listed once already
        at = ".".join(map(str, path))
        text = f"{WANTED[str(loc[-1])]} (found {_at(data, loc)!r})" if field is not None else _explain(error, path)
        mistakes.append((path, f"{at}: {text}" if at else text))
    return mistakes


def _is_training(path: Path_) -> bool:
    """Whether a training run's settings lie at `path`."""
    return path in (("reference",), ("pretrain",), ("model", "scratch", "train")) or (
        path[:2] == ("pretrain", "arms") and len(path) == 3
    )


def _at(data: Any, path: Path_) -> Any:
    for part in path:
        data = data[part]
    return data


def told_once(mistakes: list[Mistake], arms: Any, written: dict[str, dict[str, Any]]) -> list[Mistake]:
    """A mistake that several arms have from `pretrain`, or that each of them has as a whole, is one of `pretrain`'s. `arms` are
    those of the document, `written` as they were before pretrain's settings were laid under them."""

    def key(path: Path_, text: str) -> tuple[Path_, str] | None:
        """Of a mistake that an arm may have from pretrain: where in the arm, and what."""
        if path[:2] != ("pretrain", "arms") or len(path) < 3:
            return None
        own = len(path) > 3 and _has(written.get(str(path[2])), path[3:])
        return None if own else (path[3:], text.partition(": ")[2])

    same: dict[tuple[Path_, str], list[str]] = {}
    for path, text in mistakes:
        if (found := key(path, text)) is not None:
            same.setdefault(found, []).append(str(path[2]))
    shared = {k: names for k, names in same.items() if len(names) > 1 and (k[0] or len(names) == len(arms))}
    kept = [(path, text) for path, text in mistakes if key(path, text) not in shared]
    for (rest, text), names in shared.items():
        which = f" (arms {', '.join(names)})" if len(names) < len(arms) else ""
        kept.append((("pretrain", *rest), f"{'.'.join(map(str, ('pretrain', *rest)))}: {text}{which}"))
    return kept


def as_listing(name: str, mistakes: list[Mistake], lines: dict[Path_, int], overrides: list[str]) -> str:
    """All mistakes of document `name` in the order of its lines, each with where it was written: a line, or an override."""
    given_as = _by_key(overrides)
    for key in given_as:
        lines = {path: n for path, n in lines.items() if tuple(map(str, path[: len(key)])) != key}  # no longer the file's
    mistakes = sorted(mistakes, key=lambda m: next((lines[m[0][:n]] for n in range(len(m[0]), 0, -1) if m[0][:n] in lines), 0))
    texts = list(dict.fromkeys(_place_of(path, lines, given_as) + text for path, text in mistakes))
    listing = "\n".join(f"  {t}" for t in texts)
    return f"{name}: {len(texts)} mistake{'s' * (len(texts) > 1)}\n{listing}"


def _element(annotation: Any) -> Any:
    """Strips Annotated, Optional, list[...] and dict[str, ...] down to the model class within, where there is one."""
    while annotation is not None and not (isinstance(annotation, type) and get_origin(annotation) is None):
        origin, args = get_origin(annotation), get_args(annotation)
        if origin in (list, dict) and args:
            annotation = args[-1]
        elif origin is Union or str(origin) == "<class 'types.UnionType'>":
            annotation = next((a for a in args if a is not type(None)), None)
        elif args:
            annotation = args[0]
        else:
            return None
    return annotation


def _model_fields_in(path: Path_) -> list[str]:
    """Known keys of the mapping at `path`, list indices and free names (arms, held-out sets) included in the path."""
    if path[:2] == ("score", "references") and len(path) > 2:
        return sorted(ReferenceModel.model_fields)
    model: Any = PipelineConfig
    container = False
    for part in path:
        if isinstance(part, int):
            continue
        if container:
            container = False
            continue
        annotation = model.model_fields[str(part)].annotation if str(part) in getattr(model, "model_fields", {}) else None
        text = str(annotation)
        container = text.startswith(("dict", "typing.Dict"))
        model = _element(annotation)
        if model is None:
            return []
    return sorted(getattr(model, "model_fields", {}))


def _explain(error: Any, path: Path_) -> str:
    kind, value = error["type"], error["input"]
    if kind == "extra_forbidden":
        tag = error["loc"][3] if error["loc"][:2] == ("eval", "tasks") and len(error["loc"]) > 3 else None
        known = sorted(TASK_KINDS[tag].model_fields) if tag in TASK_KINDS else _model_fields_in(path[:-1])
        near = difflib.get_close_matches(str(path[-1]), known, n=1, cutoff=0.5)
        if "selection" in known and path[-1] in SelectionConfig.model_fields:
            near = [f"selection.{path[-1]}"]
        hint = f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(known)}"
        return f"unknown key; {hint}"
    if kind == "missing":
        return "is required but absent"
    if kind == "model_type":
        if path[:2] == ("score", "references"):
            return f"want a model's path, or a mapping with `path` (found {value!r})"
        return f"want a mapping of settings, found {type(value).__name__}"
    if kind == "literal_error":
        near = difflib.get_close_matches(str(value), re.findall(r"'([^']*)'", error["ctx"]["expected"]), n=1)
        return f"{value!r} is not one of {error['ctx']['expected']}" + (f"; did you mean {near[0]!r}?" if near else "")
    message: str = error["msg"].removeprefix("Value error, ")
    if kind == "string_type" and isinstance(value, dict | list):
        return "want text, found a mapping or list: put the value in quotes where it holds braces or brackets"
    if isinstance(value, dict | list):
        return message
    return f"{message} (found {value!r})"


def _clean(loc: Path_, data: Any) -> Path_:
    """The location as the user wrote it: without the index of a list that was written as a single value."""
    path: list[str | int] = []
    here = data
    for part in loc:
        if isinstance(part, int) and not isinstance(here, list):
            continue
        path.append(part)
        try:
            here = here[part]
        except (KeyError, IndexError, TypeError):
            here = None
    return tuple(path)


def _place_of(path: Path_, lines: dict[Path_, int], overrides: dict[tuple[str, ...], str]) -> str:
    """Where a mistake at `path` was written: in an override, or at a line of the file, with the overrides within that part."""
    keys = tuple(map(str, path))
    if keys[:2] == ("pretrain", "arms") and len(keys) > 3 and path not in lines and keys not in overrides:  # perhaps pretrain's
        inherited = next((o for k, o in overrides.items() if k == ("pretrain", *keys[3 : 2 + len(k)])), None)
        if inherited is not None:
            return f"{inherited}: "
    for end in range(len(path), 0, -1):
        if keys[:end] in overrides:
            return f"{overrides[keys[:end]]}: "
        if path[:end] in lines:
            within = [o for k, o in overrides.items() if k[: len(keys)] == keys]
            return f"{' and '.join([f'line {lines[path[:end]]}', *within])}: "
    return "".join(f"{o}: " for k, o in overrides.items() if keys and k[: len(keys)] == keys)


def _by_key(overrides: list[str]) -> dict[tuple[str, ...], str]:
    """Each override as a message shows it, by its key path."""
    shown = ((o.partition("=")[0].strip(), " ".join(o.split())) for o in overrides)
    return {tuple(key.split(".")): f"-o {text if len(text) <= 60 else f'{text[:59]}…'}" for key, text in shown}


def _has(data: Any, path: Path_) -> bool:
    for part in path:
        try:
            data = data[part]
        except (KeyError, IndexError, TypeError):
            return False
    return True
