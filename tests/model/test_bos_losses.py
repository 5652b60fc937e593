"""A model that was trained behind a beginning-of-sequence token predicts better behind it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers as tf

from slmctl.corpus.packing import BosPlace, Packer, bos_mask
from slmctl.model.row_losses import row_losses
from slmctl.model.split import SplitModel

EOS, BOS, VOCAB, T = 0, 1, 18, 8


def documents(seed: int, n: int) -> list[np.ndarray]:
    """Texts in which a token and its place say the next one, (token + place) mod 16; the first is by chance."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(n):
        first, size = int(rng.integers(16)), int(rng.integers(3, 12))
        steps = np.arange(size)
        found.append(2 + (first + steps * (steps + 1) // 2) % 16)
    return found


def rows_of(texts: list[np.ndarray], bos: int | None, at: BosPlace) -> tuple[np.ndarray, np.ndarray]:
    packer = Packer(T, EOS, 4, bos, at)
    blocks = [b for d, ids in enumerate(texts) for b in packer.add(ids, d)] + list(packer.finish())
    ids, document = (np.concatenate([b[i] for b in blocks]).reshape(-1, T) for i in (0, 1))
    return ids, document


@pytest.mark.parametrize("at", ["row", "document"])
def test_losses_without_bos_are_worse_on_a_model_that_was_trained_with_it(at: BosPlace) -> None:
    restart = at == "document"
    torch.manual_seed(0)
    config = tf.LlamaConfig(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=T, pad_token_id=None, initializer_range=0.1,
    )  # fmt: skip
    model = SplitModel(tf.LlamaForCausalLM(config), restart)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    ids_BT, document_BT = rows_of(documents(1, 1500), BOS, at)
    rng = np.random.default_rng(0)
    for _ in range(120):
        rows = rng.integers(len(ids_BT), size=16)
        ids, mask = torch.from_numpy(ids_BT[rows]), torch.from_numpy(~bos_mask(document_BT[rows], at) & (document_BT[rows] >= 0))
        loss = _loss(model.model, ids, torch.from_numpy(document_BT[rows]), restart)[mask].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    texts = documents(2, 100)
    found = {}
    for bos in (BOS, None):
        ids, document = rows_of(texts, bos, at)
        losses, _, _ = row_losses(model, ids, document, "cpu")
        text = ~bos_mask(document, at if bos else None) & (document >= 0)
        found[bos] = losses[text]
    both = np.isfinite(found[BOS]) & np.isfinite(found[None])
    assert both.sum() > 500
    with_bos, without = (float(found[b][both].mean()) for b in (BOS, None))
    assert with_bos < without - 0.1, (with_bos, without)


def _loss(model: torch.nn.Module, ids: torch.Tensor, document: torch.Tensor, restart: bool) -> torch.Tensor:
    """[B, T] losses of the model's own logits, each document by itself under `restart`; 0 on the first token."""
    b, t = ids.shape
    causal = torch.ones(t, t, dtype=torch.bool).tril().expand(b, t, t)
    position = torch.arange(t).expand(b, t)
    if restart:
        same = document[:, :, None] == document[:, None, :]
        causal = causal & same
        position = causal.sum(-1) - 1
    blocked = torch.zeros(b, 1, t, t).masked_fill(~causal[:, None], -1e9)
    logits = model(input_ids=ids, attention_mask=blocked, position_ids=position).logits
    losses = torch.nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none")
    return torch.nn.functional.pad(losses, (1, 0))
