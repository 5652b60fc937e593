"""What models are measured by on tasks: those of eval.tasks, made ready once, and each item's output, kept as a line.

Tasks of one's own and the suite `rho-math` generate here; lm-evaluation-harness runs the others.
"""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import Any

from slmctl.comparison.compared import Conditions
from slmctl.comparison.few_shot_examples import few_shots
from slmctl.config.evaluation import HarnessConfig, SuiteConfig, TaskConfig
from slmctl.model.split import SplitModel
from slmctl.system.console import say, waiting
from slmctl.system.errors import ConfigError
from slmctl.system.files import publishing


class Tasks:
    """The tasks of one evaluation."""

    def __init__(self, conditions: Conditions) -> None:
        self.conditions, self.asked = conditions, conditions.settings.tasks
        self._notes: list[str] = []

    @cached_property
    def generated(self) -> list[Any]:
        """The tasks that slmctl generates answers for itself."""
        from slmctl.evaluation.generation import own_task
        from slmctl.evaluation.tasks import suite_tasks

        found = []
        for task in self.asked:
            if isinstance(task, TaskConfig):
                found.append(own_task(task, few_shots(self.conditions.data, self.conditions.seed, task)))
            elif isinstance(task, SuiteConfig) and task.suite == "rho-math":
                tasks, notes = suite_tasks(task, self.conditions.seed)
                found += tasks
                self._notes += notes
        return found

    @cached_property
    def of_harness(self) -> list[HarnessConfig]:
        """The tasks that lm-evaluation-harness runs."""
        found = []
        for task in self.asked:
            if isinstance(task, HarnessConfig):
                found.append(task)
            elif isinstance(task, SuiteConfig) and task.suite == "rho-general":
                from slmctl.evaluation.harness import general_suite

                tasks, notes = general_suite(task)
                found += tasks
                self._notes += notes
        return found

    def ready(self) -> list[str]:
        """Readies the tasks; returns what is left out of them, and why. Raises `ConfigError` where two have one name."""
        from slmctl.evaluation.general_suite import result_names

        result_names(self.asked)
        _ = self.generated
        if self.of_harness:
            from slmctl.evaluation.harness_tasks import find, require_harness

            with waiting("eval: loading lm-evaluation-harness"):
                require_harness()
                for task in self.of_harness:
                    find(task.harness)
        for note in self._notes:
            say(f"eval: {note}")
        return self._notes

    def measure(self, model: SplitModel, name: str) -> dict[str, Any]:
        """Figures of a model by task. Raises `ConfigError` where a task of the harness has the name of another."""
        found = self._measured(model, name)
        for task, result in found.items():
            outputs = result.pop("outputs", [])
            result["unread"] = sum(o.get("found") in (None, "[invalid]") for o in outputs)  # no answer could be read
            with publishing(self.outputs_file(task, name)) as temporary:
                temporary.write_text("".join(json.dumps(o, ensure_ascii=False) + "\n" for o in outputs), encoding="utf-8")
            cut = f" ({result['prompts_cut']} prompts cut to the model's context)" if result.get("prompts_cut") else ""
            error = f" ± {result['standard_error']:.3f}" if result.get("standard_error") is not None else ""
            say(f"eval {name}: {task} {result['metric']} {result['accuracy']:.3f}{error} on {result['items']}{cut}")
        return found

    def _measured(self, model: SplitModel, name: str) -> dict[str, Any]:
        """Figures by task, each with the `outputs` of its items."""
        found: dict[str, Any] = {}
        tokenizer, device = self.conditions.tokenizer, self.conditions.device
        bos_id = self.conditions.bos.id if self.conditions.bos is not None else None
        if self.generated:
            from slmctl.evaluation.generation import run_task

            for task in self.generated:
                found[task.name] = run_task(model.model, tokenizer, task, device, bos_id)
        if self.of_harness:
            from slmctl.evaluation.harness import run_harness

            doing = ["reading the tasks of lm-evaluation-harness"]

            def tell(task: str, done: int, total: int) -> None:
                doing[0] = f"task {task}, {done:,} of {total:,} requests"

            with waiting(lambda: f"eval {name}: {doing[0]}"):
                others = run_harness(self.of_harness, model.model, tokenizer.hf, device, None, tell, bos_id)
            if twice := sorted(set(found) & set(others)):
                raise ConfigError(f"eval.tasks: {twice[0]!r} is a task of lm-evaluation-harness, too. Rename your own.")
            found |= others
        return found

    # --- outputs of items ---

    def outputs_file(self, task: str, model: str) -> Path:
        return self.conditions.folder / "tasks" / task / f"{model}.jsonl"

    def correct(self, task: str, model: str) -> list[bool] | None:
        """Whether each item's output was right; None where the task gives no such verdict."""
        lines = self.outputs_file(task, model).read_text(encoding="utf-8").split("\n")[:-1]  # texts may hold other line ends
        found = [json.loads(line).get("correct") for line in lines]
        return [bool(c) for c in found] if found and all(c in (0, 1) for c in found) else None
