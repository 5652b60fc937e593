"""train-ref: the reference model, whose losses say which tokens are worth training on."""

from __future__ import annotations

from functools import partial

from slmctl.model.loading import hidden_size
from slmctl.report.model_cards import write_card
from slmctl.store.reader import RowReader
from slmctl.system.console import say, waiting
from slmctl.training.batches import OneSet, RowSource, TwoSets
from slmctl.training.loop import train
from slmctl.training.ranks import Ranks, joined
from slmctl.workspace.runs import (
    ALL_TOKENS,
    ContinuedStage,
    heldout_evaluator,
    load_base,
    put_model,
    resolve_pipeline,
    run_of,
    seed_of,
)
from slmctl.workspace.start import Resume, make_ready, settle
from slmctl.workspace.workspace import Workspace


def train_reference(workspace: Workspace, resume: Resume = True) -> None:
    """Continues the base model on the curated rows, and writes the reference model."""
    with joined(workspace.device) as ranks:
        stage = resolve_reference(workspace, ranks, resume)

        load, evaluator = partial(load_base, stage, ranks), partial(heldout_evaluator, stage)
        ready = make_ready(stage.folder, stage.inputs, ranks, resume, load, evaluator)
        if ready is None:
            say("train-ref: complete, skipped")
            return
        train(run_of(stage, ready, ranks))

        ranks.first(partial(_record, stage))


def resolve_reference(workspace: Workspace, ranks: Ranks, resume: Resume) -> ContinuedStage:
    """Opens the curated rows, and those of the corpus where some are mixed in; looks for the base, which is not loaded.

    Raises `InputError` or `MismatchError` where one of them is not there, or was made from other inputs.
    """
    config, asked = workspace.config, workspace.config.reference
    workspace.accepted = []
    curated = workspace.open_tokens("curated")
    corpus = workspace.open_tokens("corpus") if asked.mix > 0 else None
    if asked.keep_best_on is not None:
        workspace.open_tokens(f"heldout/{asked.keep_best_on}")
    base = workspace.base_source()
    folder, width = workspace.stage("reference"), partial(hidden_size, base)
    inputs = workspace.reference_inputs()
    settings, inputs = settle(asked, inputs, folder.path, resume, ranks, workspace.device, width)
    seed = seed_of(config, settings, "reference")
    sets = (curated, corpus) if corpus is not None else (curated,)
    reader = partial(RowReader, documents=config.data.intra_document_mask)
    source: RowSource = OneSet(reader(curated), seed, settings.loader_threads)
    if corpus is not None:
        source = TwoSets(reader(curated), reader(corpus), settings.mix, seed, settings.loader_threads)
    return ContinuedStage(
        pipeline=resolve_pipeline(workspace),
        name="reference",
        folder=folder,
        inputs=inputs,
        settings=settings,
        asked=asked.precision,
        selection=ALL_TOKENS,
        source=source,
        seed=seed,
        width=width,
        keep_best_on=settings.keep_best_on,
        base=base,
        sets=sets,
    )


def _record(stage: ContinuedStage) -> None:
    put_model(stage)
    with waiting("reference: writing its model card"):
        write_card(stage.pipeline.places, stage.pipeline.config, "reference", stage.pipeline.bos)
    stage.folder.finish()
