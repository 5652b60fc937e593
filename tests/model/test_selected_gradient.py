"""Gradients of the selected-only loss equal those of naive masking of whole logits."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from slmctl.model import losses
from slmctl.model.losses import KeptLogits, live_losses, selected_loss, token_losses

HEADS = ["llama", "llama_tied", "phi", "gemma2", "granite", "cohere", "gpt2"]
DIVISOR = 7.0


def mask_of(n, ratio):
    """A fixed random mask of exactly round(ratio * n) of n."""
    order = torch.randperm(n, generator=torch.Generator().manual_seed(5))
    mask = torch.zeros(n, dtype=torch.bool)
    mask[order[: round(ratio * n)]] = True
    return mask


def ids_of(split):
    return torch.randint(0, split.vocab_size, (2, 24), generator=torch.Generator().manual_seed(1))


def gradients(split):
    found = {n: p.grad.clone() for n, p in split.model.named_parameters() if p.grad is not None}
    split.model.zero_grad(set_to_none=True)
    return found


def naive(split, ids_BT, mask_N, scale=1.0):
    """Masked cross-entropy of the model's own whole logits."""
    logits_BTV = split.model(input_ids=ids_BT, use_cache=False).logits
    losses_N = functional.cross_entropy(logits_BTV[:, :-1].flatten(0, 1), ids_BT[:, 1:].flatten(), reduction="none")
    loss = (losses_N * mask_N).sum() / DIVISOR
    (loss * scale).backward()
    return loss.detach(), gradients(split)


def ours(split, ids_BT, mask_N, scale=1.0, divisor=DIVISOR):
    hidden_ND = split.hidden(ids_BT, None)[:, :-1].flatten(0, 1)
    loss, _ = selected_loss(split, hidden_ND[mask_N], ids_BT[:, 1:].flatten()[mask_N], divisor)
    (loss * scale).backward()
    return loss.detach(), gradients(split)


def worst(a, b):
    assert a.keys() == b.keys()
    return max(float((a[k] - b[k]).abs().max()) for k in a)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("ratio", [0.02, 0.37, 0.6, 1.0])
@pytest.mark.parametrize("name", HEADS)
def test_gradients_equal_naive_masking(name, ratio, make_model):
    split = make_model(name)
    ids_BT, mask_N = ids_of(split), mask_of(46, ratio)
    wanted_loss, wanted = naive(split, ids_BT, mask_N)
    loss, found = ours(split, ids_BT, mask_N)
    assert float(loss) == pytest.approx(float(wanted_loss), abs=1e-12)
    assert worst(found, wanted) < 1e-12
    assert max(float(g.abs().max()) for g in found.values()) > 1e-3
    other = mask_N.roll(1) if ratio < 1 else mask_of(46, 0.9)
    assert worst(naive(split, ids_BT, other)[1], found) > 1e-5, "another mask gives the same gradients: the test is blind"


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("keep", [0, 1, 7, 16, 45, 46])
@pytest.mark.parametrize("name", HEADS)
def test_logits_handed_over_give_the_same_gradients(name, keep, make_model):
    split = make_model(name)
    ids_BT, mask_N = ids_of(split), mask_of(46, 0.6)
    wanted_loss, wanted = naive(split, ids_BT, mask_N)
    hidden_ND, labels_N = split.hidden(ids_BT, None)[:, :-1].flatten(0, 1), ids_BT[:, 1:].flatten()
    losses_N, kept = live_losses(split, hidden_ND.detach(), labels_N, keep)
    assert losses_N.tolist() == pytest.approx(token_losses(split, hidden_ND.detach(), labels_N)[0].tolist(), abs=1e-12)
    assert kept.first == 46 - keep
    rows_J = mask_N[kept.first :].nonzero()[:, 0]
    loss, losses_K = selected_loss(split, hidden_ND[mask_N], labels_N[mask_N], DIVISOR, kept, rows_J)
    assert losses_K.tolist() == pytest.approx(losses_N[mask_N].tolist(), abs=1e-12)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(float(wanted_loss), abs=1e-12)
    assert worst(gradients(split), wanted) < 1e-12
    if keep:
        assert kept.logits_RV is None, "a chunk of logits is kept beyond its use"


@pytest.mark.usefixtures("small_chunks")
def test_logits_of_which_none_is_selected_are_let_go_before_others_are_made(make_model):
    split = make_model("llama")
    ids_BT, mask_N = ids_of(split), torch.arange(46) < 20
    wanted_loss, wanted = naive(split, ids_BT, mask_N)
    hidden_ND, labels_N = split.hidden(ids_BT, None)[:, :-1].flatten(0, 1), ids_BT[:, 1:].flatten()
    _, kept = live_losses(split, hidden_ND.detach(), labels_N, 16)
    own = split.logits

    def logits(*given):
        assert kept.logits_RV is None, "two chunks of logits are in memory"
        return own(*given)

    split.logits = logits
    loss, _ = selected_loss(split, hidden_ND[mask_N], labels_N[mask_N], DIVISOR, kept, torch.zeros(0, dtype=torch.int64))
    loss.backward()
    assert float(loss.detach()) == pytest.approx(float(wanted_loss), abs=1e-12)
    assert worst(gradients(split), wanted) < 1e-12


@given(rows=st.integers(0, 40), share=st.floats(0, 1), block=st.integers(1, 9), seed=st.integers(0, 99))
def test_kept_logits_move_to_the_front_of_their_own_memory(rows, share, block, seed):
    logits_RV = torch.randn(rows, 3, generator=torch.Generator().manual_seed(seed))
    rows_J = (torch.rand(rows, generator=torch.Generator().manual_seed(seed + 1)) < share).nonzero()[:, 0]
    wanted = logits_RV[rows_J].clone()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(losses, "MIN_CHUNK_ROWS", block)
        found = KeptLogits(logits_RV, 0).take(rows_J)
    assert torch.equal(found, wanted)
    assert found.untyped_storage().data_ptr() == logits_RV.untyped_storage().data_ptr()


@pytest.mark.parametrize("name", HEADS)
def test_nothing_selected_gives_a_zero_finite_gradient(name, make_model):
    split = make_model(name)
    loss, found = ours(split, ids_of(split), torch.zeros(46, dtype=torch.bool))
    assert float(loss) == 0.0
    assert "lm_head.weight" in found or split.model.config.tie_word_embeddings
    assert all(float(g.abs().max()) == 0.0 for g in found.values())


def test_the_gradient_from_above_is_passed_on(make_model):
    split = make_model("phi")
    ids_BT, mask_N = ids_of(split), mask_of(46, 0.5)
    assert worst(ours(split, ids_BT, mask_N, scale=-2.5)[1], naive(split, ids_BT, mask_N, scale=-2.5)[1]) < 1e-12


def test_a_tensor_as_divisor_does_what_a_number_does(make_model):
    split = make_model("llama")
    ids_BT, mask_N = ids_of(split), mask_of(46, 0.5)
    assert worst(ours(split, ids_BT, mask_N, divisor=torch.tensor(7))[1], ours(split, ids_BT, mask_N)[1]) == 0.0


def test_frozen_trunk_still_trains_the_head(make_model):
    split = make_model("llama")
    ids_BT, mask_N = ids_of(split), mask_of(46, 0.5)
    split.model.base_model.requires_grad_(False)
    assert worst(ours(split, ids_BT, mask_N)[1], naive(split, ids_BT, mask_N)[1]) < 1e-12


@pytest.mark.parametrize("name", ["llama", "llama_tied", "phi", "gemma3"])
def test_bfloat16_autocast_stays_close_to_float32(name, make_model, small_chunks):
    split = make_model(name, dtype=torch.float32)
    ids_BT, mask_N = ids_of(split), mask_of(46, 0.6)
    assert int(mask_N.sum()) > small_chunks
    exact_loss, exact = ours(split, ids_BT, mask_N)
    with torch.autocast("cpu", torch.bfloat16):
        hidden_ND = split.hidden(ids_BT, None)[:, :-1].flatten(0, 1)
        labels_N = ids_BT[:, 1:].flatten()
        loss, losses_K = selected_loss(split, hidden_ND[mask_N], labels_N[mask_N], DIVISOR)
        live_N, _ = token_losses(split, hidden_ND.detach(), labels_N)
    loss.backward()
    found = gradients(split)
    assert loss.dtype == losses_K.dtype == live_N.dtype == torch.float32
    assert all(g.dtype == torch.float32 for g in found.values())
    assert loss.item() == pytest.approx(float(exact_loss), rel=2e-2)
    torch.testing.assert_close(losses_K, live_N[mask_N])  # what is logged is what is trained on
    flat = torch.cat([g.flatten() for g in found.values()])
    wanted = torch.cat([exact[k].flatten() for k in found])
    assert float((flat - wanted).norm() / wanted.norm()) < 0.05


def test_pure_bfloat16_sums_its_head_gradient_in_float32(make_model, small_chunks):
    """Chunk by chunk in bfloat16 the sum would drift: many chunks must be as good as one."""
    split = make_model("llama", dtype=torch.bfloat16)
    hidden_ND = torch.randn(40 * small_chunks, 32, generator=torch.Generator().manual_seed(0)).bfloat16()
    labels_N = torch.randint(0, 97, (len(hidden_ND),), generator=torch.Generator().manual_seed(1))
    loss, _ = selected_loss(split, hidden_ND, labels_N, 1.0)
    loss.backward()
    found = split.head.weight.grad.double()
    weight = split.head.weight.detach().double().requires_grad_()
    functional.cross_entropy(hidden_ND.double() @ weight.T, labels_N, reduction="sum").backward()
    assert float((found - weight.grad).norm() / weight.grad.norm()) < 0.01
