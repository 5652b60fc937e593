"""The harness' model around one that is in memory, and leaving everything as it was: random state, mode, logs, bars."""

from __future__ import annotations

import contextlib
import logging
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from slmctl.corpus.bos import cut_left, in_front
from slmctl.model.loading import quiet_transformers
from slmctl.system.errors import InputError

Progress = Callable[[str, int, int], None]
_CHATTER = (
    "Custom kwargs can be passed",
    "fewshot_split is None",
    "Truncating",
    "Left truncation",
    "kwarg is not of type",
    "already-initialized model",
    "is defined, but",
)
"""Warnings of the harness that say what is meant to be so, or what is counted here."""


@cache
def model_class() -> Any:
    from lm_eval.models.huggingface import HFLM

    class Watched(HFLM):  # type: ignore[misc]
        """The harness' model that reports every batch, counts prompts that do not fit, and puts BOS in front of a text where
        rows have it: the harness goes by the tokenizer's template, and cuts BOS off a text that is too long."""

        report: Progress | None = None
        bos_id: int | None = None
        rolling = False

        def begin(self, task: str) -> None:
            self.task, self.done, self.total = task, 0, 0
            self.cut: set[str] = set()

        def _tick(self, rows: int) -> None:
            self.done = min(self.done + rows, self.total)
            if self.report is not None:
                self.report(self.task, self.done, self.total)

        def tok_encode(
            self, string: str, add_special_tokens: bool | None = None, left_truncate_len: int | None = None, **_: Any
        ) -> list[int]:
            bos_id = None if add_special_tokens is False or self.rolling else self.bos_id
            ids = in_front(list(self.tokenizer.encode(string, add_special_tokens=False)), bos_id)
            return cut_left(ids, left_truncate_len, bos_id) if left_truncate_len else ids

        def tok_batch_encode(
            self, strings: list[str], *_: Any, left_truncate_len: int | None = None, **__: Any
        ) -> tuple[Tensor, Tensor]:  # padded on the left, as generation needs it, and not cut on the right
            rows = [self.tok_encode(s, left_truncate_len=left_truncate_len) for s in strings]
            blank = [max(map(len, rows)) - len(ids) for ids in rows]
            padded = [[self.tokenizer.pad_token_id] * n + ids for n, ids in zip(blank, rows, strict=True)]
            mask = [[0] * n + [1] * len(ids) for n, ids in zip(blank, rows, strict=True)]
            return torch.tensor(padded), torch.tensor(mask)

        def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = True) -> Any:  # noqa: ARG002 - no bars
            self.rolling = True  # the prefix is put before a text by the harness here
            try:
                return super().loglikelihood_rolling(requests, disable_tqdm=True)
            finally:
                self.rolling = False

        def loglikelihood(self, requests: Any, disable_tqdm: bool = True) -> Any:  # noqa: ARG002 - no bars
            self.done, self.total = 0, len(requests)
            return super().loglikelihood(requests, disable_tqdm=True)

        def _loglikelihood_tokens(self, requests: Any, *args: Any, **options: Any) -> Any:
            room = self.max_length + 1
            self.cut |= {text[0] for text, context, answer in requests if text and len(context) + len(answer) > room}
            fitting = [(t, cut_left(c or [self.prefix_token_id], max(1, room - len(a)), self.bos_id), a) for t, c, a in requests]
            return super()._loglikelihood_tokens(fitting, *args, **options)

        def generate_until(self, requests: Any, disable_tqdm: bool = True) -> Any:  # noqa: ARG002 - no bars
            from lm_eval.models.utils import normalize_gen_kwargs

            self.done, self.total = 0, len(requests)
            for prompt, settings in (request.args for request in requests):
                longest = normalize_gen_kwargs(settings, self.max_gen_toks)["max_gen_toks"]
                if longest >= self.max_length:
                    raise InputError(
                        f"task {self.task} generates up to {longest} tokens, which fill the model's whole context of "
                        f"{self.max_length}. Leave it out; of a suite, lower max_new_tokens."
                    )
                if len(self.tok_encode(prompt)) > self.max_length - longest:
                    self.cut.add(prompt)
            return super().generate_until(requests, disable_tqdm=True)

        def _model_call(self, inps: Any, *args: Any, **options: Any) -> Any:
            logits = super()._model_call(inps, *args, **options)
            self._tick(len(inps))
            return logits

        def _model_generate(self, context: Any, *args: Any, **options: Any) -> Any:
            made = super()._model_generate(context, *args, **options)
            self._tick(len(context))
            return made

    return Watched


@dataclass(frozen=True)
class Seeds:
    """What the harness seeds before it runs tasks."""

    python: int
    numpy: int
    torch: int
    examples: int

    @classmethod
    def of(cls, seed: int | None) -> Seeds:
        """One seed for all; where there is none, the harness' own, so that the examples are those of its published figures."""
        if seed is not None:
            return cls(seed, seed, seed, seed)
        from lm_eval.defaults import DEFAULT_OTHER_SEED, DEFAULT_RANDOM_SEED

        return cls(DEFAULT_RANDOM_SEED, DEFAULT_OTHER_SEED, DEFAULT_OTHER_SEED, DEFAULT_OTHER_SEED)

    def set(self) -> None:
        random.seed(self.python)
        np.random.seed(self.numpy % 2**32)
        torch.manual_seed(self.torch)


@contextlib.contextmanager
def undisturbed(model: Any, tokenizer: Any, device: str) -> Iterator[None]:
    """Puts random state, the model's mode and its settings of generation back at the end."""
    from transformers import GenerationConfig

    states = random.getstate(), np.random.get_state()
    training, own_config = model.training, model.generation_config
    eos = tokenizer.eos_token_id
    model.generation_config = GenerationConfig(eos_token_id=eos)  # the model's own penalties would change what is measured
    devices = [torch.cuda.current_device()] if device.startswith("cuda") else []
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        model.generation_config = own_config
        model.train(training)


class _WarningsOnce(logging.Filter):
    """Lets each warning through once, and neither what is less nor what is expected."""

    def __init__(self) -> None:
        super().__init__()
        self.said: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno < logging.WARNING:
            return False
        text = record.getMessage()
        if text in self.said or any(part in text for part in _CHATTER):
            return False
        self.said.add(text)
        return True


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps the harness' log and everyone's progress bars off the terminal."""
    import datasets
    import lm_eval.api.task as harness_task
    import lm_eval.evaluator  # noqa: F401 - so that its logger is there

    names = [name for name in logging.root.manager.loggerDict if name.partition(".")[0] == "lm_eval"]
    once, bars, tqdm = _WarningsOnce(), not datasets.are_progress_bars_disabled(), harness_task.tqdm
    for name in names:
        logging.getLogger(name).addFilter(once)
    datasets.disable_progress_bars()
    harness_task.tqdm = lambda items, **_: items
    try:
        with quiet_transformers():
            yield
    finally:
        harness_task.tqdm = tqdm
        if bars:
            datasets.enable_progress_bars()
        for name in names:
            logging.getLogger(name).removeFilter(once)
