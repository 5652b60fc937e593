"""eval: base, reference and every arm on each held-out set and task; tokens each arm needed to reach the control."""

from __future__ import annotations

import json
import math
from typing import Any

from slmctl.config import TaskConfig
from slmctl.console import say, warn
from slmctl.corpus.sources import plan, whole_records
from slmctl.corpus.text_files import content_id, is_file
from slmctl.errors import InputError
from slmctl.evaluation.generation import Item, few_shot_prefix, make_item, read_items, run_task
from slmctl.evaluation.heldout import heldout_loss, tokens_to_reach
from slmctl.files import publishing, read_json, sha256_json, write_json
from slmctl.model.loading import ModelSource, load_model
from slmctl.model.split import SplitModel
from slmctl.stages.workspace import DONE, INPUTS, Workspace, result_settings
from slmctl.store import manifest as manifests
from slmctl.store.manifest import differences, library_versions
from slmctl.store.reader import RowReader
from slmctl.template import FieldError
from slmctl.training.telemetry import finite, read_log

RESULTS = "results.json"


def models_of(workspace: Workspace) -> dict[str, ModelSource]:
    """The models there are to compare: base, reference (where one was trained) and every complete arm."""
    attention = workspace.config.model.attn_implementation
    found = {"base": workspace.base_source()}
    if (workspace.reference / DONE).is_file():
        found["reference"] = ModelSource(str(workspace.reference), attn_implementation=attention)
    for arm in workspace.config.pretrain.arms:
        if (workspace.arm(arm) / DONE).is_file():
            found[arm] = ModelSource(str(workspace.arm(arm) / "model"), attn_implementation=attention)
        else:
            say(f"eval: arm {arm} is not trained to its end, left out")
    return found


def evaluate(workspace: Workspace) -> None:
    """Writes results.json, and each task's outputs beside it."""
    config = workspace.config
    workspace.accepted = []
    arms = [a for a in config.pretrain.arms if (workspace.arm(a) / DONE).is_file()]
    if not arms:
        raise InputError("no arm is trained to its end yet. Run `slmctl pretrain` first.")
    notes = [note for arm in arms for note in warn_of_changes(workspace, arm)]
    sources = models_of(workspace)
    for task in config.eval.tasks:
        if not is_file(task.path):
            raise InputError(f"task {task.name}: {task.path} does not exist. Correct eval.tasks in the configuration.")
    inputs = {
        "settings": config.eval.model_dump(mode="json"),
        "seed": config.seed,
        "intra_document_mask": config.data.intra_document_mask,
        "heldout": workspace.heldout_hashes(),
        "models": {n: workspace.fingerprint(s) for n, s in sources.items()},
        "runs": {a: [made_from(workspace, a), sha256_json(read_log(workspace.arm(a) / "evals.jsonl"))] for a in arms},
        "tasks": {t.name: content_id(t.path, workspace.hashes) for t in config.eval.tasks},
        "curated": workspace.open_tokens("curated").manifest.content_hash,
    }
    if workspace.begin(workspace.evaluation, inputs, RESULTS):
        say("eval: complete, skipped")
        return
    tasks = {t.name: (t, read_items(t), few_shots(workspace, t)) for t in config.eval.tasks}
    results: dict[str, Any] = {
        "pipeline": config.name,
        "seed": config.seed,
        "target": config.eval.target,
        "notes": notes,
        "models": {},
        "versions": library_versions(),
    }
    for name, source in sources.items():
        results["models"][name] = evaluate_model(workspace, name, source, tasks)
    results["arms"] = {arm: arm_facts(workspace, arm) for arm in arms}
    compare_with_control(results["arms"], workspace)
    results["costs"] = costs(workspace)
    write_json(workspace.evaluation / RESULTS, finite(results))


def evaluate_model(
    workspace: Workspace, name: str, source: ModelSource, tasks: dict[str, tuple[TaskConfig, list[Item], str]]
) -> dict[str, Any]:
    config = workspace.config.eval
    device = workspace.device
    model = SplitModel(load_model(source, config.precision, device), workspace.config.data.intra_document_mask)
    found: dict[str, Any] = {"heldout": {}, "tasks": {}}
    for heldout in workspace.heldout_names():
        tokens = workspace.open_tokens(f"heldout/{heldout}")
        loss = heldout_loss(model, RowReader(tokens, documents=model.intra_document_mask), device, config.batch_rows)
        counts = tokens.manifest.counts
        found["heldout"][heldout] = {
            "loss": loss.loss,
            "perplexity": loss.perplexity,
            "bits_per_byte": loss.bits_per_byte(counts["tokens"], counts["text_bytes"]),
            "predicted_tokens": loss.predicted,
        }
        say(f"eval {name}: {heldout} loss {loss.loss:.4f}, perplexity {loss.perplexity:.2f}")
    for task, items, prefix in tasks.values():
        result = run_task(model.model, workspace.tokenizer().hf, task, items, prefix, device)
        outputs = result.pop("outputs")
        with publishing(workspace.evaluation / "tasks" / task.name / f"{name}.jsonl") as temporary:
            temporary.write_text("".join(json.dumps(o, ensure_ascii=False) + "\n" for o in outputs), encoding="utf-8")
        found["tasks"][task.name] = result
        cut = f" ({result['prompts_cut']} prompts cut to the model's context)" if result["prompts_cut"] else ""
        say(f"eval {name}: {task.name} accuracy {result['accuracy']:.3f} ± {result['standard_error']:.3f} on {len(items)}{cut}")
    return found


def few_shots(workspace: Workspace, task: TaskConfig) -> str:
    """The worked examples, from the curated set's records. Raises `InputError` where those lack the task's fields."""
    if task.shots == 0:
        return ""
    data = workspace.config.data
    examples: list[Item] = []
    problem = "it has no record"
    for piece in plan(data.curated, data.shard_bytes):
        for record in whole_records(data.curated[piece.source], piece):
            try:
                item = make_item(task, record)
            except FieldError as e:
                problem = str(e)
                continue
            if item is not None:
                examples.append(item)
        if len(examples) >= 10_000:
            break
    if not examples:
        raise InputError(
            f"task {task.name}: the curated set offers no worked example: {problem}. Set shots: 0 or match the fields."
        )
    return few_shot_prefix(examples, task.shots, workspace.config.seed)


def made_from(workspace: Workspace, arm: str) -> dict[str, Any]:
    """What an arm was trained from, as it was recorded then."""
    inputs: dict[str, Any] = read_json(workspace.arm(arm) / INPUTS)
    return inputs


def warn_of_changes(workspace: Workspace, arm: str) -> list[str]:
    """An arm is reported as what it was trained as, not as what the configuration says now."""
    wanted = result_settings(workspace.config.pretrain.arms[arm])
    found = differences(made_from(workspace, arm)["settings"], wanted)
    notes = [f"arm {arm} was trained with other settings than the configuration has now: {line}" for line in found]
    for note in notes:
        warn(note)
    return notes


def arm_facts(workspace: Workspace, arm: str) -> dict[str, Any]:
    """What one arm was, what it saw, and its held-out curves."""
    settings = made_from(workspace, arm)["settings"]
    metrics = read_log(workspace.arm(arm) / "metrics.jsonl")
    evals = read_log(workspace.arm(arm) / "evals.jsonl")
    now, then = workspace.heldout_hashes(), read_json(workspace.arm(arm) / DONE)["heldout"]
    for record in evals:  # a curve counts only where it was measured on the very set that is evaluated now
        record["heldout"] = {n: loss for n, loss in record["heldout"].items() if n in now and now[n] == then.get(n)}
    last = metrics[-1]
    return {
        "selection": settings["selection"],
        "steps": last["step"],
        "tokens_seen": last["tokens_seen"],
        "tokens_selected": last["tokens_selected"],
        "training_seconds": sum(m["seconds"] for m in metrics),
        "evals": evals,
    }


def compare_with_control(arms: dict[str, Any], workspace: Workspace) -> None:
    """Adds to each arm the tokens it needed to reach the all-tokens arm's final target loss (linear interpolation
    between the held-out evaluations of training), and how many times fewer that is."""
    target = workspace.config.eval.target
    control = next((n for n, a in arms.items() if a["selection"]["criterion"] == "all"), None)
    if control is None:
        return
    end = arms[control]["evals"][-1]
    goal = end["heldout"].get(target)
    if goal is None:
        say(f"eval: {control} was not evaluated on this {target} while it was trained, so tokens to reach its loss are not known")
        return
    for facts in arms.values():
        losses = [e["heldout"].get(target, math.inf) for e in facts["evals"]]
        seen = tokens_to_reach([e["tokens_seen"] for e in facts["evals"]], losses, goal)
        facts["control"] = {
            "arm": control,
            "target_loss": goal,
            "tokens_to_reach": seen,
            "selected_tokens_to_reach": tokens_to_reach([e["tokens_selected"] for e in facts["evals"]], losses, goal),
            "times_fewer_tokens": end["tokens_seen"] / seen if seen else None,
        }


def costs(workspace: Workspace) -> dict[str, Any]:
    """Tokens that went into the reference and its scores: part of what selection costs."""
    found: dict[str, Any] = {}
    log = read_log(workspace.reference / "training" / "metrics.jsonl")
    if log:
        found["reference_tokens"] = log[-1]["tokens_seen"]
    for name in workspace.config.score.references:
        if manifests.exists(workspace.scores(name)):
            scores = manifests.load_manifest(workspace.scores(name), "scores")
            found.setdefault("scored_tokens", {})[name] = scores.counts["predicted"]
    return found
