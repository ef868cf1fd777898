"""Candidate: an architecture with what it is worth and what it costs; and the Pareto front of several."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from acla_nas.arch import Arch


class Candidate(NamedTuple):
    """An architecture that a search has scored.

    Attributes:
        arch: the architecture.
        quality: higher is better; PSNR in dB where the search measures that.
        cost: in the unit of the search's cost model.
    """

    arch: Arch
    quality: float
    cost: float


def pareto_front(candidates: Iterable[Candidate]) -> tuple[Candidate, ...]:
    """Return the candidates that no other beats in both quality and cost, the cheapest first.

    Of several that are equal in both, the first is kept.
    """
    front: list[Candidate] = []
    for candidate in sorted(candidates, key=lambda c: (c.cost, -c.quality)):
        if not front or candidate.quality > front[-1].quality:
            front.append(candidate)
    return tuple(front)
