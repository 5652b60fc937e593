"""FLOPs a token, against a count by hand."""

from __future__ import annotations

import pytest
import torch

from slmctl.training.flops import flops_per_token, peak_flops


@pytest.mark.parametrize("tied", [True, False])
def test_flops_per_token_equal_a_hand_count(tied, make_llama):
    # width 16, two blocks, 4 query and 2 key-value heads of width 4, feed-forward 24, vocabulary 61
    block = 16 * 16 + 2 * 16 * 8 + 16 * 16 + 3 * 16 * 24  # q; k and v; o; gate, up and down
    matmuls = 2 * block + 16 * 61  # the head counts once, tied or not; the input embedding is a lookup
    attention = 2 * 12 * (4 * 4) * 128  # 12 x heads x head_dim x seq_len a block
    assert flops_per_token(make_llama(tied).model, 128) == 6 * matmuls + attention


def test_position_embeddings_are_a_lookup_and_cost_nothing():
    import transformers as tf

    def flops(n_positions):
        config = tf.GPT2Config(
            vocab_size=61, n_embd=16, n_layer=1, n_head=2, n_positions=n_positions, bos_token_id=1, eos_token_id=1
        )
        return flops_per_token(tf.GPT2LMHeadModel(config), 32)

    assert flops(64) == flops(4096)


def test_peak_is_unknown_on_a_cpu_and_known_for_the_cards_in_the_list(monkeypatch):
    assert peak_flops("cpu") is None
    for name, peak in {
        "NVIDIA H100 80GB HBM3": 989e12,
        "NVIDIA H100 PCIe": 756e12,
        "NVIDIA A100-SXM4-40GB": 312e12,
        "NVIDIA A10": 125e12,
        "NVIDIA L40S": 362e12,
        "NVIDIA L4": 121e12,
        "Some Other Card": None,
    }.items():
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda name=name: name)
        assert peak_flops("cuda") == peak, name
