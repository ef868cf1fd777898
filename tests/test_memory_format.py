"""to_channels_last: networks that run with channels last are laid out so, others are left as they are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from random_weights import randomize
from torch import Tensor, nn

from acla_nas import Restorer, formats, search_spaces
from acla_nas.exporter import save_model
from acla_nas.memory_format import to_channels_last

INPUT_SHAPE = (3, 8, 8)


class Flattening(nn.Module):
    """Relies on how features lie in memory, as ``view`` does."""

    def __init__(self, rank: int = 4) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 3, 3, padding=1)
        self.table = nn.Parameter(torch.zeros([1] * rank))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.first(x)
        return self.last(y.view(len(y), -1).view_as(y))


def is_channels_last(network: nn.Module) -> bool:
    weights = [w for w in network.parameters() if w.dim() == 4 and w.shape[2] > 1]
    assert weights
    return all(w.is_contiguous(memory_format=torch.channels_last) for w in weights)


@pytest.mark.parametrize("rank", [4, 5])  # of a weight that has no such layout: 5
def test_a_network_that_does_not_run_so_is_left_as_it_is(rank: int) -> None:
    network = Flattening(rank)
    weights = [(w, w.clone(), w.stride()) for w in network.parameters()]
    to_channels_last(network, INPUT_SHAPE)
    assert network.training
    for weight, before, stride in weights:
        assert torch.equal(weight, before) and weight.stride() == stride
    network(torch.zeros(1, *INPUT_SHAPE))


def test_without_onednn_nothing_is_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    network = nn.Sequential(nn.Conv2d(3, 4, 3))
    to_channels_last(network, INPUT_SHAPE)
    assert not is_channels_last(network)


def test_restorers_and_programs_run_so(tmp_path: Path) -> None:
    space = search_spaces.edsr(2, 2, 4, num_keys=2)
    sample = {"insert/1": True, "insert/2": True, "keys": 2}
    network, arch = space.freeze(sample), space.arch(sample)
    randomize(network.attention, 0.1)
    save_model(arch, network.state_dict(), tmp_path)
    assert not is_channels_last(network)
    assert is_channels_last(Restorer(tmp_path).network)
    files = formats.save(network, tmp_path, arch, formats=["safetensors", "torchscript", "python"])
    assert is_channels_last(Restorer(files["safetensors"].path).network)
    with torch.no_grad():
        restored = formats.load(files["torchscript"].path)[0](torch.rand(1, 3, 12, 12))
    assert restored.is_contiguous(memory_format=torch.channels_last)
    saved = torch.load(files["python"].path.with_suffix(".pth"), weights_only=True)["params"]
    assert all(w.is_contiguous() for w in saved.values())
