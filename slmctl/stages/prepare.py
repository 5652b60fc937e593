"""prepare: text to token shards, for the curated set, the corpus and each held-out set; by one worker or by many."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from slmctl.config.pipeline import PipelineConfig
from slmctl.corpus.bos import contradiction, described
from slmctl.corpus.make_shard import Job
from slmctl.corpus.shard_jobs import make_shards, prove_tokenizer
from slmctl.model.loading import load_model_config
from slmctl.store import manifest as manifests
from slmctl.store.build import read_plan
from slmctl.store.reader import TokenSet
from slmctl.system.console import say, waiting, warn
from slmctl.system.errors import ConfigError, InputError
from slmctl.system.files import read_json
from slmctl.workspace import contamination
from slmctl.workspace.build import Build, finalize, status, verify_all
from slmctl.workspace.graph import token_sets
from slmctl.workspace.missing_texts import inputs_here, refuse_unreadable
from slmctl.workspace.own_tokenizer import OwnTokenizer, make_tokenizer
from slmctl.workspace.stale import INPUTS
from slmctl.workspace.token_sets import Recipe, TextSet, build_of, claim_sets, impossible_tokens, made_before, plan_set
from slmctl.workspace.workers import Share
from slmctl.workspace.workspace import Workspace


@dataclass(frozen=True)
class Resolved:
    """What the token sets of a pipeline are made of, and with."""

    recipe: Recipe
    sets: list[TextSet]
    search: contamination.Search


def prepare(workspace: Workspace, share: Share = Share()) -> None:  # noqa: B008 - frozen
    """Makes every token set that is absent or no longer matches its inputs; of many workers, this one's share of the shards.
    Whoever completes a set writes its manifest. Raises `InputError` where held-out documents stand in the texts and
    eval.contamination says to stop."""
    with workspace.planning():
        here = resolve(workspace)
        claim_sets(here.recipe, here.sets)
        planned = [plan_set(here.recipe, one) for one in here.sets]
        check = contamination.plan_check(here.search)

    jobs: list[Job | None] = []
    for one, found in zip(here.sets, planned, strict=True):
        if isinstance(found, int):
            jobs += [None] * found
        else:
            jobs += check.watched(one.name, found.jobs) if check is not None else found.jobs
    mine = [j for j in share.of(jobs) if j is not None]
    with waiting("prepare: comparing the tokenizer with its files on the first documents"):
        prove_tokenizer(here.recipe.tokenizer, mine)
    make_shards(here.recipe.tokenizer, mine, share.named("prepare"))

    made = [build.finish() for build in planned if isinstance(build, Build)]
    if check is not None:
        check.finish(share)
    if all(made):
        workspace.record(bool(made))


def look(workspace: Workspace, action: str) -> None:
    """--status, --finalize or --verify: looks at the sets, or binds those whose shards are all there; makes no shard. `action` is
    the option's name. Raises `CorruptError` where verification finds something wrong, and as `resolve_planned` does."""
    builds = resolve_planned(workspace)
    if action == "status":
        status(builds)
    elif action == "verify":
        verify_all(builds, TokenSet, impossible_tokens)
    else:
        finalize(builds)
        workspace.record()


# --- resolve ---


def resolve(workspace: Workspace) -> Resolved:
    """Opens texts and tokenizer, which is made first where the pipeline has its own. To be called while `planning`: whoever does
    it first hashes the texts, and the others look it up. Raises `ConfigError` or `InputError` for whatever of them is wrong."""
    config = workspace.config
    names = token_sets(config)
    if config.missing_inputs == "stop":
        refuse_unreadable({n: workspace.sources(n) for n in names}, lambda n: manifests.exists(workspace.tokens(n)))
    if config.model.scratch is not None:
        make_tokenizer(resolve_tokenizer(workspace))
    recipe = resolve_recipe(workspace)
    refuse_long_rows(recipe)
    tell_bos(recipe, config)
    return Resolved(recipe, [resolve_set(workspace, n) for n in names], contamination.resolve(workspace))


def resolve_set(workspace: Workspace, name: str) -> TextSet:
    """One set, and what its texts are by content."""
    folder = workspace.shards(f"tokens/{name}")
    return TextSet(name, folder, workspace.sources(name), workspace.inputs_here(name, made_before(folder.folder)))


def resolve_recipe(workspace: Workspace) -> Recipe:
    """What all sets are made with, for which no text needs to be here."""
    config, scratch = workspace.config, workspace.config.model.scratch
    if scratch is not None:
        vocab_size, positions = scratch.vocab_size, 0
    else:
        model = load_model_config(workspace.base_source())
        vocab_size, positions = int(model.vocab_size), getattr(model, "max_position_embeddings", None) or 0
    return Recipe(
        tokenizer=workspace.tokenizer(),
        bos=workspace.bos(),
        vocab_size=vocab_size,
        positions=positions if positions > 0 else None,  # XLNet says -1: as many as there are
        seq_len=config.data.seq_len,
        seed=config.seed,
        shard_bytes=config.data.shard_bytes,
        inputs=workspace.packing_inputs(),
        hashes=workspace.hashes,
    )


def resolve_tokenizer(workspace: Workspace) -> OwnTokenizer:
    """The tokenizer of a pipeline from scratch, and what it depends on."""
    config, folder = workspace.config, workspace.stage("tokenizer")
    assert config.model.scratch is not None
    texts = {"curated": config.data.curated, "corpus": config.data.corpus}
    made = read_json(folder.path / INPUTS) if (folder.path / INPUTS).is_file() else None
    inputs = inputs_here(workspace, "tokenizer", made, workspace.tokenizer_inputs, texts)
    return OwnTokenizer(folder, config.model.scratch, texts, inputs, config.data.shard_bytes, workspace.hashes)


def resolve_planned(workspace: Workspace) -> list[Build]:
    """The token sets as they were planned, for those who only look. Raises `InputError` where one was not planned yet,
    `MismatchError` where it was planned under other settings."""
    planned: dict[str, dict[str, Any]] = {}
    for name in token_sets(workspace.config):
        if (plan := read_plan(workspace.tokens(name))) is None:
            raise InputError(f"{workspace.tokens(name)} was not planned yet. Run `slmctl prepare` first.")
        planned[name] = plan
    recipe = resolve_recipe(workspace)
    for name, plan in planned.items():
        workspace.refuse_other_packing(name, plan["made_from"], recipe.inputs)
    return [build_of(recipe, name, workspace.tokens(name), plan) for name, plan in planned.items()]


def refuse_long_rows(recipe: Recipe) -> None:
    """Raises `ConfigError` where the base model has fewer positions than a row."""
    if recipe.positions is not None and recipe.positions < recipe.seq_len:
        raise ConfigError(
            f"data.seq_len: {recipe.seq_len} is beyond the {recipe.positions} positions of the base model; use at most "
            f"{recipe.positions}."
        )


def tell_bos(recipe: Recipe, config: PipelineConfig) -> None:
    """Says what rows begin with, and where the tokenizer would have it otherwise."""
    for line in described(recipe.tokenizer, recipe.bos, config.data.bos):
        say(f"prepare: {line}")
    against = contradiction(recipe.tokenizer, config.model.revision) if config.data.bos == "auto" else None
    if against is not None:
        warn(against)
