"""Selected keys: known places, weights that sum to 1, gates, borders, other sizes; CLNL; the picture."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from matplotlib.collections import PathCollection
from torch import nn

import acla_nas
from acla_nas.attention import ACLA
from acla_nas.attention.acla import key_rings
from acla_nas.data import image_to_tensor, list_images, load_image
from acla_nas.errors import AclaError
from acla_nas.network import CrossLayerNetwork
from acla_nas.ops import cross_layer_gather_reference
from acla_nas.report import LayerKeys, non_local_keys, plot_keys, selected_keys, textured_pixel


def three_convolutions():
    return nn.Sequential(
        *(nn.Conv2d(inputs, outputs, 3, padding=1) for inputs, outputs in [(3, 4), (4, 4), (4, 3)])
    )


def network_of(attention="acla", positions=(1, 2), *, random=True, backbone=None, **options):
    torch.manual_seed(0)
    backbone = backbone or three_convolutions()
    paths = {j: str(j - 1) for j in positions}
    if attention == "acla":  # as many gates closed as open
        options = {"gate_bias": 0.0, "mask_scale": 1.0, **options}
    network = CrossLayerNetwork.dense(backbone, paths, attention, input_shape=(3, 12, 16), **options)
    if random:
        for name, p in network.attention.named_parameters():
            nn.init.normal_(p, std=2.0 if "offset" in name else 1.0)
    return network


@pytest.fixture
def image():
    return torch.rand(3, 12, 16, generator=torch.Generator().manual_seed(1))


def test_untrained_keys_lie_on_the_rings_with_equal_weights(image):
    network = network_of("cla", random=False, num_keys=8)
    layers = selected_keys(network, image, 2, (7, 5))
    assert [(keys.position, keys.path, keys.size) for keys in layers] == [
        (1, "0", (12, 16)),
        (2, "1", (12, 16)),
    ]
    for keys in layers:
        np.testing.assert_allclose(keys.places, np.add(key_rings(8), [7, 5]), atol=1e-6)
        np.testing.assert_allclose(keys.weights, 1 / 16, rtol=1e-6)
        assert keys.open.all() and keys.inside.all()


def test_known_offsets_logits_and_gates(image):
    """The feature is 1 everywhere, so that weights are offsets; only the second key's gate is open."""
    backbone = nn.Sequential(nn.Conv2d(3, 1, 1), nn.Conv2d(1, 3, 1))
    network = network_of("acla", (1,), random=False, backbone=backbone, num_keys=2)
    with torch.no_grad():
        backbone[0].weight.zero_()
        backbone[0].bias.fill_(1.0)
        reference = network.attention["1"].references["1"]
        reference.offset.weight.copy_(torch.tensor([3.0, -2.0, 0.5, 0.25]).view(4, 1, 1, 1))
        reference.logit.weight.copy_(torch.tensor([0.0, np.log(3.0)]).view(2, 1, 1, 1))
        reference.mask.weight.copy_(torch.tensor([-1.0, 1.0]).view(2, 1, 1, 1))
    [keys] = selected_keys(network, image, 1, (7, 5))
    np.testing.assert_allclose(keys.places, np.add(key_rings(2), [[10.0, 3.0], [7.5, 5.25]]), atol=1e-6)
    np.testing.assert_allclose(keys.weights, [0.0, 0.75], rtol=1e-6)  # of exp(a) = 1 and 3
    assert keys.open.tolist() == [False, True]
    [keys] = selected_keys(network, image, 1, (15, 11))
    assert keys.inside.tolist() == [False, False]  # (19, 9) and (16.2, 12)
    assert not keys.drawn.any()


def test_weights_of_all_references_sum_to_one(image):
    layers = selected_keys(network_of("cla", num_keys=5), image, 2, (3, 4))
    assert sum(keys.weights.sum() for keys in layers) == pytest.approx(1, abs=1e-6)
    layers = selected_keys(network_of("acla", num_keys=5, renormalize=True), image, 2, (3, 4))
    # A millionth of all keys' weight in the denominator is more of it where few are open.
    assert sum(keys.weights.sum() for keys in layers) == pytest.approx(1, abs=1e-4)
    layers = selected_keys(network_of("acla", num_keys=16), image, 2, (3, 4))
    closed = np.concatenate([~keys.open for keys in layers])
    assert 0 < closed.sum() < len(closed)
    assert (np.concatenate([keys.weights for keys in layers])[closed] == 0).all()
    assert sum(keys.weights.sum() for keys in layers) < 1


@pytest.mark.parametrize("query", [(0, 0), (15, 11), (7, 0), (6, 5)])
@pytest.mark.parametrize("stride", [1, 2])
def test_places_and_weights_are_what_the_module_computes(image, query, stride):
    """Values read at the places, times the weights, are the module's output: also from a larger layer."""
    backbone = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, stride=stride, padding=1))
    network = network_of("acla", num_keys=6, backbone=nn.Sequential(*backbone, nn.Conv2d(4, 3, 1)))
    given = []
    module: ACLA = network.attention["2"]
    module.register_forward_hook(lambda module, inputs, output: given.append((inputs, output)))
    network.eval()(image[None])
    layers = selected_keys(network, image, 2, query)
    (_, references, *_), output = given[0]
    x, y = query[0] // stride, query[1] // stride
    expected = torch.zeros(4)
    for keys, (name, reference) in zip(layers, references.items()):
        assert keys.size == tuple(reference.shape[2:])
        value = module.references[name].value(reference)
        place = torch.from_numpy(keys.places).float().view(1, 1, -1, 2, 1, 1)
        # A single query pixel has the whole map's width: its offsets are in units of that.
        offset = (place + 0.5) / torch.tensor(keys.size[::-1]).view(2, 1, 1) - 0.5
        weights = torch.from_numpy(keys.weights).float().view(1, 1, -1, 1, 1)
        expected = expected + cross_layer_gather_reference([value], offset, weights).flatten()
    expected = module.out(expected.view(1, 4, 1, 1)).flatten()
    torch.testing.assert_close(output[0, :, y, x], expected, rtol=1e-4, atol=1e-4)


def test_leaves_the_network_as_it_was(image):
    network = network_of("acla", num_keys=4).train()
    network.attention["1"].eval()
    hooks = len(network.attention["2"]._forward_pre_hooks)
    selected_keys(network, image, 2, (3, 4))
    assert network.training and not network.attention["1"].training
    assert len(network.attention["2"]._forward_pre_hooks) == hooks
    a, b = (selected_keys(network, image, 2, (3, 4)) for _ in range(2))
    assert all((x.weights == y.weights).all() for x, y in zip(a, b))  # no Gumbel noise


@pytest.mark.parametrize("attention", ["acla+se", "se+acla"])
def test_finds_the_keys_of_a_combination(image, attention):
    network = network_of(attention, num_keys=4, reduction=2)
    assert len(selected_keys(network, image, 2, (3, 4))[0].weights) == 4


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((3, (3, 4)), "no attention at position 3: it has 1, 2"),
        ((2, (16, 4)), r"query \(16, 4\) lies outside the image of 16x12"),
        ((2, (3, -1)), "lies outside"),
    ],
)
def test_refuses(image, arguments, message):
    with pytest.raises(AclaError, match=message):
        selected_keys(network_of("cla"), image, *arguments)


def test_refuses_what_has_no_keys(image):
    with pytest.raises(AclaError, match="NonLocal, which samples no keys"):
        selected_keys(network_of("nl"), image, 2, (3, 4))
    with pytest.raises(AclaError, match="not a derived network"):
        selected_keys(three_convolutions(), image, 2, (3, 4))


@pytest.mark.parametrize("attention", ["acla", "clnl"])
def test_non_local_keys_are_the_largest_of_the_softmax(image, attention):
    network = network_of(attention)
    given = []
    network.attention["2"].register_forward_pre_hook(lambda module, inputs: given.append(inputs))
    layers = non_local_keys(network, image, 2, (3, 4), num_keys=5)
    query, references = given[0][:2]
    with torch.no_grad():
        if attention == "clnl":
            module = network.attention["2"]
            query, references = (
                module.theta(query),
                {l: module.references[l].phi(x) for l, x in references.items()},
            )
        dots = torch.stack([torch.einsum("c,chw->hw", query[0, :, 4, 3], x[0]) for x in references.values()])
    weights = dots.flatten().softmax(0).view(2, 12, 16)
    for keys, weight in zip(layers, weights):
        columns, rows = keys.places.astype(int).T
        np.testing.assert_allclose(keys.weights, weight[rows, columns], rtol=1e-3)
        np.testing.assert_allclose(keys.weights, weight.flatten().topk(5).values, rtol=1e-3)
    everything = non_local_keys(network, image, 2, (3, 4), num_keys=1000)
    assert sum(keys.weights.sum() for keys in everything) == pytest.approx(1)


def layer(places, weights, position=1, size=(20, 30)):
    weights = np.array(weights)
    return LayerKeys(position, f"body.{position - 1}", size, np.array(places), weights, weights > 0)


def marks(panel):
    """The (x, y) of a panel's keys, and of its query."""
    keys, query = [c for c in panel.collections if isinstance(c, PathCollection)]
    return keys.get_offsets(), query.get_offsets()


def test_draws_open_keys_inside_the_image_and_the_query():
    image = np.zeros((40, 60, 3), dtype=np.uint8)  # twice the layer's size
    layers = [
        layer([[1.0, 2.0], [25.0, 3.0], [-4.0, 1.0], [28.0, 18.0]], [0.3, 0.0, 0.2, 0.1]),
        layer([[5.0, 6.0]], [0.4], position=2),
    ]
    figure = plot_keys(image, (7, 9), {"ACLA": layers, "CLNL": layers[1:]})
    first, second, third, empty = figure.axes[:4]
    places, query = marks(first)
    assert sorted(map(tuple, places)) == [(2.5, 4.5), (56.5, 36.5)]  # not the closed one, not the one outside
    assert query.tolist() == [[7, 9]]
    assert first.get_title() == "body.0 (position 1)\n2 of 4 keys, 1 closed, 1 outside"
    assert second.get_title() == "body.1 (position 2)\n1 of 1 keys"
    assert third.get_ylabel() == "CLNL" and not empty.axison
    scale = first.collections[0].norm
    assert (scale.vmin, scale.vmax) == pytest.approx((0.1, 0.4))  # one scale a row
    assert scale is second.collections[0].norm


@pytest.mark.parametrize("weights", [[0.0, 0.0], [1.0, 1.0], [1.0, 1e-30]])
def test_any_weights_are_drawn(tmp_path, weights):
    image = np.zeros((20, 30, 1), dtype=np.float32)
    plot_keys(image, (0, 19), {"a": [layer([[1.0, 2.0], [5.0, 5.0]], weights)]}).savefig(tmp_path / "a.png")
    assert load_image(tmp_path / "a.png").std() > 0


@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 5, 1), (4, 1)])
def test_draws_images_of_a_row_or_a_column(shape):
    figure = plot_keys(
        np.zeros(shape, dtype=np.uint8), (0, 0), {"a": [layer([[0.0, 0.0]], [1.0], size=(1, 1))]}
    )
    assert figure.axes[0].images[0].get_array().shape[:2] == shape[:2]


def test_enlarges_keys_close_to_the_query():
    image = np.zeros((80, 80, 3), dtype=np.uint8)
    near = [layer([[40.0, 41.0], [43.0, 40.0]], [0.4, 0.6], size=(80, 80))]
    far = [layer([[40.0, 41.0], [3.0, 4.0]], [0.4, 0.6], size=(80, 80))]
    figure = plot_keys(image, (41, 41), {"near": near, "far": far})
    inset = figure.axes[0].child_axes[0]
    (left, right), (bottom, top) = inset.get_xlim(), inset.get_ylim()
    assert all(left < x < right and top < y < bottom for x, y in marks(inset)[0])
    assert not figure.axes[1].child_axes


def test_refuses_to_draw_nothing():
    with pytest.raises(AclaError, match="no keys to draw"):
        plot_keys(np.zeros((4, 4, 3)), (0, 0), {})


def test_textured_pixel_is_in_the_image():
    for path in list_images("embedded", "test"):
        image = load_image(path)
        x, y = textured_pixel(image)
        assert 0 < x < image.shape[1] and 0 < y < image.shape[0]
    assert textured_pixel(np.zeros((5, 7, 3))) == (3, 2)


def test_picture_of_a_real_image(tmp_path):
    image = load_image(list_images("embedded", "test")[0])[:60, :80]
    space = acla_nas.search_spaces.edsr(num_blocks=2, num_channels=8, num_keys=4)
    network = space.freeze({"insert/1": True, "insert/2": True, "keys": 4})
    query = textured_pixel(image)
    tensor = image_to_tensor(image)
    rows = {
        "ACLA": selected_keys(network, tensor, 2, query),
        "CLNL": non_local_keys(network, tensor, 2, query),
    }
    plot_keys(image, query, rows, caption="two rows").savefig(tmp_path / "keys.png")
    picture = load_image(tmp_path / "keys.png")
    assert picture.shape[0] > 300 and picture.std() > 10
    assert (picture == [0, 255, 0]).all(-1).sum() > 100  # the green crosses
