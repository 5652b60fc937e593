"""The paper's diagnostics: losses of the same corpus tokens under base and every kept checkpoint, and what they tell.

The rows are spread over the corpus. Per-token losses go to `eval/tokens/<arm>.parquet`, everything else into results.json.
Selection is what an arm was trained with, whatever the configuration says of it now.

Losses of a model or checkpoint are read from their file when they are asked for. What is held at once are those of one arm's
checkpoints, 4 bytes a token and checkpoint (float32), one more for its masks, and as much again while the Parquet is written.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from slmctl.comparison.arms import made_from, seed_of_arm
from slmctl.comparison.diagnostics import excess_mask, line_fit, mask_curves, perplexity_matrix
from slmctl.comparison.kinds import by_frequency, by_kind, by_position
from slmctl.comparison.measure import Measure, token_losses_of
from slmctl.comparison.token_text import token_texts
from slmctl.config.pipeline import SelectionConfig
from slmctl.corpus.packing import target_mask
from slmctl.evaluation.dynamics import CATEGORIES, categorise, category_curves, fluctuating
from slmctl.model.split import SplitModel
from slmctl.selection.select import random_scores, select_top, selected_count
from slmctl.store import manifest as manifests
from slmctl.store.order import mix_seed
from slmctl.store.reader import RowReader, Rows, ScoreSet, TokenSet
from slmctl.system.console import progress, warn
from slmctl.system.errors import InputError, MismatchError
from slmctl.system.files import publishing
from slmctl.workspace.workspace import Workspace

SAMPLES = 4
"""Fluctuating tokens that are shown of each kind."""
AROUND = 12
"""Tokens before one that are shown with it."""


def random_mask(target_BT: np.ndarray, ratio: float, group_rows: int, seed: int) -> np.ndarray:
    """As many tokens of each group of rows as selection takes, drawn blindly [B, T]."""
    found = np.zeros_like(target_BT)
    for g, at in enumerate(range(0, len(target_BT), group_rows)):
        valid = torch.from_numpy(target_BT[at : at + group_rows].reshape(1, -1))
        scores = random_scores(1, valid.shape[1], [mix_seed("diagnostics", seed, g)], valid.device)
        counts = torch.tensor([selected_count(int(valid.sum()), ratio)])
        found[at : at + group_rows] = select_top(scores, valid, counts).numpy().reshape(-1, target_BT.shape[1])
    return found


@dataclass
class Sample:
    """The diagnostic rows, and which of their tokens are predicted."""

    numbers_B: np.ndarray
    rows: Rows
    target_BT: np.ndarray


@dataclass(frozen=True)
class Trained:
    """How an arm chose its tokens."""

    selection: SelectionConfig
    seed: int
    ref_BT: np.ndarray | None
    """Reference losses that it chose by (float64, NaN where nothing is predicted); None where it did not, or they are gone."""


class Diagnosis:
    """Gathers the losses while models are loaded, and works out the diagnostics at the end."""

    def __init__(self, workspace: Workspace, measure: Measure, arms: list[str]) -> None:
        self.workspace, self.measure = workspace, measure
        self.on = measure.config.dynamics
        self.folder = workspace.evaluation / "tokens"
        if not self.on:
            return
        corpus = workspace.open_tokens("corpus")
        wanted = max(1, measure.config.dynamics_tokens // corpus.seq_len)
        numbers = np.unique(np.linspace(0, corpus.rows - 1, min(wanted, corpus.rows)).astype(np.int64))
        self.reader = RowReader(corpus)
        rows = self.reader.fetch(numbers)
        self.data = Sample(numbers, rows, target_mask(rows.document_BT, workspace.config.data.intra_document_mask))
        first = next(iter(workspace.config.score.references))
        made = {a: made_from(workspace, a) for a in arms}
        chose = {a: SelectionConfig(**m["settings"]["selection"]) for a, m in made.items()}
        by_arm = {a: s.reference or first for a, s in chose.items() if s.needs_reference}
        refs = {n: self._reference_losses(n, corpus) for n in dict.fromkeys([*by_arm.values(), first])}
        self.trained = {}
        for arm, selection in chose.items():
            content, ref_BT = refs[by_arm[arm]] if arm in by_arm else (None, None)
            same = ref_BT if content == made[arm].get("scores") else None  # else they were made again since
            self.trained[arm] = Trained(selection, seed_of_arm(made[arm]), same)
        self.shown_ref_BT = next((ref_BT for _, ref_BT in refs.values() if ref_BT is not None), None)
        """Of the first arm that chose by any; else the first reference's."""

    def _reference_losses(self, name: str, corpus: TokenSet) -> tuple[str | None, np.ndarray | None]:
        """Content hash of a score set as it lies there, and its losses of the rows; None where there is none of this corpus."""
        folder = self.workspace.scores(name)
        if not manifests.exists(folder):
            return None, None
        self.workspace.locks.hold(f"scores/{name}")
        try:
            scores = ScoreSet(folder, corpus, {"intra_document_mask": self.workspace.config.data.intra_document_mask})
        except (InputError, MismatchError) as e:
            warn(f"eval goes on without scores/{name}: {e}")
            return None, None
        ref_BT = RowReader(corpus, scores).fetch(self.data.numbers_B).ref_loss_BT
        assert ref_BT is not None
        return scores.manifest.content_hash, np.where(self.data.target_BT, ref_BT.astype(np.float64), np.nan)

    # --- losses ---

    def has(self, name: str) -> bool:
        """Whether the losses under `name` are kept, or not asked for."""
        return not self.on or self._file(name).is_file()

    def add(self, name: str, model: SplitModel) -> None:
        """Losses of the diagnostic rows under `model`."""
        if not self.on:
            return
        measure = self.measure
        numbers, how = self.data.numbers_B, (measure.device, measure.config.batch_rows)
        with progress(f"eval {name}: losses of corpus tokens", len(numbers), "rows") as ticker:
            losses = token_losses_of(model, self.reader, numbers, *how, ticker.advance)
        with publishing(self._file(name)) as temporary, open(temporary, "wb") as f:
            np.save(f, losses)

    def _file(self, name: str) -> Any:
        return self.folder / f"{name}.npy"

    def losses(self, name: str) -> np.ndarray:
        """Of a model (`base`) or checkpoint (`arm@step`): [B, T], nats, float32; NaN where nothing is predicted."""
        found: np.ndarray = np.load(self._file(name))
        return found

    # --- selection on the diagnostic rows ---

    def chosen(self, arm: str, live_BT: np.ndarray) -> np.ndarray | None:
        """Which tokens an arm would select of the diagnostic rows, as groups of its own size [B, T]; None where its scores
        are gone."""
        how, target_BT = self.trained[arm], self.data.target_BT
        if how.selection.criterion == "all":
            return target_BT
        if how.selection.criterion == "random":
            return self.blind(arm, how.seed)
        if how.ref_BT is None:
            return None
        return excess_mask(live_BT, how.ref_BT, how.selection.ratio, how.selection.group_rows)

    def blind(self, arm: str, seed: int) -> np.ndarray:
        """As many tokens as an arm selects, drawn by chance [B, T]."""
        selection = self.trained[arm].selection
        return random_mask(self.data.target_BT, selection.ratio, selection.group_rows, seed)

    # --- what the report shows ---

    def results(self, arms: dict[str, Any], target: str) -> dict[str, Any]:
        """`diagnostics` of results.json. `arms` are its entries, with their checkpoints."""
        if not self.on:
            return {}
        found: dict[str, Any] = {"set": "corpus", "rows": len(self.data.numbers_B), "tokens": int(self.data.target_BT.sum())}
        if self.shown_ref_BT is not None:  # a reference that has forgotten the corpus selects badly
            means = (float(np.nanmean(x)) for x in (self.shown_ref_BT, self.losses("base")))
            found["reference"] = dict(zip(("mean_ref_loss", "mean_base_loss"), means, strict=True))
        curves = {a: self._trajectory(a, facts) for a, facts in arms.items()}
        base_mask = self._fixed_mask(arms)
        sections: dict[str, dict[str, Any]] = {"dynamics": {}, "fit": {}, "matrix": {}}
        mask_arms: dict[str, Any] = {}
        for arm, (steps, seen, names) in curves.items():
            losses_CN = np.stack([self.losses(n)[self.data.target_BT] for n in names])
            self._write(arm, steps, names)
            if len(steps) >= 3:
                sections["dynamics"][arm] = self._dynamics(losses_CN, steps, seen)
            if len(steps) >= 2 and self.trained[arm].selection.criterion == "excess_loss":
                masks = [m[self.data.target_BT] for n in names if (m := self.chosen(arm, self.losses(n))) is not None]
                if len(masks) == len(names):
                    masks_CN = np.stack(masks)
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

    def _trajectory(self, arm: str, facts: dict[str, Any]) -> tuple[list[int], list[int], list[str]]:
        """Steps, tokens seen and names of the losses: base first, then each checkpoint."""
        kept = facts["checkpoints"]
        names = ["base", *(f"{arm}@{c['step']}" for c in kept)]
        return [0, *(c["step"] for c in kept)], [0, *(c["tokens_seen"] for c in kept)], names

    def _fixed_mask(self, arms: dict[str, Any]) -> np.ndarray | None:
        """What the first arm that selects by losses would select under the base model."""
        first = next((a for a in arms if self.trained[a].ref_BT is not None), None)
        return self.chosen(first, self.losses("base")) if first is not None else None

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
        for token in fluctuating(losses_CN, category_N, SAMPLES, mix_seed("shown tokens", self.workspace.config.seed)):
            row, position = (int(x) for x in places[token])
            first = max(0, position - AROUND)
            texts = self._texts(self.data.rows.ids_BT[row, first : position + 1])
            shown.append(
                {
                    "text": texts[-1],
                    "before": "".join(texts[:-1]),
                    "category": CATEGORIES[category_N[token]],
                    "losses": losses_CN[:, token].tolist(),
                    "position": position,
                }
            )
        categories = category_curves(losses_CN, category_N)
        return {"steps": steps, "tokens_seen": seen, "categories": categories, "fluctuating": shown}

    def _texts(self, ids: np.ndarray) -> list[str]:
        return token_texts(self.workspace.tokenizer().hf, ids.tolist())

    def _write(self, arm: str, steps: list[int], names: list[str]) -> None:
        """Per-token losses as Parquet, a row a predicted token; `selected` is what the arm would choose under its last
        checkpoint."""
        target = self.data.target_BT
        places = np.argwhere(target)
        columns = {
            "row": self.data.numbers_B[places[:, 0]],
            "position": places[:, 1].astype(np.int32),
            "input_id": self.data.rows.ids_BT[target].astype(np.int32),
            "document": self.data.rows.document_BT[target],
        }
        own = self.trained[arm].ref_BT
        ref = own if own is not None else self.shown_ref_BT
        if ref is not None:
            columns["ref_loss"] = ref[target].astype(np.float32)
        if (mask := self.chosen(arm, self.losses(names[-1]))) is not None:
            columns["selected"] = mask[target]
        columns |= {f"loss_{s:08d}": self.losses(n)[target] for s, n in zip(steps, names, strict=True)}
        with publishing(self.folder / f"{arm}.parquet") as temporary:
            pq.write_table(pa.table(columns), temporary, compression="zstd")

    # --- one arm's selection ---

    def kinds(self, arm: str, last: str | None, texts: list[str]) -> dict[str, Any]:
        """What kinds of token an arm has seen and trained on: by its counts, and by position on the diagnostic rows under its
        last checkpoint."""
        counts = pq.read_table(self.workspace.arm(arm) / "token_counts.parquet")
        seen, selected = counts["seen"].to_numpy(), counts["selected"].to_numpy()
        texts = (texts + [""] * len(seen))[: len(seen)]
        found = {"by_kind": by_kind(texts, seen, selected), "by_frequency": by_frequency(seen, selected)}
        mask = self.chosen(arm, self.losses(last)) if self.on and last is not None else None
        if mask is not None:
            b, t = mask.shape
            position = np.broadcast_to(np.arange(t), (b, t)).ravel()
            found["by_position"] = by_position(position, self.data.target_BT.ravel(), mask.ravel(), t)
        return found
