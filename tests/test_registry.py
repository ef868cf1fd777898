"""Names of all kinds of parts: registered ones, plugins' entry points, and MODULE:NAME of the user's own."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from acla_nas import attention, cost, export, search_spaces, strategies, tasks
from acla_nas.errors import AclaError, AclaWarning
from acla_nas.registry import Registry
from acla_nas.search_spaces import registry as spaces

REGISTRIES = [spaces.REGISTRY, strategies.REGISTRY, attention.REGISTRY, cost.REGISTRY, tasks.REGISTRY]
PLUGIN = '''
from torch import nn

from acla_nas import CrossLayerSpace, cost, strategies, tasks
from acla_nas.attention import SqueezeExcitation


def two_layers(channels=4, **attention):
    """Two layers of a plugin."""
    layers = [nn.Conv2d(3, channels, 1), nn.Conv2d(channels, 3, 1)]
    return CrossLayerSpace(nn.Sequential(*layers), ["0"], **attention)


class Halved(SqueezeExcitation):
    """Another attention."""


class Count(cost.CostModel):
    """Modules, counted."""

    unit = "modules"

    def own(self, attention, query):
        return 1.0

    def pair(self, attention, query, reference):
        return 0.0


class Patient(strategies.TwoStage):
    """A strategy that takes its time."""


class Negative(tasks.Task):
    """Undoing the inversion."""

    name, baseline_name = "negative", "inverted"

    def degrade(self, hq, rng):
        return 255 - hq

    def baseline(self, lq):
        return 255 - lq


number = 3
'''
GROUPS = {
    "acla_nas.search_spaces": ("two_small_layers", "two_layers"),
    "acla_nas.strategies": ("patient", "Patient"),
    "acla_nas.attention": ("halved", "Halved"),
    "acla_nas.cost": ("count", "Count"),
    "acla_nas.tasks": ("negative", "Negative"),
}


@pytest.fixture(autouse=True)
def unchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test adds must not be there for the next one."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    for registry in REGISTRIES:
        monkeypatch.setattr(registry, "entries", dict(registry.entries))
        monkeypatch.setattr(registry, "_imported", {})
        monkeypatch.setattr(registry, "_warned", set())


def install(folder: Path, package: str, code: str, entry_points: dict[str, dict[str, str]]) -> None:
    """Put a package with entry points into a folder, as pip would."""
    (folder / f"{package}.py").write_text(code)
    info = folder / f"{package}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    lines = []
    for group, entries in entry_points.items():
        lines += [f"[{group}]", *(f"{name} = {package}:{target}" for name, target in entries.items())]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    sys.path.insert(0, str(folder))


@pytest.fixture
def plugin(tmp_path: Path) -> str:
    """The name of a package with one part of each kind, installed but not imported."""
    name = f"plugin_{tmp_path.name}".replace("-", "_")
    install(tmp_path, name, PLUGIN, {g: {entry: target} for g, (entry, target) in GROUPS.items()})
    return name


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module of the user's own in the current folder."""
    name = f"own_{tmp_path.name}".replace("-", "_")
    (tmp_path / f"{name}.py").write_text(PLUGIN)
    monkeypatch.chdir(tmp_path)
    return name


# Plugins


@pytest.mark.parametrize("registry", REGISTRIES, ids=lambda r: r.kind)
def test_a_plugin_is_loaded_when_its_name_is_asked_for(registry: Registry, plugin: str) -> None:
    entry, target = GROUPS[registry.group]
    for known in list(registry.entries):
        registry.get(known)
    assert plugin not in sys.modules, "known names need no plugin"
    part = registry.get(entry)
    assert part.__name__ == target and plugin in sys.modules
    assert entry in registry.names()


@pytest.mark.parametrize("registry", REGISTRIES, ids=lambda r: r.kind)
def test_listing_has_the_plugins_with_their_first_lines(registry: Registry, plugin: str) -> None:
    entry, target = GROUPS[registry.group]
    assert registry.summaries()[entry] == getattr(sys.modules[plugin], target).__doc__


def test_a_mistyped_name_of_a_plugin_is_found_without_loading_it(plugin: str) -> None:
    with pytest.raises(AclaError, match="unknown cost model 'cuont'; did you mean 'count'"):
        cost.get("cuont")
    assert plugin not in sys.modules


def test_parts_of_plugins_do_their_work(plugin: str) -> None:
    assert cost.get("count").unit == "modules"
    assert tasks.get("negative").scale == 1
    space = search_spaces.get("two_small_layers")(channels=5, attention="halved")
    assert space.source == {"name": "two_small_layers", "options": {"channels": 5}}
    model = export(space.arch({"insert/1": True, "keys": 1}).model_dump(mode="json"))
    assert type(model.attention["1"]).__name__ == "Halved"


@pytest.mark.parametrize("code", ["x = 1 / 0", "import sys; sys.exit()", "import no_such_module", "part = 3"])
def test_a_broken_plugin_is_warned_of_once_and_stops_nothing(code: str, plugin: str, tmp_path: Path) -> None:
    (tmp_path / "second").mkdir()
    broken = f"broken_{plugin}"
    install(tmp_path / "second", broken, code, {"acla_nas.cost": {"energy": "part"}})
    with pytest.warns(AclaWarning) as warned:
        names = cost.names()
    (warning,) = [str(w.message) for w in warned]
    assert f"cost model 'energy' of the package {broken}" in warning
    assert {"macs", "count"} <= set(names) and "energy" not in names
    with warnings.catch_warnings():
        warnings.simplefilter("error", AclaWarning)
        assert cost.names() == names
    with pytest.raises(AclaError, match=f"'energy' of the package {broken} cannot be"):
        cost.get("energy")


def test_our_own_parts_come_before_a_plugins(tmp_path: Path) -> None:
    package = f"same_{tmp_path.name}".replace("-", "_")
    install(tmp_path, package, PLUGIN, {"acla_nas.cost": {"macs": "Count"}})
    assert cost.get("macs").unit == "MACs" and "macs" in cost.names()
    assert package not in sys.modules


# MODULE:NAME


@pytest.mark.parametrize("registry", REGISTRIES, ids=lambda r: r.kind)
def test_a_part_in_a_file_of_the_users_own(registry: Registry, own: str) -> None:
    _, target = GROUPS[registry.group]
    part = registry.get(f"{own}:{target}")
    assert part.__name__ == target and registry.known(f"{own}:{target}").__name__ == target
    assert not [name for name in registry.names() if ":" in name]


@pytest.mark.parametrize("registry", REGISTRIES, ids=lambda r: r.kind)
def test_what_does_not_fit_is_refused_with_what_does(registry: Registry, own: str) -> None:
    with pytest.raises(AclaError) as error:
        registry.get(f"{own}:number")
    told = f"{registry.kind} '{own}:number': 'number' in '{own}' must be {registry.needs}; such are there: "
    assert str(error.value).startswith(told)
    assert GROUPS[registry.group][1] in str(error.value).removeprefix(told)
    with pytest.raises(AclaError, match="cannot import 'no_such_module_at_all'"):
        registry.get("no_such_module_at_all:Part")


def test_attentions_of_ones_own_combine_with_others(own: str) -> None:
    module = attention.get(f"{own}:Halved+nl")(8, reference_channels={"1": 8})
    assert [type(part).__name__ for part in module.parts] == ["Halved", "NonLocal"]


def test_a_function_that_returns_no_space(own: str) -> None:
    Path(f"{own}_wrong.py").write_text("def network(width=3):\n    return width\n")
    with pytest.raises(AclaError, match="returns a int, not a CrossLayerSpace: let it return acla_nas"):
        search_spaces.get(f"{own}_wrong:network")()


def test_a_registered_space_keeps_its_own_name(own: str) -> None:
    code = PLUGIN.replace(
        "def two_layers", "from acla_nas.search_spaces import register\n@register\ndef two_layers"
    )
    Path(f"{own}_registered.py").write_text(code)
    make = search_spaces.get(f"{own}_registered:two_layers")
    assert make is search_spaces.get("two_layers")
    assert make().source["name"] == "two_layers"


# A file that names code must not have it run


def stored(own: str, **changes: object) -> dict:
    space = search_spaces.get("edsr")(num_blocks=1, num_channels=4, num_keys=2)
    return {**space.arch({"insert/1": True, "keys": 2}).model_dump(mode="json"), **changes}


def test_export_imports_nothing_that_a_file_names(own: str) -> None:
    name = f"{own}:two_layers"
    with pytest.raises(AclaError) as error:
        export(stored(own, space={"name": name, "options": {}}))
    assert str(error.value) == (
        f"search space {name!r} is code of one's own, and an architecture's file must not decide what is "
        f"imported: name it in the configuration, or call acla_nas.search_spaces.get({name!r}) first; to "
        "restore, give an exported file, such as RUN/export/model.pt2; or give export(arch, backbone=...)"
    )
    for part in (f"{own}:Halved", f"se+{own}:Halved"):
        with pytest.raises(AclaError, match=r"must not decide what is imported.*acla_nas\.attention\.get"):
            export(stored(own, attention={"name": part, "num_keys": 1}))
    with pytest.raises(AclaError, match="must not decide"):
        export(stored(own, space={"name": "os:system", "options": {"command": "true"}}))
    assert own not in sys.modules


def test_export_of_a_space_of_ones_own_once_the_user_named_it(own: str) -> None:
    space = search_spaces.get(f"{own}:two_layers")(channels=6, attention=f"{own}:Halved")
    assert space.source == {"name": f"{own}:two_layers", "options": {"channels": 6}}
    arch = space.arch({"insert/1": True, "keys": 1})
    model = export(arch.model_dump(mode="json"), weights=space.state_dict())
    assert type(model.attention["1"]).__name__ == "Halved" and model.backbone[0].out_channels == 6
    given = export(arch, backbone=space.network.backbone)
    assert given.backbone[0].out_channels == 6


# Registering


def test_a_name_is_taken_once() -> None:
    registry: Registry = Registry("part", "no.such.group", "a function", callable, {"one": len})
    registry.add("one", len)
    with pytest.raises(AclaError, match=r"part name 'one' is taken by builtins\.len; use another"):
        registry.add("one", repr)
    with pytest.raises(AclaError, match="'a:b' cannot be registered: a colon is for MODULE:NAME"):
        registry.add("a:b", repr)


def test_help_needs_no_registry() -> None:
    code = "import sys, acla_nas.cli; assert 'acla_nas.registry' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
