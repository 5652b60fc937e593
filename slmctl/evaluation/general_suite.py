"""The suite `rho-general`: the 15 general tasks of the paper, as tasks of lm-evaluation-harness.

The list is that of Fig. 5 (arXiv 2404.07965v4), whose 17 bars are 15 tasks, two of them at pass@1 and pass@10; it agrees with
App. E.2, which adds that MMLU to OpenBookQA follow lm-evaluation-harness, and HumanEval, TyDi QA (F1) and MBPP other pipelines.
The paper does not say which task of the harness stands for each, nor the number of examples. Here: chain of thought with 3 for
BBH, 4 for MATH and 8 for GSM8K, as their prompts are written; 5 for MMLU, 3 for MBPP and 1 for TyDi QA, as is usual; none for
the rest, as in the report of TinyLlama (arXiv 2401.02385), which the paper starts from. Code tasks give pass@1 of one greedy
answer, not pass@10. So numbers of arms compare with each other, not with the paper's.

Results go by the harness' names; `minerva_math` is one of `rho-math` too (500 problems judged here, not 5,000 judged there), so
that of this suite is `general-minerva_math`, whether both are asked for or not: a table's names do not depend on its rows.
"""

from __future__ import annotations

import difflib
import os

from slmctl.config.decides import Evaluation
from slmctl.config.evaluation import HarnessConfig, SuiteConfig, TaskConfig
from slmctl.config.types import PositiveInt
from slmctl.corpus.text_files import is_folder
from slmctl.evaluation.harness_data import find_file
from slmctl.evaluation.harness_tasks import CODE_VARIABLE
from slmctl.evaluation.tasks.math_suite import suite_names
from slmctl.evaluation.tasks.mathematics import TASKS as MATHEMATICS
from slmctl.system.errors import ConfigError, InputError

GENERAL_TASKS: dict[str, tuple[str, int]] = {
    "mmlu": ("mmlu", 5),
    "bbh": ("bbh_cot_fewshot", 3),
    "agieval": ("agieval", 0),
    "math": ("minerva_math", 4),
    "gsm8k": ("gsm8k_cot", 8),
    "arc_easy": ("arc_easy", 0),
    "arc_challenge": ("arc_challenge", 0),
    "boolq": ("boolq", 0),
    "piqa": ("piqa", 0),
    "hellaswag": ("hellaswag", 0),
    "winogrande": ("winogrande", 0),
    "openbookqa": ("openbookqa", 0),
    "tydiqa": ("tydiqa_goldp", 1),
    "humaneval": ("humaneval", 0),
    "mbpp": ("mbpp", 3),
}
"""By the name that `only` and files go by: the harness' name, and how many examples come before the question."""
CODE_TASKS = ("humaneval", "mbpp")


class SuiteTask(HarnessConfig):
    """A task of the suite, which may limit how much it generates."""

    max_new_tokens: Evaluation[PositiveInt | None] = None
    """Longest generation; null is the task's own."""
    result: Evaluation[str | None] = None
    """Name of its result; null is the harness' name."""


def general_suite(config: SuiteConfig) -> tuple[list[SuiteTask], list[str]]:
    """The tasks to run, and a note on each that is left out: no file in `config.data`, or it would execute the model's
    programs and `HF_ALLOW_CODE_EVAL=1` does not allow that.

    Raises `ConfigError` for a name in `only` that is none of the suite's and a folder that is absent, `InputError` for one that
    holds nothing of the suite.
    """
    for name in config.only or []:
        if name not in GENERAL_TASKS:
            near = difflib.get_close_matches(name, GENERAL_TASKS, 3)
            hint = f" Near: {', '.join(near)}." if near else ""
            raise ConfigError(f"suite rho-general has no task {name!r}.{hint} It has: {', '.join(GENERAL_TASKS)}.")
    if config.data is not None and not is_folder(config.data):
        raise ConfigError(f"suite rho-general: {config.data} is no folder. Correct its data, or leave it out to read the Hub.")
    tasks: list[SuiteTask] = []
    notes: list[str] = []
    for name, (harness, shots) in GENERAL_TASKS.items():
        if config.only is not None and name not in config.only:
            continue
        place = _place(config.data, name)
        if config.data is not None and place is None:
            notes.append(f"rho-general: {name} is left out, {config.data} has no {name}.jsonl")
        elif name in CODE_TASKS and os.environ.get(CODE_VARIABLE) != "1":
            notes.append(
                f"rho-general: {name} is left out: it executes programs that the model writes. "
                f"Run it in a container, and set {CODE_VARIABLE}=1 to allow it"
            )
        else:
            wanted = shots if config.shots is None else config.shots
            options = config.model_dump(include={"limit", "batch_size", "max_new_tokens"})
            tasks.append(SuiteTask(harness=harness, data=place, shots=wanted, result=_result(harness), **options))
    if config.data is not None and len(notes) == len(config.only or GENERAL_TASKS) and not tasks:
        raise InputError(f"suite rho-general: nothing of it can be run from {config.data}: {'; '.join(notes)}.")
    return tasks, notes


def result_names(tasks: list[TaskConfig | SuiteConfig | HarnessConfig]) -> list[str]:
    """Names of the results that entries of eval.tasks give, in order, without those of the tasks within a harness' group.

    Reads no record and not the Hub. Raises `ConfigError` where two entries give one name (but for a harness' task that is asked
    for twice in the same way, which is run once), and as `general_suite` does.
    """
    found: dict[str, TaskConfig | SuiteConfig | HarnessConfig] = {}
    for task in tasks:
        for name, entry in _named(task):
            if name in found and not (isinstance(entry, HarnessConfig) and found[name] == entry):
                raise ConfigError(
                    f"eval.tasks: two entries give a result named {name!r} ({_title(found[name])} and {_title(entry)}). Rename "
                    "your own, name in a suite's only the tasks that you want of it, or leave one out."
                )
            found[name] = entry
    return list(found)


def _named(task: TaskConfig | SuiteConfig | HarnessConfig) -> list[tuple[str, TaskConfig | SuiteConfig | HarnessConfig]]:
    if isinstance(task, TaskConfig):
        return [(task.name, task)]
    if isinstance(task, HarnessConfig):
        return [(task.harness, task)]
    if task.suite == "rho-math":
        return [(name, task) for name in suite_names(task)]
    return [(one.result or one.harness, one) for one in general_suite(task)[0]]


def _title(task: TaskConfig | SuiteConfig | HarnessConfig) -> str:
    if isinstance(task, SuiteTask):
        return "of rho-general"
    if isinstance(task, HarnessConfig):
        return "of lm-evaluation-harness"
    return f"of {task.suite}" if isinstance(task, SuiteConfig) else "your own"


def _result(harness: str) -> str | None:
    """The name of the suite's result of a task of the harness, where it is not the harness' own."""
    return f"general-{harness}" if harness in MATHEMATICS else None


def _place(folder: str | None, name: str) -> str | None:
    if folder is None:
        return None
    path = f"{folder.rstrip('/')}/{name}"
    return find_file(path) or (path if is_folder(path) else None)
