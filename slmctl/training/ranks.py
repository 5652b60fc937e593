"""The processes that train one model together. One process without torchrun is the same code, with nobody to talk to.

Host numbers travel over gloo, so that agreeing on them makes no GPU wait; tensors over the device's own backend.
"""

from __future__ import annotations

import os
import pickle
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from slmctl.system.console import quiet, waiting
from slmctl.system.errors import ConfigError, SlmError
from slmctl.system.memory import memory_limit

T = TypeVar("T")
TIMEOUT = timedelta(minutes=10)
"""After which a collective that a rank has not joined fails."""
SIGNALS = (signal.SIGINT, signal.SIGTERM)
"""Those that ask a run to stop, of which ranks tell each other."""


@dataclass(frozen=True)
class Ranks:
    """Rank `rank` of `size`. Groups of all ranks (None alone): `patient` for what may take long, `writing` for the thread that
    writes checkpoints."""

    rank: int = 0
    size: int = 1
    patient: Any = None
    writing: Any = None

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def sum(self, values: list[int]) -> list[int]:
        """The sums over ranks of numbers on the host."""
        if self.size == 1:
            return values
        tensor = torch.tensor(values, dtype=torch.int64)
        dist.all_reduce(tensor)
        return tensor.tolist()

    def sum_floats(self, values: list[float]) -> list[float]:
        """The same of float64 numbers."""
        if self.size == 1:
            return values
        tensor = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(tensor)
        return tensor.tolist()

    def all_of(self, value: int) -> list[int]:
        """Every rank's number."""
        return self.sum([value if r == self.rank else 0 for r in range(self.size)])

    def agreed_signal(self, signum: int | None) -> int | None:
        """The signal that any rank has received; `signum` is this one's."""
        told = self.sum([int(signum == s) for s in SIGNALS])
        return next((int(s) for s, n in zip(SIGNALS, told, strict=True) if n), None)

    def sum_(self, tensor: Tensor) -> Tensor:
        """Sums a tensor over ranks, in place, on its device."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def before(self, tensor: Tensor) -> Tensor:
        """Its sum over the ranks before this one."""
        if self.size == 1:
            return torch.zeros_like(tensor)
        found = [torch.empty_like(tensor) for _ in range(self.size)]
        dist.all_gather(found, tensor)
        return torch.stack(found)[: self.rank].sum(0)

    def first(self, work: Callable[[], T]) -> T:
        """What `work` returns on the first rank, or raises there, on every rank."""
        if self.size == 1:
            return work()
        box: list[Any] = [None]
        if self.is_first:
            try:
                box = [(True, work())]
                pickle.dumps(box)  # what cannot be told must fail here, not while the others wait
            except SlmError as e:
                box = [(False, e)]
            except Exception as e:  # of whatever kind: the others must not wait for it
                box = [(False, SlmError(f"{type(e).__name__}: {e}"))]
        dist.broadcast_object_list(box, group=self.patient)
        done, value = box[0]
        if not done:
            value.told = not self.is_first
            raise value
        return value  # type: ignore[no-any-return]

    def barrier(self) -> None:
        """Waits for all, however long the others take."""
        with waiting("waiting for the other ranks"):
            self.first(lambda: None)
            if self.size > 1:
                dist.barrier(group=self.patient)


def machine(device: str, ranks: Ranks) -> dict[str, Any]:
    """What a run's layout in memory depends on: how many ranks, the first one's device, and the least memory of any in bytes.
    The same on every rank."""
    name, memory = "cpu", memory_limit()
    if device.startswith("cuda"):
        found = torch.cuda.get_device_properties(torch.cuda.current_device())
        name, memory = found.name, found.total_memory
    return {"ranks": ranks.size, "device": ranks.first(lambda: name), "memory": min(ranks.all_of(memory))}


def wanted_size(env: Mapping[str, str] = os.environ) -> int:
    """How many ranks torchrun has started. Raises `ConfigError` where its variables make no sense."""
    if "WORLD_SIZE" not in env or "RANK" not in env:
        return 1
    try:
        rank, size = int(env["RANK"]), int(env["WORLD_SIZE"])
    except ValueError:
        raise ConfigError(f"RANK {env['RANK']!r}, WORLD_SIZE {env['WORLD_SIZE']!r}: want whole numbers.") from None
    if not 0 <= rank < size:
        raise ConfigError(f"RANK {rank}, WORLD_SIZE {size}: want 0 <= RANK < WORLD_SIZE.")
    return size


@contextmanager
def joined(device: str) -> Iterator[Ranks]:
    """Joins the ranks that torchrun has started, if it has; within, they can talk to each other."""
    size = wanted_size()
    if dist.is_initialized():  # a stage within a run of several
        yield _ranks()
        return
    if size == 1:
        try:
            yield Ranks()
        finally:
            if dist.is_initialized():  # `sharding: full` on one process
                _groups.clear()
                dist.destroy_process_group()
        return
    if "MASTER_ADDR" not in os.environ or "MASTER_PORT" not in os.environ:
        raise ConfigError("RANK and WORLD_SIZE are set, but MASTER_ADDR or MASTER_PORT is not. Start it with torchrun.")
    backend = "cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo"
    try:
        with waiting(f"waiting for all {size} ranks to start"):
            store, rank, _ = next(rendezvous("env://", timeout=TIMEOUT))
        if os.environ.get("LOCAL_WORLD_SIZE") == str(size):  # torchrun keeps its store when it starts ranks again: addresses
            store = PrefixStore(f"attempt-{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)  # of dead ranks too
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=TIMEOUT)
    except Exception as e:
        raise SlmError(f"rank {os.environ['RANK']} cannot join the others: {e}") from e
    with quiet(dist.get_rank() > 0):
        yield _ranks()
    _groups.clear()
    dist.destroy_process_group()  # after an error nobody waits for those that may be gone


_groups: dict[int, tuple[Any, Any]] = {}


def _ranks() -> Ranks:
    """This rank, with two gloo groups of all: their collectives never mix with those of training, nor with each other's."""
    key = id(dist.group.WORLD)
    if key not in _groups:
        long = timedelta(days=7)
        _groups[key] = (dist.new_group(backend="gloo", timeout=long), dist.new_group(backend="gloo", timeout=long))
    return Ranks(dist.get_rank(), dist.get_world_size(), *_groups[key])
