"""The suite `rho-math`, read: items from files or the Hub, worked examples before them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib.resources import files
from typing import Any

from slmctl.config.evaluation import SuiteConfig
from slmctl.corpus.text_files import is_file, is_folder, open_text, reading
from slmctl.evaluation.generation import GenerationTask, Item
from slmctl.evaluation.tasks import records
from slmctl.evaluation.tasks.mathematics import CHOICE, NINE, TASKS, Hub
from slmctl.store.order import permutation
from slmctl.system.errors import ConfigError, InputError

SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst")


def suite_tasks(config: SuiteConfig, seed: int) -> tuple[list[GenerationTask], list[str]]:
    """The suite's tasks, and notes on what is left out.

    With `data`, every task (`math` too) that has a file there; without, those of the nine that the Hub has. Raises
    `ConfigError` for unknown names in `only`, a folder that is absent, and more worked examples than there are; `InputError` for
    a dataset that the Hub does not give now (one table of all arms needs all of its tasks), a record that is none of its task's,
    and where no task is found at all. `seed` chooses the worked examples where fewer are wanted than there are and `shots` says
    so.
    """
    _refuse_unknown(config)
    if config.data is not None and not is_folder(config.data):
        raise ConfigError(f"rho-math: data {config.data} is no folder. Name the folder that holds gsm8k.jsonl and its like.")
    tasks, notes = [], []
    for name in config.only or (TASKS if config.data is not None else NINE):
        items, problem = _items(name, config)
        if items:
            tasks.append(_task(name, items, config, seed))
        if problem:
            notes.append(f"rho-math: {name}: {problem}")
    if not tasks:
        raise InputError(f"rho-math: no task can be read. {' '.join(notes)}")
    return tasks, notes


def suite_files(config: SuiteConfig) -> list[str]:
    """The files that the suite's tasks are read from; empty where they come from the Hub."""
    if config.data is None:
        return []
    places = (data_file(config.data, (name, *TASKS[name].files)) for name in config.only or TASKS if name in TASKS)
    return [place for place in places if place is not None]


def suite_names(config: SuiteConfig) -> list[str]:
    """Names of the tasks that there are files for, or of those that the Hub has. No record is read. Raises `ConfigError` for
    unknown names in `only`."""
    _refuse_unknown(config)
    if config.data is None:
        return [name for name in config.only or NINE if TASKS[name].hub is not None]
    return [n for n in config.only or TASKS if data_file(config.data, (n, *TASKS[n].files)) is not None]


def _refuse_unknown(config: SuiteConfig) -> None:
    if unknown := [n for n in config.only or () if n not in TASKS]:
        raise ConfigError(f"rho-math has no task {', '.join(unknown)}. It has: {', '.join(TASKS)}.")


def _task(name: str, items: list[Item], config: SuiteConfig, seed: int) -> GenerationTask:
    kind = TASKS[name]
    shots = kind.shots if config.shots is None else config.shots
    return GenerationTask(
        name=name,
        items=items,
        prefix=worked_examples(name, config.shots, seed),
        shots=shots,
        max_new_tokens=config.max_new_tokens or kind.max_new_tokens,
        batch_size=config.batch_size,
        stop=kind.form.stop,
        read=kind.read,
        same=kind.same,
        version=kind.version,
    )


def examples_of(name: str) -> list[Item]:
    """A task's worked examples: prompt, answer, target, options."""
    kind = TASKS[name]
    source = files("slmctl.evaluation.tasks") / "shots" / f"{kind.examples}.jsonl"
    found = []
    for line in source.read_text(encoding="utf-8").splitlines():
        example = json.loads(line)
        question, choices = example["question"], tuple(example.get("choices", ()))
        if kind.form is CHOICE:
            question = records.multiple_choice(question, choices, example["target"]).question
        elif "table" in example:
            question = records.tabmwp({**example, "answer": example["target"]}).question
        answer = kind.form.answer.format(solution=example["solution"], target=example["target"])
        found.append(Item(kind.form.question.format(question), answer, example["target"], choices))
    return found


def worked_examples(name: str, shots: int | None, seed: int) -> str:
    """The text before a question: the task's own number of examples, always the same ones, or `shots` chosen by seed."""
    examples = examples_of(name)
    if shots is None:
        examples = examples[: TASKS[name].shots]
    elif shots > len(examples):
        raise ConfigError(f"rho-math: {name} has {len(examples)} worked examples, {shots} are wanted: lower shots.")
    elif shots < len(examples):
        examples = [examples[i] for i in sorted(permutation(len(examples), seed, "shots", name)[:shots])]
    return "".join(f"{e.prompt}{e.answer}{TASKS[name].form.between}" for e in examples)


def _items(name: str, config: SuiteConfig) -> tuple[list[Item], str | None]:
    """A task's items, and what is to be said of them; none where there is no file, or the Hub has no such set."""
    kind = TASKS[name]
    if config.data is None:
        if kind.hub is None:
            return [], "no Hub dataset of its records is known, left out; put its file into a folder and name it in data"
        try:
            rows = list(_hub_rows(kind.hub))
        except Exception as e:  # the library raises many kinds
            others = [n for n in config.only or NINE if n != name]
            leave_out = f", or leave it out: only: [{', '.join(others)}]" if others else ""
            raise InputError(
                f"rho-math: {name}: its dataset {kind.hub.path} cannot be loaded from the Hub "
                f"({type(e).__name__}: {str(e)[:200]}). Run again, put {name}.jsonl into a folder and name that in data"
                f"{leave_out}."
            ) from e
        return _read(name, ((f"{kind.hub.path}, row {i}", r) for i, r in enumerate(rows)), config.limit)
    path = data_file(config.data, (name, *kind.files))
    if path is None:
        return [], f"left out, {config.data} holds no {name}.jsonl (also .gz and .zst, or {name}/test.jsonl)"
    return _read(name, _file_rows(path), config.limit)


def data_file(folder: str, names: tuple[str, ...]) -> str | None:
    """The file of a task in a folder: NAME.jsonl, .jsonl.gz, .jsonl.zst, or test.jsonl and so on in a folder NAME."""
    folder = folder.rstrip("/")
    places = (f"{folder}/{name}{inner}{suffix}" for name in names for inner in ("", "/test") for suffix in SUFFIXES)
    return next((p for p in places if is_file(p)), None)


def _read(name: str, rows: Iterator[tuple[str, dict[str, Any]]], limit: int | None) -> tuple[list[Item], str | None]:
    kind, left_out = TASKS[name], 0
    items: list[Item] = []
    for place, row in rows:
        if limit is not None and len(items) == limit:
            break
        try:
            record = kind.record(row)
        except (KeyError, ValueError, TypeError, IndexError, AttributeError) as e:
            reason = f"field {e} is absent" if isinstance(e, KeyError) else str(e)
            raise InputError(f"{place}: no record of task {name}: {reason}.") from None
        if record is None:
            left_out += 1
            continue
        own = next((str(row[k]) for k in ("id", "ID", "idx", "unique_id", "pid") if row.get(k) is not None), None)
        items.append(Item(kind.form.question.format(record.question), "", record.target, record.choices, own))
    if not items:
        return [], "left out, it holds no item"
    return items, f"{left_out} records left out (several answers, or another subject)" if left_out else None


def _file_rows(path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    with reading(path), open_text(path) as stream:
        for number, line in enumerate(stream, 1):
            if line.strip():
                try:
                    row = json.loads(line)
                except ValueError as e:
                    raise InputError(f"{path}, line {number}: {e}") from None
                if not isinstance(row, dict):
                    raise InputError(f"{path}, line {number}: {type(row).__name__} where a record is wanted.")
                yield f"{path}, line {number}", row


def _hub_rows(hub: Hub) -> Iterator[dict[str, Any]]:
    """A set's rows. Where the Hub holds a loading script, which `datasets` no longer runs, its own conversion is read."""
    import datasets

    for config, split in hub.parts:
        try:
            rows = datasets.load_dataset(hub.path, config, split=split)
        except RuntimeError as e:
            if "script" not in str(e):
                raise
            rows = datasets.load_dataset(hub.path, config, split=split, revision="refs/convert/parquet")
        yield from rows
