"""Arch: a derived architecture as data, stored as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from acla_nas._version import __version__
from acla_nas.durable import write_text
from acla_nas.errors import AclaError
from acla_nas.layout import check_layout

if TYPE_CHECKING:
    from acla_nas.space import CrossLayerSpace

FORMAT_VERSION = 2  # 1 left out the options of the attention that had their defaults
_GATES_OF_VERSION_1 = {"gate_bias": 0.0, "gate_noise": True, "zero_masks": False, "mask_scale": 1.0}


class Arch(BaseModel):
    """A derived architecture: where attention is inserted in which backbone, and of what kind.

    Attributes:
        space: ``name`` and ``options`` of a registered search space, or ``backbone``, the class name of
            a network that the user must hand to :func:`acla_nas.export` again.
        positions: the inserted positions, 1-based.
        paths: position -> module path in the backbone.
        attention: ``name``, ``num_keys`` and further options of the attention modules.
        layouts: module path -> layout of the feature there, such as "bchw" or "bnc"; detected again where
            a file of an older version has none.
        input_shape: (C, H, W) that the space was built with.
        cost: cost model -> what the inserted modules cost, with the unit of that model.
        provenance: where the architecture comes from: strategy, seed, versions.

    Example:
        >>> import acla_nas
        >>> space = acla_nas.search_spaces.edsr(num_blocks=2, num_channels=8)
        >>> arch = space.arch({"insert/1": False, "insert/2": True, "keys": 16})
        >>> arch.positions
        (2,)
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal["acla_nas.arch"] = "acla_nas.arch"
    format_version: int = FORMAT_VERSION
    space: dict[str, Any]
    positions: tuple[int, ...]
    paths: dict[int, str]
    attention: dict[str, Any]
    layouts: dict[str, str] = Field(default_factory=dict)
    input_shape: tuple[int, ...] = (3, 48, 48)
    cost: dict[str, float] = Field(default_factory=dict)
    provenance: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _consistent(self) -> Arch:
        if list(self.positions) != sorted(set(self.positions)) or any(j < 1 for j in self.positions):
            raise ValueError(f"positions must be different, ascending and at least 1, not {self.positions}")
        if set(self.paths) != set(self.positions):
            raise ValueError(f"paths must name the positions {self.positions}, not {sorted(self.paths)}")
        space_options = self.space.get("options", {})
        if not isinstance(self.space.get("name", ""), str) or not isinstance(space_options, dict):
            raise ValueError("space must have a name and options, which are a mapping")
        if not isinstance(self.attention.get("name"), str) or not isinstance(
            self.attention.get("num_keys"), int
        ):
            raise ValueError("attention must have a name and num_keys")
        for path, layout in self.layouts.items():
            if path not in self.paths.values():
                raise ValueError(f"layouts names {path!r}, which is not in paths")
            check_layout(layout)
        return self

    def _repr_html_(self) -> str:
        """Return what a notebook shows: the network as a diagram."""
        from acla_nas.diagram import arch_html

        return arch_html(self)

    @classmethod
    def from_sample(cls, space: CrossLayerSpace, sample: dict[str, Any]) -> Arch:
        """Return the architecture that a sample of a space decides."""
        positions, num_keys = space._chosen(sample)
        return cls(
            space=space.source,
            positions=tuple(positions),
            paths={j: space.network.paths[j] for j in positions},
            attention={**space.attention_options, "num_keys": num_keys},
            layouts={path: space.layouts[path] for path in (space.network.paths[j] for j in positions)},
            input_shape=space.input_shape,
            provenance={"acla_nas": __version__},
        )

    def save(self, path: str | Path) -> Path:
        """Write the architecture as JSON and return the path."""
        return write_text(path, self.model_dump_json(indent=2) + "\n")

    @classmethod
    def load(cls, source: str | Path | dict[str, Any] | Arch) -> Arch:
        """Return the architecture in a JSON file or a dict.

        Raises:
            AclaError: no such file, not JSON, another format version, or a field that does not fit.
        """
        if isinstance(source, Arch):
            return source
        if isinstance(source, dict):
            name, data = "the architecture", source
        else:
            name = f"architecture file {source}"
            try:
                data = json.loads(Path(source).read_text(encoding="utf-8"))
            except OSError as error:
                raise AclaError(f"{name}: {error.strerror}; give the arch.json of a search") from None
            except ValueError as error:
                raise AclaError(f"{name} is not JSON: {error}; give the arch.json of a search") from None
        if not isinstance(data, dict) or data.get("format") != "acla_nas.arch":
            raise AclaError(f"{name} is not an acla_nas architecture; give the arch.json of a search")
        if data.get("format_version") not in (1, FORMAT_VERSION):
            raise AclaError(
                f"{name} has format version {data.get('format_version')!r}, this acla_nas {__version__} "
                f"reads 1 and {FORMAT_VERSION}: use the acla_nas that wrote it, or search again"
            )
        try:
            arch = cls.model_validate(data)
            return arch if arch.format_version == FORMAT_VERSION else _from_version_1(arch)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise AclaError(f"{name} is not valid: {where} {first['msg']}") from None


def shown_positions(positions: Iterable[int]) -> str:
    """Return positions as they are printed.

    Example:
        >>> shown_positions((2, 5)), shown_positions(())
        ('2, 5', 'none')
    """
    return ", ".join(map(str, positions)) or "none"


def _from_version_1(arch: Arch) -> Arch:
    """Return the architecture of a file of version 1, whose key gates had other defaults."""
    adaptive = "acla" in arch.attention["name"].split("+")
    attention = {**_GATES_OF_VERSION_1, **arch.attention} if adaptive else arch.attention
    return arch.model_copy(update={"format_version": FORMAT_VERSION, "attention": attention})
