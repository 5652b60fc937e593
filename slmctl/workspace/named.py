"""What a configuration names, texts and models, held against what is here. Nothing is fetched, and no model is loaded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

from slmctl.config.data import SourceConfig
from slmctl.config.pipeline import PipelineConfig
from slmctl.config.score import OWN_MODELS, ReferenceModel
from slmctl.corpus.first_records import empty_sets, wrong_records
from slmctl.corpus.source_files import files_of
from slmctl.corpus.unreadable import wrong_signatures
from slmctl.system.errors import SlmError
from slmctl.workspace.graph import key_of, sources_of, token_sets

RANDOM_BASE = (
    "the base has random weights: model.scratch.train is null. Give it tokens and lr, that reference and arms start from a model "
    "of the corpus."
)


# --- texts ---


def sources(config: PipelineConfig) -> Iterator[tuple[str, SourceConfig]]:
    """Every text source with its key path."""
    for key, found in _sets(config).items():
        for i, source in enumerate(found):
            yield key + (f".{i}" if len(found) > 1 else ""), source


def _sets(config: PipelineConfig) -> dict[str, list[SourceConfig]]:
    """The sources of every set by its key path."""
    return {key_of(name): sources_of(config, name) for name in token_sets(config)}


def missing_texts(config: PipelineConfig, look_inside: bool = False) -> list[str]:
    """Texts that this machine lacks, or cannot read; with `look_inside` also those whose first bytes are not what their names
    say."""
    missing = []
    for where, source in sources(config):
        try:
            found = files_of(source)
            missing += [f"{where}: {problem}" for problem in (wrong_signatures(found) if look_inside else ())]
        except SlmError as e:
            missing.append(f"{where}: {e}")
    return missing


def wrong_texts(config: PipelineConfig) -> list[str]:
    """What the first records of the texts, and of each held-out set, lack."""
    return [*wrong_records(sources(config)), *empty_sets(_sets(config))]


# --- models ---


def absent_models(config: PipelineConfig) -> list[str]:
    """Models that can be nothing but a folder here, and are none."""
    found = {where: path for where, (path, _) in _models(config).items() if not Path(path).is_dir()}
    return [
        f"{where}: {path} is no folder. Correct the path in the configuration, or give it with -o."
        for where, path in found.items()
        if path.startswith((".", "/", "~")) or path.count("/") > 1
    ]


def hub_names(config: PipelineConfig) -> list[str]:
    """Models that are named as a folder may be, and are none here."""
    found = {where: path for where, (path, _) in _models(config).items() if not Path(path).is_dir()}
    return [
        f"{w}: there is no folder {p} here, so it is a model of the Hub, which was not asked"
        for w, p in found.items()
        if "/" not in p
    ]


def random_base(config: PipelineConfig) -> list[str]:
    """Says so where the base has learnt nothing."""
    scratch = config.model.scratch
    return [RANDOM_BASE] if scratch is not None and scratch.train is None else []


def wrong_models(config: PipelineConfig) -> list[str]:
    """Local models whose files do not hold the weights that their configuration describes, by names and shapes; those on the
    Hub are not looked at."""
    from slmctl.model.loading import ModelSource, check_source

    here = {where: ModelSource(*model) for where, model in _models(config).items() if Path(model[0]).is_dir()}
    return _problems({where: partial(check_source, source) for where, source in here.items()})


def wrong_tokenizers(config: PipelineConfig) -> list[str]:
    """Tokenizers of local models that cannot be used."""
    from slmctl.corpus.tokenizer import load_tokenizer

    model = config.model
    source = model.tokenizer or model.path
    if source is None or not Path(source).is_dir():
        return []
    gguf_file = model.gguf_file if model.tokenizer is None else None
    return _problems({"model.tokenizer" if model.tokenizer else "model": partial(load_tokenizer, source, gguf_file)})


def _models(config: PipelineConfig) -> dict[str, tuple[str, str | None]]:
    """The models that a pipeline does not make itself, path and GGUF file, by the key that names them."""
    base = config.model
    found = {"model": (str(base.path), base.gguf_file)} if base.scratch is None else {}
    for name, given in config.score.references.items():
        if given not in OWN_MODELS:
            model = ReferenceModel(path=given) if isinstance(given, str) else given
            found[f"score.references.{name}"] = (model.path, model.gguf_file)
    return found


def _problems(looks: Mapping[str, Callable[[], object]]) -> list[str]:
    """What each look raises, behind its key."""
    found = []
    for where, look in looks.items():
        try:
            look()
        except SlmError as e:
            found.append(f"{where}: {e}")
    return found
