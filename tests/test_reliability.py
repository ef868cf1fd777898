"""Faults around a run, each caused: a full disk, images that go, NNI's manager dead under a trial."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
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
