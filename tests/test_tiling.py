"""Tiles against the whole image: equal where the overlap is as far as the network looks, else seamless."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from random_weights import randomize
from torch import nn

from acla_nas import CrossLayerSpace, search_spaces
from acla_nas.errors import AclaError
from acla_nas.formats import describe
from acla_nas.formats.descriptor import Descriptor
from acla_nas.receptive_field import backbone_reach, largest_offsets, total_reach
from acla_nas.tiling import restore_tiled

SAMPLE = {"insert/1": True, "insert/2": False, "insert/3": True, "keys": 4}


def derived(space, sample=SAMPLE, spread=0.3):
    network = space.freeze(sample).eval()
    randomize(network.attention, spread)
    return network, space.arch(sample)


def noise(height, width, channels=3, dtype=np.uint8):
    peak = np.iinfo(dtype).max
    return np.random.default_rng(0).integers(0, peak, (height, width, channels), dtype, endpoint=True)


def whole(network, image, descriptor):
    """The network's output for the image in one piece, in 0 .. 1."""
    x = torch.from_numpy(image.transpose(2, 0, 1).astype(np.float32) / np.iinfo(image.dtype).max)[None]
    height, width = descriptor.valid_size(*image.shape[:2])
    padded = F.pad(x, (0, width - image.shape[1], 0, height - image.shape[0]), mode="replicate")
    with torch.no_grad():
        y = network(padded)[..., : x.shape[2] * descriptor.scale, : x.shape[3] * descriptor.scale]
    return y[0].permute(1, 2, 0).numpy()


class Kept:
    """A network whose outputs restore_tiled is made to keep as they are: it is run on 16-bit images."""

    def __init__(self, network):
        self.network = network

    def __call__(self, x):
        return self.network(x).clamp(0, 1)


def measured(network, arch, image):
    """The overlap that an image needs, from the offsets that the whole of it uses."""
    descriptor = describe(network, arch)
    with largest_offsets(network) as offsets:
        whole(network, image, descriptor)
    reach = backbone_reach(network, descriptor.in_channels, descriptor.multiple_of)
    return descriptor, total_reach(network, reach, offsets, arch.input_shape)


@pytest.mark.parametrize("scale", [1, 2, 3])
@pytest.mark.parametrize("self_ensemble", [False, True])
def test_tiles_are_equal_to_the_whole(scale, self_ensemble):
    network, arch = derived(search_spaces.edsr(scale, 3, 8, image_range=1.0, num_keys=4))
    image = noise(150, 131, dtype=np.uint16)
    descriptor, overlap = measured(network, arch, image)
    assert overlap > backbone_reach(network, 3)
    options = {"overlap": overlap, "self_ensemble": self_ensemble}
    in_tiles = restore_tiled(Kept(network), image, descriptor, tile=32, **options)
    at_once = restore_tiled(Kept(network), image, descriptor, tile=1000, **options)
    assert in_tiles.shape == (150 * scale, 131 * scale, 3)
    if not self_ensemble:
        expected = whole(network, image, descriptor).clip(0, 1)
        np.testing.assert_allclose(at_once / 65535, expected, rtol=0, atol=1.2e-5)
    np.testing.assert_allclose(in_tiles / 65535, at_once / 65535, rtol=0, atol=1.6e-5)  # one step of 16 bits


def test_floats_of_tiles_are_equal_to_the_whole_within_a_hundred_thousandth():
    """Without the rounding to 16 bits: what a tile gives inside is what the whole image gives there."""
    network, arch = derived(search_spaces.edsr(2, 3, 8, image_range=1.0, num_keys=4))
    image = noise(160, 160)
    descriptor, overlap = measured(network, arch, image)
    expected = whole(network, image, descriptor)
    first, last = 64, 96
    part = image[first - overlap : last + overlap, first - overlap : last + overlap]
    inside = whole(network, part, descriptor)[2 * overlap : -2 * overlap, 2 * overlap : -2 * overlap]
    np.testing.assert_allclose(
        inside, expected[2 * first : 2 * last, 2 * first : 2 * last], rtol=0, atol=1e-5
    )


def test_less_overlap_than_the_network_looks_shows():
    network, arch = derived(search_spaces.edsr(2, 3, 8, image_range=1.0, num_keys=4))
    image = noise(96, 96)
    descriptor, _ = measured(network, arch, image)
    at_once = restore_tiled(network, image, descriptor, tile=96, overlap=0)
    # Tiles begin at multiples of 32, so that only their ends are short of overlap.
    assert (restore_tiled(network, image, descriptor, tile=32, overlap=0) != at_once).any()


def test_a_tile_that_needs_more_is_restored_again():
    network, arch = derived(search_spaces.edsr(2, 3, 8, image_range=1.0, num_keys=4))
    image = noise(96, 100)
    descriptor, overlap = measured(network, arch, image)
    asked = []

    def enough(had):
        asked.append(had)
        return overlap

    in_tiles = restore_tiled(network, image, descriptor, tile=32, overlap=1, enough=enough)
    at_once = restore_tiled(network, image, descriptor, tile=100, overlap=0)
    assert np.abs(in_tiles.astype(int) - at_once).max() <= 1
    assert asked == [1, *[overlap] * 12], "the first tile again, and each of the 3 x 4 with enough"


class UNet(nn.Module):
    """Two resolutions; pads its input to a multiple of 4 itself, so any size will do."""

    def __init__(self):
        super().__init__()
        self.head, self.inner = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.tail = nn.Conv2d(6, 3, 3, padding=1)

    def forward(self, x):
        height, width = x.shape[-2:]
        z = self.head(F.pad(x, (0, -width % 4, 0, -height % 4)))
        z = z + F.interpolate(self.inner(F.max_pool2d(z, 4)), scale_factor=4.0)
        return x + self.tail(z)[..., :height, :width]


def test_networks_of_several_resolutions():
    space = CrossLayerSpace(UNet, ["head", "inner"], num_keys=2, input_shape=(3, 32, 32))
    sample = {"insert/1": True, "insert/2": True, "keys": 2}
    network, arch = derived(space, sample, spread=0.2)
    image = noise(96, 112, dtype=np.uint16)
    descriptor, overlap = measured(network, arch, image)
    in_tiles = restore_tiled(Kept(network), image, descriptor, tile=32, overlap=overlap)
    np.testing.assert_allclose(
        in_tiles / 65535, whole(network, image, descriptor).clip(0, 1), rtol=0, atol=1.6e-5
    )


def made_up(scale=1, channels=1, **options):
    arch = search_spaces.edsr(2, 1, 4).arch({"insert/1": False, "keys": 16})
    return Descriptor(
        scale=scale, in_channels=channels, out_channels=channels, parameters=0, arch=arch, **options
    )


def test_blended_tiles_have_no_seam():
    """Each tile of a network that sees all of it is off by another constant: seams become slopes."""

    def network(x):
        return x * 0 + x.mean()

    ramp = np.linspace(0, 255, 512).astype(np.uint8)[None, :, None].repeat(300, 0)
    restored = restore_tiled(network, ramp, made_up(), tile=128, overlap=None)[..., 0].astype(int)
    assert restored.max() - restored.min() > 100, "the tiles do differ"
    assert np.abs(np.diff(restored, axis=1)).max() <= 2
    assert np.abs(np.diff(restored, axis=0)).max() <= 1


@pytest.mark.parametrize("size", [(1, 1), (5, 200), (33, 31), (64, 64), (65, 97)])
@pytest.mark.parametrize("overlap", [0, 7, None])
def test_every_pixel_is_written_once_whatever_the_size(size, overlap):
    image = noise(*size, channels=1)

    def twice(x):
        return x.repeat_interleave(2, 2).repeat_interleave(2, 3)

    restored = restore_tiled(twice, image, made_up(scale=2), tile=32, overlap=overlap)
    assert (restored == image.repeat(2, 0).repeat(2, 1)).all()


def test_sizes_that_the_network_does_not_take_are_padded():
    seen = []

    def picky(x):
        seen.append(tuple(x.shape[2:]))
        return x

    image = noise(45, 70, channels=1)
    restored = restore_tiled(picky, image, made_up(multiple_of=8, minimum_size=20), tile=32, overlap=3)
    assert (restored == image).all()
    assert all(h % 8 == 0 and w % 8 == 0 and min(h, w) >= 24 for h, w in seen)


def test_the_self_ensemble_is_the_mean_over_flips_and_turns():
    weight = torch.rand(1, 1, 3, 3)

    def network(x):
        return F.conv2d(F.pad(x, (1, 1, 1, 1)), weight) / 9

    image = noise(20, 24, channels=1, dtype=np.uint16)
    restored = restore_tiled(network, image, made_up(), tile=64, overlap=0, self_ensemble=True)
    x = torch.from_numpy(image[None, ..., 0].astype(np.float32) / 65535)[None]
    kernels = [torch.rot90(w, k, (2, 3)) for w in (weight, weight.flip(3)) for k in range(4)]
    expected = sum(F.conv2d(F.pad(x, (1, 1, 1, 1)), w) for w in kernels) / 9 / 8
    np.testing.assert_allclose(restored[..., 0] / 65535, expected[0, 0].numpy(), rtol=0, atol=1.6e-5)


def test_a_diverged_network_is_told():
    with pytest.raises(AclaError, match="NaN or infinity"):
        restore_tiled(lambda x: x / 0, noise(8, 8, 1), made_up(), tile=32, overlap=0)
