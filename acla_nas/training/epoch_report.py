"""EpochReport: the validation PSNR of every epoch, to metrics.csv, to NNI and to the screen."""

from __future__ import annotations

import csv
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from acla_nas.durable import replacing
from acla_nas.evaluation import evaluate
from acla_nas.nni_nas import LightningModule, tell_nni
from acla_nas.run_record import say
from acla_nas.tasks import Task
from acla_nas.training.processes import from_main, is_main


class EpochReport(pl.Callback):
    """Scores the network on the validation images after each epoch and tells everybody who asks.

    During a search the network is the architecture derived so far, with the supernet's weights. Of several
    processes the main one scores and tells, and all have the same history.

    Args:
        task: the protocol.
        validation: image files; no PSNR where empty.
        csv_path: where a row per epoch is written, as it is known; nowhere where None.
        show: print a line per epoch.

    Attributes:
        history: one dict per epoch: epoch, val_psnr (dB), seconds, and what the training logged.
    """

    def __init__(
        self,
        task: Task,
        validation: Sequence[Path],
        *,
        csv_path: Path | None = None,
        show: bool = True,
    ) -> None:
        self.task, self.validation = task, validation
        self.csv_path, self.show = csv_path, show
        self.history: list[dict[str, Any]] = []
        self._start = 0.0

    def figures(self) -> str:
        """Return the newest figures in a few words; nothing before the first epoch has ended."""
        row = self.history[-1] if self.history else {}
        shown = {"val_psnr": "PSNR {:.2f} dB", "cost": "expected cost {:.3g}", "open": "{:.0f} open gates"}
        return "  ".join(text.format(row[name]) for name, text in shown.items() if name in row)

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint must hold for the report to go on."""
        return {"history": self.history}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the report of a checkpoint."""
        self.history = list(state_dict["history"])

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock, or let it go on from where the last epoch ended."""
        done = self.history[-1]["seconds"] if self.history else 0.0
        self._start = time.monotonic() - done
        if self.history and self.show and is_main():
            say(f"going on after epoch {len(self.history)}/{trainer.max_epochs}")

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Score, record, report."""
        row: dict[str, Any] = {"epoch": trainer.current_epoch + 1}
        row |= {name: float(value) for name, value in sorted(trainer.callback_metrics.items())}
        row |= from_main(lambda: self._score(pl_module))
        if self.validation:
            pl_module.log("val_psnr", row["val_psnr"], sync_dist=True)
        self.history.append(row)
        if not is_main():
            return
        if self.csv_path is not None:
            self._write_csv(self.csv_path)
        if self.validation:
            tell_nni(row["val_psnr"])
        if self.show:
            say(f"epoch {row['epoch']}/{trainer.max_epochs}  {_format(row)}")

    def _score(self, pl_module: pl.LightningModule) -> dict[str, float]:
        scored = {}
        if self.validation:
            network, device = network_of(pl_module), pl_module.device
            scored["val_psnr"] = evaluate(network, self.task, self.validation, device=device).psnr
        return {**scored, "seconds": round(time.monotonic() - self._start, 1)}

    def _write_csv(self, path: Path) -> None:
        columns = list(dict.fromkeys(name for row in self.history for name in row))
        with replacing(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(self.history)


def network_of(module: pl.LightningModule) -> Any:
    """Return the network in a Lightning module of ours, or in one that NNI has wrapped it in."""
    inner = getattr(module, "training_module", module)
    assert isinstance(inner, LightningModule)
    return inner.model


def _format(row: dict[str, Any]) -> str:
    shown = {"val_psnr": "PSNR {:.2f} dB", "train_loss": "loss {:.4g}", "open": "open gates {:.0f}"}
    shown |= {"cost": "expected cost {:.3g}", "seconds": "{:.0f} s"}
    return "  ".join(text.format(row[name]) for name, text in shown.items() if name in row)
