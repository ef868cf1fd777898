"""The configuration of a search, a retraining or an evaluation: one schema for YAML files and overrides."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, get_type_hints

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from acla_nas.errors import AclaError

T = TypeVar("T")


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Named(BaseModel):
    """A registered thing by name, with the options that it takes itself."""

    model_config = ConfigDict(extra="allow")

    name: str

    @property
    def options(self) -> dict[str, Any]:
        """Everything but the name."""
        return dict(self.model_extra or {})


class Data(_Section):
    """Images and patches; each source is a folder or "embedded"."""

    train: str = "embedded"
    validation: str = "embedded"
    test: str = "embedded"
    patch_size: int = Field(48, ge=1)
    batch_size: int = Field(16, ge=1)
    workers: int = Field(0, ge=0)


class Recipe(_Section):
    """How weights are trained."""

    epochs: int = Field(1, ge=1)
    steps_per_epoch: int = Field(1000, ge=1)
    learning_rate: float = Field(1e-4, gt=0)
    loss: Literal["l1", "mse"] = "l1"
    schedule: Literal["cosine", "halve"] = "cosine"
    halve_every: int = Field(200, ge=1)
    gradient_clip: float = Field(0.0, ge=0)


class SearchRecipe(Recipe):
    """The recipe while searching, where the strategy brings the epochs."""

    epochs: Literal[None] = None  # type: ignore[assignment]
    loss: Literal["l1", "mse"] = "mse"


class Config(_Section):
    """Everything that a run depends on.

    Attributes:
        task: name and options: ``{name: super_resolution, scale: 2}``.
        space: name and options of a search space, its attention's among them.
        strategy: name and options of a search strategy.
        data: images and patches.
        search: the recipe while searching.
        train: the recipe for retraining.
        arch: the architecture that ``acla-nas train`` trains: an arch.json, or "bare".
        models: run folders that ``acla-nas eval`` scores.
        seed: of everything random.
        device: "auto", "cpu" or "cuda".
        run: the folder that the run writes to.
    """

    task: Named = Named(name="super_resolution")
    space: Named = Named(name="edsr")
    strategy: Named = Named(name="two_stage")
    data: Data = Data()
    search: SearchRecipe = SearchRecipe()
    train: Recipe = Recipe()
    arch: str = "bare"
    models: list[str] = Field(default_factory=list)
    seed: int = Field(0, ge=0)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    run: str = "runs/run"

    def save(self, folder: str | Path) -> Path:
        """Write the resolved configuration as config.yml into a folder and return its path."""
        path = Path(folder, "config.yml")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(self.model_dump(), sort_keys=False), encoding="utf-8")
        return path


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file and apply ``key=value`` overrides, whose keys may be dotted.

    Raises:
        AclaError: the file cannot be read or parsed; a key is unknown, with the nearest known one; or a
            value does not fit.
    """
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise AclaError(f"cannot read config {path}: {error.strerror}; give a YAML file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise AclaError(f"config {path} is not YAML: {' '.join(str(error).split())}") from None
    if content is None:
        content = {}
    if not isinstance(content, dict):
        raise AclaError(f"config {path} must be a mapping of keys, not {type(content).__name__}")
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals or not key:
            raise AclaError(f"override {override!r} must be KEY=VALUE, such as data.train=DIR")
        try:
            set_key(content, key, yaml.safe_load(value))
        except yaml.YAMLError:
            raise AclaError(f"the value of override {override!r} is not YAML") from None
    return parse_config(content, str(path))


def set_key(content: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key of nested mappings.

    Example:
        >>> content = {"data": {"train": "embedded"}}
        >>> set_key(content, "data.train", "DIV2K")
        >>> content
        {'data': {'train': 'DIV2K'}}
    """
    *parents, last = key.split(".")
    for parent in parents:
        content = content.setdefault(parent, {})
        if not isinstance(content, dict):
            raise AclaError(f"cannot set {key!r}: {parent!r} is a value, not a section")
    content[last] = value


def parse_config(content: dict[str, Any], source: str) -> Config:
    """Validate a configuration given as nested mappings."""
    try:
        return Config.model_validate(content)
    except ValidationError as error:
        raise AclaError(f"config {source}: {_explain(error, Config)}") from None


def build(kind: str, make: Callable[..., T], options: dict[str, Any]) -> T:
    """Call what a section of the configuration names, with its options checked by name and by type.

    Raises:
        AclaError: an option is unknown, with the nearest known one, or of the wrong type.
    """
    parameters = inspect.signature(make).parameters
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    for option in options:
        if option not in parameters and not takes_any:
            raise AclaError(f"{kind}.{option} is not known; {_nearest(option, parameters)}")
    try:
        checked = _options_model(make)(**options)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        raise AclaError(f"{kind}.{name}: {first['msg']}, not {first['input']!r}") from None
    return make(**{name: getattr(checked, name) for name in options})


def _options_model(make: Callable[..., Any]) -> type[BaseModel]:
    """Return the schema of a callable's arguments, from its annotations."""
    function = inspect.unwrap(make.__init__ if inspect.isclass(make) else make)
    annotations = {name: a for name, a in function.__annotations__.items() if name != "return"}
    holder = type("Options", (), {"__annotations__": annotations})
    hints = get_type_hints(holder, globalns=function.__globals__)
    fields = {
        name: (hints.get(name, Any), ... if p.default is p.empty else p.default)
        for name, p in inspect.signature(make).parameters.items()
        if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
    }
    config = ConfigDict(extra="allow", arbitrary_types_allowed=True, protected_namespaces=())
    return create_model("Options", __config__=config, **fields)  # type: ignore[call-overload]


def _explain(error: ValidationError, model: type[BaseModel]) -> str:
    first = error.errors()[0]
    key = ".".join(map(str, first["loc"]))
    if first["type"] == "extra_forbidden":
        section: Any = model
        for part in first["loc"][:-1]:
            section = section.model_fields[str(part)].annotation
        return f"key {key!r} is not known; {_nearest(str(first['loc'][-1]), section.model_fields)}"
    return f"{key}: {first['msg']}, not {first['input']!r}"


def _nearest(name: str, known: Any) -> str:
    near = difflib.get_close_matches(name, list(known), n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"{hint}Known: {', '.join(sorted(known))}"
