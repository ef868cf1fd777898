"""Broken input of every kind: one line for each mistake, whatever it is, and never a traceback.

Thousands of mutations of things that work: configurations, architectures, images, command lines. What comes
of one is either that it works or an AclaError of one line; of a command, exit code 0 or 2.
"""

from __future__ import annotations

import copy
import io
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from acla_nas import export, search_spaces
from acla_nas.arch import Arch
from acla_nas.cli import main
from acla_nas.config import load_config
from acla_nas.data import load_image
from acla_nas.data.picture import load_picture
from acla_nas.errors import AclaError
from acla_nas.experiment import make_space, make_strategy, make_task

SMALL: dict[str, Any] = {
    "task": {"name": "super_resolution", "scale": 2},
    "space": {"name": "edsr", "num_blocks": 2, "num_channels": 4, "attention": "acla", "num_keys": 2},
    "strategy": {"name": "two_stage", "epochs": [1, 1], "cost": "macs", "cost_weight": 0.3},
    "data": {"train": "embedded", "patch_size": 8, "batch_size": 2, "fold": 1, "folds": 2},
    "search": {"steps_per_epoch": 1, "learning_rate": 1e-3, "loss": "mse", "schedule": "cosine"},
    "train": {"epochs": 1, "steps_per_epoch": 1, "nonfinite": "skip"},
    "budget": "params<=100",
    "models": [],
    "seed": 0,
    "device": "cpu",
}
# What people and programs write where something else should be. Large numbers are absent on purpose: a
# network of a million blocks is what its user gets.
WORDS = [
    "",
    "x",
    "bare",
    "embedded",
    "acla",
    "se+acla",
    "edsr",
    "rcan",
    "os:system",
    "a:b:c",
    "..",
    "~",
    "0",
    "a\nb",
]
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 9),
    st.floats(-2, 8) | st.sampled_from([float("nan"), float("inf"), -0.0, 1e-300]),
    st.sampled_from(WORDS),
    st.text(max_size=6),
    st.lists(st.integers(-1, 4) | st.sampled_from(WORDS), max_size=3),
    st.dictionaries(st.sampled_from(["name", "scale", "x", "1"]), st.integers(-1, 3), max_size=2),
)


def examples(few: int, many: int) -> pytest.MarkDecorator:
    """Few of them, the same each time; many of them, other ones each time, in the slow tests."""
    return pytest.mark.parametrize("number", [few, pytest.param(many, marks=pytest.mark.slow)])


def hold(number: int, strategy: st.SearchStrategy[Any], check: Callable[[Any], None]) -> None:
    """Check that many examples; one that takes 20 seconds hangs."""
    few = number <= 100
    health = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]
    given(strategy)(
        settings(
            max_examples=number, derandomize=few, database=None, deadline=20_000, suppress_health_check=health
        )(check)
    )()


def told_in_one_line(error: AclaError) -> None:
    assert str(error).strip() and len(str(error)) < 5000


def paths_of(tree: Any, prefix: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield where everything in nested dicts and lists is."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        yield (*prefix, key)
        yield from paths_of(value, (*prefix, key))


@st.composite
def mutated(draw: Any, tree: dict[str, Any]) -> dict[str, Any]:
    """Some values replaced, removed, renamed, or added."""
    tree = copy.deepcopy(tree)
    for _ in range(draw(st.integers(1, 3))):
        there = list(paths_of(tree))
        if not there:
            break
        *parents, last = draw(st.sampled_from(there))
        parent = tree
        for key in parents:
            parent = parent[key]
        how = draw(st.sampled_from(["replace", "replace", "replace", "remove", "rename", "add"]))
        if how == "replace":
            parent[last] = draw(VALUES)
        elif how == "remove":
            del parent[last]
        elif isinstance(parent, dict):
            value = parent.pop(last) if how == "rename" else draw(VALUES)
            parent[draw(st.sampled_from([f"{last}s", "nmae", "", "scale", "num_keys", "9"]))] = value
    return tree


@st.composite
def torn(draw: Any, content: bytes) -> bytes:
    """Bytes changed, cut out, doubled, or the end missing."""
    data = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        length = draw(st.integers(1, 40))
        how = draw(st.sampled_from(["change", "cut", "double", "end", "insert"]))
        if how == "change" and data:
            data[at] = draw(st.integers(0, 255))
        elif how == "cut":
            del data[at : at + length]
        elif how == "double":
            data[at:at] = data[at : at + length]
        elif how == "end":
            del data[at:]
        else:
            data[at:at] = draw(st.binary(max_size=8))
    return bytes(data)


@examples(100, 500)
def test_configurations(number: int, tmp_path: Path) -> None:
    path = tmp_path / "config.yml"

    def check(content: dict[str, Any]) -> None:
        path.write_text(yaml.safe_dump(content), encoding="utf-8")
        try:
            config = load_config(path)
            for make in (make_task, make_space, make_strategy):
                make(config)
        except AclaError as error:
            told_in_one_line(error)
        else:  # nothing was replaced by a default in silence
            for section in ("task", "space", "strategy"):
                given_ = content.get(section, {})
                for key in given_ if isinstance(given_, dict) else ():
                    assert key == "name" or key in getattr(config, section).options

    hold(number, mutated(SMALL), check)


@examples(60, 300)
def test_configuration_files(number: int, tmp_path: Path) -> None:
    path = tmp_path / "config.yml"

    def check(content: bytes) -> None:
        path.write_bytes(content)
        try:
            load_config(path)
        except AclaError as error:
            told_in_one_line(error)

    hold(number, torn(yaml.safe_dump(SMALL).encode()), check)


@pytest.fixture(scope="module")
def arch() -> dict[str, Any]:
    space = search_spaces.edsr(num_blocks=2, num_channels=4, num_keys=2)
    return json.loads(space.arch({"insert/1": True, "insert/2": True, "keys": 2}).model_dump_json())


@examples(100, 500)
def test_architectures(number: int, arch: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "arch.json"

    def check(content: dict[str, Any]) -> None:
        path.write_text(json.dumps(content), encoding="utf-8")
        try:
            export(Arch.load(path))
        except AclaError as error:
            told_in_one_line(error)

    hold(number, mutated(arch), check)


@examples(60, 200)
def test_architecture_files(number: int, arch: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "arch.json"

    def check(content: bytes) -> None:
        path.write_bytes(content)
        try:
            Arch.load(path)
        except AclaError as error:
            told_in_one_line(error)

    hold(number, torn(json.dumps(arch).encode()), check)


def image_file(form: str) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (20, 24, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, form)
    return file.getvalue()


@examples(100, 500)
def test_images(number: int, tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    files = [image_file(form) for form in ("png", "jpeg", "bmp", "tiff", "webp", "gif")]

    def check(content: bytes) -> None:
        path.write_bytes(content)
        for load in (load_image, load_picture):
            try:
                read = load(path)
            except AclaError as error:
                told_in_one_line(error)
            else:
                assert load is not load_image or (read.dtype == np.uint8 and read.shape[2] == 3)

    hold(number, st.sampled_from(files).flatmap(torn), check)


@st.composite
def command_lines(draw: Any, config: str, run: str) -> list[str]:
    """Lines that ask for something small at most."""
    commands = [
        "search",
        "train",
        "eval",
        "export",
        "report",
        "restore",
        "list",
        "bench",
        "nonsense",
        "--version",
    ]
    command = draw(st.sampled_from(commands))
    keys = [
        *SMALL,
        *(f"{s}.{k}" for s in SMALL if isinstance(SMALL[s], dict) for k in SMALL[s]),
        "x",
        "a.b.c",
        "",
    ]
    words = st.sampled_from(
        [*WORDS, "-1", "nan", "[1,", "{a: b}", "!!python/none", "models=[x]", "=", "==", "--json"]
    )
    overrides = draw(
        st.lists(st.builds("{}={}".format, st.sampled_from(keys), words) | words, min_size=1, max_size=4)
    )
    if command == "search":
        return [command, "--dry-run", config, f"run={run}", *overrides]
    if command == "train":
        return [command, config, f"run={run}", *overrides, "arch=nowhere.json"]
    if command == "bench":
        return [command, draw(st.sampled_from(["table", "nonsense", "--help"])), *overrides[:1]]
    if command in ("eval", "export"):
        return [command, draw(st.sampled_from([config, "nowhere.yml", run])), *overrides, "models=[nowhere]"]
    return [command, *overrides]


@examples(60, 300)
def test_command_lines(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "small.yml"
    config.write_text(yaml.safe_dump(SMALL))
    monkeypatch.chdir(tmp_path)

    def check(arguments: list[str]) -> None:
        sys.argv = ["acla-nas", *arguments]
        code: Any = 0
        try:
            main()
        except SystemExit as error:
            code = error.code or 0
        err = capsys.readouterr().err
        assert code in (0, 2), (arguments, code, err)
        assert "Traceback" not in err
        if code == 2:
            assert err.startswith(("acla-nas: error: ", "acla-nas: warning: ", "Usage: ", "Error: ")), err

    monkeypatch.setattr(sys, "argv", [])
    hold(number, command_lines(str(config), str(tmp_path / "run")), check)
