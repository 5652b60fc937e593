"""The command line: thin commands over `slmctl.stages`."""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from slmctl import __version__
from slmctl.system.console import err, out, waiting
from slmctl.system.errors import ConfigError, Interrupted, SlmError
from slmctl.system.files import is_full
from slmctl.system.signals import raising

if TYPE_CHECKING:
    from slmctl.workspace.workspace import Workspace

app = typer.Typer(
    name="slmctl",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Selective Language Modeling, from raw text to compared checkpoints.\n\n"
    "Start with `slmctl demo`; for your own texts, `slmctl init mine.yaml`, then `slmctl run mine.yaml`.",
)
debug = False
LOADING = "loading PyTorch and transformers"

Config = Annotated[Path, typer.Argument(metavar="CONFIG", help="The pipeline's YAML file.")]
Override = Annotated[
    list[str] | None,
    typer.Option("-o", "--override", metavar="KEY.PATH=VALUE", help="Lay a value over the configuration; repeatable."),
]
ShardIndex = Annotated[
    int | None, typer.Option("--shard-index", help="Which worker this is, from 0; default: Slurm's array task, torchrun's rank.")
]
ShardCount = Annotated[int | None, typer.Option("--shard-count", help="How many workers share the work.")]
Status = Annotated[bool, typer.Option("--status", help="Only show what is done, missing and orphaned, rate and time left.")]
Finalize = Annotated[bool, typer.Option("--finalize", help="Only write the manifest; fails where shards are missing.")]
Verify = Annotated[bool, typer.Option("--verify", help="Only re-read and re-hash every shard and look at every value.")]
Resume = Annotated[
    str,
    typer.Option("--resume", metavar="auto|never|STEP", help="Go on from the newest checkpoint, start over, or go back."),
]
NoResume = Annotated[bool, typer.Option("--no-resume", help="The same as --resume never.")]


def _version(show: bool) -> None:
    if show:
        out.print(f"slmctl {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    _show_version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")] = False,
    show_traceback: Annotated[bool, typer.Option("--debug", help="Show a traceback with an error.")] = False,
) -> None:
    global debug
    debug = show_traceback


def _open(config: Path, override: list[str] | None) -> Workspace:
    from slmctl.config.file import load_config

    loaded = load_config(config, override)
    with waiting(LOADING):
        from slmctl.workspace.workspace import Workspace
    with waiting("opening the output_dir"):
        return Workspace(loaded).open()


@app.command()
def prepare(
    config: Config,
    override: Override = None,
    shard_index: ShardIndex = None,
    shard_count: ShardCount = None,
    status: Status = False,
    finalize: Finalize = False,
    verify: Verify = False,
) -> None:
    """Text to token shards: the curated set, the corpus and each held-out set. By one worker, or by any number of them.

    Examples: `slmctl prepare pipelines/math-smollm2.yaml` · `slmctl prepare CONFIG --shard-index 3 --shard-count 64` ·
    `slmctl prepare CONFIG --status`
    """
    only = _only(status, finalize, verify)
    workspace = _open(config, override)
    with waiting(LOADING):
        from slmctl.stages.prepare import look
        from slmctl.stages.prepare import prepare as stage
        from slmctl.workspace.workers import find_share

    if only is not None:
        look(workspace, only)
    else:
        stage(workspace, find_share(shard_index, shard_count))


def _only(status: bool, finalize: bool, verify: bool) -> str | None:
    given = [n for n, on in {"status": status, "finalize": finalize, "verify": verify}.items() if on]
    if len(given) > 1:
        raise ConfigError(f"give one of {', '.join('--' + g for g in given)} at a time.")
    return given[0] if given else None


def _resume(resume: str, no_resume: bool) -> bool | int:
    if no_resume or resume == "never":
        return False
    if resume == "auto":
        return True
    if not resume.isdigit():
        raise ConfigError(f"--resume {resume}: want auto, never or the number of a saved step.")
    return int(resume)


@app.command("train-base")
def train_base(config: Config, override: Override = None, resume: Resume = "auto", no_resume: NoResume = False) -> None:
    """Make the base model of a pipeline with `model.scratch`.

    Example: `slmctl train-base pipelines/math-scratch.yaml`
    """
    how = _resume(resume, no_resume)
    workspace = _open(config, override)
    with waiting(LOADING):
        from slmctl.stages.train_base import train_base as stage

    stage(workspace, how)


@app.command("train-ref")
def train_ref(config: Config, override: Override = None, resume: Resume = "auto", no_resume: NoResume = False) -> None:
    """Continue the base model on the curated set: the reference model.

    Example: `slmctl train-ref pipelines/math-smollm2.yaml -o reference.epochs=1`
    """
    how = _resume(resume, no_resume)
    workspace = _open(config, override)
    with waiting(LOADING):
        from slmctl.stages.train_ref import train_reference as stage

    stage(workspace, how)


@app.command()
def score(
    config: Config,
    override: Override = None,
    reference: Annotated[list[str] | None, typer.Option("--reference", help="Only this score set; repeatable.")] = None,
    shard_index: ShardIndex = None,
    shard_count: ShardCount = None,
    status: Status = False,
    finalize: Finalize = False,
    verify: Verify = False,
) -> None:
    """The reference model's loss of every corpus token, into score shards. By one worker, or by any number of them.

    Examples: `slmctl score pipelines/math-smollm2.yaml` · `torchrun --nproc-per-node 8 -m slmctl score CONFIG` (eight GPUs) ·
    `slmctl score CONFIG --reference NAME --verify`
    """
    only = _only(status, finalize, verify)
    workspace = _open(config, override)
    with waiting(LOADING):
        from slmctl.stages.score import look
        from slmctl.stages.score import score as stage
        from slmctl.workspace.workers import find_share

    if only is not None:
        look(workspace, only, reference)
    else:
        stage(workspace, reference, find_share(shard_index, shard_count))


@app.command()
def inspect(
    config: Config,
    which: Annotated[
        str, typer.Argument(metavar="SET", help="`corpus`, `curated`, `heldout/NAME`, or `scores/NAME` of a reference.")
    ] = "tokens/corpus",
    override: Override = None,
    shard: Annotated[int, typer.Option("--shard", help="Which shard, by number.")] = 0,
    document: Annotated[
        int | None, typer.Option("--document", help="Show the n-th document of the shard beside its source.")
    ] = None,
    top: Annotated[int, typer.Option("--top", min=0, help="How many of the highest-loss tokens to show in context.")] = 10,
    storage: Annotated[
        bool, typer.Option("--storage", help="For scores: what each storage type and precision costs, and does to the selection.")
    ] = False,
    rows: Annotated[int, typer.Option("--rows", min=1, help="Rows that --storage measures on.")] = 64,
) -> None:
    """Look into a shard: its manifest, statistics, highest-loss tokens in context; and one document beside its source.

    Examples: `slmctl inspect CONFIG` · `slmctl inspect CONFIG scores/curated --shard 2 --document 17` ·
    `slmctl inspect CONFIG scores/curated --storage`
    """
    workspace = _open(config, override)
    with waiting(LOADING):
        from slmctl.stages.inspect import inspect as stage
        from slmctl.stages.inspect import inspect_storage

    if storage:
        inspect_storage(workspace, which, rows)
    else:
        stage(workspace, which, shard, document, top)


@app.command()
def pretrain(
    config: Config,
    override: Override = None,
    arm: Annotated[list[str] | None, typer.Option("--arm", help="Only this arm; repeatable.")] = None,
    resume: Resume = "auto",
    no_resume: NoResume = False,
) -> None:
    """Train the arms: the same base and data, each with its own selection.

    Example: `slmctl pretrain pipelines/math-smollm2.yaml --arm slm`
    """
    how = _resume(resume, no_resume)
    workspace = _open(config, override)
    with waiting(LOADING):
        from slmctl.stages.pretrain import pretrain as stage

    stage(workspace, arm, how)


@app.command("eval")
def evaluate(config: Config, override: Override = None) -> None:
    """Held-out loss, perplexity, bits per byte and tasks, for base, reference and arms.

    Example: `slmctl eval pipelines/math-smollm2.yaml`
    """
    workspace = _open(config, override)
    with waiting(LOADING):
        from slmctl.stages.evaluate import evaluate as stage
        from slmctl.stages.report import print_comparison

    stage(workspace)
    print_comparison(workspace)


@app.command()
def report(config: Config, override: Override = None) -> None:
    """One self-contained HTML page with the comparison and the arms' curves.

    Example: `slmctl report pipelines/math-smollm2.yaml`
    """
    workspace = _open(config, override)
    with waiting(LOADING):
        from slmctl.stages.report import report as stage

    out.print(f"report: {stage(workspace).resolve()}", soft_wrap=True)


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="The output_dir of each run; each has been evaluated.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the same as JSON.")] = False,
) -> None:
    """Several evaluated runs side by side: losses, tokens, tasks, seeds, and what differs in their configurations.

    Examples: `slmctl compare runs/mine runs/try` · `slmctl compare --json runs/seed-*`
    """
    with waiting(LOADING):
        from slmctl.stages.compare import compare as stage

    stage(runs, as_json)


@app.command()
def run(
    config: Config,
    override: Override = None,
    dry: Annotated[
        bool,
        typer.Option("--dry-run", help="Only say what would be made, kept and moved aside, why, and roughly what that takes."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="With --dry-run: print the same as JSON.")] = False,
) -> None:
    """Every stage in order, skipping what is complete and still matches its inputs.

    Examples: `slmctl run pipelines/math-smollm2.yaml -o output_dir=runs/try1` · `slmctl run CONFIG --dry-run`
    """
    if as_json and not dry:
        raise ConfigError("--json goes with --dry-run.")
    if dry:
        from slmctl.config.file import load_config
        from slmctl.stages.dry_run import dry_run

        dry_run(load_config(config, override), as_json)
        return
    workspace = _open(config, override)
    with waiting(LOADING):
        from slmctl.stages.run import run as stage

    out.print(f"report: {stage(workspace).resolve()}", soft_wrap=True)


@app.command()
def status(
    config: Config,
    override: Override = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the same as JSON.")] = False,
) -> None:
    """How every stage stands: complete, unfinished and how far, stale and why, or not there. Only looks: nothing is written.

    Examples: `slmctl status pipelines/math-smollm2.yaml` · `slmctl status CONFIG --json`
    """
    from slmctl.config.file import load_config
    from slmctl.stages.status import status as stage

    stage(load_config(config, override), as_json)


@app.command()
def sweep(
    config: Config,
    over: Annotated[
        list[str], typer.Option("--over", metavar="KEY=V1,V2,…", help="A key below pretrain and its values; repeatable.")
    ],
    override: Override = None,
) -> None:
    """An arm once more for each value of a setting, or each seed, on the same tokens, reference and scores; then eval and report.

    Swept arms have the budget of their own arm. `-o` changes the arms that are there as well, which are then trained anew.

    Examples: `slmctl sweep CONFIG --over pretrain.arms.slm.selection.ratio=0.4,0.5,0.7` ·
    `slmctl sweep CONFIG --over pretrain.seed=1,2`
    """
    workspace = _open(config, override)
    with waiting(LOADING):
        from slmctl.stages.sweep import sweep as stage

    out.print(f"report: {stage(workspace, over).resolve()}", soft_wrap=True)


@app.command()
def validate(
    config: Config,
    override: Override = None,
    inputs: Annotated[
        bool,
        typer.Option(
            "--inputs",
            help="Inputs that are absent or unreadable here are mistakes too: files, first records of texts, local models.",
        ),
    ] = False,
) -> None:
    """Every mistake of a configuration at once; touches no GPU and loads no model.

    Example: `slmctl validate pipelines/rho-math-1b.yaml`
    """
    from slmctl.config.file import load_config
    from slmctl.stages.validate import validate as stage

    stage(load_config(config, override), config, inputs)


Texts = Annotated[list[str] | None, typer.Option(metavar="PATH", help="File or pattern; repeatable.", show_default=False)]


@app.command()
def init(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="The YAML file to write; one that is there is left as it is.")],
    curated: Texts = None,
    corpus: Texts = None,
    target: Texts = None,
    general: Texts = None,
    base_model: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Folder or Hub id of the base; without one a small base is made.")
    ] = None,
) -> None:
    """A commented configuration for your own texts, its sizes by theirs; without any, one with placeholders.

    `--curated`: a little of what the model should be good at. `--corpus`: the large noisy text. `--target`: held-out text of the
    first kind. `--general`: of another, to see what is lost. Files are .jsonl, .txt (also .gz, .zst) or .parquet; which fields
    are the text is guessed from the first records.

    Example: `slmctl init mine.yaml --curated curated.jsonl --corpus 'web/*.jsonl.gz' --target test.jsonl`
    """
    from slmctl.stages.init import Given, init

    given = {"curated": curated, "corpus": corpus, "target": target, "general": general}
    init(config, Given({name: paths for name, paths in given.items() if paths}, base_model))
    out.print(f"wrote {config}; next: slmctl validate {config} --inputs, then slmctl run {config}", soft_wrap=True)


@app.command()
def demo(
    output_dir: Annotated[Path, typer.Option(help="Where the demo's files go.")] = Path("runs/demo"),
    override: Override = None,
) -> None:
    """The whole pipeline on generated data with known noise, on a CPU in minutes; needs no network.

    Example: `slmctl demo`
    """
    with waiting(LOADING):
        from slmctl.stages.demo import demo as stage

    stage(output_dir, override or [])


def main(argv: list[str] | None = None) -> None:
    """Runs a command. Exits 0 on success, 2 on bad usage or configuration, 1 on failure, 130/143 when interrupted."""
    try:
        with raising():
            app(argv)
    except (SlmError, Interrupted) as e:
        _fail(str(e), e, e.exit_code)
    except Exception as e:  # whatever else: still one clear line
        if type(e).__name__ == "OutOfMemoryError":
            _fail(
                "the GPU's memory is full. Give a lower micro_batch (or batch_rows) and run again; that changes no result.",
                e,
                1,
            )
        if is_full(e):
            _fail("no space left on a disk. What was finished is kept; free some space and run again.", e, 1)
        if isinstance(e, PermissionError) and e.filename is not None:
            _fail(f"{e.filename}: {e.strerror}. Change its rights, or run as a user who may use it.", e, 1)
        _fail(f"unexpected {type(e).__name__}: {e}\nRun again with --debug for a traceback.", e, 1)


def _fail(message: str, e: BaseException, code: int) -> Any:
    """Of several ranks each tells its own error, but one alone tells what they have in common."""
    if debug:
        traceback.print_exception(e)
    same_here = isinstance(e, ConfigError) and os.environ.get("LOCAL_RANK", "0") != "0"
    if getattr(e, "told", False) or same_here:
        _let_the_first_speak()
    else:
        rank = os.environ.get("RANK", "0")
        stopped = isinstance(e, Interrupted)  # as it was asked to
        label = "" if stopped else "error: "
        err.print(f"{label}{f'rank {rank}: ' if rank != '0' else ''}{message}", style=None if stopped else "red", markup=False)
    sys.exit(code)


def _let_the_first_speak() -> None:
    """torchrun ends all ranks as soon as one has ended: one that has nothing to say waits until it is told to."""
    if os.environ.get("LOCAL_RANK", "0") != "0" and "TORCHELASTIC_RUN_ID" in os.environ:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(30)


def entry() -> None:
    """The command `slmctl`. A rank among several ends at once when it is done: what libraries' threads do while the
    interpreter is taken down could spoil its exit code, or wait for ranks that are gone."""
    code: Any = 0
    try:
        main()
    except SystemExit as e:
        code = e.code
    if "RANK" not in os.environ:
        sys.exit(code)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))
