"""pretrain: the arms, each from the same base on the same rows, and each with its own selection."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from slmctl.config.selection import SelectionConfig
from slmctl.model.loading import hidden_size
from slmctl.report.model_cards import write_card
from slmctl.selection.features import log_odds
from slmctl.store import manifest
from slmctl.store.reader import RowReader, ScoreSet, TokenSet
from slmctl.store.token_counts import token_counts
from slmctl.system.console import say, waiting, warn
from slmctl.system.errors import ConfigError, InputError, MismatchError
from slmctl.training.batches import OneSet
from slmctl.training.loop import train
from slmctl.training.ranks import Ranks, joined
from slmctl.workspace.graph import further_scores, joined_scores
from slmctl.workspace.runs import ContinuedStage, heldout_evaluator, load_base, resolve_pipeline, run_of, seed_of
from slmctl.workspace.start import Resume, make_ready, settle
from slmctl.workspace.workspace import Workspace


def pretrain(workspace: Workspace, arms: list[str] | None = None, resume: Resume = True) -> None:
    """Trains each arm (or those named) from the base model."""
    known = workspace.config.pretrain.arms
    for name in arms or []:
        if name not in known:
            raise ConfigError(f"--arm {name}: there is no such arm. The configuration has: {', '.join(known)}.")
    with joined(workspace.device) as ranks:
        for name in arms or known:
            _train_arm(resolve_arm(workspace, name, ranks, resume), ranks, resume)


def _train_arm(arm: ContinuedStage, ranks: Ranks, resume: Resume) -> None:
    load, evaluator = partial(load_base, arm, ranks), partial(heldout_evaluator, arm)
    ready = make_ready(arm.folder, arm.inputs, ranks, resume, load, evaluator)
    if ready is None:
        say(f"pretrain {arm.name}: complete, skipped")
        return
    train(run_of(arm, ready, ranks))

    ranks.first(partial(_record, arm))


def resolve_arm(workspace: Workspace, name: str, ranks: Ranks, resume: Resume) -> ContinuedStage:
    """Opens the corpus, joined with scores where they are there and fit; looks for the base, which is not loaded.

    Raises `InputError` or `MismatchError` where one of them is not there, or was made from other inputs; of the scores only
    where the arm needs them.
    """
    config, asked = workspace.config, workspace.config.pretrain.arms[name]
    workspace.accepted = []
    corpus = workspace.open_tokens("corpus")
    base = workspace.base_source()
    scores = resolve_scores(workspace, name, asked.selection, corpus, ranks)
    joined_hash = scores.manifest.content_hash if scores is not None else None
    further = {n: resolve_further(workspace, n, corpus) for n in further_scores(config, asked)}
    curated = workspace.open_tokens("curated") if "log_odds" in asked.selection.features else None
    inputs = workspace.arm_inputs(
        *(asked, workspace.fingerprint(base), corpus.manifest.content_hash, joined_hash),
        {n: s.manifest.content_hash for n, s in further.items()},
        curated.manifest.content_hash if curated is not None else None,
    )
    folder, width = workspace.stage(f"pretrain/{name}"), partial(hidden_size, base)
    settings, inputs = settle(asked, inputs, folder.path, resume, ranks, workspace.device, width)
    seed = seed_of(config, settings, "arms")
    opened = {joined_scores(config, asked): scores, **further}
    first = next(iter(config.score.references))
    joined = {key: s for key in asked.selection.joined if (s := opened[key[0] or first]) is not None}
    documents = config.data.intra_document_mask or "position" in asked.selection.features
    reader = RowReader(corpus, scores, documents=documents, joined=joined)
    return ContinuedStage(
        pipeline=resolve_pipeline(workspace),
        name=name,
        folder=folder,
        inputs=inputs,
        settings=settings,
        asked=asked.precision,
        selection=settings.selection,
        source=OneSet(reader, seed, settings.loader_threads),
        seed=seed,
        width=width,
        base=base,
        sets=(corpus,),
        log_odds=partial(_log_odds, curated, corpus) if curated is not None else None,
    )


def resolve_further(workspace: Workspace, name: str, corpus: TokenSet) -> ScoreSet:
    """A score set that an arm reads besides the one that is held against its own losses. Raises `InputError` where there is
    none."""
    place = workspace.places.scores(name)
    if not manifest.exists(place):
        raise InputError(f"{place} is absent or not complete. Run `slmctl score` first.")
    return workspace.open_scores(name, corpus)


def _log_odds(curated: TokenSet, corpus: TokenSet) -> Tensor:
    """Of each id that is in either set, between the two."""
    size = max(s.manifest.format["max_id"] for s in (curated, corpus)) + 1
    return torch.from_numpy(log_odds(token_counts(curated, size), token_counts(corpus, size)))


def resolve_scores(
    workspace: Workspace, name: str, selection: SelectionConfig, corpus: TokenSet, ranks: Ranks
) -> ScoreSet | None:
    """The scores that an arm's rows are joined with; None where it needs none and there are none that fit."""
    reference = selection.reference or next(iter(workspace.config.score.references))
    place = workspace.places.scores(reference)

    def usable() -> bool:
        """Whether there are scores to join: one rank looks, since others may see a shared file system a little later."""
        if not manifest.exists(place):
            if selection.needs_reference:
                raise InputError(f"{place} is absent or not complete. Run `slmctl score` first.")
            return False
        try:
            workspace.open_scores(reference, corpus)
        except MismatchError as e:
            if selection.needs_reference:
                raise
            warn(f"pretrain {name} needs no scores and goes on without these: {e}")
            return False
        return True

    return workspace.open_scores(reference, corpus) if ranks.first(usable) else None


def _record(arm: ContinuedStage) -> None:
    with waiting(f"{arm.name}: writing its model card"):
        write_card(arm.pipeline.places, arm.pipeline.config, arm.name, arm.pipeline.bos)
    arm.folder.finish({"heldout": {name: tokens.manifest.content_hash for name, tokens in arm.pipeline.heldout().items()}})
