"""The operator's check: that peers compute the same, and the arithmetic. How fast it is, machines say."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from click.testing import CliRunner

from acla_nas.bench import ops
from acla_nas.bench.memory import can_measure
from acla_nas.bench.ops import Case, Ceilings, check_ops, gather_in_plain_pytorch, grid_sample_per_level
from acla_nas.cli import cli
from acla_nas.cost import timing
from acla_nas.errors import AclaError
from acla_nas.ops import cross_layer_gather, cross_layer_gather_reference, gather_numba
from acla_nas.ops.gather import _Plain

SMALL = Case(4, 2, 3, 8)
FORMS = [cross_layer_gather, grid_sample_per_level, gather_in_plain_pytorch]


@pytest.fixture
def gpu(monkeypatch):
    """The CPU is taken for a GPU with Triton, whose tensors have had 1000 bytes more at each question."""
    peaks = iter(range(1000, 1000000, 1000))
    monkeypatch.setattr(ops, "_on_gpu", lambda device: True)
    monkeypatch.setattr(ops, "_has_triton", lambda device: True)
    monkeypatch.setattr(ops, "_WINDOWS", 4)
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: next(peaks))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("form", FORMS)
def test_peers_compute_the_same(form, dtype):
    values, offsets, weights = replace(SMALL, dtype=dtype).inputs()
    exact = [value.detach().float().requires_grad_() for value in values]
    expected = cross_layer_gather_reference(exact, offsets, weights)
    grad = torch.rand(expected.shape).to(values[0].dtype)
    out = form(values, offsets, weights)
    assert out.dtype == values[0].dtype == getattr(torch, dtype)
    gradients = torch.autograd.grad(out, [*values, offsets, weights], grad)
    of_exact = torch.autograd.grad(expected, [*exact, offsets, weights], grad.float())
    tolerance = 1e-5 if dtype == "float32" else 2e-2
    for actual, wanted in zip((out, *gradients), (expected, *of_exact)):
        assert (actual.float() - wanted).norm() <= tolerance * wanted.norm()


def test_the_fallback_is_neither_triton_nor_numba(monkeypatch):
    """Forward and backward, also where another form would be chosen."""
    seen = []
    monkeypatch.setattr(gather_numba, "is_supported", lambda *_: pytest.fail("the dispatch was asked"))
    for name in ("forward", "backward"):
        own = getattr(_Plain, name)
        spy = staticmethod(lambda *a, name=name, own=own: seen.append(name) or own(*a))
        monkeypatch.setattr(_Plain, name, spy)
    values, offsets, weights = SMALL.inputs()
    gather_in_plain_pytorch(values, offsets, weights).sum().backward()
    assert seen == ["forward", "backward"]


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
    assert "of copy" not in check.text() and "µs" not in check.text() and loaded["kind"] == "cpu"


def check_small(device="cpu"):
    return check_ops(
        device=device,
        runs=7,
        cases=[SMALL],
        backward_cases=[SMALL],
        growth_cases=[SMALL, replace(SMALL, size=16)],
        memory_case=SMALL,
    )


def check_what_a_gpu_shows(check):
    calls = [(row.case.dtype, row.backward) for row in check.rows]
    assert calls == [(dtype, backward) for dtype in ("float32", "bfloat16") for backward in (False, True)]
    for row in check.rows:
        assert set(row.peers) == {"channels_last", "fallback", "grid_sample", "compiled"}
        moved = row.case.moved_bytes(row.backward) / (row.ours.median_ms / 1e3)
        assert row.copy_share == pytest.approx(moved / check.ceilings.memory_copy)
    text = check.text().splitlines()
    assert "float32 or bfloat16" in text[0] and "medians in µs" in text[0]
    shown = ["ours", "of", "copy", "channels_last", "fallback", "grid_sample", "compiled", "floor"]
    assert text[1].split()[4:] == shown
    first, last = check.rows[0], check.rows[-1]
    assert f"forward          float32   {1e3 * first.ours.median_ms:>9.2f} ± " in text[2]
    assert f"forward+backward bfloat16  {1e3 * last.ours.median_ms:>9.2f} ± " in text[5]
    assert f"{last.copy_share:.0%} " in text[5]
    assert f"   16  {1e3 * check.growth[1][1].median_ms:.1f} µs: " in text[6]
    loaded = json.loads(json.dumps(check.as_dict()))
    assert loaded["kind"] == "cuda" and loaded["rows"][3]["dtype"] == "bfloat16"
    assert loaded["rows"][3]["copy_share"] == last.copy_share
    assert loaded["rows"][3]["peers"]["compiled"]["ratio"] == last.ratio("compiled")[0]
    assert list(loaded["extra_bytes"]) == ["forward", "forward+backward"]


def test_what_a_gpu_shows(gpu):
    check = check_small()
    check_what_a_gpu_shows(check)
    assert check.extra_bytes["forward"] == 1000 - SMALL.output_bytes
    assert check.extra_bytes["forward+backward"] == 1000 - SMALL.output_bytes - SMALL.input_bytes


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu():
    check_what_a_gpu_shows(check_small("cuda"))
    case = Case(64, 2, 4, 64)
    expected, *forms = (
        form(*case.inputs(torch.device("cuda"))) for form in (cross_layer_gather_reference, *FORMS)
    )
    for actual in forms:
        torch.testing.assert_close(actual, expected, atol=1e-3, rtol=1e-3)


def test_what_is_compiled_is_the_grid_sample_form_for_each_size_anew(gpu, monkeypatch):
    seen = []

    def inspect(graph, inputs):
        read = sum(node.target is torch.nn.functional.grid_sample for node in graph.graph.nodes)
        seen.append((read, any(isinstance(i, torch.SymInt) for i in inputs)))
        return graph.forward

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile.func, backend=inspect))
    sizes = range(3, 13)  # as many as a GPU's table has calls, and more than are compiled without a reset
    for size in sizes:
        ops._row(replace(SMALL, size=size), False, Ceilings(1, 1, 1), torch.device("cpu"), 7)
    assert seen == [(SMALL.references, False)] * len(sizes)


def test_without_triton_nothing_is_compiled(gpu, monkeypatch):
    monkeypatch.setattr(ops, "_has_triton", lambda device: False)
    row = ops._row(SMALL, False, Ceilings(1, 1, 1), torch.device("cpu"), 7)
    assert "compiled" not in row.peers and "fallback" in row.peers


def test_values_lie_as_they_are_said_to():
    for value, last in zip(SMALL.inputs()[0], SMALL.inputs(memory_format=torch.channels_last)[0]):
        assert value.is_contiguous() and last.is_contiguous(memory_format=torch.channels_last)
        assert not last.is_contiguous() and torch.equal(value, last) and last.requires_grad


def test_the_command(monkeypatch):
    monkeypatch.setattr(ops, "can_measure", lambda: False)
    monkeypatch.setattr(ops, "measure_ceilings", lambda device, runs: Ceilings(1, 1, 1))
    check, asked = check_ops(runs=7, cases=[SMALL], backward_cases=[], growth_cases=[], memory_case=SMALL), []
    monkeypatch.setattr(ops, "check_ops", lambda **options: asked.append(options) or check)

    def run(*options, gpu):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
        return CliRunner().invoke(cli, ["bench", "ops", *options])

    assert run(gpu=False).output == check.text() + "\n"
    assert json.loads(run("--json", "--runs", "9", gpu=True).output)["kind"] == "cpu"
    run("--device", "cpu", gpu=True)
    run("--device", "cuda", gpu=True)
    assert [options["device"] for options in asked] == ["cpu", "cuda", "cpu", "cuda"]
    assert [options["runs"] for options in asked] == [15, 9, 15, 15]
    refused = run("--device", "cuda", gpu=False).exception
    assert isinstance(refused, AclaError) and "PyTorch sees no GPU" in str(refused) and len(asked) == 4


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


def test_bfloat16_halves_values_alone():
    case = Case(channels=256, references=5, keys=16, size=4, dtype="bfloat16")
    moved = 16 * (2 * 5 * 256 + 4 * 5 * 3 * 16 + 2 * 256)  # 4.0 kB a query pixel
    assert case.moved_bytes(False) == moved == 16 * 4032
    assert Ceilings(1e9, 1.0, 1e9).memory_ms(case, backward=False) == pytest.approx(1e3 * moved)
    rows = 2 * 4 * 5 * 16 * 16 * 256
    assert Ceilings(1.0, 1e9, 1e9).floor_ms(case, backward=False) == pytest.approx(1e3 * rows)


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
