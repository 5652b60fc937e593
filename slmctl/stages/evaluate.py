"""eval: base, reference, every arm and every kept checkpoint on held-out sets and tasks; what they differ in, and why.

Writes eval/results.json, which holds all that the table, the report, `compare` and the model cards show.
"""

from __future__ import annotations

from functools import cache, partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from slmctl.comparison import arms as compare_arms
from slmctl.comparison.alarms.alarms import alarms
from slmctl.comparison.costs import ForwardFlops, forward_flops
from slmctl.comparison.diagnose import Diagnosis
from slmctl.comparison.measure import Checkpoint, Measure, checkpoints_of, sources_of
from slmctl.comparison.provenance import made_on, parameters, trained
from slmctl.comparison.reach import VERSION as REACHING
from slmctl.comparison.reach import Comparison, compare_seeds, compare_with_control, curves_of
from slmctl.comparison.results import (
    RESULTS,
    are_current,
    begin_results,
    begun_from,
    publish_results,
    run_of,
    take_back_results,
)
from slmctl.comparison.task_checks import check_tasks
from slmctl.comparison.token_text import token_texts
from slmctl.config.decides import Decides, decided
from slmctl.config.evaluation import SuiteConfig, TaskConfig
from slmctl.config.pipeline import ReferenceModel
from slmctl.config.sweeps import read_sweeps
from slmctl.corpus.text_files import content_id, is_folder
from slmctl.evaluation.generation import VERSION
from slmctl.evaluation.harness_data import data_files
from slmctl.evaluation.intervals import METHOD
from slmctl.evaluation.tasks import TASKS
from slmctl.model.loading import ModelSource, empty_model, hidden_size
from slmctl.report.highlighted import highlights
from slmctl.report.model_cards import write_cards
from slmctl.store import manifest as manifests
from slmctl.store.manifest import library_versions
from slmctl.store.order import mix_seed
from slmctl.system.console import say, waiting
from slmctl.system.errors import InputError
from slmctl.training.environment import describe_environment
from slmctl.training.ranks import Ranks, joined
from slmctl.training.telemetry import finite, read_log
from slmctl.workspace import contamination
from slmctl.workspace.folders import DONE
from slmctl.workspace.precisions import chosen, precision_in, tell, with_precision
from slmctl.workspace.workspace import Workspace

SCHEMA = 2
_OF_TEXTS = {"contamination", "contamination_overlap"}
"""Settings that decide what is said of the texts, which is an input by itself, and no figure of a model."""


def evaluate(workspace: Workspace) -> None:
    """Measures whatever is trained, and writes results.json. What was measured before a stop is not measured again. Of several
    ranks the first one does it, and the others wait.

    Raises `ConfigError` for what is wrong with eval.tasks, before anything is measured.
    """
    if dist.is_initialized():  # within a run of several, on its first rank
        _evaluate(workspace)
        return
    with joined(workspace.device) as ranks:
        ranks.first(lambda: _evaluate(workspace))


def _evaluate(workspace: Workspace) -> None:
    config = workspace.config
    check_tasks(config)
    workspace.accepted = []
    arms = _hold_models(workspace)
    if not arms:
        raise InputError("no arm is trained to its end yet. Run `slmctl pretrain` first.")
    sources = sources_of(workspace)
    checkpoints = {a: checkpoints_of(workspace, a) for a in arms}
    with waiting("eval: comparing texts and models with what was measured before"):
        common, inputs = inputs_of(workspace, sources, checkpoints)
    notes, leaked = inputs["notes"], inputs["contamination"]
    precision = str(precision_in(common))
    if are_current(workspace, inputs):
        workspace.begin(workspace.evaluation, inputs, RESULTS)  # to record what was let through
        say("eval: complete, skipped")
        return
    if take_back_results(workspace, inputs, partial(write_cards, workspace)):
        return
    tell("eval", config.eval.precision, precision, workspace.device, partial(hidden_size, sources["base"]))
    with waiting("eval: opening sets and models"):
        measure = Measure(workspace, common, precision)  # whatever is wrong is told before anything is measured
        diagnosis = Diagnosis(workspace, measure, arms)
        flops = flops_of(workspace, sources)
    notes = [*notes, *measure.task_notes()]
    begin_results(workspace, inputs)
    results: dict[str, Any] = {
        **{"schema": SCHEMA, "pipeline": config.name, "seed": config.seed, "target": config.eval.target},
        **{"level": config.eval.level, "notes": notes, "versions": library_versions(), "threads": None, "models": {}, "arms": {}},
        "contamination": leaked,
        "sets": {n: {"content": content} for n, content in workspace.heldout_hashes().items()},
        "made_on": None,
        "precisions": {"evaluation": precision, **compare_arms.precisions(workspace)},
    }
    for name, source in sources.items():
        kind = name if name in ("base", "reference") else "arm"
        found = measure.model(name, source, diagnosis if name == "base" else None)
        results["models"][name] = {
            **{"kind": kind, "parameters": parameters(source), "trained": trained(workspace, name)},
            **found,
        }
    for arm in arms:
        facts = compare_arms.arm_facts(workspace, arm, forward_flops(empty_model(sources[arm]), config.data.seq_len))
        facts["checkpoints"] = []
        model = cache(partial(measure.load, sources[arm]))  # of the arm's own shape, whatever the base is now
        for one in checkpoints[arm] if config.eval.checkpoints or config.eval.dynamics else []:
            figures = measure.checkpoint(one, model, diagnosis)
            facts["checkpoints"].append({"step": one.step, **seen_at(workspace, arm, one.step), **figures})
        results["arms"][arm] = facts
    results["threads"] = torch.get_num_threads() if workspace.device == "cpu" else None
    results["made_on"] = made_on([describe_environment(Ranks(), workspace.device)])
    with waiting("eval: intervals, differences and diagnostics"):
        shown = _conclude(workspace, measure, diagnosis, results, flops)
        results = finite(results)
        results["alarms"] = alarms(results)
    with waiting("eval: writing model cards"):
        write_cards(workspace, results)
    publish_results(workspace, inputs, results, shown)  # last: it says that all is done


def _hold_models(workspace: Workspace) -> list[str]:
    """Keeps others from training or moving aside what is measured. Returns the arms that are trained to their end."""

    def held(directory: Path) -> bool:
        if (directory / DONE).is_file():
            workspace.locks.hold(str(directory.relative_to(workspace.root)))
        return (directory / DONE).is_file()

    for directory in (workspace.base, workspace.reference):
        held(directory)
    return [a for a in workspace.config.pretrain.arms if held(workspace.arm(a))]


def inputs_of(
    workspace: Workspace, sources: dict[str, ModelSource], checkpoints: dict[str, list[Checkpoint]]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """All that figures of a model depend on, but for the model; and all that the results depend on. `checkpoints` are by arm."""
    arms, common = list(checkpoints), _common_inputs(workspace, _precision(workspace, sources["base"]))
    return common, {
        **common,
        "models": {n: workspace.fingerprint(s) for n, s in sources.items()},
        "runs": {a: run_of(workspace, a) for a in arms},
        "checkpoints": {a: [c.step for c in found] for a, found in checkpoints.items()},
        "scores": _score_hashes(workspace),
        "sweeps": read_sweeps(workspace.root),
        "notes": [
            *[note for arm in arms for note in compare_arms.warn_of_changes(workspace, arm)],
            *compare_arms.warn_of_precisions(workspace, arms),
        ],
        "contamination": contamination.facts(contamination.resolve(workspace)),
        "reaching": REACHING,
    }


def _conclude(
    workspace: Workspace, measure: Measure, diagnosis: Diagnosis, results: dict[str, Any], flops: dict[str, ForwardFlops]
) -> dict[str, Any]:
    """Adds to the results what follows from the measurements. Returns the highlights."""
    config, arms, models = workspace.config, results["arms"], results["models"]
    target = config.eval.target
    results["costs"] = compare_arms.costs(workspace, flops)
    results["differences"] = compare_arms.loss_differences(measure, models, arms)
    results["task_differences"] = compare_arms.task_differences(measure, models, arms)
    results["seeds"] = compare_arms.seeds(arms, models, target)
    curves, goals = curves_of(measure, arms, models, target), {a: models[a]["heldout"][target]["loss"] for a in arms}
    seed = mix_seed("intervals", config.seed)
    how = Comparison(curves, results["costs"], config.score.references, config.eval.level, seed)
    compare_with_control(arms, goals, how)
    compare_seeds(results["seeds"], arms, goals, how)
    results["sweeps"] = compare_arms.sweeps(workspace, arms, models, target)
    last = {a: f"{a}@{f['checkpoints'][-1]['step']}" for a, f in arms.items() if f["checkpoints"]}
    texts = vocabulary_texts(workspace)
    for arm in arms:
        arms[arm]["kinds"] = diagnosis.kinds(arm, last.get(arm), texts)
    results["diagnostics"] = diagnosis.results({a: arms[a] for a in last}, target)
    steps = {a: arms[a]["checkpoints"][-1]["step"] for a in last}
    return highlights(diagnosis, last, steps)


def _precision(workspace: Workspace, base: ModelSource) -> str:
    """What results that are there, or half made, were measured in, where `auto` leaves that open."""
    begun = precision_in(begun_from(workspace)) if workspace.config.eval.precision == "auto" else workspace.config.eval.precision
    return begun or chosen(workspace.device, partial(hidden_size, base), "bfloat16")


def _common_inputs(workspace: Workspace, precision: str) -> dict[str, Any]:
    """All that figures of a model depend on, but for the model."""
    corpus = workspace.open_tokens("corpus")
    return {
        "schema": SCHEMA,
        "intervals": METHOD,
        "corpus": corpus.manifest.content_hash,
        **with_precision(_settings(workspace), precision),
        "heldout": workspace.heldout_hashes(),
        "tasks": _task_inputs(workspace),
        "curated": workspace.open_tokens("curated").manifest.content_hash,
    }


def _settings(workspace: Workspace) -> dict[str, Any]:
    """What of the configuration decides figures, given models, texts and tasks."""
    config = workspace.config
    return {
        "settings": {k: v for k, v in decided(config.eval, Decides.EVALUATION).items() if k not in _OF_TEXTS},
        "seed": config.seed,
        "intra_document_mask": config.data.intra_document_mask,
        "attn_implementation": config.model.attn_implementation,
    }


def _score_hashes(workspace: Workspace) -> dict[str, str]:
    """Content hashes of the score sets that are here."""
    found = {n: workspace.scores(n) for n in workspace.config.score.references}
    return {n: manifests.load_manifest(f, "scores").content_hash for n, f in found.items() if manifests.exists(f)}


def _task_inputs(workspace: Workspace) -> dict[str, Any]:
    """What tasks read, by content, and the versions of what judges them."""
    found: dict[str, Any] = {}
    for task in workspace.config.eval.tasks:
        data = task.path if isinstance(task, TaskConfig) else task.data
        if isinstance(task, TaskConfig):
            found["judging of own tasks"] = VERSION
        elif isinstance(task, SuiteConfig) and task.suite == "rho-math":
            found |= {f"{name} version": kind.version for name, kind in TASKS.items()}
        else:
            found["lm_eval"] = version("lm_eval") if find_spec("lm_eval") else None
        files = [data] if isinstance(task, TaskConfig) else data_files(data) if data is not None else []
        found |= {f: f if is_folder(f) else content_id(f, workspace.hashes) for f in files if f is not None}
    return found


def flops_of(workspace: Workspace, sources: dict[str, ModelSource]) -> dict[str, ForwardFlops]:
    """Operations of each reference's forward pass, by score set; without those whose model cannot be told from here."""
    found = {}
    for name, given in workspace.config.score.references.items():
        source = sources.get("reference")
        if given != "reference":  # its weights need not be here
            model = ReferenceModel(path=given) if isinstance(given, str) else given
            source = ModelSource(model.path, model.gguf_file, model.revision)
        try:
            if source is None:
                raise InputError(f"{workspace.reference} is absent or not complete.")
            found[name] = forward_flops(empty_model(source), workspace.config.data.seq_len)
        except InputError as e:
            say(f"eval: the cost of scoring with {name} is not known: {e}")
    return found


def seen_at(workspace: Workspace, arm: str, step: int) -> dict[str, Any]:
    """Tokens that an arm had seen and trained on after a step."""
    for record in read_log(workspace.arm(arm) / "metrics.jsonl"):
        if record["step"] == step:
            return {"tokens_seen": record["tokens_seen"], "tokens_selected": record["tokens_selected"]}
    return {"tokens_seen": None, "tokens_selected": None}


def vocabulary_texts(workspace: Workspace) -> list[str]:
    """What each token id stands for; special ones for nothing."""
    tokenizer = workspace.tokenizer().hf
    special = set(tokenizer.all_special_ids)
    return ["" if i in special else text for i, text in enumerate(token_texts(tokenizer, list(range(len(tokenizer)))))]
