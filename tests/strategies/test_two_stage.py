"""The two-stage search: finds what is planted, switches all off when that is cheaper, keeps its stages."""

from __future__ import annotations

import math

import pytest
import torch
from planted import ANSWER, make_evaluator, make_space
from pytorch_lightning import seed_everything

import acla_nas
from acla_nas.errors import AclaError
from acla_nas.gates import GumbelInsertGate
from acla_nas.nni_nas import RawFormatModelSpace
from acla_nas.one_shot import _InProcessEngine, gate_probabilities
from acla_nas.strategies import TwoStage
from acla_nas.strategies.two_stage import TwoStageModule

SETTINGS = {"epochs": (4, 6), "alpha_learning_rate": 0.1}


def search(seed, *, attention="cla", num_keys=4, steps=25, space=None, **settings):
    seed_everything(seed, verbose=False)
    space = space or make_space(attention=attention, num_keys=num_keys)
    strategy = TwoStage(**{**SETTINGS, **settings})
    return acla_nas.search(space, strategy, make_evaluator(seed, steps))


@pytest.mark.parametrize("attention", ["cla", "acla"])
@pytest.mark.parametrize("seed", range(3))
def test_finds_the_planted_positions(attention, seed):
    result = search(seed, attention=attention, cost_weight=0.02)
    assert result.arch.positions == ANSWER
    # ... and says so clearly
    assert all((p > 0.8) if j in ANSWER else (p < 0.2) for j, p in result.probabilities.items())


@pytest.mark.parametrize("cost", ["macs", "paper"])
def test_a_large_lambda_switches_everything_off(cost):
    result = search(0, cost_weight=100.0, cost=cost)
    assert result.arch.positions == ()
    assert result.cost == 0
    assert all(math.isfinite(p) and p < 0.05 for p in result.probabilities.values())


def test_the_result_is_the_derived_network_with_its_weights():
    seed_everything(0, verbose=False)
    space = make_space()
    result = search(0, space=space, cost_weight=0.02)
    model = acla_nas.export(result.arch, backbone=space.network.backbone, weights=result.weights)
    x = torch.randn(2, 4, 10, 10)
    space.eval()
    assert torch.allclose(space(x), model.eval()(x), atol=1e-5)
    assert result.arch.cost == {"MACs": result.cost}
    assert result.cost == acla_nas.cost.get("macs").table(space.network, space.input_shape).of(
        [j in ANSWER for j in range(1, 6)]
    )


def test_the_same_seed_gives_the_same_search():
    first, second = (search(5, steps=3, epochs=(1, 2)) for _ in range(2))
    assert first.probabilities == second.probabilities
    assert all(torch.equal(first.weights[name], second.weights[name]) for name in first.weights)


def test_several_numbers_of_keys_are_searched():
    result = search(0, num_keys=[1, 4], cost_weight=0.02)
    assert result.arch.positions == ANSWER
    assert result.arch.attention["num_keys"] in (1, 4)
    keys = result.arch.attention["num_keys"]
    assert result.weights["attention.5.references.2.logit.weight"].shape[0] == keys


class Stepper:
    """A TwoStageModule outside a trainer's loop, one step at a time."""

    def __init__(self, space, **settings):
        self.space = space
        self.strategy = TwoStage(**{**SETTINGS, **settings})
        self.evaluator = make_evaluator(0, 2)
        self.strategy.initialize(RawFormatModelSpace(space, self.evaluator), _InProcessEngine())
        self.module: TwoStageModule = self.strategy.oneshot_module
        self.module.set_model(self.strategy.supernet)


def gates_of(space) -> list[GumbelInsertGate]:
    return list(space.insert_gates)


def test_stage_one_leaves_the_alphas_alone():
    seed_everything(0, verbose=False)
    space = make_space()
    before = {name: p.clone() for name, p in space.network.named_parameters()}
    search(0, space=space, steps=10, epochs=(2, 1), alpha_learning_rate=1e-9)
    assert all(abs(float(g.alpha.detach())) < 1e-6 for g in gates_of(space))
    assert any(not torch.equal(p, before[name]) for name, p in space.network.named_parameters())


def test_loss_stays_finite_with_nothing_inserted():
    stepper = Stepper(make_space())
    with torch.no_grad():
        for gate in gates_of(stepper.space):
            gate.alpha.fill_(-200.0)  # sigmoid is 0 in float32: the expected cost is exactly 0
    log_cost = stepper.module.log_cost()
    log_cost.backward()
    assert float(stepper.strategy.space_cost.expected(*gate_probabilities(stepper.space)).detach()) == 0
    assert math.isfinite(float(log_cost.detach()))
    assert all(math.isfinite(float(g.alpha.grad)) for g in gates_of(stepper.space))


def test_log_cost_is_equation_14_of_the_expected_cost():
    stepper = Stepper(make_space())
    alphas = torch.tensor([0.3, -1.0, 2.0, 0.0, 0.7])
    with torch.no_grad():
        for gate, alpha in zip(gates_of(stepper.space), alphas):
            gate.alpha.copy_(alpha)
    table = acla_nas.cost.get("macs").table(stepper.space.network, stepper.space.input_shape)
    p = alphas.sigmoid().double()
    expected = sum(
        p[j] * (table.own[j] + table.pair[j, j] + sum(p[l] * table.pair[j, l] for l in range(j)))
        for j in range(5)
    )
    cheapest = min(table.own[j] + table.pair[j, j] for j in range(5))
    assert float(stepper.module.log_cost().detach()) == pytest.approx(math.log(expected + cheapest), rel=1e-5)


def test_temperature_falls_geometrically_over_stage_two():
    result = search(0, steps=2, epochs=(1, 3), temperature=(4.0, 1.0))
    assert result.history == []  # no EpochReport in this evaluator
    stepper = Stepper(make_space(), epochs=(1, 3), temperature=(4.0, 1.0))
    seen = []
    for epoch in range(4):
        stepper.module.trainer = type("T", (), {"current_epoch": epoch, "optimizers": []})()
        stepper.module.on_train_epoch_start()
        seen.append({g.temperature for g in gates_of(stepper.space)})
    assert seen == [{4.0}, {4.0}, {2.0}, {1.0}]


def test_only_validation_batches_train_the_alphas_and_only_training_batches_the_weights():
    # Training asks for nothing (target 0), validation for the shift: weights must stay where they give
    # nothing, so the alphas see no use in any module.
    seed_everything(0, verbose=False)
    space, evaluator = make_space(), make_evaluator(0)
    evaluator.train_dataloaders.dataset.tensors[1].zero_()
    result = acla_nas.search(space, TwoStage(**SETTINGS, cost_weight=0.02), evaluator)
    assert result.arch.positions == ()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"cost_weight": -1}, "cost_weight must be 0 or more, not -1"),
        ({"cost_weight": math.nan}, "cost_weight must be 0 or more, not nan"),
        ({"epochs": (1, 0)}, r"epochs must be .* not \(1, 0\)"),
        ({"epochs": (-1, 1)}, "epochs must be"),
        ({"temperature": (1.0, 0.0)}, "temperature must be"),
        ({"alpha_learning_rate": 0}, "alpha_learning_rate must be above 0"),
        ({"cost": "mac"}, "did you mean 'macs'"),
    ],
)
def test_wrong_settings(settings, words):
    with pytest.raises(AclaError, match=words):
        TwoStage(**settings)
