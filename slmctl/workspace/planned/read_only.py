"""A pipeline as a run would find it: what lies where, and what it should be made from.

Nothing is locked, kept, fetched or written, and no folder is made. What a run would take back from stale/ is looked at where it
lies; what it would make is taken as absent.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from slmctl.config.pipeline import PipelineConfig
from slmctl.config.score import OWN_MODELS, ReferenceModel
from slmctl.config.sweeps import read_sweeps, with_sweeps
from slmctl.corpus.source_identity import input_fingerprint, unhashed_bytes
from slmctl.store.build import names_in, read_plan
from slmctl.store.manifest import Manifest, load_manifest
from slmctl.system.errors import InputError
from slmctl.system.files import read_json
from slmctl.system.local_storage import LocalFolder
from slmctl.system.storage import Folder
from slmctl.training.telemetry import read_log
from slmctl.workspace import identity
from slmctl.workspace.graph import further_scores, joined_scores
from slmctl.workspace.identity import UNKNOWN, Inputs, Unknown
from slmctl.workspace.means import SETS, to_look
from slmctl.workspace.output_dir import refuse_others
from slmctl.workspace.planned.decisions import Found, differing
from slmctl.workspace.precisions import as_recorded, chosen, chosen_for_scores, precision_in, with_precision
from slmctl.workspace.stale import DONE, INPUTS, latest_step, same_set, same_stage, set_is_complete, shards_of, strict
from slmctl.workspace.workspace import HASHED_BY_READERS, Workspace

T = TypeVar("T")


class Told:
    """Asks for facts one by one; of those that cannot be told, such as of a model that is not made yet, the first says why."""

    def __init__(self) -> None:
        self.unknown = ""

    def __call__(self, ask: Callable[[], T]) -> T | Unknown:
        try:
            return ask()
        except InputError as e:
            self.unknown = self.unknown or str(e)
            return UNKNOWN


class ReadOnlyWorkspace:
    """Looks at a pipeline. `workspace` is what it looks through: of those who look, too."""

    def __init__(self, config: PipelineConfig) -> None:
        """Raises `ConfigError` as opening its output_dir does."""
        self._at: dict[str, Path] = {}
        self.config = _with_local_models(with_sweeps(config, read_sweeps(Path(config.output_dir))))
        self.workspace = Workspace(self.config, to_look(self.config, self._at))
        self.root, self.store = self.workspace.root, self.workspace.store
        refuse_others(self.root, self.config.name)

    def put(self, label: str, place: Path | None) -> None:
        """From now on `label` lies at `place`; None: it is not there."""
        self._at[label] = place or self.root / ".cache" / "not made yet" / label

    @property
    def moves_aside(self) -> bool:
        """Whether sets that are made anew are moved to stale/: those that lie in output_dir itself."""
        return isinstance(self.store, LocalFolder) and self.config.store_dir is None

    # --- what is there ---

    def found(self, label: str) -> Found | None:
        """What lies in the place of a stage or a set; None where nothing does."""
        if label.startswith(SETS):
            return _set_found(self.store / label, label)
        return _stage_found(self.root / label)

    def in_stale(self, label: str, inputs: Inputs) -> Found | None:
        """What of stale/ a run would take back for `label`."""
        if not label.startswith(SETS):
            stage = same_stage(self.root, label, inputs, DONE)
            return _stage_found(stage) if stage is not None else None
        place = same_set(self.root, label, inputs) if self.config.store_dir is None else None
        return _set_found(LocalFolder(place), label) if place is not None else None

    def last_step(self, label: str) -> int:
        """The step that a run has logged last, in its own place; 0 where it has logged none."""
        runs = (self.root / label / "training", self.root / label)  # of base and reference, and of arms (and older bases)
        log = next((found for run in runs if (found := read_log(run / "metrics.jsonl"))), [])
        return int(log[-1]["step"]) if log else 0

    # --- what is wanted ---

    def wanted(self, label: str) -> tuple[Inputs, str]:
        """What a stage or a set should be made from, as far as that can be told now; and why not all of it can. Raises
        `InputError` where its texts cannot be read."""
        kind, _, name = label.partition("/")
        tell = Told()
        found: Inputs = getattr(self, f"_{kind}")(name, tell)
        return found, tell.unknown

    def _tokenizer(self, _name: str, _tell: Told) -> Inputs:
        return self.workspace.tokenizer_inputs()

    def _tokens(self, name: str, tell: Told) -> Inputs:
        sources = self.workspace.sources(name)
        texts: Any = UNKNOWN
        if (size := unhashed_bytes(sources, self.workspace.hashes)) > HASHED_BY_READERS:
            tell.unknown = f"its texts have {size / 1e9:.0f} GB that were not hashed yet, which a run does"
        elif any(s.hub and not Path(s.hub).is_dir() for s in sources):
            tell.unknown = "the Hub was not asked for its texts"
        else:
            texts = input_fingerprint(sources, self.workspace.hashes)
        tokenizer = tell(lambda: self.workspace.tokenizer().fingerprint())
        return identity.token_set(self.config, texts, tokenizer, tell(self.workspace.models.bos_inputs))

    def _base(self, _name: str, tell: Told) -> Inputs:
        scratch = self.config.model.scratch
        assert scratch is not None
        models = self.workspace.models
        return identity.base(self.config, scratch, tell(models.bos_inputs), models.content("corpus"))

    def _reference(self, _name: str, tell: Told) -> Inputs:
        bos = tell(self.workspace.models.bos_inputs)
        return self.workspace.models.reference_from(bos, tell(self._base_model))

    def _scores(self, name: str, tell: Told) -> Inputs:
        reference = tell(lambda: self.workspace.fingerprint(self.workspace.reference_source(name)))
        corpus = tell(lambda: self._manifest("tokens/corpus"))
        if isinstance(corpus, Unknown):
            return identity.score_set(self.config, UNKNOWN, UNKNOWN, reference)
        return identity.score_set(self.config, corpus.content_hash, corpus.made_from["tokenizer"], reference)

    def _pretrain(self, name: str, tell: Told) -> Inputs:
        arm = self.config.pretrain.arms[name]
        bos, base = tell(self.workspace.models.bos_inputs), tell(self._base_model)
        corpus = tell(lambda: self._manifest("tokens/corpus").content_hash)
        scores = None
        if arm.selection.needs_reference:
            scores = tell(lambda: self._manifest(f"scores/{joined_scores(self.config, arm)}").content_hash)
        further = {n: tell(partial(self._content, f"scores/{n}")) for n in further_scores(self.config, arm)}
        curated = tell(partial(self._content, "tokens/curated")) if "log_odds" in arm.selection.features else None
        return identity.arm(self.config, arm, bos, base, corpus, scores, further, curated)

    def _content(self, label: str) -> str:
        return self._manifest(label).content_hash

    def _base_model(self) -> dict[str, Any]:
        return self.workspace.fingerprint(self.workspace.base_source())

    def _manifest(self, label: str) -> Manifest:
        return load_manifest(self.workspace.places.set(label), label.partition("/")[0])

    # --- precision: auto ---

    def settle(self, label: str, inputs: Inputs, found: Found | None) -> Inputs:
        """`inputs` with the precision that a run would take for `auto`, as far as `inputs` are known."""
        if precision_in(inputs) != "auto":
            return inputs
        if found is not None and found.inputs is not None:
            kept = as_recorded(inputs, found.inputs)
            if not differing(found.inputs, kept, partly=True):
                return kept
        device = self.workspace.device
        taken = chosen_for_scores(device) if label.startswith(SETS) else chosen(device, self._width)
        return with_precision(inputs, taken)

    def _width(self) -> int:
        from slmctl.model.loading import hidden_size

        scratch = self.config.model.scratch
        try:
            return scratch.hidden_size if scratch is not None else hidden_size(self.workspace.base_source())
        except InputError:  # it lies on the Hub
            return 0


def _set_found(folder: Folder, label: str) -> Found | None:
    plan = read_plan(folder)
    if plan is None:
        return Found(None, False, place=str(folder)) if any(not n.startswith(".") for n in folder.listing()) else None
    shards = shards_of(plan)
    complete = set_is_complete(folder, label)
    return Found(strict(plan["made_from"]), complete, len(names_in(folder, shards)), str(folder), shards)


def _stage_found(folder: Path) -> Found | None:
    if not folder.is_dir() or not any(folder.iterdir()):
        return None
    record = folder / INPUTS
    inputs = strict(read_json(record)) if record.is_file() else None
    return Found(inputs, (folder / DONE).is_file(), latest_step(folder), str(folder))


def _with_local_models(config: PipelineConfig) -> PipelineConfig:
    """The configuration with models of the Hub by the folders in which they were kept when they were fetched."""
    found = config.model_copy(deep=True)
    model = found.model
    model.path, model.revision = _kept(model.path, model.revision)
    model.tokenizer, _ = _kept(model.tokenizer, None)
    for name, given in found.score.references.items():
        if given not in OWN_MODELS:
            one = ReferenceModel(path=given) if isinstance(given, str) else given
            path, revision = _kept(one.path, one.revision)
            found.score.references[name] = one.model_copy(update={"path": path, "revision": revision})
    return found


def _kept(path: str | None, revision: str | None) -> tuple[str | None, str | None]:
    if path is None or Path(path).is_dir() or path.startswith((".", "/", "~")) or path.count("/") > 1:
        return path, revision
    import huggingface_hub

    try:
        return huggingface_hub.snapshot_download(path, revision=revision, local_files_only=True), None
    except Exception:  # it was not fetched yet
        return path, revision
