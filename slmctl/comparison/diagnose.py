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
from slmctl.corpus.packing import restarting_positions
from slmctl.evaluation.dynamics import CATEGORIES, categorise, category_curves, fluctuating
from slmctl.selection.criterion import Column, Columns
from slmctl.selection.masks import mask_of
from slmctl.selection.select import random_scores, select_top, selected_count
from slmctl.selection.table import live_of, stored_of
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


def _group(values_BT: np.ndarray) -> torch.Tensor:
    """One group of the rows [1, M]."""
    return torch.from_numpy(np.ascontiguousarray(values_BT)).reshape(1, -1)


def _columns_read(selection: SelectionConfig, first: str) -> dict[tuple[str, Column], tuple[str, Column]]:
    """What a selection reads, as it names it, and the same by the names of score.references."""
    return {(name, column): (name or first, column) for name, column in stored_of(selection.choice())}


def _scores_of(made_from: dict[str, Any], selection: SelectionConfig, first: str) -> dict[str, Any]:
    """Content hashes of the score sets that an arm was trained with, by name."""
    return {selection.watched or first: made_from.get("scores"), **(made_from.get("more_scores") or {})}


@dataclass(frozen=True)
class Trained:
    """How an arm chose its tokens."""

    selection: SelectionConfig
    seed: int
    ref_BT: np.ndarray | None
    """Reference losses that it chose by (float64, NaN where nothing is predicted); None where it did not, or they are gone."""
    stored: dict[tuple[str, str], np.ndarray] | None = None
    """All that it chose by, by the names of score sets and their columns [B, T]; None where some of it is gone."""


class Diagnosis:
    """Works out the diagnostics at the end, when the losses of all models are kept."""

    def __init__(self, compared: Compared, token_losses: TokenLosses) -> None:
        self.conditions, self.arms, self.token_losses = compared.conditions, compared.arms, token_losses
        self.on = token_losses.on
        if not self.on:
            return
        self.sample, self.losses = token_losses.sample, token_losses.of
        first = next(iter(compared.config.score.references))
        self.log_odds_V: np.ndarray | None = None
        """Of each id, where an arm chose by them; None where they are not known here."""
        chose = {a: SelectionConfig(**arm.made_from["settings"]["selection"]) for a, arm in self.arms.items()}
        read = {a: _columns_read(s, first) for a, s in chose.items()}
        wanted = dict.fromkeys([*(key for keys in read.values() for key in keys.values()), (first, "ref_loss")])
        found = {key: self._stored(*key, compared.scores.get(key[0])) for key in wanted}
        self.trained = {}
        for name, selection in chose.items():
            arm = self.arms[name]
            made = _scores_of(arm.made_from, selection, first)
            stored = {
                key: values
                for key, at in read[name].items()
                if (values := found[at][1]) is not None and found[at][0] == made.get(at[0])  # else they were made again since
            }
            whole = stored if len(stored) == len(read[name]) else None
            ref_BT = stored.get((selection.watched, "ref_loss")) if whole else None
            self.trained[name] = Trained(selection, arm.seed, ref_BT, whole)
        shown = [t.ref_BT for t in self.trained.values() if t.ref_BT is not None]
        self.shown_ref_BT = next(iter(shown), found[first, "ref_loss"][1])
        """Of the first arm that chose by any; else the first reference's."""

    def _stored(self, name: str, column: str, scores: Scores | None) -> tuple[str | None, np.ndarray | None]:
        """Content hash of a score set as it lies there, and a column at the rows; None where there is none of this corpus."""
        if scores is None:
            return None, None
        corpus = self.conditions.corpus
        try:
            opened = ScoreSet(scores.folder, corpus, {"intra_document_mask": self.conditions.data.intra_document_mask})
        except (InputError, MismatchError) as e:
            warn(f"eval goes on without scores/{name}: {e}")
            return None, None
        if column not in opened.manifest.format["columns"]:
            return opened.manifest.content_hash, None
        key = (name, column)
        values_BT = RowReader(corpus, joined={key: opened}).fetch(self.sample.numbers_B).joined[key]
        return opened.manifest.content_hash, np.where(self.sample.target_BT, values_BT.astype(np.float64), np.nan)

    # --- selection on the diagnostic rows ---

    def chosen(self, arm: str, live_BT: np.ndarray) -> np.ndarray | None:
        """Which tokens an arm would select of the diagnostic rows, as groups of its own size [B, T]; None where its scores
        are gone."""
        how, target_BT = self.trained[arm], self.sample.target_BT
        if how.selection.criterion == "all":
            return target_BT
        if how.selection.criterion == "random":
            return self.blind(arm, how.seed)
        if how.stored is None or "live_entropy" in live_of(how.selection.choice()):
            return None  # entropies of the model in training are not kept
        if how.selection.criterion == "excess_loss" and how.ref_BT is not None:
            return excess_mask(live_BT, how.ref_BT, how.selection.ratio, how.selection.group_rows)
        return self._chosen_by_table(how, live_BT)

    def _chosen_by_table(self, how: Trained, live_BT: np.ndarray) -> np.ndarray | None:
        """What a criterion of the table takes of the rows, the last group perhaps of fewer."""
        selection, found = how.selection, np.zeros(live_BT.shape, bool)
        if "log_odds" in selection.features and self.log_odds_V is None:
            return None
        for g, at in enumerate(range(0, len(live_BT), selection.group_rows)):
            part = slice(at, at + selection.group_rows)
            valid_BT = self.sample.target_BT[part]
            place_BT = restarting_positions(self.sample.rows.document_BT[part])
            odds = self.log_odds_V[self.sample.rows.ids_BT[part].astype(np.int64)] if self.log_odds_V is not None else None
            columns = Columns(
                _group(valid_BT),
                [mix_seed("diagnostics", how.seed, g)],
                _group(live_BT[part]),
                stored={key: _group(values[part]) for key, values in (how.stored or {}).items()},
                position_GM=_group(place_BT),
                log_odds_GM=_group(odds) if odds is not None else None,
            )
            found[part] = mask_of(columns, selection.choice()).numpy().reshape(valid_BT.shape)
        return found

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
            if len(steps) >= 2 and self.trained[arm].selection.needs_live:
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
