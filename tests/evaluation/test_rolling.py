"""Bits per byte by lm-evaluation-harness' definition: as the harness itself has them, and by a plain loop."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers as tf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from slmctl.evaluation import rolling
from slmctl.evaluation.heldout import documents_of, heldout_loss
from slmctl.evaluation.rolling import rolling_bits_per_byte, window_of, windows
from slmctl.model.split import SplitModel
from slmctl.store.reader import RowReader

EOS, SEQ_LEN = 0, 16
TEXTS = ["a cat", "b", "", "the quick brown fox jumps over the lazy dog " * 3, "x" * 24, "y" * 25, "z" * 48, "é" * 20]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """A token a byte, and one that ends a text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE({"<|end|>": EOS} | {c: i + 1 for i, c in enumerate(alphabet)}, []))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    return tf.PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<|end|>")


def rows_of(tokenizer: Any) -> tuple[np.ndarray, np.ndarray]:
    """Packed by hand: documents end to end, EOS after each, the last row padded."""
    ids: list[int] = []
    documents: list[int] = []
    for number, text in enumerate(TEXTS):
        own = [*tokenizer(text)["input_ids"], EOS]
        ids += own
        documents += [number] * len(own)
    short = -len(ids) % SEQ_LEN
    shape = (-1, SEQ_LEN)
    padded = np.array([*ids, *[EOS] * short], dtype=np.uint16), np.array([*documents, *[-1] * short], dtype=np.int64)
    return padded[0].reshape(shape), padded[1].reshape(shape)


def measured(model: SplitModel, reader: RowReader, window: int, batch_tokens: int = 64, prefix_id: int = EOS) -> float:
    size = sum(len(t.encode()) for t in TEXTS)
    return rolling_bits_per_byte(model, reader, prefix_id, EOS, window, size, "cpu", batch_tokens)


@pytest.mark.parametrize(("window", "prefix_id"), [(24, EOS), (24, 7), (128, EOS)])
def test_it_is_the_figure_of_the_harness(
    tokenizer: Any, make_llama: Callable[..., SplitModel], make_reader: Callable[..., RowReader], window: int, prefix_id: int
) -> None:
    pytest.importorskip("lm_eval")
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    model, reader = make_llama(), make_reader(*rows_of(tokenizer))
    lm = HFLM(
        pretrained=model.model, tokenizer=tokenizer, backend="causal", max_length=window, batch_size=2, prefix_token_id=prefix_id
    )
    requests = [Instance("loglikelihood_rolling", {}, (text,), i) for i, text in enumerate(TEXTS)]
    wanted = -sum(lm.loglikelihood_rolling(requests, disable_tqdm=True))
    wanted /= math.log(2) * sum(len(t.encode()) for t in TEXTS)
    assert measured(model, reader, window, prefix_id=prefix_id) == pytest.approx(wanted, rel=1e-6)
    whole = heldout_loss(model, reader, "cpu", 4)
    rows = whole.bits_per_byte(reader.tokens.manifest.counts["tokens"], sum(len(t.encode()) for t in TEXTS))
    assert abs(rows - wanted) > 1e-3, "or the two figures could not be told apart"


@pytest.mark.parametrize("intra_document_mask", [False, True])
@pytest.mark.parametrize("batch_tokens", [1, 100, 10_000])
def test_every_token_once_by_a_plain_loop(
    tokenizer: Any,
    make_llama: Callable[..., SplitModel],
    make_reader: Callable[..., RowReader],
    intra_document_mask: bool,
    batch_tokens: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rolling, "SORTED", 3)
    model, reader = make_llama(intra_document_mask=intra_document_mask), make_reader(*rows_of(tokenizer))
    nats = 0.0
    for text in TEXTS:
        ids = tokenizer(text)["input_ids"]
        for at in range(0, len(ids), 24):
            end = min(at + 24, len(ids))
            read = [EOS, *ids][max(0, end - 24) : end]  # of the last window as much context as fits
            with torch.no_grad():
                logprobs = model.model(torch.tensor([read])).logits[0].double().log_softmax(-1)
            nats -= sum(float(logprobs[i - end, ids[i]]) for i in range(at, end))
    wanted = nats / math.log(2) / sum(len(t.encode()) for t in TEXTS)
    assert measured(model, reader, 24, batch_tokens) == pytest.approx(wanted, rel=1e-6)


def test_windows_by_hand() -> None:
    assert list(windows([], 9, 4)) == []
    assert list(windows([1, 2], 9, 4)) == [([9, 1, 2], 2)]
    assert list(windows([1, 2, 3, 4], 9, 4)) == [([9, 1, 2, 3, 4], 4)]
    assert list(windows([1, 2, 3, 4, 5, 6], 9, 4)) == [([9, 1, 2, 3, 4], 4), ([2, 3, 4, 5, 6], 2)]
    assert list(windows([1, 2, 3], 9, 1)) == [([9, 1], 1), ([1, 2], 1), ([2, 3], 1)]


def test_documents_come_without_their_eos(tokenizer: Any, make_reader: Callable[..., RowReader]) -> None:
    found = list(documents_of(make_reader(*rows_of(tokenizer)), EOS))
    assert [n for n, _ in found] == list(range(len(TEXTS)))
    assert [tokenizer.decode(ids) for _, ids in found] == TEXTS


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({"max_position_embeddings": 512}, 512),
        ({"n_positions": 256, "max_position_embeddings": 512}, 256),
        ({"max_position_embeddings": None}, 2048),
        ({}, 2048),
        ({"max_position_embeddings": 131_072}, 32_768),
    ],
)
def test_a_window_is_the_models_context(settings: dict[str, Any], wanted: int) -> None:
    config = SimpleNamespace(**settings)
    config.get_text_config = lambda: config
    assert window_of(SimpleNamespace(config=config)) == wanted
