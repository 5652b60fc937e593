"""The application: every command by its name, in the order in which `--help` shows them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

from slmctl import __version__
from slmctl.cli import data, pipeline, results, training
from slmctl.system.console import out

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
"""Whether an error shows its traceback."""

COMMANDS: dict[str, Callable[..., None]] = {
    "prepare": data.prepare,
    "train-base": training.train_base,
    "train-ref": training.train_ref,
    "score": data.score,
    "inspect": data.inspect,
    "pretrain": training.pretrain,
    "eval": results.evaluate,
    "report": results.report,
    "compare": results.compare,
    "run": pipeline.run,
    "status": pipeline.status,
    "sweep": pipeline.sweep,
    "validate": pipeline.validate,
    "init": pipeline.init,
    "demo": pipeline.demo,
}
for _name, _command in COMMANDS.items():
    app.command(_name)(_command)


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
