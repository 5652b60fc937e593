"""Per-token losses and entropies in chunks, against the model's own whole logits in float64, on every family."""

from __future__ import annotations

import math

import pytest
import torch

from slmctl.model.losses import selected_loss, token_losses


def full_logits(split, ids_BT):
    """The model's own logits, whole: whatever it does to them is in them. [B, T, V]"""
    with torch.no_grad():
        return split.model(input_ids=ids_BT, use_cache=False).logits


def plain_loss(logits_V, label):
    """-log softmax(logits)[label], in Python floats."""
    values = [float(v) for v in logits_V]
    top = max(values)
    return top + math.log(sum(math.exp(v - top) for v in values)) - values[label]


def plain_entropy(logits_V):
    values = [float(v) for v in logits_V]
    top = max(values)
    log_z = top + math.log(sum(math.exp(v - top) for v in values))
    return -sum(math.exp(v - log_z) * (v - log_z) for v in values if v > -math.inf)


def rows(vocab, b=2, t=24, seed=1):
    return torch.randint(0, vocab, (b, t), generator=torch.Generator().manual_seed(seed))


def positions(split, ids_BT):
    """Hidden states and labels of every predicted position: [N, D], [N]."""
    with torch.no_grad():
        hidden_BTD = split.hidden(ids_BT, None)
    return hidden_BTD[:, :-1].flatten(0, 1), ids_BT[:, 1:].flatten()


@pytest.mark.usefixtures("small_chunks")
def test_chunked_losses_and_entropies_equal_whole_logits(family, make_model):
    split = make_model(family)
    split.check(eos_id=1, seq_len=48)
    ids_BT = rows(split.vocab_size)
    hidden_ND, labels_N = positions(split, ids_BT)
    losses, entropies = token_losses(split, hidden_ND, labels_N, entropy=True)
    logits_NV = full_logits(split, ids_BT)[:, :-1].flatten(0, 1)
    assert losses.dtype == torch.float64
    assert len(losses) == len(labels_N) == 46
    for i, label in enumerate(labels_N.tolist()):
        assert float(losses[i]) == pytest.approx(plain_loss(logits_NV[i], label), abs=1e-11)
        assert float(entropies[i]) == pytest.approx(plain_entropy(logits_NV[i]), abs=1e-11)


@pytest.mark.usefixtures("small_chunks")
def test_selected_losses_and_their_mean_equal_whole_logits(family, make_model):
    split = make_model(family)
    ids_BT = rows(split.vocab_size)
    hidden_ND, labels_N = positions(split, ids_BT)
    chosen = torch.rand(len(labels_N), generator=torch.Generator().manual_seed(2)) < 0.6
    loss, losses_K = selected_loss(split, hidden_ND[chosen], labels_N[chosen], divisor=7.0)
    logits_NV = full_logits(split, ids_BT)[:, :-1].flatten(0, 1)
    wanted = [plain_loss(logits_NV[i], int(labels_N[i])) for i in chosen.nonzero()[:, 0].tolist()]
    assert losses_K.tolist() == pytest.approx(wanted, abs=1e-11)
    assert loss.item() == pytest.approx(sum(wanted) / 7.0, abs=1e-11)


@pytest.mark.parametrize("name", ["gemma2", "gemma3", "cohere", "granite"])
def test_these_heads_really_post_process(name, make_model):
    """Without this the tests above could not tell a forgotten softcap or scale."""
    split = make_model(name)
    ids_BT = rows(split.vocab_size)
    hidden_ND, labels_N = positions(split, ids_BT)
    right, _ = token_losses(split, hidden_ND, labels_N)
    split.softcap, split.multiplier = None, 1.0
    wrong, _ = token_losses(split, hidden_ND, labels_N)
    assert (right - wrong).abs().mean() > 0.5


@pytest.mark.parametrize("n", [0, 1, 15, 16, 17, 32, 46])
def test_chunk_boundaries_lose_and_double_nothing(n, make_model, small_chunks):
    split = make_model("llama")
    hidden_ND, labels_N = positions(split, rows(split.vocab_size))
    calls = []
    logits = split.logits
    split.logits = lambda hidden, weight, bias: calls.append(len(hidden)) or logits(hidden, weight, bias)
    losses, entropies = token_losses(split, hidden_ND[:n], labels_N[:n], entropy=True)
    assert sum(calls) == n
    assert max(calls, default=0) <= small_chunks
    assert losses.shape == entropies.shape == (n,)
    one_by_one = [float(token_losses(split, hidden_ND[i : i + 1], labels_N[i : i + 1])[0]) for i in range(n)]
    assert losses.tolist() == pytest.approx(one_by_one, abs=1e-12)
    _, losses_K = selected_loss(split, hidden_ND[:n], labels_N[:n], 1.0)
    assert losses_K.tolist() == pytest.approx(one_by_one, abs=1e-12)


def test_a_forbidden_token_leaves_the_entropy_finite(make_model):
    split = make_model("phi")
    with torch.no_grad():
        split.head.bias[[3, 5]] = -torch.inf
    ids_BT = rows(split.vocab_size)
    ids_BT[(ids_BT == 3) | (ids_BT == 5)] = 7
    hidden_ND, labels_N = positions(split, ids_BT)
    losses, entropies = token_losses(split, hidden_ND, labels_N, entropy=True)
    logits_NV = full_logits(split, ids_BT)[:, :-1].flatten(0, 1)
    assert losses.isfinite().all()
    assert entropies.tolist() == pytest.approx([plain_entropy(v) for v in logits_NV], abs=1e-11)


def test_live_losses_leave_no_trace_in_autograd(make_model):
    split = make_model("llama")
    hidden_ND, labels_N = positions(split, rows(split.vocab_size))
    losses, _ = token_losses(split, hidden_ND.requires_grad_(), labels_N)
    assert not losses.requires_grad
