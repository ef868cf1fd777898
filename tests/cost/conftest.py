"""Measured times are kept apart from the user's own."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of measured times, empty."""
    monkeypatch.setenv("ACLA_NAS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"
