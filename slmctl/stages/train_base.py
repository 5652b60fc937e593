"""train-base: the base of a pipeline from scratch."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from slmctl.config.model import ScratchConfig
from slmctl.evaluation.heldout import Measured
from slmctl.model.loading import save_model
from slmctl.model.split import SplitModel
from slmctl.report.model_cards import write_card
from slmctl.store.order import mix_seed
from slmctl.store.reader import RowReader
from slmctl.system.console import say, waiting, warn
from slmctl.system.errors import ConfigError
from slmctl.system.files import publishing
from slmctl.training.batches import OneSet
from slmctl.training.loop import train
from slmctl.training.ranks import Ranks, joined
from slmctl.training.run import Beat, Evaluator
from slmctl.workspace.named import RANDOM_BASE
from slmctl.workspace.runs import (
    ALL_TOKENS,
    ModelStage,
    TrainingStage,
    check_stage_budget,
    heldout_evaluator,
    put_model,
    resolve_pipeline,
    run_of,
    seed_of,
)
from slmctl.workspace.start import Ready, Resume, make_ready, settle
from slmctl.workspace.workspace import Workspace


def train_base(workspace: Workspace, resume: Resume = True) -> None:
    """Makes the base of a pipeline from scratch: random weights, then plain language modelling on the corpus."""
    scratch = workspace.config.model.scratch
    if scratch is None:
        raise ConfigError("model.path names the base model; train-base is for pipelines with model.scratch.")
    with joined(workspace.device) as ranks:
        stage = resolve_base(workspace, scratch, ranks, resume)

        load, evaluator = partial(_load, stage, scratch, ranks), partial(_evaluator, stage)
        ready = make_ready(stage.folder, stage.inputs, ranks, resume, load, evaluator)
        if ready is None:
            say("train-base: complete, skipped")
            return
        if isinstance(stage, TrainingStage):
            train(run_of(stage, ready, ranks))
        else:
            warn(RANDOM_BASE)
            ranks.first(partial(_publish, stage, ready))

        ranks.first(partial(_record, stage))


def resolve_base(workspace: Workspace, scratch: ScratchConfig, ranks: Ranks, resume: Resume) -> ModelStage | TrainingStage:
    """Opens the corpus. A base that keeps its random weights is no `TrainingStage`.

    Raises `InputError` or `MismatchError` where the corpus is not there, or was made from other inputs.
    """
    workspace.accepted = []
    corpus = workspace.open_tokens("corpus")
    pipeline, folder, inputs = resolve_pipeline(workspace), workspace.stage("base"), workspace.base_inputs()
    if scratch.train is None:
        return ModelStage(pipeline=pipeline, name="base", folder=folder, inputs=inputs)
    width = partial(int, scratch.hidden_size)
    settings, inputs = settle(scratch.train, inputs, folder.path, resume, ranks, pipeline.device, width)
    seed = seed_of(pipeline.config, settings, "base")
    reader = RowReader(corpus, documents=pipeline.config.data.intra_document_mask)
    return TrainingStage(
        pipeline=pipeline,
        name="base",
        folder=folder,
        inputs=inputs,
        settings=settings,
        asked=scratch.train.precision,
        selection=ALL_TOKENS,
        source=OneSet(reader, seed, settings.loader_threads),
        seed=seed,
        width=width,
    )


def _load(stage: ModelStage, scratch: ScratchConfig, ranks: Ranks) -> SplitModel:
    """The model with its random weights: on its device, or, of several ranks, on the CPU, from where each takes its part."""
    if isinstance(stage, TrainingStage):
        check_stage_budget(stage, ranks)
    model = new_model(stage, scratch)
    if isinstance(stage, TrainingStage) and stage.settings.precision == "bfloat16":
        for weight in model.parameters():
            weight.data = weight.data.bfloat16()
    model = model.to(stage.pipeline.device) if ranks.size == 1 else model
    return SplitModel(model, stage.pipeline.config.data.intra_document_mask)


def new_model(stage: ModelStage, scratch: ScratchConfig) -> Any:
    """A Llama-style model with random weights, initialised from the pipeline's seed."""
    from transformers import LlamaConfig, LlamaForCausalLM

    pipeline, eos_id = stage.pipeline.config, stage.pipeline.tokenizer.eos_id
    config = LlamaConfig(
        vocab_size=scratch.vocab_size,
        hidden_size=scratch.hidden_size,
        intermediate_size=scratch.intermediate_size,
        num_hidden_layers=scratch.num_hidden_layers,
        num_attention_heads=scratch.num_attention_heads,
        num_key_value_heads=scratch.num_attention_heads,
        max_position_embeddings=max(2048, pipeline.data.seq_len),
        tie_word_embeddings=scratch.tie_word_embeddings,
        bos_token_id=eos_id,
        eos_token_id=eos_id,
        pad_token_id=None,
        attn_implementation=pipeline.model.attn_implementation,
    )
    with torch.random.fork_rng():
        torch.manual_seed(mix_seed("initialisation", pipeline.seed))
        return LlamaForCausalLM(config)


def _evaluator(stage: ModelStage) -> Evaluator:
    return heldout_evaluator(stage) if isinstance(stage, TrainingStage) else _no_evaluation


def _no_evaluation(_model: SplitModel, _ranks: Ranks, _beat: Beat) -> dict[str, Measured]:
    return {}


def _publish(stage: ModelStage, ready: Ready) -> None:
    """Writes the random weights where a run would have exported its own."""
    with publishing(stage.training / "model") as temporary:
        save_model(ready.model.model, stage.pipeline.tokenizer, temporary)


def _record(stage: ModelStage) -> None:
    put_model(stage)
    with waiting("base: writing its model card"):
        write_card(stage.pipeline.places, stage.pipeline.config, "base", stage.pipeline.bos)
    stage.folder.finish()
