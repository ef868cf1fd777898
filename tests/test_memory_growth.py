"""A long search needs no more memory than a short one."""

from __future__ import annotations

import ctypes
import gc
import json
import platform
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

STEPS, FIRST = 2_000, 200


def search(images: str, folder: str) -> None:
    """Search for 2,000 steps of stage 2, each of alphas and weights.

    Print MB in use, and Python objects, every 200 steps: without what the C library keeps of memory that has
    been freed, which is not lost and depends on how it is cut up.
    """
    import torch
    from test_experiment import tiny

    from acla_nas import experiment
    from acla_nas.attention import ACLA
    from acla_nas.attention.open_keys import open_key_shares
    from acla_nas.strategies.two_stage import TwoStageModule

    torch.set_num_threads(1)
    # Compiled loops are loaded when they are first called, those of validation as soon as a gate is open.
    attention, features = ACLA(4, 2).eval(), torch.rand(1, 4, 8, 8)
    with torch.no_grad():
        attention(features, {"1": features})
        with open_key_shares():
            attention(features, {"1": features})
    process, library = psutil.Process(), ctypes.CDLL("libc.so.6")
    step, steps, rows = TwoStageModule.training_step, [], []

    def training_step(module, batch, batch_idx):
        step(module, batch, batch_idx)
        steps.append(None)
        if len(steps) % FIRST == 0:
            gc.collect()
            library.malloc_trim(0)
            rows.append((process.memory_info().rss / 2**20, len(gc.get_objects())))

    TwoStageModule.training_step = training_step
    strategy = {"epochs": [0, STEPS // 100]}
    experiment.run_search(
        tiny(Path(images), Path(folder), strategy=strategy, search={"steps_per_epoch": 100})
    )
    assert len(steps) == STEPS
    print(json.dumps(rows))


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="freed memory is given back by glibc's call")
def test_memory_does_not_grow_over_two_thousand_steps(images: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, __file__, str(images), str(tmp_path / "run")],
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr
    megabytes, objects = zip(*json.loads(done.stdout.splitlines()[-1]))
    print(f"every {FIRST} steps: {[round(m, 1) for m in megabytes]} MB, {objects} objects")
    assert max(megabytes) <= 1.02 * megabytes[0]
    assert max(objects) <= 1.01 * objects[0]


if __name__ == "__main__":
    search(*sys.argv[1:])
