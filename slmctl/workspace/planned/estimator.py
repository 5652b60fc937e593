"""What is known here of texts, models and rates, and the estimates that it gives for each stage of a plan."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from statistics import median

import pyarrow.parquet as pq

from slmctl.config.data import SourceConfig
from slmctl.config.score import OWN_MODELS
from slmctl.config.selection import SelectionConfig
from slmctl.config.training import TrainingConfig, rows_per_step, total_steps
from slmctl.corpus.documents import Tally, documents
from slmctl.corpus.records import TO_THE_END, Slice
from slmctl.corpus.source_files import files_of
from slmctl.corpus.text_files import COMPRESSED, kind_of, open_raw, stored_size, text_size
from slmctl.store.build import read_plan
from slmctl.store.manifest import Manifest, load_manifest
from slmctl.system.errors import SlmError
from slmctl.system.local_storage import LocalFolder
from slmctl.system.processes import cores
from slmctl.training.telemetry import read_log
from slmctl.workspace.planned.cost_model import (
    SHARE_OF_MATMUL,
    TOKEN_BYTES,
    Shape,
    matmul_rate,
    score_bytes,
    scratch_shape,
    shape,
    training_bytes,
    training_flops,
)
from slmctl.workspace.planned.decisions import KEPT, Decision
from slmctl.workspace.planned.steps import epoch_rows
from slmctl.workspace.stale import moved_aside, shards_of
from slmctl.workspace.workspace import Workspace

ALL = SelectionConfig(criterion="all", group_rows=1)
PREPARE_BYTES = 1.95e6
"""Bytes of text that a core prepares in a second (docs/how-it-works.md: 3.9 MB on two)."""
ASSUMED_BYTES = 4.0
"""Of text a token, where no tokenizer is here that could tell."""
SAMPLED = 20
"""Compressed files of a source that are looked into for the size of their text."""


@dataclass(frozen=True)
class Estimate:
    """What a stage takes; None where that cannot be told."""

    seconds: float | None = None
    bytes: tuple[float, float] | None = None
    steps: int | None = None
    """Of training in all, those that are done included."""
    epochs: float | None = None
    """Of its data, in all."""


class Estimator:
    """Estimates of a plan's stages. `how` says, as they are asked for, what they rest on."""

    def __init__(self, workspace: Workspace, decisions: dict[str, Decision]) -> None:
        self.workspace, self.config, self.decisions = workspace, workspace.config, decisions
        self.seq_len = self.config.data.seq_len
        self.how: list[str] = []
        self.problems: list[str] = []

    def of(self, decision: Decision) -> Estimate:
        kind, _, name = decision.label.partition("/")
        if decision.action in KEPT:
            return Estimate(0.0, (0.0, 0.0))
        found: Estimate = getattr(self, f"_{kind}")(name, decision)
        return found

    def _say(self, line: str) -> None:
        if line not in self.how:
            self.how.append(line)

    # --- sets ---

    def _tokenizer(self, _name: str, _decision: Decision) -> Estimate:
        scratch = self.config.model.scratch
        assert scratch is not None
        texts = [self._text_bytes("curated"), self._text_bytes("corpus")]
        half = scratch.tokenizer_sample_mb * 2**20 / 2
        size = sum(min(t, half) for t in texts if t is not None) if None not in texts else None
        return Estimate(size / PREPARE_BYTES if size is not None else None, (0.0, 1e6))

    def _tokens(self, name: str, decision: Decision) -> Estimate:
        tokens, text = self.tokens_of(name), self._text_bytes(name)
        if tokens is None or text is None:
            return Estimate()
        rate = PREPARE_BYTES * cores() / 1e6
        self._say(f"prepare: {rate:.1f} MB of text a second on {cores()} cores, by what was measured on other ones")
        left = self._left(decision, f"tokens/{name}")
        return Estimate(left * text / PREPARE_BYTES / cores(), (TOKEN_BYTES[0] * tokens * left, TOKEN_BYTES[1] * tokens * left))

    def _scores(self, name: str, decision: Decision) -> Estimate:
        tokens, model = self.tokens_of("corpus"), self._reference_shape(name)
        if tokens is None:
            return Estimate()
        low, high = score_bytes(self.config.score)
        left = self._left(decision, f"scores/{name}")
        seconds = self._seconds(left * tokens * model.scoring(self.seq_len)) if model is not None else None
        return Estimate(seconds, (low * tokens * left, high * tokens * left))

    def _left(self, decision: Decision, label: str) -> float:
        """Share of a set's shards that are still to be made."""
        if not decision.done or decision.place is None:
            return 1.0
        place = Path(decision.place)
        plan = read_plan(LocalFolder(place) if place.is_dir() else self.workspace.store / label)
        return 1.0 - decision.done / max(1, shards_of(plan)) if plan is not None else 1.0

    # --- training ---

    def _base(self, _name: str, decision: Decision) -> Estimate:
        scratch = self.config.model.scratch
        assert scratch is not None
        if scratch.train is None:
            return Estimate(1.0, (4.0 * scratch_shape(self.config).parameters,) * 2)
        return self._training("base", scratch.train, ALL, decision)

    def _reference(self, _name: str, decision: Decision) -> Estimate:
        return self._training("reference", self.config.reference, ALL, decision)

    def _pretrain(self, name: str, decision: Decision) -> Estimate:
        arm = self.config.pretrain.arms[name]
        return self._training(name, arm, arm.selection, decision)

    def _training(self, name: str, run: TrainingConfig, selection: SelectionConfig, decision: Decision) -> Estimate:
        rows = epoch_rows(self.config, decision.label, self.rows_of)
        if rows is None and run.epochs is not None:
            return Estimate()
        from slmctl.training.budget import check_budget

        try:
            check_budget(name, run, selection, self.seq_len, int(rows or 0), 1)
        except SlmError as e:
            self.problems.append(str(e))
        steps, model = total_steps(run, self.seq_len, int(rows or 0)), self.base_shape
        epochs = steps * rows_per_step(run, self.seq_len) / rows if rows else None
        if model is None:
            return Estimate(steps=steps, epochs=epochs)
        heldout = [min(run.eval_tokens or n, n) for n in self._heldout_tokens() if n is not None]
        left = max(0, steps - decision.done)
        flops = training_flops(model, run, selection, self.seq_len, steps, left, sum(heldout))
        size = training_bytes(model, run, steps)
        return Estimate(self._seconds(flops), (size, size), steps, epochs)

    def _heldout_tokens(self) -> list[float | None]:
        return [self.tokens_of(f"heldout/{n}") for n in self.workspace.heldout_names()]

    def _eval(self, _name: str, _decision: Decision) -> Estimate:
        model, heldout, e = self.base_shape, self._heldout_tokens(), self.config.eval
        if model is None or None in heldout:
            return Estimate(bytes=(0.0, 1e7))
        arms = self.config.pretrain.arms.values()
        steps = [total_steps(a, self.seq_len, int(self.rows_of("corpus") or 0)) for a in arms]
        kept = sum(s // a.keep_every if a.keep_every else a.keep_last for a, s in zip(arms, steps, strict=True))
        models = 2 + len(arms) + (kept if e.checkpoints else 0)
        tokens = models * sum(n for n in heldout if n) + (1 + kept) * e.dynamics_tokens * e.dynamics
        if e.tasks:
            self._say("eval: without its tasks, whose generations take what they take")
        return Estimate(self._seconds(tokens * model.scoring(self.seq_len)), (0.0, 1e7))

    # --- models and rates ---

    @cached_property
    def base_shape(self) -> Shape | None:
        if self.config.model.scratch is not None:
            return scratch_shape(self.config)
        return _shape_of(Path(str(self.config.model.path))) if not self.config.model.gguf_file else None

    def _reference_shape(self, name: str) -> Shape | None:
        given = self.config.score.references[name]
        if given in OWN_MODELS:
            return self.base_shape
        return _shape_of(Path(given if isinstance(given, str) else given.path))

    def _seconds(self, flops: float) -> float | None:
        return flops / self.rate if self.rate is not None else None

    @cached_property
    def rate(self) -> float | None:
        """FLOP/s that training reaches here: by the logs of this output_dir, else by a moment's products of matrices."""
        if (measured := self._logged_rate()) is not None:
            return measured
        try:
            device = self.workspace.device
        except SlmError as e:
            self.problems.append(str(e))
            return None
        found = matmul_rate(device)
        share = f"{found / 1e9:,.0f} GFLOP/s in a product of matrices on {device}, measured just now"
        self._say(f"training and scoring: FLOPs a token, at {SHARE_OF_MATMUL:.0%} of {share}; wrong by several times where ")
        self.how[-1] += "models are small, the machine is busy, or there are several ranks; and some seconds a stage to start"
        return SHARE_OF_MATMUL * found

    def _logged_rate(self) -> float | None:
        root, base = self.workspace.root, self.base_shape
        if base is None:
            return None
        runs: list[tuple[str, SelectionConfig]] = [(f"pretrain/{a}", s.selection) for a, s in self.config.pretrain.arms.items()]
        runs += [("reference/training", ALL), ("base/training", ALL), ("base", ALL)]
        for label, selection in runs:
            for place in (root / label, *moved_aside(root, label)):
                speeds = [m["tokens_per_s"] for m in read_log(place / "metrics.jsonl")[-200:] if m.get("tokens_per_s")]
                if speeds and _same_shape(place, base):
                    self._say(f"training and scoring: FLOPs a token, at the rate that {place}/metrics.jsonl has")
                    return float(median(speeds)) * base.training(selection, self.seq_len)
        return None

    # --- texts ---

    def rows_of(self, name: str) -> float | None:
        """Rows of a token set."""
        if (made := self._manifest(name)) is not None:
            return made.rows
        tokens = self.tokens_of(name)
        return max(1.0, tokens / self.seq_len) if tokens is not None else None

    def tokens_of(self, name: str) -> float | None:
        """Tokens of a token set: those that it has, else by the bytes of its text."""
        if (made := self._manifest(name)) is not None:
            return float(made.counts["tokens"])
        text = self._text_bytes(name)
        return text / self._bytes_per_token if text is not None else None

    def _manifest(self, name: str) -> Manifest | None:
        if self.decisions[f"tokens/{name}"].action not in KEPT:
            return None
        try:
            return load_manifest(self.workspace.tokens(name), "tokens")
        except SlmError:
            return None

    @cached_property
    def _bytes_per_token(self) -> float:
        for label in (d for d in self.decisions if d.startswith("tokens/")):
            made = self._manifest(label.removeprefix("tokens/"))
            if made is not None and made.counts.get("text_bytes"):
                self._say(f"tokens: {made.counts['text_bytes'] / made.counts['tokens']:.2f} bytes of text each, as in {label}")
                return made.counts["text_bytes"] / made.counts["tokens"]
        try:
            first = next(f for f in files_of(self.config.data.corpus[0]))
            texts = [t for _, t in islice(documents(self.config.data.corpus[0], _beginning(first), Tally()), 50)]
            tokens = sum(len(ids) for ids in self.workspace.tokenizer().encode([t[:4096] for t in texts]))
            found = sum(len(t[:4096].encode()) for t in texts) / tokens
            self._say(f"tokens: {found:.2f} bytes of text each, as in the corpus's first documents")
            return found
        except (SlmError, StopIteration, ZeroDivisionError):
            self._say(f"tokens: {ASSUMED_BYTES:.0f} bytes of text each, as no tokenizer is here yet that could tell")
            return ASSUMED_BYTES

    def _text_bytes(self, name: str) -> float | None:
        """Bytes of a set's text; None for what is on the Hub, or not here."""
        sizes = [_source_bytes(s) for s in self.workspace.sources(name)]
        return sum(s for s in sizes if s is not None) if None not in sizes else None


def _source_bytes(source: SourceConfig) -> float | None:
    if source.hub is not None:
        return None
    try:
        files = files_of(source)
        looked = files if not any(f.endswith(COMPRESSED) for f in files) else files[:SAMPLED]
        sizes = [_text_bytes(f) for f in looked]
        share = sum(map(stored_size, looked)) / max(1, sum(map(stored_size, files))) if len(looked) < len(files) else 1.0
        whole = sum(sizes) / max(share, 1e-9)
        if source.max_documents is None:
            return whole
        first = Tally()
        for _ in islice(documents(source, _beginning(files[0]), first), 100):
            pass
        return min(whole, source.max_documents * first.text_bytes / max(1, first.documents))
    except SlmError:
        return None


def _text_bytes(file: str) -> float:
    if kind_of(file) != "parquet":
        return text_size(file)[0]
    with open_raw(file) as raw, pq.ParquetFile(raw) as parquet:
        return float(sum(parquet.metadata.row_group(g).total_byte_size for g in range(parquet.num_row_groups)))


def _beginning(file: str) -> Slice:
    return Slice(0, file, 0, 1 if kind_of(file) == "parquet" else TO_THE_END)


def _shape_of(folder: Path) -> Shape | None:
    """A local model's shape, by its configuration and what its files say that they hold; None where they do not tell."""
    from slmctl.model.weight_files import stored_weights

    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        config = config.get("text_config", config)
        parameters = 0
        for one in stored_weights(folder).values():
            size = 1
            for n in one.shape:
                size *= n
            parameters += size
        sizes = (config["vocab_size"], config["hidden_size"], config["num_hidden_layers"])
        return shape(parameters, *sizes, bool(config.get("tie_word_embeddings", True)))
    except (SlmError, OSError, ValueError, KeyError, AttributeError):
        return None


def _same_shape(run: Path, wanted: Shape) -> bool:
    """Whether a run's model is of the shape that is wanted now, as far as that can be told."""
    model = run.parent if run.name == "training" else run / "model"
    found = _shape_of(model) if (model / "config.json").is_file() else None
    return found is None or found.parameters == wanted.parameters
