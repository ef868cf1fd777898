"""Registry: what there is of a kind (cost models, tasks, ..) by name: ours, plugins', and MODULE:NAME."""

from __future__ import annotations

import importlib
import os
import re
import sys
import warnings
from collections.abc import Callable, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar

from acla_nas.errors import AclaError, AclaWarning, unknown_name

T = TypeVar("T")


class Registry(Generic[T]):
    """The exchangeable parts of one kind, by name.

    A name is one of three:

    - that of a part that was added here;
    - that of an entry point of an installed package, in the group of this kind. It is loaded when its name is
      asked for, or when all names are;
    - MODULE:NAME, something of the user's own: ``my_costs:Energy`` is ``Energy`` in ``my_costs.py`` in the
      current folder, or in an installed module. The module is imported, that is, run; so :meth:`get` is for
      names from the user's configuration or code. For a name out of a file that may come from anywhere, an
      architecture's, there is :meth:`known`.

    Args:
        kind: what error messages call it, such as "cost model".
        group: of the entry points, such as "acla_nas.cost".
        needs: what a part must be, for error messages.
        fits: whether an object is one.
        entries: name -> part, to begin with.

    Example:
        >>> shapes = Registry("shape", "my_package.shapes", "a function", callable, {"round": abs})
        >>> shapes.get("round")(-1)
        1
        >>> shapes.get("rond")
        Traceback (most recent call last):
        acla_nas.errors.AclaError: unknown shape 'rond'; did you mean 'round'? Known: round
    """

    def __init__(
        self,
        kind: str,
        group: str,
        needs: str,
        fits: Callable[[Any], bool],
        entries: Mapping[str, T] | None = None,
    ) -> None:
        self.kind, self.group, self.needs, self.fits = kind, group, needs, fits
        self.entries: dict[str, T] = dict(entries or {})
        self._imported: dict[str, T] = {}  # MODULE:NAME -> part, of those that the user named
        self._warned: set[str] = set()

    def add(self, name: str, part: T) -> None:
        """Make a part known under a name.

        Raises:
            AclaError: the name has a colon, or another part has it already.
        """
        if ":" in name:
            raise AclaError(f"{self.kind} {name!r} cannot be registered: a colon is for MODULE:NAME")
        taken = self.entries.get(name)
        # A file that is loaded twice defines its classes twice: the later one replaces the earlier.
        if taken is not None and _origin(taken) != _origin(part):
            raise AclaError(f"{self.kind} name {name!r} is taken by {'.'.join(_origin(taken))}; use another")
        self.entries[name] = part

    def get(self, name: str) -> T:
        """Return the part of a name, importing what MODULE:NAME names.

        Raises:
            AclaError: the name is unknown; or its module or plugin cannot be imported, or has no such part.
        """
        if ":" in name:
            self._imported[name] = self._import(name)
        return self.known(name)

    def known(self, name: str) -> T:
        """Return the part of a name; MODULE:NAME only where :meth:`get` was asked for it before.

        Raises:
            AclaError: the name is unknown, or names a module that is not to be imported; or its plugin
                cannot be loaded.
        """
        if name in self._imported:
            return self._imported[name]
        if name in self.entries:
            return self.entries[name]
        if ":" in name:
            raise AclaError(
                f"{self.kind} {name!r} is code of one's own, and an architecture's file must not decide what "
                f"is imported: name it in the configuration, or call {self.group}.get({name!r}) first; to "
                "restore, give an exported file, such as RUN/export/model.pt2"
            )
        plugins = self._plugins()
        if name not in plugins:
            raise unknown_name(self.kind, name, {*self.entries, *plugins})
        self._load(plugins[name])
        return self.entries[name]

    def names(self) -> list[str]:
        """Return all names, sorted, with plugins'; warns once of each plugin that cannot be loaded."""
        for name, plugin in self._plugins().items():
            try:
                if name not in self.entries:
                    self._load(plugin)
            except AclaError as error:
                if name not in self._warned:
                    self._warned.add(name)
                    warnings.warn(str(error), AclaWarning, stacklevel=2)
        return sorted(self.entries)

    def summaries(self) -> dict[str, str]:
        """Return the first line of each part's docstring as plain text, "" where it has none, by name."""
        lines = {name: (self.entries[name].__doc__ or "").strip().partition("\n")[0] for name in self.names()}
        return {name: re.sub(r":\w+:(?=`)|`", "", line) for name, line in lines.items()}

    def adopt(self, name: str, part: T) -> T:
        """Return a part from elsewhere as it is to be known under a name: unchanged."""
        return part

    def _plugins(self) -> dict[str, EntryPoint]:
        """Return the entry points of this kind by name, the first where packages share one."""
        return {plugin.name: plugin for plugin in reversed(list(entry_points(group=self.group)))}

    def _load(self, plugin: EntryPoint) -> None:
        package = plugin.dist.name if plugin.dist else plugin.module
        what = f"{self.kind} {plugin.name!r} of the package {package}"
        try:
            part = plugin.load()
        except (Exception, SystemExit) as error:  # whatever its module does
            raise AclaError(f"{what} cannot be loaded ({_told(error)}): mend or uninstall it") from error
        if not self.fits(part):
            raise AclaError(f"{what} cannot be used: {plugin.value} must be {self.needs}")
        self.entries[plugin.name] = self.adopt(plugin.name, part)

    def _import(self, name: str) -> T:
        """Return what MODULE:NAME names."""
        module_name, _, attribute = name.partition(":")
        folder = os.getcwd()
        if folder not in sys.path:
            sys.path.append(folder)  # last, so that no file there hides an installed module; and for good,
            # as the user's module may import its neighbours late, or in a worker process
        try:
            module = importlib.import_module(module_name)
        except Exception as error:  # whatever the user's module raises
            raise AclaError(
                f"{self.kind} {name!r}: cannot import {module_name!r} ({_told(error)}); "
                f"it must be a file {module_name}.py in {folder}, or an installed module"
            ) from error
        part = getattr(module, attribute, None)
        if not self.fits(part):
            own = {key: value for key, value in vars(module).items() if _origin(value)[0] == module.__name__}
            there = ", ".join(key for key, value in own.items() if self.fits(value)) or "none"
            raise AclaError(
                f"{self.kind} {name!r}: {attribute!r} in {module_name!r} must be {self.needs}; "
                f"such are there: {there}"
            )
        return self.adopt(name, part)  # type: ignore[arg-type]


def _origin(part: object) -> tuple[str, str]:
    """Return the module and the name that a class or function was defined under."""
    return str(getattr(part, "__module__", "")), str(getattr(part, "__qualname__", part))


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".rstrip(": ")
