"""Held-out loss against whole logits, bits per byte by hand, and tokens to reach a loss on made-up curves."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch

from slmctl.corpus.tokenizer import load_tokenizer
from slmctl.corpus.train_tokenizer import train_tokenizer
from slmctl.evaluation.heldout import HeldoutLoss, document_bytes, document_losses, heldout_loss

B, T = 8, 16


def rows(seed=0):
    rng = np.random.default_rng(seed)
    document = np.sort(rng.integers(0, 4, (B, T)), axis=1) + 10 * np.arange(B)[:, None]
    document[-1, 9:] = -1
    return rng.integers(0, 300, (B, T)), document


def plain(split, ids, document, n=B):
    """Sum and count of float64 losses over whole logits."""
    model = split.model.double()
    with torch.no_grad():
        log_p = torch.log_softmax(model(torch.from_numpy(ids)).logits, dim=-1)
    model.float()
    losses = [-float(log_p[b, t - 1, ids[b, t]]) for b in range(n) for t in range(1, T) if document[b, t] >= 0]
    return sum(losses), len(losses)


@pytest.mark.parametrize("batch_rows", [1, 3, 5, 8, 100])
def test_loss_equals_whole_logits_whatever_the_batch(batch_rows, make_llama, make_reader):
    ids, document = rows()
    split = make_llama()
    found = heldout_loss(split, make_reader(ids, document), "cpu", batch_rows)
    nats, predicted = plain(split, ids, document)
    assert found.predicted == predicted == (B - 1) * (T - 1) + 8
    assert found.nats == pytest.approx(nats, rel=1e-6)
    assert found.loss == pytest.approx(nats / predicted, rel=1e-6)
    assert found.perplexity == pytest.approx(math.exp(nats / predicted), rel=1e-5)


@pytest.mark.parametrize(("max_tokens", "wanted"), [(1, 1), (T, 1), (3 * T, 3), (3 * T + 5, 3), (10**6, B), (None, B)])
def test_max_tokens_takes_the_first_whole_rows(max_tokens, wanted, make_llama, make_reader):
    ids, document = rows()
    split = make_llama()
    found = heldout_loss(split, make_reader(ids, document), "cpu", 2, max_tokens)
    nats, predicted = plain(split, ids, document, wanted)
    assert found.predicted == predicted
    assert found.nats == pytest.approx(nats, rel=1e-6)


def test_documents_under_the_mask_are_evaluated_alone(make_llama, make_reader):
    ids, document = rows()
    split = make_llama(intra_document_mask=True)
    found = heldout_loss(split, make_reader(ids, document), "cpu", 4)
    model, wanted = split.model.double(), []
    for b in range(B):
        for d in sorted(set(document[b]) - {-1}):
            alone = torch.from_numpy(ids[b][document[b] == d])
            with torch.no_grad():
                log_p = torch.log_softmax(model(alone[None]).logits[0], dim=-1)
            wanted += [-float(log_p[i - 1, alone[i]]) for i in range(1, len(alone))]
    assert found.predicted == len(wanted)
    assert found.nats == pytest.approx(sum(wanted), rel=1e-6)


@pytest.mark.parametrize("training", [True, False])
def test_evaluation_draws_nothing_and_restores_the_mode(training, make_llama, make_reader):
    split = make_llama(dropout=0.5)
    reader = make_reader(*rows())
    split.model.train(training)
    states = torch.get_rng_state(), np.random.get_state()[1].tobytes(), random.getstate()
    first, second = (heldout_loss(split, reader, "cpu", 3) for _ in range(2))
    assert first == second, "dropout was on"
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (np.random.get_state()[1].tobytes(), random.getstate()) == states[1:]
    assert all(m.training is training for m in split.model.modules())
    assert all(p.grad is None for p in split.parameters())


def test_the_mode_is_restored_when_evaluation_fails(make_llama, make_reader):
    split = make_llama()
    reader = make_reader(*rows())
    split.model.train()
    with pytest.raises(RuntimeError):
        heldout_loss(split, reader, "no-such-device", 3)
    assert split.model.training


def test_bfloat16_is_close_and_leaves_the_weights_alone(make_llama, make_reader):
    split = make_llama()
    reader = make_reader(*rows())
    exact = heldout_loss(split, reader, "cpu", 4)
    rough = heldout_loss(split, reader, "cpu", 4, bf16=True)
    assert rough.loss != exact.loss
    assert rough.loss == pytest.approx(exact.loss, rel=0.02)
    assert all(p.dtype == torch.float32 for p in split.parameters())


def test_bits_per_byte_by_hand():
    # 3 predicted tokens with 6 ln 2 nats are 2 bits a token; 4 tokens in 16 bytes are a quarter token a byte
    assert HeldoutLoss(6 * math.log(2), 3).bits_per_byte(tokens=4, text_bytes=16) == pytest.approx(0.5)
    # a uniform model over 256 byte tokens needs 8 bits a byte
    assert HeldoutLoss(10 * math.log(256), 10).bits_per_byte(tokens=50, text_bytes=50) == pytest.approx(8.0)


def test_nothing_predicted_is_nan_and_a_diverged_model_has_infinite_perplexity():
    assert math.isnan(HeldoutLoss(0.0, 0).loss)
    assert math.isnan(HeldoutLoss(0.0, 0).perplexity)
    assert HeldoutLoss(math.log(7.5), 1).perplexity == pytest.approx(7.5)
    assert HeldoutLoss(2000.0, 1).perplexity == math.inf


# --- by document ---


def packed_rows(seed=0):
    """Documents laid end to end: some lie in two or three rows, one is a single token; the last row is padded."""
    rng = np.random.default_rng(seed)
    lengths = [5, 20, 1, 9, 40, 2, 3, 15, 7, 14]
    numbers = rng.permutation(10**12 + np.arange(len(lengths)))
    document = np.repeat(numbers, lengths)
    document = np.append(document, np.full(B * T - len(document), -1))
    return rng.integers(0, 300, (B, T)), document.reshape(B, T)


def plain_documents(split, ids, document, intra):
    """Each document's float64 losses over whole logits, a row (or a document's part of a row) at a time."""
    model, found = split.model.double(), {}
    for b in range(B):
        starts = [t for t in range(T) if t == 0 or (intra and document[b, t] != document[b, t - 1])]
        for start, stop in zip(starts, [*starts[1:], T], strict=True):
            with torch.no_grad():
                log_p = torch.log_softmax(model(torch.from_numpy(ids[b : b + 1, start:stop])).logits[0], dim=-1)
            for t in range(start + 1, stop):
                if document[b, t] >= 0:
                    found.setdefault(int(document[b, t]), []).append(-float(log_p[t - 1 - start, ids[b, t]]))
    model.float()
    return found


@pytest.mark.parametrize("intra", [False, True])
@pytest.mark.parametrize("batch_rows", [1, 3, 100])
def test_documents_losses_equal_whole_logits(intra, batch_rows, make_llama, make_reader):
    ids, document = packed_rows()
    split = make_llama(intra_document_mask=intra)
    found = document_losses(split, make_reader(ids, document), "cpu", batch_rows)
    wanted = plain_documents(split, ids, document, intra)
    assert sum(len({b for b in range(B) if d in document[b]}) > 1 for d in wanted) >= 3, "no document lies in several rows"
    assert (len(wanted) < 10) == intra, "under the mask a document of one token has nothing that is predicted"
    assert found.document_M.tolist() == sorted(wanted)
    assert found.predicted_M.tolist() == [len(wanted[d]) for d in sorted(wanted)]
    np.testing.assert_allclose(found.nats_M, [sum(wanted[d]) for d in sorted(wanted)], rtol=1e-6)
    every = [x for losses in wanted.values() for x in losses]
    assert found.whole.predicted == len(every)
    assert found.whole.loss == pytest.approx(np.mean(every), rel=1e-6)


def test_documents_sum_up_to_the_sets_loss(make_llama, make_reader):
    split, reader = make_llama(), make_reader(*packed_rows())
    by_document, whole = document_losses(split, reader, "cpu", 3), heldout_loss(split, reader, "cpu", 5)
    assert by_document.whole.predicted == whole.predicted
    assert by_document.whole.nats == pytest.approx(whole.nats, rel=1e-9)


def test_documents_are_not_measured_with_dropout(make_llama, make_reader):
    split = make_llama(dropout=0.5)
    split.model.train()
    with pytest.raises(ValueError, match="eval mode"):
        document_losses(split, make_reader(*packed_rows()), "cpu", 3)


def test_bytes_of_documents_are_those_of_their_texts(make_reader, tmp_path):
    """Documents packed end to end, so that some go on in the next row; one is empty, and the last row is padded."""
    train_tokenizer(["the sum of 12 and 30 is 42, and so it goes on"] * 20, 300, tmp_path / "tokenizer")
    tokenizer = load_tokenizer(str(tmp_path / "tokenizer"))
    texts = ["the sum of 12", "", "\u00e9t\u00e9 \u2192 42\n", " it  goes on and on, and so it goes on " * 3, "30"]
    numbers = [7, 8, 9, 2**32, 2**32 + 5]
    encoded = [tokenizer.hf(text, add_special_tokens=False)["input_ids"] for text in texts]
    packed = [(i, n) for ids, n in zip(encoded, numbers, strict=True) for i in [*ids, tokenizer.eos_id]]
    assert len(packed) > 3 * T
    packed += [(tokenizer.eos_id, -1)] * (-len(packed) % T)
    ids, document = (np.array(column).reshape(-1, T) for column in zip(*packed, strict=True))
    found = document_bytes(make_reader(ids, document), tokenizer)
    assert found == {7: 13, 8: 0, 9: 13, 2**32: 3 * 39, 2**32 + 5: 2}
