"""What a stage refuses of a model before its first step, at the rows' own length: training, scoring and evaluation alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from tiny_store import open_workspace, release_locks, store_settings

from slmctl.comparison.measure import Measure
from slmctl.model import start_check
from slmctl.model.loading import quiet_transformers
from slmctl.model.source import ModelSource
from slmctl.stages.evaluate import resolve_conditions
from slmctl.stages.prepare import prepare
from slmctl.stages.pretrain import pretrain
from slmctl.stages.score import score
from slmctl.stages.train_ref import train_reference
from slmctl.system.errors import InputError
from slmctl.workspace.workspace import Workspace

SIZES = {
    **{"vocab_size": 300, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2},
    **{"num_key_value_heads": 2, "max_position_embeddings": 256, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None},
}


def save(kind: str, directory: Path, **more: Any) -> None:
    torch.manual_seed(0)
    model = tf.AutoModelForCausalLM.from_config(tf.AutoConfig.for_model(kind, **SIZES, **more))
    with quiet_transformers():
        model.save_pretrained(directory)


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    made = store_settings(tmp_path)
    made["pretrain"]["arms"] = {"clm": {"selection": {"criterion": "all"}}}
    prepare(open_workspace(made))
    return made


def measuring(workspace: Workspace) -> Measure:
    return Measure(resolve_conditions(workspace, workspace.base_source()))


def test_experts_to_be_balanced_are_scored_and_measured_but_not_trained(settings: dict[str, Any], tmp_path: Path) -> None:
    sizes = {"num_local_experts": 4, "num_experts_per_tok": 2, "router_aux_loss_coef": 0.02}
    save("mixtral", tmp_path / "model", **sizes, output_router_logits=True)
    for train in (train_reference, pretrain):
        with pytest.raises(InputError, match=r"output_router_logits is true in the config\.json of .*weight 0\.02"):
            train(open_workspace(settings))
    score(open_workspace(settings))
    measuring(open_workspace(settings)).load(ModelSource(str(tmp_path / "model")))
    save("mixtral", tmp_path / "model", **sizes)
    train_reference(open_workspace(settings))
    release_locks()


def test_a_model_that_sees_later_tokens_is_refused_by_all_that_use_it(settings: dict[str, Any], tmp_path: Path) -> None:
    save("llama", tmp_path / "model", is_causal=False)
    source = ModelSource(str(tmp_path / "model"))
    for use in (train_reference, pretrain, score, lambda workspace: measuring(workspace).load(source)):
        with pytest.raises(InputError, match=r"no causal language model \(its config\.json says is_causal: False"):
            use(open_workspace(settings))
    assert not [*(tmp_path / "run").rglob("step-*"), *(tmp_path / "run/scores").rglob("*.parquet")]
    release_locks()


def test_each_stage_checks_at_the_length_of_its_rows_and_evaluation_once_for_a_configuration(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths: list[int] = []
    real = start_check._Check.rows

    def noted(self: Any, length: int) -> None:
        lengths.append(length)
        real(self, length)

    monkeypatch.setattr(start_check._Check, "rows", noted)
    train_reference(open_workspace(settings))
    score(open_workspace(settings))
    pretrain(open_workspace(settings))
    assert lengths == [32, 32, 32]
    measure = measuring(open_workspace(settings))
    for name in ("model", "run/reference", "run/reference"):
        measure.load(ModelSource(str(tmp_path / name)))
    assert lengths[3:] == [32], "the reference has the base's configuration"
    release_locks()


def test_arms_on_one_base_are_checked_once_and_again_where_anything_differs(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[torch.dtype] = []
    real = start_check._Check.rows

    def noted(self: Any, length: int) -> None:
        made.append(self.split.head.weight.dtype)
        real(self, length)

    monkeypatch.setattr(start_check._Check, "rows", noted)
    of_all = {"criterion": "all"}
    rough = {"selection": of_all, "precision": "bfloat16"}
    settings["pretrain"]["arms"] = {"a": {"selection": of_all}, "b": {"selection": of_all, "seed": 3}, "rough": rough}
    workspace = open_workspace(settings)
    pretrain(workspace)
    assert made == [torch.float32, torch.float32], "a and b share one; the weights of 16 bits are made float32 for it"
    save("llama", tmp_path / "model", is_causal=False)
    for _ in range(2):  # other files, and what was refused is not let through the next time
        with pytest.raises(InputError, match="no causal language model"):
            pretrain(workspace, ["a"], resume=False)
    release_locks()


def test_a_model_that_bounds_no_positions_is_judged_by_what_it_predicts(settings: dict[str, Any], tmp_path: Path) -> None:
    with quiet_transformers():
        model = tf.XLNetLMHeadModel(tf.XLNetConfig(vocab_size=300, d_model=16, n_layer=1, n_head=2, d_inner=16))
        model.save_pretrained(tmp_path / "model")
    settings["model"]["attn_implementation"] = "eager"
    prepare(open_workspace(settings))
    with pytest.raises(InputError, match="no causal language model"):
        train_reference(open_workspace(settings))
    release_locks()
