"""Fixtures for all tests."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

# Tests are small and run two at a time: more threads would only get in each other's way.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of published images beside the checkout; its tests are skipped where it is absent."""
    folder = Path(__file__).resolve().parents[1].parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent")
    return folder
