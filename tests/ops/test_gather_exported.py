"""exported_gather, the operator in PyTorch's own operations: the sums of rows, and grid_sample for ONNX."""

from __future__ import annotations

import io

import pytest
import torch
from torch import nn

from acla_nas.ops import cross_layer_gather, cross_layer_gather_reference
from acla_nas.ops.gather_exported import exported_gather
from tests.ops.test_gather import SHAPES, assert_close, make_inputs, output_and_gradients


@pytest.fixture(params=["rows", "grid_sample"], autouse=True)
def form(request, monkeypatch):
    monkeypatch.setattr(torch.onnx, "is_in_onnx_export", lambda: request.param == "grid_sample")
    return request.param


@pytest.mark.parametrize("shape", SHAPES)
def test_equals_reference_in_float64(shape):
    *inputs, grad = make_inputs(*shape)
    expected = output_and_gradients(cross_layer_gather_reference, *inputs, grad)
    assert_close(output_and_gradients(exported_gather, *inputs, grad), expected, 1e-10)


@pytest.mark.parametrize("reach", [0.0, 8.0, 1e5, 1e12])
def test_keys_at_the_border_and_far_outside(reach):
    *inputs, grad = make_inputs(2, 2, 9, 4, 6, 5, reach=reach)
    with torch.no_grad():
        inputs[1] += 0.25  # 0 is on a pixel, where reading has no gradient
    expected = output_and_gradients(cross_layer_gather_reference, *inputs, grad)
    assert_close(output_and_gradients(exported_gather, *inputs, grad), expected, 1e-10)


@pytest.mark.parametrize("sizes", [[(12, 8), (3, 2)], [(5, 9), (6, 4)]])
def test_references_of_other_resolutions(sizes):
    _, offsets, weights, grad = make_inputs(2, 2, 4, 5, 6, 4)
    values = [torch.randn(2, 5, *size, dtype=torch.float64, requires_grad=True) for size in sizes]
    expected = output_and_gradients(cross_layer_gather_reference, values, offsets, weights, grad)
    assert_close(output_and_gradients(exported_gather, values, offsets, weights, grad), expected, 1e-10)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 2e-2), (torch.float16, 2e-2)]
)
def test_lower_precision_and_channels_last(form, dtype, tolerance, memory_format):
    if form == "grid_sample" and dtype == torch.float32:
        tolerance = 1e-5  # its places are in -1 .. 1, in float32
    values, offsets, weights, _ = make_inputs(2, 3, 8, 16, 20, 24)
    low = [v.detach().to(dtype).contiguous(memory_format=memory_format) for v in values]
    offsets, weights = offsets.detach().float(), weights.detach().float()
    expected = cross_layer_gather_reference([v.double() for v in low], offsets.double(), weights.double())
    actual = exported_gather(low, offsets, weights)
    assert actual.dtype == dtype
    assert_close([actual.double()], [expected], tolerance)


def test_places_stay_exact_far_from_the_origin(form):
    if form == "grid_sample":
        pytest.skip("its places are in -1 .. 1, in float32")
    value = torch.rand(1, 1, 1, 1 << 16, dtype=torch.float64)
    offsets = torch.tensor([0.3, 0.0]).view(1, 1, 1, 2, 1, 1).expand(-1, -1, -1, -1, 1, 1 << 16)
    weights = torch.ones(1, 1, 1, 1, 1 << 16)
    actual = exported_gather([value.float()], offsets, weights)
    expected = 0.7 * value[..., :-1] + 0.3 * value[..., 1:]
    assert (actual[..., :-1] - expected).abs().max() < 1e-6


class Gather(nn.Module):
    def forward(self, value, offsets, weights):
        return cross_layer_gather([value], offsets, weights)


@pytest.mark.parametrize("by", ["export", "trace"])
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_programs_hold_the_form_for_any_size(form, by):
    def inputs(*shape):
        values, offsets, weights, _ = make_inputs(*shape, dtype=torch.float32)
        return values[0].detach(), offsets.detach(), weights.detach()

    example, others = inputs(2, 1, 4, 3, 6, 5), inputs(3, 1, 4, 3, 9, 12)
    if by == "export":
        batch, height, width = (torch.export.Dim(name) for name in ("batch", "height", "width"))
        shapes = [{0: batch, first: height, first + 1: width} for first in (2, 4, 3)]
        program = torch.export.export(Gather(), example, dynamic_shapes=tuple(shapes))
        text, run = str(program.graph), program.module()
    else:
        traced = torch.jit.trace(Gather(), example, check_trace=False)
        file = io.BytesIO()
        torch.jit.save(traced, file)
        file.seek(0)
        run = torch.jit.load(file)
        text = str(run.inlined_graph)
    assert ("embedding_bag" in text, "grid_sampl" in text) == (form == "rows", form == "grid_sample")
    for arguments in (example, others):
        value, offsets, weights = arguments
        assert_close([run(*arguments)], [cross_layer_gather_reference([value], offsets, weights)], 1e-6)
