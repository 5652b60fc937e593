"""What a selection loses by the type that reference losses are stored in, and by the precision of the passes that they and the
live losses come from; measured with a pipeline's own models on rows of its corpus."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch

from slmctl.config.score import ScoreConfig
from slmctl.config.selection import SelectionConfig
from slmctl.corpus.packing import target_mask
from slmctl.model.loading import load_model
from slmctl.model.precision import autocast, weights_of
from slmctl.model.row_losses import row_losses
from slmctl.model.source import ModelSource
from slmctl.model.split import SplitModel
from slmctl.selection.select import excess_loss, select_top, selected_count
from slmctl.selection.storage_precision import excess_given_up, loss_differences, share_replaced, stored
from slmctl.store.reader import RowReader, Rows, ScoreSet, TokenSet
from slmctl.store.scores import SENTINEL, columns_of
from slmctl.store.shard_format import rows_per_group, shard_name
from slmctl.store.shard_writer import ShardWriter
from slmctl.system.console import progress, say
from slmctl.system.errors import InputError
from slmctl.system.storage import Folder

LIVE, REFERENCE = "the live model (the base)", "the reference"
PRECISIONS = ("float32", "bf16_autocast", "bfloat16")
SECONDS = 300.0
"""That all forward passes together aim to stay within; each takes at least one group of rows."""


@dataclass(frozen=True)
class Sample:
    """Rows of the corpus [B, T], in whole selection groups, and how an arm selects among their tokens."""

    rows: Rows
    target_BT: np.ndarray
    group_rows: int
    ratio: float

    def selection(self, live_BT: np.ndarray, ref_BT: np.ndarray) -> np.ndarray:
        """The tokens that are selected of the first rows, as many as there are losses of [B, T]."""
        valid_BT = torch.from_numpy(self.target_BT[: len(live_BT)])
        valid_GM = valid_BT.view(-1, self.group_rows * valid_BT.shape[1])
        counts_G = torch.tensor([selected_count(int(v), self.ratio) for v in valid_GM.sum(dim=1)])
        scores_GM = excess_loss(torch.from_numpy(live_BT), torch.from_numpy(ref_BT)).view_as(valid_GM)
        found: np.ndarray = select_top(scores_GM, valid_GM, counts_G).view_as(valid_BT).numpy()
        return found


@dataclass(frozen=True)
class Pass:
    """Losses of a sample's first rows [B, T] (nats, float32; 0 where nothing is predicted), and the seconds a row they took."""

    losses_BT: np.ndarray
    seconds: float


Passes = dict[str, Pass]
"""By precision."""


@dataclass(frozen=True)
class Asked:
    """A score set, and what its losses are measured with."""

    name: str
    """Of its reference."""
    tokens: TokenSet
    """The corpus."""
    selection: SelectionConfig
    """Of an arm that the losses decide."""
    settings: ScoreConfig
    base: ModelSource | None
    """The live model; None where it is not here."""
    reference: ModelSource | None
    """As `base`."""
    scores: Callable[[], ScoreSet | None]
    """Opens the losses as they are stored, where there are any: asked for where the reference cannot be measured."""
    eos_id: int
    device: str
    intra_document_mask: bool


def compare_storage(asked: Asked, rows: int) -> list[str]:
    """A table in lines: for each storage type and each precision of the reference's and the live model's pass, how far losses are
    off, what share of an arm's selection is replaced, and what that costs. Where a model is absent, the rest is measured without.

    Raises `InputError` where there is neither a reference nor its scores."""
    sample = take_sample(asked, rows)
    live, ref = (
        if_there(what, partial(passes, asked, label, source, sample)) if source is not None else None
        for what, label, source in ((LIVE, "live model", asked.base), (REFERENCE, "reference", asked.reference))
    )
    return _table(asked.settings, sample, ref or stored_losses(asked, sample), live or {})


def take_sample(asked: Asked, rows: int) -> Sample:
    """At most so many rows, but at least one selection group, taken evenly from the corpus."""
    tokens, group = asked.tokens, asked.selection.group_rows
    count = max(group, min(rows, tokens.rows) // group * group)
    if tokens.rows < group:
        raise InputError(f"the corpus has {tokens.rows} rows, fewer than the {group} of a selection group.")
    read = RowReader(tokens).fetch(_evenly(tokens, count))
    return Sample(read, target_mask(read.document_BT, asked.intra_document_mask), group, asked.selection.ratio)


def _evenly(tokens: TokenSet, count: int) -> np.ndarray:
    return np.linspace(0, tokens.rows - 1, count).astype(np.int64)


T = TypeVar("T")


def if_there(what: str, look: Callable[[], T]) -> T | None:
    """What `look` finds; where that is an `InputError`, None, and what could not be measured is said."""
    try:
        return look()
    except InputError as e:
        say(f"{what} cannot be measured: {e}")
        return None


def stored_losses(asked: Asked, sample: Sample) -> Passes:
    """The losses of a score set, in the place of a reference that is absent."""
    scores = asked.scores()
    if scores is None:
        raise InputError(f"there is neither the reference of scores/{asked.name} nor its scores: there are no losses to look at.")
    losses_BT = RowReader(asked.tokens, scores).fetch(_evenly(asked.tokens, len(sample.target_BT))).ref_loss_BT
    assert losses_BT is not None
    say(f"scores/{asked.name} as they are stored take the reference's place: what rounds finer than they do shows no difference")
    return {"float32": Pass(np.where(sample.target_BT, losses_BT, np.float32(0)), 0.0)}


# --- passes ---


def passes(asked: Asked, what: str, source: ModelSource, sample: Sample) -> Passes:
    """A model's losses in each precision; of fewer rows where the time is up."""
    found: Passes = {}
    model: SplitModel | None = None
    for precision in PRECISIONS:
        if model is None or weights_of(precision) != "float32":
            model = None  # not two at once
            model = SplitModel(load_model(source, weights_of(precision), asked.device), asked.intra_document_mask)
            if not found:
                model.check(asked.eos_id, sample.target_BT.shape[1])
        limit = len(found["float32"].losses_BT) if found else len(sample.target_BT)
        found[precision] = _pass(asked.device, f"{what} in {precision}", model, precision, sample, limit)
    return found


def _pass(device: str, label: str, model: SplitModel, precision: str, sample: Sample, limit: int) -> Pass:
    group = sample.group_rows
    parts: list[np.ndarray] = []
    times: list[float] = []
    until = time.monotonic() + SECONDS / (2 * len(PRECISIONS))
    say(f"{label}: up to {limit} rows")
    with progress(label, limit, "rows") as ticker, autocast(device, precision == "bf16_autocast"):
        for at in range(0, limit, group):
            if parts and time.monotonic() >= until:
                say(f"{label}: the time is up after {at} of {limit} rows")
                break
            started = time.perf_counter()
            read = sample.rows.part(at, at + group)
            losses_BT, _, _ = row_losses(model, read.ids_BT, read.document_BT, device)
            parts.append(np.nan_to_num(losses_BT))
            times.append((time.perf_counter() - started) / group)
            ticker.advance(group)
    return Pass(np.concatenate(parts), float(np.median(times[1:] or times)))  # the first makes ready what the others use


# --- figures ---


def figures(sample: Sample, exact: np.ndarray, other: np.ndarray, live: tuple[np.ndarray, np.ndarray] | None) -> dict[str, Any]:
    """How far losses are off (nats) of which [B, T] both hold rows, and what becomes of the selection: `live` are the excess that
    is exact and the one with the `other` losses, each [B, T]."""
    n = min(len(exact), len(other))
    target = sample.target_BT[:n]
    median, high = loss_differences(exact[:n], other[:n], target)
    found: dict[str, Any] = {"rows": n, "median": median, "p99": high}
    return found | (change(sample, *live) if live is not None else {})


def change(sample: Sample, exact_excess: np.ndarray, other_excess: np.ndarray) -> dict[str, Any]:
    """Share of the selection replaced, and of what it gains in mean excess loss given up, by `other_excess` [B, T]."""
    n = min(len(exact_excess), len(other_excess))
    zero = np.zeros_like(exact_excess[:n])
    exact, other = (sample.selection(e[:n], zero) for e in (exact_excess, other_excess))
    given_up = excess_given_up(exact_excess[:n], exact, other, sample.target_BT[:n])
    return {"replaced": share_replaced(exact, other), "given_up": given_up}


def measured(sample: Sample, ref: Passes, live: Passes) -> dict[str, dict[str, Any]]:
    """Figures by what was changed: `stored as TYPE`, `reference in P`, `live model in P`, `both in P`."""
    exact_ref, table = ref["float32"].losses_BT, {}
    exact_live = live["float32"].losses_BT if live else None

    def excess(live_BT: np.ndarray, ref_BT: np.ndarray) -> np.ndarray:
        n = min(len(live_BT), len(ref_BT))
        found: np.ndarray = live_BT[:n] - ref_BT[:n]
        return found

    exact = excess(exact_live, exact_ref) if exact_live is not None else None

    def against(live_BT: np.ndarray | None, ref_BT: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
        return (exact, excess(live_BT, ref_BT)) if exact is not None and live_BT is not None else None

    for dtype in ("float32", "float16", "compact"):
        kept = stored(exact_ref, dtype).astype(np.float32)
        size = _bytes_of(np.where(sample.target_BT[: len(kept)], kept, np.float32(SENTINEL)), dtype) / kept.size
        table[f"stored as {dtype}"] = {**figures(sample, exact_ref, kept, against(exact_live, kept)), "bytes_a_token": size}
    for what, passed in (("reference", ref), ("live model", live)):
        for precision in PRECISIONS[1:] if len(passed) > 1 else ():
            one = passed[precision]
            pair = against(exact_live, one.losses_BT) if what == "reference" else against(one.losses_BT, exact_ref)
            speed = one.seconds / passed["float32"].seconds
            table[f"{what} in {precision}"] = {
                **figures(sample, passed["float32"].losses_BT, one.losses_BT, pair), "time": speed,
            }  # fmt: skip
    if exact is not None and len(ref) > 1:
        for precision in PRECISIONS[1:]:
            both = excess(live[precision].losses_BT, ref[precision].losses_BT)
            table[f"both in {precision}"] = {"rows": len(both), **change(sample, exact, both)}
    return table


def _bytes_of(losses_BT: np.ndarray, dtype: str) -> int:
    """Size of a shard of these losses."""
    columns = columns_of(ScoreConfig(dtype=dtype, entropy=False))  # type: ignore[arg-type]
    per_group = rows_per_group(losses_BT.shape[1])
    with tempfile.TemporaryDirectory() as directory:
        with ShardWriter(Folder.at(directory), shard_name(0), columns, per_group * losses_BT.shape[1]) as writer:
            for at in range(0, len(losses_BT), per_group):
                writer.write(ref_loss=losses_BT[at : at + per_group].ravel())
            writer.facts = {"rows": len(losses_BT), "tokens": losses_BT.size}
        return writer.shard.bytes


def _table(settings: ScoreConfig, sample: Sample, ref: Passes, live: Passes) -> list[str]:
    found = measured(sample, ref, live)
    tokens, rows = int(sample.target_BT.sum()), len(sample.target_BT)
    of = f"the top {sample.ratio:.0%} of groups of {sample.group_rows} rows by excess loss"
    heads = ("bytes a token", "time", "median off", "99% off", "replaced", "given up")
    lines = [
        f"{tokens:,} losses of {rows} rows; {of}. Beside the same in float32:",
        f"  {'':<28}" + "".join(f"{h:>15}" for h in heads),
    ]
    for what, f in found.items():
        shown = [
            f"{f['bytes_a_token']:.3f}" if "bytes_a_token" in f else "",
            f"{f['time']:.2f}" if "time" in f else "",
            *(f"{f[k]:.5f}" if k in f else "" for k in ("median", "p99")),
            *(f"{f[k]:.3%}" if k in f else "-" for k in ("replaced", "given_up")),
        ]
        fewer = f"  (of {f['rows']} rows)" if f["rows"] < rows else ""
        lines.append(f"  {what:<28}" + "".join(f"{s:>15}" for s in shown) + fewer)
    return [
        *lines,
        f"  {'a random selection':<28}" + f"{'':>60}{1 - sample.ratio:>15.1%}{1:>15.1%}",
        "time: of a forward pass, beside float32's on this device. off: nats. replaced: share of the selected tokens that others "
        "take the place of. given up: share of what selection gains in mean excess loss over blind choice.",
        f"score.dtype is {settings.dtype}, score.precision {settings.precision}; the live model runs in an arm's precision. "
        "The base stands for the live model.",
    ]
