"""Running tasks of EleutherAI's lm-evaluation-harness on a model in memory, every item's outcome kept for paired tests."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

from slmctl.config.evaluation import HarnessConfig
from slmctl.evaluation.general_suite import SuiteTask, general_suite, result_names
from slmctl.evaluation.harness_data import Rows, local_rows
from slmctl.evaluation.harness_model import Progress, Seeds, model_class, quiet, undisturbed
from slmctl.evaluation.harness_scores import pooled, scored
from slmctl.evaluation.harness_tasks import Leaf, build, find, refuse_code, require_harness
from slmctl.model.rope import prompts_together
from slmctl.system.errors import ConfigError, InputError, SlmError

__all__ = ["general_suite", "result_names", "run_harness"]


@dataclass(frozen=True)
class _Planned:
    """What one entry of the configuration asks for."""

    task: HarnessConfig
    manager: Any
    leaves: list[Leaf]
    is_group: bool
    rows: dict[str, tuple[Rows, Rows | None, str]] | None

    @property
    def result(self) -> str:
        """Name of the result of all of it."""
        own = self.task.result if isinstance(self.task, SuiteTask) else None
        return own or self.task.harness

    def name_of(self, leaf: Leaf) -> str:
        """Name of a task's own result."""
        return leaf.name if self.is_group else self.result


def run_harness(
    tasks: list[HarnessConfig],
    model: Any,
    tokenizer: Any,
    device: str,
    seed: int | None = None,
    progress: Progress | None = None,
    bos_id: int | None = None,
) -> dict[str, dict[str, Any]]:
    """Runs tasks on `model` (a transformers causal LM, where it is). By name of each task, and of each group asked for (a
    suite may give its tasks other names than the harness'):

    accuracy (mean over items of the task's main metric), metric, standard_error (null for one item), items, shots (0 where
    the task allows none), seed (of drawn examples), version, prompts_cut (prompts too long for the model's context, cut from
    the left), and outputs, a record an item: id (stable: the item's place in the data, so that outcomes of several models can
    be paired), output, found, target, correct, metrics. A group's accuracy is the mean weighted by items; it has `tasks` and,
    where local data lack some, `left_out`; its tasks have `group`.

    `task.data` is a JSON Lines file with the Hub dataset's fields (for a group also a folder, see `local_rows`). Few-shot
    examples written into the task stay; others are drawn by the task's `seed`, else by `seed`, else by the harness' own, from
    NAME.train.jsonl beside NAME.jsonl, or from the file itself less the item at hand. With local data nothing is fetched.
    Prompts begin with `bos_id`, once, where it is given, and else with nothing that the tokenizer's template would put there.
    `progress(task, requests done, of how many)` is called after every batch. Random state, the model's mode and settings of
    generation, and the tokenizer are left as they were.

    Raises `ConfigError` where the harness is not installed, a name is unknown, or two results would have one name;
    `InputError` for data that cannot be read.
    """
    if not tasks:
        return {}
    require_harness()
    found: dict[str, dict[str, Any]] = {}
    with quiet(), undisturbed(model, tokenizer, device):
        planned = [_plan(task) for task in tasks]
        _refuse_contradictions(planned)
        for plan in planned:
            watched = model_class()(
                pretrained=model,
                tokenizer=copy.deepcopy(tokenizer),  # it is given a padding token
                backend="causal",
                batch_size=prompts_together(model, plan.task.batch_size),
                softmax_dtype="float32",
                prefix_token_id=bos_id if bos_id is not None else tokenizer.eos_token_id,  # what documents of a row come after
            )
            watched.bos_id, watched.report = bos_id, progress
            seeds = Seeds.of(plan.task.seed if plan.task.seed is not None else seed)
            seeds.set()  # for each entry, so that no result depends on what else is asked for
            _run_plan(plan, watched, seeds.examples, found)
    return found


def _plan(task: HarnessConfig) -> _Planned:
    manager, leaves, is_group = find(task.harness)
    for leaf in leaves:
        refuse_code(leaf)
    rows = None
    if task.data is not None:
        datasets = {leaf.name: (str(leaf.config.get("dataset_path")), leaf.config.get("dataset_name")) for leaf in leaves}
        rows = local_rows(task.data, task.harness, datasets)
    return _Planned(task, manager, leaves, is_group, rows)


def _refuse_contradictions(planned: list[_Planned]) -> None:
    """Results go by name, so a task can be asked for in one way only, and a group cannot be named as a task."""
    asked: dict[str, tuple[Any, ...]] = {}
    for plan in planned:
        settings = {"max_new_tokens": None, **plan.task.model_dump(exclude={"harness", "batch_size", "result"})}
        way = tuple(settings[k] for k in sorted(settings))
        named = [(plan.name_of(leaf), (leaf.name, *way)) for leaf in plan.leaves]
        for name, what in [*named, *([(plan.result, (plan.task.harness, "group", *way))] if plan.is_group else [])]:
            if asked.setdefault(name, what) != what:
                raise ConfigError(
                    f"task {name} is asked for twice (once by {plan.task.harness}) with other data, shots, limit or seed. "
                    "Keep one."
                )


def _run_plan(plan: _Planned, lm: Any, seed: int, found: dict[str, dict[str, Any]]) -> None:
    group, parts, left_out = plan.result, {}, []
    if plan.is_group:
        found[group] = {}  # before its tasks
    for leaf in plan.leaves:
        if plan.rows is not None and leaf.name not in plan.rows:
            left_out.append(leaf.name)
            continue
        name = plan.name_of(leaf)
        if name not in found:
            result = _run_leaf(plan, leaf, lm, seed)
            if result is None:
                left_out.append(leaf.name)
                continue
            found[name] = result | ({"group": group} if plan.is_group else {})
        parts[name] = found[name]
    if not parts:
        raise InputError(f"task {plan.task.harness}: {plan.task.data} holds no item of any of its tasks.")
    if plan.is_group:
        found[group] = pooled(parts) | ({"left_out": left_out} if left_out else {})


def _run_leaf(plan: _Planned, leaf: Leaf, lm: Any, seed: int) -> dict[str, Any] | None:
    """One task's result; None where a file that several tasks share holds nothing of this one."""
    import jinja2
    from lm_eval.evaluator import evaluate

    rows, train, place = plan.rows[leaf.name] if plan.rows is not None else (None, None, None)
    try:
        task = build(plan.manager, leaf, rows, train, place)
    except InputError as e:
        if plan.is_group and isinstance(e.__cause__, IndexError):
            return None
        raise
    shots = _set_options(task, plan.task, seed)
    lm.begin(leaf.name)
    wrong_input = (AssertionError, ValueError, KeyError, TypeError, IndexError, jinja2.TemplateError)
    try:
        evaluated = evaluate(
            lm=lm,
            task_dict={"tasks": {leaf.name: task}, "groups": {}, "group_map": {}},
            limit=plan.task.limit,
            bootstrap_iters=0,
            confirm_run_unsafe_code=True,  # `refuse_code` has asked
        )
    except SlmError:
        raise
    except wrong_input as e:
        reason = str(e).strip().splitlines()[0] if str(e).strip() else "no reason given"
        hint = f" Few-shot examples ({shots}) may be more than there are: lower shots." if shots else ""
        raise InputError(f"task {leaf.name} cannot be run: {type(e).__name__}: {reason}.{hint}") from e
    return scored(task, leaf.name, evaluated["samples"][leaf.name], shots, len(lm.cut)) | {"seed": seed}


def _set_options(task: Any, config: HarnessConfig, seed: int) -> int:
    """Returns the number of examples. A task that allows none says so with 0, as in the harness itself."""
    own = task.get_config("num_fewshot")
    shots = int(own or 0) if config.shots is None or own == 0 else config.shots
    task.set_config("num_fewshot", shots)
    task.set_fewshot_seed(seed)
    longest = config.max_new_tokens if isinstance(config, SuiteTask) else None
    if longest is not None and task.OUTPUT_TYPE == "generate_until":
        aliases = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
        kept = {k: v for k, v in task.config.generation_kwargs.items() if k not in aliases}
        task.set_config("generation_kwargs", {**kept, "max_gen_toks": longest})
    return shots
