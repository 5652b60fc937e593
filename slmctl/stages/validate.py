"""validate: what can be said of a configuration without running it. Touches no GPU and loads no model."""

from __future__ import annotations

from collections.abc import Iterator

from slmctl.config import PipelineConfig, SourceConfig
from slmctl.corpus.sources import files_of
from slmctl.corpus.template import Template
from slmctl.errors import SlmError


def sources_of(config: PipelineConfig) -> Iterator[tuple[str, SourceConfig]]:
    """Every text source with its key path."""
    sets = {"curated": config.data.curated, "corpus": config.data.corpus}
    sets |= {f"heldout.{n}": s for n, s in config.data.heldout.items()}
    for name, sources in sets.items():
        for i, source in enumerate(sources):
            yield f"data.{name}" + (f".{i}" if len(sources) > 1 else ""), source


def template_mistakes(config: PipelineConfig) -> list[str]:
    """Templates that are none."""
    mistakes = []
    templates = [(f"{where}.text", source.text) for where, source in sources_of(config)]
    for i, task in enumerate(config.eval.tasks):
        templates += [(f"eval.tasks.{i}.prompt", task.prompt), (f"eval.tasks.{i}.answer", task.answer)]
    for where, text in templates:
        try:
            Template(text)
        except SlmError as e:
            mistakes.append(f"{where}: {e}")
    return mistakes


def missing_inputs(config: PipelineConfig) -> list[str]:
    """Files that the configuration names and this machine lacks."""
    missing = []
    for where, source in sources_of(config):
        try:
            files_of(source)
        except SlmError as e:
            missing.append(f"{where}: {e}")
    return missing
