"""Every example in a docstring runs and shows what it says."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest
import torch
from torch import nn

import acla_nas

PACKAGES = ("acla_nas", "acla_nas.search_spaces", "acla_nas.strategies")


def module_names():
    found = set(PACKAGES)
    for package in PACKAGES:
        path = importlib.import_module(package).__path__
        found.update(m.name for m in pkgutil.walk_packages(path, package + ".", onerror=lambda name: None))
    return sorted(name for name in found if not name.endswith(".__main__"))  # importing those runs them


class Finder(doctest.DocTestFinder):
    """Also finds what a decorator of another module has wrapped, a registered search space, for one."""

    def _from_module(self, module, object):
        home = getattr(object, "__module__", None)
        return home == module.__name__ if home else super()._from_module(module, object)


@pytest.mark.usefixtures("unchanged_registries")
@pytest.mark.parametrize("name", module_names())
def test_examples(name, tmp_path, monkeypatch):
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != "triton":
            raise
        pytest.skip("could not import triton")
    monkeypatch.chdir(tmp_path)  # for examples that write files
    monkeypatch.setenv("ACLA_NAS_CACHE", str(tmp_path))
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    output: list[str] = []
    for test in Finder(exclude_empty=True).find(
        module, name, globs={**module.__dict__, "torch": torch, "nn": nn}
    ):
        torch.manual_seed(0)
        runner.run(test, out=output.append)
    assert runner.failures == 0, "".join(output)


def test_examples_are_found():
    """Modules without an example pass above; those known to have one must be seen to have it."""

    def found(name):
        module = importlib.import_module(name)
        return {test.name: len(test.examples) for test in Finder().find(module, name) if test.examples}

    assert found("acla_nas.gumbel") == {"acla_nas.gumbel.gumbel_gate": 1}
    assert "acla_nas.search_spaces.edsr.edsr" in found("acla_nas.search_spaces.edsr")
    assert "acla_nas.space.CrossLayerSpace" in found("acla_nas.space")
    names = module_names()
    assert {"acla_nas.ops.gather", "acla_nas.search_spaces.edsr", "acla_nas.strategies"} <= set(names)
    assert acla_nas.__name__ in names
