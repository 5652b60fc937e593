"""validate: what can be said of a configuration without running it. Touches no GPU and loads no model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from slmctl.config import PipelineConfig, SourceConfig
from slmctl.config_eval import TaskConfig
from slmctl.corpus.sources import files_of
from slmctl.corpus.text_files import is_file
from slmctl.errors import SlmError
from slmctl.evaluation.general_suite import result_names


def sources_of(config: PipelineConfig) -> Iterator[tuple[str, SourceConfig]]:
    """Every text source with its key path."""
    sets = {"curated": config.data.curated, "corpus": config.data.corpus}
    sets |= {f"heldout.{n}": s for n, s in config.data.heldout.items()}
    for name, sources in sets.items():
        for i, source in enumerate(sources):
            yield f"data.{name}" + (f".{i}" if len(sources) > 1 else ""), source


def missing_inputs(config: PipelineConfig) -> list[str]:
    """Files that the configuration names and this machine lacks."""
    missing = []
    for where, source in sources_of(config):
        try:
            files_of(source)
        except SlmError as e:
            missing.append(f"{where}: {e}")
    result_names(config.eval.tasks)
    for i, task in enumerate(config.eval.tasks):
        key, path = ("path", task.path) if isinstance(task, TaskConfig) else ("data", task.data)
        try:
            if path is not None and not (is_file(path) or Path(path).is_dir()):
                missing.append(f"eval.tasks.{i}.{key}: {path} does not exist.")
        except SlmError as e:
            missing.append(f"eval.tasks.{i}.{key}: {e}")
    return missing
