"""Every shipped example: it says how to run it, loads, builds, and where it is small enough, runs."""

from __future__ import annotations

import json
import math
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from acla_nas import export, strategies
from acla_nas.cli import main
from acla_nas.config import Config, build, load_config
from acla_nas.experiment import make_space, make_task
from acla_nas.network import backbone_only

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted(ROOT.glob("examples/*.yml"))
ONE_STEP = [
    *("strategy.epochs=[1,1]", "search.steps_per_epoch=1", "train.epochs=1", "train.steps_per_epoch=1"),
    *("data.batch_size=1", "data.patch_size=8", "data.workers=0", "device=cpu"),
]


def commands_in(path: Path) -> list[list[str]]:
    """Return the command lines in the comment that opens a file."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line[1:].rstrip())
    text = "\n".join(lines).replace("\\\n", " ")
    return [shlex.split(line) for line in text.splitlines() if line.startswith("   ")]


def search_configs() -> list[Path]:
    name = {path: f"examples/{path.name}" for path in FILES}
    return [
        path for path in FILES if ["acla-nas", "search", name[path]] in [c[:3] for c in commands_in(path)]
    ]


def count_weights(config: Config) -> int:
    """Return how many the bare network has; they are counted, not filled."""
    with torch.device("meta"), backbone_only():
        space = make_space(config)
        network = export(space.arch({"keys": space.key_gate.num_keys[0]}))
    return sum(p.numel() for p in network.parameters())


def small_configs() -> list[Path]:
    return [path for path in search_configs() if not path.stem.endswith("_paper")]


def test_examples_are_found() -> None:
    assert {"sr_edsr.yml", "sr_edsr_search.yml", "sr_edsr_paper.yml"} <= {path.name for path in FILES}
    assert {"sr_edsr_search.yml", "sr_edsr_paper.yml"} <= {path.name for path in search_configs()}
    assert "sr_edsr_search.yml" in {path.name for path in small_configs()}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_example_opens_with_the_command_that_runs_it(path: Path) -> None:
    commands = commands_in(path)
    assert any(f"examples/{path.name}" in command for command in commands), f"no command in {path}"
    assert {command[0] for command in commands} <= {"acla-nas", "nnictl"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_commands_in_the_comment_have_keys_that_exist(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for program, name, *arguments in commands_in(path):
        if program == "acla-nas" and name in ("search", "train", "eval", "export"):
            load_config(arguments[0], arguments[1:])


@pytest.mark.parametrize("path", search_configs(), ids=lambda path: path.stem)
def test_search_config_loads_and_builds(path: Path) -> None:
    config = load_config(path)
    assert count_weights(config) > 10_000  # with the full size's attention modules it takes gigabytes
    make_task(config)
    build("strategy", strategies.get(config.strategy.name), config.strategy.options)
    assert config.run.startswith("runs/")
    runs = [load_config(other).run for other in search_configs()]
    assert len(set(runs)) == len(runs), "two examples write into the same run folder"


def test_full_size_is_the_papers() -> None:
    config = load_config(ROOT / "examples" / "sr_edsr_paper.yml")
    assert count_weights(config) == 40_729_627
    assert (config.data.patch_size, config.data.batch_size) == (48, 16)
    assert config.strategy.options["cost_weight"] == 0.15
    assert (config.train.epochs, config.train.schedule, config.train.halve_every) == (1000, "halve", 200)


@pytest.mark.parametrize(
    ("name", "cost_weight", "positions", "count"),
    [  # Table 9's settings, and the bare backbone's parameters
        ("sr_edsr", 0.15, 32, 40_729_627),
        ("sr_rcan", 0.3, 10, 15_444_667),
        ("denoise_edsr", 0.2, 16, 4_877_315),
        ("demosaic_edsr", 0.2, 16, 4_877_315),
        ("jpeg_edsr", 0.2, 16, 4_872_705),
    ],
)
def test_full_size_of_every_row_of_table_9(name: str, cost_weight: float, positions: int, count: int) -> None:
    config = load_config(ROOT / "examples" / f"{name}_paper.yml")
    assert config.strategy.options["cost_weight"] == cost_weight
    assert (config.data.patch_size, config.data.batch_size) == (48, 16)
    assert (config.train.epochs, sum(config.strategy.options["epochs"])) == (1000, 200)
    with torch.device("meta"):
        space = make_space(config)
    assert len(space.positions) == positions and space.key_gate.num_keys == (16,)
    assert sum(p.numel() for p in space.network.backbone.parameters()) == count


@pytest.mark.parametrize("path", small_configs(), ids=lambda path: path.stem)
def test_small_example_searches_trains_and_scores(
    path: Path,
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def run(name: str, *overrides: str) -> str:
        monkeypatch.setattr(sys, "argv", ["acla-nas", name, str(path), *ONE_STEP, *data, *overrides])
        main()
        out, err = capsys.readouterr()
        assert err == ""
        return str(out)

    data = [f"data.{split}={images}" for split in ("train", "validation", "test")]
    found, derived = tmp_path / "found", tmp_path / "derived"
    assert "positions: " in run("search", f"run={found}")
    assert "mean" in run("train", f"arch={found}/arch.json", f"run={derived}")
    scores = run("eval", f"models=[{found},{derived}]")
    assert scores.count("mean") == 3
    assert scores.startswith(f"{make_task(load_config(path)).baseline_name}\n")


# The NNI experiments


def experiments() -> list[Path]:
    return [path for path in FILES if "trialCommand" in yaml.safe_load(path.read_text(encoding="utf-8"))]


@pytest.mark.parametrize("path", experiments(), ids=lambda path: path.stem)
def test_nni_takes_the_experiment(path: Path) -> None:
    from nni.experiment.config import ExperimentConfig

    experiment: Any = ExperimentConfig.load(path).canonical_copy()  # which validates it
    assert ["nnictl", "create", "--config", f"examples/{path.name}"] in commands_in(path)
    assert Path(experiment.trial_code_directory) == ROOT
    assert ROOT / "runs" in Path(experiment.experiment_working_directory).parents
    combinations = math.prod(len(parameter["_value"]) for parameter in experiment.search_space.values())
    if experiment.tuner.name == "GridSearch":
        assert experiment.max_trial_number == combinations
    else:
        assert experiment.max_trial_number < combinations


@pytest.mark.parametrize("path", experiments(), ids=lambda path: path.stem)
def test_every_trial_of_the_experiment_has_a_valid_configuration(path: Path) -> None:
    experiment = yaml.safe_load(path.read_text(encoding="utf-8"))
    program, name, settings, *overrides = shlex.split(experiment["trialCommand"])
    assert program == "acla-nas" and name in ("search", "train")
    before = load_config(ROOT / settings, overrides)
    parameters = experiment["searchSpace"]
    if name == "train":  # the space's decisions, all of them, are no keys
        positions = make_space(before).positions
        assert [key for key in parameters if key.startswith("insert/")] == [
            f"insert/{j}" for j, _ in enumerate(positions, start=1)
        ]
        parameters = {key: value for key, value in parameters.items() if not key.startswith("insert/")}
    for key, parameter in parameters.items():
        seen: list[Config] = []
        for value in parameter["_value"]:
            config = load_config(ROOT / settings, [*overrides, f"{key}={json.dumps(value)}"])
            build("strategy", strategies.get(config.strategy.name), config.strategy.options)
            assert config not in seen, f"{key} changes nothing"
            seen.append(config)
        assert before.space == config.space
