"""Candidate: an architecture with what it is worth and what it costs; and the Pareto front of several."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from acla_nas.arch import Arch
from acla_nas.durable import write_text
from acla_nas.errors import AclaError


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


def save_candidates(candidates: Iterable[Candidate], path: str | Path) -> Path:
    """Write candidates as JSON and return the path."""
    candidates = list(candidates)
    front = {id(candidate) for candidate in pareto_front(candidates)}
    rows = [
        {
            "quality": c.quality,
            "cost": c.cost,
            "front": id(c) in front,
            "arch": json.loads(c.arch.model_dump_json()),
        }
        for c in candidates
    ]
    return write_text(path, json.dumps(rows, indent=2) + "\n")


def load_candidates(path: str | Path) -> list[Candidate]:
    """Return the candidates in a file of :func:`save_candidates`.

    Raises:
        AclaError: there is no such file, or it holds something else.
    """
    try:
        rows = json.loads(Path(path).read_text(encoding="utf-8"))
        candidates = [Candidate(Arch.load(r["arch"]), float(r["quality"]), float(r["cost"])) for r in rows]
    except OSError as error:
        raise AclaError(
            f"cannot read {path}: {error.strerror}; give the folder of a multi-trial search"
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise AclaError(f"{path} does not hold the candidates of a search: {error}") from None
    if not candidates or not all(c.arch.cost for c in candidates):
        raise AclaError(f"{path} holds no candidates with a cost")
    return candidates
