"""gumbel_gate: hard forward, sigmoid backward, the right opening rate."""

from __future__ import annotations

import math

import pytest
import torch

from acla_nas.gumbel import gumbel_gate


def logistic_noise(like):
    """The noise that gumbel_gate draws: the difference of two Gumbel variables, from one uniform."""
    uniform = torch.rand_like(like, dtype=torch.promote_types(like.dtype, torch.float32))
    return torch.logit(uniform, eps=1e-7).to(like.dtype)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("noise", [True, False])
def test_forward_is_exactly_0_or_1_and_keeps_shape_and_dtype(noise, dtype):
    torch.manual_seed(0)
    logits = (torch.randn(3, 5, 70) * 4).to(dtype)
    gates = gumbel_gate(logits, temperature=0.3, noise=noise)
    assert gates.shape == logits.shape
    assert gates.dtype == dtype
    assert ((gates == 0) | (gates == 1)).all()
    assert 0 < gates.float().mean() < 1


@pytest.mark.parametrize("temperature", [0.1, 1.0, 3.0])
def test_gradient_is_that_of_the_noisy_sigmoid(temperature):
    logits = torch.linspace(-4, 4, 41, dtype=torch.float64).requires_grad_()
    upstream = torch.linspace(1, 2, 41, dtype=torch.float64)

    torch.manual_seed(7)
    (actual,) = torch.autograd.grad(gumbel_gate(logits, temperature), logits, upstream)

    torch.manual_seed(7)
    soft = torch.sigmoid((logits + logistic_noise(logits)) / temperature)
    (expected,) = torch.autograd.grad(soft, logits, upstream)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-14)
    assert actual.abs().max() > 0


def test_gate_is_the_rounded_noisy_sigmoid():
    logits = torch.linspace(-4, 4, 1001, dtype=torch.float64)
    torch.manual_seed(3)
    actual = gumbel_gate(logits, 0.7)
    torch.manual_seed(3)
    expected = torch.sigmoid((logits + logistic_noise(logits)) / 0.7) > 0.5
    assert torch.equal(actual, expected.double())


def test_gradient_without_noise_is_that_of_the_sigmoid():
    logits = torch.tensor([-2.0, -0.1, 0.0, 0.1, 2.0], dtype=torch.float64, requires_grad=True)
    (actual,) = torch.autograd.grad(gumbel_gate(logits, 0.5, noise=False).sum(), logits)
    s = torch.sigmoid(logits.detach() / 0.5)
    torch.testing.assert_close(actual, s * (1 - s) / 0.5, rtol=1e-12, atol=0)


@pytest.mark.parametrize("temperature", [0.05, 1.0, 10.0])
def test_without_noise_a_gate_is_open_where_its_logit_is_above_0(temperature):
    logits = torch.tensor([-3.0, -1e-6, 0.0, 1e-6, 3.0])
    state = torch.get_rng_state()
    gates = gumbel_gate(logits, temperature, noise=False)
    assert gates.tolist() == [0, 0, 0, 1, 1]
    assert torch.equal(torch.get_rng_state(), state), "noise off must not draw random numbers"


@pytest.mark.parametrize("temperature", [0.1, 1.0, 5.0])
@pytest.mark.parametrize("logit", [-3.0, -1.0, 0.0, 0.5, 2.0])
def test_open_rate_is_the_sigmoid_of_the_logit_at_any_temperature(logit, temperature):
    count = 40_000
    torch.manual_seed(11)
    rate = gumbel_gate(torch.full((count,), logit), temperature).mean().item()
    p = 1 / (1 + math.exp(-logit))
    assert abs(rate - p) <= 3 * math.sqrt(p * (1 - p) / count)


def test_temperature_does_not_change_the_sample():
    logits = torch.randn(500, generator=torch.Generator().manual_seed(0))
    samples = []
    for temperature in (0.1, 1.0, 5.0):
        torch.manual_seed(5)
        samples.append(gumbel_gate(logits, temperature))
    assert torch.equal(samples[0], samples[1])
    assert torch.equal(samples[0], samples[2])


def test_extreme_logits_and_the_noise_stay_finite():
    logits = torch.tensor([-1e4, 1e4]).repeat(1000).requires_grad_()
    gates = gumbel_gate(logits, 0.1)
    assert torch.equal(gates.detach(), (logits > 0).float())
    gates.sum().backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
