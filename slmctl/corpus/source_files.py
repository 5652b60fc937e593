"""The files of a source, or all that is wrong with them."""

from __future__ import annotations

import glob
from pathlib import Path

from slmctl.config.data import SourceConfig
from slmctl.corpus.file_patterns import dataset_problems, expand, folder
from slmctl.corpus.text_files import is_folder, kind_of
from slmctl.corpus.unreadable import one_message
from slmctl.system.errors import InputError

MEND = "Correct the path in the configuration, or give it with -o."


def files_of(source: SourceConfig) -> list[str]:
    """The files of a source, globs expanded and sorted. Raises `InputError` where there are none, and where some that are
    there cannot be read, naming all of these."""
    found, problems = look_for(source)
    if problems:
        raise InputError(one_message(problems, MEND))
    return found


def look_for(source: SourceConfig) -> tuple[list[str], list[str]]:
    """The files of a source, and a line on each pattern without a file and each file that cannot be read; of a dataset in a
    folder the latter alone."""
    found: list[str] = []
    problems = dataset_problems(source.hub) if source.hub is not None and Path(source.hub).is_dir() else []
    for pattern in source.path or []:
        matches, unreadable = expand(pattern)
        found += matches
        problems += unreadable
        if not matches and not unreadable:
            what = "matches no file" if glob.has_magic(pattern) else "does not exist"
            problems.append(f"{pattern} {folder(pattern) if is_folder(pattern) else what}")
    for file in found:
        try:
            kind_of(file)
        except InputError as e:
            problems.append(str(e).rstrip("."))
    return list(dict.fromkeys(found)), list(dict.fromkeys(problems))
