"""SIGINT and SIGTERM: the step is finished, the end is said, and a second signal ends at once."""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from test_experiment import tiny

from acla_nas import experiment
from acla_nas.cli import main
from acla_nas.interruption import Stopped, asked, stop_if_asked, stoppable
from acla_nas.training.restoration import RestorationModule


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_the_first_asks_and_the_second_interrupts(signum: int, capfd: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signum)
    with stoppable(), stoppable():
        stop_if_asked("nothing yet")
        os.kill(os.getpid(), signum)
        assert asked() == signum
        with pytest.raises(Stopped, match="all of it") as stopped:
            stop_if_asked("all of it")
        assert stopped.value.signum == signum
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signum)
    assert signal.getsignal(signum) is before and asked() is None
    assert capfd.readouterr().err == "acla-nas: stopping after this step; once more to stop at once\n"


def test_a_thread_has_no_signals() -> None:
    def work() -> None:
        with stoppable():
            done.append(asked())

    done: list[Any] = []
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [None]


@pytest.mark.parametrize(("signum", "step", "told"), [
    (signal.SIGTERM, 1, "stopped after step 1 of epoch 1, which begins anew"),
    (signal.SIGINT, 4, "stopped after epoch 2"),
    (signal.SIGTERM, 5, "stopped after step 1 of epoch 3, which begins anew"),
    (signal.SIGTERM, 6, None),  # nothing is left to be stopped
])  # fmt: skip
def test_a_command_stops_and_goes_on(
    signum: int,
    step: int,
    told: str | None,
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Its step is finished, it says what is kept and how to go on, and then it ends as it would have."""
    train = {"epochs": 3, "steps_per_epoch": 2}
    expected = tiny(images, tmp_path / "expected", train=train)
    experiment.run_training(expected)
    config = tiny(images, tmp_path / "a run", train=train).save(tmp_path / "a run")
    (tmp_path / "config.yml").write_bytes(config.read_bytes())
    steps = 0
    training_step = RestorationModule.training_step

    def step_with_a_signal(self: Any, *arguments: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps == step:
            os.kill(os.getpid(), signum)
        return training_step(self, *arguments)

    monkeypatch.setattr(RestorationModule, "training_step", step_with_a_signal)
    arguments = ["acla-nas", "train", str(tmp_path / "config.yml"), f"run={tmp_path}/a run"]
    monkeypatch.setattr(sys, "argv", arguments)
    capfd.readouterr()
    if told is not None:
        with pytest.raises(SystemExit) as exit_:
            main()
        assert exit_.value.code == 128 + signum and steps == step
        lines = capfd.readouterr().err.splitlines()
        assert lines == [
            "acla-nas: stopping after this step; once more to stop at once",
            f"acla-nas: {told}",
            f"acla-nas: to go on: acla-nas train {tmp_path}/config.yml 'run={tmp_path}/a run'",
        ]
        assert not list(Path(tmp_path, "a run").glob("*.partial"))
    main()
    assert (f"going on after epoch {(step - 1) // 2 + (step == 4)}/3" in capfd.readouterr().out) == (
        step in (4, 5)
    )
    weights, whole = (load_file(tmp_path / run / "weights.safetensors") for run in ("a run", "expected"))
    assert all(torch.equal(weights[name], whole[name]) for name in whole)


def test_a_multi_trial_search_stops_between_trials(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny(images, tmp_path, strategy={"name": "random", "trials": 3, "epochs": None})
    config = config.model_copy(update={"strategy": type(config.strategy)(name="random", trials=3)})
    evaluated: list[int] = []

    class Scorer:
        def __call__(self, network: Any) -> float:
            evaluated.append(1)
            if len(evaluated) == 2:
                os.kill(os.getpid(), signal.SIGTERM)
            return 1.0

    monkeypatch.setattr(experiment, "_scorer", lambda *_: Scorer())
    with pytest.raises(Stopped, match="stopped before trial 3"):
        experiment.run_search(config)
    assert len(experiment.run_search(config).candidates) == 3 and len(evaluated) in (3, 4)
