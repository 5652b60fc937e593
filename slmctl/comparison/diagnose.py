"""The paper's diagnostics: what the losses of the same corpus tokens under base and every kept checkpoint tell.

Per-token losses go to `eval/tokens/<arm>.parquet`, everything else into results.json. Selection is what an arm was trained with,
whatever the configuration says of it now.

What is held at once are the losses of one arm's checkpoints, 4 bytes a token and checkpoint (float32), one more for its masks,
and as much again while the Parquet is written.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from slmctl.comparison.compared import Compared, Scores
from slmctl.comparison.diagnostic_statistics import excess_mask, line_fit, mask_curves, perplexity_matrix
from slmctl.comparison.token_kinds import by_frequency, by_kind, by_position
from slmctl.comparison.token_losses import TokenLosses
from slmctl.comparison.token_text import token_texts
from slmctl.config.selection import SelectionConfig
from slmctl.evaluation.dynamics import CATEGORIES, categorise, category_curves, fluctuating
from slmctl.selection.select import random_scores, select_top, selected_count
from slmctl.store.order import mix_seed
from slmctl.store.reader import RowReader, ScoreSet
from slmctl.system.console import warn
from slmctl.system.errors import InputError, MismatchError
from slmctl.system.files import publishing

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


@dataclass(frozen=True)
class Trained:
    """How an arm chose its tokens."""

    selection: SelectionConfig
    seed: int
    ref_BT: np.ndarray | None
    """Reference losses that it chose by (float64, NaN where nothing is predicted); None where it did not, or they are gone."""


class Diagnosis:
    """Works out the diagnostics at the end, when the losses of all models are kept."""

    def __init__(self, compared: Compared, token_losses: TokenLosses) -> None:
        self.conditions, self.arms, self.token_losses = compared.conditions, compared.arms, token_losses
        self.on = token_losses.on
        if not self.on:
            return
        self.sample, self.losses = token_losses.sample, token_losses.of
        first = next(iter(compared.config.score.references))
        chose = {a: SelectionConfig(**arm.made_from["settings"]["selection"]) for a, arm in self.arms.items()}
        by_arm = {a: s.reference or first for a, s in chose.items() if s.needs_reference}
        refs = {n: self._reference_losses(n, compared.scores.get(n)) for n in dict.fromkeys([*by_arm.values(), first])}
        self.trained = {}
        for name, selection in chose.items():
            content, ref_BT = refs[by_arm[name]] if name in by_arm else (None, None)
            arm = self.arms[name]
            same = ref_BT if content == arm.made_from.get("scores") else None  # else they were made again since
            self.trained[name] = Trained(selection, arm.seed, same)
        self.shown_ref_BT = next((ref_BT for _, ref_BT in refs.values() if ref_BT is not None), None)
        """Of the first arm that chose by any; else the first reference's."""

    def _reference_losses(self, name: str, scores: Scores | None) -> tuple[str | None, np.ndarray | None]:
        """Content hash of a score set as it lies there, and its losses of the rows; None where there is none of this corpus."""
        if scores is None:
            return None, None
        corpus = self.conditions.corpus
        try:
            opened = ScoreSet(scores.folder, corpus, {"intra_document_mask": self.conditions.data.intra_document_mask})
        except (InputError, MismatchError) as e:
            warn(f"eval goes on without scores/{name}: {e}")
            return None, None
        ref_BT = RowReader(corpus, opened).fetch(self.sample.numbers_B).ref_loss_BT
        assert ref_BT is not None
        return opened.manifest.content_hash, np.where(self.sample.target_BT, ref_BT.astype(np.float64), np.nan)

    # --- selection on the diagnostic rows ---

    def chosen(self, arm: str, live_BT: np.ndarray) -> np.ndarray | None:
        """Which tokens an arm would select of the diagnostic rows, as groups of its own size [B, T]; None where its scores
        are gone."""
        how, target_BT = self.trained[arm], self.sample.target_BT
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
        return random_mask(self.sample.target_BT, selection.ratio, selection.group_rows, seed)

    # --- what the report shows ---

    def results(self, arms: dict[str, Any], target: str) -> dict[str, Any]:
        """`diagnostics` of results.json. `arms` are its entries, with their checkpoints."""
        if not self.on:
            return {}
        found: dict[str, Any] = {"set": "corpus", "rows": len(self.sample.numbers_B), "tokens": int(self.sample.target_BT.sum())}
        if self.shown_ref_BT is not None:  # a reference that has forgotten the corpus selects badly
            means = (float(np.nanmean(x)) for x in (self.shown_ref_BT, self.losses("base")))
            found["reference"] = dict(zip(("mean_ref_loss", "mean_base_loss"), means, strict=True))
        curves = {a: self._trajectory(a, facts) for a, facts in arms.items()}
        base_mask = self._fixed_mask(arms)
        sections: dict[str, dict[str, Any]] = {"dynamics": {}, "fit": {}, "matrix": {}}
        mask_arms: dict[str, Any] = {}
        for arm, (steps, seen, names) in curves.items():
            losses_CN = np.stack([self.losses(n)[self.sample.target_BT] for n in names])
            self._write(arm, steps, names)
            if len(steps) >= 3:
                sections["dynamics"][arm] = self._dynamics(losses_CN, steps, seen)
            if len(steps) >= 2 and self.trained[arm].selection.criterion == "excess_loss":
                masks = [m[self.sample.target_BT] for n in names if (m := self.chosen(arm, self.losses(n))) is not None]
                if len(masks) == len(names):
                    masks_CN = np.stack(masks)
                    sections["matrix"][arm] = {"steps": steps, "perplexity": perplexity_matrix(losses_CN, masks_CN).tolist()}
            if base_mask is not None:
                found_by_mask = mask_curves(losses_CN, base_mask[self.sample.target_BT])
                mask_arms[arm] = {"steps": steps, "tokens_seen": seen, **found_by_mask}
                sections["fit"][arm] = self._fit(arms[arm], steps, found_by_mask, target)
        if base_mask is not None:
            found["fixed_mask"] = {
                "description": "the tokens of these rows with the highest excess loss under the base model, chosen once",
                "share": float(base_mask.sum() / max(1, self.sample.target_BT.sum())),
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
        places = np.argwhere(self.sample.target_BT)
        shown = []
        for token in fluctuating(losses_CN, category_N, SAMPLES, mix_seed("shown tokens", self.conditions.seed)):
            row, position = (int(x) for x in places[token])
            first = max(0, position - AROUND)
            texts = self._texts(self.sample.rows.ids_BT[row, first : position + 1])
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
        return token_texts(self.conditions.tokenizer.hf, ids.tolist())

    def _write(self, arm: str, steps: list[int], names: list[str]) -> None:
        """Per-token losses as Parquet, a row a predicted token; `selected` is what the arm would choose under its last
        checkpoint."""
        target = self.sample.target_BT
        places = np.argwhere(target)
        columns = {
            "row": self.sample.numbers_B[places[:, 0]],
            "position": places[:, 1].astype(np.int32),
            "input_id": self.sample.rows.ids_BT[target].astype(np.int32),
            "document": self.sample.rows.document_BT[target],
        }
        own = self.trained[arm].ref_BT
        ref = own if own is not None else self.shown_ref_BT
        if ref is not None:
            columns["ref_loss"] = ref[target].astype(np.float32)
        if (mask := self.chosen(arm, self.losses(names[-1]))) is not None:
            columns["selected"] = mask[target]
        columns |= {f"loss_{s:08d}": self.losses(n)[target] for s, n in zip(steps, names, strict=True)}
        with publishing(self.token_losses.folder / f"{arm}.parquet") as temporary:
            pq.write_table(pa.table(columns), temporary, compression="zstd")

    # --- one arm's selection ---

    def kinds(self, arm: str, last: str | None, texts: list[str]) -> dict[str, Any]:
        """What kinds of token an arm has seen and trained on: by its counts, and by position on the diagnostic rows under its
        last checkpoint."""
        counts = pq.read_table(self.arms[arm].folder / "token_counts.parquet")
        seen, selected = counts["seen"].to_numpy(), counts["selected"].to_numpy()
        texts = (texts + [""] * len(seen))[: len(seen)]
        found = {"by_kind": by_kind(texts, seen, selected), "by_frequency": by_frequency(seen, selected)}
        mask = self.chosen(arm, self.losses(last)) if self.on and last is not None else None
        if mask is not None:
            b, t = mask.shape
            position = np.broadcast_to(np.arange(t), (b, t)).ravel()
            found["by_position"] = by_position(position, self.sample.target_BT.ravel(), mask.ravel(), t)
        return found
