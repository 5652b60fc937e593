"""Losses of whole rows: their place, their masks, and documents that must not see each other."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from slmctl.model.row_losses import row_losses
from slmctl.system.errors import InputError


def loss_at(split, ids, position):
    """Loss of ids[position] given those before it: whole logits of this very prefix, float64."""
    with torch.no_grad():
        logits_TV = split.model(input_ids=torch.tensor([list(ids[:position])]), use_cache=False).logits[0].double()
    return float(-torch.log_softmax(logits_TV[-1], dim=-1)[ids[position]])


def packed(vocab, documents_BT):
    ids_BT = np.random.default_rng(3).integers(2, vocab, documents_BT.shape)
    ids_BT[documents_BT < 0] = 1
    return ids_BT


DOCUMENTS = np.array([[0] * 5 + [1] * 6 + [2] * 1 + [3] * 4, [4] * 9 + [5] * 3 + [-1] * 4, [-1] * 16])


def test_each_loss_is_at_its_own_token_and_nan_elsewhere(make_model):
    split = make_model("llama_tied")
    ids_BT = packed(split.vocab_size, DOCUMENTS)
    losses, entropy, target = row_losses(split, ids_BT, DOCUMENTS, "cpu", entropy=True)
    for b in range(3):
        for t in range(16):
            predicted = t > 0 and DOCUMENTS[b, t] >= 0
            assert target[b, t] == predicted
            assert np.isnan(losses[b, t]) == np.isnan(entropy[b, t]) == (not predicted)
            if predicted:
                assert losses[b, t] == pytest.approx(loss_at(split, ids_BT[b], t), rel=1e-6)


def test_documents_in_a_row_give_the_losses_that_they_give_alone(family, make_model):
    split = make_model(family, intra_document_mask=True)
    split.check(eos_id=1, seq_len=48)
    ids_BT = packed(split.vocab_size, DOCUMENTS)
    losses, _, target = row_losses(split, ids_BT, DOCUMENTS, "cpu")
    wanted = np.full(losses.shape, np.nan)
    for b in range(len(DOCUMENTS)):
        for document in sorted(set(DOCUMENTS[b]) - {-1}):
            at = np.flatnonzero(DOCUMENTS[b] == document)
            for i in range(1, len(at)):
                wanted[b, at[i]] = loss_at(split, ids_BT[b, at], i)
    assert (target == ~np.isnan(wanted)).all()
    np.testing.assert_allclose(losses, wanted, rtol=1e-6)
    split.intra_document_mask = False
    plain, _, _ = row_losses(split, ids_BT, DOCUMENTS, "cpu")
    assert np.nanmax(np.abs(plain - wanted)) > 1e-3, "the mask changes nothing here, so the test above shows nothing"


def test_a_family_that_ignores_restarting_positions_is_refused(family_without_restart, make_model):
    make_model(family_without_restart).check(eos_id=1, seq_len=48)  # fine without the mask
    with pytest.raises(InputError, match="intra_document_mask"):
        make_model(family_without_restart, intra_document_mask=True).check(eos_id=1, seq_len=48)


def test_a_model_in_training_mode_is_refused_since_it_would_drop_units(make_model):
    split = make_model("gpt2")
    split.model.train()
    with pytest.raises(ValueError, match="eval mode"):
        row_losses(split, packed(split.vocab_size, DOCUMENTS), DOCUMENTS, "cpu")
