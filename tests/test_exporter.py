"""export: a derived network as a plain module, from any form of architecture and weights."""

from __future__ import annotations

import functools
import os
import subprocess
import sys

import pytest
import random_weights
import torch
from safetensors.torch import save_file
from torch import nn

import acla_nas
from acla_nas import CrossLayerSpace, export, search_spaces
from acla_nas.errors import AclaError
from acla_nas.exporter import load_weights, save_model
from acla_nas.network import CrossLayerNetwork

SAMPLE = {"insert/1": True, "insert/2": False, "insert/3": True, "keys": 4}
randomize = functools.partial(random_weights.randomize, scale=0.15)


def make_space(scale=2, num_keys=(4, 6), **options):
    space = search_spaces.edsr(scale, 3, 8, image_range=1.0, num_keys=num_keys, **options)
    return randomize(space).eval()


def make_backbone(channels=4):
    return nn.Sequential(
        nn.Conv2d(3, channels, 3, padding=1), nn.Conv2d(channels, channels, 1), nn.Conv2d(channels, 3, 1)
    )


def image():
    return torch.rand(1, 3, 7, 6, generator=torch.Generator().manual_seed(5))


def test_from_an_arch_a_dict_and_a_path(tmp_path):
    space = make_space()
    arch = space.arch(SAMPLE)
    path = arch.save(tmp_path / "arch.json")
    expected = space.freeze(SAMPLE)(image())
    for source in (arch, arch.model_dump(), arch.model_dump(mode="json"), path, str(path)):
        model = export(source, weights=space.state_dict()).eval()
        torch.testing.assert_close(model(image()), expected, rtol=0, atol=1e-5)
    assert type(model) is CrossLayerNetwork
    assert not torch.allclose(export(arch).eval()(image()), expected, atol=1e-3)


def test_weights_of_the_derived_network_and_of_the_supernet():
    space = make_space()
    derived = space.freeze(SAMPLE)
    for weights in (derived.state_dict(), space.state_dict()):
        model = export(space.arch(SAMPLE), weights=weights).eval()
        assert torch.equal(model(image()), derived(image()))


def test_from_a_safetensors_file(tmp_path):
    space = make_space()
    derived = space.freeze(SAMPLE)
    for name, module in (("derived", derived), ("supernet", space)):
        file = tmp_path / f"{name}.safetensors"
        save_file(module.state_dict(), file)
        for weights in (file, str(file)):
            model = export(space.arch(SAMPLE), weights=weights).eval()
            assert torch.equal(model(image()), derived(image()))


def test_the_weights_are_copied():
    space = make_space()
    weights = space.freeze(SAMPLE).state_dict()
    before = {name: value.clone() for name, value in weights.items()}
    randomize(export(space.arch(SAMPLE), weights=weights), seed=9)
    assert all(torch.equal(value, before[name]) for name, value in weights.items())


def test_a_backbone_that_is_given_is_left_untouched():
    backbone = randomize(make_backbone(), seed=2)
    bare = backbone(image())
    space = randomize(CrossLayerSpace(make_backbone(), ["0", "1"], num_keys=2))
    sample = {"insert/1": True, "insert/2": True, "keys": 2}
    arch = space.arch(sample)
    model = export(arch, backbone=backbone, weights=space.state_dict()).eval()
    torch.testing.assert_close(model(image()), space.freeze(sample).eval()(image()), rtol=0, atol=1e-5)
    assert not any(m._forward_hooks for m in backbone.modules())
    assert torch.equal(backbone(image()), bare)
    randomize(model, seed=7)
    assert torch.equal(backbone(image()), bare)
    assert not {id(p) for p in model.parameters()} & {id(p) for p in backbone.parameters()}


def test_a_backbone_keeps_its_own_weights_where_none_are_given():
    backbone = randomize(make_backbone(), seed=2)
    space = CrossLayerSpace(make_backbone(), ["0", "1"], num_keys=2)
    arch = space.arch({"insert/1": True, "insert/2": False, "keys": 2})
    assert torch.equal(export(arch, backbone=backbone)(image()), backbone(image()))


def test_a_callable_backbone_and_the_backbone_of_a_space():
    space = randomize(CrossLayerSpace(make_backbone, ["0", "1"], num_keys=2)).eval()
    sample = {"insert/1": False, "insert/2": True, "keys": 2}
    expected = space.freeze(sample)(image())
    for backbone in (make_backbone, space.network.backbone):
        model = export(space.arch(sample), backbone=backbone, weights=space.state_dict()).eval()
        assert torch.equal(model(image()), expected)
        assert sum(len(m._forward_hooks) for m in model.modules()) == 1


def test_a_backbone_with_other_inputs_than_rgb_is_built_again(monkeypatch):
    registry = search_spaces.registry.REGISTRY
    monkeypatch.setattr(registry, "entries", dict(registry.entries))

    @search_spaces.register
    def grey(channels=4, **attention):
        return CrossLayerSpace(nn.Sequential(nn.Conv2d(1, channels, 1)), ["0"], **attention)

    space = randomize(search_spaces.get("grey")(channels=5, input_shape=(1, 16, 16), num_keys=2)).eval()
    sample = {"insert/1": True, "keys": 2}
    model = export(space.arch(sample).model_dump(mode="json"), weights=space.state_dict()).eval()
    x = torch.rand(1, 1, 6, 6)
    assert torch.equal(model(x), space.freeze(sample)(x))


def test_nothing_inserted_is_the_bare_backbone():
    space = make_space()
    nothing = {**SAMPLE, "insert/1": False, "insert/3": False}
    model = export(space.arch(nothing), weights=space.state_dict()).eval()
    assert len(model.attention) == 0
    assert torch.equal(model(image()), space(image()))


def test_an_unregistered_backbone_must_be_given():
    arch = CrossLayerSpace(make_backbone(), ["0"]).arch({"insert/1": True, "keys": 16})
    with pytest.raises(AclaError, match=r"backbone 'Sequential'.*export\(arch, backbone=\.\.\.\)"):
        export(arch)


def test_a_backbone_without_the_position():
    arch = make_space().arch(SAMPLE)
    with pytest.raises(AclaError, match=r"no module 'body.0', position 1"):
        export(arch, backbone=make_backbone())


def test_an_unknown_search_space_and_unknown_options():
    data = make_space().arch(SAMPLE).model_dump()
    with pytest.raises(AclaError, match="unknown search space 'edrs'; did you mean 'edsr'"):
        export({**data, "space": {"name": "edrs", "options": {}}})
    with pytest.raises(AclaError, match="colour"):
        export({**data, "space": {"name": "edsr", "options": {"colour": "red"}}})
    with pytest.raises(AclaError, match="unknown attention 'alca'"):
        export({**data, "attention": {"name": "alca", "num_keys": 4}})


@pytest.mark.parametrize("supernet", [False, True])
def test_weights_of_another_shape_are_named_with_both_shapes(supernet):
    space = make_space()
    module = space if supernet else space.freeze(SAMPLE)
    weights = dict(module.state_dict())
    name = "attention.3.references.1.value.weight"
    weights["network." * supernet + name] = torch.zeros(9, 7, 1, 1)
    with pytest.raises(AclaError, match=rf"{name}' has shape \(9, 7, 1, 1\), .* needs \(8, 8, 1, 1\)"):
        export(space.arch(SAMPLE), weights=weights)


def test_weights_of_a_supernet_of_another_scale_do_not_fit():
    with pytest.raises(AclaError, match=r"backbone.tail.0.weight' has shape \(72, .* needs \(32, "):
        export(make_space(scale=2).arch(SAMPLE), weights=make_space(scale=3).state_dict())


def test_weights_of_a_supernet_with_fewer_keys_do_not_fit():
    with pytest.raises(AclaError, match=r"attention.1.references.1.offset.weight' has shape \(4, "):
        export(make_space().arch(SAMPLE), weights=make_space(num_keys=2).state_dict())


@pytest.mark.parametrize("supernet", [False, True])
def test_a_missing_weight_is_named(supernet):
    space = make_space()
    weights = dict((space if supernet else space.freeze(SAMPLE)).state_dict())
    del weights["network." * supernet + "attention.3.out.weight"]
    with pytest.raises(AclaError, match=r"no 'attention\.3\.out\.weight'"):
        export(space.arch(SAMPLE), weights=weights)


def test_weights_that_do_not_fit_leave_the_network_as_it_was():
    space = make_space()
    network = space.freeze(SAMPLE)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    weights = {name: value + 1 for name, value in before.items()}
    del weights["attention.3.out.weight"]
    with pytest.raises(AclaError):
        load_weights(network, weights)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize("wrapper", ["module.", "_orig_mod."])
def test_weights_of_a_wrapped_network(wrapper):
    space = randomize(make_space())
    arch = space.arch({"insert/1": True, "insert/2": False, "insert/3": True, "keys": 4})
    model = export(arch, weights=space.state_dict())
    weights = {wrapper + name: weight for name, weight in model.state_dict().items()}
    assert torch.equal(export(arch, weights=weights)(image()), model(image()))


def test_tied_weights_are_saved(tmp_path):
    def tied():
        backbone = make_backbone(channels=3)
        backbone[1].weight = backbone[2].weight
        return backbone

    space = randomize(CrossLayerSpace(tied, ["0", "1"], num_keys=2))
    arch = space.arch({"insert/1": True, "insert/2": True, "keys": 2})
    model = export(arch, backbone=tied, weights=space.state_dict())
    folder = save_model(arch, model.state_dict(), tmp_path)
    again = export(folder / "arch.json", backbone=tied, weights=folder / "weights.safetensors")
    assert torch.equal(again(image()), model(image()))


def test_weights_files_that_cannot_be_read(tmp_path):
    arch = make_space().arch(SAMPLE)
    wrong = tmp_path / "weights.pt"
    torch.save({"a": torch.zeros(1)}, wrong)
    for file in (wrong, tmp_path / "absent.safetensors"):
        with pytest.raises(AclaError, match=rf"cannot read weights .*{file.name}.*give a .safetensors file"):
            export(arch, weights=file)


LOAD = """
import sys, torch
folder = sys.argv[1]
model = torch.load(folder + "/model.pt", weights_only=False)
image, expected = torch.load(folder + "/pair.pt")
with torch.no_grad():
    assert torch.equal(model(image), expected)
present = {name.split(".")[0] for name in sys.modules}
print(sorted({"nni", "pytorch_lightning", "lightning", "optuna"} & present))
"""


def test_a_pickled_model_runs_in_a_process_without_nni_and_lightning(tmp_path):
    space = make_space()
    model = export(space.arch(SAMPLE), weights=space.state_dict()).eval()
    torch.save(model, tmp_path / "model.pt")
    with torch.no_grad():
        torch.save((image(), model(image())), tmp_path / "pair.pt")
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_export_is_found_in_the_package():
    assert acla_nas.export is export
