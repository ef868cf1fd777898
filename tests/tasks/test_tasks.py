"""The tasks by name, and tasks of the user's own named MODULE:CLASS."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path

import numpy as np
import pytest

from acla_nas import tasks
from acla_nas.config import build
from acla_nas.data import image_to_tensor
from acla_nas.errors import AclaError
from acla_nas.tasks import Task

OWN = """
from acla_nas.tasks import Task


class Darkening(Task):
    name, baseline_name = "darkening", "multiplied"

    def __init__(self, factor: int = 2) -> None:
        self.factor = factor

    def degrade(self, hq, rng):
        return hq // self.factor

    def baseline(self, lq):
        return lq * self.factor


class Unfinished(Task):
    name, baseline_name = "unfinished", "nothing"


number = 3
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of a name of its own in the current folder."""
    module = f"own_tasks_{tmp_path.name}".replace("-", "_")
    (tmp_path / f"{module}.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return module


@pytest.mark.parametrize("name", ["demosaicing", "denoising", "jpeg", "super_resolution"])
def test_every_task_keeps_its_promises(name: str) -> None:
    task = tasks.get(name)
    assert type(task).name == name and name in tasks.names()
    image = np.random.default_rng(0).integers(0, 256, (33, 42, 3), dtype=np.uint8)
    hq = task.prepare(image)
    height, width = hq.shape[:2]
    assert hq.dtype == np.uint8 and hq.shape[2] == task.out_channels
    assert height % task.scale == width % task.scale == 0
    before = hq.copy()
    lq = task.degrade(hq, np.random.default_rng(1))
    np.testing.assert_array_equal(hq, before)
    assert lq.dtype in (np.uint8, np.float32)
    assert lq.shape == (height // task.scale, width // task.scale, task.in_channels)
    np.testing.assert_array_equal(lq, task.degrade(hq, np.random.default_rng(1)))
    assert image_to_tensor(lq).shape == (task.in_channels, *lq.shape[:2])
    restored = task.baseline(lq)
    assert restored.dtype == np.uint8 and restored.shape == hq.shape
    assert all(np.isfinite(task.baseline_scores(hq, lq)))
    assert task.psnr(hq, hq) == np.inf and task.ssim(hq, hq) == pytest.approx(1)


def test_every_option_is_typed_for_the_configuration() -> None:
    for name in tasks.names():
        for option in inspect.signature(tasks.type_of(name)).parameters.values():
            assert option.annotation is not option.empty and option.default is not option.empty


def test_a_task_in_a_file_of_the_users_own(own: str) -> None:
    task = tasks.get(f"{own}:Darkening", factor=3)
    assert isinstance(task, Task) and task.name == "darkening" and task.factor == 3
    assert tasks.type_of(f"{own}:Darkening") is type(task)
    assert build("task", tasks.type_of(f"{own}:Darkening"), {"factor": "5"}).factor == 5
    with pytest.raises(AclaError, match=r"factor.*valid integer"):
        build("task", tasks.type_of(f"{own}:Darkening"), {"factor": "many"})
    assert "darkening" not in tasks.names()


@pytest.mark.parametrize("name", ["Missing", "Unfinished", "number", "Task", ""])
def test_what_is_no_task_is_refused_with_those_that_are(own: str, name: str) -> None:
    with pytest.raises(AclaError) as error:
        tasks.type_of(f"{own}:{name}")
    assert str(error.value) == (
        f"task '{own}:{name}': '{name}' in '{own}' must be a subclass of Task with a name, a baseline_name, "
        "degrade and baseline; such are there: Darkening"
    )


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        ("no_such_module_of_tasks", "ModuleNotFoundError: No module named 'no_such_module_of_tasks'"),
        ("", "ValueError: Empty module name"),
        ("..tasks", "TypeError: "),
    ],
)
def test_a_module_that_cannot_be_imported(own: str, module: str, reason: str) -> None:
    with pytest.raises(AclaError) as error:
        tasks.type_of(f"{module}:Darkening")
    assert f"cannot import {module!r} ({reason}" in str(error.value)
    assert f"it must be a file {module}.py in {Path.cwd()}, or an installed module" in str(error.value)


def test_an_error_in_the_users_file_is_told_in_one_line(own: str) -> None:
    Path(f"{own}_broken.py").write_text("x = 1 / 0\n")
    with pytest.raises(AclaError, match=r"\(ZeroDivisionError: division by zero\)"):
        tasks.type_of(f"{own}_broken:Darkening")


def test_the_current_folder_comes_last(own: str) -> None:
    Path("json.py").write_text("raise RuntimeError\n")
    tasks.type_of(f"{own}:Darkening")
    assert sys.path[-1] == str(Path.cwd())
