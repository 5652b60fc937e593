"""eval: base, reference, every arm and every kept checkpoint on held-out sets and tasks; what they differ in, and why.

Writes eval/results.json, which holds all that the table, the report, `compare` and the model cards show.
"""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import torch
import torch.distributed as dist

from slmctl.comparison.alarms.alarms import alarms
from slmctl.comparison.arms import arm_facts, precisions, seen_at
from slmctl.comparison.compared import Arm, Compared, Conditions, Model, Scores
from slmctl.comparison.diagnose import Diagnosis
from slmctl.comparison.differences import loss_differences, task_differences
from slmctl.comparison.flop_costs import ForwardFlops, costs_of_references, flops_of_references, forward_flops
from slmctl.comparison.inputs import figures_inputs, results_inputs, task_inputs
from slmctl.comparison.measure import Measure
from slmctl.comparison.notes import notes_of, warn_once
from slmctl.comparison.provenance import made_on, parameters, trained
from slmctl.comparison.reach import Comparison, compare_seeds, compare_with_control, curves_of
from slmctl.comparison.results import RESULTS, SCHEMA, are_current, begin_results, begun_from, publish_results, take_back_results
from slmctl.comparison.seeds_and_sweeps import seeds, sweeps
from slmctl.comparison.task_checks import check_tasks
from slmctl.comparison.token_losses import TokenLosses
from slmctl.comparison.token_text import vocabulary_texts
from slmctl.config.sweeps import read_sweeps
from slmctl.model.loading import empty_model, hidden_size
from slmctl.model.source import ModelSource
from slmctl.report.highlighted import highlights
from slmctl.report.model_cards import write_cards
from slmctl.store.manifest import exists, library_versions, load_manifest
from slmctl.store.order import mix_seed
from slmctl.system.console import say, waiting
from slmctl.system.errors import InputError
from slmctl.training.environment import describe_environment
from slmctl.training.ranks import Ranks, joined
from slmctl.training.telemetry import finite
from slmctl.workspace import contamination
from slmctl.workspace.identity import measuring
from slmctl.workspace.precisions import chosen, precision_in, tell, with_precision
from slmctl.workspace.stale import DONE, same_results
from slmctl.workspace.workspace import Workspace


def evaluate(workspace: Workspace) -> None:
    """Measures whatever is trained, and writes results.json. What was measured before a stop is not measured again. Of several
    ranks the first one does it, and the others wait.

    Raises `ConfigError` for what is wrong with eval.tasks, before anything is measured.
    """

    def work() -> None:
        check_tasks(workspace.config)
        _evaluate(resolve(workspace))

    if dist.is_initialized():  # within a run of several, on its first rank
        work()
        return
    with joined(workspace.device) as ranks:
        ranks.first(work)


def _evaluate(compared: Compared) -> None:
    """Makes the results of what is compared, and records them: where they are not there, nor in stale/."""
    cards = partial(write_cards, compared.places, compared.config, compared.conditions.bos)
    if are_current(compared.stage, compared.inputs):
        compared.stage.begin(compared.inputs, RESULTS)  # to record what was let through
        say("eval: complete, skipped")
    elif (aside := same_results(compared.places.root, compared.inputs, RESULTS)) is not None:
        take_back_results(compared.stage, compared.inputs, aside, cards)
    else:
        results, shown = make(compared)
        with waiting("eval: writing model cards"):
            cards(results)
        publish_results(compared.stage, compared.inputs, results, shown)  # last: it says that all is done


# --- resolve ---


def resolve(workspace: Workspace) -> Compared:
    """Opens all that is compared, and works out what its results depend on. Others are kept from training or moving aside what is
    measured.

    Raises `InputError` where no arm is trained to its end, and `MismatchError` where something does not belong to the rest.
    """
    workspace.accepted = []
    config, places = workspace.config, workspace.places
    sources, arms = resolve_models(workspace)
    with waiting("eval: comparing texts and models with what was measured before"):
        conditions = resolve_conditions(workspace, sources["base"])
        own = {"reference", *(["base"] if config.model.scratch is not None else [])}
        logs = {n: places.training(n) if n in own else None for n in sources}
        models = {n: Model(source, workspace.fingerprint(source), logs[n]) for n, source in sources.items()}
        scores = {}
        for name in config.score.references:
            if exists(folder := places.scores(name)):
                workspace.locks.hold(f"scores/{name}")
                scores[name] = Scores(folder, load_manifest(folder, "scores"))
        found_sweeps, notes = read_sweeps(workspace.root), notes_of(arms, config.pretrain.arms)
        warn_once(notes, workspace.noted)
        leaked = contamination.facts(contamination.resolve(workspace))
        inputs = results_inputs(conditions.figures_from, models, arms, scores, found_sweeps, notes, leaked)
    return Compared(
        config=config,
        places=places,
        stage=workspace.stage("eval"),
        conditions=conditions,
        models=models,
        arms=arms,
        scores=scores,
        sweeps=found_sweeps,
        notes=notes,
        contamination=leaked,
        inputs=inputs,
    )


def resolve_models(workspace: Workspace) -> tuple[dict[str, ModelSource], dict[str, Arm]]:
    """The models there are to compare: base, reference (where one was trained) and every arm that is trained to its end; and
    these arms."""

    def held(label: str) -> bool:
        stage = workspace.stage(label)
        if (stage.path / DONE).is_file():
            stage.hold()
        return (stage.path / DONE).is_file()

    config = workspace.config
    held("base")
    references = ["reference"] if held("reference") else []
    arms = {a: Arm.read(a, workspace.arm(a)) for a in config.pretrain.arms if held(f"pretrain/{a}")}
    if not arms:
        raise InputError("no arm is trained to its end yet. Run `slmctl pretrain` first.")
    sources = {"base": workspace.base_source()}
    for name in (*references, *arms):
        place = str(workspace.places.model(name))
        sources[name] = ModelSource(place, attn_implementation=config.model.attn_implementation)
    for arm in (a for a in config.pretrain.arms if a not in arms):
        say(f"eval: arm {arm} is not trained to its end, left out")
    return sources, arms


def resolve_conditions(workspace: Workspace, base: ModelSource) -> Conditions:
    """What every model is measured on, and how. A precision of `auto` is that of results that are there, or half made, else what
    the device gains by for models of the size of `base`."""
    config = workspace.config
    begun = precision_in(begun_from(workspace.evaluation)) if config.eval.precision == "auto" else config.eval.precision
    precision = begun or chosen(workspace.device, partial(hidden_size, base), "bfloat16")
    corpus = workspace.open_tokens("corpus")
    settings = with_precision(measuring(config), precision)
    heldout = {n: workspace.open_tokens(f"heldout/{n}") for n in workspace.heldout_names()}
    contents = {n: tokens.manifest.content_hash for n, tokens in heldout.items()}
    tasks = task_inputs(config.eval.tasks, workspace.hashes)
    curated = workspace.open_tokens("curated")
    return Conditions(
        settings=config.eval,
        data=config.data,
        seed=config.seed,
        precision=precision,
        device_asked=config.device,
        heldout=heldout,
        corpus=corpus,
        tokenizer=workspace.tokenizer(),
        bos=workspace.bos(),
        figures_from=figures_inputs(settings, corpus.manifest, contents, tasks, curated.manifest),
        folder=workspace.evaluation,
        checked=workspace.checked,
    )


# --- make ---


def make(compared: Compared) -> tuple[dict[str, Any], dict[str, Any]]:
    """Measures and concludes. Returns the results and the highlights."""
    config, conditions = compared.config, compared.conditions
    width = partial(hidden_size, compared.models["base"].source)
    tell("eval", config.eval.precision, conditions.precision, conditions.device, width)
    with waiting("eval: opening sets and models"):
        measure = Measure(conditions)  # whatever is wrong is told before anything is measured
        token_losses = TokenLosses(conditions)
        diagnosis = Diagnosis(compared, token_losses)
        flops = flops_of_references(compared)
    notes = [*compared.notes, *measure.tasks.ready()]
    begin_results(compared.stage, compared.inputs)
    results: dict[str, Any] = {
        **{"schema": SCHEMA, "pipeline": config.name, "seed": config.seed, "target": config.eval.target},
        **{"level": config.eval.level, "notes": notes, "versions": library_versions(), "threads": None, "models": {}, "arms": {}},
        "contamination": compared.contamination,
        "sets": {n: {"content": content} for n, content in conditions.heldout_hashes.items()},
        "made_on": None,
        "precisions": {"evaluation": conditions.precision, **precisions(compared.places, compared.scores)},
    }
    results["models"] = measured_models(compared, measure, token_losses)
    results["arms"] = {name: measured_arm(compared, arm, measure, token_losses) for name, arm in compared.arms.items()}
    results["threads"] = torch.get_num_threads() if conditions.device == "cpu" else None
    results["made_on"] = made_on([describe_environment(Ranks(), conditions.device)])
    with waiting("eval: intervals, differences and diagnostics"):
        shown = conclude(compared, measure, diagnosis, results, flops)
        results = finite(results)
        results["alarms"] = alarms(results)
    return results, shown


def measured_models(compared: Compared, measure: Measure, token_losses: TokenLosses) -> dict[str, Any]:
    """Figures of each final model, and what it is; losses of the diagnostic rows of the base alone."""
    found = {}
    for name, model in compared.models.items():
        figures = measure.model(name, model, token_losses if name == "base" else None)
        kind = name if name in ("base", "reference") else "arm"
        found[name] = {"kind": kind, "parameters": parameters(model.source), "trained": trained(model.training), **figures}
    return found


def measured_arm(compared: Compared, arm: Arm, measure: Measure, token_losses: TokenLosses) -> dict[str, Any]:
    """What an arm was and spent, with the figures of its kept checkpoints."""
    settings, source, metrics = compared.config.eval, compared.models[arm.name].source, arm.read_metrics()
    facts = arm_facts(compared, arm, metrics, forward_flops(empty_model(source), compared.config.data.seq_len))
    load = cache(partial(measure.load, source))  # of the arm's own shape, whatever the base is now
    wanted = arm.checkpoints if settings.checkpoints or settings.dynamics else []
    facts["checkpoints"] = [
        {"step": one.step, **seen_at(metrics, one.step), **measure.checkpoint(one, load, token_losses)} for one in wanted
    ]
    return facts


def conclude(
    compared: Compared, measure: Measure, diagnosis: Diagnosis, results: dict[str, Any], flops: dict[str, ForwardFlops]
) -> dict[str, Any]:
    """Adds to the results what follows from the measurements. Returns the highlights."""
    config, arms, models = compared.config, results["arms"], results["models"]
    target = config.eval.target
    results["costs"] = costs_of_references(compared, flops)
    results["differences"] = loss_differences(measure, models, arms)
    results["task_differences"] = task_differences(measure, models, arms)
    results["seeds"] = seeds(arms, models, target)
    curves = curves_of(compared, measure, arms, models, target)
    goals = {a: models[a]["heldout"][target]["loss"] for a in arms}
    seed = mix_seed("intervals", config.seed)
    how = Comparison(curves, results["costs"], config.score.references, config.eval.level, seed)
    compare_with_control(arms, goals, how)
    compare_seeds(results["seeds"], arms, goals, how)
    results["sweeps"] = sweeps(compared.sweeps, config, arms, models, target)
    last = {a: f"{a}@{f['checkpoints'][-1]['step']}" for a, f in arms.items() if f["checkpoints"]}
    texts = vocabulary_texts(compared.conditions.tokenizer.hf)
    for arm in arms:
        arms[arm]["kinds"] = diagnosis.kinds(arm, last.get(arm), texts)
    results["diagnostics"] = diagnosis.results({a: arms[a] for a in last}, target)
    steps = {a: arms[a]["checkpoints"][-1]["step"] for a in last}
    return highlights(diagnosis, last, steps)
