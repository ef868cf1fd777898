"""What candidates are judged by."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

import acla_nas
from acla_nas.data import list_images
from acla_nas.errors import AclaError
from acla_nas.evaluation import evaluate
from acla_nas.scoring import InheritedWeights, ShortTraining, load_supernet
from acla_nas.strategies import RandomSearch
from acla_nas.tasks import SuperResolution

SAMPLE = {"insert/1": True, "insert/2": False, "keys": 16}
TASK = SuperResolution(2)


def make_space(seed=0):
    torch.manual_seed(seed)
    return acla_nas.search_spaces.edsr(scale=2, num_blocks=2, num_channels=8)


def short_training(images, **recipe):
    recipe = {"epochs": 2, "steps_per_epoch": 2, "batch_size": 1, "patch_size": 12, **recipe}
    return ShortTraining(TASK, train=str(images), validation=str(images), **recipe)


def test_inherited_weights_score_the_network_as_it_is(images):
    network = make_space().freeze(SAMPLE)
    before = {name: w.clone() for name, w in network.state_dict().items()}
    paths = list_images(str(images), "test")
    assert InheritedWeights(TASK, paths)(network) == evaluate(network, TASK, paths).psnr
    assert all(torch.equal(w, before[name]) for name, w in network.state_dict().items())


def test_a_supernet_is_loaded_from_a_file_or_a_run_folder(images, tmp_path):
    trained, fresh = make_space(1), make_space(2)
    save_file(trained.state_dict(), tmp_path / "supernet.safetensors")
    scorer = InheritedWeights(TASK, list_images(str(images), "test"))
    for given in (tmp_path, tmp_path / "supernet.safetensors"):
        space = make_space(2)
        assert scorer(space.freeze(SAMPLE)) != scorer(trained.freeze(SAMPLE))
        load_supernet(space, given)
        assert scorer(space.freeze(SAMPLE)) == scorer(trained.freeze(SAMPLE))
    assert scorer(fresh.freeze(SAMPLE)) != scorer(trained.freeze(SAMPLE))


def test_a_supernet_that_does_not_fit_is_an_error(tmp_path):
    with pytest.raises(AclaError, match=r"cannot read weights .*supernet\.safetensors"):
        load_supernet(make_space(), tmp_path)
    larger = acla_nas.search_spaces.edsr(scale=2, num_blocks=2, num_channels=12)
    save_file(larger.state_dict(), tmp_path / "supernet.safetensors")
    with pytest.raises(AclaError, match="another architecture"):
        load_supernet(make_space(), tmp_path)


def test_short_training_trains_in_place_and_always_the_same(images):
    scorer, space = short_training(images), make_space()
    networks = [space.freeze(SAMPLE) for _ in range(2)]
    scores = [scorer(network) for network in networks]
    assert scores[0] == scores[1]
    first, second = (network.state_dict() for network in networks)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(w, space.freeze(SAMPLE).state_dict()[n]) for n, w in first.items())
    assert scores[0] == evaluate(networks[0], TASK, list_images(str(images), "test")).psnr


def test_a_search_by_short_training_returns_trained_weights(images, tmp_path):
    space, scorer = make_space(), short_training(images)
    run = RandomSearch(2).run(space, scorer, folder=tmp_path, show=False)
    model = acla_nas.export(run.best.arch, weights=run.weights)
    assert evaluate(model, TASK, list_images(str(images), "test")).psnr == pytest.approx(run.best.quality)


def test_a_search_does_not_go_on_with_another_scorer_or_other_weights(images, tmp_path):
    RandomSearch(2).run(make_space(), short_training(images), folder=tmp_path, show=False)
    with pytest.raises(AclaError, match=r"another search, whose scorer"):
        RandomSearch(2).run(
            make_space(), short_training(images, steps_per_epoch=1), folder=tmp_path, show=False
        )
    with pytest.raises(AclaError, match=r"another search, whose weights"):
        RandomSearch(2).run(make_space(1), short_training(images), folder=tmp_path, show=False)


def test_no_images_is_an_error():
    with pytest.raises(AclaError, match="no images"):
        InheritedWeights(TASK, [])
