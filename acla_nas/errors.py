"""Errors and warnings that a user can mend: one line that names the thing, the value and the remedy."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class AclaError(ValueError):
    """A mistake in what the user gave; the command line prints its text without a traceback."""


class AclaWarning(UserWarning):
    """Something that a user should know although the run goes on; printed in one line as well."""


def unknown_name(kind: str, name: object, known: Iterable[str], *, prefix: str = "") -> AclaError:
    """Return the error for a name that is not among those known, with the nearest known one.

    The prefix stands before each name in the text.

    >>> str(unknown_name("cost model", "mac", ["macs", "paper"]))
    "unknown cost model 'mac'; did you mean 'macs'? Known: macs, paper"
    """
    names = sorted(known)
    near = difflib.get_close_matches(str(name), names, n=1)
    hint = f"did you mean {prefix + near[0]!r}? " if near else ""
    shown = repr(f"{prefix}{name}" if prefix else name)
    return AclaError(f"unknown {kind} {shown}; {hint}Known: {', '.join(prefix + n for n in names)}")
