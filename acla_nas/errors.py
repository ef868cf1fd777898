"""The errors that a user can mend, each one line that names the thing, the value and the remedy."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class AclaError(ValueError):
    """A mistake in what the user gave; the command line prints its text without a traceback."""


def unknown_name(kind: str, name: object, known: Iterable[str]) -> AclaError:
    """Return the error for a name that is not among those known, with the nearest known one.

    >>> str(unknown_name("cost model", "mac", ["macs", "paper"]))
    "unknown cost model 'mac'; did you mean 'macs'? Known: macs, paper"
    """
    names = sorted(known)
    near = difflib.get_close_matches(str(name), names, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return AclaError(f"unknown {kind} {name!r}; {hint}Known: {', '.join(names)}")
