"""What a result is made from is what it was: the dicts of earlier runs, key for key; and an unknown fact leaves its key out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny_pipeline import tiny_settings

from slmctl.config.file import check
from slmctl.config.pipeline import PipelineConfig
from slmctl.workspace import identity
from slmctl.workspace.identity import UNKNOWN

BOS = {"id": 1, "at": "row"}
COMMON = ["order_version", "seed", "seq_len", "intra_document_mask", "bos", "attn_implementation"]


@pytest.fixture
def config(tmp_path: Path) -> PipelineConfig:
    return check(tiny_settings(tmp_path), "tiny")


def with_(config: PipelineConfig, **reference: Any) -> PipelineConfig:
    return config.model_copy(update={"reference": config.reference.model_copy(update=reference)})


def test_keys_are_those_of_earlier_runs_in_their_order(config: PipelineConfig) -> None:
    scratch, arms = config.model.scratch, config.pretrain.arms
    assert scratch is not None
    assert list(identity.tokenizer(scratch, [], [])) == ["vocab_size", "sample_mb", "curated", "corpus"]
    packed = ["tokenizer", "seq_len", "seed", "shard_bytes"]
    assert list(identity.packing(config, "t", None)) == packed, "sets of before know of no BOS"
    assert list(identity.token_set(config, [], "t", BOS)) == ["texts", *packed, "bos"]
    assert list(identity.training(config, None)) == COMMON
    assert identity.training(config, None)["bos"] is None
    assert list(identity.base(config, scratch, None, "c")) == [*COMMON, "model", "settings", "corpus"]
    assert "train" not in identity.base(config, scratch, None, "c")["model"]
    assert list(identity.reference(config, None, "a", {}, "b", "c")) == [*COMMON, "settings", "curated", "base"]
    more = identity.reference(with_(config, mix=0.5, keep_best_on="target"), None, "a", {}, "b", "c")
    assert list(more) == [*COMMON, "settings", "curated", "base", "corpus", "kept_by"]
    assert (more["curated"], more["corpus"], more["kept_by"]) == ("a", "b", {"heldout": "c"})
    assert list(identity.arm(config, arms["slm"], None, {}, "a", "b")) == [*COMMON, "settings", "base", "corpus", "scores"]
    for arm, scores in (("clm", "b"), ("slm", None)):
        assert list(identity.arm(config, arms[arm], None, {}, "a", scores)) == [*COMMON, "settings", "base", "corpus"]
    scored = ["intra_document_mask", "attn_implementation", "entropy", "dtype", "precision"]
    assert list(identity.scoring(config)) == scored
    assert list(identity.score_set(config, "a", "t", {})) == ["tokens", "tokenizer", "reference", *scored]
    measured = identity.measuring(config)
    assert list(measured) == ["settings", "seed", "intra_document_mask", "attn_implementation"]
    assert list(measured["settings"]) == [
        *("target", "heldout", "tasks", "precision", "level", "rolling", "checkpoints"),
        *("dynamics", "dynamics_tokens", "highlighted"),
    ]


def test_what_is_unknown_is_left_out_and_nothing_else(config: PipelineConfig) -> None:
    scratch, slm = config.model.scratch, config.pretrain.arms["slm"]
    assert scratch is not None
    mixed = with_(config, mix=0.5, keep_best_on="target")
    cases: list[tuple[Any, tuple[Any, ...], dict[int, str]]] = [
        (identity.tokenizer, (scratch, [1], [2]), {1: "curated", 2: "corpus"}),
        (identity.token_set, (config, [1], "t", BOS), {1: "texts", 2: "tokenizer", 3: "bos"}),
        (identity.base, (config, scratch, BOS, "c"), {2: "bos", 3: "corpus"}),
        (identity.reference, (mixed, BOS, "a", {}, "b", "c"), {1: "bos", 2: "curated", 3: "base", 4: "corpus", 5: "kept_by"}),
        (identity.arm, (config, slm, BOS, {}, "a", "b"), {2: "bos", 3: "base", 4: "corpus", 5: "scores"}),
        (identity.score_set, (config, "a", "t", {"b": 1}), {1: "tokens", 2: "tokenizer", 3: "reference"}),
    ]
    for function, facts, keys in cases:
        whole = function(*facts)
        for at, key in keys.items():
            part = function(*(UNKNOWN if i == at else fact for i, fact in enumerate(facts)))
            assert part == {k: v for k, v in whole.items() if k != key}, (function.__name__, key)
