"""What a stage's result is made from follows from what fields declare: each field is changed, and the inputs that change are
those of the stages that it decides, and no others. So what decides nothing makes nothing anew, and what decides the evaluation
only that.

The fields are those of the declarations: a new one without a value to try fails here.
"""

from __future__ import annotations

from typing import Any

import pytest

from slmctl.config import evaluation as config_eval
from slmctl.config.data import DataConfig, SourceConfig
from slmctl.config.decides import Decides, by_content, declared, result_settings
from slmctl.config.model import ModelConfig, ScratchConfig
from slmctl.config.pipeline import PipelineConfig
from slmctl.config.score import ScoreConfig
from slmctl.config.selection import PartConfig, ScheduleConfig, SelectionConfig, WeightingConfig
from slmctl.config.training import ArmConfig, PretrainConfig, ReferenceConfig, TrackingConfig, TrainingConfig
from slmctl.config.types import Section
from slmctl.workspace import identity

TASK = {"name": "mine", "path": "{texts}/target.jsonl", "prompt": "{text}", "answer": "{text}", "shots": 1}
SUITE = {"suite": "rho-math", "data": "{texts}"}
HARNESS = {"harness": "arc_easy"}
TRAINING: dict[str, Any] = {
    **{"tokens": 4096, "steps": 9, "epochs": 0.5, "seed": 7, "batch_tokens": 1024, "lr": 1e-4, "min_lr_ratio": 0.5},
    **{"schedule": "linear", "warmup": 1, "wsd_decay": 0.5, "weight_decay": 0.0, "betas": [0.8, 0.9], "eps": 1e-6},
    **{"grad_clip": 0.5, "precision": "bfloat16", "skip_spikes": 5.0, "micro_batch": 8, "sharding": "replicate"},
    **{"compile": False, "activation_checkpointing": "full", "on_nonfinite": "skip", "eval_every": 5, "eval_tokens": 64},
    **{"save_every": 1, "keep_last": 5, "keep_every": 1000, "log_every": 3, "loader_threads": 0, "hang_timeout": 60},
    **{"profile": [7, 7], "alignment_check": "warn"},
}
VALUES: dict[type, tuple[str, dict[str, Any]]] = {
    TrainingConfig: ("model.scratch.train", TRAINING),
    ReferenceConfig: ("reference", {**TRAINING, "mix": 0.3, "keep_best_on": "target"}),
    ArmConfig: ("pretrain", TRAINING),
    PretrainConfig: ("pretrain", TRAINING),
    SelectionConfig: (
        "pretrain.arms.slm.selection",
        {
            **{"criterion": "random", "ratio": 0.5, "group_rows": 4, "scope": "global", "reference": "curated"},
            **{"sets": {"reference": "curated"}, "weights": {"a": 2.0}, "options": {"on": "entropy"}, "unselected_weight": 0.1},
        },
    ),
    ScheduleConfig: (
        "pretrain.arms.slm.selection.schedule",
        {"kind": "cosine", "start": 0.9, "warmup": 0.1, "until": 0.9},
    ),
    WeightingConfig: ("pretrain.arms.slm.selection.weighting", {"soft": "softmax", "temperature": 2.0}),
    PartConfig: (
        "pretrain.arms.slm.selection.parts",
        {
            **{"criterion": "own_loss", "ratio": 0.5, "weight": 2.0, "sets": {"reference": "curated"}},
            "options": {"on": "entropy"},
        },
    ),
    ScratchConfig: (
        "model.scratch",
        {
            **{"vocab_size": 290, "tokenizer_sample_mb": 3, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4},
            **{"intermediate_size": 48, "tie_word_embeddings": False},
        },
    ),
    ModelConfig: ("model", {"attn_implementation": "eager"}),
    SourceConfig: (
        "data.corpus",
        {"text": "{text}!", "txt_split": "line", "max_documents": 5, "on_bad": "skip", "parse_special_tokens": True},
    ),
    DataConfig: ("data", {"seq_len": 16, "intra_document_mask": True, "bos": "always", "shard_bytes": 9000}),
    ScoreConfig: ("score", {"entropy": False, "dtype": "float32", "precision": "bfloat16", "batch_rows": 3}),
    TrackingConfig: ("tracking", {"tensorboard": True, "wandb_project": "tiny"}),
    PipelineConfig: (
        "",
        {
            **{"name": "another", "seed": 5, "device": "auto"},
            **{"accept_mismatch": ["reference:base.config.json"], "missing_inputs": "accept"},
        },
    ),
    config_eval.EvalConfig: (
        "eval",
        {
            **{"target": "general", "heldout": ["target"], "contamination": "off", "contamination_overlap": 0.6},
            **{"precision": "bfloat16", "batch_rows": 3, "level": 0.9, "checkpoints": False, "dynamics": False},
            **{"dynamics_tokens": 512, "highlighted": 3, "rolling": False},
        },
    ),
    config_eval.TaskConfig: (
        "eval.tasks",
        {
            **TASK,
            **{
                "name": "other",
                "path": "{texts}/general.jsonl",
                "prompt": "{text}?",
                "answer": "{text}.",
                "shots": 2,
                "limit": 3,
            },
            **{"max_new_tokens": 9, "batch_size": 3},
        },
    ),
    config_eval.SuiteConfig: (
        "eval.tasks",
        {
            **{"suite": "rho-general", "data": "{texts}/..", "only": ["gsm8k"], "shots": 2, "limit": 3, "max_new_tokens": 9},
            "batch_size": 3,
        },
    ),
    config_eval.HarnessConfig: (
        "eval.tasks",
        {"harness": "boolq", "data": "{texts}/target.jsonl", "shots": 2, "limit": 3, "seed": 5, "batch_size": 3},
    ),
}
"""Where a section is, and a value to try of each of its fields."""
MOVED = {"output_dir", "store_dir"}
"""Fields that say where results lie: test_what_decides.py moves them."""
FIRST = {config_eval.TaskConfig: TASK, config_eval.SuiteConfig: SUITE, config_eval.HarnessConfig: HARNESS}
KINDS = {
    Decides.TOKENS: {"tokens", "weights"},
    Decides.WEIGHTS: {"weights"},
    Decides.SCORES: {"scores"},
    Decides.EVALUATION: {"evaluation"},
    Decides.FINDINGS: set(),
    Decides.ROUNDING: set(),
    Decides.NOTHING: set(),
}
RECORDED = {"eval_every", "eval_tokens", "save_every", "keep_last", "keep_every"}
"""Of a run: what they decide of the evaluation is an input as the run has left it, its curve and its checkpoints."""
ALSO = {
    (DataConfig, "intra_document_mask"): {"scores", "evaluation"},
    (ModelConfig, "attn_implementation"): {"scores", "evaluation"},
    (PipelineConfig, "seed"): {"evaluation"},
}
"""What comes after is decided too; of these it shows in its own inputs."""


def cases():
    for section, kinds in ((s, declared(s)) for s in sections()):
        for name, kind in kinds.items():
            if kind is not None and name not in by_content(section) | MOVED:
                yield pytest.param(section, name, kind, id=f"{section.__name__}-{name}")


def sections(parent=Section):
    for one in parent.__subclasses__():
        if one.__module__.startswith("slmctl.config."):
            yield one
            yield from sections(one)


def inputs(workspace) -> dict[str, Any]:
    """What each kind of result is made from, as far as it is the configuration's."""
    settings = workspace.config
    common = workspace.common_inputs()
    scratch, reference = workspace.base_inputs(), result_settings(settings.reference)
    arms = {name: result_settings(arm) for name, arm in settings.pretrain.arms.items()}
    return {
        "tokens": {n: workspace.set_inputs(n) for n in ("curated", "corpus", "heldout/target")},
        "weights": [common, scratch, reference, arms],
        "scores": workspace.score_inputs(),
        "evaluation": identity.measuring(settings),
    }


BESIDE = {
    (SelectionConfig, "weights"): {"criterion": "excess_of_several", "sets": {"a": "curated"}},
    (SelectionConfig, "options"): {"criterion": "threshold"},
    (PartConfig, "options"): {"criterion": "threshold"},
}
"""What a field needs beside it."""


def opened(scored, configured, section, over):
    texts, where = scored.root.parent / "texts", VALUES[section][0]
    if section is PartConfig:
        where, over = where.removesuffix(".parts"), {"criterion": "blend", "parts": [over]}
    if where == "eval.tasks":
        over = {"eval": {"tasks": [placed({**FIRST[section], **over}, texts)]}}
    for part in reversed(where.split(".") if where and where != "eval.tasks" else []):
        over = {part: over}
    workspace = configured(over)
    workspace.models.kept_tokenizer = scored.tokenizer()
    return workspace


def placed(task, texts):
    return {k: v.replace("{texts}", str(texts)) if isinstance(v, str) else v for k, v in task.items()}


def test_every_field_has_a_value_to_try():
    for section, kinds in ((s, declared(s)) for s in sections()):
        wanted = {n for n, kind in kinds.items() if kind is not None} - by_content(section) - MOVED
        assert wanted <= set(VALUES[section][1] if section in VALUES else ()), f"{section.__name__}: give a value to try"


@pytest.mark.parametrize(("section", "field", "kind"), cases())
def test_a_field_changes_the_inputs_of_what_it_decides_and_no_others(section, field, kind, scored, configured):
    value = VALUES[section][1][field]
    over = {field: value, **({"eval_every": 1} if field == "keep_best_on" else {})}
    beside = BESIDE.get((section, field), {})
    before, after = (inputs(opened(scored, configured, section, {**beside, **given})) for given in ({}, over))
    changed = {k for k in before if before[k] != after[k]}
    wanted = KINDS[kind]
    if field in RECORDED:
        wanted = set()
    also = ALSO.get((section, field), set())
    assert changed <= wanted | also, f"{section.__name__}.{field} decides {kind.value}, and changes the inputs of {changed}"
    assert bool(changed) == bool(wanted), f"{section.__name__}.{field} decides {kind.value}, and no input changes"
    assert also <= changed
