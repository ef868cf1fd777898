"""The gates as NNI mutables, and their searched forms."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from acla_nas import CrossLayerSpace
from acla_nas.gates import GumbelInsertGate, GumbelKeyGate, InsertGate, KeyGate
from acla_nas.nni_nas import ModelSpace


class Gates(ModelSpace):
    def __init__(self, count=3, num_keys=(4, 8)):
        super().__init__()
        self.insert = nn.ModuleList(InsertGate(j) for j in range(1, count + 1))
        self.keys = KeyGate(num_keys)


def insert_gate(position=2, alpha=0.0):
    return GumbelInsertGate(Gates().insert[position - 1], alpha)


def key_gate(*num_keys):
    return GumbelKeyGate(Gates(num_keys=num_keys).keys)


def test_labels_and_choices_of_the_mutables():
    gates = Gates()
    assert [g.label for g in gates.insert] == ["insert/1", "insert/2", "insert/3"]
    assert [g.position for g in gates.insert] == [1, 2, 3]
    for gate in gates.insert:
        (mutable,) = gate.mutables
        assert mutable.label == gate.label
        assert list(mutable.values) == [False, True]
    (mutable,) = gates.keys.mutables
    assert mutable.label == gates.keys.label == "keys"
    assert list(mutable.values) == [4, 8]
    assert gates.keys.num_keys == (4, 8)


def test_the_mutables_are_decided_by_nothing_in_the_plain_forms():
    gates = Gates()
    assert gates.insert[0]() is False
    assert gates.keys() is None
    assert gates.insert[0].freeze({"insert/1": True}) is gates.insert[0]
    assert gates.keys.freeze({"keys": 4}) is gates.keys


def test_simplify_of_a_space_lists_each_decision_once():
    layers = nn.Sequential(*(nn.Conv2d(3, 3, 1) for _ in range(3)))
    space = CrossLayerSpace(layers, ["0", "1", "2"], num_keys=[2, 3, 5])
    simplified = space.simplify()
    assert sorted(simplified) == ["insert/1", "insert/2", "insert/3", "keys"]
    assert all(list(simplified[f"insert/{j}"].values) == [False, True] for j in (1, 2, 3))
    assert list(simplified["keys"].values) == [2, 3, 5]


def test_simplify_has_the_default_number_of_keys_as_its_one_choice():
    for attention, keys in (("acla", 16), ("cla", 8)):
        space = CrossLayerSpace(nn.Sequential(nn.Conv2d(3, 3, 1)), ["0"], attention=attention)
        assert list(space.simplify()["keys"].values) == [keys]


def test_insert_gate_in_training_is_a_bool_for_a_weight_step():
    gate = insert_gate()
    torch.manual_seed(0)
    drawn = [gate() for _ in range(50)]
    assert all(type(d) is bool for d in drawn)
    assert set(drawn) == {False, True}


@pytest.mark.parametrize("alpha", [-1.0, 1.0])
def test_insert_gate_draws_open_with_probability_sigmoid_alpha(alpha):
    gate = insert_gate(alpha=alpha)
    gate.temperature = 0.2
    torch.manual_seed(1)
    count = 2000
    p = 1 / (1 + math.exp(-alpha))
    for gate.differentiable in (False, True):
        with torch.no_grad():
            rate = sum(float(gate()) for _ in range(count)) / count
        assert abs(rate - p) <= 3 * math.sqrt(p * (1 - p) / count)


def test_insert_gate_in_training_is_a_tensor_with_gradient_for_a_step_of_alpha():
    gate = insert_gate(alpha=0.3)
    gate.differentiable, gate.temperature = True, 0.5
    torch.manual_seed(0)
    s = gate()
    assert isinstance(s, torch.Tensor)
    assert s.shape == ()
    assert s.item() in (0.0, 1.0)
    s.backward()
    assert gate.alpha.grad is not None
    assert 0 < gate.alpha.grad <= 0.25 / 0.5


@pytest.mark.parametrize("differentiable", [False, True])
@pytest.mark.parametrize(("alpha", "expected"), [(-0.1, False), (0.0, False), (0.1, True)])
def test_insert_gate_in_evaluation_is_the_derived_decision(alpha, expected, differentiable):
    gate = insert_gate(alpha=alpha).eval()
    gate.differentiable = differentiable
    assert all(gate() is expected for _ in range(20))
    assert gate.export({}) == {"insert/2": expected}


def test_insert_gate_exports_probabilities_and_its_parameter():
    gate = insert_gate(position=3, alpha=2.0)
    probabilities = gate.export_probs({})
    assert list(probabilities) == ["insert/3"]
    p = 1 / (1 + math.exp(-2.0))
    assert probabilities["insert/3"] == pytest.approx({True: p, False: 1 - p}, abs=1e-6)
    assert gate.arch_parameters() == [gate.alpha]
    assert gate.resample({}) == {}
    assert [name for name, _ in gate.named_parameters()] == ["alpha"]


def test_key_gate_with_one_choice_decides_nothing():
    gate = key_gate(16)
    assert gate() is None
    assert gate.arch_parameters() == []
    assert gate.export({}) == {"keys": 16}
    assert gate.export_probs({}) == {"keys": {16: 1.0}}


def test_key_gate_in_training_opens_the_first_keys_of_one_choice():
    gate = key_gate(2, 3, 5)
    torch.manual_seed(0)
    drawn = {tuple(gate().tolist()) for _ in range(100)}
    assert drawn == {(1, 1, 0, 0, 0), (1, 1, 1, 0, 0), (1, 1, 1, 1, 1)}


def test_key_gate_gradient_is_that_of_the_softmax():
    gate = key_gate(2, 5)
    gate.temperature = 0.7
    torch.manual_seed(0)
    (gate() * torch.arange(1.0, 6.0)).sum().backward()
    assert gate.alpha.grad is not None
    gradient = gate.alpha.grad
    assert gradient.abs().min() > 0
    assert gradient.sum().abs() < 1e-6  # a softmax: only differences of the logits count
    assert gradient[1] > 0  # more keys, more of the sum


def test_key_gate_in_evaluation_is_the_likeliest_choice():
    gate = key_gate(2, 3, 5).eval()
    with torch.no_grad():
        gate.alpha.copy_(torch.tensor([0.0, 1.0, -1.0]))
    assert all(gate().tolist() == [1, 1, 1, 0, 0] for _ in range(20))
    assert gate.export({}) == {"keys": 3}


def test_key_gate_draws_each_choice_with_its_probability():
    gate = key_gate(1, 2)
    with torch.no_grad():
        gate.alpha.copy_(torch.tensor([0.0, 1.0]))
    p = gate.export_probs({})["keys"]
    assert p == pytest.approx({1: 1 / (1 + math.e), 2: math.e / (1 + math.e)}, abs=1e-6)
    torch.manual_seed(0)
    count = 2000
    rate = sum(gate()[1].item() for _ in range(count)) / count
    assert abs(rate - p[2]) <= 3 * math.sqrt(p[1] * p[2] / count)


def test_key_gate_choices_need_not_ascend():
    gate = key_gate(5, 2).eval()
    with torch.no_grad():
        gate.alpha.copy_(torch.tensor([0.0, 1.0]))
    assert gate().tolist() == [1, 1, 0, 0, 0]
    assert gate.export({}) == {"keys": 2}
