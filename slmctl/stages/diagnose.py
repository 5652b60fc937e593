"""The paper's diagnostics: losses of the same corpus tokens under base and every kept checkpoint, and what they tell.

The rows are spread over the corpus. Per-token losses go to `eval/tokens/<arm>.parquet`, what the report shows of single
documents to `eval/highlights.json`, everything else into results.json.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from slmctl.config import ArmConfig
from slmctl.corpus.packing import PADDING, target_mask
from slmctl.evaluation.diagnostics import excess_mask, line_fit, mask_curves, perplexity_matrix
from slmctl.evaluation.dynamics import CATEGORIES, categorise, category_curves, fluctuating
from slmctl.evaluation.kinds import by_frequency, by_kind, by_position
from slmctl.files import publishing
from slmctl.model.split import SplitModel
from slmctl.selection.select import random_scores, select_top, selected_count
from slmctl.stages.measure import Measure, token_losses_of
from slmctl.stages.workspace import Workspace
from slmctl.store import manifest as manifests
from slmctl.store.reader import RowReader, Rows
from slmctl.training.batches import mix_seed

LONGEST = 400
"""Tokens of a document that the report shows."""
SAMPLES = 4
"""Fluctuating tokens that are shown of each kind."""
AROUND = 12
"""Tokens before one that are shown with it."""


def random_mask(target_BT: np.ndarray, ratio: float, group_rows: int, seed: int) -> np.ndarray:
    """As many tokens of each group of rows as selection takes, drawn blindly [B, T]."""
    found = np.zeros_like(target_BT)
    for g, at in enumerate(range(0, len(target_BT), group_rows)):
        valid = torch.from_numpy(target_BT[at : at + group_rows].reshape(1, -1))
        scores = random_scores(1, valid.shape[1], [mix_seed(seed, 0, g)], valid.device)
        counts = torch.tensor([selected_count(int(valid.sum()), ratio)])
        found[at : at + group_rows] = select_top(scores, valid, counts).numpy().reshape(-1, target_BT.shape[1])
    return found


@dataclass
class Sample:
    """The diagnostic rows, and losses of their tokens [B, T] by model (`base`) and checkpoint (`arm@step`)."""

    numbers_B: np.ndarray
    rows: Rows
    target_BT: np.ndarray
    ref_BT: np.ndarray | None
    """float64, NaN where nothing is predicted; None where there are no scores."""
    losses: dict[str, np.ndarray] = field(default_factory=dict)


class Diagnosis:
    """Gathers the losses while models are loaded, and works out the diagnostics at the end."""

    def __init__(self, workspace: Workspace, measure: Measure) -> None:
        self.workspace, self.measure = workspace, measure
        self.on = measure.config.dynamics
        self.folder = workspace.evaluation / "tokens"
        if not self.on:
            return
        corpus = workspace.open_tokens("corpus")
        reference = next(iter(workspace.config.score.references))
        scores = workspace.open_scores(reference, corpus) if manifests.exists(workspace.scores(reference)) else None
        wanted = max(1, measure.config.dynamics_tokens // corpus.seq_len)
        numbers = np.unique(np.linspace(0, corpus.rows - 1, min(wanted, corpus.rows)).astype(np.int64))
        self.reader = RowReader(corpus, scores)
        rows = self.reader.fetch(numbers)
        target = target_mask(rows.document_BT, workspace.config.data.intra_document_mask)
        ref = None
        if rows.ref_loss_BT is not None:
            ref = np.where(target, rows.ref_loss_BT.astype(np.float64), np.nan)
        self.data = Sample(numbers, rows, target, ref)

    def add(self, name: str, model: SplitModel) -> None:
        """Losses of the diagnostic rows under `model`."""
        if not self.on:
            return
        measure = self.measure
        losses = token_losses_of(model, self.reader, self.data.numbers_B, measure.device, measure.config.batch_rows)
        with publishing(self._file(name)) as temporary, open(temporary, "wb") as f:
            np.save(f, losses)
        self.data.losses[name] = losses

    def _file(self, name: str) -> Any:
        return self.folder / f"{name}.npy"

    def losses(self, name: str) -> np.ndarray:
        if name not in self.data.losses:
            self.data.losses[name] = np.load(self._file(name))
        return self.data.losses[name]

    # --- selection on the diagnostic rows ---

    def chosen(self, settings: ArmConfig, seed: int, live_BT: np.ndarray) -> np.ndarray | None:
        """Which tokens an arm would select of the diagnostic rows, as groups of its own size [B, T]; None without scores."""
        selection, target_BT = settings.selection, self.data.target_BT
        if selection.criterion == "all":
            return target_BT
        if selection.criterion == "random":
            return random_mask(target_BT, selection.ratio, selection.group_rows, seed)
        if self.data.ref_BT is None:
            return None
        return excess_mask(live_BT, self.data.ref_BT, selection.ratio, selection.group_rows)

    # --- what the report shows ---

    def results(self, arms: dict[str, Any], target: str) -> dict[str, Any]:
        """`diagnostics` of results.json. `arms` are its entries, with their checkpoints."""
        if not self.on:
            return {}
        found: dict[str, Any] = {"set": "corpus", "rows": len(self.data.numbers_B), "tokens": int(self.data.target_BT.sum())}
        curves = {a: self._trajectory(a, facts) for a, facts in arms.items()}
        base_mask = self._fixed_mask(arms)
        sections: dict[str, dict[str, Any]] = {"dynamics": {}, "fit": {}, "matrix": {}}
        mask_arms: dict[str, Any] = {}
        for arm, (steps, seen, names) in curves.items():
            losses_CN = np.stack([self.losses(n)[self.data.target_BT] for n in names])
            self._write(arm, steps, names)
            if len(steps) >= 3:
                sections["dynamics"][arm] = self._dynamics(losses_CN, steps, seen)
            if len(steps) >= 2 and self._settings(arm).selection.criterion == "excess_loss":
                masks = [self.chosen(self._settings(arm), self._seed(arm), self.losses(n)) for n in names]
                if all(m is not None for m in masks):
                    masks_CN = np.stack([m[self.data.target_BT] for m in masks if m is not None])
                    sections["matrix"][arm] = {"steps": steps, "perplexity": perplexity_matrix(losses_CN, masks_CN).tolist()}
            if base_mask is not None:
                found_by_mask = mask_curves(losses_CN, base_mask[self.data.target_BT])
                mask_arms[arm] = {"steps": steps, "tokens_seen": seen, **found_by_mask}
                sections["fit"][arm] = self._fit(arms[arm], steps, found_by_mask, target)
        if base_mask is not None:
            found["fixed_mask"] = {
                "description": "the tokens of these rows with the highest excess loss under the base model, chosen once",
                "share": float(base_mask.sum() / max(1, self.data.target_BT.sum())),
                "arms": mask_arms,
            }
        sections["fit"] = {a: f for a, f in sections["fit"].items() if f is not None}
        return {**found, **sections}

    def _settings(self, arm: str) -> ArmConfig:
        return self.workspace.config.pretrain.arms[arm]

    def _seed(self, arm: str) -> int:
        seed = self._settings(arm).seed
        return self.workspace.config.seed if seed is None else seed

    def _trajectory(self, arm: str, facts: dict[str, Any]) -> tuple[list[int], list[int], list[str]]:
        """Steps, tokens seen and names of the losses: base first, then each checkpoint."""
        kept = facts["checkpoints"]
        names = ["base", *(f"{arm}@{c['step']}" for c in kept)]
        return [0, *(c["step"] for c in kept)], [0, *(c["tokens_seen"] for c in kept)], names

    def _fixed_mask(self, arms: dict[str, Any]) -> np.ndarray | None:
        """What the first arm with excess loss would select under the base model."""
        first = next((a for a in arms if self._settings(a).selection.criterion == "excess_loss"), None)
        return self.chosen(self._settings(first), 0, self.losses("base")) if first is not None else None

    def _fit(self, facts: dict[str, Any], steps: list[int], by_mask: dict[str, Any], target: str) -> dict[str, Any] | None:
        """Target loss against the loss of selected tokens over checkpoints (Fig. 7)."""
        at = {c["step"]: c["heldout"].get(target, {}).get("loss") for c in facts["checkpoints"]}
        places = [i for i, s in enumerate(steps) if at.get(s) is not None]
        if len(places) < 3:
            return None
        y = [at[steps[i]] for i in places]
        selected, unselected = ([by_mask[k][i] for i in places] for k in ("selected", "unselected"))
        rest = {f"{k}_unselected": v for k, v in line_fit(unselected, y).items()}
        return {"x": selected, "y": y, "y_name": f"{target} loss", **line_fit(selected, y), "x_unselected": unselected, **rest}

    def _dynamics(self, losses_CN: np.ndarray, steps: list[int], seen: list[int]) -> dict[str, Any]:
        category_N = categorise(losses_CN)
        places = np.argwhere(self.data.target_BT)
        shown = []
        for token in fluctuating(losses_CN, category_N, SAMPLES, self.workspace.config.seed):
            row, position = (int(x) for x in places[token])
            ids = self.data.rows.ids_BT[row]
            shown.append(
                {
                    "text": self._text(ids[position : position + 1]),
                    "before": self._text(ids[max(0, position - AROUND) : position]),
                    "category": CATEGORIES[category_N[token]],
                    "losses": losses_CN[:, token].tolist(),
                    "position": position,
                }
            )
        categories = category_curves(losses_CN, category_N)
        return {"steps": steps, "tokens_seen": seen, "categories": categories, "fluctuating": shown}

    def _text(self, ids: np.ndarray) -> str:
        return str(self.workspace.tokenizer().hf.decode(ids.tolist(), clean_up_tokenization_spaces=False))

    def _write(self, arm: str, steps: list[int], names: list[str]) -> None:
        """Per-token losses as Parquet, a row a predicted token."""
        target = self.data.target_BT
        places = np.argwhere(target)
        columns = {
            "row": self.data.numbers_B[places[:, 0]],
            "position": places[:, 1].astype(np.int32),
            "input_id": self.data.rows.ids_BT[target].astype(np.int32),
            "document": self.data.rows.document_BT[target],
        }
        if self.data.ref_BT is not None:
            columns["ref_loss"] = self.data.ref_BT[target].astype(np.float32)
        columns |= {f"loss_{s:08d}": self.losses(n)[target] for s, n in zip(steps, names, strict=True)}
        with publishing(self.folder / f"{arm}.parquet") as temporary:
            pq.write_table(pa.table(columns), temporary, compression="zstd")

    # --- one arm's selection ---

    def selection_facts(self, arm: str, last: str) -> dict[str, Any]:
        """How an arm's selection on the diagnostic rows, under its last checkpoint, compares with chance."""
        nothing = dict.fromkeys(("overlap_with_random", "expected_overlap", "mean_excess_selected", "mean_excess_unselected"))
        settings = self._settings(arm)
        if not self.on or settings.selection.criterion == "all":
            return nothing
        live, target = self.losses(last), self.data.target_BT
        mask = self.chosen(settings, self._seed(arm), live)
        if mask is None or not mask.any():
            return nothing
        blind = settings.model_copy(update={"selection": settings.selection.model_copy(update={"criterion": "random"})})
        chance = self.chosen(blind, self._seed(arm) + 1, live)
        assert chance is not None
        found = {
            **nothing,
            "overlap_with_random": float((mask & chance).sum() / mask.sum()),
            "expected_overlap": float(chance.sum() / target.sum()),
        }
        if self.data.ref_BT is not None:
            excess = live - self.data.ref_BT
            found["mean_excess_selected"] = float(excess[mask].mean())
            rest = target & ~mask
            found["mean_excess_unselected"] = float(excess[rest].mean()) if rest.any() else None
        return found

    def kinds(self, arm: str, last: str, texts: list[str]) -> dict[str, Any]:
        """What kinds of token an arm has seen and trained on: by its counts, and by position on the diagnostic rows."""
        counts = pq.read_table(self.workspace.arm(arm) / "token_counts.parquet")
        seen, selected = counts["seen"].to_numpy(), counts["selected"].to_numpy()
        texts = (texts + [""] * len(seen))[: len(seen)]
        found = {"by_kind": by_kind(texts, seen, selected), "by_frequency": by_frequency(seen, selected)}
        if self.on:
            mask = self.chosen(self._settings(arm), self._seed(arm), self.losses(last))
            if mask is not None:
                b, t = mask.shape
                position = np.broadcast_to(np.arange(t), (b, t)).ravel()
                found["by_position"] = by_position(position, self.data.target_BT.ravel(), mask.ravel(), t)
        return found

    # --- single documents ---

    def highlights(self, last: dict[str, str], steps: dict[str, int]) -> dict[str, Any]:
        """highlights.json: documents of the diagnostic rows, each token with its losses and what each arm selects."""
        documents: list[dict[str, Any]] = []
        if self.on:
            masks = {a: self.chosen(self._settings(a), self._seed(a), self.losses(n)) for a, n in last.items()}
            for row, start, stop in self._longest_documents():
                documents.append(self._shown(row, start, stop, last, masks))
        return {"arms": list(last), "step": steps, "documents": documents}

    def _longest_documents(self) -> list[tuple[int, int, int]]:
        """(row, first, last + 1) of a document in each of so many rows, spread over them; the longest of its row."""
        wanted = self.measure.config.highlighted
        document = self.data.rows.document_BT
        found = []
        for row in np.unique(np.linspace(0, len(document) - 1, min(wanted, len(document))).astype(int)) if wanted else []:
            edges = np.flatnonzero(np.diff(document[row], prepend=document[row][0] - 1, append=document[row][-1] + 1))
            pieces = [(b - a, a, b) for a, b in itertools.pairwise(edges) if document[row][a] != PADDING]
            if pieces:
                _, a, b = max(pieces)
                found.append((int(row), int(a), int(min(b, a + LONGEST))))
        return found

    def _shown(
        self, row: int, start: int, stop: int, last: dict[str, str], masks: dict[str, np.ndarray | None]
    ) -> dict[str, Any]:
        part = slice(start, stop)
        ref = self.data.ref_BT
        ids = self.data.rows.ids_BT[row, part]
        return {
            "set": "corpus",
            "title": f"corpus, document {int(self.data.rows.document_BT[row, start])}",
            "tokens": {
                "text": [self._text(ids[i : i + 1]) for i in range(len(ids))],
                "position": list(range(start, stop)),
                "ref": _rounded(ref[row, part]) if ref is not None else [None] * len(ids),
                "live": {a: _rounded(self.losses(n)[row, part]) for a, n in last.items()},
                "selected": {a: m[row, part].astype(int).tolist() for a, m in masks.items() if m is not None},
            },
        }


def _rounded(losses: np.ndarray) -> list[float | None]:
    return [round(float(x), 3) if np.isfinite(x) else None for x in losses]
