"""Faults around a run, each caused: a full disk, images that go, NNI's manager dead under a trial."""

from __future__ import annotations

import json
import os
import platform
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from test_experiment import tiny

from acla_nas import experiment
from acla_nas.errors import AclaError, AclaWarning
from acla_nas.nni_nas import nni
from acla_nas.training.restoration import RestorationModule


def at_step(monkeypatch: pytest.MonkeyPatch, number: int, do: Callable[[], Any]) -> None:
    """Do something before that step of a training."""
    step, steps = RestorationModule.training_step, []

    def training_step(module: Any, *arguments: Any) -> torch.Tensor:
        steps.append(1)
        if len(steps) == number:
            do()
        return step(module, *arguments)

    monkeypatch.setattr(RestorationModule, "training_step", training_step)


def ends_as_without(config: Any, whole: Any) -> None:
    """Go on with a run, and compare it with one without a fault."""
    experiment.run_training(config)
    experiment.run_training(whole)
    weights, expected = (load_file(Path(c.run, "weights.safetensors")) for c in (config, whole))
    assert all(torch.equal(weights[name], expected[name]) for name in expected)


def test_a_full_disk(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system lets no file grow above some size, from the second epoch on."""
    config = tiny(images, tmp_path / "run")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    limit = (8_000, before[1])
    at_step(monkeypatch, 3, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit))
    try:
        with pytest.raises(AclaError, match=r"cannot write .*training\.ckpt: File too large; mend that"):
            experiment.run_training(config)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    left = {path.name for path in (tmp_path / "run").iterdir()}
    assert "training.ckpt" in left and not any(name.endswith(".partial") for name in left)
    monkeypatch.undo()
    ends_as_without(config, tiny(images, tmp_path / "whole"))


@pytest.mark.parametrize("how", ["gone", "cut in half"])
def test_a_validation_image_goes_while_training(
    how: str, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(images, tmp_path / "images")
    content = (folder / "b.png").read_bytes()

    def spoil() -> None:
        (folder / "b.png").unlink()
        if how != "gone":
            (folder / "b.png").write_bytes(content[: len(content) // 2])

    config = tiny(images, tmp_path / "run", data={"validation": str(folder)})
    at_step(monkeypatch, 3, spoil)
    with pytest.raises(AclaError, match=r"cannot read image .*b\.png: .*; remove or replace it"):
        experiment.run_training(config)
    assert (tmp_path / "run" / "training.ckpt").exists()
    (folder / "b.png").write_bytes(content)
    monkeypatch.undo()
    ends_as_without(config, tiny(images, tmp_path / "whole"))


def test_training_images_may_go_while_training(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are in memory."""
    folder = shutil.copytree(images, tmp_path / "images")
    config = tiny(images, tmp_path / "run", data={"train": str(folder)})
    at_step(monkeypatch, 3, lambda: shutil.rmtree(folder))
    ends_as_without(config, tiny(images, tmp_path / "whole"))


def test_a_trial_goes_on_where_nnis_manager_does_not_answer(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(_: float) -> None:
        raise ConnectionRefusedError(111, "Connection refused")

    monkeypatch.setattr(nni, "get_current_parameter", lambda: {"seed": 0})
    monkeypatch.setattr(nni, "report_intermediate_result", refused)
    monkeypatch.setattr(nni, "report_final_result", refused)
    with pytest.warns(AclaWarning, match="does not reach NNI's manager .*: the trial goes on"):
        experiment.run_training(tiny(images, tmp_path / "run"))
    assert (tmp_path / "run" / "weights.safetensors").exists()


@pytest.mark.slow
def test_a_trial_whose_manager_has_died(images: Path, tmp_path: Path) -> None:
    """A trial process as NNI's local service starts it, with its parameter, and with no manager at all."""
    config = tiny(images, tmp_path / "run").save(tmp_path / "config")
    system = tmp_path / "nni"
    system.mkdir()
    (system / "parameter.cfg").write_text(
        json.dumps({"parameter_id": 0, "parameter_source": "algorithm", "parameters": {"seed": 3}})
    )
    trial = {
        "NNI_PLATFORM": "local",
        "NNI_EXP_ID": "gone",
        "NNI_SYS_DIR": str(system),
        "NNI_TRIAL_JOB_ID": "abc",
        "NNI_OUTPUT_DIR": str(system / "output"),
        "NNI_TRIAL_SEQ_ID": "0",
        "NNI_CODE_DIR": str(tmp_path),
    }
    done = subprocess.run(
        [sys.executable, "-m", "acla_nas", "search", str(config)],
        env={**os.environ, **trial},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    run = tmp_path / "run" / "gone" / "trial_0"
    assert "seed: 3" in (run / "config.yml").read_text() and (run / "arch.json").exists()


# In namespaces of its own, with no network but the loopback, and whose processes end with the first.
ISOLATED = ["unshare", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]
OUTLIVE = """
ip link set lo up
nnictl create --config experiment.yml --port 18080
until [ -s run/*/trial_0/metrics.csv ]; do sleep 0.5; done
kill -9 $(pgrep -f '[m]ain.js --port 18080')
while pgrep -f '[a]cla_nas search' >/dev/null; do sleep 0.5; done
pgrep -f '[m]ain.js' || echo no manager is left
"""


def isolated() -> bool:
    tools = all(map(shutil.which, ("unshare", "ip", "pgrep", "nnictl")))
    return tools and subprocess.run([*ISOLATED, "ip", "link", "set", "lo", "up"]).returncode == 0


@pytest.mark.slow
@pytest.mark.skipif(platform.system() != "Linux", reason="needs namespaces of Linux")
def test_a_trial_outlives_its_manager(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An experiment of nnictl's, whose manager is killed while its trial searches."""
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if not isolated():
        pytest.skip("this user cannot make namespaces")
    config = tiny(images, tmp_path / "run", strategy={"epochs": [2, 8]}, search={"steps_per_epoch": 40})
    experiment_ = {
        "searchSpace": {"seed": {"_type": "choice", "_value": [5]}},
        "tuner": {"name": "Random"},
        "trialCommand": f"{sys.executable} -m acla_nas search {config.save(tmp_path / 'config')}",
        "trialCodeDirectory": str(tmp_path),
        "trialConcurrency": 1,
        "maxTrialNumber": 1,
        "trainingService": {"platform": "local"},
        "experimentWorkingDirectory": str(tmp_path / "nni"),
    }
    (tmp_path / "experiment.yml").write_text(yaml.safe_dump(experiment_))
    done = subprocess.run(
        [*ISOLATED, "bash", "-c", OUTLIVE],
        cwd=tmp_path,
        env={**os.environ, "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.stdout.endswith("no manager is left\n"), done.stdout + done.stderr
    (run,) = tmp_path.glob("run/*/trial_0")
    assert json.loads((run / "run.json").read_text())["commands"][-1]["end"] == "finished"
    assert "seed: 5" in (run / "config.yml").read_text() and len(rows(run)) == 10


def rows(run: Path) -> list[str]:
    return (run / "metrics.csv").read_text().splitlines()[1:]
