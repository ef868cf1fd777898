"""The configuration of a search, a retraining or an evaluation: one schema for YAML files and overrides."""

from __future__ import annotations

import inspect
import os
import re
import reprlib
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_type_hints

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, create_model
from pydantic_core import ErrorDetails

from acla_nas.durable import make_run_folder, write_text
from acla_nas.errors import AclaError, unknown_name

T = TypeVar("T")

PathName = Annotated[str, AfterValidator(os.path.expanduser)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


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

    train: PathName = "embedded"
    """Images to train on."""
    validation: PathName = "embedded"
    """Images that the search's gates learn on, and that are scored after every epoch."""
    test: PathName = "embedded"
    """Images that `train`, `eval` and `report` score and show."""
    fold: int | None = Field(None, ge=1)
    """Where given, cross-validation: 1 .. folds, the part of the training images to validate with instead."""
    folds: int = Field(5, ge=2)
    """How many such parts; the one of `fold` is not trained on."""
    patch_size: int = Field(48, ge=1)
    """Side of the degraded patch, in pixels."""
    batch_size: int = Field(16, ge=1)
    """Patches per batch, in all processes together."""
    workers: int | None = Field(None, ge=0)
    """Processes that load data, beside each trainer's own; chosen from the machine where null."""


class SearchRecipe(_Section):
    """How weights are trained while searching; the strategy says for how many epochs."""

    steps_per_epoch: int = Field(1000, ge=1)
    """Batches per epoch."""
    learning_rate: float = Field(1e-4, gt=0)
    """Of Adam, at the start."""
    loss: Literal["l1", "mse"] = "mse"
    """In grey levels, 0 .. 255, or their squares."""
    schedule: Literal["cosine", "halve"] = "cosine"
    """Of the learning rate: to zero over the whole training, or halved every `halve_every` epochs."""
    halve_every: int = Field(200, ge=1)
    """Epochs, where schedule is halve."""
    gradient_clip: float = Field(0.0, ge=0)
    """Largest norm of the gradient; none where 0."""
    key_cost: float = Field(0.0, ge=0)
    """What the mean share of open keys weighs in the loss; it is what closes key gates (docs/results.md)."""
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    """Of Lightning; bf16-mixed computes convolutions and products in bfloat16."""
    nonfinite: Literal["stop", "skip"] = "stop"
    """What a loss or gradient that is NaN or infinite does: stop the training, or skip the step."""


class TrainRecipe(SearchRecipe):
    """How a network is trained."""

    epochs: int = Field(1, ge=1)
    """How many."""
    loss: Literal["l1", "mse"] = "l1"
    """In grey levels, 0 .. 255, or their squares."""
    key_cost: float = Field(0.03, ge=0)
    """What the mean share of open keys weighs in the loss; it is what closes key gates (docs/results.md)."""


class Scoring(_Section):
    """How a multi-trial strategy scores a candidate; one-shot strategies do not need it."""

    weights: PathName | None = None
    """A supernet's, which candidates inherit: a one-shot search's run folder; where null, each is trained."""
    epochs: int = Field(1, ge=1)
    """Of the short training of each candidate, with the recipe of `search`."""


class Compare(_Section):
    """What ``acla-nas bench compare`` compares."""

    variants: list[str] = Field(["bare", "nl", "cla", "cla-i", "cla-k", "acla", "acla-random"], min_length=1)
    """See acla_nas.bench.compare; the name of any attention inserts it evenly."""
    seeds: list[Annotated[int, Field(ge=0, lt=2**32)]] = Field([0, 1, 2], min_length=1)
    """Of the repetitions; each stands for `seed`."""
    tests: list[PathName] = []
    """Folders of test images; `data.test` where empty."""
    num_modules: int = Field(3, ge=1)
    """Of the variants whose modules are inserted evenly."""
    options: dict[str, dict[str, Any]] = {}
    """Attention -> its options, for all variants that insert it."""


class Config(_Section):
    """Everything that a run depends on."""

    task: Named = Named(name="super_resolution")
    """Name and options of a task, such as {name: super_resolution, scale: 2}: `acla-nas list tasks`."""
    space: Named = Named(name="edsr")
    """Name and options of a search space, its attention's among them: `acla-nas list spaces`."""
    strategy: Named = Named(name="two_stage")
    """Name and options of a search strategy: `acla-nas list strategies`."""
    data: Data = Data()
    """Images and patches."""
    search: SearchRecipe = SearchRecipe()
    """The recipe while searching."""
    scoring: Scoring = Scoring()
    """Of the candidates of a multi-trial strategy."""
    budget: str | None = None
    """What the found architecture may cost at most, such as macs<=2e9; no limit where null."""
    time_limit: float | None = Field(None, gt=0)
    """Minutes until a search begins no more epochs or trials; given again it goes on. No limit where null."""
    train: TrainRecipe = TrainRecipe()
    """The recipe for retraining."""
    compare: Compare = Compare()
    """What a comparison of many trainings consists of."""
    arch: PathName = "bare"
    """The architecture that `train` trains: an arch.json, or bare."""
    models: list[PathName] = Field(default_factory=list)
    """Run folders that `eval` scores, `export` writes and `report` shows."""
    seed: int = Field(0, ge=0, lt=2**32)
    """Of everything random."""
    deterministic: bool = False
    """Deterministic algorithms only: a GPU repeats a run to the last bit too, as a CPU does; slower."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where it runs; auto is cuda where there is one."""
    devices: int = Field(1, ge=1)
    """Processes per machine that a one-shot search or a training is spread over (docs/scaling.md)."""
    nodes: int = Field(1, ge=1)
    """Machines; with more than one, torchrun starts the command on each."""
    run: PathName = "runs/run"
    """The folder that the run writes to."""

    def save(self, folder: str | Path) -> Path:
        """Write the resolved configuration as config.yml into a folder, made if missing; return its path.

        Raises:
            AclaError: the folder cannot be made or written to.
        """
        make_run_folder(folder)
        return write_text(Path(folder, "config.yml"), yaml.safe_dump(self.model_dump(), sort_keys=False))


def keys() -> dict[str, tuple[Any, str]]:
    """Return the default and the meaning of every key of a configuration, dotted.

    The options of a task, space and strategy are arguments of what their name says.

    Example:
        >>> keys()["data.patch_size"]
        (48, 'Side of the degraded patch, in pixels.')
    """
    return _keys(Config, "")


def _keys(section: type[BaseModel], prefix: str) -> dict[str, tuple[Any, str]]:
    known: dict[str, tuple[Any, str]] = {}
    for name, field in section.model_fields.items():
        default = field.get_default(call_default_factory=True)
        if isinstance(default, _Section):
            known |= _keys(type(default), f"{prefix}{name}.")
        else:
            shown = default.model_dump() if isinstance(default, BaseModel) else default
            known[f"{prefix}{name}"] = shown, field.description or ""
    return known


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
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise AclaError(f"config {path} is not plain YAML: {error}; mend it there") from None
    if content is None:
        content = {}
    if not isinstance(content, dict):
        raise AclaError(
            f"config {path} is a {type(content).__name__}, not a mapping: write keys such as seed: 0"
        )
    values = list(map(_parse_override, overrides))
    for section in ("task", "strategy"):
        of_file = content.get(section)
        name = dict(values).get(f"{section}.name")
        default = Config.model_fields[section].default.name
        if name is not None and isinstance(of_file, dict) and of_file.get("name", default) != name:
            content[section] = {}  # the file's options are of another one
    for key, value in values:
        set_key(content, key, value)
    return parse_config(content, str(path))


def _parse_override(override: str) -> tuple[str, Any]:
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise AclaError(f"override {override!r} must be KEY=VALUE, such as data.train=DIR")
    try:
        return key, yaml.safe_load(value)
    except (yaml.YAMLError, ValueError, RecursionError):
        raise AclaError(f"the value of override {override!r} is not YAML; put it in quotes") from None


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
        if content.get(parent) is None:
            content[parent] = {}
        content = content[parent]
        if not isinstance(content, dict):
            raise AclaError(f"cannot set {key!r}: {parent!r} is a value, not a section of keys")
    content[last] = value


def parse_config(content: dict[str, Any], source: str) -> Config:
    """Validate a configuration given as nested mappings.

    Raises:
        AclaError: a key is unknown, or a value does not fit.
    """
    try:
        return Config.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        *parents, last = map(str, first["loc"])
        if first["type"] != "extra_forbidden":
            raise AclaError(f"config {source}: {_explain('.'.join([*parents, last]), first)}") from None
        section: Any = Config
        for parent in parents:
            section = section.model_fields[parent].annotation
        raise _unknown_key(".".join(parents), last, section.model_fields) from None


def build(
    kind: str,
    make: Callable[..., T],
    options: dict[str, Any],
    *,
    passes_on: Sequence[Callable[..., Any]] = (),
    reserved: Collection[str] = (),
) -> T:
    """Call what a section of the configuration names, with its options checked by name and by type.

    Args:
        kind: the section.
        make: what is called.
        options: its keyword arguments.
        passes_on: whom `make` passes its ``**options`` on to, and that one its own, and so on.
        reserved: arguments that are not the user's to give.

    Raises:
        AclaError: an option is unknown, with the nearest known one, or of the wrong type.
    """
    fields: dict[str, Any] = {}
    for taker in (make, *passes_on):
        fields = {**_argument_fields(taker), **fields}
        if not _takes_any(taker):
            break
    known = {name: field for name, field in fields.items() if name not in reserved}
    for option in options:
        if option not in known:
            raise _unknown_key(kind, option, known)
    config = ConfigDict(arbitrary_types_allowed=True, allow_inf_nan=False, protected_namespaces=())
    # An option may have the name of one of pydantic's own methods.
    aliased = {f"option_{i}": (known[o][0], Field(alias=o)) for i, o in enumerate(options)}
    try:
        checked = create_model("Options", __config__=config, **aliased)(**options)  # type: ignore[call-overload]
    except ValidationError as error:
        first, option = error.errors()[0], str(error.errors()[0]["loc"][0])
        no_member_fits = sum(e["loc"][0] == option for e in error.errors()) > 1
        if no_member_fits or first["type"] in ("tuple_type", "too_long"):
            raise AclaError(
                f"{kind}.{option} must be {_as_yaml(known[option][1])}, not {_short(options[option])}"
            ) from None
        raise AclaError(_explain(".".join([kind, *map(str, first["loc"])]), first)) from None
    try:
        return make(**{option: getattr(checked, name) for name, option in zip(aliased, options)})
    except AclaError as error:
        raise AclaError(f"{kind}: {error}") from None


def _function(make: Callable[..., Any]) -> Any:
    """Return the function that has the arguments of a class or function."""
    return inspect.unwrap(make.__init__ if inspect.isclass(make) else make)


def _argument_fields(make: Callable[..., Any]) -> dict[str, tuple[Any, str]]:
    """Return the annotated type of each named argument of a callable, as an object and as text."""
    function = _function(make)
    annotations = getattr(function, "__annotations__", {})
    fields = {}
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY) and name != "self":
            annotation = annotations.get(name, Any)
            holder = type("Argument", (), {"__annotations__": {name: annotation}})
            try:
                hint = get_type_hints(holder, globalns=getattr(function, "__globals__", {}))[name]
            except NameError:  # imported for type checkers only
                hint = Any
            fields[name] = hint, getattr(annotation, "__name__", str(annotation))
    return fields


def _as_yaml(annotation: str) -> str:
    """Return an annotation's text with tuples as the lists that YAML has: tuple[int, int] is [int, int]."""
    return re.sub(r"tuple(?=\[)", "a list ", annotation)


def _takes_any(make: Callable[..., Any]) -> bool:
    parameters = inspect.signature(_function(make)).parameters.values()
    return any(p.kind is p.VAR_KEYWORD for p in parameters)


def _unknown_key(section: str, key: str, known: Collection[str]) -> AclaError:
    return unknown_name("key", key, known, prefix=f"{section}." if section else "")


def _explain(key: str, error: ErrorDetails) -> str:
    """Say in one line what is wrong with the value of a key, and what it should be."""
    if error["type"] == "missing":
        return f"{key} is missing: set it"
    if error["type"] in ("model_type", "model_attributes_type"):
        return f"{key} must be a section of keys, not {_short(error['input'])}"
    if error["type"] == "list_type":
        return f"{key} must be a list, such as [A, B], not {_short(error['input'])}"
    quoted = "; put it in quotes" if error["type"] == "string_type" and error["input"] is not None else ""
    message = error["msg"].replace("Input should", "must").partition(", unable")[0].partition(", got")[0]
    return f"{key} {message[0].lower()}{message[1:]}, not {_short(error['input'])}{quoted}"


def _short(value: Any) -> str:
    brief = reprlib.Repr()
    brief.maxstring = brief.maxother = 80
    return brief.repr(value)
