"""What each model is measured by: held-out losses by document, tasks, and per-token losses of the diagnostic rows.

Results of one model are kept as soon as they are there, so that an evaluation that is stopped goes on where it was.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from slmctl.comparison.reaching import grouped
from slmctl.config.evaluation import HarnessConfig, SuiteConfig, TaskConfig
from slmctl.evaluation.heldout import DocumentLosses, arithmetic, document_bytes, document_losses, rows_hash
from slmctl.evaluation.intervals import effective_documents, mean_interval
from slmctl.evaluation.rolling import rolling_bits_per_byte, window_of
from slmctl.model.forward_threads import settle_forward
from slmctl.model.loading import ModelSource, load_model
from slmctl.model.row_losses import row_losses
from slmctl.model.split import SplitModel
from slmctl.store.order import mix_seed
from slmctl.store.reader import RowReader
from slmctl.system.console import progress, say, waiting
from slmctl.system.errors import ConfigError
from slmctl.system.files import publishing, read_json, sha256_file, sha256_json, write_json
from slmctl.training.checkpoint import STATE, all_checkpoints, load_weights
from slmctl.training.telemetry import finite
from slmctl.workspace.checked import kind_of
from slmctl.workspace.folders import DONE
from slmctl.workspace.workspace import Workspace


@dataclass(frozen=True)
class Checkpoint:
    """A kept checkpoint of an arm."""

    arm: str
    step: int
    directory: Path

    @property
    def name(self) -> str:
        return f"{self.arm}@{self.step}"


class Beside(Protocol):
    """What else is measured of a model while it is loaded, and kept by itself."""

    def has(self, name: str) -> bool:
        """Whether what was kept of `name` is still there."""

    def add(self, name: str, model: SplitModel) -> None:
        """Measures `model`, and keeps what it finds as `name`."""


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


HOLDS = 2
"""What a part holds, by version: those of another are measured anew."""
LOSSY = 0.01
"""Share of a set's bytes by which its decoded tokens may differ from its text."""


class Measure:
    """Measures models, one at a time, and keeps what it finds under `eval/`."""

    def __init__(self, workspace: Workspace, made_from: Any, precision: str = "float32") -> None:
        """`made_from` is all that figures depend on, but for the model; `precision` that of weights and arithmetic."""
        self.made_from, self.precision = made_from, precision
        self.workspace, self.config, self.device = workspace, workspace.config.eval, workspace.device
        self.root = workspace.evaluation
        self._sizes: dict[str, dict[int, int]] = {}
        self._task_notes: list[str] = []
        self._settled = False
        self.sets = {n: workspace.open_tokens(f"heldout/{n}") for n in workspace.heldout_names()}

    # --- models ---

    def load(self, source: ModelSource) -> SplitModel:
        model = load_model(source, self.precision, self.device)
        split = SplitModel(model, self.workspace.config.data.intra_document_mask).eval()
        eos_id, seq_len = self.workspace.tokenizer().eos_id, self.workspace.config.data.seq_len
        check = partial(split.check, eos_id, seq_len)
        self.workspace.checked.once(split, kind_of(split), seq_len, self.precision, check)
        if not self._settled:  # of models that are compared, all compute alike
            self._settled = True
            reader = RowReader(next(iter(self.sets.values())))
            settle_forward("eval", split, reader, self.config.batch_rows, self.device)
        return split

    def model(self, name: str, source: ModelSource, beside: Beside | None = None) -> dict[str, Any]:
        """One model's entry of `models`, but for its kind."""
        identity = self._identity(self.workspace.fingerprint(source))
        found = self._kept(name, identity, beside)
        if found is not None and self._has_files(name, found):
            return found
        model = self.load(source)
        found = {"heldout": {n: self._heldout(model, n, name) for n in self.sets}}
        found["rolling"] = {n: self._rolling(model, n) for n in self.sets} if self.config.rolling else {}
        found["tasks"] = self._tasks(model, name)
        if beside is not None:
            beside.add(name, model)
        for n, figures in found["heldout"].items():
            say(f"eval {name}: {n} loss {figures['loss']:.4f}, perplexity {figures['perplexity']:.2f}")
        return self._keep_part(name, identity, found)

    def _identity(self, model: Any) -> str:
        return sha256_json({"made_from": self.made_from, "model": model, "holds": HOLDS})

    def _part(self, name: str) -> Path:
        return self.root / "parts" / f"{name}.json"

    def _kept(self, name: str, identity: str, beside: Beside | None) -> dict[str, Any] | None:
        """What was found before of the same model under the same settings. A part that is of no use is deleted, since the
        files that belong to it are about to be overwritten."""
        part = read_json(self._part(name)) if self._part(name).is_file() else {}
        if part.get("identity") == identity and (beside is None or beside.has(name)):
            return dict(part["found"])
        self._part(name).unlink(missing_ok=True)
        return None

    def _has_files(self, name: str, found: dict[str, Any]) -> bool:
        files = [self._documents(n, name) for n in self.sets] + [self.outputs_of(t, name) for t in found["tasks"]]
        return all(f.is_file() for f in files)

    def _keep_part(self, name: str, identity: str, found: dict[str, Any]) -> dict[str, Any]:
        plain: dict[str, Any] = finite(found)
        write_json(self._part(name), {"identity": identity, "found": plain})
        return plain

    def checkpoint(self, one: Checkpoint, load: Callable[[], SplitModel], beside: Beside) -> dict[str, Any]:
        """Held-out figures of a checkpoint, whose weights are put into the model that `load` gives."""
        identity = self._identity(sha256_file(one.directory / STATE))  # which holds the hash of every file beside it
        kept = self._kept(one.name, identity, beside)
        if kept is not None and (self._on_the_way(one.name).is_file() or not self.config.checkpoints):
            return kept
        model = load()
        load_weights(one.directory, model)
        found: dict[str, Any] = {"heldout": {}}
        for name in self.sets if self.config.checkpoints else ():
            losses = self._losses(model, name, one.name)
            found["heldout"][name] = self._figures(model, name, losses)
            if name == self.config.target:
                self._keep(grouped(losses), self._on_the_way(one.name))
        beside.add(one.name, model)
        told = ", ".join(f"{n} loss {figures['loss']:.4f}" for n, figures in found["heldout"].items())
        say(f"eval {one.name}: {told or 'losses of the diagnostic rows'}")
        return self._keep_part(one.name, identity, found)

    # --- held-out sets ---

    def _heldout(self, model: SplitModel, name: str, label: str) -> dict[str, Any]:
        losses = self._losses(model, name, label)
        self._keep(losses, self._documents(name, label))
        return self._figures(model, name, losses)

    def _losses(self, model: SplitModel, name: str, label: str) -> DocumentLosses:
        tokens = self.sets[name]
        with progress(f"eval {label}: held-out {name}", tokens.rows, "rows") as ticker:
            return document_losses(model, RowReader(tokens), self.device, self.config.batch_rows, ticker.advance)

    def _figures(self, model: SplitModel, name: str, losses: DocumentLosses) -> dict[str, Any]:
        tokens = self.sets[name]
        whole, counts = losses.whole, tokens.manifest.counts
        how = (self.config.level, mix_seed("intervals", self.workspace.config.seed))
        interval = mean_interval(losses.nats_M, losses.predicted_M, *how)
        in_bits = whole.bits_per_byte(counts["tokens"], counts["text_bytes"])
        bits_M = losses.nats_M / math.log(2) * counts["tokens"] / max(1, whole.predicted)
        bytes_M = self._bytes(name, losses.document_M)
        of_bits = mean_interval(bits_M, bytes_M, *how) if abs(bytes_M.sum() / counts["text_bytes"] - 1) < LOSSY else None
        return {
            "loss": whole.loss,
            "perplexity": whole.perplexity,
            "bits_per_byte": in_bits,
            "predicted_tokens": whole.predicted,
            "rows": rows_hash(tokens, None, model.intra_document_mask),
            "precision": arithmetic(model, False),
            "documents": len(losses.document_M),
            "effective_documents": effective_documents(losses.predicted_M),
            "interval": list(interval) if interval else None,
            "bits_per_byte_interval": list(of_bits) if of_bits else None,
        }

    def _rolling(self, model: SplitModel, name: str) -> dict[str, Any]:
        """Bits per byte of a held-out set by lm-evaluation-harness' definition, and the tokens of its window."""
        tokens, bos, eos_id = self.sets[name], self.workspace.bos(), self.workspace.tokenizer().eos_id
        window, prefix_id = window_of(model.model), bos.id if bos is not None else eos_id
        batch_tokens = self.config.batch_rows * self.workspace.config.data.seq_len
        sizes = (window, tokens.manifest.counts["text_bytes"])
        found = rolling_bits_per_byte(model, RowReader(tokens), prefix_id, eos_id, *sizes, self.device, batch_tokens)
        return {"bits_per_byte": found, "window": window}

    def _bytes(self, name: str, document_M: np.ndarray) -> np.ndarray:
        """Bytes of text of a held-out set's documents."""
        if name not in self._sizes:
            self._sizes[name] = document_bytes(RowReader(self.sets[name]), self.workspace.tokenizer())
        return np.array([self._sizes[name][d] for d in document_M.tolist()], dtype=np.float64)

    def _documents(self, heldout: str, model: str) -> Path:
        return self.root / "documents" / heldout / f"{model}.parquet"

    def _on_the_way(self, checkpoint: str) -> Path:
        return self.root / "on_the_way" / f"{checkpoint}.parquet"

    @staticmethod
    def _keep(losses: DocumentLosses, file: Path) -> None:
        table = pa.table({"document": losses.document_M, "predicted": losses.predicted_M, "nats": losses.nats_M})
        with publishing(file) as temporary:
            pq.write_table(table, temporary)

    def documents(self, heldout: str, model: str) -> DocumentLosses:
        """What `model` kept of a held-out set."""
        return _read(self._documents(heldout, model))

    def on_the_way(self, checkpoint: str) -> DocumentLosses:
        """What a checkpoint kept of the target set: of many documents, groups of them."""
        return _read(self._on_the_way(checkpoint))

    # --- tasks ---

    @cached_property
    def generation_tasks(self) -> list[Any]:
        """The tasks that slmctl generates answers for itself."""
        from slmctl.comparison.shots import few_shots
        from slmctl.evaluation.generation import own_task
        from slmctl.evaluation.tasks import suite_tasks

        found = []
        for task in self.config.tasks:
            if isinstance(task, TaskConfig):
                found.append(own_task(task, few_shots(self.workspace, task)))
            elif isinstance(task, SuiteConfig) and task.suite == "rho-math":
                tasks, notes = suite_tasks(task, self.workspace.config.seed)
                found += tasks
                self._task_notes += notes
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
                self._task_notes += notes
        return found

    def task_notes(self) -> list[str]:
        """Readies the tasks; returns what is left out of them, and why. Raises `ConfigError` where two have one name."""
        from slmctl.evaluation.general_suite import result_names

        result_names(self.config.tasks)
        _ = self.generation_tasks
        if self.harness_tasks:
            from slmctl.evaluation.harness_tasks import find, require_harness

            with waiting("eval: loading lm-evaluation-harness"):
                require_harness()
                for task in self.harness_tasks:
                    find(task.harness)
        for note in self._task_notes:
            say(f"eval: {note}")
        return self._task_notes

    def _tasks(self, model: SplitModel, name: str) -> dict[str, Any]:
        found: dict[str, Any] = {}
        tokenizer, bos = self.workspace.tokenizer(), self.workspace.bos()
        bos_id = bos.id if bos is not None else None
        if self.generation_tasks:
            from slmctl.evaluation.generation import run_task

            for task in self.generation_tasks:
                found[task.name] = run_task(model.model, tokenizer, task, self.device, bos_id)
        if self.harness_tasks:
            from slmctl.evaluation.harness import run_harness

            doing = ["reading the tasks of lm-evaluation-harness"]

            def tell(task: str, done: int, total: int) -> None:
                doing[0] = f"task {task}, {done:,} of {total:,} requests"

            with waiting(lambda: f"eval {name}: {doing[0]}"):
                others = run_harness(self.harness_tasks, model.model, tokenizer.hf, self.device, None, tell, bos_id)
            if twice := sorted(set(found) & set(others)):
                raise ConfigError(f"eval.tasks: {twice[0]!r} is a task of lm-evaluation-harness, too. Rename your own.")
            found |= others
        for task_name, result in found.items():
            outputs = result.pop("outputs", [])
            result["unread"] = sum(o.get("found") in (None, "[invalid]") for o in outputs)  # no answer could be read
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
        lines = self.outputs_of(task, model).read_text(encoding="utf-8").split("\n")[:-1]  # texts may hold other line ends
        found = [json.loads(line).get("correct") for line in lines]
        return [bool(c) for c in found] if found and all(c in (0, 1) for c in found) else None


def _read(file: Path) -> DocumentLosses:
    table = pq.read_table(file)
    return DocumentLosses(*(table[n].to_numpy() for n in ("document", "nats", "predicted")))


def batches(rows: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """Parts of `rows`, of `size` each."""
    for at in range(0, len(rows), size):
        yield rows[at : at + size]


def token_losses_of(
    model: SplitModel,
    reader: RowReader,
    rows: np.ndarray,
    device: str,
    batch_rows: int,
    advance: Callable[[int], None] = lambda _: None,
) -> np.ndarray:
    """Losses [rows, T] of the rows' tokens (nats, float32; NaN where nothing is predicted). `advance` is told of rows done."""
    found = []
    for part in batches(rows, batch_rows):
        at = reader.fetch(part)
        found.append(row_losses(model, at.ids_BT, at.document_BT, device)[0])
        advance(len(part))
    return np.concatenate(found)
