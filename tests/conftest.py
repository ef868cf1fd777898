"""Fixtures for all tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

if not torch.cuda.is_available():  # Triton's kernels are interpreted: to be said before it is imported
    os.environ.setdefault("TRITON_INTERPRET", "1")

import numpy as np
import pytest

from acla_nas import attention, cost, search_spaces, strategies, tasks
from acla_nas.data import imresize, save_image

# Tests are small and run two at a time: more threads would only get in each other's way.
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of processes that tests start


@pytest.fixture(autouse=True)
def _same_random_numbers() -> None:
    """Start each test from the same random state, so that it does the same alone and in company."""
    torch.manual_seed(0)


@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef[Any]) -> None:
    """Seed what several tests share as well: it is made before the first of them, whichever that is."""
    if fixturedef.scope != "function":
        torch.manual_seed(0)


@pytest.fixture
def unchanged_registries() -> Iterator[None]:
    """What a test registers must not be there for those that follow."""
    modules = (attention, cost, search_spaces.registry, strategies, tasks)
    registries: list[Any] = [module.REGISTRY for module in modules]
    before = [dict(registry.entries) for registry in registries]
    yield
    for registry, entries in zip(registries, before):
        registry.entries = entries


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of published images beside the checkout; its tests are skipped where it is absent."""
    folder = Path(__file__).resolve().parents[1].parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent")
    return folder


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of three small images, a.png to c.png; not to be changed."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for name in "abc":
        coarse = rng.integers(0, 256, (6, 5, 3), dtype=np.uint8)
        save_image(imresize(coarse, 8), folder / f"{name}.png")
    return folder
