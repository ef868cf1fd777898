"""ACLA's form for a GPU against the general form: on a GPU, or where there is none in the interpreter."""

from __future__ import annotations

import pytest
import torch

from acla_nas.attention import ACLA, forms
from acla_nas.attention.open_keys import open_key_shares
from acla_nas.recomputation import recomputed_update
from tests.random_weights import randomize

pytest.importorskip("triton")
acla_gpu = pytest.importorskip("acla_nas.attention.acla_gpu")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
OPTIONS = [
    {},
    {"adaptive": False},
    {"shared_mask": True},
    {"softmax": "reference", "gate_temperature": 0.5},
    {"renormalize": True},
    {"renormalize": True, "adaptive": False},
]


@pytest.fixture(autouse=True)
def _for_a_gpu(monkeypatch):
    """The form for a CPU gives way, where there is no GPU; convolutions are as exact as they look."""
    monkeypatch.setattr("acla_nas.attention.acla_training.attend", acla_gpu.attend)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def make(options, *, batch=1, channels=5, keys=4, size=(9, 3), reach=1.0):
    """Return a module, and features of which the third is the query's."""
    torch.manual_seed(0)
    module = ACLA(channels, keys, 3, gate_bias=0.2, **{"zero_masks": False, **options}).train()
    randomize(module, 0.4)
    for layer in module.references.values():
        layer.offset.weight.data.mul_(reach)
    features = {name: torch.randn(batch, channels, *size) for name in ("1", "2", "3")}
    return module.to(DEVICE), {name: x.to(DEVICE) for name, x in features.items()}


def results(module, features, monkeypatch, *, fused=True, off="1"):
    """Return the update, the share of open keys, and all gradients, by name."""
    with monkeypatch.context() as patch:
        patch.setattr("acla_nas.attention.acla.is_fusable", lambda *_: fused)
        dtype = features["3"].dtype
        gates = {n: torch.tensor(float(n != off), requires_grad=True, device=DEVICE) for n in ("1", "2")}
        features = {name: x.detach().requires_grad_() for name, x in features.items()}
        with open_key_shares() as shares:
            update = module(features["3"], features, gates)
        weights = torch.linspace(-1, 1, update.numel(), dtype=dtype, device=DEVICE).view_as(update)
        loss = (update * weights).sum() + 3 * sum(shares)
        wanted = {f"gate {n}": gate for n, gate in gates.items()} | features
        wanted |= dict(module.named_parameters())
        gradients = torch.autograd.grad(loss, list(wanted.values()), allow_unused=True)
    found = {"update": update.detach()} | {f"share {i}": x.detach() for i, x in enumerate(shares)}
    return found | {
        n: torch.zeros_like(w) if g is None else g for (n, w), g in zip(wanted.items(), gradients)
    }


def in_float64(module, features, monkeypatch, off="1"):
    """Return what the general form finds with the same numbers."""
    exact = {name: x.double() for name, x in features.items()}
    return results(module.double(), exact, monkeypatch, fused=False, off=off)


def assert_near(actual, expected, tolerance):
    assert actual.keys() == expected.keys()
    for name, exact in expected.items():
        error = (actual[name].double() - exact).norm() / exact.norm().clamp(min=1e-30)
        assert error <= tolerance, (name, error)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_equals_the_general_form(options, monkeypatch):
    module, features = make(options, batch=2)
    monkeypatch.setattr(acla_gpu, "gather_triton", None)  # all keys are near
    actual = results(module, features, monkeypatch)
    assert_near(actual, in_float64(module, features, monkeypatch), 5e-5)
    assert actual["gate 1"].abs() > 1e-3  # the gate of a reference that is off has a gradient


@pytest.mark.parametrize(("options", "have_far"), [(OPTIONS[0], [1, 2]), (OPTIONS[2], [1])], ids=str)
def test_keys_that_are_far_are_read_too(options, have_far, monkeypatch):
    module, features = make(options, size=(11, 3), reach=6.0)
    before, calls = acla_gpu._Group._differentiate_far, []
    monkeypatch.setattr(
        acla_gpu._Group, "_differentiate_far", lambda *of: calls.append(of[-1]) or before(*of)
    )
    actual = results(module, features, monkeypatch)
    assert calls == have_far  # of three references, the last one off
    assert_near(actual, in_float64(module, features, monkeypatch), 5e-5)


@pytest.mark.slow
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("reach", [1.0, 6.0])
def test_equals_the_general_form_over_several_tiles(options, reach, monkeypatch):
    module, features = make(options, batch=2, channels=18, keys=5, size=(10, 9), reach=reach / 2)
    actual = results(module, features, monkeypatch)
    assert_near(actual, in_float64(module, features, monkeypatch), 1e-4)


LOW = [torch.float16] + [torch.bfloat16] * (DEVICE == "cuda")  # in which the interpreter has no products


@pytest.mark.parametrize("dtype", LOW)
def test_lower_precision_stays_near_float64(dtype, monkeypatch):
    module, features = make({}, channels=16, keys=3)
    module, features = module.to(dtype), {name: x.to(dtype) for name, x in features.items()}
    actual = results(module, features, monkeypatch, off=None)
    expected = in_float64(module, features, monkeypatch, off=None)
    for name in ("gate 1", "gate 2"):  # small sums of large terms
        del actual[name], expected[name]
    assert_near(actual, expected, 3e-2)


@pytest.mark.parametrize("dtype", LOW)
def test_under_autocast_its_dtype_is_used(dtype, monkeypatch):
    module, features = make({}, channels=16, keys=3)
    exact = results(module, features, monkeypatch, off=None)
    with torch.autocast(DEVICE, dtype):
        low = results(module, features, monkeypatch, off=None)
    assert low["update"].dtype == dtype and low["references.1.mask.weight"].dtype == torch.float32
    assert 1e-4 < (low["update"] - exact["update"]).norm() / exact["update"].norm() < 2e-2


def test_is_the_same_from_run_to_run(monkeypatch):
    module, features = make({})
    first, second = (results(module, features, monkeypatch) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_features_whose_channels_lie_together(monkeypatch):
    module, features = make({})
    planes = results(module, features, monkeypatch)
    last = {name: x.to(memory_format=torch.channels_last) for name, x in features.items()}
    assert_near(results(module, last, monkeypatch), planes, 1e-6)


def test_what_is_frozen_gets_no_gradient(monkeypatch):
    """An alpha step: of the weights nothing is wanted, and, as here, perhaps nothing of the features."""
    module, features = make({})
    expected = results(module, features, monkeypatch)["gate 2"]
    module.requires_grad_(False)
    gate = torch.ones((), requires_grad=True, device=DEVICE)
    monkeypatch.setattr(acla_gpu._Group, "_collect", None)
    off = torch.zeros((), device=DEVICE)
    with open_key_shares() as shares:
        update = module(features["3"], features, {"1": off, "2": gate})
    weights = torch.linspace(-1, 1, update.numel(), device=DEVICE).view_as(update)
    ((update * weights).sum() + 3 * sum(shares)).backward()
    torch.testing.assert_close(gate.grad, expected)


def test_a_second_backward_is_an_error():
    module, features = make({})
    features["1"].requires_grad_()
    update = module(features["3"], features)
    [gradient] = torch.autograd.grad(update.square().sum(), features["1"], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_which_features_are_taken(monkeypatch):
    monkeypatch.setattr(forms, "_has_triton", lambda device: device.type == "meta")
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)

    def taken(*shapes, dtype=torch.float32):
        query, *references = (torch.empty(shape, device="meta", dtype=dtype) for shape in shapes)
        return forms.is_fusable(query, references)

    assert taken((1, 8, 6, 6), (1, 8, 6, 6), (1, 8, 6, 6), dtype=torch.bfloat16)
    assert taken((1, 8, 6, 6), (1, 4, 6, 6)) and taken((1, 8, 6, 6))  # the latter to be in a stack
    assert not taken((1, 8, 6, 6), (1, 8, 6, 6), (1, 4, 6, 6))  # which are one matrix
    assert not taken((1, 8, 6, 6), (1, 8, 3, 3))
    assert not taken((1, 8, 6, 6), (1, 8, 6, 6), dtype=torch.float64)
    assert not taken((64, 256, 256, 256), (64, 256, 256, 256))
    monkeypatch.setattr(forms, "_has_triton", lambda device: False)
    assert not taken((1, 8, 6, 6), (1, 8, 6, 6))


def test_may_be_run_again_in_the_backward_pass():
    module, features = make({}, batch=2)
    features = {name: x.requires_grad_() for name, x in features.items()}
    wanted = [*features.values(), *module.parameters()]
    at_once = module(features["3"], features)
    again = recomputed_update(module, features["3"], features, None, None)
    expected, actual = (torch.autograd.grad(update.square().sum(), wanted) for update in (at_once, again))
    torch.testing.assert_close(again, at_once)
    for x, y in zip(actual, expected):
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-5)
