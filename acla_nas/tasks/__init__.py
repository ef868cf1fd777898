"""The restoration tasks, by name; each task is one file here, or a file of the user's own."""

from __future__ import annotations

import inspect
from typing import TypeVar

from acla_nas.errors import AclaError, unknown_name
from acla_nas.tasks.super_resolution import SuperResolution
from acla_nas.tasks.task import Task

_TASKS: dict[str, type[Task]] = {}
_T = TypeVar("_T", bound=type[Task])


def register(task: _T) -> _T:
    """Make a task known by its `name`; a decorator for subclasses of `Task`.

    Args:
        task: the class.

    Returns:
        The class, unchanged.

    Raises:
        AclaError: it is no `Task`, has no name, or another class has that name already.

    Example:
        >>> @register
        ... class Negative(Task):
        ...     name, baseline_name = "negative", "inverted"
        ...     def degrade(self, hq, rng):
        ...         return 255 - hq
        ...     def baseline(self, lq):
        ...         return 255 - lq
        >>> get("negative").scale
        1
    """
    if not (isinstance(task, type) and issubclass(task, Task) and hasattr(task, "name")):
        raise AclaError(f"cannot register {task!r} as a task; give a subclass of Task with a name")
    known = _TASKS.get(task.name)
    # A file that is loaded twice defines its class twice: the later one replaces the earlier.
    if known and (known.__module__, known.__qualname__) != (task.__module__, task.__qualname__):
        raise AclaError(
            f"task name {task.name!r} is taken by {known.__module__}.{known.__qualname__}; use another"
        )
    _TASKS[task.name] = task
    return task


def get(name: str, **options: object) -> Task:
    """Return the task of a name.

    Args:
        name: one of `names()`.
        **options: what the task's class takes, such as ``scale=3``.

    Returns:
        A new task.

    Raises:
        AclaError: the name or an option is unknown, or an option's value is not allowed.

    Example:
        >>> get("super_resolution", scale=4).scale
        4
    """
    task = type_of(name)
    signature = inspect.signature(task)
    try:
        signature.bind(**options)
    except TypeError as error:
        takes = ", ".join(signature.parameters) or "no options"
        raise AclaError(f"task {name!r}: {error}; it takes: {takes}") from error
    return task(**options)


def type_of(name: str) -> type[Task]:
    """Return the class of the task of a name; raises AclaError for an unknown one."""
    if name not in _TASKS:
        raise unknown_name("task", name, _TASKS)
    return _TASKS[name]


def names() -> list[str]:
    """Return the names of all registered tasks, sorted.

    >>> "super_resolution" in names()
    True
    """
    return sorted(_TASKS)


register(SuperResolution)

__all__ = ["SuperResolution", "Task", "get", "names", "register", "type_of"]
