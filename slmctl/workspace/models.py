"""The models of a pipeline: base, references and tokenizer; where they are, and whether what was made is what is wanted now."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from slmctl.config.pipeline import PipelineConfig
from slmctl.config.score import ReferenceModel
from slmctl.corpus.bos import Bos, bos_of
from slmctl.corpus.tokenizer import Tokenizer, load_tokenizer
from slmctl.model.source import ModelSource, local_copy, model_fingerprint
from slmctl.store.manifest import exists, load_manifest
from slmctl.system.errors import InputError
from slmctl.system.files import read_json
from slmctl.workspace import identity
from slmctl.workspace.folders import Folders
from slmctl.workspace.identity import UNKNOWN, BosInputs, Fingerprint, Hash, Inputs
from slmctl.workspace.precisions import as_recorded
from slmctl.workspace.stale import DONE, INPUTS


class Models:
    """What of a pipeline's models the workspace answers for."""

    def __init__(self, folders: Folders) -> None:
        self.folders = folders
        self.kept_tokenizer: Tokenizer | None = None
        """Once it was loaded."""

    @property
    def config(self) -> PipelineConfig:
        return self.folders.config

    # --- the tokenizer ---

    def tokenizer(self) -> Tokenizer:
        """The pipeline's one tokenizer. Raises `InputError` where it is not there yet."""
        if self.kept_tokenizer is None:
            self.kept_tokenizer = self._load_tokenizer()
        return self.kept_tokenizer

    def _load_tokenizer(self) -> Tokenizer:
        model, own = self.config.model, self.folders.places.own_tokenizer
        self.folders.means.refuse_to_fetch(model.tokenizer or model.path)
        if model.scratch is not None:
            if not (own / DONE).is_file():
                raise InputError(f"{own} is absent or not complete. Run `slmctl prepare` first.")
            self.folders.locks.hold(str(own.relative_to(self.folders.root)))
            return load_tokenizer(str(own))
        if model.tokenizer is not None:
            return load_tokenizer(model.tokenizer)
        return load_tokenizer(str(model.path), model.gguf_file, model.revision)

    def bos(self) -> Bos | None:
        """The beginning-of-sequence token that rows and prompts begin with; None where they begin with none."""
        data = self.config.data
        if data.bos == "never" or (data.bos == "auto" and self.config.model.scratch is not None):
            return None  # the template of a tokenizer that is trained here puts nothing in front
        return bos_of(self.tokenizer(), data.bos, "document" if data.intra_document_mask else "row")

    def bos_inputs(self) -> BosInputs:
        return found.inputs() if (found := self.bos()) is not None else None

    # --- base and references ---

    def fingerprint(self, source: ModelSource) -> dict[str, Any]:
        return model_fingerprint(source, self.folders.hashes)

    def base(self) -> ModelSource:
        """The base model: what the configuration names, or the one trained from scratch.

        Raises `MismatchError` where the latter was made with other settings, or with another tokenizer than the present.
        """
        model, folder = self.config.model, self.folders.places.base
        if model.scratch is None:
            return self._given(ModelSource(str(model.path), model.gguf_file, model.revision, model.attn_implementation))
        if not (folder / DONE).is_file():
            raise InputError(f"{folder} is absent or not complete. Run `slmctl train-base` first.")
        made = read_json(folder / INPUTS)
        wanted = as_recorded(self.base_inputs(), made)
        path = str(self.folders.places.base_model)
        found = {**{k: made.get(k) for k in wanted}, "tokenizer": load_tokenizer(path).fingerprint()}
        wanted = {**wanted, "tokenizer": self.tokenizer().fingerprint()}
        self.folders.refuse("base", found, wanted, "Run `slmctl train-base` again.")
        return ModelSource(path, attn_implementation=model.attn_implementation)

    def reference(self, name: str) -> ModelSource:
        """The model behind a score set: the trained reference, or another that the configuration names.

        Raises `MismatchError` where the reference was trained with other settings than the configuration has now.
        """
        given, folder = self.config.score.references[name], self.folders.places.reference
        attention = self.config.model.attn_implementation
        if given == "base":
            return self.base()
        if given != "reference":
            model = ReferenceModel(path=given) if isinstance(given, str) else given
            return self._given(ModelSource(model.path, model.gguf_file, model.revision, attention))
        if not (folder / DONE).is_file():
            raise InputError(f"{folder} is absent or not complete. Run `slmctl train-ref` first.")
        made = read_json(folder / INPUTS)
        wanted = as_recorded(self.reference_inputs(), made)
        self.folders.refuse("reference", {k: made.get(k) for k in wanted}, wanted, "Run `slmctl train-ref` again.")
        return ModelSource(str(folder), attn_implementation=attention)

    def _given(self, source: ModelSource) -> ModelSource:
        self.folders.means.refuse_to_fetch(source.path)
        return local_copy(source)

    # --- what those that are made here are made from ---

    def base_inputs(self) -> Inputs:
        """What decides a base from scratch; its rows as far as they are here."""
        scratch = self.config.model.scratch
        assert scratch is not None
        return identity.base(self.config, scratch, self.bos_inputs(), self.content("corpus"))

    def reference_inputs(self) -> Inputs:
        """What decides the reference model; its base and rows as far as they are here."""
        base: Fingerprint = UNKNOWN
        with suppress(InputError):  # a stage may run on a machine that has the reference alone
            base = self.fingerprint(self.base())
        return self.reference_from(self.bos_inputs(), base)

    def reference_from(self, bos: BosInputs, base: Fingerprint) -> Inputs:
        """The same, given what rows begin with and the base."""
        kept_on = self.config.reference.keep_best_on
        kept_by = self.content(f"heldout/{kept_on}") if kept_on is not None else UNKNOWN
        return identity.reference(self.config, bos, self.content("curated"), base, self.content("corpus"), kept_by)

    def content(self, name: str) -> Hash:
        """Content hash of a token set, if it is here."""
        folder = self.folders.places.tokens(name)
        return load_manifest(folder, "tokens").content_hash if exists(folder) else UNKNOWN
