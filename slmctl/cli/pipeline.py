"""Commands over whole pipelines: run, status, sweep, validate, init, demo."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from slmctl.cli.options import LOADING, Config, Override, open_workspace
from slmctl.system.console import out, waiting
from slmctl.system.errors import ConfigError

Texts = Annotated[list[str] | None, typer.Option(metavar="PATH", help="File or pattern; repeatable.", show_default=False)]


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
    workspace = open_workspace(config, override)
    with waiting(LOADING):
        from slmctl.stages.run import run as stage

    out.print(f"report: {stage(workspace).resolve()}", soft_wrap=True)


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
    workspace = open_workspace(config, override)
    with waiting(LOADING):
        from slmctl.stages.sweep import sweep as stage

    out.print(f"report: {stage(workspace, over).resolve()}", soft_wrap=True)


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
