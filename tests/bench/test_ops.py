"""The operator's check: that peers compute the same, and the arithmetic. How fast it is, machines say."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from acla_nas.bench import ops
from acla_nas.bench.memory import can_measure
from acla_nas.bench.ops import Case, Ceilings, check_ops, grid_sample_per_level
from acla_nas.cost import timing
from acla_nas.ops import cross_layer_gather, cross_layer_gather_reference

SMALL = Case(4, 2, 3, 8)


def test_peers_compute_the_same():
    values, offsets, weights = SMALL.inputs()
    expected = cross_layer_gather_reference(values, offsets, weights)
    torch.testing.assert_close(grid_sample_per_level(values, offsets, weights), expected)
    torch.testing.assert_close(cross_layer_gather(values, offsets, weights), expected)


def test_the_grid_sample_form_is_that_of_transformers():
    modeling = pytest.importorskip("transformers.models.deformable_detr.modeling_deformable_detr")
    values, offsets, weights = SMALL.inputs()
    n = SMALL.size
    x = (torch.arange(n).view(1, n) + 0.5 + offsets[..., 0, :, :]) / n
    y = (torch.arange(n).view(n, 1) + 0.5 + offsets[..., 1, :, :]) / n
    places = torch.stack((x, y), -1).flatten(3, 4).permute(0, 3, 1, 2, 4).unsqueeze(2)  # B Q 1 R K 2
    shares = weights.flatten(3).permute(0, 3, 1, 2).unsqueeze(2)  # B Q 1 R K
    rows = torch.cat([v.flatten(2).transpose(1, 2) for v in values], 1).unsqueeze(2)  # B RHW 1 C
    sizes = [(n, n)] * SMALL.references
    theirs = modeling.MultiScaleDeformableAttention()(
        rows, torch.tensor(sizes), sizes, torch.tensor([0, n * n]), places, shares, 64
    )
    ours = grid_sample_per_level(values, offsets, weights)
    torch.testing.assert_close(theirs.transpose(1, 2).view_as(ours), ours)


def test_ratios_and_their_spread(monkeypatch):
    clock = {"cross_layer_gather": 2.0, "grid_sample_per_level": 50.0, "cross_layer_gather_reference": 90.0}

    def tick(call):
        for cell in getattr(call, "__closure__", None) or ():
            function = cell.cell_contents
            for inner in [function, *(c.cell_contents for c in getattr(function, "__closure__", None) or ())]:
                if getattr(inner, "__name__", None) in clock:
                    return clock[inner.__name__]
        return 1.0

    monkeypatch.setattr(timing, "_time", tick)
    check = check_ops(
        runs=7, cases=[SMALL], backward_cases=[SMALL], growth_cases=[SMALL, SMALL], memory_case=SMALL
    )
    for row in check.rows:
        assert row.ratio("grid_sample") == (25.0, 0.0) and row.ratio("literal") == (45.0, 0.0)
    assert check.rows[0].ratio("embedding_bag") == (0.5, 0.0) and "embedding_bag" not in check.rows[1].peers
    assert "50.0: 25.00x ± 0.00" in check.text() and "1.00 ± 0.00 times that of 8x8" in check.text()
    loaded = json.loads(json.dumps(check.as_dict()))
    assert loaded["rows"][0]["peers"]["grid_sample"]["ratio"] == 25.0
    assert ops.ratio(timing.Timing(10, 1, 7), timing.Timing(5, 0.5, 7)) == (2.0, pytest.approx(0.4))


def test_the_floor_is_the_slowest_of_cache_memory_and_sums():
    case = Case(channels=2, references=3, keys=5, size=4)
    values = 4 * 3 * 5 * 16 * 2  # read and summed
    inputs, output = 4 * (3 * 2 + 3 * 5 * 3) * 16, 4 * 2 * 16
    assert Ceilings(1.0, 1e9, 1e9).floor_ms(case, backward=False) == pytest.approx(1e3 * 4 * values)
    assert Ceilings(1e9, 1.0, 1e9).floor_ms(case, backward=False) == pytest.approx(1e3 * (inputs + output))
    assert Ceilings(1e9, 1e9, 1.0).floor_ms(case, backward=False) == pytest.approx(1e3 * 2 * values)
    assert Ceilings(1e9, 1e9, 1.0).floor_ms(case, backward=True) == pytest.approx(1e3 * 6 * values)
    assert Ceilings(1e9, 1.0, 1e9).floor_ms(case, backward=True) == pytest.approx(
        1e3 * (3 * inputs + 2 * output)
    )


@pytest.mark.skipif(not can_measure(), reason="the system does not say a process's peak")
def test_memory_beyond_inputs_and_results_is_seen():
    code = """
import torch
from acla_nas.bench import ops

gather = ops.cross_layer_gather

def greedy(values, offsets, weights):
    scratch = torch.ones(32 << 18) if values[0].shape[-1] > 8 else None  # 32 MiB
    return gather(values, offsets, weights)

case = ops.Case(4, 2, 3, 16)
print(ops.extra_bytes(case, True))
ops.cross_layer_gather = greedy
print(ops.extra_bytes(case, True))
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    ours, greedy = map(int, out.split())
    assert 30 << 20 < greedy < 40 << 20
    assert ours < 8 << 20
