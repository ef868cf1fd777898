"""Configuration: files, overrides, the checks of keys and values, and what no input may do."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from acla_nas import strategies
from acla_nas.config import Config, build, load_config, parse_config, set_key
from acla_nas.errors import AclaError
from acla_nas.experiment import make_space, make_task

SMALL = """
task: {name: super_resolution, scale: 2}
space: {name: edsr, num_blocks: 2, num_channels: 4, attention: acla, num_keys: 2}
strategy: {name: two_stage, epochs: [1, 1], cost: macs, cost_weight: 0.3}
data: {patch_size: 8, batch_size: 2}
search: {steps_per_epoch: 1}
train: {epochs: 1, steps_per_epoch: 1}
models: []
seed: 0
run: runs/small
"""


@pytest.fixture
def small(tmp_path: Path) -> Path:
    path = tmp_path / "small.yml"
    path.write_text(SMALL, encoding="utf-8")
    return path


def error_of(path: Path | str, *overrides: str) -> str:
    with pytest.raises(AclaError) as error:
        load_config(path, overrides)
    return str(error.value)


def test_defaults_are_valid_and_empty_file_gives_them(tmp_path: Path) -> None:
    (tmp_path / "empty.yml").touch()
    assert load_config(tmp_path / "empty.yml") == Config() == parse_config({}, "nothing")


def test_file_and_overrides(small: Path) -> None:
    config = load_config(small, ["space.num_blocks=3", "data.train=DIV2K/train", "models=[a,b]", "seed=7"])
    assert config.space.options == {"num_blocks": 3, "num_channels": 4, "attention": "acla", "num_keys": 2}
    assert (config.data.train, config.data.patch_size) == ("DIV2K/train", 8)
    assert (config.models, config.seed) == (["a", "b"], 7)
    assert (config.search.loss, config.train.loss) == ("mse", "l1")


def test_another_strategy_leaves_the_options_of_the_files_out(tmp_path: Path) -> None:
    path = tmp_path / "c.yml"
    path.write_text("strategy: {name: two_stage, cost_weight: 0.3}\n")
    assert load_config(path, ["strategy.name=tpe", "strategy.trials=3"]).strategy.options == {"trials": 3}
    assert load_config(path, ["strategy.trials=3", "strategy.name=tpe"]).strategy.options == {"trials": 3}
    assert load_config(path, ["strategy.name=two_stage"]).strategy.options == {"cost_weight": 0.3}


def test_another_task_leaves_the_options_of_the_files_out(tmp_path: Path) -> None:
    path = tmp_path / "c.yml"
    path.write_text("task: {name: super_resolution, scale: 3}\n")
    assert load_config(path, ["task.sigma=30", "task.name=denoising"]).task.options == {"sigma": 30}
    assert load_config(path, ["task.name=super_resolution"]).task.options == {"scale": 3}
    path.write_text("task: {scale: 3}\n")
    assert load_config(path, ["task.name=super_resolution"]).task.options == {"scale": 3}
    assert load_config(path, ["task.name=denoising"]).task.options == {}


def test_later_overrides_win_and_values_may_hold_equals_signs(small: Path) -> None:
    assert load_config(small, ["run=a", "run=b=c"]).run == "b=c"


@pytest.mark.parametrize(
    ("override", "value"), [("1e-4", 1e-4), ("0.001", 1e-3), ("1", 1.0), ("1.0e-05", 1e-5), ("1e-05", 1e-5)]
)
def test_floats_as_people_and_json_write_them(small: Path, override: str, value: float) -> None:
    assert load_config(small, [f"search.learning_rate={override}"]).search.learning_rate == value


def test_options_of_named_things_are_converted_as_well(small: Path) -> None:
    config = load_config(small, ["strategy.cost_weight=1e-1", "space.gate_bias=2e0"])
    strategy: Any = build("strategy", strategies.get("two_stage"), config.strategy.options)
    assert strategy.cost_weight == 0.1
    attention: Any = make_space(config).network.attention["1"]
    assert attention.gate_bias == 2.0 and isinstance(attention.gate_bias, float)


def test_overrides_fill_sections_that_are_missing_or_empty(tmp_path: Path) -> None:
    path = tmp_path / "config.yml"
    path.write_text("data:\n", encoding="utf-8")
    config = load_config(path, ["data.train=x", "train.epochs=3"])
    assert (config.data.train, config.train.epochs) == ("x", 3)


def test_home_is_expanded(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    config = load_config(small, ["run=~/r", "data.train=~/d", "models=[~/m]", "arch=~/arch.json"])
    given = (config.run, config.data.train, config.models[0], config.arch)
    assert given == tuple(f"/home/somebody/{name}" for name in ("r", "d", "m", "arch.json"))


def test_saved_config_is_the_same_config(small: Path, tmp_path: Path) -> None:
    config = load_config(small, ["strategy.cost_weight=0.7"])
    path = config.save(tmp_path / "new" / "run")
    assert path == tmp_path / "new" / "run" / "config.yml"
    assert load_config(path) == config


def test_save_into_a_file_is_an_error(small: Path) -> None:
    with pytest.raises(AclaError, match=r"cannot write into run folder .*small\.yml.*; set run=DIR"):
        load_config(small).save(small)


@pytest.mark.parametrize(
    ("override", "wrong", "nearest"),
    [
        ("sede=1", "sede", "seed"),
        ("data.trian=x", "data.trian", "data.train"),
        ("search.lerning_rate=1", "search.lerning_rate", "search.learning_rate"),
        ("train.epoch=1", "train.epoch", "train.epochs"),
    ],
)
def test_unknown_key_and_the_nearest_known_one(small: Path, override: str, wrong: str, nearest: str) -> None:
    text = error_of(small, override)
    assert f"unknown key {wrong!r}; did you mean {nearest!r}? Known: " in text


def test_unknown_key_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "config.yml"
    path.write_text("data: {patchsize: 8}\n", encoding="utf-8")
    assert "unknown key 'data.patchsize'; did you mean 'data.patch_size'?" in error_of(path)


@pytest.mark.parametrize(
    ("override", "text"),
    [
        ("data.patch_size=0", "data.patch_size must be greater than or equal to 1, not 0"),
        ("data.patch_size=x", "data.patch_size must be a valid integer, not 'x'"),
        ("data.patch_size=1.5", "data.patch_size must be a valid integer, not 1.5"),
        ("train.learning_rate=.nan", "train.learning_rate must be a finite number, not nan"),
        ("train.learning_rate=.inf", "train.learning_rate must be a finite number, not inf"),
        ("device=gpu", "device must be 'auto', 'cpu' or 'cuda', not 'gpu'"),
        ("run=5", "run must be a valid string, not 5; put it in quotes"),
        ("models=runs/a", "models must be a list, such as [A, B], not 'runs/a'"),
        ("space=edsr", "space must be a section of keys, not 'edsr'"),
        ("space={num_blocks: 2}", "space.name is missing: set it"),
        ("task.name.x=1", "cannot set 'task.name.x': 'name' is a value, not a section of keys"),
        ("seed", "override 'seed' must be KEY=VALUE"),
        ("=1", "override '=1' must be KEY=VALUE"),
        ("seed=[", "the value of override 'seed=[' is not YAML"),
        ("seed=2020-99-99", "the value of override 'seed=2020-99-99' is not YAML"),
    ],
)
def test_values_that_do_not_fit(small: Path, override: str, text: str) -> None:
    assert text in error_of(small, override)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("a: [1", "is not plain YAML"),
        ("[1, 2]", "is a list, not a mapping"),
        ("words", "is a str, not a mapping"),
        ("run: !!python/object/apply:os.getcwd []", "is not plain YAML"),
        ("run: !!python/object:acla_nas.config.Config {}", "is not plain YAML"),
        ("run: !!int x", "is not plain YAML"),
        ("\0", "is not plain YAML"),
        ("1: 2", "1 keys should be strings, not 1"),
    ],
)
def test_files_that_are_no_configuration(tmp_path: Path, content: str, text: str) -> None:
    path = tmp_path / "config.yml"
    path.write_text(content, encoding="utf-8")
    message = error_of(path)
    assert text in message and str(path) in message


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    assert "No such file or directory; give a YAML file" in error_of(tmp_path / "missing.yml")
    assert "Is a directory; give a YAML file" in error_of(tmp_path)
    (tmp_path / "latin.yml").write_bytes(b"run: \xe4")
    assert "is not plain YAML" in error_of(tmp_path / "latin.yml")


def test_long_values_are_shortened(small: Path) -> None:
    assert len(error_of(small, f"data.patch_size={'x' * 10_000}")) < 300


def test_set_key_makes_sections() -> None:
    content: dict[str, Any] = {}
    set_key(content, "a.b.c", 1)
    set_key(content, "a.d", 2)
    assert content == {"a": {"b": {"c": 1}, "d": 2}}


class Inner:
    """Takes an option of its own, beside what is not the user's to give."""

    def __init__(self, channels: int, rate: float = 1.0, pair: tuple[int, int] = (1, 2)) -> None:
        self.rate, self.pair = rate, pair


def outer(size: int = 1, mode: int | str = 1, json: bool = False, **inner: Any) -> tuple[Any, ...]:
    if size < 0:
        raise AclaError(f"size must be 0 or more, not {size}")
    return size, mode, json, inner


def build_outer(**options: Any) -> tuple[Any, ...]:
    return build("space", outer, options, passes_on=[Inner], reserved={"channels"})


def test_build_converts_and_leaves_defaults_to_the_callable() -> None:
    assert build_outer() == (1, 1, False, {})
    size, mode, json, inner = build_outer(size="3", mode="fast", json="yes", pair=["1", 2.0], rate="1e-3")
    assert (size, mode, json) == (3, "fast", True)
    assert inner == {"pair": (1, 2), "rate": 1e-3}


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"sise": 1}, "unknown key 'space.sise'; did you mean 'space.size'? Known: "),
        ({"rat": 1}, "unknown key 'space.rat'; did you mean 'space.rate'? Known: "),
        ({"channels": 1}, "unknown key 'space.channels'; "),
        ({"__class__": 1}, "unknown key 'space.__class__'; "),
        ({"size": "x"}, "space.size must be a valid integer, not 'x'"),
        ({"size": -1}, "space: size must be 0 or more, not -1"),
        ({"rate": math.nan}, "space.rate must be a finite number, not nan"),
        ({"mode": [1]}, "space.mode must be int | str, not [1]"),
        ({"pair": 1}, "space.pair must be a list [int, int], not 1"),
        ({"pair": [1, 2, 3]}, "space.pair must be a list [int, int], not [1, 2, 3]"),
        ({"pair": [1, "x"]}, "space.pair.1 must be a valid integer, not 'x'"),
    ],
)
def test_build_names_what_does_not_fit(options: dict[str, Any], text: str) -> None:
    with pytest.raises(AclaError) as error:
        build_outer(**options)
    assert str(error.value).startswith(text)


def test_build_of_what_takes_nothing() -> None:
    class Plain:
        pass

    assert isinstance(build("task", Plain, {}), Plain)
    with pytest.raises(AclaError, match=r"unknown key 'task\.scale'; Known: $"):
        build("task", Plain, {"scale": 2})


# Whatever is written into a configuration, only AclaError may come of it.


def keys_of(content: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in content.items():
        yield prefix + key
        if isinstance(value, dict):
            yield from keys_of(value, f"{prefix}{key}.")


ATTENTION = ["softmax", "adaptive", "gate_bias", "shared_mask", "input_shape", "positions", "backbone"]
KEYS = [
    *keys_of(Config().model_dump()),
    *keys_of(yaml.safe_load(SMALL)),
    *(f"space.{name}" for name in ["scale", "residual_scale", "image_range", *ATTENTION]),
    *(f"strategy.{name}" for name in ["temperature", "alpha_learning_rate", "initial_alpha"]),
]
OPTIONS = sorted({key for key in KEYS if key.split(".")[0] in ("space", "strategy", "task")})
keys = st.one_of(
    st.sampled_from(OPTIONS),
    st.sampled_from(OPTIONS),  # twice: it is these whose checks are our own
    st.sampled_from(KEYS),
    st.builds(
        lambda key, extra, at: key[:at] + extra + key[at:],
        st.sampled_from(KEYS),
        st.text(max_size=2),
        st.integers(0, 20),
    ),
)
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-3, 5)
    | st.floats(-2, 5)
    | st.sampled_from([math.nan, math.inf, "", "cla", "paper", "cuda", "two_stage", "~nobody/x", "\0"])
    | st.text(max_size=4)
)
numbers = st.integers(-1, 4) | st.floats(-1, 4, width=16)
values = st.one_of(
    numbers,
    st.lists(numbers, max_size=3),
    st.recursive(
        scalars,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
        max_leaves=4,
    ),
)


def numbers_in(value: Any) -> Iterator[float]:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    for item in inner:
        yield from numbers_in(item)
    with contextlib.suppress(TypeError, ValueError, OverflowError):
        yield abs(float(value))


def load_and_build(path: Path, overrides: list[str]) -> None:
    try:
        config = load_config(path, overrides)
        extra = config.space.model_extra or {}
        for name, small in (("num_blocks", 2), ("num_channels", 4)):
            extra.setdefault(name, small)
        if any(64 < number < math.inf for number in numbers_in(extra)):
            return  # right or wrong, it takes too long to try
        make_task(config)
        make_space(config)
        build("strategy", strategies.get(config.strategy.name), config.strategy.options)
    except AclaError as error:
        assert str(error)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(keys, values), min_size=1, max_size=3))
def test_mutated_values(tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[str, Any]]) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.yml"
    path.write_text(SMALL, encoding="utf-8")
    load_and_build(path, [f"{key}={yaml.safe_dump(value, allow_unicode=True)}" for key, value in changes])


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, len(SMALL)), st.integers(0, 6), st.text("{}[]:,!&*?-'\"#|>% \n\t0.ax", max_size=4))
def test_mutated_text(tmp_path_factory: pytest.TempPathFactory, at: int, cut: int, put: str) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz_text.yml"
    path.write_text(SMALL[:at] + put + SMALL[at + cut :], encoding="utf-8")
    load_and_build(path, [])
