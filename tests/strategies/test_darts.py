"""What the project adds to NNI's DARTS, GumbelDARTS and Proxyless: the order and the seed of their alphas."""

from __future__ import annotations

from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from planted import make_evaluator, make_space

import acla_nas
from acla_nas import strategies


class Stop(pl.Callback):
    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.current_epoch == 2:
            raise RuntimeError("stopped")


def search(make, *, folder: Path | None = None, stop: bool = False, random_state: int = 0):
    torch.manual_seed(0)
    space = make_space(num_keys=[2, 3, 4])
    evaluator = make_evaluator(0, 3)
    evaluator.trainer.callbacks += [Stop()] * stop
    strategy = make(epochs=(1, 3), alpha_learning_rate=0.1)
    torch.manual_seed(random_state)
    result = acla_nas.search(space, strategy, evaluator, folder=folder)
    alphas = [gate.alpha.detach() for gate in (*space.insert_gates, space.key_gate)]
    return result.probabilities, torch.cat(alphas)


@pytest.mark.parametrize("make", [strategies.DARTS, strategies.GumbelDARTS, strategies.Proxyless])
def test_a_search_that_goes_on_has_the_very_alphas_of_one_that_was_not_stopped(make, tmp_path: Path) -> None:
    expected, alphas = search(make)
    with pytest.raises(RuntimeError, match="stopped"):
        search(make, folder=tmp_path, stop=True)
    assert (tmp_path / "search.ckpt").exists()
    found, again = search(make, folder=tmp_path)
    assert torch.equal(again, alphas) and found == expected


def test_first_alphas_are_of_the_strategys_seed() -> None:
    assert search(strategies.DARTS)[0] == search(strategies.DARTS, random_state=7)[0]
