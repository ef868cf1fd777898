"""A training step that runs out of memory is done again in less, a group of its patches at a time."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed
from torch import Tensor, nn

from acla_nas.errors import AclaWarning
from acla_nas.network import CrossLayerNetwork

# What PyTorch says, and oneDNN, which computes its convolutions on a CPU and does not say why it cannot.
_TOLD = ("can't allocate memory", "could not create a primitive", "could not create a memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Is this how PyTorch or Python says that no memory is left?

    Example:
        >>> is_out_of_memory(MemoryError()), is_out_of_memory(ValueError())
        (True, False)
    """
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and any(told in str(error) for told in _TOLD)
    )


def affordable_loss(model: nn.Module, batch_size: int, compute: Callable[[], Tensor]) -> Tensor:
    """Return the loss of a batch, with its gradients worked out already.

    Where memory runs out meanwhile, the network in the model is told to keep less for its backward pass: to
    run attention again in it, then all in ever smaller groups of the batch. Then it is done again, from the
    same random state, and the gradients are those of the whole batch. It stays so, with a warning.

    What the model draws for each patch in the forward pass, as noisy key gates and dropout do, is another
    draw where it is done in groups; a backbone that normalises over a batch does so over a group.

    Args:
        model: a CrossLayerNetwork, or a space with one; another model's loss is returned as it is.
        batch_size: patches in the batch.
        compute: returns the loss.

    Raises:
        RuntimeError: memory runs out for a single patch too.

    Example:
        >>> import acla_nas
        >>> network = acla_nas.search_spaces.edsr(num_blocks=1, num_channels=4).network
        >>> affordable_loss(network, 2, lambda: network(torch.rand(2, 3, 8, 8)).mean()).backward()
        >>> network.backbone.head.weight.grad.shape
        torch.Size([4, 3, 3, 3])
    """
    network = getattr(model, "network", model)
    several = torch.distributed.is_available() and torch.distributed.is_initialized()
    if several or not isinstance(network, CrossLayerNetwork) or not torch.is_grad_enabled():
        return compute()  # of several processes all would have to do it again
    leaves = [p for p in model.parameters() if p.requires_grad]
    device = next(model.parameters()).device
    before = _random_state(device)
    while True:
        try:
            return _with_gradients(compute, leaves)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or not _keep_less(network, batch_size):
                raise
        gc.collect()  # of the error's traceback, which holds what was computed
        _set_random_state(device, before)


def _with_gradients(compute: Callable[[], Tensor], leaves: list[nn.Parameter]) -> Tensor:
    loss = compute()
    if not loss.requires_grad:
        return loss
    with torch.autocast(loss.device.type, enabled=False):  # which is for the forward pass
        gradients = torch.autograd.grad(loss, leaves, allow_unused=True)
    return _Loss.apply(loss.detach(), list(gradients), *leaves)


def smaller_groups(batch_size: int, size: int | None) -> int | None:
    """Return the next smaller number of patches that divides a batch; None where there is none.

    Example:
        >>> smaller_groups(12, None), smaller_groups(12, 4), smaller_groups(12, 1)
        (6, 3, None)
    """
    sizes = (n for n in range((size or batch_size) - 1, 0, -1) if batch_size % n == 0)
    return next(sizes, None)


def in_words(micro_batch: int | None) -> str:
    """Return how a step is run that keeps less for its backward pass."""
    how = "attention is computed again in the backward pass"
    if micro_batch is None:
        return how
    return f"{how}, {micro_batch} patch{'es' if micro_batch > 1 else ''} at a time"


def _keep_less(network: CrossLayerNetwork, batch_size: int) -> bool:
    """Have a network keep less for its backward pass, and warn of it; False where it cannot."""
    if network.recompute or not network.attention:
        size = smaller_groups(batch_size, network.micro_batch)
        if size is None:
            return False
        network.micro_batch = size
    network.recompute = True
    warnings.warn(
        f"no memory is left for a training step: from now on {in_words(network.micro_batch)}",
        AclaWarning,
        stacklevel=2,
    )
    return True


class _Loss(torch.autograd.Function):
    """A number whose gradients in some leaves are known."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, gradients: list[Tensor | None], *leaves: Tensor) -> Tensor:
        ctx.gradients = gradients
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        def scaled(gradient: Tensor | None) -> Tensor | None:
            return None if gradient is None else gradient * outer[0].to(gradient.dtype)

        # One after the other leaves the list, so that there are not two of all at once.
        return None, None, *(scaled(ctx.gradients.pop(0)) for _ in range(len(ctx.gradients)))


def _random_state(device: torch.device) -> list[Tensor]:
    state = [torch.get_rng_state()]
    if device.type == "cuda":
        state.append(torch.cuda.get_rng_state(device))
    return state


def _set_random_state(device: torch.device, state: Sequence[Tensor]) -> None:
    torch.set_rng_state(state[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state[1], device)
