"""Searching and training in several processes: all ranks agree, with each other and with one process."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

import acla_nas
from acla_nas.arch import Arch
from acla_nas.cli import main as command_line
from acla_nas.config import load_config
from acla_nas.errors import AclaError
from acla_nas.experiment import run_search
from acla_nas.strategies import DARTS, GumbelDARTS, Proxyless, RandomOneShot, TwoStage
from acla_nas.tasks import SuperResolution
from acla_nas.training import make_evaluator, train

SEARCH = {"epochs": (1, 2), "cost_weight": 0.1, "alpha_learning_rate": 0.05}
STRATEGIES = {
    "two_stage": lambda: TwoStage(**SEARCH),
    "darts": lambda: DARTS(**SEARCH),
    "gumbel_darts": lambda: GumbelDARTS(**SEARCH),
    "proxyless": lambda: Proxyless(**SEARCH),
    "random_one_shot": lambda: RandomOneShot(epochs=3),
}


class Stop(pl.Callback):
    """Ends a search at the beginning of its last epoch."""

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.current_epoch == 2:
            raise RuntimeError("stopped")


def make_space() -> acla_nas.CrossLayerSpace:
    pl.seed_everything(0, verbose=False)
    return acla_nas.search_spaces.edsr(num_blocks=2, num_channels=4, num_keys=[2, 4])


def evaluator(images: str, devices: int) -> Any:
    return make_evaluator(
        SuperResolution(2),
        train=images,
        validation=images,
        epochs=2,
        steps_per_epoch=3,
        batch_size=4,
        patch_size=8,
        learning_rate=1e-3,
        gradient_clip=1.0,
        device="cpu",
        devices=devices,
        progress=False,
    )


def searched(name: str, images: str, devices: int, folder: Path, stop: bool = False) -> dict[str, Any]:
    space, judge = make_space(), evaluator(images, devices)
    if stop:
        judge.trainer.callbacks.append(Stop())
    result = acla_nas.search(space, STRATEGIES[name](), judge, folder=folder)
    alphas = {name: p.detach() for name, p in space.named_parameters() if name.endswith("alpha")}
    numbers = {**alphas, **{f"weights {n}": w for n, w in result.weights.items()}}
    return {"numbers": numbers, "arch": result.arch.model_dump(), "history": result.history}


def retrained(images: str, devices: int) -> dict[str, Any]:
    network = make_space().freeze({"insert/1": True, "insert/2": True, "keys": 4})
    history = train(network, evaluator(images, devices))
    return {"numbers": dict(network.state_dict()), "arch": None, "history": history}


def run_all(images: str, devices: int, folder: Path) -> dict[str, Any]:
    """Return what this process finds: in each search, in one that is resumed, and in a training."""
    found = {name: searched(name, images, devices, folder / name) for name in STRATEGIES}
    with pytest.raises(RuntimeError, match="stopped"):
        searched("two_stage", images, devices, folder / "resumed", stop=True)
    assert (folder / "resumed" / "search.ckpt").exists()
    found["resumed"] = searched("two_stage", images, devices, folder / "resumed")
    return {**found, "train": retrained(images, devices)}


def assert_close(a: dict[str, Any], b: dict[str, Any]) -> None:
    assert a["arch"] == b["arch"]
    assert set(a["numbers"]) == set(b["numbers"])
    for name, value in a["numbers"].items():
        assert torch.allclose(value, b["numbers"][name], rtol=0, atol=1e-5), name
    for row, other in zip(a["history"], b["history"], strict=True):
        assert {k: v for k, v in row.items() if k != "seconds"} == pytest.approx(
            {k: v for k, v in other.items() if k != "seconds"}, rel=1e-5
        )


@pytest.mark.slow
def test_two_processes_agree_with_each_other_and_with_one(images: Path, tmp_path: Path) -> None:
    command = [sys.executable, __file__, str(images), str(tmp_path)]
    subprocess.run(command, check=True, timeout=300, capture_output=True)
    ranks = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=False) for rank in range(2)]
    single = run_all(str(images), 1, tmp_path / "single")
    for name, expected in single.items():
        first, second = (rank[name] for rank in ranks)
        assert first["arch"] == second["arch"] and first["history"] == second["history"]
        for key, value in first["numbers"].items():
            assert torch.equal(value, second["numbers"][key]), f"{name}: {key} differs between ranks"
        assert_close(first, expected)
    for rank in ranks:  # to the last bit
        for key, value in rank["two_stage"]["numbers"].items():
            assert torch.equal(value, rank["resumed"]["numbers"][key]), key
    assert all(value.any() for key, value in single["two_stage"]["numbers"].items() if key.endswith("alpha"))


@pytest.fixture
def config(images: Path, tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yml"
    path.write_text(
        f"""
        space: {{name: edsr, num_blocks: 2, num_channels: 4, num_keys: 2}}
        strategy: {{name: two_stage, epochs: [1, 1]}}
        data: {{train: {images}, validation: {images}, test: {images}, patch_size: 8, batch_size: 2}}
        search: {{steps_per_epoch: 2}}
        train: {{steps_per_epoch: 2}}
        device: cpu
        """,
        encoding="utf-8",
    )
    return path


def rows(run: Path) -> list[dict[str, float]]:
    with (run / "metrics.csv").open(newline="") as file:
        return [{k: float(v) for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


@pytest.mark.slow
def test_the_command_starts_its_processes(config: Path, tmp_path: Path) -> None:
    arguments = ["search", str(config), "devices=2", f"run={tmp_path}/two"]
    done = subprocess.run(
        [sys.executable, "-m", "acla_nas", *arguments], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    told = [line.split()[0] for line in done.stdout.splitlines() if not line.startswith("[Gloo]")]
    assert told == [
        "searching",
        "memory:",
        "epoch",
        "epoch",
        "positions:",
        "cost:",
        "architecture:",
        "weights:",
    ]
    run_search(load_config(config, [f"run={tmp_path}/one"]))
    assert Arch.load(tmp_path / "one" / "arch.json") == Arch.load(tmp_path / "two" / "arch.json")
    for row, other in zip(rows(tmp_path / "one"), rows(tmp_path / "two"), strict=True):
        assert row == pytest.approx(other, rel=1e-5)
    assert not list(tmp_path.glob("*/search.ckpt*"))


@pytest.mark.parametrize(
    ("command", "overrides", "message"),
    [
        ("search", ["devices=4"], "batch_size=2 cannot be shared evenly by 4 processes"),
        ("train", ["devices=3"], "use a multiple of 3"),
        ("search", ["nodes=2"], "torchrun --nnodes 2 --nproc_per_node 1"),
        ("search", ["devices=2", "strategy.name=random"], "strategy random has no supernet to train"),
        ("search", ["devices=0"], "devices must be greater than or equal to 1"),
    ],
)
def test_processes_that_cannot_be(
    command: str,
    overrides: list[str],
    message: str,
    config: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = tmp_path / "run"
    monkeypatch.setattr(sys, "argv", ["acla-nas", command, str(config), f"run={run}", *overrides])
    with pytest.raises(SystemExit) as exit_:
        command_line()
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err
    assert not run.exists()


def test_another_number_than_torchrun_started(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(AclaError, match="torchrun started 4 processes, but devices=2 on nodes=1 are 2"):
        evaluator(str(images), devices=2)


def test_more_devices_than_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(AclaError, match="devices=2, but PyTorch sees 1 GPUs"):
        make_evaluator(SuperResolution(2), device="cuda", devices=2)


if __name__ == "__main__":  # in two processes, the second of which Lightning starts
    torch.set_num_threads(1)
    found = run_all(sys.argv[1], 2, Path(sys.argv[2]) / "pair")
    torch.save(found, Path(sys.argv[2]) / f"rank{torch.distributed.get_rank()}.pt")
