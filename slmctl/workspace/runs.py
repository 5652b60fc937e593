"""What train-base, train-ref and pretrain share: the record that each opens at its head, and how the loop's run follows from it.

A stage resolves (a `TrainingStage`, from the workspace, which nothing asks below that), makes and records.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from slmctl import __version__
from slmctl.config.pipeline import PipelineConfig
from slmctl.config.selection import SelectionConfig
from slmctl.config.training import TrainingConfig
from slmctl.corpus.bos import Bos
from slmctl.corpus.tokenizer import Tokenizer
from slmctl.evaluation.heldout import HeldoutLoss, Measured, arithmetic, heldout_loss, rows_hash
from slmctl.model.experts import refuse_auxiliary_loss
from slmctl.model.loading import load_model
from slmctl.model.precision import autocast, weights_of
from slmctl.model.source import ModelSource
from slmctl.model.split import SplitModel, refuse_ids_beyond, refuse_rows_beyond
from slmctl.model.start_check import lent
from slmctl.store.order import mix_seed
from slmctl.store.reader import RowReader, TokenSet
from slmctl.system.console import warn
from slmctl.system.files import sweep
from slmctl.training.batches import RowSource
from slmctl.training.budget import check_budget
from slmctl.training.ranks import Ranks
from slmctl.training.run import Beat, Evaluator, Run
from slmctl.workspace.handles import StageFolder
from slmctl.workspace.places import Places
from slmctl.workspace.precisions import tell
from slmctl.workspace.start import Ready, Width, mark_stopped
from slmctl.workspace.start_checks import Checked
from slmctl.workspace.workspace import Workspace

ALL_TOKENS = SelectionConfig(criterion="all", group_rows=1)


@dataclass(frozen=True)
class Pipeline:
    """What every training stage takes of its pipeline."""

    config: PipelineConfig
    places: Places
    tokenizer: Tokenizer
    bos: Bos | None
    device: str
    heldout: Callable[[], dict[str, TokenSet]]
    """The held-out sets by name, opened when they are first asked for: a complete stage needs none."""
    checked: Checked


@dataclass(frozen=True, kw_only=True)
class ModelStage:
    """A stage whose result is a model: where it goes, and what it depends on."""

    pipeline: Pipeline
    name: str
    """`base`, `reference` or the arm's."""
    folder: StageFolder
    inputs: dict[str, Any]
    """All that the model depends on, by content."""

    @property
    def training(self) -> Path:
        """Where the logs and checkpoints of its training lie, once the folder is ready: a base that an older slmctl has begun
        has them elsewhere."""
        return self.pipeline.places.training(self.name)


@dataclass(frozen=True, kw_only=True)
class TrainingStage(ModelStage):
    """One whose model is trained. What it reads is open, and nothing is loaded yet."""

    settings: TrainingConfig
    """With the precision that is taken."""
    asked: str
    """The precision that the configuration has."""
    selection: SelectionConfig
    source: RowSource
    seed: int
    """See `seed_of`."""
    width: Width
    keep_best_on: str | None = None
    """Name of the held-out set whose best weights are kept; None keeps the last."""


@dataclass(frozen=True, kw_only=True)
class ContinuedStage(TrainingStage):
    """One that trains on from a model that is there."""

    base: ModelSource
    sets: tuple[TokenSet, ...]
    """That rows are read from."""
    log_odds: Callable[[], Tensor] | None = None
    """Counts ids, where the selection reads how much more frequent they are in the curated text [V]."""


def resolve_pipeline(workspace: Workspace) -> Pipeline:
    """Of a pipeline whose sets are prepared."""
    return Pipeline(
        config=workspace.config,
        places=workspace.places,
        tokenizer=workspace.tokenizer(),
        bos=workspace.bos(),
        device=workspace.device,
        heldout=cache(lambda: {n: workspace.open_tokens(f"heldout/{n}") for n in workspace.heldout_names()}),
        checked=workspace.checked,
    )


def seed_of(config: PipelineConfig, settings: TrainingConfig, purpose: Literal["base", "reference", "arms"]) -> int:
    """The seed of a run's order, random selection and dropout. Arms of one seed share it, and so their order; base, reference
    and arms never do, whatever their seeds."""
    return mix_seed(purpose, config.seed if settings.seed is None else settings.seed)


def check_stage_budget(stage: TrainingStage, ranks: Ranks) -> None:
    """As `check_budget`."""
    seq_len = stage.pipeline.config.data.seq_len
    check_budget(stage.name, stage.settings, stage.selection, seq_len, stage.source.rows, ranks.size)


def load_base(stage: ContinuedStage, ranks: Ranks) -> SplitModel:
    """The model to train, checked: on its device, or, of several ranks, on the CPU, from where each takes its part."""
    check_stage_budget(stage, ranks)
    pipeline, settings, base = stage.pipeline, stage.settings, stage.base
    seq_len, intra_document_mask = pipeline.config.data.seq_len, pipeline.config.data.intra_document_mask
    model = load_model(base, weights_of(settings.precision), pipeline.device if ranks.size == 1 else "cpu")
    split = SplitModel(model, intra_document_mask)
    refuse_auxiliary_loss(split.model, base.path)
    for tokens in stage.sets:
        refuse_ids_beyond(tokens.manifest.format["max_id"], split.vocab_size, base.path)
        refuse_rows_beyond(tokens.seq_len, split, base.path)
    bf16 = settings.precision == "bf16_autocast"

    def check() -> None:
        with lent(split.model, pipeline.device) as where, autocast(where, bf16):
            split.check(pipeline.tokenizer.eos_id, seq_len, bf16)

    if ranks.is_first:  # the others hear of its verdict before they begin
        pipeline.checked.once(split, stage.inputs.get("base"), seq_len, settings.precision, check)
    if settings.precision == "bfloat16" and settings.lr < 1e-4:
        warn(
            f"precision bfloat16 with lr {settings.lr}: weights of 8 significant bits swallow updates below about 1/256 of "
            "their size, so much of the model will hardly move. precision: bf16_autocast keeps float32 weights."
        )
    return split


def heldout_evaluator(stage: TrainingStage) -> Evaluator:
    """Held-out losses by set name, under the precision of training, and what they were measured on."""
    pipeline, settings = stage.pipeline, stage.settings
    documents = pipeline.config.data.intra_document_mask
    readers = {name: RowReader(tokens, documents=documents) for name, tokens in pipeline.heldout().items()}
    bf16 = settings.precision == "bf16_autocast"

    def evaluate(model: SplitModel, ranks: Ranks, beat: Beat) -> dict[str, Measured]:
        found = {}
        for name, reader in readers.items():
            how = (pipeline.device, pipeline.config.eval.batch_rows, settings.eval_tokens, bf16, ranks.rank, ranks.size)
            part = heldout_loss(model, reader, *how, partial(beat, name))
            nats, predicted = ranks.sum_floats([part.nats, float(part.predicted)])
            whole, rows = (
                HeldoutLoss(nats, int(predicted)),
                rows_hash(reader.tokens, settings.eval_tokens, model.intra_document_mask),
            )
            found[name] = Measured(whole.loss, whole.predicted, rows, arithmetic(model, bf16))
        return found

    return evaluate


def run_of(stage: TrainingStage, ready: Ready, ranks: Ranks) -> Run:
    """The run of a stage whose folder is ready. Says which precision it takes, where that was left open."""
    pipeline, settings = stage.pipeline, stage.settings
    tell(stage.name, stage.asked, settings.precision, pipeline.device, stage.width)
    directory = stage.training
    ranks.first(lambda: sweep(directory))
    return Run(
        name=stage.name,
        directory=directory,
        model=ready.model,
        tokenizer=pipeline.tokenizer,
        settings=settings,
        selection=stage.selection,
        source=stage.source,
        seq_len=pipeline.config.data.seq_len,
        seed=stage.seed,
        device=pipeline.device,
        evaluate=ready.evaluate,
        tracking=pipeline.config.tracking,
        keep_best_on=stage.keep_best_on,
        made_from=stage.inputs,
        facts=_facts(pipeline.config),
        ranks=ranks,
        resume_from=ready.step,
        threads=pipeline.places.threads(stage.name if stage.name in ("base", "reference") else "arms"),
        log_odds_V=stage.log_odds() if isinstance(stage, ContinuedStage) and stage.log_odds is not None else None,
        on_stop=lambda signum: mark_stopped(stage.folder.path, signum),
    )


def _facts(config: PipelineConfig) -> dict[str, Any]:
    """The pipeline, as those want to know it who look at a run's curves."""
    data = config.data.model_dump(mode="json")
    return {
        **{"pipeline": config.name, "output_dir": config.output_dir, "slmctl": __version__},
        "model": config.model.model_dump(mode="json", exclude_none=True),
        "data": {k: v for k, v in data.items() if v is not None and k != "seq_len"},
        "score": config.score.model_dump(mode="json", exclude_none=True),
    }


def put_model(stage: ModelStage) -> None:
    """Puts what a run has exported where its stage's folder is itself the model directory."""
    training = stage.training
    if training != stage.folder.path:
        for file in (training / "model").iterdir():
            os.replace(file, stage.folder.path / file.name)
        shutil.rmtree(training / "model")
