"""The configuration reference, made from the field docstrings: `python -m slmctl.config.documentation docs/configuration.md`."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from slmctl.config import evaluation as config_eval
from slmctl.config.data import DataConfig, SourceConfig
from slmctl.config.decides import RULES, Decides, declared
from slmctl.config.model import ModelConfig, ScratchConfig
from slmctl.config.pipeline import PipelineConfig
from slmctl.config.score import ReferenceModel, ScoreConfig
from slmctl.config.selection import PartConfig, ScheduleConfig, SelectionConfig, WeightingConfig
from slmctl.config.training import PretrainConfig, ReferenceConfig, TrackingConfig, TrainingConfig

BEGIN, END = "<!-- configuration reference: begin (make docs) -->", "<!-- configuration reference: end -->"

SECTIONS: tuple[tuple[str, type[BaseModel], str], ...] = (
    ("top level", PipelineConfig, ""),
    ("model", ModelConfig, ""),
    ("model.scratch", ScratchConfig, "A tokenizer and a Llama-style base, made on the spot."),
    ("data", DataConfig, "`curated`, `corpus` and each held-out set are a text source or a list of them."),
    ("a text source", SourceConfig, ""),
    (
        "pretrain, reference and model.scratch.train",
        TrainingConfig,
        "`reference` defaults to 3 epochs, lr 5e-5 and 65,536 batch tokens.",
    ),
    ("reference, besides", ReferenceConfig, ""),
    ("pretrain, besides", PretrainConfig, ""),
    ("selection", SelectionConfig, ""),
    ("selection.schedule", ScheduleConfig, ""),
    ("selection.weighting", WeightingConfig, ""),
    (
        "a part in selection.parts",
        PartConfig,
        "`[{criterion: ref_loss, ratio: 0.7}, {criterion: ref_entropy, ratio: 0.7}]`",
    ),
    ("score", ScoreConfig, ""),
    ("a model of score.references", ReferenceModel, ""),
    ("eval", config_eval.EvalConfig, ""),
    ("a task of one's own in eval.tasks", config_eval.TaskConfig, "`[{name: mine, path: mine.jsonl}]`"),
    ("a suite in eval.tasks", config_eval.SuiteConfig, "`[rho-math]`, or `[{suite: rho-math, data: tasks}]`"),
    (
        "a task of lm-evaluation-harness in eval.tasks",
        config_eval.HarnessConfig,
        "`[arc_easy]`, or `[{harness: arc_easy, shots: 5}]`",
    ),
    ("tracking", TrackingConfig, ""),
)


MARKS: dict[Decides | None, str] = {
    Decides.NOTHING: "Changes no result",
    Decides.ROUNDING: "Changes results by rounding at most",
    Decides.EVALUATION: "Decides the evaluation alone",
}
"""What a field's description ends with. In `eval` everything decides the evaluation, and is not marked so."""


def markdown() -> str:
    """One heading and table a section: key, type, default and what it means."""
    shared = set(TrainingConfig.model_fields)
    blocks = []
    for title, model, note in SECTIONS:
        fields = model.model_fields
        if model in (ReferenceConfig, PretrainConfig):
            fields = {k: f for k, f in fields.items() if k not in shared}
        lines = [f"### {title}", "", *([note, ""] if note else []), "| key | type | default | |", "|---|---|---|---|"]
        told = {k: " ".join((f.description or "").split()).replace("|", r"\|") + _mark(model, k) for k, f in fields.items()}
        lines += [f"| `{k}` | {_type(f)} | {_default(f)} | {told[k]} |" for k, f in fields.items()]
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def _mark(model: type[BaseModel], name: str) -> str:
    kind = declared(model)[name]
    if kind not in MARKS or (kind == Decides.EVALUATION and model.__module__ == config_eval.__name__):
        return ""
    rules = "".join(f"; {r.told}" for r in RULES if name in r.fields)
    return f" *{MARKS[kind]}{rules}.*"


def _type(field: Any) -> str:
    if "Discriminator" in str(field.annotation):
        return "list of name or mapping"
    text = str(field.annotation if not isinstance(field.annotation, type) else field.annotation.__name__)
    text = re.sub(r"typing\.|slmctl\.config\.(?:\w+\.)?|<class '([^']*)'>", r"\1", text)
    text = re.sub(r"Annotated\[(\w+(?:\[[\w, ]*\])?), (?:[^\[\]]|\[[^\[\]]*\])*\]", r"\1", text)
    text = re.sub(r"Literal\[([^\]]*)\]", lambda m: m.group(1).replace("', '", "' or '").replace("'", ""), text)
    text = re.sub(r"^Union\[([^,\[\]]+), ([^,\[\]]+)\]$", r"\1 or \2", text)
    text = re.sub(r" ?\| ?None", ", or null", text)
    text = re.sub(r"^Optional\[(.*)\]$", r"\1, or null", text)
    return text.replace("|", "or").replace("Config", "").replace("dict[str, ", "name to ").replace("]", "").replace("[", " of ")


def _default(field: Any) -> str:
    value = field.default
    if value is PydanticUndefined:
        return "required"
    if isinstance(value, BaseModel):
        return "see below"
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    shown = str(list(value) if isinstance(value, tuple) else value).replace("'", "").replace("\n", "\\n")
    return f"`{shown}`"


def update(text: str) -> str:
    """`text` with the part between the two marks replaced."""
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n\n{markdown()}\n\n{END}{after}"


if __name__ == "__main__":
    document = Path(sys.argv[1])
    document.write_text(update(document.read_text(encoding="utf-8")), encoding="utf-8")
