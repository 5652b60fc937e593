"""inspect --storage: its figures beside a plain loop over tokens, its table, and what it says where a model is absent."""

from __future__ import annotations

import math
import re
import shutil

import numpy as np
import pytest
from evaluated_pipeline import Made

from slmctl.cli.process import main
from slmctl.comparison import storage_costs
from slmctl.comparison.storage_costs import PRECISIONS, Pass, Sample, measured, passes, stored_losses, take_sample
from slmctl.model.loading import load_model
from slmctl.model.split import SplitModel
from slmctl.selection.storage_precision import stored
from slmctl.stages.inspect import inspect_storage, resolve_storage
from slmctl.store.reader import Rows
from slmctl.system.errors import InputError

B, T, GROUP, RATIO = 8, 6, 4, 0.6
WHAT = [
    *(f"stored as {d}" for d in ("float32", "float16", "compact")),
    *(f"{w} in {p}" for w in ("reference", "live model", "both") for p in PRECISIONS[1:]),
]


def top(live: np.ndarray, ref: np.ndarray, target: np.ndarray) -> set[tuple[int, int]]:
    """The selected tokens, one by one."""
    found: set[tuple[int, int]] = set()
    for first in range(0, len(live), GROUP):
        at = [(r, c) for r in range(first, first + GROUP) for c in range(T) if target[r, c]]
        order = sorted(at, key=lambda p: (-(float(live[p]) - float(ref[p])), p))
        found |= set(order[: math.ceil(round(RATIO * len(at), 9))])
    return found


def test_figures_equal_a_loop_also_of_passes_that_ended_early() -> None:
    rng = np.random.default_rng(0)
    target = rng.random((B, T)) < 0.8
    sample = Sample(Rows(np.zeros((B, T), np.int32), np.zeros((B, T), np.int64)), target, GROUP, RATIO)

    def losses(rows: int) -> np.ndarray:
        return np.where(target[:rows], np.round(rng.gamma(1.0, 2.0, (rows, T)), 3), 0).astype(np.float32)

    ref = {p: Pass(losses(n), s) for p, n, s in zip(PRECISIONS, (8, 4, 8), (2.0, 1.0, 0.5), strict=True)}
    live = {p: Pass(losses(n), s) for p, n, s in zip(PRECISIONS, (8, 8, 4), (1.0, 3.0, 0.5), strict=True)}
    found = measured(sample, ref, live)
    assert list(found) == WHAT
    ref32, live32 = ref["float32"].losses_BT, live["float32"].losses_BT
    cases = {f"stored as {d}": (live32, stored(ref32, d)) for d in ("float32", "float16", "compact")}
    for p in PRECISIONS[1:]:
        cases |= {f"reference in {p}": (live32, ref[p].losses_BT), f"live model in {p}": (live[p].losses_BT, ref32)}
        cases |= {f"both in {p}": (live[p].losses_BT, ref[p].losses_BT)}
    for what, (one, other) in cases.items():
        rows = min(len(one), len(other))
        exact, changed = top(live32[:rows], ref32[:rows], target), top(one[:rows], other[:rows], target)
        assert found[what]["rows"] == rows, what
        assert found[what]["replaced"] == pytest.approx(len(exact - changed) / len(exact)), what
        mean = [
            np.mean([float(live32[p]) - float(ref32[p]) for p in picked])
            for picked in (exact, changed, [(r, c) for r in range(rows) for c in range(T) if target[r, c]])
        ]
        assert found[what]["given_up"] == pytest.approx((mean[0] - mean[1]) / (mean[0] - mean[2]), rel=1e-5, abs=1e-9), what
    assert found["stored as float32"]["replaced"] == 0 < found["reference in bfloat16"]["replaced"]
    assert [found[f"{w} in {p}"]["time"] for w in ("reference", "live model") for p in PRECISIONS[1:]] == [0.5, 0.25, 3.0, 0.5]
    off = np.abs(ref["bfloat16"].losses_BT.astype(float) - ref32)[target]
    assert (found["reference in bfloat16"]["median"], found["reference in bfloat16"]["p99"]) == pytest.approx(
        (np.median(off), np.quantile(off, 0.99))
    )


def test_passes_are_the_models_losses_and_end_when_the_time_is_up(evaluated: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = evaluated.open()
    asked, source = resolve_storage(workspace, "curated"), workspace.reference_source("curated")
    sample = take_sample(asked, 16)
    found = passes(asked, "reference", source, sample)
    assert {p: len(one.losses_BT) for p, one in found.items()} == dict.fromkeys(PRECISIONS, 16)
    exact, _, _ = storage_costs.row_losses(
        SplitModel(load_model(source), False), sample.rows.ids_BT, sample.rows.document_BT, "cpu"
    )
    np.testing.assert_allclose(found["float32"].losses_BT[sample.target_BT], exact[sample.target_BT], rtol=1e-5, atol=1e-6)
    off = [np.abs(found[p].losses_BT - found["float32"].losses_BT)[sample.target_BT] for p in PRECISIONS[1:]]
    assert all(0 < o.max() < 0.3 for o in off)
    assert (off[0] != off[1]).any(), "weights in bfloat16 compute what autocast does"
    np.testing.assert_allclose(stored_losses(asked, sample)["float32"].losses_BT, found["float32"].losses_BT, atol=5e-3)
    monkeypatch.setattr(storage_costs, "SECONDS", 0.0)
    short = passes(asked, "reference", source, sample)
    assert {len(one.losses_BT) for one in short.values()} == {4}, "one group is the least"


def table(text: str) -> dict[str, list[str]]:
    found = {}
    for row in text.splitlines():
        named = next((w for w in [*WHAT, "a random selection"] if row.strip().startswith(w)), None)
        if named is not None:
            found[named] = re.sub(r"\(of .*", "", row.strip().removeprefix(named)).split()
    return found


def test_the_command_says_what_it_does_and_prints_a_row_for_each(own_copy: Made, capsys: pytest.CaptureFixture[str]) -> None:
    config = own_copy.open().root / "config.resolved.yaml"
    capsys.readouterr()
    with pytest.raises(SystemExit, match="0"):
        main(["inspect", str(config), "scores/curated", "--storage", "--rows", "8"])
    said = capsys.readouterr()
    rows = table(said.out)
    assert list(rows) == [*WHAT, "a random selection"]
    assert rows["stored as float32"][1:] == ["0.00000", "0.00000", "0.000%", "0.000%"]
    assert rows["a random selection"] == ["40.0%", "100.0%"]
    assert [len(rows[w]) for w in WHAT] == [5] * 3 + [5] * 4 + [2] * 2
    for what in ("live model", "reference"):
        for precision in PRECISIONS:
            assert f"{what} in {precision}: up to 8 rows" in said.err


def test_without_the_base_losses_alone_are_measured(own_copy: Made, monkeypatch, capsys) -> None:
    workspace = own_copy.open()

    def absent() -> None:
        raise InputError("the base is on another machine.")

    monkeypatch.setattr(workspace, "base_source", absent)
    inspect_storage(workspace, "scores/curated", 8)
    said = capsys.readouterr()
    assert "the live model (the base) cannot be measured: the base is on another machine." in said.err
    rows = table(said.out)
    assert list(rows) == [w for w in [*WHAT, "a random selection"] if not w.startswith(("live", "both"))]
    assert rows["stored as compact"][3:] == ["-", "-"] != rows["stored as compact"][1:3]


def test_without_the_reference_its_stored_losses_take_its_place_and_without_these_it_says_so(own_copy: Made, capsys) -> None:
    workspace = own_copy.open()
    shutil.rmtree(workspace.reference)
    inspect_storage(workspace, "scores/curated", 8)
    said = capsys.readouterr()
    assert "the reference cannot be measured" in said.err
    assert "as they are stored take the reference's place" in said.err
    rows = table(said.out)
    assert list(rows) == [w for w in [*WHAT, "a random selection"] if not w.startswith(("reference", "both"))]
    assert rows["stored as float16"][1:] == ["0.00000", "0.00000", "0.000%", "0.000%"], "they are stored as float16"
    shutil.rmtree(str(workspace.scores("curated").path))
    with pytest.raises(InputError, match="neither the reference of scores/curated nor its scores"):
        inspect_storage(workspace, "scores/curated", 8)
