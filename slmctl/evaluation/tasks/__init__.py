"""The paper's nine mathematics tasks (Table 1): records, prompts, worked examples, and the judging of answers."""

from slmctl.evaluation.tasks.math_suite import suite_files, suite_tasks
from slmctl.evaluation.tasks.mathematics import NINE, TASKS

__all__ = ["NINE", "TASKS", "suite_files", "suite_tasks"]
