"""What each model is measured by: held-out losses by document, tasks, and per-token losses of the diagnostic rows.

Results of one model are kept as soon as they are there, so that an evaluation that is stopped goes on where it was.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from slmctl.config_eval import HarnessConfig, SuiteConfig, TaskConfig
from slmctl.console import say
from slmctl.evaluation.heldout import DocumentLosses, document_losses
from slmctl.evaluation.intervals import mean_interval
from slmctl.files import publishing, read_json, sha256_file, sha256_json, write_json
from slmctl.model.loading import ModelSource, load_model
from slmctl.model.row_losses import row_losses
from slmctl.model.split import SplitModel
from slmctl.stages.workspace import DONE, Workspace
from slmctl.store.reader import RowReader
from slmctl.training.checkpoint import STATE, all_checkpoints, load_weights
from slmctl.training.telemetry import finite


@dataclass(frozen=True)
class Checkpoint:
    """A kept checkpoint of an arm."""

    arm: str
    step: int
    directory: Path

    @property
    def name(self) -> str:
        return f"{self.arm}@{self.step}"


def sources_of(workspace: Workspace) -> dict[str, ModelSource]:
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


def checkpoints_of(workspace: Workspace, arm: str) -> list[Checkpoint]:
    """An arm's kept checkpoints, by step."""
    found = all_checkpoints(workspace.arm(arm) / "checkpoints")
    return [Checkpoint(arm, int(d.name.removeprefix("step-")), d) for d in found]


class Measure:
    """Measures models, one at a time, and keeps what it finds under `eval/`."""

    def __init__(self, workspace: Workspace, made_from: Any) -> None:
        """`made_from` is all that figures depend on, but for the model."""
        self.made_from = made_from
        self.workspace, self.config, self.device = workspace, workspace.config.eval, workspace.device
        self.root = workspace.evaluation
        self.sets = {n: workspace.open_tokens(f"heldout/{n}") for n in workspace.heldout_names()}

    # --- models ---

    def load(self, source: ModelSource) -> SplitModel:
        model = load_model(source, self.config.precision, self.device)
        return SplitModel(model, self.workspace.config.data.intra_document_mask).eval()

    def model(self, name: str, source: ModelSource, others: Callable[[SplitModel], None] = lambda _: None) -> dict[str, Any]:
        """One model's entry of `models`, but for its kind. `others` measures what else is asked of it, while it is loaded."""
        identity = self._identity(self.workspace.fingerprint(source))
        if (found := self._kept(name, identity)) is not None:
            return found
        model = self.load(source)
        found = {"heldout": {n: self._heldout(model, n, name) for n in self.sets}, "tasks": self._tasks(model, name)}
        others(model)
        for n, figures in found["heldout"].items():
            say(f"eval {name}: {n} loss {figures['loss']:.4f}, perplexity {figures['perplexity']:.2f}")
        return self._keep_part(name, identity, found)

    def _identity(self, model: Any) -> str:
        return sha256_json({"made_from": self.made_from, "model": model})

    def _part(self, name: str) -> Path:
        return self.root / "parts" / f"{name}.json"

    def _kept(self, name: str, identity: str) -> dict[str, Any] | None:
        """What was found before of the same model under the same settings."""
        part = read_json(self._part(name)) if self._part(name).is_file() else {}
        return dict(part["found"]) if part.get("identity") == identity else None

    def _keep_part(self, name: str, identity: str, found: dict[str, Any]) -> dict[str, Any]:
        plain: dict[str, Any] = finite(found)
        write_json(self._part(name), {"identity": identity, "found": plain})
        return plain

    def checkpoint(self, one: Checkpoint, load: Callable[[], SplitModel], others: Callable[[SplitModel], None]) -> dict[str, Any]:
        """Held-out figures of a checkpoint, whose weights are put into the model that `load` gives."""
        identity = self._identity(sha256_file(one.directory / STATE))  # which holds the hash of every file beside it
        if (kept := self._kept(one.name, identity)) is not None:
            return kept
        model = load()
        load_weights(one.directory, model)
        found = {"heldout": {n: self._heldout(model, n) for n in self.sets} if self.config.checkpoints else {}}
        others(model)
        return self._keep_part(one.name, identity, found)

    # --- held-out sets ---

    def _heldout(self, model: SplitModel, name: str, keep_as: str | None = None) -> dict[str, Any]:
        tokens = self.sets[name]
        losses = document_losses(model, RowReader(tokens), self.device, self.config.batch_rows)
        if keep_as is not None:
            self._keep(losses, name, keep_as)
        whole, counts = losses.whole, tokens.manifest.counts
        interval = mean_interval(losses.nats_M, losses.predicted_M, self.config.level, self.workspace.config.seed)
        in_bits = whole.bits_per_byte(counts["tokens"], counts["text_bytes"])
        return {
            "loss": whole.loss,
            "perplexity": whole.perplexity,
            "bits_per_byte": in_bits,
            "predicted_tokens": whole.predicted,
            "documents": len(losses.document_M),
            "interval": list(interval) if interval else None,
            "bits_per_byte_interval": [x * in_bits / whole.loss for x in interval] if interval and whole.loss else None,
        }

    def _documents(self, heldout: str, model: str) -> Path:
        return self.root / "documents" / heldout / f"{model}.parquet"

    def _keep(self, losses: DocumentLosses, heldout: str, model: str) -> None:
        table = pa.table({"document": losses.document_M, "predicted": losses.predicted_M, "nats": losses.nats_M})
        with publishing(self._documents(heldout, model)) as temporary:
            pq.write_table(table, temporary)

    def documents(self, heldout: str, model: str) -> DocumentLosses:
        """What `model` kept of a held-out set."""
        table = pq.read_table(self._documents(heldout, model))
        return DocumentLosses(*(table[n].to_numpy() for n in ("document", "nats", "predicted")))

    # --- tasks ---

    @cached_property
    def generation_tasks(self) -> list[Any]:
        """The tasks that slmctl generates answers for itself."""
        from slmctl.evaluation.generation import own_task
        from slmctl.evaluation.tasks import suite_tasks
        from slmctl.stages.shots import few_shots

        found = []
        for task in self.config.tasks:
            if isinstance(task, TaskConfig):
                found.append(own_task(task, few_shots(self.workspace, task)))
            elif isinstance(task, SuiteConfig) and task.suite == "rho-math":
                tasks, notes = suite_tasks(task, self.workspace.config.seed)
                found += tasks
                for note in notes:
                    say(f"eval: {note}")
        return found

    @cached_property
    def harness_tasks(self) -> list[HarnessConfig]:
        """The tasks that lm-evaluation-harness runs."""
        found = []
        for task in self.config.tasks:
            if isinstance(task, HarnessConfig):
                found.append(task)
            elif isinstance(task, SuiteConfig) and task.suite == "rho-general":
                from slmctl.evaluation.harness import general_suite

                tasks, notes = general_suite(task)
                found += tasks
                for note in notes:
                    say(f"eval: {note}")
        return found

    def _tasks(self, model: SplitModel, name: str) -> dict[str, Any]:
        found: dict[str, Any] = {}
        tokenizer = self.workspace.tokenizer().hf
        if self.generation_tasks:
            from slmctl.evaluation.generation import run_task

            for task in self.generation_tasks:
                found[task.name] = run_task(model.model, tokenizer, task, self.device)
        if self.harness_tasks:
            from slmctl.evaluation.harness import run_harness

            found |= run_harness(self.harness_tasks, model.model, tokenizer, self.device, self.workspace.config.seed)
        for task_name, result in found.items():
            outputs = result.pop("outputs", [])
            with publishing(self.outputs_of(task_name, name)) as temporary:
                temporary.write_text("".join(json.dumps(o, ensure_ascii=False) + "\n" for o in outputs), encoding="utf-8")
            cut = f" ({result['prompts_cut']} prompts cut to the model's context)" if result.get("prompts_cut") else ""
            error = f" ± {result['standard_error']:.3f}" if result.get("standard_error") is not None else ""
            say(f"eval {name}: {task_name} {result['metric']} {result['accuracy']:.3f}{error} on {result['items']}{cut}")
        return found

    def outputs_of(self, task: str, model: str) -> Path:
        return self.root / "tasks" / task / f"{model}.jsonl"

    def correct(self, task: str, model: str) -> list[bool] | None:
        """Whether each item's output was right; None where the task gives no such verdict."""
        lines = self.outputs_of(task, model).read_text(encoding="utf-8").splitlines()
        found = [json.loads(line).get("correct") for line in lines]
        return [bool(c) for c in found] if found and all(c in (0, 1) for c in found) else None


def batches(rows: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """Parts of `rows`, of `size` each."""
    for at in range(0, len(rows), size):
        yield rows[at : at + size]


def token_losses_of(model: SplitModel, reader: RowReader, rows: np.ndarray, device: str, batch_rows: int) -> np.ndarray:
    """Losses [rows, T] of the rows' tokens (nats, float32; NaN where nothing is predicted)."""
    found = []
    for part in batches(rows, batch_rows):
        at = reader.fetch(part)
        found.append(row_losses(model, at.ids_BT, at.document_BT, device)[0])
    return np.concatenate(found)
