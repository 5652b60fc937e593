"""A hand-made token set, a tiny tokenizer and a tiny Llama."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as tf

from slmctl.corpus.tokenizer import load_tokenizer
from slmctl.corpus.train_tokenizer import train_tokenizer
from slmctl.model.split import SplitModel
from slmctl.store.manifest import Manifest
from slmctl.store.reader import RowReader, TokenSet
from slmctl.store.shard_format import shard_name
from slmctl.store.shard_writer import ShardWriter
from slmctl.system.local_storage import LocalFolder

VOCAB = 300


@pytest.fixture
def make_reader(tmp_path: Path) -> Callable[..., RowReader]:
    """make_reader(ids [B, T], document [B, T]): a reader of a one-shard token set with three rows a row group."""

    def make(ids_BT: np.ndarray, document_BT: np.ndarray) -> RowReader:
        directory = LocalFolder(tmp_path / "tokens")
        (b, t), per_group = ids_BT.shape, 3
        tokens = int((document_BT >= 0).sum())
        columns = {"input_id": "uint16", "document": "int64"}
        with ShardWriter(directory, shard_name(0), columns, per_group * t) as writer:
            for at in range(0, b, per_group):
                rows = slice(at, at + per_group)
                writer.write(input_id=ids_BT[rows].ravel(), document=document_BT[rows].ravel())
            writer.facts = {"rows": b, "tokens": tokens}
        Manifest("tokens", t, per_group, [writer.shard], {}, {"columns": columns}, {"tokens": tokens}).save(directory)
        return RowReader(TokenSet(directory))

    return make


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    directory = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(["the sum of 12 and 30 is 42, and so it goes on"] * 20, VOCAB, directory)
    return load_tokenizer(str(directory)).hf


@pytest.fixture
def make_llama() -> Callable[..., SplitModel]:
    """make_llama(positions, dropout, seed): a tiny float32 Llama with strong logits, digits likelier than the rest."""

    def make(positions: int = 128, dropout: float = 0.0, seed: int = 0, intra_document_mask: bool = False) -> SplitModel:
        torch.manual_seed(seed)
        model = tf.LlamaForCausalLM(
            tf.LlamaConfig(
                vocab_size=VOCAB,
                hidden_size=16,
                intermediate_size=24,
                num_hidden_layers=2,
                num_attention_heads=2,
                num_key_value_heads=2,
                max_position_embeddings=positions,
                attention_dropout=dropout,
                bos_token_id=0,
                eos_token_id=0,
                pad_token_id=None,
                initializer_range=0.5,
            )
        )
        return SplitModel(model.eval(), intra_document_mask)

    return make
