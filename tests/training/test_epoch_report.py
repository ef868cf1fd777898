"""EpochReport: the history, its CSV file, what NNI hears, and what is printed."""

from __future__ import annotations

import csv
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from acla_nas import evaluation
from acla_nas.data import list_images
from acla_nas.nni_nas import LightningModule, nni
from acla_nas.tasks import SuperResolution
from acla_nas.training import EpochReport, epoch_report


class Module(LightningModule):
    """Holds a network; logging goes to a dict."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.set_model(network)
        self.logged: dict[str, float] = {}

    def log(self, name: str, value: Any, **_: Any) -> None:
        self.logged[name] = float(value)


def after_epoch(report: EpochReport, module: Any, epoch: int, **metrics: float) -> None:
    trainer: Any = SimpleNamespace(
        current_epoch=epoch,
        max_epochs=2,
        callback_metrics={name: torch.tensor(value) for name, value in metrics.items()},
    )
    report.on_train_epoch_end(trainer, module)


@pytest.fixture
def module() -> Module:
    return Module(nn.Upsample(scale_factor=2))


@pytest.fixture
def reported(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What NNI hears in a trial."""
    told: list[float] = []
    monkeypatch.setattr(nni, "get_current_parameter", lambda: {"seed": 1})
    monkeypatch.setattr(nni, "report_intermediate_result", told.append)
    return told


def test_psnr_is_that_of_the_whole_validation_images(images: Path, module: Module) -> None:
    task, paths = SuperResolution(2), list_images(images, "validation")
    report = EpochReport(task, paths, show=False)
    after_epoch(report, module, 0, train_loss=0.5)
    expected = evaluation.evaluate(nn.Upsample(scale_factor=2), task, paths).psnr
    (row,) = report.history
    assert row["val_psnr"] == module.logged["val_psnr"] == pytest.approx(expected)
    assert (row["epoch"], row["train_loss"]) == (1, 0.5) and row["seconds"] >= 0


def test_network_is_scored_on_its_own_device(
    images: Path, module: Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scoring moves a network to a device; elsewhere than where it trains, the next step would fail."""
    devices = []

    def evaluate(*arguments: Any, device: Any = "cpu") -> Any:
        devices.append(torch.device(device))
        return SimpleNamespace(psnr=30.0)

    monkeypatch.setattr(epoch_report, "evaluate", evaluate)
    module.to("meta")
    after_epoch(EpochReport(SuperResolution(2), list_images(images, "validation"), show=False), module, 0)
    assert devices == [torch.device("meta")]


def test_network_of_a_wrapped_module(images: Path, module: Module) -> None:
    report = EpochReport(SuperResolution(2), list_images(images, "validation"), show=False)
    wrapper = SimpleNamespace(training_module=module, device="cpu", log=module.log)
    after_epoch(report, wrapper, 0)
    after_epoch(report, module, 1)
    assert report.history[0]["val_psnr"] == report.history[1]["val_psnr"]


def test_csv_has_a_row_per_epoch_as_soon_as_it_is_known(images: Path, module: Module, tmp_path: Path) -> None:
    path = tmp_path / "new" / "metrics.csv"
    report = EpochReport(SuperResolution(2), list_images(images, "validation"), csv_path=path, show=False)
    after_epoch(report, module, 0, train_loss=0.5)
    assert len(path.read_text().splitlines()) == 2
    after_epoch(report, module, 1, train_loss=0.25, open=3.0)  # what is logged may differ between stages
    with path.open() as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert [row["train_loss"] for row in rows] == ["0.5", "0.25"]
    assert [row["open"] for row in rows] == ["", "3.0"]
    assert float(rows[1]["val_psnr"]) == report.history[1]["val_psnr"]


def test_nni_hears_of_each_epoch_in_a_trial(images: Path, module: Module, reported: list[float]) -> None:
    report = EpochReport(SuperResolution(2), list_images(images, "validation"), show=False)
    after_epoch(report, module, 0)
    after_epoch(report, module, 1)
    assert reported == [row["val_psnr"] for row in report.history] and len(reported) == 2


def test_nni_hears_nothing_outside_of_a_trial(
    images: Path, module: Module, reported: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nni, "get_current_parameter", lambda: None)
    after_epoch(EpochReport(SuperResolution(2), list_images(images, "validation"), show=False), module, 0)
    assert reported == []


def test_no_validation_no_psnr(module: Module, reported: list[float]) -> None:
    report = EpochReport(SuperResolution(2), [], show=False)
    after_epoch(report, module, 0, train_loss=0.5)
    assert "val_psnr" not in report.history[0] and reported == []


def test_line_per_epoch(images: Path, module: Module, capsys: pytest.CaptureFixture[str]) -> None:
    report = EpochReport(SuperResolution(2), [])
    report.on_fit_start(None, None)  # type: ignore[arg-type]
    after_epoch(report, module, 0, train_loss=0.5, open=3, cost=1234567.0, temperature=2)
    expected = "epoch 1/2  loss 0.5  open gates 3  expected cost 1.23e+06  0 s\n"
    assert capsys.readouterr().out == expected
    report.show = False
    after_epoch(report, module, 1)
    assert capsys.readouterr().out == ""
