"""What TensorBoard is given of a search and of a training."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import IMAGES, EventAccumulator

import acla_nas
from acla_nas.strategies import TwoStage
from acla_nas.tasks import SuperResolution
from acla_nas.training import make_evaluator, train


def recipe(images, folder):
    return {
        **{"train": str(images), "validation": str(images), "run_dir": folder, "steps_per_epoch": 1},
        **{"batch_size": 2, "patch_size": 8, "progress": False, "device": "cpu"},
    }


def events(folder):
    return EventAccumulator(str(folder / "tensorboard"), {IMAGES: 0}).Reload()


@pytest.fixture
def space():
    return acla_nas.search_spaces.edsr(num_blocks=2, num_channels=4, num_keys=2)


def test_of_a_search(images, tmp_path, space):
    evaluator = make_evaluator(SuperResolution(2), **recipe(images, tmp_path))
    acla_nas.search(space, TwoStage(epochs=(1, 1)), evaluator, show=False)
    seen = events(tmp_path)
    assert seen.Tags()["images"] == ["probabilities", "degraded, restored, original"]
    assert [picture.step for picture in seen.Images("probabilities")] == [1, 2]
    scalars = {"train_loss", "val_psnr", "cost", "derived_cost", "open", "temperature"}
    assert scalars | {"probability/01", "probability/02"} <= set(seen.Tags()["scalars"])
    picture = np.array(
        Image.open(io.BytesIO(seen.Images("degraded, restored, original")[0].encoded_image_string))
    )
    assert picture.shape == (48, 3 * 32, 3)
    degraded, restored, original = np.split(picture.astype(float), 3, axis=1)
    assert np.abs(degraded - original).mean() < np.abs(restored - original).mean()  # untrained as it is
    assert (degraded[::2, ::2] == degraded[1::2, 1::2]).all()


def test_of_a_training(images, tmp_path, space):
    network = space.freeze({"insert/1": True, "insert/2": False, "keys": 2})
    train(network, make_evaluator(SuperResolution(2), epochs=11, **recipe(images, tmp_path)))
    seen = events(tmp_path)
    assert seen.Tags()["images"] == ["degraded, restored, original"]
    assert [picture.step for picture in seen.Images("degraded, restored, original")] == [2, 4, 6, 8, 10, 11]


def test_nothing_is_drawn_without_a_folder(images, tmp_path, space, monkeypatch):
    monkeypatch.chdir(tmp_path)
    evaluator = make_evaluator(SuperResolution(2), **{**recipe(images, None)})
    train(space.freeze({"insert/1": True, "insert/2": False, "keys": 2}), evaluator)
    assert not list(tmp_path.iterdir())
