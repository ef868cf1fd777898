"""What all multi-trial strategies have in common, beyond the contract suite."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import signal
import warnings

import optuna
import pytest
import torch
from torch import nn

from acla_nas import CrossLayerSpace, strategies
from acla_nas.budget import Budget
from acla_nas.errors import AclaError, AclaWarning
from acla_nas.strategies import NSGA2, TPE, RandomSearch, RegularizedEvolution
from acla_nas.testing.strategy import table_space, table_value


def value(network):
    return table_value(network.positions)


def found(run):
    return [(c.arch.positions, c.arch.attention["num_keys"], c.quality, c.cost) for c in run.candidates]


def test_no_architecture_is_scored_twice_and_a_small_space_ends_the_search():
    scored = []

    def score(network):
        scored.append(network.positions)
        return value(network)

    run = RandomSearch(trials=100).run(table_space(), score, show=False)
    assert len(scored) == len(set(scored)) == 32
    assert [c.arch.positions for c in run.candidates] == scored
    assert run.best.arch.positions == (2, 3, 5)


def test_numbers_of_keys_are_searched_and_mean_nothing_without_modules():
    backbone = nn.Sequential(nn.Identity(), nn.Identity())
    space = CrossLayerSpace(backbone, ["0", "1"], attention="cla", num_keys=[1, 4], input_shape=(1, 4, 4))

    def score(network):
        return sum(module.num_keys for module in network.attention.values())

    run = strategies.Exhaustive().run(space, score, show=False)
    assert len(run.candidates) == 7  # three choices of modules, each with 1 or 4 keys, and none
    assert (run.best.arch.positions, run.best.arch.attention["num_keys"]) == ((1, 2), 4)
    assert run.best.quality == 8


def test_cost_weight_trades_quality_for_cost():
    assert RandomSearch(32, cost_weight=100.0).run(table_space(), value, show=False).best.cost == 0
    run = strategies.Exhaustive(cost_weight=0.5).run(table_space(), value, show=False)
    smallest = min(c.cost for c in run.candidates if c.cost)
    score = {c.arch.positions: c.quality - 0.5 * math.log(c.cost + smallest) for c in run.candidates}
    assert run.best.arch.positions == max(score, key=score.__getitem__)


def test_candidates_carry_their_cost():
    run = RandomSearch(4, cost="paper").run(table_space(), value, show=False)
    assert all(c.arch.cost == {"FLOPs": c.cost} for c in run.candidates)


@pytest.mark.parametrize("make", [RandomSearch, TPE, NSGA2, RegularizedEvolution])
def test_the_budget_holds_for_whatever_is_scored(make):
    space = table_space()
    limit = Budget("macs", 500).on(space)
    allowed = {c.arch.positions for c in strategies.Exhaustive().run(space, value, limit=limit).candidates}
    assert 1 < len(allowed) < 32
    run = make(trials=20, seed=3).run(space, value, limit=limit, show=False)
    assert all(c.cost <= 500 for c in run.candidates)
    assert len(run.candidates) == min(20, len(allowed))


def test_a_candidate_that_fails_is_left_out_with_one_warning():
    def score(network):
        if 3 in network.positions:
            raise RuntimeError("out of memory")
        return float("nan") if network.positions == (1,) else value(network)

    with pytest.warns(AclaWarning) as caught:
        run = RandomSearch(trials=32, seed=1).run(table_space(), score, show=False)
    assert len(caught) == 17 and len(run.candidates) == 15
    texts = {str(w.message) for w in caught}
    assert "positions 3 with 1 keys left out: RuntimeError: out of memory" in texts
    assert "positions 1 with 1 keys left out: ValueError: its score is nan" in texts
    assert not any(3 in c.arch.positions for c in run.candidates)


def test_a_scorer_that_always_fails_ends_the_search(tmp_path):
    def score(network):
        raise TypeError("no such image")

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AclaWarning)
        with pytest.raises(AclaError, match=r"first 5 architectures.*TypeError: no such image"):
            RandomSearch(trials=32).run(table_space(), score, folder=tmp_path, show=False)


def test_failures_are_remembered_when_a_search_is_resumed(tmp_path):
    def run(stop=10**9, folder=None):
        calls = 0

        def score(network):
            nonlocal calls
            calls += 1
            if calls == stop:
                raise KeyboardInterrupt
            if 3 in network.positions and 2 in network.positions:
                raise RuntimeError("too large")
            return value(network)

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", AclaWarning)
            return found(TPE(trials=16, seed=2).run(table_space(), score, folder=folder, show=False))

    for stop in (3, 2, 5, 2):
        with pytest.raises(KeyboardInterrupt):
            run(stop, tmp_path)
    assert run(folder=tmp_path) == run()


def killed(strategy, folder, at):
    """Run a search whose process is killed in one of its trials."""
    calls = 0

    def score(network):
        nonlocal calls
        calls += 1
        if calls == at:
            os.kill(os.getpid(), signal.SIGKILL)
        return value(network)

    strategy.run(table_space(), score, folder=folder, show=False)


@pytest.mark.parametrize(("make", "arguments"), [(TPE, {}), (NSGA2, {"population": 4})], ids=["tpe", "nsga2"])
def test_a_killed_process_loses_nothing(make, arguments, tmp_path):
    for at in (6, 4):
        process = multiprocessing.get_context("fork").Process(
            target=killed, args=(make(trials=14, **arguments), tmp_path, at)
        )
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL
    scored = []

    def score(network):
        scored.append(network.positions)
        return value(network)

    resumed = make(trials=14, **arguments).run(table_space(), score, folder=tmp_path, show=False)
    assert found(resumed) == found(make(trials=14, **arguments).run(table_space(), value, show=False))
    assert len(scored) == 14 - 5 - 3


def test_a_finished_search_can_be_made_longer_and_is_the_same(tmp_path):
    short = TPE(trials=6).run(table_space(), value, folder=tmp_path, show=False)
    again = TPE(trials=6).run(table_space(), lambda n: pytest.fail("scored"), folder=tmp_path, show=False)
    longer = TPE(trials=12).run(table_space(), value, folder=tmp_path, show=False)
    whole = TPE(trials=12).run(table_space(), value, show=False)
    assert found(again) == found(short) == found(whole)[:6]
    assert found(longer) == found(whole)


@pytest.mark.parametrize(
    ("strategy", "space", "key"),
    [
        (TPE(6, seed=1), table_space(), "seed is 0, not 1"),
        (NSGA2(6), table_space(), "strategy is TPE, not NSGA2"),
        (TPE(6, cost_weight=1.0), table_space(), "cost_weight is 0.0, not 1.0"),
        (TPE(6, cost="paper"), table_space(), "cost is MacsCost, not PaperCost"),
        (TPE(6), table_space(4), "positions"),
    ],
)
def test_a_folder_with_another_search_is_an_error(strategy, space, key, tmp_path):
    TPE(6).run(table_space(), value, folder=tmp_path, show=False)
    with pytest.raises(AclaError, match=rf"trials\.db holds another search.*{key}"):
        strategy.run(space, value, folder=tmp_path, show=False)


class Trained:
    """A scorer that changes the weights of what it scores."""

    calls = 0

    def __call__(self, network):
        type(self).calls += 1
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.fill_(len(network.positions))
        return value(network)


@pytest.mark.parametrize("kept", [True, False])
def test_the_weights_are_those_that_the_best_was_scored_with(kept, tmp_path):
    folder = tmp_path if kept else None
    space = table_space()
    run = RandomSearch(12).run(space, Trained(), folder=folder, show=False)
    assert {float(w.max()) for w in run.weights.values()} == {len(run.best.arch.positions)}
    names = space.freeze(sample_of(run.best)).state_dict()
    assert set(run.weights) == set(names)
    if kept:
        before = Trained.calls
        again = RandomSearch(12).run(space, Trained(), folder=folder, show=False)
        assert Trained.calls == before
        assert all(torch.equal(again.weights[name], w) for name, w in run.weights.items())
        (tmp_path / "best.safetensors").unlink()
        again = RandomSearch(12).run(space, Trained(), folder=folder, show=False)
        assert Trained.calls == before + 1
        assert all(torch.equal(again.weights[name], w) for name, w in run.weights.items())


def sample_of(candidate):
    inserts = {f"insert/{j}": j in candidate.arch.positions for j in range(1, 6)}
    return {**inserts, "keys": candidate.arch.attention["num_keys"]}


def test_a_time_limit_ends_the_search_and_resuming_ends_it_as_without(tmp_path):
    with pytest.raises(AclaError, match="scored no architecture"):
        TPE(12).run(table_space(), value, folder=tmp_path, time_limit=1e-9, show=False)
    run = TPE(12).run(table_space(), value, folder=tmp_path, time_limit=5, show=False)
    assert found(run) == found(TPE(12).run(table_space(), value, show=False))


def test_it_prints_a_line_per_trial_and_says_when_it_goes_on(tmp_path, capfd):
    TPE(2).run(table_space(), value, folder=tmp_path)
    TPE(3).run(table_space(), value, folder=tmp_path)
    out, err = capfd.readouterr()
    lines = out.splitlines()
    assert [line.split("  ")[0] for line in lines] == [
        "trial 1/2",
        "trial 2/2",
        "going on after 2 of 3 trials",
        "trial 3/3",
    ]
    assert "quality" in lines[0] and "MACs" in lines[0] and "best" in lines[0] and "left" in lines[0]
    assert err == ""


def test_optuna_is_quiet_only_while_we_use_it(tmp_path, capfd):
    before = optuna.logging.get_verbosity()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        TPE(12, multi_objective=True).run(table_space(), value, folder=tmp_path, show=False)
    assert optuna.logging.get_verbosity() == before
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TPE(0), "trials must be at least 1, not 0"),
        (lambda: TPE(cost_weight=-1), "cost_weight must be 0 or more"),
        (lambda: TPE(cost_weight=math.inf), "cost_weight must be 0 or more"),
        (lambda: TPE(seed=-1), "seed must be 0 or more"),
        (lambda: TPE(cost="mac"), "unknown cost model"),
        (lambda: NSGA2(population=1), "population must be at least 2"),
        (lambda: RegularizedEvolution(population=0), "population must be at least 1"),
        (lambda: RegularizedEvolution(population=4, tournament=5), "tournament must be between 1 and"),
        (lambda: strategies.Exhaustive(trials=5), "takes no trials"),
        (
            lambda: strategies.Exhaustive().run(table_space(13), value),
            r"has 8192 architectures \(13 positions\)",
        ),
        (lambda: TPE(storage="nowhere").run(table_space(), value), "cannot open storage 'nowhere'"),
        (
            lambda: TPE(storage="sqlite:////no/such/folder/x.db").run(table_space(), value),
            "cannot open storage sqlite:////no/such/folder/x.db: .*unable to open",
        ),
    ],
)
def test_mistakes_are_named(make, message, monkeypatch):
    monkeypatch.setattr("acla_nas.study_storage._OPENINGS", 2)
    with pytest.raises(AclaError, match=message):
        make()


def test_a_password_is_not_shown(monkeypatch):
    monkeypatch.setattr("acla_nas.study_storage._OPENINGS", 1)
    with pytest.raises(AclaError) as caught:
        TPE(storage="postgresql+nodriver://me:secret@localhost/x").run(table_space(), value)
    assert "secret" not in str(caught.value) and "me:***@localhost" in str(caught.value)


def test_the_study_is_an_ordinary_one_of_optuna(tmp_path):
    url = f"sqlite:///{tmp_path}/x.db"
    NSGA2(5, storage=url, study="mine").run(table_space(), value, show=False)
    study = optuna.load_study(study_name="mine", storage=url)
    assert len(study.trials) == 5 and study.best_trials
    assert set(study.trials[0].params) == {f"insert/{j}" for j in range(1, 6)}
    assert json.dumps(study.user_attrs["search"])
