"""Whether a run's budget can be trained at all: asked before anything of an earlier run is moved."""

from __future__ import annotations

from slmctl.config.selection import SelectionConfig
from slmctl.config.training import TrainingConfig, rows_per_step, total_steps
from slmctl.system.console import warn
from slmctl.system.errors import ConfigError
from slmctl.training.optim import warmup_steps


def check_budget(
    name: str, settings: TrainingConfig, selection: SelectionConfig, seq_len: int, rows_of_epoch: int, ranks: int
) -> None:
    """Raises `ConfigError` where warm-up takes all steps, wsd decays for longer than it leaves, or a step's selection groups
    cannot be shared by the ranks."""
    steps = total_steps(settings, seq_len, rows_of_epoch)
    if steps <= warmup_steps(settings, steps):
        raise ConfigError(
            f"{name}: warmup {settings.warmup:g} takes all of the {steps} steps, so lr never reaches its peak. "
            "Give it as a share (below 1), or as fewer steps."
        )
    if (beyond := settings.decay_beyond(steps)) is not None:
        raise ConfigError(f"{name}: {beyond}")
    unit = seq_len * selection.group_rows
    groups = rows_per_step(settings, seq_len) // selection.group_rows
    if groups % ranks:
        near = max(1, round(groups / ranks)) * ranks * unit
        raise ConfigError(
            f"{name}: batch_tokens {settings.batch_tokens} makes {groups} selection groups a step (of "
            f"{selection.group_rows} rows of {seq_len} tokens), which {ranks} ranks cannot share evenly. Make it a multiple of "
            f"seq_len x group_rows x ranks = {unit * ranks}, such as {near}, or take another number of ranks."
        )


def warn_of_few_rows(name: str, settings: TrainingConfig, seq_len: int, rows_of_epoch: int) -> None:
    """Warns where one step takes more rows than there are."""
    rows = rows_per_step(settings, seq_len)
    if rows > rows_of_epoch:
        steps = total_steps(settings, seq_len, rows_of_epoch)
        size = f"{rows_of_epoch} rows ({rows_of_epoch * seq_len:,} tokens)"
        count = f"{steps} step{'s' * (steps > 1)}"
        warn(f"{name}: an epoch has {size}, a step {rows} rows: only {count}, each repeating rows. Lower batch_tokens.")
