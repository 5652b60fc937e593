"""JSON Lines in place of the Hub's datasets, for tasks of lm-evaluation-harness."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from slmctl.corpus.text_files import is_file, is_folder, open_text, reading
from slmctl.system.errors import InputError

Rows = list[dict[str, Any]]
SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst")
SUBSET_FIELDS = ("task", "subject", "subset")


class Splits(dict[str, Any]):
    """A dataset's splits by any name: the evaluated one, and `others`; both are the same data until told otherwise."""

    def __init__(self, items: Any) -> None:
        super().__init__()
        self.items_, self.others, self.evaluated = items, items, ""

    def __missing__(self, name: str) -> Any:
        return self.others if self.evaluated and name != self.evaluated else self.items_

    def __deepcopy__(self, memo: dict[int, Any]) -> Splits:
        return self  # the harness copies configurations; the data need no copy


def read_rows(file: str) -> Rows:
    """The objects of a JSON Lines file (also .gz, .zst). Raises `InputError` with the line of one that is none."""
    rows: Rows = []
    with reading(file), open_text(file) as stream:
        for number, line in enumerate(stream, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as e:
                raise InputError(f"{file}, line {number}: no JSON: {e}") from None
            if not isinstance(row, dict):
                raise InputError(f"{file}, line {number}: want an object with the dataset's fields, found {type(row).__name__}.")
            rows.append(row)
    if not rows:
        raise InputError(f"{file} holds no item.")
    return rows


def to_dataset(rows: Rows, place: str) -> Any:
    """Rows as a dataset in memory: no file is written. Raises `InputError` where a field has no one type."""
    import datasets
    import pyarrow as pa

    names = list(dict.fromkeys(name for row in rows for name in row))
    try:
        return datasets.Dataset.from_dict({name: [row.get(name) for row in rows] for name in names})
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError) as e:
        raise InputError(f"{place}: a field's values differ in type from row to row: {str(e).strip()}") from e


def stem_of(file: str) -> str:
    """A JSON Lines file's place without its ending."""
    return next((file.removesuffix(s) for s in (*reversed(SUFFIXES), ".json") if file.endswith(s)), file)


def find_file(stem: str) -> str | None:
    """`stem` with whichever ending there is."""
    return next((stem + s for s in SUFFIXES if is_file(stem + s)), None)


def data_files(data: str) -> list[str]:
    """Every file that a task with this `data` may read: a folder's JSON Lines files, or a file and the one of few-shot
    examples beside it. Of a URL's folder, itself."""
    if is_folder(data):
        return [data] if "://" in data else sorted(str(f) for f in Path(data).rglob("*.jsonl*") if f.is_file())
    train = find_file(stem_of(data) + ".train")
    return [data, *([train] if train else [])]


def train_rows(file: str) -> Rows | None:
    """The rows of `NAME.train.jsonl` beside NAME.jsonl, for few-shot examples; None where there is none."""
    train = find_file(stem_of(file) + ".train")
    return read_rows(train) if train else None


def local_rows(data: str, group: str, leaves: dict[str, tuple[str, str | None]]) -> dict[str, tuple[Rows, Rows | None, str]]:
    """Rows, few-shot rows and file of each task: leaves[name] = (its Hub dataset, its subset there or None).

    A folder has a file for each task, named as the task, as its subset, or as the task without the group's name: for mmlu,
    mmlu_anatomy.jsonl or anatomy.jsonl. A file serves a single task, or several that share a dataset and pick
    their rows themselves (tydiqa_goldp), or several whose name or subset stands in each row's `task`, `subject` or `subset`.
    Tasks without rows are left out. Raises `InputError` where there is none at all.
    """
    if is_folder(data):
        found = {name: _in_folder(data, group, name, subset) for name, (_, subset) in leaves.items()}
        rows = {name: (read_rows(file), train_rows(file), file) for name, file in found.items() if file}
        wanted = " or ".join(f"{name}.jsonl" for name in list(leaves)[:3]) + (", …" if len(leaves) > 3 else "")
        if not rows:
            raise InputError(f"{data} holds no file for task {group}: want {wanted}.")
        return rows
    if not is_file(data):
        raise InputError(f"task {group}: {data} does not exist. Correct its data.")
    items, train = read_rows(data), train_rows(data)
    if len(leaves) == 1 or len(set(leaves.values())) == 1:
        return dict.fromkeys(leaves, (items, train, data))
    mine = {name: _of(items, name, subset) for name, (_, subset) in leaves.items()}
    if not any(mine.values()):
        raise InputError(
            f"task {group} is a group of {len(leaves)}: {data} must say in each row's {', '.join(SUBSET_FIELDS[:-1])} or "
            f"{SUBSET_FIELDS[-1]} which one it belongs to (such as {next(iter(leaves))}); or give a folder with a file for each."
        )
    return {name: (rows, _of(train or [], name, leaves[name][1]) or None, data) for name, rows in mine.items() if rows}


def _in_folder(folder: str, group: str, name: str, subset: str | None) -> str | None:
    names = [n for n in (name, subset, name.removeprefix(f"{group}_")) if n]
    return next((file for n in names if (file := find_file(f"{folder.rstrip('/')}/{n}"))), None)


def _of(rows: Rows, name: str, subset: str | None) -> Rows:
    return [row for row in rows if any(row.get(f) is not None and row.get(f) in (name, subset) for f in SUBSET_FIELDS)]
