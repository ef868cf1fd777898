"""The restoration tasks, by name; each task is one file here, or a file of the user's own."""

from __future__ import annotations

import inspect
from typing import TypeGuard, TypeVar

from acla_nas.errors import AclaError
from acla_nas.registry import Registry
from acla_nas.tasks.demosaicing import Demosaicing
from acla_nas.tasks.denoising import Denoising
from acla_nas.tasks.jpeg import JpegArtifacts
from acla_nas.tasks.super_resolution import SuperResolution
from acla_nas.tasks.task import Task

_T = TypeVar("_T", bound=type[Task])


def _is_task(task: object) -> TypeGuard[type[Task]]:
    """Say whether this is a complete subclass of Task."""
    return (
        isinstance(task, type)
        and issubclass(task, Task)
        and not inspect.isabstract(task)
        and hasattr(task, "name")
        and hasattr(task, "baseline_name")
    )


REGISTRY: Registry[type[Task]] = Registry(
    "task",
    "acla_nas.tasks",
    "a subclass of Task with a name, a baseline_name, degrade and baseline",
    _is_task,
)


def register(task: _T) -> _T:
    """Make a task known by its `name`; a decorator for subclasses of `Task`.

    Args:
        task: the class.

    Returns:
        The class, unchanged.

    Raises:
        AclaError: it is no complete `Task`, or another class has its name already.

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
    if not _is_task(task):
        raise AclaError(f"cannot register {task!r} as a task; give {REGISTRY.needs}")
    REGISTRY.add(task.name, task)
    return task


def get(name: str, **options: object) -> Task:
    """Return the task of a name.

    Args:
        name: one of `names()`, or MODULE:CLASS, as for `type_of`.
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
    """Return the class of the task of a name.

    MODULE:CLASS names a task of the user's own, which need not be registered: ``my_tasks:Darkening`` is the
    class ``Darkening`` in ``my_tasks.py`` in the current folder, or in an installed module. Its module is
    imported, that is, run: see :class:`acla_nas.registry.Registry`.

    Args:
        name: one of `names()`, or MODULE:CLASS.

    Raises:
        AclaError: the name is unknown; or the module cannot be imported, or has no such task.

    Example:
        >>> type_of("acla_nas.tasks.jpeg:JpegArtifacts").name
        'jpeg'
    """
    return REGISTRY.get(name)


def names() -> list[str]:
    """Return the names of all tasks that are registered here or by plugins, sorted.

    >>> "super_resolution" in names()
    True
    """
    return REGISTRY.names()


for _task in (Demosaicing, Denoising, JpegArtifacts, SuperResolution):
    register(_task)

__all__ = [
    "Demosaicing",
    "Denoising",
    "JpegArtifacts",
    "SuperResolution",
    "Task",
    "get",
    "names",
    "register",
    "type_of",
]
