"""Tasks beside super-resolution through the runs behind the commands, a user's own among them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from acla_nas import experiment, formats
from acla_nas.config import Config, load_config, parse_config
from acla_nas.errors import AclaError, AclaWarning

OWN = '''
from acla_nas.tasks import Task


class Greying(Task):
    """Restores colour: one channel in, three out."""

    name, baseline_name = "greying", "grey"
    in_channels = 1

    def degrade(self, hq, rng):
        return hq[..., 1:2]

    def baseline(self, lq):
        return lq.repeat(3, axis=2)
'''


def tiny(images: Path, run: Path, task: dict[str, Any], **keys: Any) -> Config:
    return parse_config(
        {
            "task": task,
            "space": {"name": "edsr", "num_blocks": 2, "num_channels": 4, "num_keys": 2, **keys},
            "strategy": {"name": "two_stage", "epochs": [1, 1], "cost_weight": 0.1, "initial_alpha": 5.0},
            "data": {
                **{split: str(images) for split in ("train", "validation", "test")},
                **{"patch_size": 8, "batch_size": 2},
            },
            "search": {"steps_per_epoch": 2},
            "train": {"epochs": 1, "steps_per_epoch": 2},
            "device": "cpu",
            "run": str(run),
        },
        "test",
    )


@pytest.mark.parametrize(
    ("task", "channels"),
    [
        ("denoising", (3, 3)),
        pytest.param("jpeg", (1, 1), marks=pytest.mark.slow),
        pytest.param("demosaicing", (3, 3), marks=pytest.mark.slow),
        pytest.param("own", (1, 3), marks=pytest.mark.slow),
    ],
)
def test_from_search_to_export(
    task: str, channels: tuple[int, int], images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    Path("greying_of_my_own.py").write_text(OWN)
    name = "greying_of_my_own:Greying" if task == "own" else task
    config = tiny(images, tmp_path / "found", {"name": name})
    result = experiment.run_search(config)
    assert result.arch.positions == (1, 2)
    assert load_config(tmp_path / "found" / "config.yml") == config
    derived = config.model_copy(update={"arch": "found/arch.json", "run": "derived"})
    scores = experiment.run_training(derived)
    rows = dict(experiment.run_evaluation(config.model_copy(update={"models": ["derived"]})))
    assert list(rows) == [experiment.make_task(config).baseline_name, "derived"]
    assert rows["derived"] == scores
    models = config.model_copy(update={"models": ["derived"]})
    ((folder, files),) = experiment.run_export(models, ["pt2", "python"])
    assert (folder, list(files)) == ("derived", ["pt2", "python"])
    x = torch.rand(1, channels[0], 9, 12)
    network, descriptor = formats.load(files["pt2"].path)
    y = network(x)
    assert descriptor.task is not None and descriptor.task["name"] == experiment.make_task(config).name
    assert descriptor.training["by"] == "training" and descriptor.training["patch_size"] == 8
    assert y.shape == (1, channels[1], 9, 12)
    torch.testing.assert_close(y, experiment.load_model("derived").eval()(x), rtol=0, atol=1e-5)


def test_the_space_takes_scale_and_channels_from_the_task(images: Path, tmp_path: Path) -> None:
    space = experiment.make_space(tiny(images, tmp_path, {"name": "jpeg"}))
    options = space.source["options"]
    assert [options[name] for name in ("scale", "in_channels", "out_channels")] == [1, 1, 1]
    with pytest.raises(AclaError, match=r"space\.in_channels is 3, but task\.in_channels is 1: leave"):
        experiment.make_space(tiny(images, tmp_path, {"name": "jpeg"}, in_channels=3))


def test_a_backbone_that_cannot_keep_the_size(images: Path, tmp_path: Path) -> None:
    config = tiny(images, tmp_path, {"name": "denoising"}, name="rcan")
    with pytest.raises(AclaError, match="scale 1 is not one of RCAN's: use 2, 3 or 4"):
        experiment.make_space(config)


def test_a_network_for_other_images(images: Path, tmp_path: Path) -> None:
    jpeg, colour = (tiny(images, tmp_path, {"name": name}) for name in ("jpeg", "denoising"))
    network = experiment.make_space(colour)
    with pytest.raises(AclaError, match=r"network mine does not take the task's images, of 1 channels \(.*"):
        experiment.check_scale(network, experiment.make_task(jpeg), "mine")
    assert network.training
    repeated = torch.nn.Conv2d(1, 3, 1)
    with pytest.raises(AclaError, match="mine returns images of 3 channels, the task has 1: set task"):
        experiment.check_scale(repeated, experiment.make_task(jpeg), "mine")


def test_a_network_of_another_task_of_the_same_shape(images: Path, tmp_path: Path) -> None:
    trained = tiny(images, tmp_path / "denoiser", {"name": "denoising", "sigma": 30})
    experiment.run_training(trained)
    other = tiny(images, tmp_path / "other", {"name": "demosaicing"})
    with pytest.raises(AclaError, match=r"denoiser is for the task denoising, but task\.name is demosaicing"):
        next(experiment.run_evaluation(other.model_copy(update={"models": [trained.run]})))
    louder = tiny(images, tmp_path / "other", {"name": "denoising", "sigma": 50})
    with pytest.warns(AclaWarning, match=r"is for denoising with {'sigma': 30}, not {'sigma': 50}"):
        next(experiment.run_evaluation(louder.model_copy(update={"models": [trained.run]})))
