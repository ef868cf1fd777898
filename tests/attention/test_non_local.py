"""NL against the equation written out pixel by pixel."""

from __future__ import annotations

import pytest
import torch

from acla_nas.attention import NonLocal
from acla_nas.errors import AclaError


def pixels(feature):
    """(C, H, W) -> N vectors."""
    return feature.flatten(1).T


def weight(layer):
    return layer.weight[:, :, 0, 0]


def randomized(make, *arguments, seed=0, **options):
    torch.manual_seed(seed)
    module = make(*arguments, **options).double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.4)
    return module


def test_equals_the_equation():
    module = randomized(NonLocal, 6, inner_channels=4)
    x = torch.randn(2, 6, 3, 4, dtype=torch.float64)
    expected = torch.zeros_like(x)
    for b in range(2):
        points = pixels(x[b])
        for i, point in enumerate(points):
            f = torch.stack(
                [((weight(module.theta) @ point) @ (weight(module.phi) @ n)).exp() for n in points]
            )
            y = sum(f_n * (weight(module.g) @ n) for f_n, n in zip(f, points)) / f.sum()
            expected[b, :, i // 4, i % 4] = weight(module.out) @ y
    torch.testing.assert_close(module(x, {"1": x}), expected, rtol=1e-12, atol=1e-12)


def test_inner_channels_are_half_by_default_and_the_parameters_follow():
    assert NonLocal(1).inner_channels == 1
    assert sum(p.numel() for p in NonLocal(8).parameters()) == 4 * 8 * 4
    assert sum(p.numel() for p in NonLocal(8, inner_channels=8).parameters()) == 4 * 8 * 8


def test_large_affinities_stay_finite():
    module = randomized(NonLocal, 4)
    x = torch.randn(1, 4, 4, 4, dtype=torch.float64, requires_grad=True)
    update = module(1e4 * x, {})
    update.sum().backward()
    assert torch.isfinite(update).all()
    assert torch.isfinite(x.grad).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"inner_channels": 0}, "inner_channels must be at least 1, not 0"),
        ({"num_keys": 16}, "samples no keys, so num_keys cannot be 16: leave it out"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(AclaError, match=message):
        NonLocal(8, **options)
