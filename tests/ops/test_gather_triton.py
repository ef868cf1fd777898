"""The Triton kernels against the literal reference: on a GPU, or where there is none in the interpreter."""

from __future__ import annotations

import math

import pytest
import torch

from acla_nas import attention
from acla_nas.ops import cross_layer_gather, cross_layer_gather_reference, gather

pytest.importorskip("triton")
gather_triton = pytest.importorskip("acla_nas.ops.gather_triton")

PLAIN = gather._Plain
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SHAPES = [  # batch, references, keys, channels, height, width; small, as the interpreter takes its time
    (1, 1, 1, 1, 1, 1),
    (2, 2, 3, 5, 3, 4),
    (3, 1, 1, 8, 1, 5),
    (1, 9, 1, 3, 2, 2),  # more references than a program sums over
    (1, 1, 2, 130, 2, 3),  # more channels than a program has
    (1, 1, 1, 300, 2, 2),
]


@pytest.fixture(autouse=True)
def _in_triton(monkeypatch):
    """The dispatch takes any device for a GPU that has Triton; nothing else may run."""
    monkeypatch.setattr(gather, "_has_triton", lambda device: True)
    monkeypatch.setattr(gather, "_Plain", None)


def make_inputs(batch, references, keys, channels, height, width, *, reach=2.0, sizes=None):
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator).to(DEVICE).requires_grad_()

    sizes = sizes or [(height, width)] * references
    values = [draw(batch, channels, *size) for size in sizes]
    offsets = (reach * draw(batch, references, keys, 2, height, width)).detach().requires_grad_()
    weights = draw(batch, references, keys, height, width)
    return values, offsets, weights, draw(batch, channels, height, width).detach()


def output_and_gradients(function, values, offsets, weights, grad):
    out = function(values, offsets, weights)
    return [out.detach(), *torch.autograd.grad(out, [*values, offsets, weights], grad)]


def in_float64(values, offsets, weights, grad):
    """Output and gradients of the reference, from the same numbers."""
    exact = [x.detach().double().requires_grad_() for x in (*values, offsets, weights)]
    return output_and_gradients(cross_layer_gather_reference, exact[:-2], *exact[-2:], grad.double())


def assert_close(actual, expected, tolerance):
    for a, e in zip(actual, expected, strict=True):
        assert a.shape == e.shape
        assert (a.double() - e).norm() <= tolerance * max(e.norm(), 1e-30)


@pytest.mark.parametrize("shape", SHAPES)
def test_equals_reference(shape):
    inputs = make_inputs(*shape)
    assert_close(output_and_gradients(cross_layer_gather, *inputs), in_float64(*inputs), 1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(2, 3, 8, 16, 10, 12), (1, 2, 16, 64, 9, 7)])
def test_equals_reference_with_more_queries_than_a_program_has(shape):
    inputs = make_inputs(*shape, reach=3.0)
    assert_close(output_and_gradients(cross_layer_gather, *inputs), in_float64(*inputs), 1e-6)


@pytest.mark.parametrize("warps", [1, 12])
def test_programs_of_several_keys(monkeypatch, warps):
    """A program of a large image sums all keys one after another; of a smaller one, a part of them."""
    monkeypatch.setattr(gather_triton, "_WARPS", warps)
    inputs = make_inputs(2, 2, 5, 130, 2, 3)
    assert_close(output_and_gradients(cross_layer_gather, *inputs), in_float64(*inputs), 1e-6)


def test_keys_far_outside_the_image_give_zero_and_no_gradient():
    values, offsets, weights, grad = make_inputs(1, 1, 2, 4, 3, 3)
    for shift in (100, -1e30):
        away = (offsets.detach() + shift).requires_grad_()
        assert all(
            (x == 0).all() for x in output_and_gradients(cross_layer_gather, values, away, weights, grad)
        )


def test_keys_straddling_the_border():
    inputs = make_inputs(2, 1, 6, 4, 3, 2, reach=6.0)
    assert_close(output_and_gradients(cross_layer_gather, *inputs), in_float64(*inputs), 1e-6)


SIZES = [[(6, 4), (1, 2)], [(2, 5), (3, 3)], [(2, 3), (2, 3), (1, 2), (2, 3)]]


@pytest.mark.parametrize("sizes", SIZES)
def test_references_of_other_resolutions(sizes):
    inputs = make_inputs(2, len(sizes), 3, 5, 3, 2, sizes=sizes)
    assert_close(output_and_gradients(cross_layer_gather, *inputs), in_float64(*inputs), 1e-6)


@pytest.mark.parametrize("at_once", [1, 1 << 22])
def test_values_some_of_which_need_no_gradient(monkeypatch, at_once):
    monkeypatch.setattr(gather_triton, "_SORTED", at_once)
    sizes = [(2, 3), (2, 3), (2, 3), (1, 2), (2, 3), (2, 3)]
    values, offsets, weights, grad = make_inputs(2, 6, 2, 3, 2, 3, sizes=sizes)
    needed = [False, False, True, False, True, True, False, True]
    actual = gather_triton.backward(grad, values, offsets, weights, needed)
    _, *of_values, of_offsets, of_weights = in_float64(values, offsets, weights, grad)
    wanted = [e for e, n in zip([of_offsets, of_weights, *of_values], needed) if n]
    assert [of is not None for of in actual] == needed
    actual = [of for of in actual if of is not None]
    assert_close(actual, wanted, 1e-6)
    assert len({of.untyped_storage().data_ptr() for of in actual}) == 4  # as torch.compile wants them


def test_places_stay_exact_in_a_large_image():
    """A pixel 20000 from the edge, in a map half as fine: float32 places would be off by 1e-3."""
    values, offsets, weights, _ = make_inputs(1, 1, 1, 2, 1, 20000, sizes=[(1, 10000)])
    last = slice(19996, 20000)
    weights = torch.zeros_like(weights)
    weights[..., last] = torch.rand(4, device=DEVICE)
    out = gather_triton.forward(values, offsets, weights)
    exact = [values[0].detach().double()], offsets.detach().double(), weights.double()
    assert_close([out], [cross_layer_gather_reference(*exact)], 1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_lower_precision_stays_near_float64(dtype):
    values, offsets, weights, grad = make_inputs(1, 2, 4, 16, 3, 4)
    values = [v.detach().to(dtype).requires_grad_() for v in values]
    grad = grad.to(dtype)
    actual = output_and_gradients(cross_layer_gather, values, offsets, weights, grad)
    assert [x.dtype for x in actual] == [dtype] * 3 + [torch.float32] * 2
    assert_close(actual, in_float64(values, offsets, weights, grad), 2e-2)
    low = offsets.detach().to(dtype).requires_grad_(), weights.detach().to(dtype).requires_grad_()
    actual = output_and_gradients(cross_layer_gather, values, *low, grad)  # as under autocast
    assert_close(actual, in_float64(values, *low, grad), 2e-2)


def test_identical_from_run_to_run():
    inputs = make_inputs(2, 1, 6, 4, 3, 3)
    first = output_and_gradients(cross_layer_gather, *inputs)
    again = output_and_gradients(cross_layer_gather, *inputs)
    assert all(torch.equal(a, b) for a, b in zip(first, again))


@pytest.mark.parametrize("open_share", [0.0, 0.3])
def test_closed_keys_add_nothing_but_get_their_gradient(open_share):
    values, offsets, weights, grad = make_inputs(2, 2, 4, 3, 2, 3)
    closed = torch.rand(weights.shape, generator=torch.Generator().manual_seed(1)) >= open_share
    weights = weights.detach().masked_fill(closed.to(DEVICE), 0).requires_grad_()
    actual = output_and_gradients(cross_layer_gather, values, offsets, weights, grad)
    assert_close(actual, in_float64(values, offsets, weights, grad), 1e-6)
    assert (actual[-1][closed.to(DEVICE)] != 0).any()


def test_memory_formats():
    """Channels last, parts of a larger tensor, one value for all: what is read need not be contiguous."""
    values, offsets, weights, grad = make_inputs(2, 2, 2, 5, 3, 4)
    fused = torch.randn(2, 7, 3, 4, device=DEVICE).to(memory_format=torch.channels_last)
    values = [fused[:, 1:6].detach(), torch.randn(2, 1, 3, 1, device=DEVICE).expand(2, 5, 3, 4)]
    last = [offsets.flatten(1, 3), weights.flatten(1, 2), grad]
    offsets, weights, grad = (t.detach().to(memory_format=torch.channels_last) for t in last)
    offsets, weights = offsets.unflatten(1, (2, 2, 2)), weights.unflatten(1, (2, 2))
    inputs = [v.requires_grad_() for v in values], offsets.requires_grad_(), weights.requires_grad_(), grad
    assert not offsets.is_contiguous() and not values[0].is_contiguous(memory_format=torch.channels_last)
    assert_close(output_and_gradients(cross_layer_gather, *inputs), in_float64(*inputs), 1e-6)


def test_steps_beyond_32_bits():
    """The second image begins 2^31 values after the first, the second line 2^30 after the first."""
    storage = torch.empty((1 << 31) + (1 << 30) + 64, dtype=torch.bfloat16, device=DEVICE)
    far = storage.as_strided((2, 4, 2, 3), (1 << 31, 1, 1 << 30, 4))
    values, offsets, weights, grad = make_inputs(2, 1, 2, 4, 2, 3)
    far.copy_(values[0])
    inputs = [far.requires_grad_()], offsets, weights, grad.bfloat16()
    assert_close(output_and_gradients(cross_layer_gather, *inputs), in_float64(*inputs), 2e-2)


@pytest.mark.parametrize("wanted", ["values", "offsets", "weights"])
def test_gradients_that_are_not_needed_are_not_computed(monkeypatch, wanted):
    values, offsets, weights, grad = make_inputs(1, 2, 2, 3, 2, 3)
    arguments = {"values": values[1], "offsets": offsets, "weights": weights}
    for tensor in (*values, offsets, weights):
        tensor.requires_grad_(tensor is arguments[wanted])
    out = cross_layer_gather(values, offsets, weights)
    other = "_by_query" if wanted == "values" else "_by_pixel"
    monkeypatch.setattr(gather_triton, other, None)
    expected = dict(
        zip(["out", 0, "values", "offsets", "weights"], in_float64(values, offsets, weights, grad))
    )
    assert_close(torch.autograd.grad(out, arguments[wanted], grad), [expected[wanted]], 1e-6)


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf, 1e30])
def test_offsets_that_are_no_places_do_no_harm(broken):
    values, offsets, weights, grad = make_inputs(1, 1, 2, 3, 2, 3)
    offsets = offsets.detach()
    offsets[0, 0, 0, :, 1, 1] = broken
    expected = output_and_gradients(
        cross_layer_gather, values, offsets.nan_to_num(0, 0, 0).requires_grad_(), weights, grad
    )
    actual = output_and_gradients(cross_layer_gather, values, offsets.requires_grad_(), weights, grad)
    elsewhere = torch.ones(2, 3, dtype=torch.bool)
    elsewhere[1, 1] = False
    for i in (0, 2, 3):  # output, gradients of offsets and weights
        assert torch.equal(actual[i][..., elsewhere], expected[i][..., elsewhere])
    assert actual[1].isfinite().all()


def test_a_second_backward_is_an_error():
    values, offsets, weights, grad = make_inputs(1, 1, 1, 2, 2, 2)
    out = cross_layer_gather(values, offsets, weights)
    [first] = torch.autograd.grad(out, weights, grad.requires_grad_(), create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


def test_what_the_kernels_take():
    def supported(batch, keys, channels, height, width, dtype=torch.float32):
        value = torch.empty(batch, channels, height, width, device="meta")
        offsets = torch.empty(batch, 1, keys, 2, height, width, device="meta", dtype=dtype)
        return gather_triton.is_supported([value], offsets, offsets[:, :, :, 0])

    assert supported(16, 16, 256, 1024, 1024)  # 2^32 values
    assert not supported(16, 16, 256, 2048, 2048)  # 2^30 keys
    assert not supported(1, 1, 1, 1, 1 << 15)
    assert not supported(0, 1, 1, 8, 8)
    assert not supported(1, 1, 1, 8, 8, torch.float64)


def test_attention_runs_on_it(monkeypatch):
    monkeypatch.setattr("acla_nas.attention.acla.is_fusable", lambda *_: False)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    module = attention.ACLA(6, num_keys=3, num_references=2).to(DEVICE)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    x1, x2 = torch.randn(2, 1, 6, 3, 3, device=DEVICE)

    def results():
        out = module(x2, {"1": x1, "2": x2})
        return [out, *torch.autograd.grad(out.square().sum(), list(module.parameters()))]

    in_triton = results()
    monkeypatch.setattr(gather, "_has_triton", lambda device: False)
    monkeypatch.setattr(gather, "_Plain", PLAIN)
    torch.testing.assert_close(in_triton, results())
