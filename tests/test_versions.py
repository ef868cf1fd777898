"""A version that NNI or this package would fail on is named, with the remedy."""

from __future__ import annotations

import re
from importlib import metadata

import pytest

from acla_nas.errors import AclaError
from acla_nas.versions import check_versions


def test_what_is_installed_fits() -> None:
    check_versions()


@pytest.mark.parametrize(
    ("package", "version"),
    [
        ("nni", "2.10"),
        ("pytorch-lightning", "2.3.3"),
        ("setuptools", "81.0.0"),
        ("torch", "2.9.1+cu128"),
        ("numpy", "1.25.2"),
    ],
)
def test_another_version_is_named_with_the_remedy(
    package: str, version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: version if name == package else installed(name))
    told = rf"{package} {re.escape(version)} is installed, .* pip install '{package}"
    with pytest.raises(AclaError, match=told):
        check_versions()
