"""The runs behind the command line: a search, a retraining, an evaluation, each from one configuration."""

from __future__ import annotations

import inspect
import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from acla_nas import attention as attentions
from acla_nas import search_spaces, strategies, tasks
from acla_nas.arch import Arch, shown_positions
from acla_nas.budget import Budget
from acla_nas.candidate import save_candidates
from acla_nas.config import Config, Named, build, load_config
from acla_nas.cost import LatencyCost
from acla_nas.data import list_images, load_image, split_fold
from acla_nas.durable import write_text
from acla_nas.errors import AclaError, AclaWarning
from acla_nas.evaluation import Evaluation, evaluate
from acla_nas.exporter import export, load_model, save_model, save_weights
from acla_nas.formats import Saved, save
from acla_nas.interruption import stoppable
from acla_nas.lock import locked
from acla_nas.memory_format import to_channels_last
from acla_nas.multi_trial import MultiTrial
from acla_nas.network import backbone_only
from acla_nas.nni_nas import Lightning, tell_nni
from acla_nas.run_folder import check_run_folder, is_begun
from acla_nas.run_record import recorded, say
from acla_nas.searcher import SearchResult, Strategy, search
from acla_nas.space import CrossLayerSpace
from acla_nas.tasks import Task
from acla_nas.training import make_evaluator, train
from acla_nas.training.checkpoint import checkpoint_of, forget
from acla_nas.training.deterministic import deterministic
from acla_nas.training.processes import check_processes, from_main, is_main

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

_SMALL = 64  # pixels; images with sides as long can be scored, whatever the task

# Arguments of a space and of its attention modules that the one gives to the other.
_INTERNAL = {"backbone", "positions", "channels", "num_references", "reference_channels"}


def run_search(config: Config) -> SearchResult:
    """Search as a configuration says; write its run folder.

    Of every run: config.yml; run.json, the command, versions, seed and device; and log.txt. Of every search:
    arch.json, weights.safetensors and summary.json. Of a one-shot search: metrics.csv, and the supernet's
    weights in supernet.safetensors. Of a multi-trial search: all candidates in candidates.json, and the
    Pareto front in front.md and front.png.

    A search that was stopped, or killed, goes on when it is run again. Within a trial of an NNI
    experiment, the final validation PSNR is reported to NNI. Of several processes (``devices``, ``nodes``)
    the main one writes and reports, and all return the same.

    Raises:
        AclaError: the folder holds a search of another configuration, or a training, or another run is
            writing into it; or a multi-trial strategy is given several processes.
    """
    folder = Path(config.run)
    device = choose_device(config)
    seed_everything(config)
    task, space = make_task(config), make_space(config)
    strategy = make_strategy(config)
    check_search(config, strategy)
    scorer: Any
    if isinstance(strategy, MultiTrial):
        scorer = _scorer(config, task, space)
    else:
        scorer = _evaluator(config, task, folder, config.search.model_dump())
    with _begun(config, "search"):
        where = f"{device}{_processes(config)}"
        _say(f"searching {len(space.positions)} positions of {config.space.name} on {where}")
        result = search(
            space,
            strategy,
            scorer,
            folder=folder,
            budget=config.budget,
            time_limit=config.time_limit,
            keep_checkpoint=True,
        )
        if is_main():
            _write_search(config, task, space, result, scorer)
        if result.is_complete:
            forget(checkpoint_of(folder, "search"))
    return result


def check_search(config: Config, strategy: Strategy) -> None:
    """Raise AclaError for what would end a search at once, beside what its parts say when they are made."""
    if config.budget is not None:
        Budget.parse(config.budget)
    if not isinstance(strategy, MultiTrial):
        check_processes(config.devices, config.nodes, config.device, config.data.batch_size)
    elif config.devices * config.nodes > 1:
        raise AclaError(
            f"devices={config.devices} on nodes={config.nodes}, but strategy {config.strategy.name} has "
            "no supernet to train: leave them at 1 and start the command several times with one "
            "strategy.storage, see docs/scaling.md"
        )


def _write_search(
    config: Config, task: Task, space: CrossLayerSpace, result: SearchResult, scorer: Any
) -> None:
    """Write what a search found into its run folder, and report it to NNI."""
    folder = result.save(config.run)
    network = export(result.arch, weights=result.weights)
    val_psnr = _final_psnr(config, task, network, result, scorer)
    summary = {
        "positions": list(result.arch.positions),
        "num_positions": result.num_positions,
        "cost": result.arch.cost,
        "parameters": sum(p.numel() for p in network.parameters()),
        "val_psnr": val_psnr,
        "strategy": config.strategy.model_dump(),
    }
    if result.candidates:
        _write_candidates(result, folder)
    else:
        save_weights(
            {f"network.{name}": w for name, w in space.network.state_dict().items()},
            folder / "supernet.safetensors",
        )
    _write_json(summary, folder / "summary.json")
    tell_nni(val_psnr, final=True)


def _write_json(content: dict[str, Any], path: Path) -> None:
    write_text(path, json.dumps(content, indent=2) + "\n")


def _final_psnr(config: Config, task: Task, network: nn.Module, result: SearchResult, scorer: Any) -> float:
    """Return the PSNR of what was found, on the validation images."""
    if result.candidates:
        return next(
            c.quality
            for c in result.candidates
            if c.arch.positions == result.arch.positions and c.arch.attention == result.arch.attention
        )
    if config.budget is None:
        return float(result.history[-1]["val_psnr"])
    # The history is of what the gates say, not of what is within the budget.
    images = scorer.val_dataloaders.dataset.paths  # those that could be read
    return evaluate(network, task, images, device=choose_device(config)).psnr


def _write_candidates(result: SearchResult, folder: Path) -> None:
    from acla_nas.report.front import draw_front, front_table

    unit = next(iter(result.arch.cost))
    save_candidates(result.candidates, folder / "candidates.json")
    write_text(folder / "front.md", front_table(result.candidates, unit) + "\n")
    draw_front(result.candidates, folder / "front.png", unit)


def run_training(config: Config) -> Evaluation:
    """Train an architecture, or the bare backbone, and score it; write its run folder.

    Of every run: config.yml; run.json, the command, versions, seed and device; and log.txt. Of a training:
    arch.json, weights.safetensors, metrics.csv, and the scores of the test images in scores.json.

    A training that was stopped, or killed, goes on when it is run again. Within a trial of an NNI
    experiment, the final validation PSNR is reported to NNI. Of several processes the main one writes and
    reports, and all return the same.

    Raises:
        AclaError: the folder holds a search, or a training of another configuration, or another run is
            writing into it; the architecture cannot be read, or does not fit the task; or a test image cannot
            be scored.
    """
    folder = Path(config.run)
    device = choose_device(config)
    task = make_task(config)
    if config.arch == "bare":
        with backbone_only():
            space = make_space(config)
        arch = space.arch({"keys": space.key_gate.num_keys[0]})
    else:
        import_named(config)
        arch = Arch.load(config.arch)
    paths = test_images(config.data.test, task)
    seed_everything(config)
    network = export(arch)
    check_scale(network, task, config.arch)
    evaluator = _evaluator(config, task, folder, config.train.model_dump())
    checkpoint = checkpoint_of(folder, "training")
    with _begun(config, "training"):
        count = sum(p.numel() for p in network.parameters())
        inserted = shown_positions(arch.positions)
        where = f"{device}{_processes(config)}"
        _say(f"training {count:,} parameters, attention at positions: {inserted}, on {where}")
        history = train(network, evaluator, checkpoint=checkpoint, keep_checkpoint=True, seed=config.seed)
        if is_main():
            save_model(arch, network.state_dict(), folder)
            tell_nni(history[-1]["val_psnr"], final=True)
        scores = from_main(lambda: evaluate(network, task, paths, device=device))
        if is_main():
            _write_json(scores.as_dict(), folder / "scores.json")
        forget(checkpoint)
    return scores


def test_images(source: str, task: Task) -> list[Path]:
    """Return the images to score with, once it is seen that they can be: before a training, not after it.

    Raises:
        AclaError: there are none; or one cannot be read, or is too small for the task or its scores.
    """
    paths = list_images(source, "test")
    for path in paths:
        if min(load_image(path).shape[:2]) < _SMALL:
            evaluate(None, task, [path])
    return paths


def write_arch(config: Config, decisions: Mapping[str, Any]) -> Path:
    """Write the architecture that decisions on the configured space make into the run folder.

    Args:
        config: with the space.
        decisions: ``insert/<j>`` -> 0 or 1, of the positions that may have a module; ``keys`` -> how many.

    Raises:
        AclaError: the space has no such position or number of keys.
    """
    space = make_space(config)
    nothing = {f"insert/{j}": False for j in space.network.paths}
    sample = {**nothing, "keys": space.key_gate.num_keys[0], **decisions}
    return space.arch(sample).save(Path(config.run, "arch.json"))


def run_evaluation(config: Config) -> Iterator[tuple[str, Evaluation]]:
    """Score the task's naive baseline, then each model, on the test images."""
    device = choose_device(config)
    task = make_task(config)
    paths = list_images(config.data.test, "test")
    import_named(config)
    models = [(name, load_model_for(config.task, name)) for name in config.models]
    yield task.baseline_name, evaluate(None, task, paths)
    for name, model in models:
        if device == "cpu":
            to_channels_last(model, Arch.load(Path(name, "arch.json")).input_shape)
        yield name, evaluate(model, task, paths, device=device)


def run_export(config: Config, names: Sequence[str] | None = None) -> Iterator[tuple[str, dict[str, Saved]]]:
    """Write each model into the folder export of its run folder; yield its name, and format -> file.

    Args:
        config: with the models, and the task that they are for.
        names: of formats; all that a model fits where None. See :func:`acla_nas.formats.save`.
    """
    if not config.models:
        raise AclaError("nothing to export: give models=[RUN_FOLDER]")
    task = make_task(config)
    import_named(config)
    for folder in config.models:
        network, arch = load_model_for(config.task, folder), Arch.load(Path(folder, "arch.json"))
        target, training = Path(folder, "export"), _training_of(folder)
        yield folder, save(network, target, arch, task, formats=names, training=training)


def _training_of(folder: str | Path) -> dict[str, Any]:
    """Return what the configuration in a run folder says of the images and the recipe, if there is one."""
    if not Path(folder, "config.yml").exists():
        return {}
    config = load_config(Path(folder, "config.yml"))
    is_search = Path(folder, "summary.json").exists()
    recipe = config.search if is_search else config.train
    data = config.data.model_dump(include={"train", "fold", "patch_size", "batch_size"})
    return {"by": "search" if is_search else "training", **data, **recipe.model_dump(), "seed": config.seed}


def import_named(config: Config) -> None:
    """Import what a configuration names as MODULE:NAME, so that an architecture's file may name it too.

    Raises:
        AclaError: an unknown search space or attention, or a module that cannot be imported.
    """
    search_spaces.get(config.space.name)
    attentions.get(str(config.space.options.get("attention", "acla")))


def make_task(config: Config) -> Task:
    """Return the task of a configuration."""
    return build("task", tasks.type_of(config.task.name), config.task.options)


def make_space(config: Config) -> CrossLayerSpace:
    """Return the search space of a configuration; it takes its scale and channels from the task."""
    make = search_spaces.get(config.space.name)
    options = config.space.options
    attention = attentions.get(str(options.get("attention", "acla")))
    task, parameters = make_task(config), inspect.signature(make).parameters
    for option in ("scale", "in_channels", "out_channels"):
        needed = getattr(task, option)
        if option in parameters and options.setdefault(option, needed) != needed:
            raise AclaError(
                f"space.{option} is {options[option]}, but task.{option} is {needed}: "
                f"leave space.{option} out"
            )
    passes_on: list[Callable[..., Any]] = [CrossLayerSpace, attention]
    return build("space", make, options, passes_on=passes_on, reserved=_INTERNAL - set(parameters))


def make_strategy(config: Config) -> Strategy:
    """Return the strategy of a configuration; its seed is the configuration's unless it has its own."""
    make = strategies.get(config.strategy.name)
    options = config.strategy.options
    bases = make.__mro__[1:] if inspect.isclass(make) else ()
    passes_on = [base for base in bases if "__init__" in vars(base) and base is not object]
    if any("seed" in inspect.signature(taker).parameters for taker in (make, *passes_on)):
        options.setdefault("seed", config.seed)
    if options.get("cost") == "latency":
        options["cost"] = LatencyCost(choose_device(config))
    return build("strategy", make, options, passes_on=passes_on)


def load_model_for(task: Named, folder: str | Path) -> nn.Module:
    """Return the network in a run folder, once it is seen to be for a task.

    Args:
        task: the section of the configuration.
        folder: of a search or a training.

    Raises:
        AclaError: the folder holds no network, or one of another task. Where only the task's options differ,
            a denoiser's sigma for one, that is a warning.
    """
    network, path = load_model(folder), Path(folder, "config.yml")
    own = load_config(path).task if path.exists() else task
    if own.name != task.name:
        raise AclaError(
            f"the network {folder} is for the task {own.name}, but task.name is {task.name}: "
            f"use its own configuration, {path}"
        )
    check_scale(network, build("task", tasks.type_of(task.name), task.options), folder)
    if own.options != task.options:
        warnings.warn(
            f"the network {folder} is for {own.name} with {own.options}, not {task.options}",
            AclaWarning,
            stacklevel=2,
        )
    return network


def check_scale(network: nn.Module, task: Task, name: Any) -> None:
    """Raise AclaError where a network does not take the task's images, or its output has not their shape."""
    size = 24
    was_training = network.training
    try:
        with torch.no_grad():
            output = network.eval()(torch.zeros(1, task.in_channels, size, size))
    except RuntimeError as error:
        raise AclaError(
            f"the network {name} does not take the task's images, of {task.in_channels} channels "
            f"({str(error).splitlines()[0]}): set task.name to what it is for"
        ) from None
    finally:
        network.train(was_training)
    if output.shape[1] != task.out_channels:
        raise AclaError(
            f"the network {name} returns images of {output.shape[1]} channels, the task has "
            f"{task.out_channels}: set task.name to what it is for"
        )
    if tuple(output.shape[1:]) != (task.out_channels, size * task.scale, size * task.scale):
        raise AclaError(
            f"the network {name} turns {size}x{size} pixels into {tuple(output.shape[2:])}, "
            f"the task has scale {task.scale}: set task.scale to the network's"
        )


def choose_device(config: Config) -> str:
    """Return "cpu" or "cuda"; raises AclaError where the one asked for is not there."""
    available = torch.cuda.is_available()
    if config.device == "cuda" and not available:
        raise AclaError("device=cuda, but PyTorch sees no GPU: use device=cpu, or check CUDA_VISIBLE_DEVICES")
    return "cuda" if available and config.device != "cpu" else "cpu"


def _evaluator(config: Config, task: Task, folder: Path, recipe: dict[str, Any]) -> Lightning:
    options = {**_data(config), **recipe, "devices": config.devices, "nodes": config.nodes}
    return make_evaluator(task, run_dir=folder, **options)


def _data(config: Config) -> dict[str, Any]:
    """Return the arguments of make_evaluator that say what is trained on, and where."""
    data = config.data.model_dump(exclude={"test"})
    return {**data, "seed": config.seed, "device": choose_device(config)}


def _scorer(config: Config, task: Task, space: CrossLayerSpace) -> Any:
    """Return what scores a candidate of a multi-trial strategy."""
    from acla_nas.scoring import InheritedWeights, ShortTraining, load_supernet

    scoring = config.scoring
    if scoring.weights is not None:
        load_supernet(space, scoring.weights)
        return InheritedWeights(task, validation_images(config), device=choose_device(config))
    recipe = config.search.model_dump()
    return ShortTraining(task, epochs=scoring.epochs, **_data(config), **recipe)


@contextmanager
def _begun(config: Config, kind: str) -> Iterator[None]:
    """Within it the run, of this kind, has its folder to itself, and is recorded there.

    SIGINT and SIGTERM end it between two steps. What is in the folder must be of the same run.
    """
    algorithms = deterministic() if config.deterministic else nullcontext()
    with locked(config.run) if is_main() else nullcontext(), stoppable(), algorithms:
        if is_main():
            check_run_folder(config, kind)
            config.save(config.run)
            resumed = is_begun(config.run, kind)
            record = recorded(config.run, seed=config.seed, device=choose_device(config), resumed=resumed)
        with record if is_main() else nullcontext():
            yield


def _processes(config: Config) -> str:
    count = config.devices * config.nodes
    return f", {count} processes" if count > 1 else ""


def _say(line: str) -> None:
    if is_main():
        say(line)


def seed_everything(config: Config) -> None:
    """Set all random states from the configuration's seed."""
    import pytorch_lightning as pl

    pl.seed_everything(config.seed, verbose=False)


def validation_images(config: Config) -> list[Path]:
    """Return the images that are scored while searching: those of the fold, if the configuration has one."""
    data = config.data
    if data.fold is None:
        return list_images(data.validation, "validation")
    return list(split_fold(list_images(data.train, "train"), data.fold, data.folds)[1])
