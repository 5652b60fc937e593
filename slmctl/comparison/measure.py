"""What each model is measured by: held-out losses by document, tasks, and per-token losses of the diagnostic rows.

Results of one model are kept as soon as they are there, so that an evaluation that is stopped goes on where it was.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from slmctl.comparison.compared import Checkpoint, Conditions, Model
from slmctl.comparison.crossings import grouped
from slmctl.comparison.measure_tasks import Tasks
from slmctl.comparison.token_losses import TokenLosses
from slmctl.evaluation.heldout import DocumentLosses, arithmetic, document_bytes, document_losses, rows_hash
from slmctl.evaluation.intervals import effective_documents, mean_interval
from slmctl.evaluation.rolling import rolling_bits_per_byte, window_of
from slmctl.model.forward_threads import settle_forward
from slmctl.model.loading import load_model
from slmctl.model.source import ModelSource
from slmctl.model.split import SplitModel
from slmctl.store.order import mix_seed
from slmctl.store.reader import RowReader
from slmctl.system.console import progress, say
from slmctl.system.files import publishing, read_json, write_json
from slmctl.system.hashes import sha256_file, sha256_json
from slmctl.training.checkpoint_files import STATE, load_weights
from slmctl.training.telemetry import finite
from slmctl.workspace.start_checks import kind_of

PART_VERSION = 2
"""Of what is kept of one model: parts of another are measured anew."""
LOSSY = 0.01
"""Share of a set's bytes by which its decoded tokens may differ from its text."""


class Measure:
    """Measures models, one at a time, and keeps what it finds under `eval/`."""

    def __init__(self, conditions: Conditions) -> None:
        self.conditions, self.settings = conditions, conditions.settings
        self.tasks = Tasks(conditions)
        self._text_bytes: dict[str, dict[int, int]] = {}
        self._settled = False

    # --- models ---

    def load(self, source: ModelSource) -> SplitModel:
        """A model, checked, in evaluation mode."""
        given = self.conditions
        split = SplitModel(load_model(source, given.precision, given.device), given.data.intra_document_mask).eval()
        seq_len = given.data.seq_len
        check = partial(split.check, given.tokenizer.eos_id, seq_len)
        given.checked.once(split, kind_of(split), seq_len, given.precision, check)
        if not self._settled:  # of models that are compared, all compute alike
            self._settled = True
            reader = RowReader(next(iter(given.heldout.values())))
            settle_forward("eval", split, reader, self.settings.batch_rows, given.device)
        return split

    def model(self, name: str, model: Model, token_losses: TokenLosses | None = None) -> dict[str, Any]:
        """One model's entry of `models`, but for its kind."""
        identity = self._identity(model.fingerprint)
        found = self._kept(name, identity, token_losses)
        if found is not None and self._has_files(name, found):
            return found
        split = self.load(model.source)
        found = {"heldout": {n: self._heldout(split, n, name) for n in self.conditions.heldout}}
        found["rolling"] = {n: self._rolling(split, n) for n in self.conditions.heldout} if self.settings.rolling else {}
        found["tasks"] = self.tasks.measure(split, name)
        if token_losses is not None:
            token_losses.add(name, split)
        for n, figures in found["heldout"].items():
            say(f"eval {name}: {n} loss {figures['loss']:.4f}, perplexity {figures['perplexity']:.2f}")
        return self._keep_part(name, identity, found)

    def checkpoint(self, one: Checkpoint, load: Callable[[], SplitModel], token_losses: TokenLosses) -> dict[str, Any]:
        """Held-out figures of a checkpoint, whose weights are put into the model that `load` gives."""
        identity = self._identity(sha256_file(one.directory / STATE))  # which holds the hash of every file beside it
        kept = self._kept(one.name, identity, token_losses)
        if kept is not None and (self._checkpoint_file(one.name).is_file() or not self.settings.checkpoints):
            return kept
        split = load()
        load_weights(one.directory, split)
        found: dict[str, Any] = {"heldout": {}}
        for name in self.conditions.heldout if self.settings.checkpoints else ():
            losses = self._losses(split, name, one.name)
            found["heldout"][name] = self._figures(split, name, losses)
            if name == self.settings.target:
                _write(grouped(losses), self._checkpoint_file(one.name))
        token_losses.add(one.name, split)
        told = ", ".join(f"{n} loss {figures['loss']:.4f}" for n, figures in found["heldout"].items())
        say(f"eval {one.name}: {told or 'losses of the diagnostic rows'}")
        return self._keep_part(one.name, identity, found)

    # --- what was measured before ---

    def _identity(self, model: Any) -> str:
        return sha256_json({"made_from": self.conditions.figures_from, "model": model, "holds": PART_VERSION})

    def _part(self, name: str) -> Path:
        return self.conditions.folder / "parts" / f"{name}.json"

    def _kept(self, name: str, identity: str, token_losses: TokenLosses | None) -> dict[str, Any] | None:
        """What was found before of the same model under the same settings. A part that is of no use is deleted, since the
        files that belong to it are about to be overwritten."""
        part = read_json(self._part(name)) if self._part(name).is_file() else {}
        if part.get("identity") == identity and (token_losses is None or token_losses.has(name)):
            return dict(part["found"])
        self._part(name).unlink(missing_ok=True)
        return None

    def _has_files(self, name: str, found: dict[str, Any]) -> bool:
        files = [self._documents_file(n, name) for n in self.conditions.heldout]
        files += [self.tasks.outputs_file(t, name) for t in found["tasks"]]
        return all(f.is_file() for f in files)

    def _keep_part(self, name: str, identity: str, found: dict[str, Any]) -> dict[str, Any]:
        plain: dict[str, Any] = finite(found)
        write_json(self._part(name), {"identity": identity, "found": plain})
        return plain

    # --- held-out sets ---

    def _heldout(self, model: SplitModel, name: str, label: str) -> dict[str, Any]:
        losses = self._losses(model, name, label)
        _write(losses, self._documents_file(name, label))
        return self._figures(model, name, losses)

    def _losses(self, model: SplitModel, name: str, label: str) -> DocumentLosses:
        tokens = self.conditions.heldout[name]
        with progress(f"eval {label}: held-out {name}", tokens.rows, "rows") as ticker:
            how = (self.conditions.device, self.settings.batch_rows)
            return document_losses(model, RowReader(tokens), *how, ticker.advance)

    def _figures(self, model: SplitModel, name: str, losses: DocumentLosses) -> dict[str, Any]:
        tokens = self.conditions.heldout[name]
        whole, counts = losses.whole, tokens.manifest.counts
        how = (self.settings.level, mix_seed("intervals", self.conditions.seed))
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
        given, tokens = self.conditions, self.conditions.heldout[name]
        eos_id = given.tokenizer.eos_id
        window, prefix_id = window_of(model.model), given.bos.id if given.bos is not None else eos_id
        batch_tokens = self.settings.batch_rows * given.data.seq_len
        sizes = (window, tokens.manifest.counts["text_bytes"])
        found = rolling_bits_per_byte(model, RowReader(tokens), prefix_id, eos_id, *sizes, given.device, batch_tokens)
        return {"bits_per_byte": found, "window": window}

    def _bytes(self, name: str, document_M: np.ndarray) -> np.ndarray:
        """Bytes of text of a held-out set's documents."""
        if name not in self._text_bytes:
            self._text_bytes[name] = document_bytes(RowReader(self.conditions.heldout[name]), self.conditions.tokenizer)
        return np.array([self._text_bytes[name][d] for d in document_M.tolist()], dtype=np.float64)

    # --- losses by document, as files ---

    def documents(self, heldout: str, model: str) -> DocumentLosses:
        """What `model` kept of a held-out set."""
        return _read(self._documents_file(heldout, model))

    def checkpoint_documents(self, checkpoint: str) -> DocumentLosses:
        """What a checkpoint kept of the target set: of many documents, groups of them."""
        return _read(self._checkpoint_file(checkpoint))

    def _documents_file(self, heldout: str, model: str) -> Path:
        return self.conditions.folder / "documents" / heldout / f"{model}.parquet"

    def _checkpoint_file(self, checkpoint: str) -> Path:
        return self.conditions.folder / "on_the_way" / f"{checkpoint}.parquet"


def _write(losses: DocumentLosses, file: Path) -> None:
    table = pa.table({"document": losses.document_M, "predicted": losses.predicted_M, "nats": losses.nats_M})
    with publishing(file) as temporary:
        pq.write_table(table, temporary)


def _read(file: Path) -> DocumentLosses:
    table = pq.read_table(file)
    return DocumentLosses(*(table[n].to_numpy() for n in ("document", "nats", "predicted")))
