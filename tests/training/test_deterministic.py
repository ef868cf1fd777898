"""Deterministic runs: no operation is used that PyTorch has no deterministic form of, on a GPU either."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_experiment import tiny
from torch.utils._python_dispatch import TorchDispatchMode

from acla_nas import attention, experiment
from acla_nas.config import Named
from acla_nas.ops.sampling import sample_at
from acla_nas.training.deterministic import deterministic
from acla_nas.training.restoration import RestorationModule

# Of those that raise on a GPU, by torch.use_deterministic_algorithms' documentation, what works on images.
RAISE = {
    "grid_sampler_2d_backward",
    "_adaptive_avg_pool2d_backward",
    "adaptive_max_pool2d_backward",
    "reflection_pad2d_backward",
    "upsample_bilinear2d_backward",
    "upsample_bicubic2d_backward",
    "put_",
    "histc",
}


class Used(TorchDispatchMode):
    """Collects the names of the operations that are run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(function.__name__.partition(".")[0])
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", [*attention.names(), "cla+se"])
def test_a_search_uses_deterministic_operations_only(
    name: str, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In steps of the weights and of the alphas, forward and backward."""
    used, step = Used(), RestorationModule.training_step

    def watched(module: Any, *arguments: Any) -> torch.Tensor:
        assert torch.are_deterministic_algorithms_enabled()
        with used:
            return step(module, *arguments)

    monkeypatch.setattr(RestorationModule, "training_step", watched)
    space = {"name": "edsr", "num_blocks": 2, "num_channels": 8, "attention": name}
    config = tiny(images, tmp_path / "run", strategy={"epochs": [1, 1]}, deterministic=True)
    experiment.run_search(config.model_copy(update={"space": Named(**space)}))
    assert "convolution_backward" in used.names
    assert not RAISE & used.names
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.fixture
def restored() -> Iterator[None]:
    yield
    torch.use_deterministic_algorithms(False)


def test_what_was_set_before_is_set_afterwards(restored: None) -> None:
    torch.use_deterministic_algorithms(True, warn_only=True)
    with deterministic():
        assert not torch.is_deterministic_algorithms_warn_only_enabled()
    assert torch.is_deterministic_algorithms_warn_only_enabled()


@pytest.mark.parametrize("size", [(6, 5), (3, 4)])
def test_reads_are_those_of_grid_sample(size: tuple[int, int]) -> None:
    """Values and gradients, at other sizes too, within the image, on its border and outside."""
    torch.manual_seed(0)
    value = torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True)
    offsets = (6 * torch.randn(2, 4, 2, 6, 5, dtype=torch.float64)).requires_grad_()
    results = []
    for context in (None, deterministic()):
        if context is None:
            sampled = sample_at(value, offsets)
        else:
            with context:
                sampled = sample_at(value, offsets)
        loss = F.mse_loss(sampled, torch.ones_like(sampled))
        results.append([sampled.detach(), *torch.autograd.grad(loss, (value, offsets))])
    assert (results[0][0] == 0).any() and (results[0][0] != 0).any()
    for plain, exact in zip(*results):
        torch.testing.assert_close(exact, plain, rtol=1e-9, atol=1e-12)
