"""The memory of a training step: estimated, planned for, and said."""

from __future__ import annotations

import pytest
import torch

import acla_nas
from acla_nas import search_spaces
from acla_nas.strategies import TwoStage
from acla_nas.tasks import SuperResolution
from acla_nas.training import make_evaluator, memory
from acla_nas.training.memory import kept_bytes, plan_memory


def make_space():
    return search_spaces.edsr(2, 5, 8, num_keys=4)


def image():
    return torch.rand(3, 16, 16)


def kept(network, images):
    return kept_bytes(network.train(), torch.rand(images, 3, 16, 16))


def test_estimate_is_what_a_step_keeps():
    network = make_space().network
    plan = plan_memory(network, image(), 4, free=10**12)
    weights = 4 * 4 * sum(p.numel() for p in network.parameters())
    assert plan.needed == plan.plain
    assert plan.plain - weights == pytest.approx(kept(network, 4), rel=0.15)
    assert not network.recompute and network.training


def test_plans_become_smaller_with_the_memory():
    network = make_space().network
    plain = plan_memory(network, image(), 4, free=10**12)
    assert (plain.recompute, plain.micro_batch, plain.fits) == (False, None, True)
    plans = [plan_memory(network, image(), 4, free=int(plain.plain * share)) for share in (0.9, 0.4, 0.001)]
    assert plans[0].recompute and plans[0].fits and plans[0].needed < plain.plain
    assert plans[-1].micro_batch == 1 and not plans[-1].fits
    assert all(4 % (plan.micro_batch or 4) == 0 for plan in plans)
    assert "does not fit; attention is computed again" in plans[0].text()
    assert "does not fit either" in plans[-1].text() and ": fits" in plain.text()


def test_a_search_says_it_and_does_it(monkeypatch, capsys):
    monkeypatch.setattr(memory, "free_bytes", lambda device: 1000)
    space = make_space()
    evaluator = make_evaluator(SuperResolution(2), steps_per_epoch=1, batch_size=2, patch_size=12)
    acla_nas.search(space, TwoStage(epochs=(1, 1)), evaluator)
    assert space.network.recompute and space.network.micro_batch == 1
    assert capsys.readouterr().out.count("does not fit") == 2


def test_the_probe_leaves_a_search_as_it_is(monkeypatch):
    def found(free):
        monkeypatch.setattr(memory, "free_bytes", lambda device: free)
        torch.manual_seed(0)
        space = make_space()
        evaluator = make_evaluator(
            SuperResolution(2), steps_per_epoch=2, batch_size=2, patch_size=12, progress=False
        )
        return acla_nas.search(space, TwoStage(epochs=(1, 1)), evaluator).history[-1]["train_loss"]

    assert found(10**12) == pytest.approx(found(1000), rel=1e-4)
