"""Attention by documents' bounds against a block-diagonal mask, and whole models with it against sdpa."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from slmctl.config.selection import SelectionConfig
from slmctl.corpus.packing import document_starts, restarting_positions
from slmctl.evaluation.heldout import heldout_loss
from slmctl.model.attention import VARLEN, plain_attention, register, varlen_attention
from slmctl.model.losses import token_losses
from slmctl.model.split import SplitModel
from slmctl.store.reader import Rows
from slmctl.system.errors import ConfigError, InputError
from slmctl.training.batches import Batcher
from slmctl.training.selective import Objective

V, B, T = 61, 4, 16
SETTINGS = settings(max_examples=40, deadline=None)
SIZES = {
    "vocab_size": V,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 1,
}
CONFIGS: dict[str, Callable[[], Any]] = {
    "llama": lambda: tf.LlamaConfig(**SIZES),
    "qwen2": lambda: tf.Qwen2Config(**SIZES, tie_word_embeddings=True),
}


def model_with(attention: str, family: str = "llama", dtype: torch.dtype = torch.float64, intra: bool = True) -> SplitModel:
    """The same tiny model whatever its attention."""
    register()
    torch.manual_seed(0)
    model = tf.AutoModelForCausalLM.from_config(CONFIGS[family](), attn_implementation=attention)
    with torch.no_grad():
        for name, p in model.named_parameters():  # so strong that who attends to whom shows
            if p.ndim >= 2:
                p.normal_(0.0, 0.4)
            elif name.endswith("bias"):
                p.normal_(0.0, 0.5)
    return SplitModel(model.to(dtype).eval(), intra)


@pytest.fixture(params=list(CONFIGS))
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def rows_of_documents(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(ids, document) [B, T]: several documents a row, of one token too, one that goes on in the next row, and padding."""
    rng = np.random.default_rng(seed)
    document = np.sort(rng.integers(0, 5, (B, T)), axis=1)
    document[0, :3] = [0, 1, 2]
    document[0, 3:] = np.maximum(document[0, 3:], 3)
    document[1] = 9
    document[2, :5] = 9
    document[3, 10:] = -1
    return rng.integers(0, V, (B, T)), document


def positions(document: np.ndarray) -> tuple[Tensor, Tensor]:
    position = restarting_positions(document)
    return torch.from_numpy(position), torch.from_numpy(document_starts(position))


# --- the function ---


def masked(query: Tensor, key: Tensor, value: Tensor, lengths: list[int], scale: float) -> Tensor:
    """By whole score matrices, one head after another. [1, N, H, d]."""
    document = [d for d, n in enumerate(lengths) for _ in range(n)]
    n, heads, group = len(document), query.shape[1], query.shape[1] // key.shape[1]
    seen = torch.tensor([[document[i] == document[j] and j <= i for j in range(n)] for i in range(n)])
    out = []
    for h in range(heads):
        scores = (query[0, h] @ key[0, h // group].T * scale).masked_fill(~seen, -torch.inf)
        out.append(scores.softmax(-1) @ value[0, h // group])
    return torch.stack(out, dim=1)[None]


@SETTINGS
@given(st.lists(st.one_of(st.just(1), st.integers(1, 9)), min_size=1, max_size=6), st.sampled_from([(4, 4), (4, 2), (6, 1)]))
def test_attention_by_bounds_equals_a_block_diagonal_causal_mask(lengths: list[int], heads: tuple[int, int]) -> None:
    torch.manual_seed(sum(lengths))
    n, (h, kv), scale = sum(lengths), heads, 0.7
    query, key, value = (
        torch.randn(1, k, n, 5, dtype=torch.float64, requires_grad=True) for k in (h, kv, kv)
    )  # fmt: skip
    bounds = torch.tensor([0, *np.cumsum(lengths).tolist()], dtype=torch.int32)
    got, weights = varlen_attention(
        None, query, key, value, None, scaling=scale, cu_seq_lens_q=bounds, max_length_q=max(lengths), position_ids="ignored"
    )
    want = masked(query, key, value, lengths, scale)
    assert weights is None
    assert got.shape == (1, n, h, 5)
    assert float((got - want).detach().abs().max()) < 1e-12
    weight = torch.randn_like(want)
    for a, b in zip(*(torch.autograd.grad((x * weight).sum(), (query, key, value)) for x in (got, want)), strict=True):
        assert float((a - b).abs().max()) < 1e-12


def test_without_a_scale_it_is_that_of_scaled_dot_product_attention() -> None:
    query, key, value = (torch.randn(1, 2, 7, 4, dtype=torch.float64) for _ in range(3))
    got, _ = varlen_attention(None, query, key, value, None, cu_seq_lens_q=torch.tensor([0, 7]), max_length_q=7)
    want = functional.scaled_dot_product_attention(query, key, value, is_causal=True).transpose(1, 2)
    assert float((got - want).abs().max()) < 1e-12


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"cu_seq_lens_q": None}, "does not pass the documents' bounds"),
        ({"max_length_q": None}, "does not pass the documents' bounds"),
        ({"sliding_window": 2}, "no sliding window"),
        ({"softcap": 2.0}, "no softcap"),
        ({"dropout": 0.1}, "no dropout"),
    ],
)
def test_what_it_cannot_compute_is_refused(given: dict[str, Any], message: str) -> None:
    x = torch.zeros(1, 2, 3, 4)
    with pytest.raises(InputError, match=message):
        varlen_attention(None, x, x, x, None, **{"cu_seq_lens_q": torch.tensor([0, 3]), "max_length_q": 3, **given})


# --- whole models ---


def test_hidden_states_and_gradients_equal_those_of_sdpa(family: str) -> None:
    ids, document = rows_of_documents()
    position, starts = positions(document)
    weight = torch.randn(B, T, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found = []
    for attention, bounds in (("sdpa", None), (VARLEN, starts), (VARLEN, None)):
        split = model_with(attention, family)
        hidden = split.hidden(torch.from_numpy(ids), position, bounds)
        (hidden * weight).sum().backward()
        found.append((hidden.detach(), {n: p.grad for n, p in split.named_parameters() if p.grad is not None}))
    (wanted, gradients), *others = found
    assert wanted.shape == (B, T, 16)
    for hidden, grads in others:
        assert float((hidden - wanted).abs().max()) < 1e-6  # the models' own norms and rotations are in float32
        assert grads.keys() == gradients.keys()
        for name, gradient in gradients.items():
            assert float((grads[name] - gradient).abs().max()) < 1e-5 * max(1.0, float(gradient.abs().max())), name


def test_each_document_is_as_if_it_were_alone(family: str) -> None:
    ids, document = rows_of_documents()
    split = model_with(VARLEN, family)
    with torch.no_grad():
        packed = split.hidden(torch.from_numpy(ids), *positions(document))
        plain = model_with("sdpa", family, intra=False)
        for row in range(B):
            for d in set(document[row].tolist()):
                at = np.flatnonzero(document[row] == d)
                alone = plain.hidden(torch.from_numpy(ids[row, at])[None], None)[0]
                assert float((packed[row, at] - alone).abs().max()) < 1e-6
        whole = plain.hidden(torch.from_numpy(ids), None)
    assert float((packed - whole)[[0, 2, 3]].abs().max()) > 0.1, "it makes no difference here: the test shows nothing"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_check_passes_and_leaves_attention_and_mode_as_they_were(family: str, dtype: torch.dtype) -> None:
    split = model_with(VARLEN, family, dtype)
    split.train()
    split.check(eos_id=1, seq_len=48)
    assert split.model.config._attn_implementation == VARLEN
    assert split.model.training


def test_the_check_finds_documents_that_see_each_other(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from slmctl.model import split as module

    split = model_with(VARLEN, family)
    monkeypatch.setattr(module, "document_starts", lambda p: np.arange(0, p.size + 1, p.shape[1], dtype=np.int32))
    with pytest.raises(InputError, match="with varlen attention, documents packed in a row see each other"):
        split.check(eos_id=1, seq_len=48)


def test_varlen_without_the_documents_mask_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"varlen is for data\.intra_document_mask: true"):
        model_with(VARLEN, intra=False)


def test_plain_attention_is_for_its_block_only_even_after_an_error() -> None:
    split, ids, got = model_with(VARLEN), torch.arange(10)[None], []

    def fails() -> None:
        with plain_attention(split.model):
            assert split.model.config._attn_implementation == "sdpa"
            got.append(split.model(input_ids=ids).logits)
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert split.model.config._attn_implementation == VARLEN
    assert float((got[0] - model_with("sdpa").model(input_ids=ids).logits).detach().abs().max()) < 1e-6
    plain = model_with("sdpa")
    with plain_attention(plain.model):
        assert plain.model.config._attn_implementation == "sdpa"


class Source:
    """A step's rows, for ever the same."""

    rows = B

    def __init__(self, ids: np.ndarray, document: np.ndarray, ref: np.ndarray) -> None:
        self.arrays = (ids, document, ref)

    def blank(self, rows: int) -> Rows:
        return Rows(*(np.empty((rows, T), a.dtype) for a in self.arrays))

    def fetch(self, _start: int, _stop: int, out: Rows) -> Rows:
        for room, array in zip((out.ids_BT, out.document_BT, out.ref_loss_BT), self.arrays, strict=True):
            assert room is not None
            room[:] = array
        return out

    def close(self) -> None:
        pass


@pytest.mark.parametrize("criterion", ["excess_loss", "all"])
@pytest.mark.parametrize("micro_rows", [2, 4])
def test_a_training_step_equals_that_of_sdpa(family: str, micro_rows: int, criterion: Any) -> None:
    ids, document = rows_of_documents()
    ref = np.random.default_rng(3).gamma(2.0, 2.0, (B, T)).astype(np.float32)
    selection = SelectionConfig(criterion=criterion, group_rows=2)
    found = []
    for attention in ("sdpa", VARLEN):
        split = model_with(attention, family)
        batcher = Batcher(Source(ids, document, ref), B, micro_rows, selection, True, 0, "cpu")
        objective, batch = Objective(split, selection), batcher.step(1)
        split.train()
        results = [objective(m, batch.selected) for m in batcher.micro_batches(1, batch)]
        for result in results:
            result.loss.backward()
        selected, live = (torch.cat([getattr(r, n) for r in results]) for n in ("selected_BT", "live_BT"))
        found.append((selected, live, {n: p.grad for n, p in split.named_parameters()}))
    (selected, live, gradients), (got_selected, got_live, got) = found
    assert int(selected.sum()) > 10
    assert torch.equal(selected, got_selected)
    torch.testing.assert_close(got_live, live, rtol=1e-5, atol=1e-6, equal_nan=True)
    for name, gradient in gradients.items():
        assert float((got[name] - gradient).abs().max()) < 1e-5 * max(1.0, float(gradient.abs().max())), name


@pytest.mark.parametrize("batch_rows", [1, 3, 4])
def test_heldout_loss_equals_that_of_sdpa_and_of_documents_alone(family: str, batch_rows: int) -> None:
    ids, document = rows_of_documents()
    tokens = SimpleNamespace(rows=B, seq_len=T)
    reader: Any = SimpleNamespace(tokens=tokens, fetch=lambda at: Rows(ids[at], document[at], None))
    plain, varlen = (heldout_loss(model_with(a, family), reader, "cpu", batch_rows) for a in ("sdpa", VARLEN))
    assert varlen.predicted == plain.predicted
    assert varlen.nats == pytest.approx(plain.nats, rel=1e-5)
    alone, nats, predicted = model_with("sdpa", family, intra=False), 0.0, 0
    for row in range(B):
        for d in set(document[row].tolist()) - {-1}:
            own = torch.from_numpy(ids[row, document[row] == d])
            with torch.no_grad():
                hidden = alone.hidden(own[None], None)[0]
            nats += float(token_losses(alone, hidden[:-1], own[1:])[0].sum())
            predicted += len(own) - 1
    assert varlen.predicted == predicted
    assert varlen.nats == pytest.approx(nats, rel=1e-5)
