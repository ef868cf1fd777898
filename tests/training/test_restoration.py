"""RestorationModule: the unit of its loss, its schedules, and the clipping of gradients."""

from __future__ import annotations

from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import acla_nas
from acla_nas.errors import AclaError
from acla_nas.training import RestorationModule


def module_with(network: nn.Module, **options: Any) -> RestorationModule:
    module = RestorationModule(**options)
    module.set_model(network)
    return module


def shift() -> nn.Module:
    """Adds a number to the image."""

    class Shift(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.amount = nn.Parameter(torch.zeros(()))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.amount

    return Shift()


class Recorder(pl.Callback):
    """Notes learning rates before each step, and gradients as they are when a step is made."""

    def __init__(self) -> None:
        self.rates: list[float] = []
        self.norms: list[float] = []

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    def on_before_zero_grad(self, trainer: pl.Trainer, module: pl.LightningModule, optimizer: Any) -> None:
        """Lightning zeroes between two steps, so that these are the gradients of the last step."""
        grads = [p.grad for p in module.parameters() if p.grad is not None]
        if grads:
            self.norms.append(float(torch.stack([g.norm() for g in grads]).norm()))


def fit(module: RestorationModule, *, steps: int, epochs: int, difference: float = 1.0) -> Recorder:
    lq = torch.zeros(steps, 3, 4, 4)
    recorder = Recorder()
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[recorder],
    )
    trainer.fit(module, DataLoader(TensorDataset(lq, lq + difference), batch_size=1))
    return recorder


@pytest.mark.parametrize(("loss", "expected"), [("l1", 0.1 * 255), ("mse", (0.1 * 255) ** 2)])
def test_loss_is_in_grey_levels(loss: str, expected: float) -> None:
    module = module_with(shift(), loss=loss)
    logged: dict[str, float] = {}
    module.log = lambda name, value, **_: logged.update({name: float(value)})  # type: ignore[assignment, method-assign]
    lq = torch.rand(2, 3, 4, 4)
    value = module.training_step((lq, lq - 0.1), 0)
    assert value.item() == pytest.approx(expected, rel=1e-4)
    assert logged == {"train_loss": value.item()} and value.requires_grad


def test_cosine_falls_from_the_learning_rate_to_zero_over_all_steps() -> None:
    rates = fit(module_with(shift(), learning_rate=0.4, schedule="cosine"), steps=4, epochs=2).rates
    expected = [0.2 * (1 + torch.cos(torch.tensor(torch.pi * step / 8)).item()) for step in range(8)]
    assert rates == pytest.approx(expected, rel=1e-5)


def test_halving_every_few_epochs() -> None:
    module = module_with(shift(), learning_rate=0.4, schedule="halve", halve_every=2)
    rates = fit(module, steps=2, epochs=5).rates
    assert rates == pytest.approx([0.4] * 4 + [0.2] * 4 + [0.1] * 2)


def test_gradients_are_clipped_to_a_norm() -> None:
    def norms(clip: float) -> list[float]:
        # The gradient is -2 (1 - amount) 255^2, and the amount hardly changes.
        module = module_with(shift(), loss="mse", learning_rate=1e-6, gradient_clip=clip)
        return fit(module, steps=3, epochs=1).norms

    assert norms(0.0)[-1] == pytest.approx(2 * 255**2, rel=1e-3)
    assert norms(1.5)[-1] == pytest.approx(1.5, rel=1e-3)
    assert norms(1e9)[-1] == pytest.approx(2 * 255**2, rel=1e-3)


def test_only_weights_that_train_are_optimised() -> None:
    network = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1).requires_grad_(False))
    module = module_with(network, schedule="halve")
    (group,) = module.configure_optimizers()["optimizer"].param_groups
    assert [id(p) for p in group["params"]] == [id(p) for p in network[0].parameters()]
    assert (group["betas"], group["eps"]) == ((0.9, 0.999), 1e-8)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"learning_rate": 0.0}, "learning_rate must be above 0, not 0.0"),
        ({"learning_rate": float("nan")}, "learning_rate must be above 0, not nan"),
        ({"loss": "l2"}, "unknown loss 'l2'; Known: l1, mse"),
        ({"schedule": "cosin"}, "unknown schedule 'cosin'; did you mean 'cosine'?"),
    ],
)
def test_wrong_options(options: dict[str, Any], text: str) -> None:
    with pytest.raises(AclaError) as error:
        RestorationModule(**options)
    assert text in str(error.value)


def test_a_cost_of_keys_closes_them() -> None:
    torch.manual_seed(0)
    open_keys = {}
    for key_cost in (0.0, 20.0):
        space = acla_nas.search_spaces.edsr(num_blocks=1, num_channels=4, num_keys=4, mask_scale=1.0)
        network = space.freeze({"insert/1": True, "keys": 4})
        module = module_with(network, learning_rate=1e-2, key_cost=key_cost)
        images = torch.rand(20, 3, 6, 6)
        batches = DataLoader(TensorDataset(images, images.repeat_interleave(2, 2).repeat_interleave(2, 3)), 2)
        trainer = pl.Trainer(
            max_epochs=3,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
        )
        trainer.fit(module, batches)
        open_keys[key_cost] = float(trainer.callback_metrics["open_keys"])
    assert open_keys[20.0] < 0.5 < open_keys[0.0]


def test_a_cost_of_keys_is_at_least_zero() -> None:
    with pytest.raises(AclaError, match="key_cost must be 0 or more, not -1"):
        RestorationModule(key_cost=-1)
