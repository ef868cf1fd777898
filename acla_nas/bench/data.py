"""data: patches that are loaded in a second, beside those that training the bare backbone uses up."""

from __future__ import annotations

import itertools
import statistics
import time
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F

from acla_nas.config import Config
from acla_nas.experiment import choose_device, make_space, make_task
from acla_nas.network import backbone_only
from acla_nas.training import make_evaluator

_WARM_UP = 2  # batches or steps that do not count


@dataclass(frozen=True)
class DataCheck:
    """How fast patches are loaded and used up.

    Attributes:
        device: of the training.
        workers: processes that load.
        batch_size: patches in a batch.
        loaded: patches per second, median over batches; the trainer waits meanwhile.
        used: patches per second, median over steps: forward, backward and Adam of the bare backbone, the
            fastest training that there is.
    """

    device: str
    workers: int
    batch_size: int
    loaded: float
    used: float

    def text(self) -> str:
        """Return the check as plain text."""
        return (
            f"batches of {self.batch_size}, {self.workers} workers: {self.loaded:.0f} patches/s loaded; the "
            f"bare backbone uses {self.used:.0f}/s in training on {self.device}: "
            f"{self.loaded / self.used:.1f} times as many are loaded"
        )

    def as_dict(self) -> dict[str, Any]:
        """Return everything as what JSON knows."""
        return {**asdict(self), "ratio": self.loaded / self.used}


def check_data(config: Config, *, runs: int = 15) -> DataCheck:
    """Load batches as a search of this configuration does, then train the bare backbone on them.

    Args:
        config: its data, task, space and device.
        runs: batches and steps that count.
    """
    device, task = choose_device(config), make_task(config)
    with backbone_only():
        network = make_space(config).network.to(device).train()
    options = config.data.model_dump(exclude={"test"})
    count = _WARM_UP + runs
    evaluator = make_evaluator(task, device=device, seed=config.seed, steps_per_epoch=count, **options)
    loader = evaluator.train_dataloaders
    waits, batches = [], []
    start = time.perf_counter()
    for batch in itertools.islice(loader, count):
        waits.append(time.perf_counter() - start)
        batches.append(batch)
        start = time.perf_counter()
    optimizer = torch.optim.Adam(network.parameters())
    steps = []
    for lq, hq in batches:
        start = time.perf_counter()
        optimizer.zero_grad()
        F.l1_loss(network(lq.to(device)), hq.to(device)).backward()
        optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()
        steps.append(time.perf_counter() - start)
    size = loader.batch_size
    loaded, used = (size / statistics.median(times[_WARM_UP:]) for times in (waits, steps))
    return DataCheck(device, loader.num_workers, size, loaded, used)
