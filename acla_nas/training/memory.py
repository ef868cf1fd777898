"""Whether a training step fits the device's memory, said before the first one, and what is done if not."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import psutil
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from acla_nas.live import shown_duration
from acla_nas.network import CrossLayerNetwork
from acla_nas.run_record import say
from acla_nas.training.out_of_memory import in_words, smaller_groups
from acla_nas.training.processes import from_main, is_main

_STATES = 4  # of each weight: itself, its gradient, and Adam's two means
_USABLE = 0.8  # of what is free: the counts leave out what lives for a moment only


@dataclass(frozen=True)
class MemoryPlan:
    """How a training step is run so that it fits.

    Attributes:
        recompute: see :class:`acla_nas.network.CrossLayerNetwork`.
        micro_batch: likewise.
        needed: bytes that a step needs so, estimated with every module switched on.
        plain: bytes that it would need without either.
        free: bytes that are free on the device.
    """

    recompute: bool
    micro_batch: int | None
    needed: int
    plain: int
    free: int

    @property
    def fits(self) -> bool:
        """Is there enough memory, with a fifth to spare?"""
        return self.needed <= _USABLE * self.free

    def text(self) -> str:
        """Return one line that says it all."""
        fits = "fits" if self.plain <= _USABLE * self.free else "does not fit"
        line = f"memory: about {_shown(self.plain)} for a training step, {_shown(self.free)} free: {fits}"
        if self.recompute:
            line += f"; {in_words(self.micro_batch)}: about {_shown(self.needed)}"
        return line if self.fits else f"{line}, which does not fit either: use a smaller data.patch_size"


def _shown(count: float) -> str:
    """Return bytes with two digits or more, such as 2.9 GB."""
    unit, size = next(((u, n) for u, n in (("GB", 1e9), ("MB", 1e6)) if count >= n), ("kB", 1e3))
    return f"{count / size:.{1 if count < 10 * size else 0}f} {unit}"


def plan_memory(network: CrossLayerNetwork, image: Tensor, batch_size: int, free: int) -> MemoryPlan:
    """Return the fastest way to run a training step that fits.

    What a step keeps for its backward pass is counted with one image, attention run again; and in the last
    module what its attention keeps otherwise, which grows with the number of references. First nothing is run
    twice, then attention, then all in ever smaller groups of the batch.

    Args:
        network: all its modules count as switched on.
        image: (C, H, W) of one input.
        batch_size: of a step.
        free: bytes.

    Example:
        >>> import acla_nas
        >>> space = acla_nas.search_spaces.edsr(num_blocks=2, num_channels=8)
        >>> plan_memory(space.network, torch.rand(3, 12, 12), 4, free=10**9).recompute
        False
    """
    weights = sum(_STATES * p.numel() * p.element_size() for p in network.parameters())
    again, largest = _kept_per_image(network, image)
    references = [max(1, len(m.references)) for m in network.attention.values()]  # type: ignore[arg-type]
    attention = largest * sum(references) // max(references, default=1)
    at_once = 1 if image.device.type == "cpu" else batch_size

    def needed(recompute: bool, images: int) -> int:
        kept = images * again + largest * min(at_once, images)
        return weights + (kept if recompute else images * (again + attention))

    plain = needed(False, batch_size)
    plan = MemoryPlan(False, None, plain, plain, free)
    while not plan.fits:
        size = smaller_groups(batch_size, plan.micro_batch) if plan.recompute else None
        if plan.recompute and size is None:
            break
        plan = MemoryPlan(True, size, needed(True, size or batch_size), plain, free)
    return plan


def _kept_per_image(network: CrossLayerNetwork, image: Tensor) -> tuple[int, int]:
    """Return the bytes kept where attention is run again, and those that the last module keeps otherwise."""
    modules = list(network.attention.values())
    arguments: list[tuple[Any, ...]] = []
    hooks = [m.register_forward_pre_hook(lambda _, given: arguments.append(given)) for m in modules[-1:]]
    before, mode = network.recompute, network.training
    network.recompute = True
    try:
        again = kept_bytes(network.train(), image[None])
    finally:
        network.recompute = before
        network.train(mode)
        for hook in hooks:
            hook.remove()
    return again, kept_bytes(modules[-1], *arguments[0]) if modules else 0


def kept_bytes(module: nn.Module, *inputs: Any) -> int:
    """Return the bytes that a module keeps for its backward pass, but for weights and what it is given.

    Example:
        >>> kept_bytes(nn.Sequential(nn.Sigmoid(), nn.Sigmoid()), torch.rand(5))  # of both results
        40
    """
    given = [x for x in tree_leaves(inputs) if isinstance(x, Tensor)]
    own = {x.untyped_storage()._cdata for x in [*module.parameters(), *given]}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with (
        torch.random.fork_rng(),
        torch.enable_grad(),
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
    ):
        inputs = tree_map(lambda x: x.detach().requires_grad_() if isinstance(x, Tensor) else x, inputs)
        output = module(*inputs)
    del output
    return sum(x.untyped_storage().nbytes() for key, x in kept.items() if key not in own)


def free_bytes(device: torch.device) -> int:
    """Return the memory that is free on a device."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)


def step_seconds(network: CrossLayerNetwork, image: Tensor, batch_size: int) -> float:
    """Return about how long forward and backward of a batch take with every other module switched on.

    It is measured with one image, and leaves weights and random state as they are.
    """
    gates = {j: n % 2 == 0 for n, j in enumerate(network.paths)}
    weights = [p for p in network.parameters() if p.requires_grad]
    with torch.random.fork_rng(), torch.enable_grad():
        for _ in range(2):  # the first one warms up
            start = time.perf_counter()
            output = network(image[None], gates=gates)
            torch.autograd.grad(output.square().mean(), weights, allow_unused=True)
            if image.device.type == "cuda":
                torch.cuda.synchronize(image.device)
            seconds = time.perf_counter() - start
    return batch_size * seconds


class FitMemory(pl.Callback):
    """Before the first step, plans how a step fits the memory, has it run so, and says so.

    Args:
        network: that is trained.
        image: (C, H, W) of one input.
        batch_size: of each process.
        show: print it.
    """

    def __init__(
        self, network: CrossLayerNetwork, image: Tensor, batch_size: int, *, show: bool = True
    ) -> None:
        self.network, self.image, self.batch_size, self.show = network, image, batch_size, show

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Plan, in the main process, and do the same in all."""
        device = pl_module.device
        image = self.image.to(device)
        buffers = {name: buffer.clone() for name, buffer in self.network.named_buffers()}
        plan = from_main(lambda: plan_memory(self.network, image, self.batch_size, free_bytes(device)))
        self.network.recompute, self.network.micro_batch = plan.recompute, plan.micro_batch
        if self.show and is_main():
            seconds = step_seconds(self.network, image, self.batch_size)
            epochs = (trainer.max_epochs or 0) - trainer.current_epoch
            in_all = shown_duration(epochs * int(trainer.num_training_batches) * seconds)
            say(f"{plan.text()}; about {seconds:.2g} s a step, at least {in_all} in all")
        for name, buffer in self.network.named_buffers():  # such as running means
            buffer.copy_(buffers[name])
