"""The report of a run: one HTML file that needs nothing but a browser, and no network."""

from __future__ import annotations

import base64
import io
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import yaml
from matplotlib.figure import Figure
from PIL import Image
from torch import nn

from acla_nas._version import __version__
from acla_nas.arch import Arch, shown_positions
from acla_nas.bench.counts import count_parameters
from acla_nas.config import Config
from acla_nas.data import image_to_tensor, list_images
from acla_nas.diagram import arch_svg, describe_arch
from acla_nas.errors import AclaError
from acla_nas.experiment import choose_device, import_named, load_model_for, make_task
from acla_nas.network import CrossLayerNetwork
from acla_nas.report import charts
from acla_nas.report.crops import Crop, restore_crop, shown
from acla_nas.report.explorer import SMALLEST, STEPS, crop_side, pack_keys
from acla_nas.report.folder import RunFolder
from acla_nas.report.front import front_figure, front_table
from acla_nas.report.keys import all_keys

_IMAGES = 2  # of the test set, where none are named


@dataclass
class _Section:
    id: str
    title: str
    text: str = ""
    charts: list[dict[str, str]] = field(default_factory=list)
    diagram: str = ""
    tables: list[dict[str, Any]] = field(default_factory=list)
    crops: list[dict[str, Any]] = field(default_factory=list)
    explorer: dict[str, Any] | None = None
    blocks: list[dict[str, Any]] = field(default_factory=list)


def write_report(
    run: str | Path,
    out: str | Path | None = None,
    *,
    images: Sequence[str | Path] = (),
    config: Config | None = None,
) -> Path:
    """Write the report of a run folder: the search, the network, restored crops, and the keys it reads.

    What the folder does not hold is left out: a search that is under way has a report too. A training's
    report tells of the search that its architecture comes from, where that still lies where it was.

    Args:
        run: the folder of a search, a training or a comparison.
        out: the file; report.html in the folder where None.
        images: files to show crops of; the first test images where there are none.
        config: the run's own where None; its ``models`` are further networks to restore with.

    Returns:
        The path of the file.

    Raises:
        AclaError: no run folder, weights that do not fit, an image that cannot be read, or a file that cannot
            be written.
    """
    folder = RunFolder.read(run)
    config = config or folder.config
    out = Path(out) if out is not None else folder.path / "report.html"
    page = _Page(folder, config, list(images)).html()
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(page, encoding="utf-8")
    except OSError as error:
        raise AclaError(f"cannot write {out}: {error.strerror}; set out=FILE.html") from None
    return out


class _Page:
    """What goes into the report of one run."""

    def __init__(self, folder: RunFolder, config: Config, images: list[str | Path]) -> None:
        self.folder, self.config, self.images = folder, config, images
        import_named(config)
        self.task = make_task(config)
        self.device = choose_device(config)
        self.main, others = self._model_folders()
        self.search = folder.search() or (self._search_of_comparison() if folder.table else None)
        names = _names([*([self.main.path] if self.main else []), *others])
        self.networks: dict[str, nn.Module] = {}
        for name, path in names.items():
            self.networks[name] = load_model_for(config.task, path)

    def html(self) -> str:
        environment = jinja2.Environment(
            loader=jinja2.PackageLoader("acla_nas.report", "templates"),
            autoescape=jinja2.select_autoescape(["html"]),
            undefined=jinja2.StrictUndefined,
        )
        makers = (
            self._searching,
            self._training,
            self._network,
            self._comparison,
            self._restored,
            self._keys,
        )
        sections = [section for section in (make() for make in makers) if section is not None]
        return environment.get_template("page.html").render(
            title=f"{self._kind()} {self.folder.path.name}",
            lead=self._lead(),
            figures=self._figures(),
            sections=[*sections, self._origin()],
            version=__version__,
        )

    def _kind(self) -> str:
        if self.folder.table:
            return "Comparison"
        return "Search" if self.folder.is_search else "Training"

    def _model_folders(self) -> tuple[RunFolder | None, list[Path]]:
        """Return the run whose network the report is of, and the folders of further networks."""
        others = [Path(model) for model in self.config.models]
        if not self.folder.table:
            return (self.folder if self.folder.has_network else None), others
        seed = self.config.compare.seeds[0]
        paths = sorted(self.folder.path.glob(f"models/*-seed{seed}/config.yml"))
        runs = {path.parent: RunFolder.read(path.parent) for path in paths}
        runs = {path: run for path, run in runs.items() if run.has_network}
        with_attention = [run for run in runs.values() if run.arch is not None and run.arch.positions]
        main = max(with_attention, key=lambda run: run.scores.get("psnr", 0.0), default=None)
        return main, [*(path for path, run in runs.items() if run is not main), *others]

    def _search_of_comparison(self) -> RunFolder | None:
        for path in sorted(self.folder.path.glob("searches/*/config.yml")):
            search = RunFolder.read(path.parent)
            if search.arch is not None and self.main is not None and search.arch == self.main.arch:
                return search
        return None

    @property
    def arch(self) -> Arch | None:
        return self.main.arch if self.main else self.folder.arch

    @property
    def num_positions(self) -> int | None:
        if self.search is None:
            return None
        return (
            self.search.summary.get("num_positions") or len(charts.probabilities(self.search.history)) or None
        )

    def _unit(self) -> str:
        arch = self.search.arch if self.search else None
        return next(iter(arch.cost), "") if arch else ""

    def _lead(self) -> str:
        parts = [f"Task {self.config.task.name}", f"backbone {self.config.space.name}"]
        if self.search:
            parts.append(f"strategy {self.search.config.strategy.name}")
        commands = self.folder.record.get("commands")
        if commands:
            parts.append(f"begun {commands[-1]['started'].replace('T', ' ')[:16]} UTC")
            end = commands[-1]["end"]
            if end != "finished":
                parts.append("not finished" if end is None else f"ended by {end}")
        return ", ".join(parts) + "."

    def _figures(self) -> list[tuple[str, str]]:
        figures = []
        arch = self.arch
        if arch is not None:
            of = f" of {self.num_positions}" if self.num_positions else ""
            figures.append(("attention at", shown_positions(arch.positions) + (of if arch.positions else "")))
            figures += [(f"cost ({unit})", f"{value:,.4g}" if value < 1e4 else f"{value:,.0f}")
                        for unit, value in arch.cost.items()]  # fmt: skip
        if self.main and self.networks:
            figures.append(("parameters", f"{count_parameters(next(iter(self.networks.values()))):,}"))
        if "psnr" in self.folder.scores:
            figures.append(("test PSNR", f"{self.folder.scores['psnr']:.2f} dB"))
        elif self.folder.history and "val_psnr" in self.folder.history[-1]:
            figures.append(("validation PSNR", f"{self.folder.history[-1]['val_psnr']:.2f} dB"))
        elif "val_psnr" in self.folder.summary:
            figures.append(("validation PSNR", f"{self.folder.summary['val_psnr']:.2f} dB"))
        if self.folder.history:
            figures.append(("time", _duration(self.folder.history[-1]["seconds"])))
        figures.append(("seed", str(self.config.seed)))
        return figures

    def _searching(self) -> _Section | None:
        search = self.search
        if search is None or not (search.candidates or search.history):
            return None
        section = _Section("search", "The search")
        unit = self._unit()
        where = "" if search is self.folder else f" It lies in {search.path}."
        if search.candidates:
            count, front = len(search.candidates), front_table(search.candidates, unit)
            section.text = (
                f"{count} architectures were scored; on the front are those that no other beats.{where}"
            )
            caption = "Quality against cost. Below and right of the line is what some candidate on it beats."
            section.charts.append(_chart(front_figure(search.candidates, unit), caption))
            section.tables.append({**_markdown_table(front), "folded": f"all {count} candidates"})
            return section
        history, epochs = search.history, search.config.strategy.options.get("epochs")
        warmup = int(epochs[0]) if isinstance(epochs, list) else 0
        section.text = (
            f"{len(history)} epochs of {search.config.strategy.name}"
            + (
                f", the first {warmup} of them of the weights alone (left of the dotted line)"
                if warmup
                else ""
            )
            + f". A module is inserted where its probability ends above one half.{where}"
        )
        caption = "Probability of a module at every position; the last value of each on the right."
        section.charts.append(_chart(charts.draw_probabilities(history, warmup=warmup), caption))
        caption = (
            "Validation PSNR of the architecture derived after each epoch, the supernet's training loss, the "
            "cost, and the entropy of the gates: 1 bit is undecided, 0 is decided."
        )
        section.charts.append(_chart(charts.draw_progress(history, warmup=warmup, unit=unit), caption))
        if any("derived_cost" in row and "val_psnr" in row for row in history):
            caption = "Cost against quality of the architecture derived after each epoch."
            section.charts.append(_chart(charts.draw_trajectory(history, unit), caption))
        return section

    def _training(self) -> _Section | None:
        if self.folder.is_search or not self.folder.history:
            return None
        section = _Section("training", "The training")
        caption = "Over the epochs of the training; the PSNR is of whole validation images."
        section.charts.append(_chart(charts.draw_progress(self.folder.history), caption))
        if self.folder.scores:
            scores = self.folder.scores
            rows = [[name, f"{s['psnr']:.2f}", f"{s['ssim']:.4f}"] for name, s in scores["images"].items()]
            rows.append(["mean", f"{scores['psnr']:.2f}", f"{scores['ssim']:.4f}"])
            section.tables.append({"header": ["test image", "PSNR (dB)", "SSIM"], "rows": rows, "folded": ""})
        return section

    def _network(self) -> _Section | None:
        arch = self.arch
        if arch is None:
            return None
        section = _Section("network", "The derived network", describe_arch(arch, self.num_positions) + ".")
        if not arch.positions:
            return section
        section.text += (
            " An arc leads from a layer to the module that reads it; each module also reads the layer that "
            "it stands at."
        )
        final = {}
        if self.search and self.search.history:
            section.text += " How full a box is shows the probability of a module at the end of the search."
            final = {j: p[-1] for j, p in charts.probabilities(self.search.history).items()}
        section.diagram = arch_svg(arch, num_positions=self.num_positions, probabilities=final)
        rows = [
            [str(j), arch.paths[j], shown_positions(l for l in arch.positions if l <= j),
             str(arch.attention["num_keys"] * sum(l <= j for l in arch.positions))]
            for j in arch.positions
        ]  # fmt: skip
        header = ["position", "module path", "reads positions", "keys per pixel"]
        section.tables.append({"header": header, "rows": rows, "folded": ""})
        return section

    def _comparison(self) -> _Section | None:
        if not self.folder.table:
            return None
        text = "Means and standard deviations over seeds; all variants of a seed were trained alike."
        table = {**_markdown_table(self.folder.table), "folded": ""}
        return _Section("comparison", "The comparison", text, tables=[table])

    def _paths(self) -> list[Path]:
        return [Path(image) for image in self.images] or list_images(self.config.data.test, "test")[:_IMAGES]

    def _restored(self) -> _Section | None:
        if not self.networks:
            return None
        section = _Section(
            "restored",
            "Restored images",
            "Crops of test images. Drag over the picture to compare what is left with what is right of the "
            "divider. The networks are given the crop alone, and PSNRs are of it.",
        )
        for path in self._paths():
            crop = restore_crop(self.task, path, self.networks, device=self.device)
            pictures = _pictures(crop, self.task.scale)
            chosen = next(i for i, picture in enumerate(pictures) if picture["name"] in self.networks)
            section.crops.append({"name": crop.name, "pictures": pictures, "chosen": chosen})
        return section

    def _keys(self) -> _Section | None:
        if self.main is None or self.arch is None or not self.arch.positions:
            return None
        name, network = next(iter(self.networks.items()))
        assert isinstance(network, CrossLayerNetwork)
        count = sum(range(1, len(network.positions) + 1)) * int(self.arch.attention["num_keys"])
        crop = restore_crop(self.task, self._paths()[0], {}, side=crop_side(count), device=self.device)
        modules = all_keys(network.to(self.device), image_to_tensor(crop.degraded).to(self.device))
        if not modules:
            return None
        height, width = crop.degraded.shape[:2]
        explorer = {
            "name": crop.name,
            "corner": crop.corner,
            "width": width,
            "height": height,
            "query": (width // 2, height // 2),
            "picture": _png(shown(crop.degraded)),
            "steps": STEPS,
            "smallest": SMALLEST,
            "modules": pack_keys(modules),
        }
        return _Section(
            "keys",
            "The keys",
            f"Click a pixel to see which keys the modules of {name} read for it in each layer, what each "
            "counts for, and how many survived the gates.",
            explorer=explorer,
        )

    def _origin(self) -> _Section:
        section = _Section("origin", "How it was made")
        record = self.folder.record
        commands = [
            f"# {c['started']}, {c['end'] or 'no end'}\n{c['command']}" for c in record.get("commands", [])
        ]
        if commands:
            section.blocks.append({"title": "command", "text": "\n".join(commands), "open": True})
        facts = {name: record[name] for name in ("device", "platform", "seed") if name in record}
        facts |= record.get("versions", {})
        if facts:
            text = "\n".join(f"{name}: {value}" for name, value in facts.items())
            section.blocks.append({"title": "device and versions", "text": text, "open": True})
        text = yaml.safe_dump(self.folder.config.model_dump(), sort_keys=False)
        section.blocks.append({"title": "configuration", "text": text, "open": False})
        if self.folder.arch is not None:
            text = json.dumps(json.loads(self.folder.arch.model_dump_json()), indent=2)
            section.blocks.append({"title": "architecture (arch.json)", "text": text, "open": False})
        return section


def _names(folders: Sequence[Path]) -> dict[str, Path]:
    """Return folders by their last part, or whole where that is not theirs alone."""
    counts = Counter(folder.name for folder in folders)
    return {folder.name if counts[folder.name] == 1 else str(folder): folder for folder in folders}


def _pictures(crop: Crop, scale: int) -> list[dict[str, str]]:
    """Return what is shown of a crop, from degraded to original, as names, data URLs and PSNRs."""
    degraded = shown(crop.degraded, scale)
    pictures = [{"name": "degraded", "src": _png(degraded), "psnr": ""}]
    for name, image in crop.restored.items():
        psnr = f"{crop.psnr[name]:.2f} dB"
        if np.array_equal(image, degraded):
            pictures[0]["psnr"] = psnr
        else:
            pictures.append({"name": name, "src": _png(image), "psnr": psnr})
    return [*pictures, {"name": "original", "src": _png(crop.original), "psnr": ""}]


def _png(image: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[2] == 1 else image).save(buffer, "png")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def _chart(figure: Figure, caption: str) -> dict[str, str]:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    source = f"data:image/svg+xml;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
    return {"src": source, "alt": caption, "caption": caption}


def _markdown_table(text: str) -> dict[str, Any]:
    """Return the header and the rows of a Markdown table."""
    header, _, *rows = (
        [c.strip() for c in line.strip().strip("|").split("|")] for line in text.strip().split("\n")
    )
    return {"header": header, "rows": rows}


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
