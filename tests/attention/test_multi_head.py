"""MHA against its equation, pixel by pixel, with relative positions beyond the largest."""

from __future__ import annotations

import pytest
import torch

from acla_nas.attention import MultiHeadAttention
from acla_nas.errors import AclaError


def test_equals_the_equation():
    torch.manual_seed(0)
    heads, reach, (height, width) = 2, 2, (4, 5)  # distances 3 and 4 count as 2
    module = MultiHeadAttention(6, num_heads=heads, max_distance=reach).double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.4)
    x = torch.randn(1, 6, height, width, dtype=torch.float64)
    q, k, v = (layer(x)[0].unflatten(0, (heads, 3)) for layer in (module.query, module.key, module.value))
    y = torch.zeros(heads, 3, height, width, dtype=torch.float64)
    for h in range(heads):
        for row in range(height):
            for column in range(width):
                logits = torch.zeros(height, width, dtype=torch.float64)
                for n in range(height):
                    for m in range(width):
                        dy = max(-reach, min(reach, n - row)) + reach
                        dx = max(-reach, min(reach, m - column)) + reach
                        key = (
                            k[h, :, n, m] + module.relative_rows[h, :, dy] + module.relative_columns[h, :, dx]
                        )
                        logits[n, m] = q[h, :, row, column] @ key / 3**0.5
                y[h, :, row, column] = (v[h] * logits.flatten().softmax(0).view(height, width)).sum((1, 2))
    expected = module.out(y.flatten(0, 1).unsqueeze(0))
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(module(x, {"1": x}), expected, rtol=1e-12, atol=1e-12)


def test_position_matters():
    torch.manual_seed(0)
    module = MultiHeadAttention(8, num_heads=2)
    torch.nn.init.normal_(module.out.weight)
    x = torch.randn(1, 8, 4, 4)
    order = torch.randperm(16)
    shuffled = module(x.flatten(2)[..., order].view_as(x), {}).flatten(2)
    assert not torch.allclose(shuffled, module(x, {}).flatten(2)[..., order], atol=1e-3)


def test_parameters():
    module = MultiHeadAttention(8, num_heads=4, max_distance=5)
    assert sum(p.numel() for p in module.parameters()) == 4 * 8 * 8 + 2 * 11 * 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_heads": 3}, "num_heads must divide the 8 channels of the feature, not 3"),
        ({"num_heads": 0}, "not 0"),
        ({"max_distance": 0}, "max_distance must be at least 1, not 0"),
        ({"num_keys": 16}, "num_keys cannot be 16"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(AclaError, match=message):
        MultiHeadAttention(8, **options)
