"""The fused form with gradients: that of the general form, in less memory."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from acla_nas.attention import ACLA, weighted_keys
from acla_nas.attention.acla import update_at_once, update_in_steps
from acla_nas.attention.open_keys import open_key_shares
from acla_nas.errors import AclaError
from acla_nas.training.memory import kept_bytes
from tests.random_weights import randomize

OPTIONS = [
    {},
    {"adaptive": False},
    {"shared_mask": True},
    {"softmax": "reference", "gate_temperature": 0.5},
    {"renormalize": True},
    {"renormalize": True, "adaptive": False},
]
GATES = {"1": 0.0, "2": 1.0}


def make(options, dtype=torch.float64, *, batch=3, size=(7, 6)):
    module = ACLA(5, 4, 3, gate_bias=0.2, **{"zero_masks": False, **options}).to(dtype).train()
    randomize(module, 0.4)
    features = {name: torch.randn(batch, 5, *size, dtype=dtype).requires_grad_() for name in ("1", "2", "3")}
    return module, features


def results(module, features, fused, monkeypatch, gates=GATES):
    """Return the update, the share of open keys, and all gradients."""
    monkeypatch.setattr("acla_nas.attention.acla.is_fusable", lambda *_: fused)
    gates = {name: torch.tensor(value, requires_grad=True) for name, value in gates.items()}
    with open_key_shares() as shares:
        update = module(features["3"], features, gates)
    loss = (update * torch.linspace(-1, 1, update.numel(), dtype=update.dtype).view_as(update)).sum()
    loss = loss + sum(shares) * 3
    wanted = [*gates.values(), *features.values(), *module.parameters()]
    gradients = torch.autograd.grad(loss, wanted, allow_unused=True)
    return [update.detach(), *(s.detach() for s in shares)], [
        torch.zeros_like(w) if g is None else g for w, g in zip(wanted, gradients)
    ]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 2e-4)])
def test_equals_the_general_form(options, dtype, tolerance, monkeypatch):
    torch.manual_seed(0)
    module, features = make(options, dtype)
    expected, expected_gradients = results(module, features, False, monkeypatch)
    actual, gradients = results(module, features, True, monkeypatch)
    assert len(actual) == len(expected) == (1 if options.get("adaptive") is False else 2)
    for x, y in zip((*actual, *gradients), (*expected, *expected_gradients)):
        torch.testing.assert_close(x, y, rtol=tolerance, atol=tolerance)
    assert gradients[0].abs() > 1e-3  # the gate of a reference that is off has a gradient


def test_rows_of_several_blocks(monkeypatch):
    torch.manual_seed(0)
    module, features = make({}, batch=2, size=(3, 71))
    expected, expected_gradients = results(module, features, False, monkeypatch)
    actual, gradients = results(module, features, True, monkeypatch)
    for x, y in zip((*actual, *gradients), (*expected, *expected_gradients)):
        torch.testing.assert_close(x, y, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("spread", [0.03, 0.3, 3.0, 1e4, 1e300])
def test_keys_close_together_and_far_off(spread, monkeypatch):
    """Small windows around the keys of a query are read as a whole, and others key by key."""
    torch.manual_seed(0)
    module, features = make({}, batch=2, size=(9, 50))
    for layer in module.references.values():
        nn.init.normal_(layer.offset.weight, std=spread)
    keys = torch.nn.functional.conv2d(features["3"], module.references["1"].offset.weight)
    corners = (keys.unflatten(1, (4, 2)) + module.base[..., None, None]).floor()
    pixels = (corners.amax(1) - corners.amin(1) + 2).prod(1)
    assert (pixels > 12).any() and (pixels <= 12).any() == (spread < 1)
    expected, expected_gradients = results(module, features, False, monkeypatch)
    actual, gradients = results(module, features, True, monkeypatch)
    for x, y in zip((*actual, *gradients), (*expected, *expected_gradients)):
        torch.testing.assert_close(x, y, rtol=1e-7, atol=1e-7)


def test_gates_of_references_with_far_larger_logits_have_gradients_of_one_size(monkeypatch):
    """All cut off exponents: the general form beside the largest logit, fused ones beside their sum."""
    torch.manual_seed(0)
    module, features = make({"adaptive": False})
    with torch.no_grad():
        module.references["1"].logit.weight.mul_(100)
    _, [expected, *_] = results(module, features, False, monkeypatch)
    _, [actual, *_] = results(module, features, True, monkeypatch)
    assert 0.05 < actual / expected < 20 and actual.abs() > 100


@pytest.mark.parametrize("tasks", [1, 2, 5])
def test_how_work_is_shared_changes_nothing(tasks, monkeypatch):
    torch.manual_seed(0)
    module, features = make({})
    expected, expected_gradients = results(module, features, True, monkeypatch)
    monkeypatch.setattr(weighted_keys, "_TASKS", tasks)
    actual, gradients = results(module, features, True, monkeypatch)
    for x, y in zip((*actual, *gradients), (*expected, *expected_gradients)):
        torch.testing.assert_close(x, y, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_change_nothing_at_all(threads, monkeypatch):
    torch.manual_seed(0)
    module, features = make({}, torch.float32)
    expected = results(module, features, True, monkeypatch)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    actual = results(module, features, True, monkeypatch)
    assert all(torch.equal(x, y) for a, b in zip(actual, expected) for x, y in zip(a, b))


def test_references_of_other_sizes_and_channels_last():
    """References may have channels of their own, and any memory format; gradients are wanted of some only."""
    torch.manual_seed(0)
    module = ACLA(5, 4, reference_channels={"1": 3, "2": 7}, zero_masks=False).double().train()
    randomize(module, 0.4)
    query = torch.randn(2, 5, 6, 9, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    first = torch.randn(2, 3, 6, 9, dtype=torch.float64)
    second = torch.randn(2, 7, 6, 9, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    second.requires_grad_()
    wanted = [second, module.references["1"].value.weight, module.references["2"].mask.weight]
    found = []
    for form in (update_at_once, update_in_steps):
        update = form(module, query, {"1": first, "2": second}, {}, None)
        assert update.is_contiguous(memory_format=torch.channels_last)
        found.append(torch.autograd.grad(update.square().sum(), wanted))
    for x, y in zip(*found):
        torch.testing.assert_close(x, y, rtol=1e-10, atol=1e-10)


def test_frozen_weights_leave_the_gradients_of_features():
    torch.manual_seed(0)
    module, features = make({})
    found = []
    for frozen in (False, True):
        module.requires_grad_(not frozen)
        update = module(features["3"], features)
        found.append(torch.autograd.grad(update.square().sum(), list(features.values())))
    assert all(torch.equal(x, y) for x, y in zip(*found))


def test_is_the_same_from_run_to_run(monkeypatch):
    torch.manual_seed(0)
    module, features = make({}, torch.float32)
    first, second = (results(module, features, True, monkeypatch) for _ in range(2))
    assert all(torch.equal(x, y) for a, b in zip(first, second) for x, y in zip(a, b))


def test_a_reference_that_is_off_is_not_looked_at_before_the_backward_pass(monkeypatch):
    module, features = make({})
    features["1"] = torch.full_like(features["1"], torch.nan)
    off = torch.zeros((), requires_grad=True)
    assert module(features["3"], features, {"1": off}).isfinite().all()


def test_keeps_hardly_more_than_its_result(monkeypatch):
    class Flat(nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module = module

        def forward(self, *features):
            return self.module(features[-1], dict(zip(("1", "2", "3"), features)))

    module, features = make({}, torch.float32, size=(24, 24))
    flat, result = Flat(module), 3 * 5 * 24 * 24 * 4
    assert kept_bytes(flat, *features.values()) < 2 * result
    monkeypatch.setattr("acla_nas.attention.acla.is_fusable", lambda *_: False)
    assert kept_bytes(flat, *features.values()) > 10 * result


def test_noise_takes_the_general_form(monkeypatch):
    monkeypatch.setattr("acla_nas.attention.acla_training.attend", None)
    module, features = make({"gate_noise": True})
    assert module(features["3"], features).shape == features["3"].shape
    with pytest.raises(TypeError):
        make({})[0](features["3"], features)


def test_features_and_weights_of_another_size_are_refused():
    module, features = make({})
    with pytest.raises(AclaError, match="where 630 numbers"):
        module(torch.rand(3, 6, 7, 6, dtype=torch.float64), features)
    with pytest.raises(AclaError, match="where 36 numbers"):
        module(features["3"], {**features, "1": torch.rand(3, 4, 7, 6, dtype=torch.float64)})
    module.out.weight = nn.Parameter(torch.rand(4, 5, 1, 1, dtype=torch.float64))
    with pytest.raises(AclaError, match="where 25 numbers"):
        module(features["3"], features)


def test_second_derivatives_are_refused():
    module, features = make({})
    [gradient] = torch.autograd.grad(
        module(features["3"], features).square().sum(), features["1"], create_graph=True
    )
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()
