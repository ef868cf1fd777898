"""Loops compiled by Numba: their threads, their code on disk, and processes forked from one that ran them."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys

import numba
import pytest
import torch

import acla_nas.ops.jit as jit_module
from acla_nas.ops.jit import jit, share_threads

OPERATOR = """
import torch
from acla_nas.ops import cross_layer_gather

def results(size=48):
    generator = torch.Generator().manual_seed(0)
    value, offsets, weights, grad = (
        torch.randn(2, *shape, size, size, generator=generator) for shape in ([8], [1, 16, 2], [1, 16], [8])
    )
    inputs = [x.requires_grad_() for x in (value, 3 * offsets, weights)]
    out = cross_layer_gather([inputs[0]], *inputs[1:])
    return [out.detach(), *torch.autograd.grad(out, inputs, grad)]
"""


def run_python(code, **variables):
    """Run code that has the operator at hand in a process of its own."""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    done = subprocess.run(
        [sys.executable, "-c", OPERATOR + code],
        env=environment | variables,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture
def set_threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_threads_are_as_many_as_pytorchs(set_threads):
    most = numba.config.NUMBA_NUM_THREADS
    for count in (1, most, most + 3):
        set_threads(count)
        assert share_threads() == numba.get_num_threads() == min(count, most)
        assert torch.get_num_threads() == count


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="one core")
@pytest.mark.parametrize("threads", [1, 3])
def test_the_first_call_leaves_pytorch_its_threads(threads):
    code = f"torch.set_num_threads({threads}); results(); print(torch.get_num_threads())"
    assert run_python(code, NUMBA_NUM_THREADS="2").stdout.split() == [str(threads)]


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="one core")
def test_results_are_the_same_with_any_threads_and_from_run_to_run():
    code = """
first = results()
for threads in (2, 1, 1, 2):
    torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(results(), first, strict=True))
"""
    run_python("torch.set_num_threads(2)" + code, NUMBA_NUM_THREADS="2")


FORKED = """
import multiprocessing

def child(queue):
    torch.set_num_threads(1)  # as in DataLoader's workers: PyTorch's own threads do not outlive a fork
    queue.put([x.numpy() for x in results()])

torch.set_num_threads(2)
if {before}:
    expected = results()
context = multiprocessing.get_context("fork")
queue = context.Queue()
process = context.Process(target=child, args=(queue,))
process.start()
found = [torch.from_numpy(x) for x in queue.get(timeout=200)]
process.join(60)
assert process.exitcode == 0
torch.testing.assert_close(found, results(), rtol=1e-5, atol=1e-5)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.parametrize("before", [True, False])
def test_a_forked_process_runs_the_operator(before):
    """With Numba's OpenMP the child of a process that has run loops would be ended."""
    run_python(FORKED.format(before=before), NUMBA_NUM_THREADS="2")


CALLED = """
from package.ops.jit import jit

@jit()
def called(x):
    return {}
"""
CALLING = """
from package.ops.called import called
from package.ops.jit import jit

@jit({})
def calling(x):
    return called(x)
"""


@pytest.mark.parametrize("options", ["", "parallel=True"])
def test_a_function_is_compiled_anew_where_one_that_it_calls_was_changed(options, tmp_path):
    for folder in ("ops", "attention"):
        (tmp_path / "package" / folder).mkdir(parents=True)
    shutil.copy(jit_module.__file__, tmp_path / "package/ops/jit.py")
    (tmp_path / "package/attention/calling.py").write_text(CALLING.format(options))

    def result():
        code = "from package.attention.calling import calling; print(calling(5))"
        return int(subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True).stdout)

    for formula, expected in (("x + 1", 6), ("x * 2", 10), ("x + 1", 6)):
        (tmp_path / "package/ops/called.py").write_text(CALLED.format(formula))
        assert result() == expected
    assert len(list(tmp_path.glob("package/attention/__pycache__/calling.*.nbi"))) == 2


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("stream", [Terminal, io.StringIO])
def test_a_terminal_is_told_once_what_is_waited_for(stream, monkeypatch):
    monkeypatch.setattr(jit_module._notice, "is_given", False)
    monkeypatch.setattr(sys, "stderr", stream())
    numba.njit(lambda x: x + 1)(1)  # another's
    assert sys.stderr.getvalue() == ""
    for number in (1, 2.0):  # compiled for each
        jit()(lambda x: x + 1)(number)
    assert sys.stderr.getvalue().count("compiling loops") == (stream is Terminal)


def test_a_function_without_a_file_is_compiled_all_the_same():
    scope = {"jit": jit, "prange": numba.prange}
    code = (
        "@jit({})\ndef add(x):\n    total = 0\n    for i in prange(len(x)): total += x[i]\n    return total"
    )
    numbers = torch.arange(10).numpy()
    for options in ("", "parallel=True"):
        exec(code.format(options), scope)
        assert scope["add"](numbers) == 45
