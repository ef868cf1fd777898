"""The runs behind the command line: a search, a retraining, an evaluation, each from one configuration."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from acla_nas import attention as attentions
from acla_nas import search_spaces, strategies, tasks
from acla_nas.arch import Arch
from acla_nas.config import Config, build
from acla_nas.data import list_images, load_image
from acla_nas.errors import AclaError
from acla_nas.evaluation import Evaluation, evaluate
from acla_nas.exporter import export, save_model, save_program
from acla_nas.network import backbone_only
from acla_nas.nni_nas import Lightning, nni
from acla_nas.searcher import SearchResult, search
from acla_nas.space import CrossLayerSpace
from acla_nas.tasks import Task
from acla_nas.training import make_evaluator, train

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# Arguments of a space and of its attention modules that the one gives to the other.
_INTERNAL = {"backbone", "positions", "channels", "num_references", "reference_channels"}


def run_search(config: Config) -> SearchResult:
    """Search as a configuration says; write config.yml, metrics.csv, arch.json, weights and summary.json.

    Within a trial of an NNI experiment, the final validation PSNR is reported to NNI.
    """
    folder = Path(config.run)
    device = choose_device(config)
    _seed(config)
    task, space = make_task(config), make_space(config)
    strategy = build("strategy", strategies.get(config.strategy.name), config.strategy.options)
    config.save(folder)
    evaluator = _evaluator(config, task, folder, config.search.model_dump())
    print(f"searching {len(space.positions)} positions of {config.space.name} on {device}", flush=True)
    result = search(space, strategy, evaluator)
    result.save(folder)
    network = export(result.arch, weights=result.weights)
    summary = {
        "positions": list(result.arch.positions),
        "cost": result.arch.cost,
        "parameters": sum(p.numel() for p in network.parameters()),
        "val_psnr": result.history[-1]["val_psnr"],
        "strategy": config.strategy.model_dump(),
    }
    (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    if nni.get_current_parameter() is not None:
        nni.report_final_result(summary["val_psnr"])
    return result


def run_training(config: Config) -> Evaluation:
    """Train an architecture, or the bare backbone, and score it; write its run folder."""
    folder = Path(config.run)
    device = choose_device(config)
    task = make_task(config)
    if config.arch == "bare":
        with backbone_only():
            space = make_space(config)
        arch = space.arch({"keys": space.key_gate.num_keys[0]})
    else:
        arch = Arch.load(config.arch)
    if (folder / "summary.json").exists():
        raise AclaError(f"run folder {folder} holds a search, which training would overwrite; set run=DIR")
    paths = list_images(config.data.test, "test")
    for path in paths:
        load_image(path)  # now, not after the training
    _seed(config)
    network = export(arch)
    check_scale(network, task, config.arch)
    config.save(folder)
    evaluator = _evaluator(config, task, folder, config.train.model_dump())
    count = sum(p.numel() for p in network.parameters())
    inserted = ", ".join(map(str, arch.positions)) or "none"
    print(f"training {count:,} parameters, attention at positions: {inserted}, on {device}", flush=True)
    train(network, evaluator)
    save_model(arch, network.state_dict(), folder)
    return evaluate(network, task, paths, device=device)


def run_evaluation(config: Config) -> Iterator[tuple[str, Evaluation]]:
    """Score the task's naive baseline, then each model, on the test images."""
    device = choose_device(config)
    task = make_task(config)
    paths = list_images(config.data.test, "test")
    models = [(name, load_model(name)) for name in config.models]
    for name, model in models:
        check_scale(model, task, name)
    yield task.baseline_name, evaluate(None, task, paths)
    for name, model in models:
        yield name, evaluate(model, task, paths, device=device)


def run_export(config: Config) -> Iterator[Path]:
    """Write each model as model.pt2 into its run folder, and load it back to see that it is the same."""
    if not config.models:
        raise AclaError("nothing to export: give models=[RUN_FOLDER]")
    for folder in config.models:
        network = load_model(folder)
        channels = Arch.load(Path(folder, "arch.json")).input_shape[0]
        yield save_program(network, Path(folder, "model.pt2"), channels=channels)


def load_model(folder: str | Path) -> nn.Module:
    """Return the network in a run folder, with its weights.

    Raises:
        AclaError: the folder has no arch.json or weights.safetensors, or they do not fit.
    """
    folder = Path(folder)
    for name in ("arch.json", "weights.safetensors"):
        if not (folder / name).is_file():
            raise AclaError(f"model {folder} has no {name}; give the run folder of a search or a training")
    return export(folder / "arch.json", weights=folder / "weights.safetensors")


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
    passes_on: list[Callable[..., Any]] = [CrossLayerSpace.plain_init, attention]
    return build("space", make, options, passes_on=passes_on, reserved=_INTERNAL)


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
    return make_evaluator(
        task,
        train=config.data.train,
        validation=config.data.validation,
        fold=config.data.fold,
        folds=config.data.folds,
        patch_size=config.data.patch_size,
        batch_size=config.data.batch_size,
        workers=config.data.workers,
        seed=config.seed,
        run_dir=folder,
        device=choose_device(config),
        **recipe,
    )


def _seed(config: Config) -> None:
    from pytorch_lightning import seed_everything

    seed_everything(config.seed, verbose=False)
