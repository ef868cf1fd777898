"""Predicted against measured latency: the arithmetic of the check. How good the model is, machines say."""

from __future__ import annotations

import json

import pytest

from acla_nas import search_spaces
from acla_nas.bench.latency import check_latency
from acla_nas.cost import timing
from acla_nas.errors import AclaError
from acla_nas.network import CrossLayerNetwork


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ACLA_NAS_CACHE", str(tmp_path))


def space_of(blocks):
    return search_spaces.edsr(num_blocks=blocks, num_channels=4, num_keys=2, input_shape=(3, 8, 8))


@pytest.fixture
def clock(monkeypatch):
    """A clock of 10 ms for the backbone, 2 a module and 0.5 a reference; in a network 1 % more."""

    def tick(call):
        if hasattr(call, "references"):
            return 2 + 0.5 * len(call.references)
        (network,) = [
            c.cell_contents for c in call.__closure__ if isinstance(c.cell_contents, CrossLayerNetwork)
        ]
        count = len(network.positions)
        return 1.01 ** (count > 0) * (10 + 2 * count + 0.5 * count * (count + 1) / 2)

    monkeypatch.setattr(timing, "_time", tick)


def test_errors_are_those_of_network_and_modules(clock):
    check = check_latency(space_of(4), architectures=6, seed=1)
    assert check.backbone_ms == 10 and check.input_shape == (3, 8, 8)
    assert len({row.positions for row in check.rows}) == 6
    for row in check.rows:
        count = len(row.positions)
        modules = 2 * count + 0.5 * count * (count + 1) / 2
        assert row.predicted_ms == pytest.approx(10 + modules)
        assert row.measured_ms == pytest.approx(1.01 * (10 + modules))
        assert row.error == pytest.approx(1 / 1.01 - 1)
        assert row.modules_error == pytest.approx(-0.01 * (10 + modules) / modules)
    assert check.median_error == pytest.approx(1 - 1 / 1.01)
    assert check.text().splitlines()[-1].startswith("median error 1.0 % of the network's time, ")
    assert json.loads(json.dumps(check.as_dict()))["median_error"] == check.median_error


def test_the_architectures_are_those_of_the_seed(clock):
    one, again, other = (
        [row.positions for row in check_latency(space_of(6), architectures=4, seed=seed).rows]
        for seed in (0, 0, 1)
    )
    assert one == again != other


def test_more_architectures_than_there_are():
    with pytest.raises(AclaError, match="2 positions have 3 architectures with attention: ask for no more"):
        check_latency(space_of(2), architectures=4)
