"""Which tests `make check` leaves out, and which files go first: one table."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

SLOW: tuple[str, ...] = (
    "cli/test_cli.py",
    "distributed",
    "training/test_layout.py::test_compiled_blocks_give_the_same_losses",
    "remote",
    "stages",
    "training/test_resume_rules.py",
    "training/test_training_loop.py",
    "training/test_long_runs.py",
    "training/test_whole_pipeline.py",
    "report/test_report_page.py",
    "report/test_what_is_said.py",
    "report/test_browser.py",
    "report/test_picture.py::test_a_report_becomes_a_picture_of_few_colours",
    "report/test_only_what_was_checked.py::test_nothing_that_was_left_out_is_called_noise",
    "report/test_card.py::test_a_directory_with_a_card_loads_as_the_card_says",
    "evaluation/test_intervals.py",
    "evaluation/test_answer_judging.py::test_judging_is_bounded_whatever_a_model_writes",
    "store/test_old_readers.py",
    "store/test_every_bit.py",
    "store/test_windows.py::test_rows_are_those_of_the_order",
    "training/test_what_decides.py",
    "training/test_every_criterion.py",
    "selection/test_criteria.py::test_a_criterion_is_its_formula",
    "training/test_thread_number.py",
    "training/test_auto_precision.py",
    "training/test_checkpoints.py",
    "training/test_dropout.py",
    "training/test_guard.py::test_a_process_that_hangs_ends_with_its_stacks_written",
    "store/test_threads.py::test_any_number_of_threads_read_what_the_concatenation_holds",
    "store/test_open_to_other_tools.py",
    "model/test_bos_losses.py",
    "system/test_number_of_threads.py::test_every_entry_sets_it_before_pytorch_is_imported",
)
"""Folders, files and single tests (`FILE::test_name`, with all its parameters), the longest first. Their files are started in
this order, so that no worker is left with a long one at the end; all others follow."""

FAST: tuple[str, ...] = (
    "cli/test_cli.py::test_version_and_help",
    "cli/test_cli.py::test_bad_usage_exits_2",
    "cli/test_cli.py::test_every_shipped_pipeline_is_valid",
    "stages/test_compare.py",
    "stages/test_inspect.py",
    "stages/test_messages_of_changes.py",
    "stages/test_validate.py",
    "stages/test_which_worker.py",
)
"""Files and tests of those folders and files that are not slow."""


def check_entries(entries: Iterable[str], folder: Path) -> None:
    """Raises ValueError where an entry names a file, folder or test that is not in `folder`."""
    for entry in entries:
        file, _, test = entry.partition("::")
        found = (folder / file).exists()
        if found and test:
            found = re.search(rf"^\s*def {test}\(", (folder / file).read_text(encoding="utf-8"), re.MULTILINE) is not None
        if not found:
            raise ValueError(f"tests/slow_tests.py: {entry} is not there. Correct the table, or take the entry out.")


def is_slow(file: Path, test: str, slow: Iterable[str] = SLOW, fast: Iterable[str] = FAST) -> bool:
    """Whether the table has the test of this name in this file (a path relative to `tests/`); the nearest entry decides."""
    for entry in (f"{file.as_posix()}::{test}", *(part.as_posix() for part in (file, *file.parents))):
        if entry in fast or entry in slow:
            return entry in slow
    return False


def rank(file: Path) -> int:
    """The place of a file among those that go first; len(SLOW) of all others."""
    parts = {part.as_posix() for part in (file, *file.parents)}
    return next((n for n, entry in enumerate(SLOW) if entry.partition("::")[0] in parts), len(SLOW))
