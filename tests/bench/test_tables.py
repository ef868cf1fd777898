"""The paper's tables: our figures, how far they are from the paper's, and both output forms."""

from __future__ import annotations

import json

import pytest
import torch
from click.testing import CliRunner
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from acla_nas import search_spaces
from acla_nas.bench.counts import backbone_macs, count_macs
from acla_nas.bench.paper_tables import EDSR_POSITIONS, TABLES
from acla_nas.bench.tables import (
    Quantity,
    TimeRow,
    TimeTable,
    median_seconds,
    sampling_macs,
    size_table,
    time_table,
)
from acla_nas.cli import cli
from acla_nas.errors import AclaError
from acla_nas.network import CrossLayerNetwork


def rows(number):
    return {row.method: row for row in size_table(number).rows}


def test_table_4_has_the_papers_parameters_and_macs():
    table = rows(4)
    assert {m: table[m].parameters.ours for m in ("EDSR", "CLA", "ACLA")} == {
        "EDSR": 40_729_627,
        "CLA": 42_132_507,
        "ACLA": 42_286_107,
    }
    # 65 convolutions C -> C, one to 4 C, one from 3 and one to 3 channels, two colour shifts
    pixels, c = 48 * 48, 256
    convolutions = 9 * pixels * (65 * c * c + 4 * c * c + 3 * c + 4 * 3 * c) + 9 * pixels * (1 + 4)
    assert table["EDSR"].macs.ours == convolutions
    # H of 5 modules; of 15 references G, and 3 K rows of offsets and logits; 4 K sampled rows
    cla = pixels * (5 * c * c + 15 * c * (c + 3 * 8))
    assert table["CLA"].macs_without_sampling.ours - convolutions == cla
    assert table["CLA"].macs.ours - convolutions - cla == pixels * 15 * 8 * 4 * c
    for method in ("EDSR", "CLA", "ACLA"):
        assert abs(table[method].parameters.difference) < 1e-3
        assert abs(table[method].macs_without_sampling.difference) < 5e-3
    assert abs(table["CLA"].macs.difference) < 5e-3
    assert abs(table["ACLA"].macs.difference) < 11e-3


@pytest.mark.parametrize(
    ("number", "parameters", "macs"), [(5, 0.02, 0.017), (6, 1e-3, 6e-3), (7, 1e-3, 4e-3), (8, 0.023, 0.023)]
)
def test_rows_of_cross_layer_attention_are_near_the_papers(number, parameters, macs):
    for row in size_table(number).rows:
        assert abs(row.parameters.difference) < parameters, row
        assert abs(row.macs_without_sampling.difference) < macs, row
        assert row.macs.ours > row.macs_without_sampling.ours


def test_table_11():
    table = rows(11)
    assert table["EDSR+ACLA"].positions == EDSR_POSITIONS
    assert table["EDSR+MHA"].positions == (8, 16, 24, 32)
    assert abs(table["EDSR+MHA"].parameters.difference) < 1e-3
    assert abs(table["EDSR+ACLA"].parameters.difference) < 1e-3
    assert table["EDSR+ACLA+SE"].parameters.ours > table["EDSR+ACLA"].parameters.ours


@pytest.mark.parametrize("attention", ["cla", "acla", "nl", "clnl", "se", "mha", "acla+se"])
def test_counts_are_those_of_what_runs(attention):
    backbone = search_spaces.backbone("edsr", {"num_blocks": 3, "num_channels": 16})
    paths = {1: "body.0", 3: "body.2"}
    network = CrossLayerNetwork.dense(backbone, paths, attention).to("meta").eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.empty(1, 3, 20, 18, device="meta"))
    shape = (3, 20, 18)
    assert count_macs(network, shape) - sampling_macs(network, shape) == counter.get_total_flops() / 2


def test_counting_leaves_the_network_alone():
    network = nn.Conv2d(3, 4, 3).train()
    assert backbone_macs(network, (3, 8, 8)) == 6 * 6 * 9 * 3 * 4
    assert network.weight.device.type == "cpu"
    assert network.training


def test_no_table_of_other_numbers():
    with pytest.raises(AclaError, match="use 4, 5, 6, 7, 8, 11, or 12"):
        size_table(9)


@pytest.mark.parametrize("number", TABLES)
def test_text_and_json(number):
    text = CliRunner().invoke(cli, ["bench", "table", str(number)], catch_exceptions=False).output
    output = CliRunner().invoke(cli, ["bench", "table", str(number), "--json"], catch_exceptions=False).output
    table = json.loads(output)
    assert table["table"] == number
    assert len(table["rows"]) == len(TABLES[number].rows)
    for row, paper in zip(table["rows"], TABLES[number].rows):
        assert row["macs"]["paper"] == paper.macs_g * 1e9
        assert row["macs"]["difference"] == row["macs"]["ours"] / row["macs"]["paper"] - 1
        line = next(line for line in text.splitlines() if line.startswith(f"{row['method']}  "))
        assert f"{row['parameters']['ours'] / 1e6:.2f}" in line
        assert f"{100 * row['parameters']['difference']:+.2f} %" in line
    assert max(map(len, text.splitlines())) <= 120


def test_times_take_turns():
    order = []

    class Recorder(nn.Module):
        def __init__(self, name):
            super().__init__()
            self.name = name

        def forward(self, x):
            order.append((self.name, self.training, x.shape))
            return x

    times = median_seconds([Recorder("a"), Recorder("b")], runs=3, input_shape=(1, 2, 2))
    assert [name for name, *_ in order] == ["a", "b"] * 4
    assert order[0] == ("a", False, (1, 1, 2, 2))
    assert len(times) == 2 and min(times) >= 0


def test_table_12_says_what_it_measured():
    table = TimeTable("a machine", 7, (TimeRow("EDSR", 100.0, 120.0, Quantity(1.2, 19.8 / 16.2)),))
    assert "EDSR          100.0           120.0  1.200  1.222     -1.82 %" in table.text()
    assert table.as_dict()["rows"][0]["ratio"]["paper"] == 19.8 / 16.2


@pytest.mark.slow
def test_table_12_at_full_size():
    table = time_table(runs=1)
    assert [row.backbone for row in table.rows] == ["EDSR", "RCAN"]
    # One run each on a machine that may be busy: that it comes out, not how long it takes.
    assert all(0 < row.ratio.ours < 100 for row in table.rows)
