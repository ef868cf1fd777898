"""Candidates: the front of several, and the file that they are kept in."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import acla_nas
from acla_nas.candidate import Candidate, load_candidates, pareto_front, save_candidates
from acla_nas.errors import AclaError


@pytest.fixture(scope="module")
def candidates() -> list[Candidate]:
    space = acla_nas.search_spaces.edsr(num_blocks=2, num_channels=4, num_keys=2)
    found = []
    for positions, quality, cost in [
        ((1,), 31.0, 5.0),
        ((), 30.0, 0.0),
        ((2,), 30.5, 5.0),
        ((1, 2), 30.9, 9.0),
    ]:
        arch = space.arch({"insert/1": 1 in positions, "insert/2": 2 in positions, "keys": 2})
        found.append(Candidate(arch.model_copy(update={"cost": {"MACs": cost}}), quality, cost))
    return found


def test_front(candidates: list[Candidate]) -> None:
    assert [c.arch.positions for c in pareto_front(candidates)] == [(), (1,)]
    assert pareto_front([]) == ()


def test_of_equal_ones_the_first_is_on_the_front(candidates: list[Candidate]) -> None:
    twins = [candidates[0], candidates[2]._replace(quality=31.0)]
    assert pareto_front(twins) == (candidates[0],)


def test_file(candidates: list[Candidate], tmp_path: Path) -> None:
    path = save_candidates(candidates, tmp_path / "candidates.json")
    assert load_candidates(path) == candidates
    assert [row["front"] for row in json.loads(path.read_text())] == [True, True, False, False]


@pytest.mark.parametrize(
    "content", ["", "[]", "[1]", "{}", '[{"quality": 1}]', '[{"quality":1,"cost":1,"arch":{}}]']
)
def test_a_file_of_something_else(content: str, tmp_path: Path) -> None:
    path = tmp_path / "candidates.json"
    path.write_text(content)
    with pytest.raises(AclaError):
        load_candidates(path)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(AclaError, match="give the folder of a multi-trial search"):
        load_candidates(tmp_path / "candidates.json")
