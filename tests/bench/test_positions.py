"""Evenly spaced positions, and random ones of equal cost."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from acla_nas.bench.positions import even_positions, random_positions
from acla_nas.cost import CostTable


@given(st.integers(1, 40), st.data())
def test_even_positions_are_even(of, data):
    count = data.draw(st.integers(1, of))
    positions = even_positions(count, of=of)
    gaps = [b - a for a, b in zip((0, *positions), positions)]
    assert len(positions) == count
    assert positions[-1] == of
    assert max(gaps) - min(gaps) <= 1


def uniform(count):
    return CostTable(torch.full((count,), 2.0), torch.ones(count, count))


def test_random_positions_are_as_many_others_and_seeded():
    like = (1, 3, 4)
    drawn = [random_positions(uniform(8), like, seed) for seed in range(30)]
    assert drawn == [random_positions(uniform(8), like, seed) for seed in range(30)]
    assert len(set(drawn)) > 10
    assert all(len(set(p)) == 3 and p == tuple(sorted(p)) and p != like for p in drawn)


def test_random_positions_cost_the_same():
    own = torch.tensor([1.0, 10.0, 1.0, 10.0, 1.004, 50.0])
    table = CostTable(own, torch.zeros(6, 6))
    assert {random_positions(table, (1, 2), seed) for seed in range(60)} == {
        *((1, 4), (2, 3), (3, 4), (2, 5), (4, 5))
    }
    assert random_positions(table, (6,), 0) in {(2,), (4,)}  # the nearest, where none is near


def test_random_positions_of_many():
    like = tuple(range(1, 9))
    positions = random_positions(uniform(32), like, 0)  # of 10 million choices
    assert len(positions) == 8


def test_no_choice_left():
    assert random_positions(uniform(3), (), 0) == ()
    assert random_positions(uniform(3), (1, 2, 3), 0) == (1, 2, 3)
