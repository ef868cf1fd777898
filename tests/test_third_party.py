"""Networks that nobody prepared, as search spaces: published ones, and awkward things that networks do."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import weight_norm
from torch.utils.checkpoint import checkpoint

from acla_nas import Arch, CrossLayerSpace, export
from acla_nas.errors import AclaError
from acla_nas.testing import check_space

# -- published networks -----------------------------------------------------------------------------


def resselt(module, name, **options):
    return lambda: getattr(pytest.importorskip(f"resselt.archs.{module}.arch"), name)(**options)


def swin2sr():
    transformers = pytest.importorskip("transformers")
    config = transformers.Swin2SRConfig(
        image_size=16,
        embed_dim=8,
        depths=[2, 2],
        num_heads=[2, 2],
        window_size=4,
        upscale=2,
        upsampler="pixelshuffledirect",
        num_channels=3,
    )
    return transformers.Swin2SRForImageSuperResolution(config)


SWIN = {"img_size": 16, "embed_dim": 8, "depths": (2, 2), "num_heads": (2, 2), "window_size": 4, "upscale": 2}
PUBLISHED = {
    "rcan": (
        resselt("rcan", "RCAN", scale=2, n_resgroups=3, n_resblocks=1, n_feats=8, reduction=4),
        "body.[0-2]",
        "bchw",
    ),
    "swinir": (resselt("swinir", "SwinIR", upsampler="pixelshuffledirect", **SWIN), "layers.*", "bnc"),
    "swinir_blocks": (
        resselt("swinir", "SwinIR", upsampler="pixelshuffledirect", **SWIN),
        "layers.*.residual_group.blocks.*",
        "bnc",
    ),
    "dat": (
        resselt("dat", "DAT", img_size=16, embed_dim=16, split_size=[4, 8], depth=[1, 1], num_heads=[2, 2]),
        "layers.*",
        "bnc",
    ),
    "hat": (
        resselt("hat", "HAT", compress_ratio=2, squeeze_factor=4, num_feat=8, **SWIN),
        "layers.*",
        "bnc",
    ),
    "span": (
        resselt("span", "SPAN", num_in_ch=3, num_out_ch=3, feature_channels=8, upscale=2),
        "block_[1-3]",
        "bchw",
    ),
    "mosr": (resselt("mosr", "mosr", upscale=2, n_block=2, dim=16), "gblocks.[1-2]", "bchw"),
    "swin2sr": (swin2sr, "swin2sr.encoder.stages.*", "bnc"),
}


def space_of(name, **options):
    make, positions, _ = PUBLISHED[name]
    torch.manual_seed(0)
    return CrossLayerSpace(make, positions, num_keys=2, input_shape=(3, 16, 16), **options)


def randomize(space):
    with torch.no_grad():
        for parameter in space.network.attention.parameters():
            parameter.copy_(torch.randn(parameter.shape) * 0.1)
    return space


def all_on(space):
    return {**{f"insert/{j}": True for j in space.network.paths}, "keys": 2}


def derived(space):
    return randomize(space).freeze(all_on(space)).eval()


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_network_keeps_the_contract(name):
    space = space_of(name)
    assert set(space.layouts.values()) == {PUBLISHED[name][2]}
    check_space(space, torch.rand(1, 3, 16, 16))


def test_what_the_backbone_returns_is_passed_on():
    network = derived(space_of("swin2sr"))
    assert network(torch.rand(1, 3, 16, 16)).reconstruction.shape == (1, 3, 32, 32)
    assert network(pixel_values=torch.rand(1, 3, 16, 20)).reconstruction.shape == (1, 3, 32, 40)


def test_tokens_of_a_padded_input_lie_on_the_grid_of_the_padded_input():
    space = space_of("swinir", attention="cla")
    seen = {}
    space.network.attention["1"].register_forward_pre_hook(lambda m, given: seen.update(x=given[0]))
    space.network(torch.rand(1, 3, 17, 30))
    assert seen["x"].shape == (1, 8, 20, 32)  # a multiple of the window, 4


# -- a U-Net ----------------------------------------------------------------------------------------


class Stage(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, padding=1)

    def forward(self, x):
        return F.gelu(self.conv(x))


class UNet(nn.Module):
    """Three resolutions, each with its own number of channels; pads its input to a multiple of 4."""

    def __init__(self, channels=(4, 6, 8)):
        super().__init__()
        a, b, c = channels
        self.decoder = nn.ModuleList([Stage(b + b, b), Stage(a + a, a)])  # is registered first, run last
        self.encoder = nn.ModuleList([Stage(3, a), Stage(a, b), Stage(b, c)])
        self.up = nn.ModuleList([nn.ConvTranspose2d(c, b, 2, 2), nn.ConvTranspose2d(b, a, 2, 2)])
        self.tail = nn.Conv2d(a, 3, 3, padding=1)

    def forward(self, x):
        height, width = x.shape[-2:]
        padded = F.pad(x, (0, -width % 4, 0, -height % 4))
        skips = []
        z = padded
        for i, stage in enumerate(self.encoder):
            z = stage(z if i == 0 else F.max_pool2d(z, 2))
            skips.append(z)
        for stage, up, skip in zip(self.decoder, self.up, skips[-2::-1]):
            z = stage(torch.cat((up(z), skip), 1))
        return x + self.tail(z)[..., :height, :width]


def unet_space(**options):
    torch.manual_seed(0)
    options = {"num_keys": 2, "input_shape": (3, 16, 16), **options}
    return CrossLayerSpace(UNet(), ["encoder.*", "decoder.*"], **options)


@pytest.mark.parametrize(
    "options",
    [{}, {"num_keys": (1, 3)}, {"attention": "clnl", "num_keys": None}],
    ids=lambda options: options.get("attention", "acla"),
)
def test_a_unet_keeps_the_contract(options):
    check_space(unet_space(**options), torch.rand(1, 3, 16, 12))


def test_globs_are_put_in_the_order_of_execution_and_features_keep_their_sizes():
    space = unet_space()
    assert space.positions == ("encoder.0", "encoder.1", "encoder.2", "decoder.0", "decoder.1")
    sizes = [tuple(place.feature) for place in space.network.places.values()]
    assert sizes == [(4, 16, 16), (6, 8, 8), (8, 4, 4), (6, 8, 8), (4, 16, 16)]
    assert "position 3: encoder.2, bchw, 8 channels, 4 x 4" in repr(space)


def test_references_across_resolutions_are_read_at_the_same_place():
    """A constant slope keeps its values at the same place of the image, whatever the resolution."""
    space = unet_space(attention="cla")
    module = space.network.attention["5"]
    fine = torch.linspace(0, 1, 33)[:-1].add(1 / 64).view(1, 1, 1, 32).expand(1, 4, 32, 32)
    coarse = F.avg_pool2d(fine, 4)
    _, weights, _ = module.keys(fine, {"1": fine, "5": fine})
    assert torch.allclose(weights.sum((1, 2)), torch.ones(1, 32, 32))
    with torch.no_grad():
        for layer in (module.references["1"], module.references["5"]):
            layer.value.weight.zero_()
        module.references["1"].value.weight.copy_(torch.eye(4)[..., None, None])
        module.out.weight.copy_(torch.eye(4)[..., None, None])
        module.base.zero_()
    at_fine = module(fine, {"1": fine, "5": fine})
    at_coarse = module(fine, {"1": coarse, "5": fine})
    inside = (..., slice(4, 28), slice(4, 28))
    torch.testing.assert_close(at_coarse[inside], at_fine[inside])


# -- awkward things that networks do ----------------------------------------------------------------


class Block(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x):
        return x + F.gelu(self.conv(x))


class Normalized(Block):
    """A block with the older weight normalisation, whose weight is a computed attribute."""

    def __init__(self):
        super().__init__(3)
        weight_norm(self.conv)


class Mixer(nn.Module):
    """A layer of tokens or of channels-last maps that returns (x, attention) in some container."""

    def __init__(self, channels, returns):
        super().__init__()
        self.norm, self.linear, self.returns = nn.LayerNorm(channels), nn.Linear(channels, channels), returns

    def forward(self, x, x_size=None):
        x = x + self.linear(self.norm(x))
        return self.returns(x)


class Mixed(nn.Module):
    """Patches of 4 x 4 pixels as tokens or channels last, and layers in a list."""

    def __init__(self, tokens, returns=lambda x: x, channels=8):
        super().__init__()
        self.embed = nn.Conv2d(3, channels, 4, stride=4)
        self.layers = nn.ModuleList(Mixer(channels, returns) for _ in range(3))
        self.head = nn.Linear(channels, 48)
        self.tokens = tokens

    def forward(self, image):
        image = F.pad(image, (0, -image.shape[3] % 4, 0, -image.shape[2] % 4))
        x = self.embed(image).permute(0, 2, 3, 1)
        size = x.shape[1:3]
        x = x.flatten(1, 2) if self.tokens else x
        for layer in self.layers:
            x = layer(x, x_size=size)
            x = x["x"] if isinstance(x, dict) else x if isinstance(x, torch.Tensor) else x[0]
        x = x.view(x.shape[0], *size, x.shape[-1])
        return F.pixel_shuffle(self.head(x).permute(0, 3, 1, 2), 4)


class FixedSize(nn.Module):
    """Takes one size only, and has no convolution: patches by pixel-unshuffle, absolute positions."""

    def __init__(self, channels=8):
        super().__init__()
        self.embed, self.head = nn.Linear(48, channels), nn.Linear(channels, 48)
        self.position = nn.Parameter(torch.randn(1, 36, channels))
        self.layers = nn.Sequential(Mixer(channels, lambda x: x), Mixer(channels, lambda x: x))

    def forward(self, x):
        if x.shape[-2:] != (24, 24):
            raise ValueError("24 x 24 only")
        tokens = self.embed(F.pixel_unshuffle(x, 4).flatten(2).mT) + self.position
        return F.pixel_shuffle(self.head(self.layers(tokens)).mT.unflatten(2, (6, 6)), 4)


class Checkpointed(nn.Module):
    def __init__(self, span=1, reentrant=False):
        super().__init__()
        self.head, self.tail = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 3, 1)
        self.blocks = nn.ModuleList(Block(6) for _ in range(4))
        self.span, self.reentrant, self.use_checkpoint = span, reentrant, True

    def forward(self, x):
        x = self.head(x)
        for first in range(0, len(self.blocks), self.span):
            part = nn.Sequential(*self.blocks[first : first + self.span])
            x = checkpoint(part, x, use_reentrant=self.reentrant) if self.use_checkpoint else part(x)
        return self.tail(x)


AWKWARD = {
    "tokens": (lambda: Mixed(tokens=True), "bnc"),
    "channels_last": (lambda: Mixed(tokens=False), "bhwc"),
    "tuples": (lambda: Mixed(True, lambda x: (x, x @ x.mT)), "bnc"),
    "lists": (lambda: Mixed(False, lambda x: [x, None]), "bhwc"),
    "dicts": (lambda: Mixed(True, lambda x: {"x": x}), "bnc"),
    "fixed_size": (FixedSize, "bnc"),
    "checkpoint": (lambda: Checkpointed(span=2), "bchw"),
    "float64": (lambda: Mixed(tokens=True).double(), "bnc"),
    "weight_norm": (lambda: nn.Sequential(*(Normalized() for _ in range(3))), "bchw"),
    "batch_norm": (lambda: nn.Sequential(Block(3), nn.BatchNorm2d(3), Block(3)), "bchw"),
}


@pytest.mark.parametrize("name", AWKWARD)
def test_an_awkward_network_keeps_the_contract(name):
    make, layout = AWKWARD[name]
    backbone = make()
    positions = next((f"{n}.*" for n in ("layers", "blocks") if hasattr(backbone, n)), "?")
    space = CrossLayerSpace(backbone, positions, num_keys=2, input_shape=(3, 24, 24))
    assert set(space.layouts.values()) == {layout}
    check_space(space)


def gradients(network, images):
    network.zero_grad()
    torch.stack([(network(x) ** 2).mean() for x in images]).sum().backward()
    return {name: p.grad.clone() for name, p in network.named_parameters()}


@pytest.mark.parametrize("span", [1, 2, 4])
def test_gradients_through_checkpoints_are_those_without(span):
    space = CrossLayerSpace(
        Checkpointed(span), "blocks.*", attention="cla", num_keys=2, input_shape=(3, 8, 8)
    )
    network = derived(space).train()
    for images in ([torch.rand(1, 3, 8, 8)], [torch.rand(1, 3, 8, 8), torch.rand(1, 3, 6, 9)]):
        network.backbone.use_checkpoint = True
        actual = gradients(network, images)
        network.backbone.use_checkpoint = False
        for name, expected in gradients(network, images).items():
            torch.testing.assert_close(actual[name], expected)


@pytest.mark.parametrize("train", [True, False])
def test_a_checkpoint_that_would_lose_gradients_is_refused(train):
    space = CrossLayerSpace(Checkpointed(reentrant=True), "blocks.*", num_keys=2, input_shape=(3, 8, 8))
    network = derived(space).train(train)
    with pytest.raises(AclaError, match=r"'blocks.\d' is run without gradients.*use_reentrant=True"):
        network(torch.rand(1, 3, 8, 8)).mean().backward()


# -- layouts ----------------------------------------------------------------------------------------


class Ambiguous(FixedSize):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(6, 6, 1), nn.Conv2d(6, 6, 1))

    def forward(self, x):
        assert x.shape[-2:] == (6, 6)
        return self.layers(x.repeat(1, 2, 1, 1))


def test_a_layout_that_cannot_be_told_is_asked_for_and_then_kept(tmp_path):
    options = {"num_keys": 2, "input_shape": (3, 6, 6)}
    with pytest.raises(AclaError, match=r"'layers.0' returns .*\(1, 6, 6, 6\).*layout=\{'layers.0': 'bchw'"):
        CrossLayerSpace(Ambiguous(), "layers.*", **options)
    with pytest.raises(AclaError, match=r"1 of 2 positions.*'layers.1'"):
        CrossLayerSpace(Ambiguous(), "layers.*", layout={"layers.0": "bchw"}, **options)
    space = CrossLayerSpace(Ambiguous(), "layers.*", layout="bchw", **options)
    check_space(space)
    arch = space.arch({"insert/1": False, "insert/2": True, "keys": 2})
    assert arch.layouts == {"layers.1": "bchw"}
    file = arch.save(tmp_path / "arch.json")
    assert export(Arch.load(file), backbone=Ambiguous()).layouts == arch.layouts


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ("bchw", r"'layers.0' returns a tensor \(1, 36, 8\), which is not 'bchw'"),
        ("bxc", "layout 'bxc' is unknown: .* such as bchw, bhwc, bnc"),
        ({"layer.0": "bnc"}, r"layout names 'layer.0', which is not a position: \['layers.0', 'layers.1'\]"),
    ],
)
def test_a_wrong_layout(layout, message):
    with pytest.raises(AclaError, match=message):
        CrossLayerSpace(FixedSize(), "layers.*", input_shape=(3, 24, 24), layout=layout)


@pytest.mark.parametrize(
    ("input_shape", "message"),
    [
        (
            (3, 24, 20),
            r"not run on an input \(C, H, W\) of \(3, 24, 20\): 24 x 24 only; set input_shape",
        ),
        ((24, 24), r"input_shape must be \(C, H, W\)"),
        ((1, 24, 24), r"does not run on an input .* of \(1, 24, 24\)"),
    ],
)
def test_a_wrong_input_shape(input_shape, message):
    with pytest.raises(AclaError, match=message):
        CrossLayerSpace(FixedSize(), "layers.*", input_shape=input_shape)


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        same = Block(3)
        self.body = nn.ModuleList([Block(3), same, same, Block(3)])
        self.unused, self.pool = Block(3), nn.AdaptiveAvgPool2d(1)

    def forward(self, x):
        for block in self.body[:3]:
            x = block(x)
        return self.body[3].forward(x) + self.pool(x)


def test_all_unusable_positions_are_named_at_once():
    with pytest.raises(AclaError) as raised:
        CrossLayerSpace(Shared(), ["body", "body.*", "unused", "pool"])
    message = str(raised.value)
    assert "6 of 7 positions" in message
    assert "'body' is a ModuleList, which is not run itself: name its members, 'body.*'" in message
    assert "'body.1' is run 2 times in a forward pass, not once: it is the same module as 'body.2'" in message
    assert "'body.3' is run 0 times in a forward pass" in message
    assert "'unused' is run 0 times" in message
    assert "'pool' returns a tensor (1, 3, 1, 1), not a feature" in message
    assert message.endswith("positions=['body.0']")


class SometimesTwice(nn.Module):
    def __init__(self):
        super().__init__()
        self.block = Block(3)

    def forward(self, x):
        return (
            self.block(x)
            if x.shape[-1] < 100
            else torch.cat([self.block(half) for half in x.chunk(2, -1)], -1)
        )


def test_a_position_that_runs_twice_for_a_later_input():
    space = CrossLayerSpace(SometimesTwice(), ["block"], num_keys=2)
    with pytest.raises(AclaError, match="'block' is run more than once for this input"):
        space.network(torch.rand(1, 3, 8, 120))


# -- PyTorch's machinery ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exported_network():
    made = {}

    def get(name):
        if name not in made:
            made[name] = derived(unet_space() if name == "unet" else space_of(name))
        return made[name]

    return get


@pytest.mark.parametrize("name", ["unet", "swinir"])
def test_torch_export(name, exported_network):
    network, x = exported_network(name), torch.rand(1, 3, 16, 12)
    program = torch.export.export(network, (x,), strict=False).module()
    torch.testing.assert_close(program(x), network(x), rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["unet", "swinir"])
def test_onnx(name, exported_network, tmp_path):
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    network, x = exported_network(name), torch.rand(1, 3, 16, 12)
    torch.onnx.export(network, (x,), tmp_path / "model.onnx", dynamo=True, verbose=False)
    session = runtime.InferenceSession(tmp_path / "model.onnx")
    [out] = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(out), network(x), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", [pytest.param("unet", marks=pytest.mark.slow), "swinir"])
def test_torch_compile(name, exported_network):
    network, x = exported_network(name), torch.rand(1, 3, 16, 12)
    torch._dynamo.reset()
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(network, backend="eager")(x), network(x), rtol=0, atol=1e-5)


def _ddp_worker(rank, folder, network, images):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    try:
        parallel = DistributedDataParallel(network)
        (parallel(images[rank : rank + 1]) ** 2).mean().backward()
        torch.save({n: p.grad for n, p in network.named_parameters()}, f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()


@pytest.mark.slow
def test_ddp_gradients_equal_those_of_one_process(tmp_path):
    network = derived(unet_space(attention="cla"))
    images = torch.rand(2, 3, 16, 12)
    arguments = (str(tmp_path), copy.deepcopy(network), images)
    # Not by fork: a forked process can wait for ever on threads that only its parent has.
    mp.start_processes(_ddp_worker, arguments, nprocs=2, start_method="spawn")
    (network(images) ** 2).mean().backward()
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    for name, parameter in network.named_parameters():
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(first[name], parameter.grad, rtol=1e-4, atol=1e-6)
