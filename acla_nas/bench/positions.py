"""Which positions a module is inserted at, where no search says so: evenly, or at random at equal cost."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator, Sequence

from acla_nas.cost import CostTable

_MOST = 20_000  # candidates looked at


def even_positions(count: int, of: int) -> tuple[int, ...]:
    """Return `count` of the positions 1 .. `of`, evenly spaced and ending with the last.

    Example:
        >>> even_positions(4, of=32)
        (8, 16, 24, 32)
    """
    count = min(count, of)
    return tuple(math.ceil(i * of / count) for i in range(1, count + 1))


def random_positions(
    table: CostTable, like: Sequence[int], seed: int, *, tolerance: float = 0.01
) -> tuple[int, ...]:
    """Return random positions that are as many as given ones, other than them, and cost the same.

    Args:
        table: of the cost of all positions.
        like: the given positions, 1-based.
        seed: of the choice.
        tolerance: how far the cost may be off, relative. Where no choice is within it, the nearest are
            chosen from.

    Example:
        >>> import torch
        >>> table = CostTable(torch.tensor([1.0, 1.0, 1.0, 9.0]), torch.zeros(4, 4))
        >>> random_positions(table, [1], seed=0) in {(2,), (3,)}
        True
    """
    rng = random.Random(seed)
    own, pair = table.own.tolist(), table.pair.tolist()

    def cost(positions: Sequence[int]) -> float:
        return sum(own[j - 1] + sum(pair[j - 1][l - 1] for l in positions if l <= j) for j in positions)

    others = [p for p in _candidates(len(own), len(like), rng) if p != tuple(like)]
    if not others:  # none or all positions are inserted
        return tuple(like)
    target = cost(like)
    distance = [abs(cost(p) - target) for p in others]
    near = max(min(distance), tolerance * target)
    return rng.choice([p for p, d in zip(others, distance) if d <= near])


def random_architectures(count: int, of: int, seed: int, *, fewest: int = 0) -> list[tuple[int, ...]]:
    """Return different random choices of the positions 1 .. `of`: first how many of them, then which.

    Args:
        count: of the choices, no more than there are.
        of: how many positions there are.
        seed: of the choices.
        fewest: positions of a choice.

    Example:
        >>> sorted(random_architectures(3, 2, seed=0, fewest=1))
        [(1,), (1, 2), (2,)]
    """
    rng, chosen = random.Random(seed), dict[tuple[int, ...], None]()
    while len(chosen) < count:
        size = rng.randint(fewest, of)
        chosen[tuple(sorted(rng.sample(range(1, of + 1), size)))] = None
    return list(chosen)


def _candidates(count: int, chosen: int, rng: random.Random) -> Iterator[tuple[int, ...]]:
    """Yield all choices of positions, or many different random ones."""
    positions = range(1, count + 1)
    if math.comb(count, chosen) <= _MOST:
        yield from itertools.combinations(positions, chosen)
    else:
        yield from sorted({tuple(sorted(rng.sample(positions, chosen))) for _ in range(_MOST)})
