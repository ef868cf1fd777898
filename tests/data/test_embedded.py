"""The embedded images are there, readable, colourful enough, and in one split each."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest

from acla_nas.data import embedded_images, load_image
from acla_nas.errors import AclaError

EXPECTED = {
    "train": ["astronaut", "motorcycle_left", "camera", "brick", "grass", "gravel", "hubble_deep_field"],
    "validation": ["coffee"],
    "test": ["chelsea", "rocket"],
}


@pytest.mark.parametrize("split", EXPECTED)
def test_splits_hold_readable_images_large_enough_for_patches(split: str) -> None:
    paths = embedded_images(split)
    assert [path.stem for path in paths] == EXPECTED[split]
    for path in paths:
        assert min(load_image(path).shape[:2]) >= 4 * 48


def test_unknown_split() -> None:
    with pytest.raises(AclaError, match="unknown split 'valid'; did you mean 'validation'"):
        embedded_images("valid")


def test_absent_scikit_image_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(AclaError, match=r"coffee\.png.*scikit-image.*data\.validation=DIR"):
        embedded_images("validation")


def test_finding_them_does_not_import_scikit_image() -> None:
    code = (
        "import sys; from acla_nas.data import embedded_images; embedded_images('train'); "
        "print('skimage' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"
