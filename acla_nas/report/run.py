"""The run behind ``acla-nas report keys``."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from acla_nas.attention import ACLA
from acla_nas.attention.cross_layer_non_local import CrossLayerNonLocal
from acla_nas.config import Config, Named
from acla_nas.data import PairDataset, image_to_tensor, list_images
from acla_nas.errors import AclaError
from acla_nas.experiment import choose_device, import_named, load_model_for, make_task
from acla_nas.network import CrossLayerNetwork
from acla_nas.report.keys import LayerKeys, non_local_keys, selected_keys
from acla_nas.report.picture import describe, plot_keys, textured_pixel


def run_report_keys(
    config: Config,
    *,
    image: str | None = None,
    query: tuple[int, int] | None = None,
    position: int | None = None,
    out: str = "keys.png",
) -> str:
    """Draw the keys that each model selects for one query pixel of a degraded image.

    There is one row per model; where none of them is CLNL, a last row shows what CLNL without embeddings
    would attend to, given the features of the first model.

    Args:
        config: models, task, device, and the test images for the default image.
        image: the file; it is degraded by the task.
        query: (x, y) in pixels of the degraded image.
        position: of the module; the last one of each model where None.
        out: the picture's file, of a format that matplotlib writes.

    Returns:
        The same in words: a line per panel.

    Raises:
        AclaError: no model, one without attention or keys, no such pixel or position, or a file that cannot
            be read or written.
    """
    if not config.models:
        raise AclaError("no network to look at: give models=[RUN_FOLDER]")
    task, device = make_task(config), choose_device(config)
    import_named(config)
    path = Path(image) if image else list_images(config.data.test, "test")[0]
    degraded, _ = PairDataset(task, [path]).images(0)
    tensor = image_to_tensor(degraded).to(device)
    if query is None:
        query = textured_pixel(degraded)

    looked = {folder: _module_of(config.task, folder, position) for folder in config.models}
    sampled = {f: m for f, (_, m) in looked.items() if isinstance(m, ACLA)}
    num_keys = max((module.num_keys for module in sampled.values()), default=16)

    rows: dict[str, tuple[LayerKeys, ...]] = {}
    for folder, (network, module) in looked.items():
        arguments = (network.to(device), tensor, position or network.positions[-1], query)
        if isinstance(module, ACLA):
            rows[f"{'ACLA' if module.adaptive else 'CLA'}\n{folder}"] = selected_keys(*arguments)
        else:
            rows[f"CLNL, top {num_keys}\n{folder}"] = non_local_keys(*arguments, num_keys)
    caption = ""
    if len(sampled) == len(looked):
        first, (network, _) = next(iter(looked.items()))
        row = non_local_keys(network, tensor, position or network.positions[-1], query, num_keys)
        rows[f"CLNL, top {num_keys}\nof the features of {first}"] = row
        caption = (
            f"CLNL: the {num_keys} largest weights per layer of Eq. 3, a softmax of the dot products of "
            f"{first}'s own features,\nwhich has no CLNL module. For a trained one add its run to models."
        )
    figure = plot_keys(degraded, query, rows, caption=caption)
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    try:
        figure.savefig(out, dpi=150)
    except (OSError, ValueError) as error:
        raise AclaError(f"cannot write picture {out}: {error}; set out=FILE.png") from None
    lines = [
        f"query: pixel {tuple(query)} of {path.name}, degraded to {degraded.shape[1]}x{degraded.shape[0]}"
    ]
    for name, layers in rows.items():
        lines.append(name.replace("\n", ", "))
        lines += [f"  {keys.path} (position {keys.position}): {describe(keys)}" for keys in layers]
    return "\n".join(lines)


def _module_of(task: Named, folder: str, position: int | None) -> tuple[CrossLayerNetwork, nn.Module]:
    """Return the network in a run folder, and what selects keys at a position of it."""
    network = load_model_for(task, folder)
    assert isinstance(network, CrossLayerNetwork)
    if not network.positions:
        raise AclaError(f"model {folder} has no attention to look at: give one with inserted positions")
    if position is not None and position not in network.positions:
        inserted = ", ".join(map(str, network.positions))
        raise AclaError(f"model {folder} has no attention at position {position}: set position to {inserted}")
    module = network.attention[str(position or network.positions[-1])]
    for part in module.modules():
        if isinstance(part, (ACLA, CrossLayerNonLocal)):
            return network, part
    raise AclaError(
        f"the attention of model {folder} is {type(module).__name__}, which selects no keys: "
        "give models with acla, cla or clnl"
    )
