"""Generation tasks read from a local file: greedy, few-shot, exact match on the final number (the form of GSM8K)."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any

import torch

from slmctl.config import TaskConfig
from slmctl.corpus.text_files import open_text, reading
from slmctl.errors import InputError
from slmctl.store.order import permutation
from slmctl.template import FieldError, Template

_NUMBER = re.compile(r"-?\$?\d[\d,]*(?:\.\d+)?|-?\$?\.\d+")


def final_number(text: str) -> Decimal | None:
    """The number after the first `####`, else the last number in `text`; None where there is none.

    Thousands commas, a dollar sign and a trailing full stop do not count: `$1,234.00.` is 1234.
    """
    marked = text.split("####", 1)[1] if "####" in text else None
    found = _NUMBER.findall(marked)[:1] if marked is not None else _NUMBER.findall(text)[-1:]
    if not found:
        return None
    try:
        return Decimal(found[0].replace(",", "").replace("$", ""))
    except InvalidOperation:
        return None


@dataclass(frozen=True)
class Item:
    prompt: str
    answer: str
    target: Decimal


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
        item = make_item(task, json.loads(line))
    except (ValueError, FieldError) as e:
        raise InputError(f"{place}: {e}") from None
    if item is None:
        raise InputError(f"{place}: the answer holds no number.")
    return item


def make_item(task: TaskConfig, record: dict[str, Any]) -> Item | None:
    """One record as an item; None where its answer has no number. Raises `FieldError` for an absent field."""
    prompt, answer = Template(task.prompt)(record), Template(task.answer)(record)
    target = final_number(answer)
    return Item(prompt, answer, target) if target is not None else None


def few_shot_prefix(examples: list[Item], shots: int, seed: int) -> str:
    """`shots` worked examples, chosen by seed. Raises `InputError` where there are not enough."""
    if shots > len(examples):
        raise InputError(f"{shots} worked examples are wanted, the curated set offers {len(examples)}: lower shots.")
    chosen = permutation(len(examples), seed, "shots")[:shots]
    return "".join(f"{examples[i].prompt} {examples[i].answer}\n\n" for i in chosen)


def cut(text: str) -> str:
    """A generation up to where the next example would begin."""
    return text.split("\n\n")[0]


@torch.no_grad()
def run_task(model: Any, tokenizer: Any, task: TaskConfig, items: list[Item], prefix: str, device: str) -> dict[str, Any]:
    """Accuracy, its standard error, and every item's output. The prompt is cut from the left where the model's context
    is too short for it; how often is reported."""
    from transformers import GenerationConfig

    own_config, model.generation_config = model.generation_config, GenerationConfig()  # its penalties are not greedy search
    try:
        return _run_task(model, tokenizer, task, items, prefix, device)
    finally:
        model.generation_config = own_config


def _run_task(model: Any, tokenizer: Any, task: TaskConfig, items: list[Item], prefix: str, device: str) -> dict[str, Any]:
    config = model.config.get_text_config()
    room = int(getattr(config, "max_position_embeddings", 2048)) - task.max_new_tokens
    if room < 1:
        raise InputError(f"task {task.name}: max_new_tokens {task.max_new_tokens} fills the model's whole context.")
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    outputs: list[dict[str, Any]] = []
    truncated = 0
    for at in range(0, len(items), task.batch_size):
        batch = items[at : at + task.batch_size]
        prompts = [tokenizer(prefix + i.prompt, add_special_tokens=False)["input_ids"] for i in batch]
        truncated += sum(len(p) > room for p in prompts)
        prompts = [p[-room:] for p in prompts]
        width = max(map(len, prompts))
        ids = torch.tensor([[pad] * (width - len(p)) + p for p in prompts], device=device)
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
        made = model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=task.max_new_tokens,
            do_sample=False,
            num_beams=1,
            pad_token_id=pad,
            eos_token_id=tokenizer.eos_token_id,
            tokenizer=tokenizer,
            stop_strings=["\n\n"],
        )
        for item, row in zip(batch, made[:, width:], strict=True):
            text = cut(tokenizer.decode(row, skip_special_tokens=True))
            found = final_number(text)
            outputs.append({"output": text, "found": str(found), "target": str(item.target), "correct": found == item.target})
    n = len(outputs)
    accuracy = sum(o["correct"] for o in outputs) / n
    return {
        "accuracy": accuracy,
        "standard_error": (accuracy * (1 - accuracy) / n) ** 0.5,
        "items": n,
        "shots": task.shots,
        "prompts_cut": truncated,
        "outputs": outputs,
    }
