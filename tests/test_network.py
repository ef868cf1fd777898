"""CrossLayerNetwork: hooks on an untouched backbone, positions, copies, and PyTorch's compilers."""

from __future__ import annotations

import copy
import functools
import io
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import random_weights
import torch
import torch.nn.functional as F
from torch import nn

from acla_nas.attention import Feature
from acla_nas.errors import AclaError
from acla_nas.network import CrossLayerNetwork, copy_backbone, find_positions, trace_features


class UNet(nn.Module):
    """Features of differing channels and resolution."""

    def __init__(self):
        super().__init__()
        self.head = nn.Conv2d(3, 4, 3, padding=1)
        self.down = nn.Conv2d(4, 6, 3, stride=2, padding=1)
        self.middle = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1), nn.ReLU())
        self.up = nn.ConvTranspose2d(6, 5, 2, stride=2)
        self.tail = nn.Conv2d(9, 3, 3, padding=1)

    def forward(self, x, *, boost=1.0):
        head = self.head(x)
        up = self.up(self.middle(F.relu(self.down(head))))
        return boost * self.tail(torch.cat((head, up), 1))


U_PATHS = {1: "head", 2: "down", 3: "middle", 4: "up"}
randomize = functools.partial(random_weights.randomize, scale=0.3)


def unet_network(attention="acla", **options):
    network = CrossLayerNetwork.dense(
        UNet(), U_PATHS, attention, num_keys=3, input_shape=(3, 8, 8), **options
    )
    return randomize(network).eval()


def chain(count=3, channels=4):
    layers = [nn.Conv2d(3 if i == 0 else channels, channels, 3, padding=1) for i in range(count)]
    return nn.Sequential(*layers, nn.Conv2d(channels, 3, 1))


def chain_network(count=3, attention="acla", seed=0):
    paths = {j: str(j - 1) for j in range(1, count + 1)}
    network = CrossLayerNetwork.dense(chain(count), paths, attention, num_keys=2, input_shape=(3, 8, 8))
    return randomize(network, seed=seed).eval()


def image(height=8, width=8, batch=1, seed=0):
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(seed))


# -- forward ----------------------------------------------------------------------------------------


def test_gates_of_false_leave_the_backbone_as_it_is():
    network = unet_network()
    bare = randomize(UNet(), seed=1)
    bare.load_state_dict(network.backbone.state_dict())
    x = image()
    assert torch.equal(network(x, gates={j: False for j in U_PATHS}), bare(x))
    assert not torch.allclose(network(x), bare(x), atol=1e-3)


def test_the_backbone_called_by_itself_is_bare():
    network = unet_network()
    bare = copy_backbone(network.backbone)
    x = image()
    network(x)
    assert torch.equal(network.backbone(x), bare(x))


def test_two_networks_on_one_backbone_do_not_see_each_other():
    backbone = randomize(chain())
    first = randomize(CrossLayerNetwork.dense(backbone, {1: "0"}, "cla", num_keys=2, input_shape=(3, 8, 8)))
    alone = first(image())
    second = CrossLayerNetwork.dense(backbone, {1: "1"}, "cla", num_keys=2, input_shape=(3, 8, 8))
    nn.init.ones_(second.attention["1"].out.weight)
    assert torch.equal(first(image()), alone)
    assert not torch.equal(second(image()), alone)


def test_a_fresh_network_computes_what_its_backbone_computes():
    torch.manual_seed(0)
    backbone = UNet()
    expected = backbone(image())
    network = CrossLayerNetwork.dense(backbone, U_PATHS, "acla", num_keys=3, input_shape=(3, 8, 8))
    assert torch.equal(network(image()), expected)


def test_keywords_and_outputs_pass_through():
    network = unet_network()
    torch.testing.assert_close(network(image(), boost=2.0), 2 * network(image()))


def test_features_are_read_before_attention_and_updates_are_added_after():
    network = chain_network(2, "cla")
    x = image()
    layers = network.backbone
    x1 = layers[0](x)
    z1 = x1 + network.attention["1"](x1, {"1": x1})
    x2 = layers[1](z1)
    z2 = x2 + network.attention["2"](x2, {"1": x1, "2": x2})
    torch.testing.assert_close(network(x), layers[2](z2))


@pytest.mark.parametrize("attention", ["acla", "acla+se"])
def test_who_looks_at_an_update_sees_the_update_with_and_without_gradients(attention):
    network = chain_network(attention=attention).eval()
    expected = network(image())
    seen = []
    handle = network.attention["3"].register_forward_hook(lambda *arguments: seen.append(arguments[-1]))
    network(image())
    with torch.no_grad():
        with_hook = network(image())
        handle.remove()
        without_hook = network(image())
    for found in (with_hook, without_hook):
        torch.testing.assert_close(found, expected)
    torch.testing.assert_close(seen[1], seen[0].detach())
    assert seen[0].abs().max() > 0


def test_a_module_does_not_refer_to_positions_that_are_off():
    network = chain_network(2, "cla")
    x = image()
    layers = network.backbone
    x2 = layers[1](layers[0](x))
    z2 = x2 + network.attention["2"](x2, {"2": x2})
    torch.testing.assert_close(network(x, gates={1: False}), layers[2](z2))


def test_nothing_is_kept_after_a_pass_even_a_failed_one():
    network = chain_network()
    network(image(), gates={1: torch.ones(())}, key_gates=torch.ones(2))
    with pytest.raises(RuntimeError):
        network(torch.rand(1, 5, 8, 8))
    assert network._current.running is None
    assert network._backward.running() is None


def test_threads_may_share_a_network():
    network = chain_network()
    images = [image(8 + i, 12, seed=i) for i in range(8)]

    @torch.no_grad()
    def run(i):
        return network(images[i % 8])

    expected = [run(i) for i in range(8)]
    with ThreadPoolExecutor(4) as pool:
        for i, found in enumerate(pool.map(run, range(200))):
            assert torch.equal(found, expected[i % 8])


def test_positions_run_in_another_order_refer_to_those_before_them_alone():
    class Reversible(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.ModuleList(nn.Conv2d(3, 3, 1) for _ in range(2))

        def forward(self, x, backwards=False):
            for layer in reversed(self.body) if backwards else self.body:
                x = layer(x)
            return x

    paths = {1: "body.0", 2: "body.1"}
    network = CrossLayerNetwork.dense(Reversible(), paths, "cla", num_keys=2, input_shape=(3, 8, 8))
    first, second = randomize(network).backbone.body
    x2 = second(image())
    x1 = first(x2 + network.attention["2"](x2, {"2": x2}))
    z1 = x1 + network.attention["1"](x1, {"1": x1})
    torch.testing.assert_close(network(image(), backwards=True), z1)


def test_gradient_of_the_gates_is_that_of_finite_differences():
    network = chain_network(3, "cla").double()
    x = image().double()
    state = {1: 1.0, 2: 0.0, 3: 1.0}

    def loss(values):
        return (network(x, gates=values) ** 2).sum()

    gates = {j: torch.tensor(s, dtype=torch.float64, requires_grad=True) for j, s in state.items()}
    gradients = torch.autograd.grad(loss(gates), list(gates.values()))
    for j, gradient in zip(state, gradients):
        step = 1e-6
        up, down = (
            loss({l: torch.tensor(s + d * (l == j), dtype=torch.float64) for l, s in state.items()}).item()
            for d in (step, -step)
        )
        assert gradient.item() == pytest.approx((up - down) / (2 * step), rel=1e-4)
        assert gradient != 0


def test_references_of_other_channels_and_resolution_run_forward_and_backward():
    network = unet_network()
    network.train()
    torch.manual_seed(0)
    x = image(8, 12, batch=2).requires_grad_()
    out = network(x)
    assert out.shape == (2, 3, 8, 12)
    (out**2).sum().backward()
    unreached = [n for n, p in network.named_parameters() if p.grad is None or p.grad.abs().max() == 0]
    assert not unreached
    assert torch.isfinite(x.grad).all()
    assert network.attention["4"].references["2"].value.weight.shape == (5, 6, 1, 1)


def test_wrong_attention_and_options():
    with pytest.raises(AclaError, match="unknown attention 'acl'"):
        CrossLayerNetwork.dense(chain(), {1: "0"}, "acl")
    with pytest.raises(AclaError, match=r"does not take these options.*colour"):
        CrossLayerNetwork.dense(chain(), {1: "0"}, "acla", colour="red")


# -- select -----------------------------------------------------------------------------------------


def test_select_keeps_weights_and_shares_nothing():
    network = chain_network()
    selected = network.select([1, 3])
    assert selected.positions == (1, 3)
    assert selected.paths == {1: "0", 3: "2"}
    torch.testing.assert_close(selected(image()), network(image(), gates={2: False}))
    shared = {id(p) for p in network.parameters()} & {id(p) for p in selected.parameters()}
    assert not shared
    own = network.state_dict()
    for name, value in selected.state_dict().items():
        assert torch.equal(value, own[name]), name


def test_select_of_nothing_is_the_backbone():
    network = chain_network()
    assert torch.equal(network.select([])(image()), copy_backbone(network.backbone)(image()))


# -- positions --------------------------------------------------------------------------------------


def nested():
    return nn.ModuleDict(
        {
            "stem": nn.Conv2d(3, 4, 1),
            "body": nn.Sequential(*(nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU()) for _ in range(11))),
        }
    )


def test_a_glob_names_children_in_the_order_of_the_tree_and_does_not_cross_dots():
    assert find_positions(nested(), "body.*") == tuple(f"body.{i}" for i in range(11))
    assert find_positions(nested(), "body.*.0") == tuple(f"body.{i}.0" for i in range(11))
    assert find_positions(nested(), "*") == ("stem", "body")
    assert find_positions(nested(), "body.1?") == ("body.10",)


def test_a_list_is_kept_in_its_order():
    assert find_positions(nested(), ["body.3", "stem"]) == ("body.3", "stem")


@pytest.mark.parametrize(
    ("positions", "message"),
    [
        ("bodi.*", "unknown positions 'bodi.*'"),
        ("body", None),
        (["stem", "bdy.1"], "unknown position 'bdy.1'; did you mean 'body.1'"),
        ([], "at least one"),
        (["stem", "stem"], "different module paths"),
    ],
)
def test_wrong_positions(positions, message):
    if message is None:
        assert find_positions(nested(), positions) == (positions,)
        return
    with pytest.raises(AclaError, match=message.replace("*", r"\*")):
        find_positions(nested(), positions)


def test_trace_features_gives_sizes_without_touching_the_backbone():
    backbone = UNet().train()
    features = trace_features(backbone, U_PATHS, (3, 16, 12))
    assert features == {
        1: Feature(4, 16, 12),
        2: Feature(6, 8, 6),
        3: Feature(6, 8, 6),
        4: Feature(5, 16, 12),
    }
    assert features[2].pixels == 48
    assert backbone.training
    assert next(backbone.parameters()).device.type == "cpu"
    assert not any(m._forward_hooks for m in backbone.modules())


class Odd(nn.Module):
    def __init__(self):
        super().__init__()
        self.shared, self.unused = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
        self.first, self.second = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
        self.flat, self.pair = nn.Flatten(), nn.MaxPool2d(2, return_indices=True)

    def forward(self, x):
        x = self.shared(self.shared(self.second(self.first(x))))
        self.flat(x)
        self.pair(x)
        return x


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (["shared"], "'shared' is run 2 times .* not once"),
        (["first", "unused"], "'unused' is run 0 times"),
        (["second", "first"], r"order in which they are run: \['first', 'second'\]"),
        (["first", "flat"], r"'flat' returns a tensor \(1, 192\), not a feature such as \(B, C, H, W\)"),
        (
            ["unused", "first", "flat", "second"],
            r"2 of 4 .*'unused'.*; 'flat'.*positions=\['first', 'second'\]",
        ),
    ],
)
def test_positions_that_cannot_be_traced(paths, message):
    with pytest.raises(AclaError, match=message):
        trace_features(Odd(), dict(enumerate(paths, 1)), (3, 8, 8))


# -- copies -----------------------------------------------------------------------------------------


def copy_by_pickle(network):
    return pickle.loads(pickle.dumps(network))


def copy_by_torch_save(network):
    buffer = io.BytesIO()
    torch.save(network, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.mark.parametrize("make_copy", [copy.deepcopy, copy_by_pickle, copy_by_torch_save])
def test_a_copy_is_equal_and_independent(make_copy):
    network = chain_network()
    expected = network(image())
    copied = make_copy(network)
    assert torch.equal(copied(image()), expected)
    hooks = [h for m in copied.backbone.modules() for h in m._forward_hooks.values()]
    assert len(hooks) == 3
    assert all(h.func.__self__ is copied for h in hooks)

    with torch.no_grad():
        for module in copied.attention.values():
            module.out.weight.add_(1.0)
    assert torch.equal(network(image()), expected)
    changed = copied(image())
    assert not torch.allclose(changed, expected, atol=1e-3)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    assert torch.equal(copied(image()), changed)


def replica(module):
    """What nn.DataParallel runs: shallow copies of all modules, put together as the modules are."""
    copied = module._replicate_for_data_parallel()
    for name, child in module.named_children():
        setattr(copied, name, replica(child))
    for name, parameter in module._parameters.items():
        setattr(copied, name, parameter)
    return copied


@pytest.mark.parametrize("make_copy", [copy.copy, replica])
def test_a_shallow_copy_runs_its_attention(make_copy):
    network = chain_network()
    expected = network(image())
    copied = make_copy(network)
    assert torch.equal(copied(image()), expected)
    for module in copied.attention.values():
        module.out.weight = nn.Parameter(module.out.weight + 1)
    changed = copied(image())
    assert not torch.allclose(changed, expected, atol=1e-3)
    assert torch.equal(network(image()), changed if make_copy is copy.copy else expected)


def test_a_shallow_copy_runs_checkpointed_parts_again_with_their_attention():
    class Checkpointed(nn.Sequential):
        def forward(self, x):
            return torch.utils.checkpoint.checkpoint(super().forward, x, use_reentrant=False)

    layers = [nn.Conv2d(3, 3, 3, padding=1) for _ in range(2)]
    backbone = nn.Sequential(layers[0], Checkpointed(layers[1], nn.ReLU()))
    paths = {1: "0", 2: "1.0"}
    network = CrossLayerNetwork.dense(backbone, paths, "acla", num_keys=2, input_shape=(3, 8, 8))
    randomize(network).train()
    copied = copy.copy(network)
    gradients = []
    for model in (network, copied):
        network.zero_grad()
        model(image()).sum().backward()
        gradients.append([p.grad.clone() for p in network.parameters()])
    assert all(torch.equal(x, y) for x, y in zip(*gradients))


def test_a_network_with_attention_may_be_the_backbone_of_another():
    inner = chain_network()
    paths = {1: "backbone.0", 2: "backbone.1"}
    outer = CrossLayerNetwork.dense(inner, paths, "cla", num_keys=2, input_shape=(3, 8, 8))
    randomize(outer)
    assert torch.equal(outer(image(), gates={1: False, 2: False}), inner(image()))
    assert torch.equal(outer.select([], 2)(image()), inner(image()))
    assert torch.equal(outer.select([1, 2], 2)(image()), outer(image()))


def test_copy_backbone_leaves_no_hooks_of_a_network_and_keeps_the_users_own():
    calls = []
    backbone = chain()

    def mine(module, inputs, output):
        calls.append("mine")

    backbone[0].register_forward_hook(mine)
    network = CrossLayerNetwork.dense(backbone, {1: "0", 2: "1"}, "cla", num_keys=2, input_shape=(3, 8, 8))
    backbone[0].register_forward_hook(mine)
    before = [list(m._forward_hooks.items()) for m in backbone.modules()]
    assert len(before[1]) == 3
    calls.clear()

    copied = copy_backbone(backbone)
    assert [list(m._forward_hooks.items()) for m in backbone.modules()] == before
    assert [len(m._forward_hooks) for m in copied.modules()] == [0, 2, 0, 0, 0]
    assert torch.equal(copied(image()), network(image()))
    assert calls == ["mine"] * 4


def test_state_dict_round_trip():
    network, other = chain_network(seed=0), chain_network(seed=1)
    assert not torch.allclose(network(image()), other(image()))
    other.load_state_dict(network.state_dict())
    assert torch.equal(network(image()), other(image()))
    assert {n.split(".")[0] for n in network.state_dict()} == {"backbone", "attention"}


# -- compilers --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def derived():
    network = unet_network().select([1, 3], 2)
    x = image(8, 12)
    with torch.no_grad():
        expected = network(x)
        assert not torch.allclose(network(x, gates={1: False, 3: False}), expected, atol=1e-2)
    return network, x, expected


def test_torch_export_agrees(derived):
    network, x, expected = derived
    exported = torch.export.export(network, (x,), strict=False).module()
    assert (exported(x) - expected).abs().max() <= 1e-5


def test_torch_compile_agrees_for_several_references(derived):
    network, x, expected = derived
    torch._dynamo.reset()
    with torch.no_grad():
        assert (torch.compile(network, backend="eager")(x) - expected).abs().max() <= 1e-5


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_jit_trace_agrees_at_other_sizes_too(derived):
    network, x, expected = derived
    traced = torch.jit.trace(network, (x,))
    assert (traced(x) - expected).abs().max() <= 1e-5
    other = image(12, 8, batch=2)
    assert (traced(other) - network(other)).abs().max() <= 1e-5


def test_torch_compile_agrees_with_its_gradient():
    network, x = chain_network(2).select([2]), image()
    torch._dynamo.reset()
    out = torch.compile(network, backend="aot_eager")(x)
    assert (out - network(x)).abs().max() <= 1e-5
    assert not torch.allclose(network(x, gates={2: False}), out, atol=1e-2)
    parameters = list(network.parameters())
    gradients = torch.autograd.grad((out**2).sum(), parameters)
    for actual, wanted in zip(gradients, torch.autograd.grad((network(x) ** 2).sum(), parameters)):
        assert (actual - wanted).norm() <= 1e-5 * wanted.norm() + 1e-7
