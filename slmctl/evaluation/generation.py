"""Generation tasks: few-shot prompts, greedy decoding, and a verdict on the answer read from each output.

A `GenerationTask` carries its items, its worked examples and its judging; `run_task` knows only how to generate. A
user's own JSON Lines task (`TaskConfig`) becomes one by `own_task`; `slmctl.evaluation.tasks` makes those of the paper.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Any

from slmctl.config.evaluation import TaskConfig
from slmctl.config.template import FieldError, Template
from slmctl.corpus.bos import cut_left, in_front
from slmctl.corpus.json_lines import decode
from slmctl.corpus.text_files import open_text, reading
from slmctl.corpus.tokenizer import Tokenizer
from slmctl.evaluation.answer_marks import Mark, headings_marked, mark
from slmctl.store.order import permutation
from slmctl.system.console import progress
from slmctl.system.errors import ConfigError, InputError

if TYPE_CHECKING:  # tasks are read where nothing is generated, too
    import torch

_NUMBER = re.compile(r"(?:(?<![\w)\]}%.])-)?\$?(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)")


VERSION = "3"
"""Of the judging of tasks of one's own."""


@dataclass(frozen=True)
class Item:
    prompt: str
    """The question as the model sees it, up to where its answer begins; without the worked examples."""
    answer: str
    """A worked answer, where the item is to serve as an example; else empty."""
    target: str
    """What the answer is compared with."""
    choices: tuple[str, ...] = ()
    """Texts of the options, in order of their letters, where there are any."""
    id: str | None = None
    """The record's own name, where it has one."""


@dataclass(frozen=True)
class GenerationTask:
    name: str
    items: list[Item]
    prefix: str
    """Worked examples, before every prompt."""
    shots: int
    max_new_tokens: int
    batch_size: int
    stop: tuple[str, ...]
    """A generation ends before the first of these: where a next example would begin."""
    read: Callable[[str, tuple[str, ...]], str | None]
    """The answer that an output gives (output, the item's choices); None where it gives none."""
    same: Callable[[str, str], bool]
    """Whether a found answer is the target."""
    version: str = VERSION
    """Raised when prompts or judging change: results of different versions do not compare."""


def final_number(text: str) -> Decimal | None:
    """The number after the first `####` that is no heading (see `answer_marks`), else the last number in `text`; None where
    there is none. Of a calculation after the mark its result counts: `#### 3 * 4 = 12` is 12.

    Thousands commas, a dollar sign and a trailing full stop do not count: `$1,234.00.` is 1234. A comma that three digits do
    not follow parts two numbers: the last of `12,5` is 5. A minus after a number, letter or bracket is an operation, or the
    dash of a range: the last of `10-12` is 12.
    """
    marked = mark(headings_marked(text))
    found = _NUMBER.findall(_result(marked))[:1] if marked is not None else _NUMBER.findall(text)[-1:]
    if not found:
        return None
    try:
        return Decimal(found[0].replace(",", "").replace("$", ""))
    except InvalidOperation:
        return None


def _result(marked: Mark) -> str:
    """What follows a mark, from the last equals sign of its line on."""
    _, equals, result = marked.line.rpartition("=")
    return result if equals and _NUMBER.search(result) else marked.rest


def read_items(task: TaskConfig) -> list[Item]:
    """A task's items. Raises `InputError` with file and line for one that has no target number."""
    items: list[Item] = []
    with reading(task.path), open_text(task.path) as stream:
        for number, line in enumerate(stream, 1):
            if task.limit is not None and len(items) == task.limit:
                break
            if line.strip():
                items.append(_item(task, line, f"{task.path}, line {number}"))
    if not items:
        raise InputError(f"{task.path} holds no item of task {task.name}.")
    return items


def _item(task: TaskConfig, line: bytes, place: str) -> Item:
    try:
        item = make_item(task, decode(line))
    except FieldError as e:
        raise InputError(f"{place}: {e}. Correct prompt and answer of task {task.name}, which ask for it, or the file.") from None
    except (ValueError, RecursionError) as e:
        raise InputError(f"{place}: no JSON: {e}. A task's file is JSON Lines, an item a line.") from None
    if item is None:
        raise InputError(f"{place}: the answer holds no number. Correct the answer of task {task.name}, or the file.")
    return item


def make_item(task: TaskConfig, record: dict[str, Any]) -> Item | None:
    """One record as an item; None where its answer has no number. Raises `FieldError` for an absent field."""
    prompt, answer = Template(task.prompt)(record), Template(task.answer)(record)
    target = final_number(answer)
    return Item(prompt, answer, str(target)) if target is not None else None


def few_shot_prefix(examples: list[Item], shots: int, seed: int) -> str:
    """`shots` worked examples, chosen by seed. Raises `ConfigError` where there are not enough."""
    if shots > len(examples):
        raise ConfigError(f"{shots} worked examples are wanted, the curated set offers {len(examples)}: lower shots.")
    chosen = permutation(len(examples), seed, "shots")[:shots]
    return "".join(f"{examples[i].prompt} {examples[i].answer}\n\n" for i in chosen)


def own_task(task: TaskConfig, prefix: str) -> GenerationTask:
    """A user's own task: exact match on the final number, an output ends at the first empty line. Raises `InputError` as
    `read_items` does."""
    return GenerationTask(
        name=task.name,
        items=read_items(task),
        prefix=prefix,
        shots=task.shots,
        max_new_tokens=task.max_new_tokens,
        batch_size=task.batch_size,
        stop=("\n\n",),
        read=_read_final_number,
        same=_same_decimal,
    )


def _read_final_number(text: str, choices: tuple[str, ...]) -> str | None:  # noqa: ARG001 - readers have one form
    found = final_number(text)
    return str(found) if found is not None else None


def _same_decimal(found: str, target: str) -> bool:
    return Decimal(found) == Decimal(target)


def cut(text: str, stop: tuple[str, ...] = ("\n\n",)) -> str:
    """A generation up to where the next example would begin."""
    return text[: min((at for s in stop if (at := text.find(s)) >= 0), default=len(text))]


def run_task(model: Any, tokenizer: Tokenizer, task: GenerationTask, device: str, bos_id: int | None = None) -> dict[str, Any]:
    """Accuracy, its standard error, and every item's output and verdict, in the items' order. A special token's name in a
    prompt is text.

    Prompts begin with `bos_id` where it is given, and with nothing that the tokenizer's template would put there. A prompt is cut
    from the left, but for its BOS, where the model's context is too short for it; how often is reported. Raises
    `InputError` where the task has no item, `ConfigError` where the longest generation leaves no room for a prompt.
    """
    if not task.items:
        raise InputError(f"task {task.name} has no item.")
    room = context_of(model) - task.max_new_tokens
    if room < (1 if bos_id is None else 2):
        raise ConfigError(f"task {task.name}: max_new_tokens {task.max_new_tokens} fills the model's whole context: lower it.")
    bare = tokenizer.encode([task.prefix + i.prompt for i in task.items])
    prompts = [in_front(ids.tolist(), bos_id) for ids in bare]
    texts = _generate_all(model, tokenizer.hf, task, [cut_left(p, room, bos_id) for p in prompts], device)
    outputs = [_verdict(task, i, item, text) for i, (item, text) in enumerate(zip(task.items, texts, strict=True))]
    n = len(outputs)
    accuracy = sum(o["correct"] for o in outputs) / n
    return {
        "accuracy": accuracy,
        "standard_error": (accuracy * (1 - accuracy) / n) ** 0.5,
        "items": n,
        "shots": task.shots,
        "version": task.version,
        "metric": "accuracy",
        "prompts_cut": sum(len(p) > room for p in prompts),
        "outputs": outputs,
    }


def context_of(model: Any) -> int:
    """Tokens that a model's positions reach."""
    return int(getattr(model.config.get_text_config(), "max_position_embeddings", 2048))


def _verdict(task: GenerationTask, index: int, item: Item, text: str) -> dict[str, Any]:
    found = task.read(text, item.choices)
    correct = found is not None and task.same(found, item.target)
    verdict = {"prompt": item.prompt, "output": text, "found": found, "target": item.target, "correct": correct}
    return {"index": index, **({"id": item.id} if item.id is not None else {}), **verdict}


def _generate_all(model: Any, tokenizer: Any, task: GenerationTask, prompts: list[list[int]], device: str) -> list[str]:
    """The outputs, in the prompts' order. Prompts of like length share a batch, the longest first: little padding, and
    a batch that does not fit in memory is met at once."""
    import torch
    from transformers import GenerationConfig

    from slmctl.model.rope import prompts_together

    task = replace(task, batch_size=prompts_together(model, task.batch_size))
    own_config, model.generation_config = model.generation_config, GenerationConfig()  # its penalties are not greedy search
    texts = [""] * len(prompts)
    try:
        order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
        with progress(f"eval: task {task.name}", len(order), "items") as ticker:
            for at in range(0, len(order), task.batch_size):
                batch = order[at : at + task.batch_size]
                with torch.no_grad():
                    made = _generate(model, tokenizer, task, [prompts[i] for i in batch], device)
                for i, row in zip(batch, made, strict=True):
                    texts[i] = cut(tokenizer.decode(row, skip_special_tokens=True), task.stop)
                ticker.advance(len(batch))
    finally:
        model.generation_config = own_config
    return texts


def _generate(model: Any, tokenizer: Any, task: GenerationTask, prompts: list[list[int]], device: str) -> torch.Tensor:
    """[prompts, at most max_new_tokens] new token ids, ended by eos or padding."""
    import torch

    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    width = max(map(len, prompts))
    ids = torch.tensor([[pad] * (width - len(p)) + p for p in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
    made: torch.Tensor = model.generate(
        input_ids=ids,
        attention_mask=mask,
        max_new_tokens=task.max_new_tokens,
        do_sample=False,
        num_beams=1,
        pad_token_id=pad,
        eos_token_id=tokenizer.eos_token_id,
        tokenizer=tokenizer,
        stop_strings=list(task.stop),
    )
    return made[:, width:]
