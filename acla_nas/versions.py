"""Whether the installed versions are ones that this package can work with, said before NNI fails on them."""

from __future__ import annotations

from importlib import metadata

from packaging.requirements import Requirement

from acla_nas.errors import AclaError

_CHECKED = ("nni", "pytorch-lightning", "setuptools", "torch", "numpy")


def check_versions() -> None:
    """Compare what is installed with what this package's own metadata asks for.

    Raises:
        AclaError: a package of another version; the error says how to get one that fits.
    """
    for text in metadata.requires("acla-nas") or ():
        requirement = Requirement(text)
        if requirement.name not in _CHECKED or requirement.marker is not None:
            continue
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            continue  # its import says so
        if not requirement.specifier.contains(version, prereleases=True):
            raise AclaError(
                f"{requirement.name} {version} is installed, acla_nas needs {requirement.specifier}: "
                f"pip install '{requirement.name}{requirement.specifier}', or all of constraints.txt"
            )
