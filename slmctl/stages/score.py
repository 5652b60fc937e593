"""score: the reference model's loss (and entropy) of every corpus token, into shards beside the token shards; by one worker
or by many. They need no process group: each makes its own share of the shards."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from slmctl.config.score import ScoreConfig
from slmctl.corpus.tokenizer import Tokenizer
from slmctl.model.forward_threads import settle_forward
from slmctl.model.loading import hidden_size, load_model, pick_device
from slmctl.model.precision import autocast, weights_of
from slmctl.model.scoring import score_shard
from slmctl.model.source import ModelSource
from slmctl.model.split import SplitModel, refuse_ids_beyond, refuse_rows_beyond
from slmctl.store import manifest as manifests
from slmctl.store.build import make, read_plan
from slmctl.store.manifest import is_complete
from slmctl.store.reader import RowReader, ScoreSet, TokenSet
from slmctl.system.console import progress, say
from slmctl.system.errors import ConfigError, InputError, MismatchError
from slmctl.system.threads import ThreadRecord
from slmctl.workspace.build import Build, finalize, status, verify_all
from slmctl.workspace.handles import SetFolder
from slmctl.workspace.precisions import as_recorded, chosen_for_scores, settled, tell
from slmctl.workspace.score_sets import Scores, build_of, impossible_scores, refuse_other_vocabulary
from slmctl.workspace.stale import ACCEPTED
from slmctl.workspace.workers import Share
from slmctl.workspace.workspace import Workspace


@dataclass(frozen=True)
class Resolved:
    """What one score set is made of, and with."""

    scores: Scores
    folder: SetFolder
    source: ModelSource
    """The reference."""
    made_from: dict[str, Any]
    """All that the set depends on; its precision as the configuration asks for it."""
    tokenizer: Tokenizer
    device: str
    intra_document_mask: bool
    threads: ThreadRecord
    """Where it is kept how many threads the passes take on a CPU."""


def score(workspace: Workspace, references: list[str] | None = None, share: Share = Share()) -> None:  # noqa: B008 - frozen
    """Makes each score set (or those named) that is absent or no longer matches its inputs; of many workers, this one's
    share of the shards."""
    for name in named(workspace.config.score, references):
        with workspace.planning():  # so that of workers that start together one hashes the model, and the others look it up
            here = resolve(workspace, name)
            plan = plan_set(here)

        if manifests.exists(here.scores.folder) and is_complete(here.scores.folder, "scores"):
            here.folder.record(made=False)
            say(f"score {name}: complete, skipped")
            continue
        build = build_of(here.scores, plan)
        if mine := share.of(build.jobs):
            make_shards(here, build, plan["made_from"]["precision"], mine, share.named(f"score {name}"))

        if build.finish():
            here.folder.record()


def look(workspace: Workspace, action: str, references: list[str] | None = None) -> None:
    """--status, --finalize or --verify: looks at the sets, or binds those whose shards are all there; makes no shard. `action` is
    the option's name. Raises `CorruptError` where verification finds something wrong, and as `resolve_planned` does."""
    tokens, builds = resolve_planned(workspace, references)
    if action == "status":
        status(builds)
    elif action == "verify":
        check = partial(impossible_scores, tokens=tokens, intra=workspace.config.data.intra_document_mask)
        verify_all(builds, lambda folder: ScoreSet(folder, tokens), check)
    else:
        finalize(builds)
        workspace.record()


def named(settings: ScoreConfig, references: list[str] | None) -> list[str]:
    """Raises `ConfigError` for a name that the configuration does not have."""
    known = settings.references
    for name in references or []:
        if name not in known:
            raise ConfigError(f"--reference {name}: there is no such one. score.references has: {', '.join(known)}.")
    return references or list(known)


# --- resolve ---


def resolve(workspace: Workspace, name: str) -> Resolved:
    """Opens the corpus and the reference of a score set. To be called while `planning`."""
    config = workspace.config
    workspace.accepted = []
    tokens = workspace.open_tokens("corpus")
    source = workspace.reference_source(name)
    made_from = workspace.scores_made_from(tokens.manifest, workspace.fingerprint(source))
    if workspace.accepted:
        made_from[ACCEPTED] = sorted(workspace.accepted)
    folder, device = workspace.shards(f"scores/{name}"), workspace.device
    return Resolved(
        scores=Scores(name, folder.folder, tokens, config.score, tuple(workspace.accepted), lambda: device),
        folder=folder,
        source=source,
        made_from=made_from,
        tokenizer=workspace.tokenizer(),
        device=device,
        intra_document_mask=config.data.intra_document_mask,
        threads=workspace.places.threads(f"score {name}"),
    )


def resolve_planned(workspace: Workspace, references: list[str] | None) -> tuple[TokenSet, list[Build]]:
    """The corpus, and the score sets as they were planned, for those who only look; says which were not planned yet. Raises
    `InputError` where none was, `MismatchError` where it was planned for other tokens or under other settings."""
    found, unplanned = [], []
    tokens, wanted = TokenSet(workspace.tokens("corpus")), workspace.score_inputs()
    for name in named(workspace.config.score, references):
        folder = workspace.scores(name)
        plan = read_plan(folder)
        if plan is None:
            unplanned.append(f"{folder} was not planned yet. Run `slmctl score` first.")
            continue
        made = plan["made_from"]
        if made["tokens"] != tokens.manifest.content_hash:
            raise MismatchError(f"{folder} belongs to other tokens than {tokens.folder}. Run `slmctl score` again.")
        here = as_recorded(wanted, made)
        workspace.accepted = []
        workspace.refuse(f"scores/{name}", {k: made.get(k) for k in here}, here, "Run `slmctl score` again.")
        device = partial(pick_device, workspace.config.device)
        found.append(build_of(Scores(name, folder, tokens, workspace.config.score, tuple(workspace.accepted), device), plan))
    if not found:
        raise InputError("\n".join(unplanned))
    for line in unplanned:
        say(f"note: {line}")
    return tokens, found


# --- make ---


def plan_set(here: Resolved) -> dict[str, Any]:
    """Readies the set's folder, and returns its plan, in which the precision is settled. To be called while `planning`."""
    choose = partial(chosen_for_scores, here.device)
    return here.folder.begin(
        here.made_from,
        lambda: {"shards": len(here.scores.tokens.manifest.shards)},
        lambda wanted, made: settled(wanted, made, choose),
    )


def make_shards(here: Resolved, build: Build, precision: str, mine: list[int], label: str) -> None:
    """Scores this worker's shards that are not there yet."""
    scores, tokens, device = here.scores, here.scores.tokens, here.device
    settings = scores.settings.model_copy(update={"precision": precision})
    model = load_reference(here, precision)
    with autocast(device, precision == "bf16_autocast"):
        reader = RowReader(tokens, documents=model.intra_document_mask)
        settle_forward(build.label, model, reader, settings.batch_rows, device, here.threads)
    positions = sum(tokens.manifest.shards[i].rows for i in mine) * tokens.seq_len
    with progress(label, positions, "tokens") as ticker:
        for index in mine:
            before, bound = ticker.done, build.bound(index)
            scorer = partial(score_shard, build.folder, bound, tokens, index, model, settings, device, ticker)
            make(build.folder, index, bound, scorer)
            ticker.advance(before + tokens.manifest.shards[index].rows * tokens.seq_len - ticker.done)


def load_reference(here: Resolved, precision: str) -> SplitModel:
    """The reference, checked against the tokens that it is to score."""
    name, tokens, device = here.scores.name, here.scores.tokens, here.device
    refuse_other_vocabulary(here.tokenizer, name, here.source)
    tell(f"score {name}", here.scores.settings.precision, precision, device, partial(hidden_size, here.source))
    model = SplitModel(load_model(here.source, weights_of(precision), device), here.intra_document_mask)
    refuse_ids_beyond(tokens.manifest.format["max_id"], model.vocab_size, here.source.path)
    refuse_rows_beyond(tokens.seq_len, model, here.source.path)
    bf16 = precision == "bf16_autocast"
    with autocast(device, bf16):
        model.check(here.tokenizer.eos_id, tokens.seq_len, bf16)
    return model
