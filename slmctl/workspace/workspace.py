"""Where everything of a pipeline lies, what it depends on, and whether what lies there belongs together."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from slmctl.config.decides import Decides, decided, result_settings
from slmctl.config.pipeline import ArmConfig, PipelineConfig, ReferenceModel, SourceConfig
from slmctl.corpus.bos import Bos, bos_of
from slmctl.corpus.sources import input_fingerprint, unhashed_bytes
from slmctl.corpus.tokenizer import Tokenizer, load_tokenizer
from slmctl.model.source import ModelSource, local_copy, model_fingerprint
from slmctl.store.manifest import Manifest, differences, exists, load_manifest
from slmctl.store.order import ORDER_VERSION
from slmctl.store.reader import ScoreSet, TokenSet
from slmctl.system.console import warn
from slmctl.system.errors import InputError, MismatchError
from slmctl.system.files import read_json
from slmctl.system.storage import Folder
from slmctl.workspace.checked import Checked
from slmctl.workspace.folders import DONE, INPUTS, SETS, Folders
from slmctl.workspace.gone import Kept, fewer_than_made, inputs_here
from slmctl.workspace.precisions import as_recorded

_NEVER_ACCEPTED = {"seq_len", "intra_document_mask", "bos"}
"""Where these differ, losses are of other predictions than those that are trained, or prompts begin otherwise than rows."""

HASHED_BY_READERS = 2**33
"""Bytes of texts, not hashed from here before, up to which a stage that only reads a set still compares them by content;
`prepare` always does."""


def packing_found(made: dict[str, Any], wanted: dict[str, Any]) -> dict[str, Any]:
    """What a token set was made from, as far as `wanted` names it; and its BOS, which is not named where there is none."""
    return {k: made.get(k) for k in (*wanted, "bos")}


class Workspace(Folders):
    """Paths, models and sets of one pipeline, and their checks."""

    def __init__(self, config: PipelineConfig) -> None:
        super().__init__(config)
        self._tokenizer: Tokenizer | None = None
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

    # --- what does not match ---

    def refuse(self, label: str, found: dict[str, Any], wanted: dict[str, Any], advice: str) -> None:
        """Raises `MismatchError` naming each differing field, what was found and what was wanted; a field that
        `accept_mismatch` names is let through with a warning, and kept in `accepted` for the run's record."""
        differ = {d: d.split(": found ", 1)[0] for d in (f"{label}:{d}" for d in differences(found, wanted))}
        never = _NEVER_ACCEPTED if label.startswith(SETS) else ()
        offered = {d: field for d, field in differ.items() if field.rpartition(":")[2].partition(".")[0] not in never}
        accepted = {d for d, field in offered.items() if field in self.config.accept_mismatch}
        for line in sorted(accepted):
            warn(f"accept_mismatch lets through {line}")
            if line not in self.accepted:
                self.accepted.append(line)
        if left := [d for d in differ if d not in accepted]:
            listing = "\n".join(f"  {d}" for d in left)
            names = json.dumps([*self.config.accept_mismatch, *[differ[d] for d in left]])
            offer = f" To go on with it as it is, give -o 'accept_mismatch={names}'." if set(left) <= set(offered) else ""
            raise MismatchError(f"{label} does not match:\n{listing}\n{advice}{offer}")

    # --- models ---

    def base_source(self) -> ModelSource:
        """The base model: what the configuration names, or the one trained from scratch.

        Raises `MismatchError` where the latter was made with other settings, or with another tokenizer than the present.
        """
        model = self.config.model
        if model.scratch is None:
            return local_copy(ModelSource(str(model.path), model.gguf_file, model.revision, model.attn_implementation))
        advice = "Run `slmctl train-base` again."
        if not (self.base / DONE).is_file():
            raise InputError(f"{self.base} is absent or not complete. Run `slmctl train-base` first.")
        made = read_json(self.base / INPUTS)
        wanted = as_recorded(self.base_inputs(), made)
        path = str(self.base_model)
        found = {**{k: made.get(k) for k in wanted}, "tokenizer": load_tokenizer(path).fingerprint()}
        self.refuse("base", found, {**wanted, "tokenizer": self.tokenizer().fingerprint()}, advice)
        return ModelSource(path, attn_implementation=model.attn_implementation)

    def common_inputs(self) -> dict[str, Any]:
        """What decides every trained model, besides its own settings, its start and its rows."""
        data = self.config.data
        return {
            "order_version": ORDER_VERSION,
            "seed": self.config.seed,
            "seq_len": data.seq_len,
            "intra_document_mask": data.intra_document_mask,
            "bos": bos.inputs() if (bos := self.bos()) is not None else None,
            "attn_implementation": self.config.model.attn_implementation,
        }

    def tokenizer_inputs(self) -> dict[str, Any]:
        """What decides the tokenizer of a pipeline from scratch. Raises `InputError` where its texts cannot be read."""
        scratch, data = self.config.model.scratch, self.config.data
        assert scratch is not None
        texts = {"curated": data.curated, "corpus": data.corpus}
        sizes = {"vocab_size": scratch.vocab_size, "sample_mb": scratch.tokenizer_sample_mb}
        return {**sizes, **{k: input_fingerprint(sources, self.hashes) for k, sources in texts.items()}}

    def base_inputs(self) -> dict[str, Any]:
        """What decides a base from scratch; its rows as far as they are here."""
        scratch = self.config.model.scratch
        assert scratch is not None
        train = result_settings(scratch.train) if scratch.train is not None else None
        shape = decided(scratch, Decides.TOKENS, Decides.WEIGHTS)
        made = {"model": {k: v for k, v in shape.items() if k != "train"}, "settings": train}
        return {**self.common_inputs(), **made, **self._contents(corpus="corpus")}

    def reference_inputs(self) -> dict[str, Any]:
        """What decides the reference model; its base and rows as far as they are here."""
        settings = self.config.reference
        found = {**self.common_inputs(), "settings": result_settings(settings), **self._contents(curated="curated")}
        with suppress(InputError):  # a stage may run on a machine that has the reference alone
            found["base"] = self.fingerprint(self.base_source())
        if settings.mix > 0:
            found |= self._contents(corpus="corpus")
        if settings.keep_best_on is not None:
            kept_on = self._contents(heldout=f"heldout/{settings.keep_best_on}")
            found |= {"kept_by": kept_on} if kept_on else {}
        return found

    def _contents(self, **sets: str) -> dict[str, str]:
        """Key to content hash of each token set that is here."""
        found = {k: self.tokens(name) for k, name in sets.items()}
        return {k: load_manifest(folder, "tokens").content_hash for k, folder in found.items() if exists(folder)}

    def reference_source(self, name: str) -> ModelSource:
        """The model behind a score set: the trained reference, or another that the configuration names.

        Raises `MismatchError` where the reference was trained with other settings than the configuration has now.
        """
        given = self.config.score.references[name]
        attention = self.config.model.attn_implementation
        if given == "reference":
            if not (self.reference / DONE).is_file():
                raise InputError(f"{self.reference} is absent or not complete. Run `slmctl train-ref` first.")
            made = read_json(self.reference / INPUTS)
            wanted = as_recorded(self.reference_inputs(), made)
            self.refuse("reference", {k: made.get(k) for k in wanted}, wanted, "Run `slmctl train-ref` again.")
            return ModelSource(str(self.reference), attn_implementation=attention)
        model = ReferenceModel(path=given) if isinstance(given, str) else given
        return local_copy(ModelSource(model.path, model.gguf_file, model.revision, attention))

    def fingerprint(self, source: ModelSource) -> dict[str, Any]:
        return model_fingerprint(source, self.hashes)

    def tokenizer(self) -> Tokenizer:
        """The pipeline's one tokenizer."""
        if self._tokenizer is None:
            model = self.config.model
            if model.scratch is not None:
                if not (self.own_tokenizer / DONE).is_file():
                    raise InputError(f"{self.own_tokenizer} is absent or not complete. Run `slmctl prepare` first.")
                self.locks.hold(str(self.own_tokenizer.relative_to(self.root)))
                self._tokenizer = load_tokenizer(str(self.own_tokenizer))
            elif model.tokenizer is not None:
                self._tokenizer = load_tokenizer(model.tokenizer)
            else:
                self._tokenizer = load_tokenizer(str(model.path), model.gguf_file, model.revision)
        return self._tokenizer

    def bos(self) -> Bos | None:
        """The beginning-of-sequence token that rows and prompts begin with; None where they begin with none."""
        data = self.config.data
        if data.bos == "never" or (data.bos == "auto" and self.config.model.scratch is not None):
            return None  # the template of a tokenizer that is trained here puts nothing in front
        return bos_of(self.tokenizer(), data.bos, "document" if data.intra_document_mask else "row")

    # --- sets, opened with their bindings checked ---

    def sources(self, name: str) -> list[SourceConfig]:
        """The text sources of `curated`, `corpus` or `heldout/<name>`."""
        data = self.config.data
        named = {"curated": data.curated, "corpus": data.corpus}
        return named[name] if name in named else data.heldout[name.removeprefix("heldout/")]

    def set_inputs(self, name: str) -> dict[str, Any]:
        """All that a token set depends on. Raises `InputError` where its texts cannot be read."""
        return {"texts": input_fingerprint(self.sources(name), self.hashes), **self.packing_inputs()}

    def inputs_here(self, name: str, made: dict[str, Any] | None, by_content: bool = True) -> dict[str, Any] | Kept:
        """As `set_inputs`, but where texts that the set was `made` from are gone (see `slmctl.workspace.gone`)."""
        sources = self.sources(name)

        def look() -> dict[str, Any]:
            if by_content or unhashed_bytes(sources, self.hashes) <= HASHED_BY_READERS:
                return self.set_inputs(name)
            if made and (fewer := fewer_than_made(made.get("texts"), sources)):
                raise InputError(fewer)
            return {}

        return inputs_here(self, f"tokens/{name}", made, look, {"texts": sources})

    def packing_inputs(self) -> dict[str, Any]:
        data = self.config.data
        tokenizer, bos = self.tokenizer().fingerprint(), self.bos()
        return {
            **{"tokenizer": tokenizer, "seq_len": data.seq_len, "seed": self.config.seed, "shard_bytes": data.shard_bytes},
            **({"bos": bos.inputs()} if bos is not None else {}),
        }

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
        wanted |= here.inputs if isinstance(here, Kept) else here
        self.refuse_other_packing(name, made, wanted)
        return found

    def score_inputs(self) -> dict[str, Any]:
        """What of the configuration decides a score set, given its tokens and its model."""
        settings = decided(self.config.score, Decides.SCORES)
        del settings["references"]  # of which each is known by its content
        return {
            "intra_document_mask": self.config.data.intra_document_mask,
            "attn_implementation": self.config.model.attn_implementation,
            **settings,
        }

    def scores_made_from(self, tokens: Manifest, reference: dict[str, Any]) -> dict[str, Any]:
        """All that a score set depends on: its `tokens`, and the model by its fingerprint."""
        return {
            "tokens": tokens.content_hash,
            "tokenizer": tokens.made_from["tokenizer"],
            "reference": reference,
            **self.score_inputs(),
        }

    def arm_inputs(self, settings: ArmConfig, base: dict[str, Any], corpus: str, scores: str | None) -> dict[str, Any]:
        """All that an arm depends on: its settings, the base by its fingerprint, corpus and scores by content hash; scores
        only where its selection reads them."""
        inputs = {**self.common_inputs(), "settings": result_settings(settings), "base": base, "corpus": corpus}
        if scores is not None and settings.selection.needs_reference:
            inputs["scores"] = scores
        return inputs

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
