"""Launches that remember what was compiled: for the same kinds of arguments, and no others."""

from __future__ import annotations

import pytest
import torch

from acla_nas.ops import launch as launches


class Kernel:
    """Stands for a kernel; what it is compiled to remembers how it is launched."""

    def __init__(self, compiles=True):
        self.compiled, self.launched, self._compiles = [], [], compiles

    def __getitem__(self, grid):
        def compile_and_launch(*arguments, num_warps, **constants):
            self.compiled.append((grid, arguments, num_warps, constants))
            return Compiled(self) if self._compiles else None

        return compile_and_launch


class Compiled:
    def __init__(self, kernel):
        self.kernel = kernel

    def __getitem__(self, grid):
        return lambda *arguments: self.kernel.launched.append((grid, arguments))


@pytest.fixture(autouse=True)
def _forgotten(monkeypatch):
    monkeypatch.setattr(launches, "_compiled", {})


def test_is_compiled_once():
    kernel, numbers = Kernel(), torch.zeros(4)
    for _ in range(3):
        launches.launch(kernel, (5, 2), numbers, 7, num_warps=4, BLOCK=8)
    assert kernel.compiled == [((5, 2), (numbers, 7), 4, {"BLOCK": 8})]
    assert kernel.launched == 2 * [((5, 2, 1), (numbers, 7, 8))]


@pytest.mark.parametrize("argument", [torch.zeros(4).half(), torch.zeros(8)[1:], 1, 1.0, True])
def test_is_compiled_for_each_kind_of_argument(argument):
    kernel = Kernel()
    for other in (torch.zeros(4), 7, argument):
        launches.launch(kernel, (1,), other, num_warps=4, BLOCK=8)
    launches.launch(kernel, (1,), argument, num_warps=2, BLOCK=8)
    launches.launch(kernel, (1,), argument, num_warps=4, BLOCK=4)
    assert len(kernel.compiled) == 5 and not kernel.launched


def test_what_does_not_compile_is_called_again():
    """As in the interpreter."""
    kernel = Kernel(compiles=False)
    for _ in range(2):
        launches.launch(kernel, (1,), 7, num_warps=4)
    assert len(kernel.compiled) == 2


def test_remembers_no_more_than_so_many(monkeypatch):
    monkeypatch.setattr(launches, "_MOST", 2)
    kernel = Kernel()
    for number in (2, 3, 4, 4):
        launches.launch(kernel, (1,), number, num_warps=4)
    assert len(launches._compiled) == 1 and len(kernel.compiled) == 3 and len(kernel.launched) == 1
