"""train-base, train-ref and pretrain: the same loop, on other rows and with another selection."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from slmctl.config import ArmConfig, ScratchConfig, SelectionConfig, TrainingConfig
from slmctl.console import say, warn
from slmctl.errors import ConfigError, InputError, MismatchError, SlmError, StoppedError
from slmctl.evaluation.heldout import HeldoutLoss, autocast, heldout_loss
from slmctl.files import publishing, read_json, sweep, write_json
from slmctl.model.loading import ModelSource, load_model, save_model
from slmctl.model.split import SplitModel, refuse_ids_beyond, refuse_rows_beyond
from slmctl.stages.cards import write_card
from slmctl.stages.workspace import DONE, Workspace, result_settings
from slmctl.store import manifest
from slmctl.store.reader import RowReader, ScoreSet, TokenSet
from slmctl.training.batches import OneSet, RowSource, TwoSets
from slmctl.training.budget import check_budget
from slmctl.training.checkpoint import require_checkpoint
from slmctl.training.loop import Evaluator, Run, train
from slmctl.training.ranks import Ranks, joined

LAUNCH = "launch.json"
"""Names what last began a run: ranks that it starts again go on from where they were, whatever they were asked for."""
ALL_TOKENS = SelectionConfig(criterion="all", group_rows=1)
Resume = bool | int
"""True: from the newest checkpoint, where there is one. False: start over. A number: from that step's checkpoint."""


def train_base(workspace: Workspace, resume: Resume = True) -> None:
    """Makes the base of a pipeline from scratch: random weights, then plain language modelling on the corpus."""
    scratch = workspace.config.model.scratch
    if scratch is None:
        raise ConfigError("model.path names the base model; train-base is for pipelines with model.scratch.")
    with joined(workspace.device) as ranks:
        workspace.accepted = []
        corpus = workspace.open_tokens("corpus")
        inputs = workspace.base_inputs()

        def load() -> SplitModel:
            if scratch.train is not None:
                check_budget("base", scratch.train, ALL_TOKENS, corpus.seq_len, corpus.manifest.rows, ranks.size)
            model = new_model(scratch, workspace)
            model = model.to(workspace.device) if ranks.size == 1 else model
            return SplitModel(model, workspace.config.data.intra_document_mask)

        ready = _ready(workspace, ranks, workspace.base, inputs, resume, scratch.train, load)
        if ready is None:
            say("train-base: complete, skipped")
            return
        if scratch.train is None:
            ranks.first(lambda: _publish(ready.model.model, workspace, workspace.base / "model"))
        else:
            seed = seed_of(workspace, scratch.train) + 1  # another order than the arms', which share theirs
            source = OneSet(_reader(workspace, corpus), seed, scratch.train.loader_threads)
            train(_run(workspace, ranks, "base", workspace.base, ready, scratch.train, ALL_TOKENS, source, inputs))
        ranks.first(lambda: _finish(workspace, "base", workspace.base))


def _mark_stopped(directory: Path, signum: int) -> None:
    """Leaves word in a stage's folder for ranks that torchrun starts again all the same."""
    with suppress(SlmError, OSError):
        write_json(directory / LAUNCH, {**read_json(directory / LAUNCH), "stopped": signum})


def _publish(model: Any, workspace: Workspace, directory: Path) -> None:
    with publishing(directory) as temporary:
        save_model(model, workspace.tokenizer().hf, temporary)


@dataclass(frozen=True)
class Ready:
    """What a run needs that was checked before anything of an earlier one was moved."""

    directory: Path
    """The stage's."""
    model: SplitModel
    evaluate: Evaluator
    step: int | None
    """Whose checkpoint to go back to; None is the newest."""


def _ready(
    workspace: Workspace,
    ranks: Ranks,
    directory: Path,
    inputs: dict[str, Any],
    resume: Resume,
    settings: TrainingConfig | None,
    load: Callable[[], SplitModel],
) -> Ready | None:
    """Loads what a run needs, and readies its folder; None where the run is complete. Whatever is wrong on any rank is told
    before anything is moved."""

    def loaded() -> tuple[SplitModel, Evaluator]:
        problem: Exception | None = None
        try:
            found = load(), heldout_evaluator(workspace, settings) if settings is not None else _no_evaluation
        except Exception as e:  # the others must not go on without this rank
            problem = e
        ranks.barrier()  # loading may take longer than a collective waits
        if ranks.sum([int(problem is not None)])[0]:
            unloaded = SlmError("another rank cannot begin.")
            unloaded.told = True
            raise problem or unloaded
        return found

    complete = resume is True and ranks.first(lambda: workspace.is_complete(directory, inputs))
    found = None if complete else loaded()
    complete, step = _begin(workspace, ranks, directory, inputs, resume)
    return None if complete else Ready(directory, *(found or loaded()), step)


def _no_evaluation(_model: SplitModel, _ranks: Ranks, _beat: Callable[[], None]) -> dict[str, float]:
    return {}


def _begin(
    workspace: Workspace, ranks: Ranks, directory: Path, inputs: dict[str, Any], resume: Resume
) -> tuple[bool, int | None]:
    """Readies the folder of a run. Returns whether it is complete, and the step whose checkpoint to go back to. A rank that
    torchrun has restarted goes on from where the run was, unless a signal stopped it.

    Raises `MismatchError` where the run to go back in was made with other settings.
    """
    mark, launch = directory / LAUNCH, _launch()

    def begin() -> tuple[bool, int | None]:
        before = read_json(mark) if mark.is_file() else {}
        started_again = launch["torchrun"] is not None and before.get("torchrun") == launch["torchrun"]
        if started_again and before.get("stopped") and before.get("agent") == launch["agent"]:
            raise StoppedError(
                f"{directory} was stopped by a signal, and is not gone on with by the ranks that torchrun has started again. "
                "Run again to go on."
            )
        queued_again = os.environ.get("SLURM_RESTART_COUNT", "0") != "0" and before.get("job") == launch["job"]
        step = None
        if isinstance(resume, bool) or started_again or queued_again:
            complete = workspace.begin(directory, inputs, fresh=not (resume or started_again or queued_again))
        else:
            step = resume
            advice = f"--resume {resume} goes back in a run; give --resume auto to begin it anew."
            workspace.refuse_change(directory, inputs, advice)
            runs = [directory / "checkpoints", directory / "training" / "checkpoints"]
            require_checkpoint(next((r for r in runs if r.is_dir()), runs[0]), step)
            (directory / DONE).unlink(missing_ok=True)
            complete = workspace.begin(directory, inputs)
        write_json(mark, launch)
        return complete, step

    return ranks.first(begin)


def _launch() -> dict[str, Any]:
    """What started this process: torchrun, by the id of its run, which may start it again, and as a process (`agent`); and
    Slurm's job, which may be queued again. None each where it was neither."""
    torchrun = os.environ.get("TORCHELASTIC_RUN_ID")
    if torchrun == "none":
        torchrun = f"{platform.node()}-{os.getppid()}"
    agent = None if torchrun is None else f"{platform.node()}-{os.getppid()}-{_started(os.getppid())}"
    return {"torchrun": torchrun, "agent": agent, "job": os.environ.get("SLURM_JOB_ID")}


def _started(pid: int) -> str:
    """When a process started, so that a number that is given to another does not make them one; empty where it is not told."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


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
        torch.manual_seed(workspace.config.seed)
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
    inputs = workspace.reference_inputs()
    source: RowSource = OneSet(_reader(workspace, curated), seed_of(workspace, settings), settings.loader_threads)
    if corpus is not None:
        readers = _reader(workspace, curated), _reader(workspace, corpus)
        source = TwoSets(*readers, settings.mix, seed_of(workspace, settings), settings.loader_threads)
    sets = [curated, corpus] if corpus is not None else [curated]

    def load() -> SplitModel:
        check_budget("reference", settings, ALL_TOKENS, curated.seq_len, source.rows, ranks.size)
        return _load(workspace, ranks, base, settings, sets)

    ready = _ready(workspace, ranks, workspace.reference, inputs, resume, settings, load)
    if ready is None:
        say("train-ref: complete, skipped")
        return
    training = workspace.reference / "training"
    run = _run(workspace, ranks, "reference", training, ready, settings, ALL_TOKENS, source, inputs)
    run.keep_best_on = settings.keep_best_on
    train(run)

    def finish() -> None:
        for file in (training / "model").iterdir():  # reference/ is itself the model directory
            os.replace(file, workspace.reference / file.name)
        shutil.rmtree(training / "model")
        _finish(workspace, "reference", workspace.reference)

    ranks.first(finish)


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
    inputs = {
        **workspace.common_inputs(),
        "settings": result_settings(settings),
        "base": workspace.fingerprint(base),
        "corpus": corpus.manifest.content_hash,
    }
    if scores is not None and settings.selection.needs_reference:
        inputs["scores"] = scores.manifest.content_hash
    directory = workspace.arm(name)

    def load() -> SplitModel:
        check_budget(name, settings, settings.selection, corpus.seq_len, corpus.manifest.rows, ranks.size)
        return _load(workspace, ranks, base, settings, [corpus])

    ready = _ready(workspace, ranks, directory, inputs, resume, settings, load)
    if ready is None:
        say(f"pretrain {name}: complete, skipped")
        return
    source = OneSet(_reader(workspace, corpus, scores), seed_of(workspace, settings), settings.loader_threads)
    train(_run(workspace, ranks, name, directory, ready, settings, settings.selection, source, inputs))
    ranks.first(lambda: _finish(workspace, name, directory, {"heldout": workspace.heldout_hashes()}))


def _finish(workspace: Workspace, name: str, directory: Path, facts: dict[str, Any] | None = None) -> None:
    write_card(workspace, name)
    workspace.finish(directory, facts)


def seed_of(workspace: Workspace, settings: TrainingConfig) -> int:
    """The seed of a run's order and random selection."""
    return workspace.config.seed if settings.seed is None else settings.seed


def _reader(workspace: Workspace, tokens: TokenSet, scores: ScoreSet | None = None) -> RowReader:
    return RowReader(tokens, scores, documents=workspace.config.data.intra_document_mask)


def _load(workspace: Workspace, ranks: Ranks, source: ModelSource, settings: TrainingConfig, sets: list[TokenSet]) -> SplitModel:
    """The model to train, checked: on its device, or, of several ranks, on the CPU, from where each takes its part."""
    dtype = "bfloat16" if settings.precision == "bfloat16" else "float32"
    device = workspace.device if ranks.size == 1 else "cpu"
    split = SplitModel(load_model(source, dtype, device), workspace.config.data.intra_document_mask)
    for tokens in sets:
        refuse_ids_beyond(tokens.manifest.format["max_id"], split.vocab_size, source.path)
        refuse_rows_beyond(tokens.seq_len, split, source.path)
    bf16 = settings.precision == "bf16_autocast"
    with autocast(device, bf16):
        split.check(workspace.tokenizer().eos_id, bf16)
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
    made_from: dict[str, Any],
) -> Run:
    config = workspace.config
    ranks.first(lambda: sweep(directory))
    return Run(
        name=name,
        directory=directory,
        model=ready.model,
        tokenizer=workspace.tokenizer().hf,
        settings=settings,
        selection=selection,
        source=source,
        seq_len=config.data.seq_len,
        seed=seed_of(workspace, settings),
        device=workspace.device,
        evaluate=ready.evaluate,
        tracking=config.tracking,
        made_from=made_from,
        ranks=ranks,
        resume_from=ready.step,
        on_stop=lambda signum: _mark_stopped(ready.directory, signum),
    )


def heldout_evaluator(workspace: Workspace, settings: TrainingConfig) -> Evaluator:
    """Held-out losses by set name, under the precision of training."""
    readers = {n: _reader(workspace, workspace.open_tokens(f"heldout/{n}")) for n in workspace.heldout_names()}
    bf16 = settings.precision == "bf16_autocast"

    def evaluate(model: SplitModel, ranks: Ranks, beat: Callable[[], None]) -> dict[str, float]:
        found = {}
        for name, reader in readers.items():
            how = (workspace.device, workspace.config.eval.batch_rows, settings.eval_tokens, bf16, ranks.rank, ranks.size, beat)
            part = heldout_loss(model, reader, *how)
            nats, predicted = ranks.sum_floats([part.nats, float(part.predicted)])
            found[name] = HeldoutLoss(nats, int(predicted)).loss
        return found

    return evaluate
