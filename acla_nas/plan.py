"""SearchPlan: what a search would do, worked out from its configuration without doing it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
import yaml

from acla_nas import cost as costs
from acla_nas.config import Config
from acla_nas.cost import CostModel, LatencyCost
from acla_nas.cost.space_cost import SpaceCost
from acla_nas.data import list_images
from acla_nas.experiment import (
    check_search,
    choose_device,
    make_space,
    make_strategy,
    make_task,
    validation_images,
)
from acla_nas.live import shown_duration
from acla_nas.multi_trial import MultiTrial
from acla_nas.run_folder import check_run_folder
from acla_nas.scoring import load_supernet
from acla_nas.space import CrossLayerSpace
from acla_nas.training.memory import free_bytes, plan_memory, step_seconds


@dataclass(frozen=True)
class CostBounds:
    """What the architectures of a space cost, by the search's cost model.

    Attributes:
        unit: of the others.
        nothing: inserted.
        cheapest: of all single modules.
        everything: inserted, with the largest number of keys.
    """

    unit: str
    nothing: float
    cheapest: float
    everything: float


@dataclass(frozen=True)
class SearchPlan:
    """A search that has not begun.

    Attributes:
        config: resolved, defaults included.
        device: "cpu" or "cuda".
        positions: of the space: position, path, layout, channels, height, width, for its ``input_shape``.
        num_keys: the numbers of keys to choose from.
        architectures: in the space.
        parameters: of the bare backbone, and of the supernet with all modules.
        cost: bounds; None where only a measurement can tell, as of latency.
        work: epochs, steps per epoch, batch and patch size; or trials, and what each is scored by.
        images: how many to train on, and to validate with.
        memory: what a training step needs, and whether it fits, in words; None where nothing is trained or
            candidates are trained one by one.
        seconds: of all steps of a one-shot search, estimated from one image; likewise.
    """

    config: dict[str, Any]
    device: str
    positions: list[dict[str, Any]]
    num_keys: tuple[int, ...]
    architectures: int
    parameters: dict[str, int]
    cost: CostBounds | None
    work: dict[str, Any]
    images: dict[str, int]
    memory: str | None
    seconds: float | None

    def as_dict(self) -> dict[str, Any]:
        """Return the plan as JSON can hold it."""
        return asdict(self)

    def text(self) -> str:
        """Return the plan as lines to read."""
        rows = [
            [str(p["position"]), p["path"], p["layout"], str(p["channels"]), f"{p['height']}x{p['width']}"]
            for p in self.positions
        ]
        rows.insert(0, ["position", "module", "layout", "channels", "feature"])
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        table = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths)).rstrip() for row in rows]
        keys = " or ".join(map(str, self.num_keys))
        bounds = self.cost
        cost = (
            "measured when the search begins"
            if bounds is None
            else f"{bounds.nothing:,.10g} with nothing inserted, {bounds.cheapest:,.10g} the cheapest "
            f"module, {bounds.everything:,.10g} with everything ({bounds.unit})"
        )
        lines = {
            "space": f"{self.config['space']['name']}, {len(self.positions)} positions, "
            f"{keys} keys, {self.architectures:,} architectures",
            "parameters": f"{self.parameters['bare']:,} bare, "
            f"{self.parameters['supernet']:,} with everything",
            "cost": cost,
            "budget": self.config["budget"] or "none",
            "work": ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in self.work.items()),
            "images": f"{self.images['train']} to train on, {self.images['validation']} to validate with",
            "device": self.device,
        }
        if self.memory is not None and self.seconds is not None:
            lines["memory"] = self.memory.removeprefix("memory: ")
            lines["time"] = (
                f"about {shown_duration(self.seconds)} of training steps, without the scoring of epochs"
            )
        width = max(map(len, lines))
        summary = [f"{name:<{width}}  {value}" for name, value in lines.items()]
        written = yaml.safe_dump(self.config, sort_keys=False).rstrip()
        return "\n".join([written, "", *table, "", *summary])


def plan_search(config: Config) -> SearchPlan:
    """Work out what :func:`acla_nas.experiment.run_search` would do; nothing is trained or written.

    Raises:
        AclaError: what would end the search at once: an unknown name, no images, no such device, ..

    Example:
        >>> from acla_nas.config import Config, Named
        >>> plan = plan_search(Config(space=Named(name="edsr", num_blocks=3, num_channels=8)))
        >>> plan.architectures, plan.cost.unit, plan.work["strategy"]
        (8, 'MACs', 'two_stage')
    """
    device, space = choose_device(config), make_space(config)
    strategy = make_strategy(config)
    check_search(config, strategy)
    check_run_folder(config, "search")
    if isinstance(strategy, MultiTrial) and config.scoring.weights is not None:
        load_supernet(space, config.scoring.weights)
    recipe, data = config.search, config.data
    work: dict[str, Any] = {"strategy": config.strategy.name}
    if isinstance(strategy, MultiTrial):
        work["trials"] = strategy.trials
        inherited = config.scoring.weights is not None
        work["scored_by"] = "inherited weights" if inherited else f"training {config.scoring.epochs} epochs"
        trained = not inherited
    else:
        work["epochs"] = getattr(strategy, "max_epochs", None) or "as the strategy has it"
        trained = True
    if trained:
        work |= {
            "steps_per_epoch": recipe.steps_per_epoch,
            "batch_size": data.batch_size,
            "patch_size": data.patch_size,
        }
    keys = space.key_gate.num_keys
    in_all = sum(p.numel() for p in space.network.parameters())
    validation = validation_images(config)
    train = [path for path in list_images(data.train, "train") if data.fold is None or path not in validation]
    memory, seconds = (None, None) if isinstance(strategy, MultiTrial) else _estimate(config, space, strategy)
    return SearchPlan(
        config=config.model_dump(),
        device=device,
        positions=[
            {
                "position": j,
                "path": place.path,
                "layout": place.layout,
                "channels": place.feature.channels,
                "height": place.feature.height,
                "width": place.feature.width,
            }
            for j, place in space.network.places.items()
        ],
        num_keys=keys,
        architectures=2 ** len(space.positions) * len(keys),
        parameters={
            "bare": in_all - sum(p.numel() for p in space.network.attention.parameters()),
            "supernet": in_all,
        },
        cost=_bounds(space, getattr(strategy, "cost", None)),
        work=work,
        images={"train": len(train), "validation": len(validation)},
        memory=memory,
        seconds=seconds,
    )


def _estimate(config: Config, space: CrossLayerSpace, strategy: Any) -> tuple[str, float]:
    """Return what a step needs, in words, and how long all steps take: of the weights, and of the gates."""
    size, batch = config.data.patch_size, config.data.batch_size // (config.devices * config.nodes)
    device = torch.device(choose_device(config))
    network = space.network.to(device)
    image = torch.zeros(make_task(config).in_channels, size, size, device=device)
    plan = plan_memory(network, image, batch, free_bytes(device))
    epochs = getattr(strategy, "max_epochs", 0) + getattr(strategy, "search_epochs", 0)
    return plan.text(), epochs * config.search.steps_per_epoch * step_seconds(network, image, batch)


def _bounds(space: CrossLayerSpace, model: Any) -> CostBounds | None:
    if isinstance(model, LatencyCost):
        return None
    cost = SpaceCost(space, model if isinstance(model, CostModel) else costs.get("macs"))
    samples = [
        {**{f"insert/{j}": inserted for j in space.network.paths}, "keys": max(cost.num_keys)}
        for inserted in (False, True)
    ]
    nothing, everything = map(cost.of, samples)
    return CostBounds(cost.unit, nothing, cost.smallest, everything)
