"""Budgets that cannot be trained are refused, with figures, before anything is moved."""

from __future__ import annotations

import re

import pytest

from slmctl.config.selection import SelectionConfig
from slmctl.config.training import TrainingConfig
from slmctl.system.errors import ConfigError
from slmctl.training.budget import check_budget, warn_of_few_rows
from slmctl.training.optim import lr_at

SEQ_LEN = 16


def settings(rows, **more):
    return TrainingConfig(**{"steps": 10, "batch_tokens": rows * SEQ_LEN, **more})


@pytest.mark.parametrize(("rows", "ranks"), [(8, 3), (4, 4), (12, 4), (2, 2)])
def test_ranks_that_cannot_share_a_step_evenly_are_refused(rows, ranks):
    selection = SelectionConfig(group_rows=2)
    with pytest.raises(ConfigError) as e:
        check_budget("slm", settings(rows), selection, SEQ_LEN, 100, ranks)
    said = str(e.value)
    assert f"slm: batch_tokens {rows * SEQ_LEN} makes {rows // 2} selection groups a step" in said
    offered = int(re.search(r"such as (\d+)", said)[1])
    check_budget("slm", settings(offered // SEQ_LEN), selection, SEQ_LEN, 100, ranks)  # what it offers is taken


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_what_ranks_can_share_is_taken(ranks):
    check_budget("slm", settings(8), SelectionConfig(group_rows=2), SEQ_LEN, 100, ranks)


def test_a_warm_up_of_all_steps_is_refused():
    with pytest.raises(ConfigError, match="warmup 10 takes all of the 10 steps"):
        check_budget("slm", settings(8, warmup=10), SelectionConfig(), SEQ_LEN, 100, 1)
    check_budget("slm", settings(8, warmup=9), SelectionConfig(), SEQ_LEN, 100, 1)


WSD = {"schedule": "wsd"}


@pytest.mark.parametrize(
    "run",
    [
        {"warmup": 0.3, "wsd_decay": 0.8, "tokens": 5000},
        {"warmup": 6, "wsd_decay": 0.5, "steps": 10},
        {"warmup": 0.9, "steps": 10},
    ],
)
def test_a_wsd_that_decays_for_longer_than_warm_up_leaves_is_refused_with_the_configuration(run):
    with pytest.raises(ValueError, match=r"warmup \S+ and wsd_decay \S+ take more than (all|10) steps together") as e:
        TrainingConfig(**WSD, **run)
    most = re.search(r"leaves a share of (\S+):", str(e.value))[1]
    TrainingConfig(**WSD, **{**run, "wsd_decay": float(most)})  # what it offers is taken
    TrainingConfig(**{**run, "schedule": "cosine"})


def test_a_wsd_that_decays_for_longer_is_refused_where_its_steps_are_known_only_now():
    run = {**WSD, "steps": None, "epochs": 1.0, "warmup": 6, "wsd_decay": 0.5}
    with pytest.raises(ConfigError, match=r"slm: schedule wsd: warmup 6 and wsd_decay 0.5 take more than 10 steps together"):
        check_budget("slm", settings(8, **run), SelectionConfig(), SEQ_LEN, 80, 1)
    check_budget("slm", settings(8, **run), SelectionConfig(), SEQ_LEN, 96, 1)


def test_a_wsd_whose_shares_make_up_the_whole_never_begins_to_fall_below_its_peak():
    for steps in range(2, 40):
        run = TrainingConfig(**WSD, steps=steps, warmup=0.5, wsd_decay=0.5, lr=1.0, min_lr_ratio=0.0)
        check_budget("slm", run, SelectionConfig(), SEQ_LEN, 100, 1)
        assert max(lr_at(s, steps, run) for s in range(1, steps + 1)) == 1.0


def test_steps_of_more_rows_than_there_are_are_warned_of(capsys):
    warn_of_few_rows("slm", settings(8, steps=None, epochs=1), SEQ_LEN, 7)
    assert "an epoch has 7 rows (112 tokens), a step 8 rows: only 1 step, each repeating rows" in capsys.readouterr().err
    warn_of_few_rows("slm", settings(8), SEQ_LEN, 8)
    assert capsys.readouterr().err == ""
