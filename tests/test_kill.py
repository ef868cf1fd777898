"""SIGKILL at any moment of a search, a retraining, a multi-trial search or a comparison: it ends as without.

As a script it kills at as many random moments of each stage as it is told, and says what it has seen:

    python tests/test_kill.py --kills 10
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from acla_nas import durable, experiment
from acla_nas.bench.compare import Comparison
from acla_nas.config import Config, parse_config
from acla_nas.data import imresize, save_image
from acla_nas.exporter import save_weights

STAGE_1, STAGE_2, STEPS = 3, 3, 3  # epochs, and steps of each
TOLD = {"front.png", "config.yml", "run.json", "log.txt"}  # which hold times and the name of the folder


class Stage(NamedTuple):
    """What is killed: a run, and between which of its lines of output."""

    name: str
    run: Callable[[Config], Any]
    changes: dict[str, Any]
    first: int  # lines that have been printed when the stage begins
    last: int  # and when it ends


def search(config: Config) -> None:
    """Search, and keep the alphas beside what a search writes."""
    spaces = []
    make = experiment.make_space

    def make_and_keep(config: Config) -> Any:
        spaces.append(make(config))
        return spaces[-1]

    experiment.make_space = make_and_keep  # type: ignore[assignment]
    experiment.run_search(config)
    alphas = {n: p for n, p in spaces[-1].named_parameters() if n.endswith("alpha")}
    save_weights(alphas, Path(config.run, "alphas.safetensors"))


def retrain(config: Config) -> None:
    """Train, and keep the scores on the test images."""
    scores = experiment.run_training(config)
    Path(config.run, "scores.txt").write_text(repr(scores))


def compare(config: Config) -> None:
    for _ in Comparison(config).run():
        pass


ONE_SHOT = {"name": "two_stage", "epochs": [STAGE_1, STAGE_2], "cost_weight": 0.1}
COMPARISON = {
    "strategy": {**ONE_SHOT, "epochs": [1, 1], "initial_alpha": 5.0},
    "train": {"epochs": 2, "steps_per_epoch": STEPS, "learning_rate": 1e-3},
    "space": {"name": "edsr", "num_blocks": 3, "num_channels": 4, "num_keys": 2},
    "compare": {
        "variants": ["bare", "acla"],
        "seeds": [0],
        "num_modules": 1,
        "options": {"acla": {"gate_noise": True}},
    },
}
STAGES = [
    Stage("stage 1", search, {"strategy": ONE_SHOT}, 1, 1 + STAGE_1),
    Stage("stage 2", search, {"strategy": ONE_SHOT}, 1 + STAGE_1, 1 + STAGE_1 + STAGE_2),
    Stage("retraining", retrain, {}, 1, 7),
    Stage("multi-trial", search, {"strategy": {"name": "tpe", "trials": 4, "cost": "params"}}, 1, 5),
    Stage("comparison", compare, COMPARISON, 1, 10),
]


def configuration(images: Path, run: Path, changes: dict[str, Any]) -> Config:
    content: dict[str, Any] = {
        "space": {"name": "edsr", "num_blocks": 3, "num_channels": 4, "num_keys": 2, "gate_noise": True},
        "data": {split: str(images) for split in ("train", "validation", "test")},
        "search": {"steps_per_epoch": STEPS, "learning_rate": 1e-3},
        "train": {"epochs": 6, "steps_per_epoch": STEPS, "learning_rate": 1e-3},
        "device": "cpu",
        "run": str(run),
        **changes,
    }
    content["data"] |= {"patch_size": 8, "batch_size": 2}
    return parse_config(content, "test")


def begin(stage: Stage, config: Config, prepare: Callable[[], None] = lambda: None) -> tuple[int, Any]:
    """Run in a process of its own; return its number and what it prints."""
    reading, writing = os.pipe()
    process = os.fork()
    if process == 0:
        code = 1
        try:
            os.close(reading)
            os.dup2(writing, 1)
            sys.stdout = os.fdopen(1, "w")
            prepare()
            stage.run(config)
            sys.stdout.flush()
            code = 0
        finally:
            os._exit(code)
    os.close(writing)
    return process, os.fdopen(reading)


def finish(process: int, output: Any) -> int:
    """Wait for the end of a process; return its exit code, negative where a signal has ended it."""
    with output:
        output.read()
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def reference(stage: Stage, config: Config) -> list[float]:
    """Run without a kill; return the seconds from the first line of output to each of them."""
    process, output = begin(stage, config)
    times = [time.monotonic() for _ in output]
    assert finish(process, output) == 0
    return [moment - times[0] for moment in times]


def kill(stage: Stage, config: Config, seconds: float) -> int:
    """Run, kill that many seconds after the first line; return how many lines it has printed by then."""
    process, output = begin(stage, config)
    first = output.readline()
    time.sleep(seconds)
    os.kill(process, signal.SIGKILL)
    lines = [first, *output]
    finish(process, output)
    return len(lines)


def resume(stage: Stage, config: Config) -> None:
    assert finish(*begin(stage, config)) == 0


def same(run: Path, expected: Path) -> None:
    """Assert that two run folders hold the same, to the last bit, but for the time that it took."""
    names, expected_names = (
        {path.name for path in folder.iterdir() if path.is_file() and not path.name.startswith("trials.db")}
        for folder in (run, expected)
    )
    assert names == expected_names
    assert not any(name.endswith((".ckpt", ".partial")) for name in names)
    for name in names - TOLD:
        if name.endswith(".safetensors"):
            tensors = load_file(run / name)
            for key, value in load_file(expected / name).items():
                assert torch.equal(tensors[key], value), f"{name}: {key}"
        elif name == "results.jsonl":
            assert _runs_without_seconds(run / name) == _runs_without_seconds(expected / name)
        elif name == "metrics.csv":
            assert _without_seconds(run / name) == _without_seconds(expected / name)
        else:
            assert (run / name).read_bytes() == (expected / name).read_bytes(), name
    for kind in ("searches", "models"):  # of a comparison
        for folder in (expected / kind).glob("*"):
            same(run / kind / folder.name, folder)


def _runs_without_seconds(path: Path) -> list[dict[str, Any]]:
    return [{**json.loads(line), "seconds": None} for line in path.read_text().splitlines()]


def _without_seconds(path: Path) -> list[list[str]]:
    rows = [line.split(",") for line in path.read_text().splitlines()]
    column = rows[0].index("seconds")
    return [row[:column] + row[column + 1 :] for row in rows]


def kill_at_random(stage: Stage, images: Path, folder: Path, kills: int, seed: int) -> list[float]:
    """Kill within a stage, so many times, each time a fresh run; return the moments."""
    rng = random.Random(seed)
    expected = folder / "expected"
    times = reference(stage, configuration(images, expected, stage.changes))
    begin_, end = times[stage.first - 1], times[stage.last - 1]
    moments: list[float] = []
    for attempt in range(10 * kills):
        if len(moments) == kills:
            break
        config = configuration(images, folder / f"run{attempt}", stage.changes)
        moment = rng.uniform(begin_, end)
        lines = kill(stage, config, moment)
        if stage.first <= lines <= stage.last:
            moments.append(moment)
        resume(stage, config)
        same(Path(config.run), expected)
    assert len(moments) == kills, "this machine is too unsteady to hit the stage"
    return moments


def make_images(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    for name in "abc":
        save_image(imresize(rng.integers(0, 256, (6, 5, 3), dtype=np.uint8), 8), folder / f"{name}.png")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
def test_a_kill_at_a_random_moment_changes_nothing(stage: Stage, images: Path, tmp_path: Path) -> None:
    kill_at_random(stage, images, tmp_path, kills=2, seed=int(time.time()))


def dying_at(number: int) -> Callable[[], None]:
    """Return what makes a process kill itself at so many of the steps in which it writes its files."""

    def prepare() -> None:
        done = 0

        def counted(call: Callable[..., Any]) -> Callable[..., Any]:
            def step(*arguments: Any, **options: Any) -> Any:
                nonlocal done
                if done == number:
                    os.kill(os.getpid(), signal.SIGKILL)
                done += 1
                return call(*arguments, **options)

            return step

        durable._flush = counted(durable._flush)
        os.replace = counted(os.replace)
        Path.unlink = counted(Path.unlink)  # type: ignore[method-assign]

    return prepare


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES[1:], ids=lambda stage: stage.name)
def test_kills_while_it_writes_change_nothing(stage: Stage, images: Path, tmp_path: Path) -> None:
    changes = {
        **stage.changes,
        **({"strategy": {**ONE_SHOT, "epochs": [1, 2]}} if stage.name == "stage 2" else {}),
        **({"train": {"epochs": 3, "steps_per_epoch": 1}} if stage.name == "retraining" else {}),
    }
    if stage.name == "multi-trial":
        changes["strategy"] = {**changes["strategy"], "trials": 2}
    expected = tmp_path / "expected"
    reference(stage, configuration(images, expected, changes))
    config = configuration(images, tmp_path / "run", changes)
    number = 0
    while True:  # one run, killed again and again, some steps later each time
        code = finish(*begin(stage, config, dying_at(number)))
        if code == 0:
            break
        assert code == -signal.SIGKILL
        number += 3
        assert number < 200
    assert number >= 9
    same(Path(config.run), expected)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=10, help="of each stage")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        pictures = make_images(Path(temporary))
        for index, killed in enumerate(STAGES):
            work = Path(temporary, str(index))
            work.mkdir()
            begun = time.monotonic()
            at = kill_at_random(killed, pictures, work, options.kills, options.seed + index)
            print(
                json.dumps(
                    {
                        "stage": killed.name,
                        "kills": len(at),
                        "identical": len(at),
                        "seconds after the first line": [round(moment, 3) for moment in at],
                        "took": round(time.monotonic() - begun),
                    }
                ),
                flush=True,
            )
