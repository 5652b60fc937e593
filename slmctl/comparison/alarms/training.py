"""Alarms of how arms were trained: did one gradient clip act on both sides of a comparison alike?"""

from __future__ import annotations

from collections.abc import Iterator

from slmctl.comparison.alarms.versus_control import pairs
from slmctl.comparison.comparing import Alarm, Results, alarm, known, percent

CLIPPED_APART = 0.2
"""Share of the steps by which two arms' clipped ones may differ: of two runs of 100 steps, three standard errors. It is the share
that matters: a factor that all steps have in common drops out of AdamW's update, one that only some of them have does not."""


def clipped(results: Results) -> Iterator[Alarm]:
    """The gradient of the tokens of highest excess is larger than that of all tokens at the same weights (1.35 times, small
    models), so that the same grad_clip may shorten an arm's steps and let its control's pass."""
    for arm, control in pairs(results):
        mine, its = (results["arms"][a].get("gradient") or {} for a in (arm, control))
        one, other = mine.get("clipped_share"), its.get("clipped_share")
        if not known(one) or not known(other) or mine.get("clip") != its.get("clip") or abs(one - other) <= CLIPPED_APART:
            continue
        text = (
            f"grad_clip {mine['clip']:g} shortened {percent(one)} of the steps of {arm}, {percent(other)} of those of {control}"
        )
        if known(mine.get("median_norm")) and known(its.get("median_norm")):
            text += f" (median norm {mine['median_norm']:.3g} and {its['median_norm']:.3g})"
        text += ": part of what tells them apart may be the clip. Compare them with a grad_clip that few steps of either reach."
        yield alarm("clipped", "warning", text)
