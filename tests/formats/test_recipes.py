"""The recipes in docs/deploying.md for packages that are not installed here, on stand-ins of them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from acla_nas import formats, search_spaces

RECIPES = Path(__file__).resolve().parents[2] / "docs" / "deploying.md"


def recipe(beginning: str) -> str:
    blocks = [block.split("```")[0] for block in RECIPES.read_text(encoding="utf-8").split("```py\n")[1:]]
    [found] = [block for block in blocks if block.startswith(beginning)]
    return found


@pytest.fixture
def exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.nn.Module]:
    """A network in deploy/model.py below the current folder."""
    space = search_spaces.edsr(2, 2, 4, num_keys=2)
    sample = {"insert/1": True, "insert/2": True, "keys": 2}
    network = space.freeze(sample).eval()
    formats.save(network, tmp_path / "deploy", space.arch(sample), formats=["python"])
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path / "deploy"))
    sys.modules.pop("model", None)
    yield network
    sys.modules.pop("model", None)


def module(monkeypatch: pytest.MonkeyPatch, name: str, **contents: object) -> ModuleType:
    made = ModuleType(name)
    vars(made).update(contents)
    monkeypatch.setitem(sys.modules, name, made)
    return made


def test_basicsr(exported: torch.nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    registered = {}

    class Registry:
        def register(self):
            return lambda made: registered.setdefault(made.__name__, made)

    import model

    for name in ("basicsr", "basicsr.archs", "basicsr.utils"):
        module(monkeypatch, name)
    module(monkeypatch, "basicsr.utils.registry", ARCH_REGISTRY=Registry())
    module(monkeypatch, "basicsr.archs.derived", **vars(model))
    exec(recipe("from basicsr"), {})
    network = registered["Derived"](**{})  # what build_network does with the options beside the type
    network.load_state_dict(torch.load("deploy/model.pth")["params"], strict=True)
    image = torch.rand(1, 3, 12, 10)
    torch.testing.assert_close(network.eval()(image), exported(image), rtol=0, atol=1e-5)


def test_spandrel(exported: torch.nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    class Architecture:
        def __init__(self, *, id, detect):
            self.detect = detect

    class ImageModelDescriptor:
        def __init__(
            self, model, state_dict, architecture, purpose, tags, supports_half, supports_bfloat16, scale,
            input_channels, output_channels, size_requirements=None,
        ):  # fmt: skip
            assert (purpose, scale, input_channels, output_channels) == ("SR", 2, 3, 3)
            self.model = model

    class ModelLoader:
        def load_from_file(self, path):
            state = torch.load(path)["params"]
            [support] = added
            assert support.detect(state)
            return support.load(state)

    class ArchSupport:
        from_architecture = staticmethod(lambda architecture: architecture)

    added: list = []
    module(
        monkeypatch,
        "spandrel",
        MAIN_REGISTRY=type("Registry", (), {"add": staticmethod(added.append)}),
        Architecture=Architecture,
        ArchSupport=ArchSupport,
        ImageModelDescriptor=ImageModelDescriptor,
        ModelLoader=ModelLoader,
        SizeRequirements=lambda minimum, multiple_of: None,
    )
    names: dict = {}
    exec(recipe("from spandrel"), names)
    image = torch.rand(1, 3, 12, 10)
    actual = names["network"].model.eval()(image)
    torch.testing.assert_close(actual, exported(image), rtol=0, atol=1e-5)
