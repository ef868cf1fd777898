"""A version that NNI or this package would fail on is named, with the remedy."""

from __future__ import annotations

from importlib import metadata

import pytest

from acla_nas.errors import AclaError
from acla_nas.versions import check_versions


def test_what_is_installed_fits() -> None:
    check_versions()


@pytest.mark.parametrize(
    ("package", "version"), [("nni", "2.10"), ("pytorch-lightning", "1.9.5"), ("setuptools", "81.0.0")]
)
def test_another_version_is_named_with_the_remedy(
    package: str, version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: version if name == package else installed(name))
    with pytest.raises(AclaError, match=rf"{package} {version} is installed, .* pip install '{package}"):
        check_versions()
