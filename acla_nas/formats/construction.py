"""How a network was constructed: the arguments of its modules, written as Python expressions."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from acla_nas.errors import AclaError

_RECORD = "_constructed_with"
_PLAIN = (type(None), bool, int, float, str)


@contextmanager
def recording(classes: Collection[type[nn.Module]]) -> Iterator[None]:
    """Within it, every new module of these classes remembers the arguments that it was constructed with.

    Example:
        >>> with recording({nn.Conv2d}):
        ...     layer = nn.Conv2d(3, 8, 3, padding=1)
        >>> expression(layer, lambda part: part.__name__)
        'Conv2d(in_channels=3, out_channels=8, kernel_size=3, padding=1)'
    """
    own = {cls: vars(cls).get("__init__") for cls in classes}
    inherited = {cls: cls.__init__ for cls in classes}
    try:
        for cls in classes:
            cls.__init__ = _remembering(cls, inherited[cls])  # type: ignore[method-assign]
        yield
    finally:
        for cls, init in own.items():
            if init is None:
                del cls.__init__
            else:
                cls.__init__ = init  # type: ignore[method-assign]


def _remembering(cls: type[nn.Module], init: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(init)
    def remembering(self: nn.Module, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        if type(self) is cls:  # not for the call of a subclass's super().__init__
            object.__setattr__(self, _RECORD, (args, kwargs))

    return remembering


def expression(value: Any, name_of: Callable[[Any], str]) -> str:
    """Return the Python expression that makes a value: a module that remembers its arguments, or plain data.

    Args:
        value: the module, class, function, number, text, None, or a tuple, list, set or dict of such.
        name_of: what the expression calls a class or function.

    Raises:
        AclaError: a module that remembers nothing, or a value that has no such expression.
    """
    if isinstance(value, nn.Module):
        if not hasattr(value, _RECORD):
            raise AclaError(
                f"it is not known how the {type(value).__name__} was constructed: give what makes the "
                "backbone, export(..., backbone=lambda: Net(...)), not a network"
            )
        args, kwargs = getattr(value, _RECORD)
        given = _named(type(value), args, kwargs)
        if given is None:
            parts = [expression(v, name_of) for v in args]
            given = kwargs
        else:
            parts = []
        parts += [f"{name}={expression(v, name_of)}" for name, v in given.items()]
        return f"{name_of(type(value))}({', '.join(parts)})"
    if type(value) in _PLAIN:
        return repr(value)
    if isinstance(value, (torch.dtype, torch.device)):
        return f"torch.device({str(value)!r})" if isinstance(value, torch.device) else repr(value)
    if type(value) in (list, tuple, set, torch.Size):
        items = [expression(item, name_of) for item in value]
        if isinstance(value, tuple):
            return f"({', '.join(items)}{',' if len(items) == 1 else ''})"
        opening, closing = ("[", "]") if isinstance(value, list) else ("{", "}")
        return f"{opening}{', '.join(items)}{closing}" if items or opening == "[" else "set()"
    if type(value) is dict:
        pairs = (f"{expression(k, name_of)}: {expression(v, name_of)}" for k, v in value.items())
        return f"{{{', '.join(pairs)}}}"
    if inspect.isclass(value) or inspect.isfunction(value) or inspect.isbuiltin(value):
        return name_of(value)
    raise AclaError(f"an argument of the backbone, {type(value).__name__}, cannot be written as Python")


def _named(cls: type[nn.Module], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any] | None:
    """Return the arguments by name, but for those that have their defaults.

    None where the class takes any number of them, which have no names.
    """
    bound = inspect.signature(cls).bind(*args, **kwargs)
    named: dict[str, Any] = {}
    for name, value in bound.arguments.items():
        parameter = bound.signature.parameters[name]
        if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
            return None
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            named |= value
        elif not (
            type(value) in _PLAIN and type(value) is type(parameter.default) and value == parameter.default
        ):
            named[name] = value
    return named
