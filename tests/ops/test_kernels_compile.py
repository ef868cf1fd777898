"""The Triton kernels compile for GPUs, though there be none: all of a launch but the launch itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
SCRIPT = Path(__file__).with_name("compile_kernels.py")
KERNELS = {"_forward", "_backward_by_query", "_cells", "_backward_by_pixel"}
WIDE_LOADS = {"_forward": 4, "_backward_by_query": 4, "_backward_by_pixel": 1}  # rows: around a key, of one
PRODUCTS = {"_spread", "_multiply", "_take_products", "_collect"}  # of ACLA, with matrices
ATTENTION_KERNELS = {*PRODUCTS, "_add_far", "_weigh", "_differentiate", "_collect_masks", "_sum_masks"}


def compiled(tmp_path, *arguments):
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    run = subprocess.run(
        [sys.executable, str(SCRIPT), *arguments],
        env={**environment, "TRITON_CACHE_DIR": str(tmp_path), "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    return [json.loads(line) for line in run.stdout.splitlines()]


def test_kernels_fit_a_gpu(tmp_path):
    rows = compiled(tmp_path, "90", "1")
    assert {row["kernel"] for row in rows} == KERNELS | ATTENTION_KERNELS and len(rows) == 13
    for row in rows:
        assert row["spilled"] == 0 and row["registers"] <= (96 if row["kernel"] in KERNELS else 168), row
        if row["kernel"] in WIDE_LOADS:
            assert row["wide_loads"] >= WIDE_LOADS[row["kernel"]], row
        if row["kernel"] in PRODUCTS:
            assert row["tensor_cores"], row


@pytest.mark.slow
@pytest.mark.parametrize("capability", ["80", "90"])
def test_kernels_of_all_sizes_fit_a_gpu(tmp_path, capability):
    rows = compiled(tmp_path, capability)
    assert {row["kernel"] for row in rows} == KERNELS | ATTENTION_KERNELS
    assert len({row["case"] for row in rows}) == 10
    for row in rows:
        assert row["spilled"] <= 16, row


@pytest.mark.slow
def test_launches_of_known_kernels_are_those_of_triton(tmp_path):
    calls = compiled(tmp_path, "90", "launches")
    assert {name for call in calls for name, *_ in call["first"]} == KERNELS | ATTENTION_KERNELS
    for call in calls:
        assert call["first"] == call["second"]
