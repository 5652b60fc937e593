"""What clipping did to a run, by hand."""

from __future__ import annotations

import math

import pytest

from slmctl.comparison.clipping import clipping


def step(norm, skipped=None):
    return {"grad_norm": norm, "skipped": skipped}


def test_the_share_is_of_the_steps_that_were_taken():
    log = [step(0.5), step(1.0), step(2.0), step(4.0), step(9.0, "spike"), step(math.nan, "nonfinite"), step(None)]
    found = clipping(log, 1.0)
    assert found == {
        "clip": 1.0,
        "clipped_share": 0.5,
        "mean_factor": pytest.approx((1 + 1 + 1 / 2 + 1 / 4) / 4),
        "median_norm": 1.5,
    }


@pytest.mark.parametrize("grad_clip", [0, 0.0, None])
def test_without_a_clip_nothing_is_clipped_and_the_norm_is_still_told(grad_clip):
    assert clipping([step(3.0), step(5.0)], grad_clip) == {
        "clip": None,
        "clipped_share": None,
        "mean_factor": None,
        "median_norm": 4.0,
    }


def test_a_log_without_norms_tells_nothing():
    assert clipping([], 1.0)["clipped_share"] is clipping([step(None)], 1.0)["median_norm"] is None
