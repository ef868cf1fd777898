"""Training in several processes: whether they can work together, and what the first tells the others."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed
from pytorch_lightning.plugins.environments import SLURMEnvironment, TorchElasticEnvironment
from pytorch_lightning.utilities.rank_zero import rank_zero_only
from torch import nn

from acla_nas.errors import AclaError

T = TypeVar("T")


def is_main() -> bool:
    """Is this the process that prints and writes files: the only one, or the first of several?"""
    return int(getattr(rank_zero_only, "rank", 0)) == 0


def from_main(make: Callable[[], T]) -> T:
    """Return in all processes what a function returns in the main one; it is called there only.

    All processes must come here; what is returned must be picklable.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return make()
    made: list[Any] = [make() if is_main() else None]
    torch.distributed.broadcast_object_list(made, src=0)
    return made[0]


def share_buffers(module: nn.Module) -> None:
    """Give a module in all processes the main one's buffers, such as running means: weights are shared."""
    buffers = from_main(lambda: {name: buffer.cpu() for name, buffer in module.named_buffers()})
    for name, buffer in module.named_buffers():
        buffer.copy_(buffers[name])


def check_processes(devices: int, nodes: int, device: str, batch_size: int) -> None:
    """See that a training can be spread over so many processes.

    Raises:
        AclaError: there are fewer GPUs, the batch cannot be divided, or another number was started.
    """
    processes = devices * nodes
    for name, value in (("devices", devices), ("nodes", nodes)):
        if value < 1:
            raise AclaError(f"{name} must be at least 1, not {value}")
    if batch_size % processes:
        raise AclaError(
            f"batch_size={batch_size} cannot be shared evenly by {processes} processes (devices={devices} on "
            f"nodes={nodes}): use a multiple of {processes}"
        )
    gpus = torch.cuda.device_count()
    if (device == "cuda" or (device == "auto" and gpus)) and devices > gpus:
        raise AclaError(f"devices={devices}, but PyTorch sees {gpus} GPUs: use fewer, or device=cpu")
    if TorchElasticEnvironment.detect():
        started = int(os.environ["WORLD_SIZE"])
        if started != processes:
            raise AclaError(
                f"torchrun started {started} processes, but devices={devices} on nodes={nodes} are "
                f"{processes}: set devices to its --nproc_per_node and nodes to its --nnodes"
            )
    elif nodes > 1 and not SLURMEnvironment.detect():
        raise AclaError(
            f"nodes={nodes} needs the command to be started on each machine: use torchrun --nnodes {nodes} "
            f"--nproc_per_node {devices}, see docs/scaling.md"
        )
