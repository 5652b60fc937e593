"""Where everything of a pipeline lies, what it depends on, and whether what lies there belongs together: what stages ask at their
heads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from slmctl.config.data import SourceConfig
from slmctl.config.pipeline import PipelineConfig
from slmctl.config.training import ArmConfig
from slmctl.corpus.bos import Bos
from slmctl.corpus.source_identity import input_fingerprint, unhashed_bytes
from slmctl.corpus.tokenizer import Tokenizer
from slmctl.model.source import ModelSource
from slmctl.store.manifest import Manifest
from slmctl.store.reader import ScoreSet, TokenSet
from slmctl.system.errors import InputError
from slmctl.system.storage import Folder
from slmctl.workspace import graph, identity
from slmctl.workspace.folders import Folders
from slmctl.workspace.identity import Inputs, packing_found
from slmctl.workspace.means import Means
from slmctl.workspace.missing_texts import InputsAsRecorded, fewer_than_made, inputs_here
from slmctl.workspace.models import Models
from slmctl.workspace.precisions import as_recorded
from slmctl.workspace.start_checks import Checked

HASHED_BY_READERS = 2**33
"""Bytes of texts, not hashed from here before, up to which a stage that only reads a set still compares them by content;
`prepare` always does."""


class Workspace(Folders):
    """Paths, models and sets of one pipeline, and their checks."""

    def __init__(self, config: PipelineConfig, means: Means | None = None) -> None:
        super().__init__(config, means)
        self.models = Models(self)
        self.checked = Checked()

    # --- places ---

    def tokens(self, name: str) -> Folder:
        return self.places.tokens(name)

    def scores(self, name: str) -> Folder:
        return self.places.scores(name)

    def arm(self, name: str) -> Path:
        return self.places.arm(name)

    @property
    def reference(self) -> Path:
        return self.places.reference

    @property
    def base(self) -> Path:
        return self.places.base

    @property
    def base_model(self) -> Path:
        return self.places.base_model

    @property
    def base_training(self) -> Path:
        return self.places.base_training

    @property
    def own_tokenizer(self) -> Path:
        return self.places.own_tokenizer

    @property
    def evaluation(self) -> Path:
        return self.places.evaluation

    @property
    def report(self) -> Path:
        return self.places.report

    @property
    def device(self) -> str:
        from slmctl.model.loading import pick_device  # which loads torch, as many a look at a pipeline need not

        return pick_device(self.config.device)

    # --- models ---

    def base_source(self) -> ModelSource:
        """As `Models.base`."""
        return self.models.base()

    def reference_source(self, name: str) -> ModelSource:
        """As `Models.reference`."""
        return self.models.reference(name)

    def fingerprint(self, source: ModelSource) -> dict[str, Any]:
        return self.models.fingerprint(source)

    def tokenizer(self) -> Tokenizer:
        """As `Models.tokenizer`."""
        return self.models.tokenizer()

    def bos(self) -> Bos | None:
        """As `Models.bos`."""
        return self.models.bos()

    # --- what models and scores are made from ---

    def common_inputs(self) -> Inputs:
        """What decides every trained model, besides its own settings, its start and its rows."""
        return identity.training(self.config, self.models.bos_inputs())

    def tokenizer_inputs(self) -> Inputs:
        """What decides the tokenizer of a pipeline from scratch. Raises `InputError` where its texts cannot be read."""
        scratch = self.config.model.scratch
        assert scratch is not None
        return identity.tokenizer(scratch, *(input_fingerprint(self.sources(n), self.hashes) for n in ("curated", "corpus")))

    def base_inputs(self) -> Inputs:
        """As `Models.base_inputs`."""
        return self.models.base_inputs()

    def reference_inputs(self) -> Inputs:
        """As `Models.reference_inputs`."""
        return self.models.reference_inputs()

    def score_inputs(self) -> Inputs:
        """What of the configuration decides a score set, given its tokens and its model."""
        return identity.scoring(self.config)

    def scores_made_from(self, tokens: Manifest, reference: dict[str, Any]) -> Inputs:
        """All that a score set depends on: its `tokens`, and the model by its fingerprint."""
        return identity.score_set(self.config, tokens.content_hash, tokens.made_from["tokenizer"], reference)

    def arm_inputs(
        self,
        settings: ArmConfig,
        base: dict[str, Any],
        corpus: str,
        scores: str | None,
        further: dict[str, str] | None = None,
        curated: str | None = None,
    ) -> Inputs:
        """All that an arm depends on: its settings, the base by its fingerprint, corpus and scores by content hash; scores
        only where its selection reads them."""
        return identity.arm(self.config, settings, self.models.bos_inputs(), base, corpus, scores, further, curated)

    # --- sets, opened with their bindings checked ---

    def sources(self, name: str) -> list[SourceConfig]:
        """The text sources of `curated`, `corpus` or `heldout/<name>`."""
        return graph.sources_of(self.config, name)

    def set_inputs(self, name: str) -> Inputs:
        """All that a token set depends on. Raises `InputError` where its texts cannot be read."""
        texts = input_fingerprint(self.sources(name), self.hashes)
        return identity.token_set(self.config, texts, self.tokenizer().fingerprint(), self.models.bos_inputs())

    def inputs_here(self, name: str, made: dict[str, Any] | None, by_content: bool = True) -> dict[str, Any] | InputsAsRecorded:
        """As `set_inputs`, but where texts that the set was `made` from are gone (see `slmctl.workspace.missing_texts`)."""
        sources = self.sources(name)

        def look() -> dict[str, Any]:
            if by_content or unhashed_bytes(sources, self.hashes) <= HASHED_BY_READERS:
                return self.set_inputs(name)
            if made and (fewer := fewer_than_made(made.get("texts"), sources)):
                raise InputError(fewer)
            return {}

        return inputs_here(self, f"tokens/{name}", made, look, {"texts": sources})

    def packing_inputs(self) -> Inputs:
        """What decides every token set, besides its texts."""
        return identity.packing(self.config, self.tokenizer().fingerprint(), self.models.bos_inputs())

    def refuse_other_packing(self, name: str, made: dict[str, Any], wanted: dict[str, Any]) -> None:
        """Raises `MismatchError` where a token set was made from other than `wanted`, as far as that goes."""
        found = packing_found(made, wanted)
        advice = "Run `slmctl prepare` again."
        if found.get("bos") != wanted.get("bos") and self.config.data.bos == "auto" and "bos" in wanted:
            advice += " (It now begins rows with the tokenizer's beginning-of-sequence token; -o data.bos=never goes without.)"
        self.refuse(f"tokens/{name}", found, wanted, advice)

    def open_tokens(self, name: str) -> TokenSet:
        """Opens `curated`, `corpus` or `heldout/<name>`.

        Raises `MismatchError` where it was made from other texts, or packed with another tokenizer, seq_len or seed;
        `InputError` where texts that it was made from are gone, unless the configuration accepts that.
        """
        self.locks.hold(f"tokens/{name}")
        found = TokenSet(self.tokens(name))
        made = found.manifest.made_from
        wanted = self.packing_inputs()
        here = self.inputs_here(name, made, by_content=False)
        wanted |= here.inputs if isinstance(here, InputsAsRecorded) else here
        self.refuse_other_packing(name, made, wanted)
        return found

    def open_scores(self, name: str, tokens: TokenSet) -> ScoreSet:
        """Raises `MismatchError` where the scores are of other tokens, by another reference than the one that is here, or
        were made with other settings."""
        wanted = self.score_inputs()
        if self.config.score.references[name] != "reference" or self.reference.is_dir():
            wanted["reference"] = self.fingerprint(self.reference_source(name))
        self.locks.hold(f"scores/{name}")
        found = ScoreSet(self.scores(name), tokens)
        made = found.manifest.made_from
        wanted = as_recorded(wanted, made)
        self.refuse(f"scores/{name}", {k: made.get(k) for k in wanted}, wanted, "Run `slmctl score` again.")
        return found

    def heldout_names(self) -> list[str]:
        return self.config.eval.heldout or list(self.config.data.heldout)

    def heldout_hashes(self) -> dict[str, str]:
        return {n: self.open_tokens(f"heldout/{n}").manifest.content_hash for n in self.heldout_names()}
