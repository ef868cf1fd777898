"""The live display: what it shows in a terminal, and that it is not there elsewhere."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

import acla_nas
from acla_nas import live
from acla_nas.live import LiveDisplay
from acla_nas.strategies import Exhaustive, TwoStage
from acla_nas.tasks import SuperResolution
from acla_nas.training import make_evaluator


def terminal(width=110):
    return Console(file=io.StringIO(), force_terminal=True, width=width, color_system=None)


def test_what_it_shows(capsys):
    console = terminal()
    display = LiveDisplay("epoch", 4, done=1, console=console)
    display.update(2.5, "PSNR 30.10 dB  3 open gates")
    print("a line of the run")
    display.close()
    shown = console.file.getvalue()
    assert "epoch 2/4" in shown and "epoch 3/4" in shown and "PSNR 30.10 dB  3 open gates" in shown
    assert "a line of the run\n" in shown and shown.endswith("\x1b[2K")  # taken away, the cursor is back
    assert "\x1b[?25h" in shown


def test_in_a_narrow_terminal_the_figures_give_way():
    console = terminal(width=50)
    display = LiveDisplay("epoch", 200, done=1, console=console)
    display.update(2.5, "PSNR 30.10 dB  expected cost 5.54e+07  3 open gates")
    display.close()
    [shown] = [line for line in console.file.getvalue().splitlines() if "epoch 3/200" in line]
    assert "left PSNR 30.10" in shown and "…" in shown and "gates" not in shown


def test_nothing_in_a_pipe():
    console = Console(file=io.StringIO())
    display = LiveDisplay("epoch", 4, console=console)
    display.update(1, "PSNR")
    display.close()
    assert console.file.getvalue() == ""


@pytest.fixture
def space():
    return acla_nas.search_spaces.edsr(num_blocks=2, num_channels=4, num_keys=2)


@pytest.fixture
def console(monkeypatch):
    console = terminal()
    monkeypatch.setattr(live, "Console", lambda: console)
    return console


def recipe(images):
    sources = {"train": str(images), "validation": str(images)}
    return {**sources, "steps_per_epoch": 2, "batch_size": 2, "patch_size": 8, "device": "cpu"}


def test_a_search_shows_its_figures(space, images, console):
    acla_nas.search(space, TwoStage(epochs=(1, 1)), make_evaluator(SuperResolution(2), **recipe(images)))
    shown = console.file.getvalue()
    assert "epoch 1/2" in shown and "epoch 2/2" in shown and "left" in shown
    assert "dB  expected cost" in shown and "open gates" in shown


def test_it_goes_away_when_a_training_fails(space, images, console):
    evaluator = make_evaluator(SuperResolution(2), **recipe(images))

    def fail(*arguments):
        raise RuntimeError("out of memory")

    evaluator.module.training_step = fail
    with pytest.raises(RuntimeError, match="out of memory"):
        acla_nas.search(space, TwoStage(epochs=(1, 1)), evaluator)
    assert console.file.getvalue().count("\x1b[?25l") == console.file.getvalue().count("\x1b[?25h") == 1


def test_a_search_by_trials_shows_the_best(space, console):
    acla_nas.search(space, Exhaustive(cost="params"), lambda network: 30 + len(network.positions))
    shown = console.file.getvalue()
    assert "trial 4/4" in shown and "best 32.00 at" in shown and "parameters" in shown
