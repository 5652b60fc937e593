"""How a model is laid out over ranks and its blocks compiled and recomputed: set up once, before the optimizer is made.

FSDP2 (`fully_shard`) over a mesh of two dimensions serves every layout: within the second, parameters, gradients and
optimizer state are split; along the first they are the same. `full` splits over all ranks, `replicate` over none.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import nn

from slmctl.config.training import TrainingConfig
from slmctl.model.split import SplitModel
from slmctl.system.console import say
from slmctl.system.errors import ConfigError
from slmctl.training.ranks import Ranks

BYTES_A_PARAMETER = 16
"""Weights, gradients and AdamW's two moments, in float32."""


def blocks_of(model: SplitModel) -> nn.ModuleList:
    """The trunk's blocks. Raises `ConfigError` where there are none to be seen."""
    lists = [m for m in model.model.base_model.modules() if isinstance(m, nn.ModuleList)]
    if not lists:
        raise ConfigError(f"{type(model.model).__name__} has no list of blocks to shard, compile or recompute.")
    inner = {id(m) for outer in lists for m in outer.modules() if m is not outer}  # a block may hold a longer list, of experts
    return max((m for m in lists if id(m) not in inner), key=len)


def lay_out(model: SplitModel, settings: TrainingConfig, ranks: Ranks, device: str) -> None:
    """Applies activation checkpointing, compilation and sharding to the blocks, in this order, in place."""
    compiled = settings.compile is True or (settings.compile == "auto" and device.startswith("cuda"))
    if settings.activation_checkpointing != "off":
        recompute(blocks_of(model), every=1 if settings.activation_checkpointing == "full" else 2)
    if compiled:
        if model.draws:
            from torch._inductor import config as inductor  # which takes a second to load

            inductor.fallback_random = True  # dropout's masks are then those of blocks that are not compiled
        for block in blocks_of(model):
            block.compile()
        say("compile: each kind of block is compiled in the first steps, which take longer for it")
    layout = choose(model, settings, ranks, device)
    if layout is not None:
        shard(model, settings, ranks, device, layout)
        say(f"sharding: {layout} over {ranks.size} rank{'s' * (ranks.size > 1)}")


def recompute(blocks: nn.ModuleList, every: int) -> None:
    """Wraps each `every`-th block so that its activations are computed again in the backward pass. Weights keep their names."""
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    for i in range(0, len(blocks), every):
        blocks[i] = checkpoint_wrapper(blocks[i], preserve_rng_state=True)


def choose(model: SplitModel, settings: TrainingConfig, ranks: Ranks, device: str) -> str | None:
    """The layout; None for one process that was not asked to shard."""
    if settings.sharding != "auto":
        return settings.sharding if ranks.size > 1 or settings.sharding == "full" else None
    if ranks.size == 1:
        return None
    if not device.startswith("cuda"):
        return "replicate"
    wanted = BYTES_A_PARAMETER * sum(p.numel() for p in model.parameters())
    memory = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
    return "replicate" if wanted < min(ranks.all_of(memory)) / 4 else "full"


def mesh_shape(layout: str, ranks: int, local: int) -> tuple[int, int]:
    """(copies, ranks that a copy is split over)."""
    if layout == "full":
        return 1, ranks
    if layout == "replicate":
        return ranks, 1
    if ranks % local:
        raise ConfigError(f"sharding: hybrid wants the same number of ranks on each machine; found {ranks} ranks, {local} here.")
    return ranks // local, local


def shard(model: SplitModel, settings: TrainingConfig, ranks: Ranks, device: str, layout: str) -> None:
    import torch.distributed as dist
    from torch._C._distributed_c10d import HashStore
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    kind = device.partition(":")[0]
    if not dist.is_initialized():  # one process that shards over itself
        backend = "cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo"
        dist.init_process_group(backend, store=HashStore(), rank=0, world_size=1)
    copies, parts = mesh_shape(layout, ranks.size, int(os.environ.get("LOCAL_WORLD_SIZE", ranks.size)))
    mesh = init_device_mesh(kind, (copies, parts), mesh_dim_names=("copies", "parts"))
    options: dict[str, Any] = {"mesh": mesh if copies > 1 else mesh["parts"]}
    if settings.precision == "bf16_autocast" and parts > 1:  # half as much to gather
        options["mp_policy"] = MixedPrecisionPolicy(
            param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False
        )
        model.gathered = "bfloat16"
        # as with weights that are not gathered as bfloat16, what runs from block to block stays float32
        model.model.get_input_embeddings().register_forward_hook(lambda _module, _given, out: out.float())
    for block in blocks_of(model):
        fully_shard(block, reshard_after_forward=parts > 1, **options)
    fully_shard(model, reshard_after_forward=False, **options)
    for buffer in model.buffers():
        buffer.data = buffer.data.to(device)


def reshard(model: nn.Module) -> None:
    """Gives back the gathered weights that a forward pass without a backward pass has left."""
    from torch.distributed.fsdp import FSDPModule

    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def is_sharded(model: nn.Module) -> bool:
    from torch.distributed.fsdp import FSDPModule

    return isinstance(model, FSDPModule)


def sync_copies(model: nn.Module, on: bool) -> None:
    """Whether the next backward pass sums gradients over copies of the model: only the last of a step has to."""
    from torch.distributed.fsdp import FSDPModule

    if isinstance(model, FSDPModule):
        model.set_requires_all_reduce(on)
        model.set_is_last_backward(on)
