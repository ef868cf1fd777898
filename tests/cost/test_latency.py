"""Measured latency: what is measured, kept, fitted and refused. No test here asks how fast anything is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from acla_nas import CrossLayerSpace, cost, search_spaces
from acla_nas.attention import Feature, OwnLayerAttention
from acla_nas.cost import LatencyCost, latency, timing
from acla_nas.cost.timing import Timing, device_name, time_in_turns
from acla_nas.errors import AclaError, AclaWarning

SHAPE = (3, 8, 8)


@pytest.fixture
def clock(monkeypatch):
    """A clock by which a module takes 2 ms and 0.5 ms a reference more; the list of what it timed."""
    seen = []

    def tick(call):
        seen.append((len(call.references), call.query.shape[1]))
        call()
        return 2.0 + 0.5 * len(call.references)

    monkeypatch.setattr(timing, "_time", tick)
    return seen


def space_of(blocks=5, channels=4, **options):
    return search_spaces.edsr(num_blocks=blocks, num_channels=channels, num_keys=2, **options)


def saved(cache: Path) -> dict:
    (file,) = (cache / "latency").glob("*.json")
    return json.loads(file.read_text())


def test_own_and_pair_are_those_of_the_straight_line(clock):
    table = cost.get("latency").table(space_of().network, SHAPE)
    assert table.unit == "ms"
    torch.testing.assert_close(table.own, torch.full((5,), 2.0, dtype=torch.float64))
    torch.testing.assert_close(table.pair, torch.full((5, 5), 0.5, dtype=torch.float64).tril())
    assert (table.own_error < 0.5).all() and (table.pair_error.tril() < 0.3).all()
    assert table.of([True, False, True, False, False]) == pytest.approx(2 * 2 + 3 * 0.5)
    gates = torch.full((5,), 0.5, requires_grad=True)
    table(gates).backward()
    assert (gates.grad > 2).all()


def test_what_the_line_does_not_explain_makes_the_interval_wider(clock, monkeypatch):
    straight = cost.get("latency").table(space_of().network, SHAPE)
    monkeypatch.setattr(timing, "_time", lambda call: 2.0 + 0.5 * len(call.references) ** 2)
    bent = LatencyCost(cache=False).table(space_of().network, SHAPE)
    assert bent.pair_error[4, 0] > 3 * straight.pair_error[4, 0]


def test_positions_alike_are_measured_once_and_in_turns(clock):
    cost.get("latency").table(space_of(blocks=9).network, SHAPE)
    turn = [1, 2, 3, 5, 9]
    assert [n for n, _ in clock[:10]] == turn * 2
    assert len(clock) == len(turn) * (3 + timing._FEWEST)


def test_nothing_is_measured_twice(clock, cache):
    first = cost.get("latency").table(space_of().network, SHAPE)
    content = saved(cache)
    assert content["device"] == device_name(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    entry = content["entries"][0]
    assert entry["attention"] == "ACLA" and entry["options"]["num_keys"] == 2
    assert (entry["dtype"], entry["query"], entry["threads"]) == ("float32", [4, 8, 8], 1)
    assert entry["torch"] == torch.__version__
    assert {"median_ms", "error_ms", "runs"} <= set(entry)
    clock.clear()
    again = cost.get("latency").table(space_of().network, SHAPE)
    assert not clock and torch.equal(again.own, first.own) and torch.equal(again.pair, first.pair)
    cost.get("latency").table(space_of(blocks=3).network, SHAPE)
    assert not clock, "its modules are among those measured"


@pytest.mark.parametrize(
    "other",
    [
        {"channels": 6},
        {"gate_bias": 2.0},
        {"softmax": "reference"},
        {"attention": "cla"},
    ],
    ids=str,
)
def test_anything_else_is_measured(clock, other):
    cost.get("latency").table(space_of(blocks=2).network, SHAPE)
    clock.clear()
    cost.get("latency").table(space_of(**{"blocks": 2, **other}).network, SHAPE)
    assert clock
    clock.clear()
    cost.get("latency").table(space_of(blocks=2).network.double(), SHAPE)
    assert clock
    clock.clear()
    cost.get("latency").table(space_of(blocks=2).network, (3, 8, 9))
    assert clock


def test_another_number_of_threads_is_measured(clock, monkeypatch):
    cost.get("latency").table(space_of(blocks=2).network, SHAPE)
    clock.clear()
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    cost.get("latency").table(space_of(blocks=2).network, SHAPE)
    assert clock


def test_differing_shapes_are_told_apart(monkeypatch):
    def tick(call):
        channels = [x.shape[1] for x in call.references.values()]
        return 1.0 + sum({8: 0.25, 16: 2.0}[c] for c in channels) + call.query.shape[1] / 8

    monkeypatch.setattr(timing, "_time", tick)
    layers = [nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 16, 1), nn.Conv2d(16, 16, 1)]
    space = CrossLayerSpace(nn.Sequential(*layers), "?", input_shape=SHAPE)
    table = LatencyCost(cache=False).table(space.network, SHAPE)
    for inserted in ([True] * 4, [True, False, True, False], [False, True, False, True]):
        expected = 0.0
        for j, s in enumerate(inserted):
            sizes = [0.25, 0.25, 2.0, 2.0]
            if s:
                expected += 1 + (1, 1, 2, 2)[j] + sum(t for t, on in zip(sizes[: j + 1], inserted) if on)
        assert table.of(inserted) == pytest.approx(expected)


def test_a_shape_that_comes_once_costs_all_of_it_once(clock):
    layers = [nn.Conv2d(3, 8, 1), nn.Conv2d(8, 16, 1)]
    space = CrossLayerSpace(nn.Sequential(*layers), "?", input_shape=SHAPE)
    table = cost.get("latency").table(space.network, SHAPE)
    assert [table.of([True, False]), table.of([False, True])] == pytest.approx([2.5, 2.5])
    assert table.of([True, True]) == pytest.approx(2.5 + 3.0)


def test_what_is_timed_is_what_a_derived_network_runs(monkeypatch):
    space = space_of(blocks=3)
    with torch.no_grad():
        for parameter in space.network.attention.parameters():
            parameter.normal_()
    calls = []
    monkeypatch.setattr(
        latency,
        "time_in_turns",
        lambda given, *_: calls.extend(given.values()) or dict.fromkeys(given, Timing(1, 0, 7)),
    )
    before = torch.get_rng_state()
    LatencyCost(cache=False).table(space.network, SHAPE)
    assert torch.equal(torch.get_rng_state(), before)
    call = calls[-1]
    assert len(call.references) == 3 and not call.module.training and call.query is call.references["3"]
    assert torch.equal(call(), call.query + space.network.attention["3"].eval()(call.query, call.references))


def test_times_are_real():
    table = LatencyCost(cache=False, runs=7).table(space_of(blocks=3).network, SHAPE)
    assert 0 < table.smallest < 1000
    assert table.of([True] * 3) > table.of([True, False, False])


class Refuses(OwnLayerAttention):
    """Runs where it is traced, but not where it is timed."""

    def __init__(self, channels, num_keys=1, *, reference_channels=None):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(channels))

    def update(self, query):
        raise RuntimeError("not implemented for this device")

    def macs(self, query):
        return 1


def test_what_cannot_be_measured_is_an_error(monkeypatch, cache):
    monkeypatch.setattr(cost.REGISTRY, "entries", dict(cost.REGISTRY.entries))
    space = space_of(blocks=1)
    space.network.attention["1"] = Refuses(4)
    with pytest.raises(AclaError, match=r"latency of Refuses cannot be measured on \w+ \(not implemented"):
        cost.get("latency").table(space.network, SHAPE)
    for broken in (0.0, float("nan"), float("inf"), -1.0):
        monkeypatch.setattr(timing, "_time", lambda call, broken=broken: broken)
        with pytest.raises(AclaError, match=r"cannot be measured.*by the clock, which must be above 0"):
            cost.get("latency").table(space_of(blocks=1).network, SHAPE)
    assert not cache.exists()


def test_wrong_options(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(AclaError, match="PyTorch sees no GPU"):
        LatencyCost(device="cuda")
    with pytest.raises(AclaError, match="'auto', 'cpu' or 'cuda', not 'tpu'"):
        LatencyCost(device="tpu")
    with pytest.raises(AclaError, match="runs must be at least 7, not 3"):
        LatencyCost(runs=3)


@pytest.mark.parametrize(
    "content",
    [
        "no JSON",
        "[]",
        '{"device": "?"}',
        '{"device": "NAME", "entries": [3]}',
        '{"device": "NAME", "entries": [{"median_ms": -1, "error_ms": 0, "runs": 7}]}',
        '{"device": "NAME", "entries": [{"median_ms": NaN, "error_ms": 0, "runs": 7}]}',
        '{"device": "NAME", "entries": [{"median_ms": "1", "error_ms": 0, "runs": 7}]}',
    ],
)
def test_a_file_that_cannot_be_used_is_replaced(clock, cache, content):
    cost.get("latency").table(space_of(blocks=2).network, SHAPE)
    (file,) = (cache / "latency").glob("*.json")
    good = file.read_text()
    file.write_text(content.replace("NAME", device_name(torch.device("cpu"))))
    with pytest.warns(AclaWarning, match=f"cannot read the measured latencies in {file}"):
        cost.get("latency").table(space_of(blocks=2).network, SHAPE)
    assert json.loads(file.read_text()) == json.loads(good)


def test_a_folder_that_cannot_be_written_is_done_without(clock, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ACLA_NAS_CACHE", str(tmp_path / "file"))
    with pytest.warns(AclaWarning, match="cannot write the measured latencies to .*; set ACLA_NAS_CACHE"):
        table = cost.get("latency").table(space_of(blocks=2).network, SHAPE)
    assert table.own[0] > 0


def test_two_processes_keep_each_others_times(clock, cache):
    one, other = cost.get("latency"), cost.get("latency")
    one.table(space_of(blocks=2).network, SHAPE)
    other.table(space_of(blocks=2, channels=6).network, SHAPE)
    assert {tuple(entry["query"]) for entry in saved(cache)["entries"]} == {(4, 8, 8), (6, 8, 8)}


def test_rounds_go_on_while_the_medians_are_uncertain(monkeypatch):
    times = iter([1.0, 3.0] * 100)
    monkeypatch.setattr(timing, "_time", lambda call: next(times))
    assert time_in_turns({"noisy": lambda: None}, torch.device("cpu"), 20)["noisy"].runs == 20
    monkeypatch.setattr(timing, "_time", lambda call: 2.0)
    assert time_in_turns({"steady": lambda: None}, torch.device("cpu"), 20)["steady"] == Timing(2.0, 0.0, 7)


@pytest.mark.parametrize("cold", [False, True])
def test_a_gpu_is_timed_by_its_events_and_reads_other_data_before(monkeypatch, cold):
    """Without a GPU: of a device that does nothing, the order of what it is told."""
    told = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            told.append("event")

        def elapsed_time(self, end):
            return 2.0

    class Other:
        def sum(self):
            told.append("read")

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: told.append("wait"))
    monkeypatch.setattr(torch, "zeros", lambda size, device: Other())
    calls = {"it": lambda: told.append("call")}
    timings = time_in_turns(calls, torch.device("cuda"), 7, warm_up=0, cold=cold)
    assert timings["it"] == Timing(2.0, 0.0, 7)
    assert told == ["wait", *["read"] * (4 * cold), "event", "call", "event", "wait"] * 7


def test_references_of_every_shape_are_timed_few_and_many():
    features = {1: Feature(4, 8, 8), 2: Feature(4, 8, 8), 3: Feature(6, 4, 4), 4: Feature(4, 8, 8)}
    assert set(latency._references_to_time(4, features)) == {(4,), (1, 4), (1, 2, 4), (3, 4), (1, 2, 3, 4)}
