"""cross_layer_gather against its literal reference: Numba's form and the plain one, both on the CPU."""

from __future__ import annotations

import math

import pytest
import torch

from acla_nas.errors import AclaError
from acla_nas.ops import cross_layer_gather, cross_layer_gather_reference, gather, gather_numba, table

SHAPES = [  # batch, references, keys, channels, height, width
    (1, 1, 1, 1, 1, 1),
    (1, 1, 1, 3, 5, 7),
    (2, 3, 4, 5, 9, 6),
    (3, 2, 1, 8, 4, 11),
    (1, 5, 16, 4, 12, 12),
    (2, 1, 8, 2, 3, 17),
]


@pytest.fixture(params=["numba", "plain"], autouse=True)
def form(request, monkeypatch):
    """Numba's form is what a CPU takes by itself; the plain one is chosen here."""
    if request.param == "plain":
        monkeypatch.setattr(gather, "_form", lambda values, offsets, weights: gather._Plain)
    return request.param


@pytest.mark.parametrize("form", ["numba"], indirect=True)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_a_cpu_takes_numbas_form(dtype):
    *inputs, _ = make_inputs(2, 1, 3, 4, 6, 5, dtype=dtype)
    assert gather._form(*inputs) is gather_numba


def make_inputs(batch, references, keys, channels, height, width, *, reach=3.0, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    values = [draw(batch, channels, height, width).requires_grad_() for _ in range(references)]
    offsets = (draw(batch, references, keys, 2, height, width) * reach).requires_grad_()
    weights = draw(batch, references, keys, height, width).requires_grad_()
    return values, offsets, weights, draw(batch, channels, height, width)


def output_and_gradients(function, values, offsets, weights, grad):
    out = function(values, offsets, weights)
    return [out, *torch.autograd.grad((out * grad).sum(), [*values, offsets, weights])]


def assert_close(actual, expected, tolerance):
    for a, e in zip(actual, expected):
        assert a.shape == e.shape
        assert (a - e).norm() <= tolerance * max(e.norm(), 1e-30)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_reference_in_float64(shape, seed):
    *inputs, grad = make_inputs(*shape, seed=seed)
    expected = output_and_gradients(cross_layer_gather_reference, *inputs, grad)
    assert_close(output_and_gradients(cross_layer_gather, *inputs, grad), expected, 1e-10)


def test_keys_far_outside_the_image_give_zero_and_no_gradient_to_values():
    values, offsets, weights, grad = make_inputs(2, 2, 3, 4, 6, 5)
    offsets = (offsets.detach() + 100).requires_grad_()
    result = output_and_gradients(cross_layer_gather, values, offsets, weights, grad)
    assert all((r == 0).all() for r in result)


def test_keys_straddling_the_border():
    values, offsets, weights, grad = make_inputs(2, 2, 9, 4, 6, 5, reach=8.0)
    expected = output_and_gradients(cross_layer_gather_reference, values, offsets, weights, grad)
    actual = output_and_gradients(cross_layer_gather, values, offsets, weights, grad)
    assert_close(actual, expected, 1e-10)


def test_offsets_that_land_exactly_on_pixels():
    values, offsets, weights, grad = make_inputs(2, 3, 4, 5, 8, 10)
    offsets = offsets.detach().round().requires_grad_()
    expected = output_and_gradients(cross_layer_gather_reference, values, offsets, weights, grad)
    actual = output_and_gradients(cross_layer_gather, values, offsets, weights, grad)
    assert_close(actual, expected, 1e-10)
    # By hand: one key, one pixel down, weight 1.
    down = torch.zeros(1, 1, 1, 2, 4, 3)
    down[:, :, :, 1] = 1
    value = torch.arange(12.0).view(1, 1, 4, 3)
    shifted = cross_layer_gather([value], down, torch.ones(1, 1, 1, 4, 3))
    assert torch.equal(shifted[0, 0], torch.cat([value[0, 0, 1:], torch.zeros(1, 3)]))


@pytest.mark.parametrize("sizes", [[(12, 8), (3, 2)], [(5, 9), (6, 4)]])
def test_references_of_other_resolutions(sizes):
    _, offsets, weights, grad = make_inputs(2, 2, 4, 5, 6, 4)
    values = [torch.randn(2, 5, *size, dtype=torch.float64, requires_grad=True) for size in sizes]
    expected = output_and_gradients(cross_layer_gather_reference, values, offsets, weights, grad)
    assert_close(output_and_gradients(cross_layer_gather, values, offsets, weights, grad), expected, 1e-10)


def test_strips_change_nothing(monkeypatch):
    *inputs, grad = make_inputs(3, 2, 3, 4, 13, 5)
    whole = output_and_gradients(cross_layer_gather, *inputs, grad)
    monkeypatch.setattr("torch.get_num_threads", lambda: 1)
    image = 3 * 5 * 13
    for keys in (3 * 5 * 4, 1, image, 2 * image):  # 4 rows, 1 row, an image, two images at a time
        monkeypatch.setattr(gather, "_STRIP_KEYS", keys)
        monkeypatch.setattr(gather_numba, "_STRIP_KEYS", keys)
        assert_close(output_and_gradients(cross_layer_gather, *inputs, grad), whole, 1e-13)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 2e-2), (torch.float16, 2e-2)]
)
def test_lower_precision_stays_near_float64(dtype, tolerance):
    values, offsets, weights, grad = make_inputs(2, 3, 8, 16, 20, 24)
    values = [v.detach().to(dtype).double().requires_grad_() for v in values]
    # float32 coordinates: make both sides start from the same offsets
    offsets = offsets.detach().float().double().requires_grad_()
    expected = output_and_gradients(cross_layer_gather_reference, values, offsets, weights, grad)
    low_values = [v.detach().to(dtype).requires_grad_() for v in values]
    low_offsets = offsets.detach().float().requires_grad_()
    low_weights = weights.detach().float().requires_grad_()
    actual = output_and_gradients(cross_layer_gather, low_values, low_offsets, low_weights, grad.to(dtype))
    assert actual[0].dtype == dtype
    assert_close([a.double() for a in actual], expected, tolerance)


def test_identical_from_run_to_run():
    *inputs, grad = make_inputs(2, 3, 8, 16, 20, 24, dtype=torch.float32)
    first = output_and_gradients(cross_layer_gather, *inputs, grad)
    for _ in range(3):
        again = output_and_gradients(cross_layer_gather, *inputs, grad)
        assert all(torch.equal(a, b) for a, b in zip(first, again))


@pytest.mark.parametrize("open_share", [0.0, 0.1, 0.9])
def test_closed_keys_change_nothing(open_share):
    values, offsets, weights, grad = make_inputs(2, 2, 8, 64, 9, 6)
    weights = close(weights, open_share)
    actual = output_and_gradients(cross_layer_gather, values, offsets, weights, grad)
    expected = output_and_gradients(cross_layer_gather_reference, values, offsets, weights, grad)
    assert_close(actual, expected, 1e-10)


def close(weights, open_share):
    closed = torch.rand(weights.shape, generator=torch.Generator().manual_seed(1)) >= open_share
    return weights.detach().masked_fill(closed, 0).requires_grad_()


@pytest.mark.parametrize("form", ["numba"], indirect=True)
@pytest.mark.parametrize("open_share", [0.0, 0.1, 0.9, 1.0])
def test_closed_keys_are_not_read(monkeypatch, open_share):
    values, offsets, weights, grad = make_inputs(2, 2, 8, 4, 9, 6)
    weights = close(weights, open_share)
    read = []
    fill = gather_numba._fill

    def counted(lists, *arguments):
        fill(lists, *arguments)
        read.append(lists._entries)

    monkeypatch.setattr(gather_numba, "_fill", counted)
    output_and_gradients(cross_layer_gather, values, offsets, weights, grad)
    assert sum(read) == 2 * 4 * weights.count_nonzero()  # forward and backward


@pytest.mark.parametrize("form", ["numba"], indirect=True)
def test_gradients_of_values_take_the_rows_that_a_strip_reads(monkeypatch):
    values, offsets, weights, grad = make_inputs(1, 1, 3, 4, 40, 5)
    weights = weights.detach().clone()
    weights[:, :, :, :20] = 0  # strips without an open key
    weights.requires_grad_()
    expected = output_and_gradients(cross_layer_gather_reference, values, offsets, weights, grad)
    monkeypatch.setattr(gather_numba, "_STRIP_KEYS", 4 * 3 * 5)
    found = []
    sum_transposed = gather_numba.Lists.sum_transposed

    def noted(lists, of_sums, rows):
        found.append(rows)
        return sum_transposed(lists, of_sums, rows)

    monkeypatch.setattr(gather_numba.Lists, "sum_transposed", noted)
    actual = output_and_gradients(cross_layer_gather, values, offsets, weights, grad)
    assert_close(actual, expected, 1e-10)
    assert len(found) == 5 and all(rows.stop - rows.start < 40 * 5 for rows in found)


@pytest.mark.parametrize("channels", [3, 64, 70])
def test_maps_are_laid_out_pixel_by_pixel(channels):
    maps = torch.randn(2, channels, 9, 17)
    table = gather_numba.Table(maps.dtype)
    table.load(maps, torch.zeros(2, 1, 2, 9, 17), [slice(0, 9)])
    assert torch.equal(table.rows, maps.permute(0, 2, 3, 1).reshape(-1, channels))


@pytest.mark.parametrize("together", [1, 2])
@pytest.mark.parametrize("reach", [1.0, 30.0])
@pytest.mark.parametrize("size", [(31, 5), (47, 3), (16, 9)])
def test_a_table_that_holds_part_of_the_image(monkeypatch, reach, together, size):
    """Tables are filled anew as the strips move on; keys that reach far need all of the map."""
    _, offsets, weights, grad = make_inputs(1, 2, 3, 4, 31, 5, reach=reach)
    values = [torch.randn(1, 4, *size, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    expected = output_and_gradients(cross_layer_gather_reference, values, offsets, weights, grad)
    monkeypatch.setattr("torch.get_num_threads", lambda: 1)
    lines = size[0] // 2
    for module in (gather, gather_numba):
        monkeypatch.setattr(module, "_STRIP_KEYS", together * 3 * 5 * 4)
    monkeypatch.setattr(gather, "_LEAST_ROWS", 4)
    monkeypatch.setattr(table, "_TABLE_BYTES", lines * (size[1] + 2) * 4 * 8)
    monkeypatch.setattr(gather_numba, "_TABLE_BYTES", lines * size[1] * 4 * 8)
    assert_close(output_and_gradients(cross_layer_gather, values, offsets, weights, grad), expected, 1e-10)


@pytest.mark.parametrize("form", ["numba"], indirect=True)
def test_a_table_follows_the_strips(monkeypatch):
    """Memory for lines does not grow with the image where keys stay near, and few are laid out again."""
    value, offsets = torch.randn(1, 4, 200, 5), torch.rand(1, 1, 3, 2, 200, 5) * 4 - 2
    monkeypatch.setattr("torch.get_num_threads", lambda: 1)
    monkeypatch.setattr(gather_numba, "_STRIP_KEYS", 10 * 3 * 5)
    monkeypatch.setattr(gather_numba, "_TABLE_BYTES", 16 * 5 * 4 * 4)
    laid_out = []
    lay_out = gather_numba.lay_out

    def noted(maps, begin, into):
        laid_out.append(into.shape[1] // 5)
        lay_out(maps, begin, into)

    monkeypatch.setattr(gather_numba, "lay_out", noted)
    cross_layer_gather([value], offsets, torch.ones(1, 1, 3, 200, 5))
    assert max(laid_out) <= 16 and 200 < sum(laid_out) <= 200 + 5 * len(laid_out)


def other_layouts(x):
    """The same numbers, otherwise in memory."""
    yield x.transpose(-1, -2).contiguous().transpose(-1, -2)
    if x.dim() == 4:
        yield x.contiguous(memory_format=torch.channels_last)
    yield torch.stack([x, x], -1)[..., 1]
    yield x[..., :1].expand(x.shape)
    yield x[:1].expand(x.shape)


@pytest.mark.parametrize("which", range(4))
def test_layouts_in_memory_change_nothing(which):
    *inputs, grad = make_inputs(2, 2, 3, 4, 6, 5)
    plain = [x.detach() for x in (inputs[0][0], *inputs[1:], grad)]
    for layout in other_layouts(plain[which]):
        results = []
        for x in (layout, layout.clone(memory_format=torch.contiguous_format)):
            value, offsets, weights, of_out = [*plain[:which], x, *plain[which + 1 :]]
            leaves = [value.requires_grad_(), offsets.requires_grad_(), weights.requires_grad_()]
            out = cross_layer_gather([value, inputs[0][1]], offsets, weights)
            results.append([out, *torch.autograd.grad(out, [*leaves, inputs[0][1]], of_out)])
        assert all(map(torch.equal, *results))


@pytest.mark.parametrize("wanted", [(True, False, False), (False, True, False), (False, False, True)])
def test_a_gradient_that_is_not_needed_is_not_given(wanted):
    values, offsets, weights, grad = make_inputs(2, 2, 3, 4, 6, 5)
    expected = output_and_gradients(cross_layer_gather, values, offsets, weights, grad)[1:]
    inputs = [values[0], offsets, weights]
    for x, needed in zip((*inputs, values[1]), (*wanted, False)):
        x.requires_grad_(needed)
    out = cross_layer_gather(values, offsets, weights)
    out.backward(grad)
    assert values[1].grad is None
    for x, needed, gradient in zip(inputs, wanted, (expected[0], *expected[2:])):
        assert torch.equal(x.grad, gradient) if needed else x.grad is None


@pytest.mark.parametrize("size", [(1, 1), (4, 7)])
def test_images_of_one_pixel(size):
    """As queries, as values, or both."""
    _, offsets, weights, grad = make_inputs(2, 2, 3, 4, 1, 1, reach=1.0)
    values = [torch.randn(2, 4, *size, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    expected = output_and_gradients(cross_layer_gather_reference, values, offsets, weights, grad)
    assert_close(output_and_gradients(cross_layer_gather, values, offsets, weights, grad), expected, 1e-10)
    _, offsets, weights, grad = make_inputs(2, 2, 3, 4, *size)
    values = [torch.randn(2, 4, 1, 1, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    expected = output_and_gradients(cross_layer_gather_reference, values, offsets, weights, grad)
    assert_close(output_and_gradients(cross_layer_gather, values, offsets, weights, grad), expected, 1e-10)


def test_no_images_give_nothing():
    values, offsets, weights, _ = make_inputs(0, 2, 3, 4, 6, 5)
    assert cross_layer_gather(values, offsets, weights).shape == (0, 4, 6, 5)


@pytest.mark.parametrize("size", [(4, 5), (7, 3)])
@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf, 1e30])
def test_offsets_that_are_no_places_do_no_harm(broken, size):
    """To other queries: neither to their sums nor to the gradients of their offsets and weights."""
    _, offsets, weights, grad = make_inputs(1, 1, 2, 3, 4, 5, dtype=torch.float32)
    values = [torch.randn(1, 3, *size, requires_grad=True)]
    offsets = offsets.detach()
    offsets[0, 0, 0, :, 2, 1] = broken
    untouched = torch.ones(4, 5, dtype=torch.bool)
    untouched[2, 1] = False
    results = []
    for delta in (offsets, offsets.nan_to_num(0, 0, 0)):
        delta = delta.requires_grad_()
        out, _, *gradients = output_and_gradients(cross_layer_gather, values, delta, weights, grad)
        results.append([x[..., untouched] for x in (out, *gradients)])
    assert all(map(torch.equal, *results))


def test_shape_errors_name_the_shapes():
    values, offsets, weights, _ = make_inputs(2, 2, 3, 4, 6, 5)
    with pytest.raises(AclaError, match="2 references, but 1 value maps"):
        cross_layer_gather(values[:1], offsets, weights)
    with pytest.raises(AclaError, match=r"weights must be .*\(2, 2, 3, 6, 5\)"):
        cross_layer_gather(values, offsets, weights[:, :, :2])
    with pytest.raises(AclaError, match="one C"):
        cross_layer_gather([values[0], values[1][:, :2]], offsets, weights)


@pytest.mark.parametrize("size", [8, 4000])
def test_shapes_without_numbers(size):
    value, offsets = (
        torch.empty(1, 3, size, size, device="meta"),
        torch.empty(1, 1, 2, 2, size, size, device="meta"),
    )
    out = cross_layer_gather([value], offsets, torch.empty(1, 1, 2, size, size, device="meta"))
    assert out.is_meta and out.shape == value.shape
