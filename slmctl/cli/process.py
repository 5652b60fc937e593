"""The process of a command: how errors and signals end it, alone or as one of several ranks."""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from typing import Any

from slmctl.cli import application
from slmctl.system.console import err
from slmctl.system.errors import ConfigError, Interrupted, SlmError
from slmctl.system.files import is_full
from slmctl.system.signals import raising


def main(argv: list[str] | None = None) -> None:
    """Runs a command. Exits 0 on success, 2 on bad usage or configuration, 1 on failure, 130/143 when interrupted."""
    try:
        with raising():
            application.app(argv)
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
    if application.debug:
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
