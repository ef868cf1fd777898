"""SE against its formula."""

from __future__ import annotations

import pytest
import torch

from acla_nas.attention import Feature, SqueezeExcitation
from acla_nas.errors import AclaError


def test_scales_each_channel_by_twice_a_sigmoid():
    torch.manual_seed(0)
    module = SqueezeExcitation(8, reduction=2).double()
    torch.nn.init.normal_(module.excite.weight)
    x = torch.randn(2, 8, 3, 4, dtype=torch.float64) + 1
    hidden = (x.mean((2, 3)) @ module.squeeze.weight[:, :, 0, 0].T).clamp(min=0)
    scale = 2 * torch.sigmoid(hidden @ module.excite.weight[:, :, 0, 0].T)
    assert (scale - 1).abs().max() > 0.1
    torch.testing.assert_close(x + module(x, {"1": x}), scale[:, :, None, None] * x, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("channels", "reduction", "hidden"), [(64, 16, 4), (8, 16, 1), (256, 4, 64)])
def test_hidden_channels(channels, reduction, hidden):
    module = SqueezeExcitation(channels, reduction=reduction)
    assert sum(p.numel() for p in module.parameters()) == 2 * channels * hidden
    assert module.macs(Feature(channels, 48, 48)) == 2 * channels * hidden


def test_wrong_options():
    with pytest.raises(AclaError, match="reduction must be at least 1, not 0"):
        SqueezeExcitation(8, reduction=0)
    with pytest.raises(AclaError, match="num_keys cannot be 2"):
        SqueezeExcitation(8, num_keys=2)
