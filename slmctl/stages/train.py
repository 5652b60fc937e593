"""train-base, train-ref and pretrain: the same loop, on other rows and with another selection."""

from __future__ import annotations

import os
import shutil
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from slmctl import __version__
from slmctl.config.pipeline import ArmConfig, ScratchConfig, SelectionConfig, TrainingConfig
from slmctl.evaluation.heldout import HeldoutLoss, Measured, arithmetic, heldout_loss, rows_hash
from slmctl.model.check import lent
from slmctl.model.experts import refuse_auxiliary_loss
from slmctl.model.loading import ModelSource, hidden_size, load_model, save_model
from slmctl.model.precision import autocast, weights_of
from slmctl.model.split import SplitModel, refuse_ids_beyond, refuse_rows_beyond
from slmctl.report.model_cards import write_card
from slmctl.stages.validate import RANDOM_BASE
from slmctl.store import manifest
from slmctl.store.order import mix_seed
from slmctl.store.reader import RowReader, ScoreSet, TokenSet
from slmctl.system.console import say, waiting, warn
from slmctl.system.errors import ConfigError, InputError, MismatchError
from slmctl.system.files import publishing, sweep
from slmctl.training.batches import OneSet, RowSource, TwoSets
from slmctl.training.budget import check_budget
from slmctl.training.loop import Beat, Evaluator, Run, train
from slmctl.training.ranks import Ranks, joined
from slmctl.workspace.precisions import tell
from slmctl.workspace.start import Ready, Resume, make_ready, mark_stopped, settle
from slmctl.workspace.workspace import Workspace

ALL_TOKENS = SelectionConfig(criterion="all", group_rows=1)


def train_base(workspace: Workspace, resume: Resume = True) -> None:
    """Makes the base of a pipeline from scratch: random weights, then plain language modelling on the corpus."""
    scratch = workspace.config.model.scratch
    if scratch is None:
        raise ConfigError("model.path names the base model; train-base is for pipelines with model.scratch.")
    with joined(workspace.device) as ranks:
        workspace.accepted = []
        corpus = workspace.open_tokens("corpus")
        inputs, settings = workspace.base_inputs(), scratch.train
        width = partial(int, scratch.hidden_size)
        if settings is not None:
            settings, inputs = settle(settings, inputs, workspace.base, resume, ranks, workspace.device, width)

        def load() -> SplitModel:
            if settings is not None:
                check_budget("base", settings, ALL_TOKENS, corpus.seq_len, corpus.manifest.rows, ranks.size)
            model = new_model(scratch, workspace)
            if settings is not None and settings.precision == "bfloat16":
                for weight in model.parameters():
                    weight.data = weight.data.bfloat16()
            model = model.to(workspace.device) if ranks.size == 1 else model
            return SplitModel(model, workspace.config.data.intra_document_mask)

        def evaluator() -> Evaluator:
            return heldout_evaluator(workspace, settings) if settings is not None else _no_evaluation

        ready = make_ready(workspace, ranks, workspace.base, inputs, resume, load, evaluator)
        if ready is None:
            say("train-base: complete, skipped")
            return
        training = workspace.base_training
        if scratch.train is None or settings is None:
            warn(RANDOM_BASE)
            ranks.first(lambda: _publish(ready.model.model, workspace, training / "model"))
        else:
            tell("base", scratch.train.precision, settings.precision, workspace.device, width)
            seed = seed_of(workspace, settings, "base")
            source = OneSet(_reader(workspace, corpus), seed, settings.loader_threads)
            train(_run(workspace, ranks, "base", training, ready, settings, ALL_TOKENS, source, seed, inputs))
        ranks.first(lambda: _finish_model(workspace, "base", workspace.base, training))


def _publish(model: Any, workspace: Workspace, directory: Path) -> None:
    with publishing(directory) as temporary:
        save_model(model, workspace.tokenizer(), temporary)


def _no_evaluation(_model: SplitModel, _ranks: Ranks, _beat: Beat) -> dict[str, Measured]:
    return {}


def new_model(scratch: ScratchConfig, workspace: Workspace) -> Any:
    """A Llama-style model with random weights, initialised from the pipeline's seed."""
    from transformers import LlamaConfig, LlamaForCausalLM

    eos_id = workspace.tokenizer().eos_id
    config = LlamaConfig(
        vocab_size=scratch.vocab_size,
        hidden_size=scratch.hidden_size,
        intermediate_size=scratch.intermediate_size,
        num_hidden_layers=scratch.num_hidden_layers,
        num_attention_heads=scratch.num_attention_heads,
        num_key_value_heads=scratch.num_attention_heads,
        max_position_embeddings=max(2048, workspace.config.data.seq_len),
        tie_word_embeddings=scratch.tie_word_embeddings,
        bos_token_id=eos_id,
        eos_token_id=eos_id,
        pad_token_id=None,
        attn_implementation=workspace.config.model.attn_implementation,
    )
    with torch.random.fork_rng():
        torch.manual_seed(mix_seed("initialisation", workspace.config.seed))
        return LlamaForCausalLM(config)


def train_reference(workspace: Workspace, resume: Resume = True) -> None:
    """Continues the base model on the curated rows, and writes the reference model."""
    with joined(workspace.device) as ranks:
        _train_reference(workspace, ranks, resume)


def _train_reference(workspace: Workspace, ranks: Ranks, resume: Resume) -> None:
    config = workspace.config
    settings = config.reference
    workspace.accepted = []
    curated = workspace.open_tokens("curated")
    corpus = workspace.open_tokens("corpus") if settings.mix > 0 else None
    if settings.keep_best_on is not None:
        workspace.open_tokens(f"heldout/{settings.keep_best_on}")
    base = workspace.base_source()
    width = partial(hidden_size, base)
    inputs = workspace.reference_inputs()
    settings, inputs = settle(settings, inputs, workspace.reference, resume, ranks, workspace.device, width)
    seed = seed_of(workspace, settings, "reference")
    source: RowSource = OneSet(_reader(workspace, curated), seed, settings.loader_threads)
    if corpus is not None:
        readers = _reader(workspace, curated), _reader(workspace, corpus)
        source = TwoSets(*readers, settings.mix, seed, settings.loader_threads)
    sets = [curated, corpus] if corpus is not None else [curated]

    def load() -> SplitModel:
        check_budget("reference", settings, ALL_TOKENS, curated.seq_len, source.rows, ranks.size)
        return _load(workspace, ranks, base, settings, sets)

    ready = make_ready(
        workspace, ranks, workspace.reference, inputs, resume, load, lambda: heldout_evaluator(workspace, settings)
    )
    if ready is None:
        say("train-ref: complete, skipped")
        return
    tell("reference", config.reference.precision, settings.precision, workspace.device, width)
    training = workspace.reference / "training"
    run = _run(workspace, ranks, "reference", training, ready, settings, ALL_TOKENS, source, seed, inputs)
    run.keep_best_on = settings.keep_best_on
    train(run)

    ranks.first(lambda: _finish_model(workspace, "reference", workspace.reference, training))


def _finish_model(workspace: Workspace, name: str, directory: Path, training: Path) -> None:
    """Completes a stage whose folder is itself the model directory."""
    if training != directory:
        for file in (training / "model").iterdir():
            os.replace(file, directory / file.name)
        shutil.rmtree(training / "model")
    _finish(workspace, name, directory)


def pretrain(workspace: Workspace, arms: list[str] | None = None, resume: Resume = True) -> None:
    """Trains each arm (or those named) from the base model."""
    known = workspace.config.pretrain.arms
    for name in arms or []:
        if name not in known:
            raise ConfigError(f"--arm {name}: there is no such arm. The configuration has: {', '.join(known)}.")
    with joined(workspace.device) as ranks:
        for name in arms or known:
            train_arm(workspace, ranks, name, known[name], resume)


def train_arm(workspace: Workspace, ranks: Ranks, name: str, settings: ArmConfig, resume: Resume) -> None:
    config = workspace.config
    workspace.accepted = []
    corpus = workspace.open_tokens("corpus")
    base = workspace.base_source()
    reference = settings.selection.reference or next(iter(config.score.references))

    def usable() -> bool:
        """Whether there are scores to join: one rank looks, since others may see a shared file system a little later."""
        if not manifest.exists(workspace.scores(reference)):
            if settings.selection.needs_reference:
                raise InputError(f"{workspace.scores(reference)} is absent or not complete. Run `slmctl score` first.")
            return False
        try:
            workspace.open_scores(reference, corpus)
        except MismatchError as e:
            if settings.selection.needs_reference:
                raise
            warn(f"pretrain {name} needs no scores and goes on without these: {e}")
            return False
        return True

    scores = workspace.open_scores(reference, corpus) if ranks.first(usable) else None
    joined_hash = scores.manifest.content_hash if scores is not None else None
    inputs = workspace.arm_inputs(settings, workspace.fingerprint(base), corpus.manifest.content_hash, joined_hash)
    directory, asked, width = workspace.arm(name), settings.precision, partial(hidden_size, base)
    settings, inputs = settle(settings, inputs, directory, resume, ranks, workspace.device, width)

    def load() -> SplitModel:
        check_budget(name, settings, settings.selection, corpus.seq_len, corpus.manifest.rows, ranks.size)
        return _load(workspace, ranks, base, settings, [corpus])

    ready = make_ready(workspace, ranks, directory, inputs, resume, load, lambda: heldout_evaluator(workspace, settings))
    if ready is None:
        say(f"pretrain {name}: complete, skipped")
        return
    tell(name, asked, settings.precision, workspace.device, width)
    seed = seed_of(workspace, settings, "arms")
    source = OneSet(_reader(workspace, corpus, scores), seed, settings.loader_threads)
    train(_run(workspace, ranks, name, directory, ready, settings, settings.selection, source, seed, inputs))
    ranks.first(lambda: _finish(workspace, name, directory, {"heldout": workspace.heldout_hashes()}))


def _finish(workspace: Workspace, name: str, directory: Path, facts: dict[str, Any] | None = None) -> None:
    with waiting(f"{name}: writing its model card"):
        write_card(workspace.places, workspace.config, name, workspace.bos())
    workspace.finish(directory, facts)
    workspace.record()


def seed_of(workspace: Workspace, settings: TrainingConfig, purpose: Literal["base", "reference", "arms"]) -> int:
    """The seed of a run's order, random selection and dropout. Arms of one seed share it, and so their order; base, reference
    and arms never do, whatever their seeds."""
    return mix_seed(purpose, workspace.config.seed if settings.seed is None else settings.seed)


def _reader(workspace: Workspace, tokens: TokenSet, scores: ScoreSet | None = None) -> RowReader:
    return RowReader(tokens, scores, documents=workspace.config.data.intra_document_mask)


def _load(workspace: Workspace, ranks: Ranks, source: ModelSource, settings: TrainingConfig, sets: list[TokenSet]) -> SplitModel:
    """The model to train, checked: on its device, or, of several ranks, on the CPU, from where each takes its part."""
    device = workspace.device if ranks.size == 1 else "cpu"
    split = SplitModel(load_model(source, weights_of(settings.precision), device), workspace.config.data.intra_document_mask)
    refuse_auxiliary_loss(split.model, source.path)
    for tokens in sets:
        refuse_ids_beyond(tokens.manifest.format["max_id"], split.vocab_size, source.path)
        refuse_rows_beyond(tokens.seq_len, split, source.path)
    bf16 = settings.precision == "bf16_autocast"
    seq_len = sets[0].seq_len

    def check() -> None:
        with lent(split.model, workspace.device) as where, autocast(where, bf16):
            split.check(workspace.tokenizer().eos_id, seq_len, bf16)

    if ranks.is_first:  # the others hear of its verdict before they begin
        workspace.checked.once(split, workspace.fingerprint(source), seq_len, settings.precision, check)
    if settings.precision == "bfloat16" and settings.lr < 1e-4:
        warn(
            f"precision bfloat16 with lr {settings.lr}: weights of 8 significant bits swallow updates below about 1/256 of "
            "their size, so much of the model will hardly move. precision: bf16_autocast keeps float32 weights."
        )
    return split


def _run(
    workspace: Workspace,
    ranks: Ranks,
    name: str,
    directory: Path,
    ready: Ready,
    settings: TrainingConfig,
    selection: SelectionConfig,
    source: RowSource,
    seed: int,
    made_from: dict[str, Any],
) -> Run:
    config = workspace.config
    ranks.first(lambda: sweep(directory))
    return Run(
        name=name,
        directory=directory,
        model=ready.model,
        tokenizer=workspace.tokenizer(),
        settings=settings,
        selection=selection,
        source=source,
        seq_len=config.data.seq_len,
        seed=seed,
        device=workspace.device,
        evaluate=ready.evaluate,
        tracking=config.tracking,
        made_from=made_from,
        facts=_facts(workspace),
        ranks=ranks,
        resume_from=ready.step,
        threads=workspace.places.threads(name if name in ("base", "reference") else "arms"),
        on_stop=lambda signum: mark_stopped(ready.directory, signum),
    )


def _facts(workspace: Workspace) -> dict[str, Any]:
    """The pipeline, as those want to know it who look at a run's curves."""
    config = workspace.config
    data = config.data.model_dump(mode="json")
    return {
        **{"pipeline": config.name, "output_dir": config.output_dir, "slmctl": __version__},
        "model": config.model.model_dump(mode="json", exclude_none=True),
        "data": {k: v for k, v in data.items() if v is not None and k != "seq_len"},
        "score": config.score.model_dump(mode="json", exclude_none=True),
    }


def heldout_evaluator(workspace: Workspace, settings: TrainingConfig) -> Evaluator:
    """Held-out losses by set name, under the precision of training, and what they were measured on."""
    readers = {n: _reader(workspace, workspace.open_tokens(f"heldout/{n}")) for n in workspace.heldout_names()}
    bf16 = settings.precision == "bf16_autocast"

    def evaluate(model: SplitModel, ranks: Ranks, beat: Beat) -> dict[str, Measured]:
        found = {}
        for name, reader in readers.items():
            how = (workspace.device, workspace.config.eval.batch_rows, settings.eval_tokens, bf16, ranks.rank, ranks.size)
            part = heldout_loss(model, reader, *how, partial(beat, name))
            nats, predicted = ranks.sum_floats([part.nats, float(part.predicted)])
            whole, rows = (
                HeldoutLoss(nats, int(predicted)),
                rows_hash(reader.tokens, settings.eval_tokens, model.intra_document_mask),
            )
            found[name] = Measured(whole.loss, whole.predicted, rows, arithmetic(model, bf16))
        return found

    return evaluate
