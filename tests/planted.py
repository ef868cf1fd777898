"""A search problem with a known answer: attention helps at two of five positions and nowhere else."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from acla_nas import CrossLayerSpace
from acla_nas.nni_nas import DataLoader, Lightning, LightningModule, Trainer

CHANNELS, SIZE = 4, 10
ANSWER = (2, 5)


class Forgetful(nn.Module):
    """Sees its input between positions 1 and 2 and forgets it after each later position.

    The target is the input, shifted. So only a module at the last position, 5, can give it, and only by
    referring to position 2, which must be inserted to be referred to: the answer is (2, 5).
    """

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.ModuleList(nn.Identity() for _ in range(5))

    def forward(self, x: Tensor) -> Tensor:
        h = self.body[0](torch.zeros_like(x))
        h = self.body[1](x)
        for layer in self.body[2:]:
            h = layer(torch.zeros_like(h))
        return h


class ShiftTask(LightningModule):
    """Asks for the input, one pixel to the right."""

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        x, target = batch
        loss = nn.functional.mse_loss(self.model(x), target)
        self.log("train_loss", loss.detach(), on_step=False, on_epoch=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.model.parameters(), lr=2e-2)


def make_space(**options) -> CrossLayerSpace:
    options = {"attention": "cla", "num_keys": 4, **options}
    return CrossLayerSpace(Forgetful(), "body.*", input_shape=(CHANNELS, SIZE, SIZE), **options)


def make_evaluator(seed: int, steps: int = 25) -> Lightning:
    generator = torch.Generator().manual_seed(seed)

    def loader() -> DataLoader:
        x = torch.randn(2 * steps, CHANNELS, SIZE, SIZE, generator=generator)
        target = torch.zeros_like(x)
        target[..., :-1] = x[..., 1:]
        return DataLoader(TensorDataset(x, target), batch_size=2, generator=torch.Generator())

    trainer = Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    return Lightning(ShiftTask(), trainer, train_dataloaders=loader(), val_dataloaders=loader())
