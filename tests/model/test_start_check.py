"""Models that are not what slmctl takes them for are refused before the first step, and those that are, are not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers as tf

from slmctl.model.attention import VARLEN, plain_attention, register
from slmctl.model.row_losses import row_losses
from slmctl.model.split import SplitModel, refuse_rows_beyond
from slmctl.system.errors import InputError, MismatchError

V, T = 97, 40
SMALL = {"vocab_size": V, "bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0}
BASE = {
    **SMALL,
    **{"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 8},
    **{"num_key_value_heads": 2, "max_position_embeddings": 128},
}
LATENT = {"kv_lora_rank": 8, "q_lora_rank": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 8}
LONG = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [2.0, 4.0, 8.0, 16.0]}


def without(*names):
    return {k: v for k, v in BASE.items() if k not in names}


def model_of(model_type, attention="sdpa", dtype=torch.float32, **given):
    """Random weights; logits of about 3 where nothing is done to them."""
    register()
    torch.manual_seed(0)
    config = tf.AutoConfig.for_model(model_type, **given)
    model = tf.AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    head = model.get_output_embeddings()
    with torch.no_grad():
        head.weight.mul_(3 / (head.weight.std() * head.in_features**0.5))
    return model.to(dtype).eval()


# --- right, in rows longer than windows ---

WINDOW = {"sliding_window": 8, "use_sliding_window": True, "max_window_layers": 0}
RIGHT = {
    "mistral": ({**BASE, "sliding_window": 8}, True),
    "qwen3": ({**BASE, **WINDOW}, True),
    "gemma2": ({**BASE, "sliding_window": 8, "final_logit_softcapping": 2.0, "attn_logit_softcapping": 2.0}, True),
    "cohere2": ({**BASE, "sliding_window": 8, "logit_scale": 0.25}, True),
    "smollm3": (BASE, True),
    "olmo2": (without("head_dim"), True),
    "hyperclovax": ({**BASE, "logits_scaling": 0.25}, True),
    "minicpm3": ({**without("head_dim"), **LATENT, "num_key_value_heads": 4, "dim_model_base": 8}, True),
    "falcon_h1": (
        {**without("head_dim"), "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_ssm": 64, "mamba_d_state": 8}
        | {"lm_head_multiplier": 0.5, "mamba_chunk_size": 16},
        False,
    ),
    "recurrent_gemma": (
        {**without("max_position_embeddings"), "lru_width": 32, "attention_window_size": 8, "logits_soft_cap": 2.0}
        | {"block_types": ["recurrent", "attention"]},
        False,
    ),
    "mixtral": ({**BASE, "num_local_experts": 4, "sliding_window": 8}, True),
    "deepseek_v3": (
        {**without("head_dim"), **LATENT, "num_key_value_heads": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 2}
        | {"topk_group": 1, "moe_intermediate_size": 16, "first_k_dense_replace": 1},
        True,
    ),
    "bloom": ({**SMALL, "hidden_size": 32, "n_layer": 2, "n_head": 4}, False),
}  # fmt: skip


def own_losses(model, ids_BT, document_BT, documents):
    """A plain loop over whole logits of each row, or of each document, alone."""
    found = np.full(ids_BT.shape, np.nan)
    for b, row in enumerate(ids_BT):
        whole = [np.arange(T)] if not documents else [np.flatnonzero(document_BT[b] == d) for d in set(document_BT[b])]
        for part in whole:
            with torch.no_grad():
                logits_TV = model(input_ids=torch.from_numpy(row[part])[None], use_cache=False).logits[0].double()
            for i in range(1, len(part)):
                found[b, part[i]] = -logits_TV[i - 1].log_softmax(-1)[row[part[i]]]
    return found


@pytest.mark.parametrize("model_type", RIGHT)
def test_losses_of_what_the_check_lets_through_are_the_models_own(model_type):
    given, restarts = RIGHT[model_type]
    attention = "eager" if model_type in ("gemma2", "bloom") else "sdpa"
    model = model_of(model_type, attention, **given)
    exact = model_of(model_type, attention, torch.float64, **given)
    exact.set_experts_implementation("eager")  # the others take no float64
    document_BT = np.array([[0] * T, [1] * 17 + [2] * 1 + [3] * 22])
    ids_BT = np.random.default_rng(0).integers(2, V, document_BT.shape)
    for documents in (False, True):
        split = SplitModel(model, documents)
        if documents and not restarts:
            with pytest.raises(InputError, match=r"documents packed in a row see each other\. Use data\.intra_document_mask"):
                split.check(eos_id=1, seq_len=T)
            continue
        split.check(eos_id=1, seq_len=T)
        losses, _, target = row_losses(split, ids_BT, document_BT, "cpu")
        wanted = own_losses(exact, ids_BT, document_BT, documents)
        assert (target == ~np.isnan(wanted)).all()
        np.testing.assert_allclose(losses[target], wanted[target], atol=1e-4)


# --- later tokens ---

TWO_WAYS = [
    ("gemma3_text", {**BASE, "use_bidirectional_attention": True}, "use_bidirectional_attention: True"),
    ("llama", {**BASE, "is_causal": False}, "is_causal: False"),
    ("qwen3", {**BASE, "is_causal": False, "tie_word_embeddings": True}, "is_causal: False"),
    ("roberta", without("head_dim", "num_key_value_heads"), "is_decoder: False"),
    ("mixtral", {**BASE, "is_causal": False, "num_local_experts": 4}, "is_causal: False"),
]


@pytest.mark.parametrize("precision", ["float32", "autocast", "bfloat16"])
@pytest.mark.parametrize(("model_type", "given", "named"), TWO_WAYS, ids=[t[0] for t in TWO_WAYS])
@pytest.mark.parametrize("documents", [False, True])
def test_a_model_that_sees_later_tokens_is_refused(model_type, given, named, precision, documents):
    split = SplitModel(model_of(model_type, **given), documents)
    if precision == "bfloat16":
        split = split.bfloat16()
    said = pytest.raises(InputError, match=f"tokens that come later: .*{named}.*correct its config.json")
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "autocast"), said:
        split.check(1, T, precision == "autocast")


class Trunk(tf.LlamaModel):
    """Its last states are changed by `also`, of input ids and states."""

    also = None

    def forward(self, input_ids=None, **kwargs):
        out = super().forward(input_ids=input_ids, **kwargs)
        out.last_hidden_state = self.also(input_ids, out.last_hidden_state)
        return out


def llama_and(also):
    model = model_of("llama", **BASE)
    model.model.__class__ = Trunk
    model.model.also = also
    return SplitModel(model)


def of_last_token(ids, hidden):
    return hidden + 0.05 * (ids[:, -1:, None] % 7) if ids.shape[1] > 24 else hidden


def of_next_in_chunks_of_32(ids, hidden):
    ahead = torch.cat([ids[:, 1:], ids[:, -1:]], 1)
    ahead[:, 31::32] = ids[:, 31::32]
    return hidden + 0.05 * (ahead[..., None] % 7) * (ids.shape[1] > 24)


def of_other_rows(ids, hidden):
    return hidden + 0.05 * hidden.mean(0, keepdim=True) if len(ids) > 1 else hidden


def of_its_place_in_the_batch(ids, hidden):
    return hidden + 0.05 * hidden.roll(1, 0) if ids.shape[1] > 24 else hidden


@pytest.mark.parametrize("also", [of_last_token, of_next_in_chunks_of_32, of_other_rows, of_its_place_in_the_batch])
def test_what_shows_only_in_whole_rows_or_beside_others_is_refused_there(also):
    split = llama_and(also)
    with pytest.raises(InputError, match=f"in rows of {T} tokens, what it predicts changes with later tokens, or with the row"):
        split.check(1, T)
    llama_and(lambda _, hidden: hidden).check(1, T)


# --- length ---


@pytest.mark.parametrize("attention", ["sdpa", VARLEN])
def test_documents_under_tables_for_long_rows_are_refused_with_the_length_that_helps(attention):
    given = {**BASE, "rope_parameters": LONG, "original_max_position_embeddings": 32}
    model = model_of("phi3", attention, **given)
    with pytest.raises(InputError, match=f"row of {T} tokens do not give.*intra_document_mask: false.*seq_len of at most 32"):
        SplitModel(model, True).check(1, T)
    SplitModel(model, True).check(1, 32)
    SplitModel(model_of("phi3", **given)).check(1, T)


def test_rows_beyond_a_table_of_positions_are_refused_not_looked_up():
    sizes = {**without("head_dim", "num_key_value_heads"), "max_position_embeddings": 32, "pad_token_id": 1}
    roberta = SplitModel(model_of("roberta", **sizes, is_decoder=True))
    refuse_rows_beyond(30, roberta, "it")
    with pytest.raises(MismatchError, match="longer than the 30 positions"):
        refuse_rows_beyond(31, roberta, "it")
    gpt2 = SplitModel(model_of("gpt2", **SMALL, n_embd=32, n_layer=1, n_head=4, n_positions=32))
    with pytest.raises(InputError, match=r"cannot read .* rows of 33 tokens \(IndexError"):
        gpt2.check(1, 33)
    gpt2.check(1, 32)


def test_a_row_may_be_shorter_than_what_is_checked_otherwise():
    for length in (2, 3, 4, 5, 6, 7, 23, 24, 25):
        SplitModel(model_of("gpt2", **SMALL, n_embd=32, n_layer=1, n_head=4, n_positions=length), True).check(1, length)


# --- logits ---


class CapsAtThirty(tf.LlamaForCausalLM):
    def forward(self, *args, **kwargs):
        out = super().forward(*args, **kwargs)
        out.logits = 30 * torch.tanh(out.logits / 30)
        return out


class ClampsAtFifty(CapsAtThirty):
    def forward(self, *args, **kwargs):
        out = tf.LlamaForCausalLM.forward(self, *args, **kwargs)
        out.logits = out.logits.clamp(-50, 50)
        return out


class UsesItsHeadsWeights(tf.LlamaForCausalLM):
    def forward(self, input_ids, **kwargs):
        out = self.model(input_ids=input_ids, **kwargs)
        out.logits = out.last_hidden_state @ self.lm_head.weight.T
        return out


@pytest.mark.parametrize("size", [1.0, 1e-6])
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("kind", [CapsAtThirty, ClampsAtFifty, UsesItsHeadsWeights])
def test_what_small_logits_do_not_show_is_refused(kind, size, autocast):
    model = model_of("llama", **BASE)
    with torch.no_grad():
        model.lm_head.weight.mul_(size)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        SplitModel(model).check(1, T, autocast)
        model.__class__ = kind
        with pytest.raises(InputError, match=f"{kind.__name__} is refused: it"):
            SplitModel(model).check(1, T, autocast)


def test_factors_that_are_no_numbers_are_left_to_the_check():
    given = {**SMALL, "d_model": 32, "n_layers": 1, "n_heads": 4, "max_seq_len": 64, "logit_scale": "inv_sqrt_d_model"}
    SplitModel(model_of("mpt", "eager", **given)).check(1, T)


# --- varlen ---


def test_varlen_takes_windows_as_long_as_rows_and_masks_by_name():
    ids = torch.arange(2, 2 + T)[None]
    position = torch.cat([torch.arange(15), torch.arange(T - 15)])[None]
    for model_type, given in (("mistral", BASE), ("doge", without("head_dim"))):
        found = []
        for attention in ("sdpa", VARLEN):
            split = SplitModel(model_of(model_type, attention, **given, sliding_window=T), True)
            split.check(1, T)
            with torch.no_grad():
                found.append(split.hidden(ids, position))
        torch.testing.assert_close(found[0], found[1], atol=1e-5, rtol=0)
    with pytest.raises(InputError, match="no sliding window shorter than a row"):
        SplitModel(model_of("mistral", VARLEN, **BASE, sliding_window=T - 1), True).check(1, T)


def test_models_without_sdpa_are_taken_plainly_all_the_same():
    model = model_of("vaultgemma", VARLEN, **BASE, attn_logit_softcapping=None, sliding_window=T)
    SplitModel(model, True).check(1, T)
    with plain_attention(model):
        assert model.config._attn_implementation == "eager"
    assert model.config._attn_implementation == VARLEN
