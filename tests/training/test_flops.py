"""FLOPs a token, against a count by hand, and how many positions' logits are made at once."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from slmctl.model import losses
from slmctl.model.flops import flops_per_token, peak_flops
from slmctl.model.losses import CACHE_BYTES, CPU_BYTES, GPU_SHARE, MIN_CHUNK_ROWS, chunk_rows, head_memory


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


# --- chunks of logits ---


@pytest.fixture
def gpu(monkeypatch):
    """gpu(bytes): a made-up GPU with so much memory."""

    def make(memory):
        chunk_rows.cache_clear()
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=memory))

    yield make
    chunk_rows.cache_clear()


@pytest.mark.parametrize("vocab_size", [1, 61, 300, 4096, 8191, 8192, 8193, 32_000, 151_936, 10**7])
def test_on_a_cpu_a_chunk_of_logits_fits_the_cache_but_for_the_fewest_rows(vocab_size):
    rows = chunk_rows(vocab_size, "cpu")
    assert rows == max(MIN_CHUNK_ROWS, CACHE_BYTES // (4 * vocab_size))
    if rows > MIN_CHUNK_ROWS:
        assert 4 * vocab_size * rows <= CACHE_BYTES < 4 * vocab_size * (rows + 1)


def test_on_a_cpu_larger_vocabularies_have_no_larger_chunks():
    rows = [chunk_rows(v, "cpu") for v in range(1, 40_000, 997)]
    assert rows == sorted(rows, reverse=True)
    assert rows[0] > rows[-1] == MIN_CHUNK_ROWS


@pytest.mark.parametrize(
    ("memory", "vocab_size", "rows"),
    [
        (80 * 10**9, 32_000, 9765),  # 1.25 GB of logits
        (80 * 10**9, 151_936, 2056),
        (8 * 10**9, 151_936, MIN_CHUNK_ROWS),
    ],
)
def test_on_a_gpu_a_chunk_takes_its_share_of_the_memory(memory, vocab_size, rows, gpu):
    gpu(memory)
    assert chunk_rows(vocab_size, "cuda") == chunk_rows(vocab_size, "cuda", gradient=True) == rows
    if rows > MIN_CHUNK_ROWS:
        assert 4 * vocab_size * rows <= memory // GPU_SHARE < 4 * vocab_size * (rows + 1)


@pytest.mark.parametrize(
    ("memory", "vocab_size", "rows"),
    [
        (512 * 2**30, 32_000, CPU_BYTES // 128_000),
        (24 * 2**30, 32_000, 4194),  # 537 MB of logits, on any machine
        (8 * 2**30, 32_000, 4194),
        (8 * 2**30 - 1, 32_000, 2097),
        (2**30, 32_000, 524),
        (2**30, 150_000, MIN_CHUNK_ROWS),
        (2**26, 4096, 512),  # what the cache holds is more
    ],
)
def test_on_a_cpu_a_chunk_with_gradient_is_the_same_on_all_machines_that_have_room(memory, vocab_size, rows, monkeypatch):
    chunk_rows.cache_clear()
    monkeypatch.setattr(losses, "memory_limit", lambda: memory)
    assert chunk_rows(vocab_size, "cpu", gradient=True) == rows
    assert chunk_rows(vocab_size, "cpu") <= rows
    chunk_rows.cache_clear()


def test_head_memory_holds_three_chunks_and_two_gradients_of_the_weights():
    rows = chunk_rows(1000, "cpu", gradient=True)
    assert head_memory(1000, 64, "cpu", 10**9) == 4 * (3 * rows * 1000 + 2 * 1000 * 64)
    assert head_memory(1000, 64, "cpu", 100) == 4 * (3 * 100 * 1000 + 2 * 1000 * 64), "no more than there are positions"
