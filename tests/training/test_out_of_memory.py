"""A step that runs out of memory is done again in less: the same training up to rounding, or a clear end."""

from __future__ import annotations

import csv
import json
import os
import platform
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file
from test_experiment import tiny

from acla_nas import experiment, search_spaces
from acla_nas.config import Named
from acla_nas.errors import AclaError, AclaWarning
from acla_nas.network import CrossLayerNetwork
from acla_nas.training.out_of_memory import affordable_loss


class Small:
    """A device on which no more images than `limit` fit in a pass with gradients, from call `first` on.

    Args:
        where: "forward", or "backward" to run out of memory there.
    """

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, limit: int, first: int = 1, where: str = "forward"
    ) -> None:
        self.limit, self.first, self.where = limit, first, where
        self.calls, self.sizes = 0, []
        forward = CrossLayerNetwork._forward

        def limited(network: Any, images: torch.Tensor, **options: Any) -> Any:
            result = forward(network, images, **options)
            if network.training and torch.is_grad_enabled():
                self.calls += 1
                self.sizes.append(len(images))
                if len(images) > self.limit and self.calls >= self.first:
                    if where == "forward":
                        fail()
                    result.register_hook(fail)
            return result

        monkeypatch.setattr(CrossLayerNetwork, "_forward", limited)


def fail(*_: Any) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


WARNED = r"no memory is left for a training step: .* in the backward pass, {} at a time"


def trained(run: Path, images: Path, arch: Path) -> dict[str, torch.Tensor]:
    config = tiny(images, run, data={"batch_size": 4}, arch=str(arch), train={"steps_per_epoch": 3})
    experiment.run_training(config)
    return load_file(run / "weights.safetensors")


@pytest.fixture
def arch(tmp_path: Path) -> Path:
    space = search_spaces.edsr(num_blocks=2, num_channels=4, num_keys=2)
    return space.arch({"insert/1": True, "insert/2": True, "keys": 2}).save(tmp_path / "arch.json")


def losses(run: Path) -> list[float]:
    with (run / "metrics.csv").open() as file:
        return [float(row["train_loss"]) for row in csv.DictReader(file)]


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_a_training_goes_on_in_smaller_groups(
    where: str, arch: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory runs out in the second epoch; all of it is as without, up to rounding."""
    expected = trained(tmp_path / "whole", images, arch)
    small = Small(monkeypatch, 1, first=5, where=where)
    with pytest.warns(AclaWarning, match=WARNED.format("1 patch")):
        found = trained(tmp_path / "small", images, arch)
    assert small.sizes[:5] == [4] * 5 and set(small.sizes[-8:]) == {1}
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=1e-3, atol=1e-5)
    assert losses(tmp_path / "small") == pytest.approx(losses(tmp_path / "whole"), rel=1e-5)


@pytest.mark.parametrize("where", ["forward", "backward"])
@pytest.mark.parametrize("name", ["two_stage", "darts", "gumbel_darts", "proxyless", "random_one_shot"])
def test_a_search_goes_on_in_smaller_groups(
    name: str, where: str, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In steps of the weights and of the alphas, with the gates drawn as without."""
    epochs = 2 if name == "random_one_shot" else [1, 1]
    found = []
    for run in ("whole", "small"):
        strategy = {"name": name, "epochs": epochs}
        config = tiny(images, tmp_path / run, data={"batch_size": 4}).model_copy(
            update={"strategy": Named(**strategy)}
        )
        if run == "small":
            Small(monkeypatch, 2, first=3, where=where)
            with pytest.warns(AclaWarning, match=WARNED.format("2 patches")):
                found.append(experiment.run_search(config))
        else:
            found.append(experiment.run_search(config))
    assert found[0].arch == found[1].arch
    assert found[1].probabilities == pytest.approx(found[0].probabilities, rel=1e-4)
    assert losses(tmp_path / "small") == pytest.approx(losses(tmp_path / "whole"), rel=1e-4)


def test_no_memory_for_a_single_patch_is_an_error(
    arch: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Small(monkeypatch, 0, first=4)
    with (
        pytest.warns(AclaWarning, match=WARNED.format("1 patch")),
        pytest.raises(AclaError, match=r"no memory is left .* of epoch 1: use a smaller data"),
    ):
        trained(tmp_path / "run", images, arch)


def test_another_error_is_not_taken_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    network = search_spaces.edsr(num_blocks=1, num_channels=4, num_keys=2).network.train()
    with pytest.raises(RuntimeError, match="size"):
        affordable_loss(network, 2, lambda: network(torch.rand(2, 5, 8, 8)).mean())
    assert not network.recompute and network.micro_batch is None


def test_gradients_are_those_of_the_plain_loss() -> None:
    """To the last bit, with a factor and a part of the loss that comes later, and with unused weights."""
    network = search_spaces.edsr(num_blocks=2, num_channels=4, num_keys=2).network.train()
    images, scale = torch.rand(2, 3, 8, 8), torch.tensor(2.0, requires_grad=True)

    def gradients(wrap: Callable[[Callable[[], torch.Tensor]], torch.Tensor]) -> list[torch.Tensor | None]:
        loss = wrap(lambda: network(images, gates={2: False}).square().mean())
        wanted = [*(p for p in network.parameters() if p.requires_grad), scale]
        return list(torch.autograd.grad(scale * loss + scale**2, wanted, allow_unused=True))

    plain = gradients(lambda compute: compute())
    found = gradients(lambda compute: affordable_loss(network, 2, compute))
    assert any(x is None for x in plain)
    for x, y in zip(plain, found):
        assert (x is None and y is None) or torch.equal(x, y)


def train_in(megabytes: str) -> None:
    """Take steps of one network with as much further memory, and print how many patches fit at a time."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    network = search_spaces.edsr(num_blocks=4, num_channels=32, num_keys=4).network.train()
    lq = torch.rand(16, 3, 64, 64)

    def compute(images: torch.Tensor) -> torch.Tensor:
        return network(images).square().mean()

    affordable_loss(network, 1, lambda: compute(lq[:1, :, :8, :8])).backward()  # what is set up once
    used = psutil.Process().memory_info().vms
    resource.setrlimit(resource.RLIMIT_AS, (used + int(megabytes) * 2**20, resource.RLIM_INFINITY))
    for _ in range(2):
        network.zero_grad()
        affordable_loss(network, 16, lambda: compute(lq)).backward()
    norm = torch.stack([p.grad.norm() for p in network.parameters() if p.grad is not None]).norm()
    print(json.dumps([network.micro_batch, float(norm)]))


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="has glibc give back what is freed")
def test_memory_that_really_runs_out() -> None:
    """The system gives the process no more than 150 MB beyond what it begins with."""

    def run(megabytes: int) -> list[float]:
        tests = str(Path(__file__).resolve().parents[1])
        done = subprocess.run(
            [sys.executable, __file__, str(megabytes)],
            env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "PYTHONPATH": tests},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    (plenty, expected), (short, norm) = run(100_000), run(150)
    assert plenty is None and short in (1, 2, 4, 8)
    assert norm == pytest.approx(expected, rel=1e-4)


if __name__ == "__main__":
    train_in(sys.argv[1])
