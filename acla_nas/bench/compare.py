"""compare: variants of attention trained alike, over several seeds, scored on the same images.

Variants, as the paper names them:

    bare         the backbone
    nl           non-local attention at evenly spaced positions; likewise any attention by its name
    cla          cross-layer attention at evenly spaced positions
    cla-i        cross-layer attention at searched positions
    cla-k        adaptive cross-layer attention at evenly spaced positions
    acla         adaptive cross-layer attention at searched positions
    acla-random  adaptive cross-layer attention at random positions that cost what acla's cost

All variants of a seed begin with the same backbone weights and see the same patches.
"""

from __future__ import annotations

import inspect
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Literal, NamedTuple

import yaml

from acla_nas import attention as attentions
from acla_nas import cost
from acla_nas.arch import Arch, shown_positions
from acla_nas.bench.counts import count_macs, count_parameters
from acla_nas.bench.positions import even_positions, random_positions
from acla_nas.config import Config, Named, parse_config
from acla_nas.data import list_images
from acla_nas.durable import append_line, write_text
from acla_nas.errors import AclaError, unknown_name
from acla_nas.evaluation import evaluate
from acla_nas.experiment import (
    choose_device,
    load_model,
    make_space,
    make_task,
    run_search,
    run_training,
    test_images,
)
from acla_nas.interruption import stop_if_asked, stoppable
from acla_nas.lock import locked
from acla_nas.network import CrossLayerNetwork
from acla_nas.run_folder import check_run_folder
from acla_nas.run_record import recorded
from acla_nas.space import CrossLayerSpace
from acla_nas.training.checkpoint import checkpoint_of, forget


class _Variant(NamedTuple):
    attention: str
    places: Literal["none", "even", "searched", "random"]


_VARIANTS = {
    "bare": _Variant("cla", "none"),
    "cla": _Variant("cla", "even"),
    "cla-i": _Variant("cla", "searched"),
    "cla-k": _Variant("acla", "even"),
    "acla": _Variant("acla", "searched"),
    "acla-random": _Variant("acla", "random"),
}


@dataclass(frozen=True)
class Run:
    """One finished training.

    Attributes:
        variant: its name.
        seed: of its weights, patches, gates and search.
        positions: where attention is inserted, 1-based.
        psnr: test set -> mean PSNR in dB under the task's protocol.
        parameters: of the network.
        macs: multiply-accumulates for the input that the space is built for (48x48).
        seconds: of training and scoring, without the search.
        open_keys: share of keys that the adaptive modules left open on the first test set; None without such.
    """

    variant: str
    seed: int
    positions: tuple[int, ...]
    psnr: dict[str, float]
    parameters: int
    macs: int
    seconds: float
    open_keys: float | None = None


class Comparison:
    """The runs of a configuration's ``compare`` section, in its run folder.

    ``results.jsonl`` there has a line per finished run; what is there is not run again. ``searches/`` and
    ``models/`` hold the run folders of the searches and trainings, ``table.md`` the table.

    Args:
        config: of the comparison.

    Raises:
        AclaError: an unknown variant, a test folder without images, or a run folder with the results of
            another comparison.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self.folder = Path(config.run)
        options = config.compare
        for variant in options.variants:
            _variant(variant)
        sources = options.tests or [config.data.test]
        names = [Path(source).name for source in sources]
        if len(set(names)) < len(names):
            names = list(sources)
        self.tests = dict(zip(names, sources))
        task = make_task(config)
        for source in sources:
            test_images(source, task)  # now, not after hours
        kinds = {*(_variant(v).attention for v in options.variants), *options.options}
        even = {_variant(v).attention for v in options.variants if _variant(v).places == "even"}
        for attention in sorted(kinds):
            places = len(self._space(attention).positions)
            if attention in even and options.num_modules > places:
                raise AclaError(
                    f"compare.num_modules is {options.num_modules}, of only {places} positions: use fewer"
                )
        self._check_folder()

    @property
    def results(self) -> Path:
        """The file with a line per finished run."""
        return self.folder / "results.jsonl"

    def finished(self) -> dict[tuple[str, int], Run]:
        """Return the finished runs by variant and seed."""
        runs = {}
        lines = self.results.read_text(encoding="utf-8").splitlines() if self.results.exists() else []
        for line in lines:
            try:
                run = Run(**json.loads(line))
            except (ValueError, TypeError):  # it was killed while writing this one
                continue
            runs[run.variant, run.seed] = run
        return runs

    def run(self) -> Iterator[Run]:
        """Run what is not finished yet, all variants of a seed before the next seed; yield each as it ends.

        The table is written anew after each.
        """
        with locked(self.folder), stoppable():
            self.config.save(self.folder)
            device, resumed = choose_device(self.config), self.results.exists()
            with recorded(self.folder, seed=self.config.seed, device=device, resumed=resumed):
                yield from self._missing()
                if self.finished():  # a process that was killed has perhaps not written the last table
                    write_text(self.folder / "table.md", self.table())

    def _missing(self) -> Iterator[Run]:
        for seed in self.config.compare.seeds:
            for variant in self.config.compare.variants:
                if (variant, seed) in self.finished():
                    continue
                stop_if_asked(f"stopped before {variant}, seed {seed}")
                run = self._run(variant, seed)
                append_line(self.results, json.dumps(asdict(run)))
                write_text(self.folder / "table.md", self.table())
                yield run

    def table(self) -> str:
        """Return the finished runs as a Markdown table: means and standard deviations over seeds."""
        finished = self.finished()
        wanted = self.config.compare
        bare = {seed: finished["bare", seed] for seed in wanted.seeds if ("bare", seed) in finished}
        header = ["variant", "seeds", "positions", "parameters", "MACs (M)", "open keys"]
        for test in self.tests:
            header += [f"{test} (dB)", f"{test} - bare"]
        lines = [header, ["---"] * len(header)]
        for variant in wanted.variants:
            runs = [finished[variant, seed] for seed in wanted.seeds if (variant, seed) in finished]
            if not runs:
                continue
            places = dict.fromkeys(shown_positions(run.positions) for run in runs)
            row = [variant, str(len(runs)), "; ".join(places)]
            row += [f"{fmean(r.parameters for r in runs):,.0f}", f"{fmean(r.macs for r in runs) / 1e6:,.1f}"]
            shares = [r.open_keys for r in runs if r.open_keys is not None]
            row.append(f"{100 * fmean(shares):.0f} %" if shares else "")
            for test in self.tests:
                row.append(_mean_and_spread([run.psnr[test] for run in runs]))
                gains = [run.psnr[test] - bare[run.seed].psnr[test] for run in runs if run.seed in bare]
                row.append(_mean_and_spread(gains, "+") if gains and variant != "bare" else "")
            lines.append(row)
        return "".join(f"| {' | '.join(line)} |\n" for line in lines)

    def _run(self, variant: str, seed: int) -> Run:
        arch = self._arch(variant, seed)
        start = time.monotonic()
        folder = self.folder / "models" / f"{variant}-seed{seed}"
        path = arch.save(folder / "arch.json")
        first, *others = self.tests
        config = self._config(_variant(variant).attention, seed, folder)
        data = config.data.model_copy(update={"test": self.tests[first]})
        scores = run_training(config.model_copy(update={"arch": str(path), "data": data}))
        network = load_model(folder)
        assert isinstance(network, CrossLayerNetwork)
        psnr = {first: scores.psnr}
        for test in others:
            paths = list_images(self.tests[test], "test")
            psnr[test] = evaluate(network, make_task(config), paths, device=choose_device(config)).psnr
        return Run(
            variant=variant,
            seed=seed,
            positions=arch.positions,
            psnr=psnr,
            parameters=count_parameters(network),
            macs=count_macs(network, arch.input_shape),
            seconds=round(time.monotonic() - start, 1),
            open_keys=scores.open_keys,
        )

    def _arch(self, variant: str, seed: int) -> Arch:
        """Return the architecture of a variant; where its positions are searched, search."""
        attention, places = _variant(variant)
        space = self._space(attention)
        if places == "none":
            return _arch_of(space, ())
        if places == "even":
            return _arch_of(space, even_positions(self.config.compare.num_modules, of=len(space.positions)))
        found = self._searched(attention, seed)
        if places == "searched":
            return found
        table = cost.get("macs").table(space.network, space.input_shape)
        return _arch_of(space, random_positions(table, found.positions, seed), found.attention["num_keys"])

    def _searched(self, attention: str, seed: int) -> Arch:
        """Return what the search of an attention and a seed found; it is run once."""
        folder = self.folder / "searches" / f"{attention}-seed{seed}"
        if not (folder / "summary.json").exists():  # which is written last
            run_search(self._config(attention, seed, folder))
        forget(checkpoint_of(folder, "search"))  # left by one that time_limit or a kill has ended
        return Arch.load(folder / "arch.json")

    def _space(self, attention: str) -> CrossLayerSpace:
        return make_space(self._config(attention, 0, self.folder))

    def _config(self, attention: str, seed: int, folder: Path) -> Config:
        """Return the configuration of one search or training."""
        config = self.config
        options = {**config.space.options, "attention": attention}
        if not _samples_keys(attention):
            options.pop("num_keys", None)
        options |= config.compare.options.get(attention, {})
        space = Named(name=config.space.name, **options)
        return config.model_copy(update={"space": space, "seed": seed, "run": str(folder)})

    def _check_folder(self) -> None:
        """Refuse to go on with results of other settings; more variants and seeds are welcome."""
        check_run_folder(self.config, "comparison")
        path = self.folder / "config.yml"
        if not path.exists():
            return
        before = parse_config(yaml.safe_load(path.read_text(encoding="utf-8")), str(path))
        then, now = _settings(before), _settings(self.config)
        different = sorted(key for key in now if then[key] != now[key])
        if different and (self.finished() or (self.folder / "searches").exists()):
            raise AclaError(
                f"run folder {self.folder} holds a comparison with another {', '.join(different)}: "
                "set run=DIR to begin a new one"
            )


def _settings(config: Config) -> dict[str, object]:
    """Return what all runs of a comparison must have in common, by section."""
    settings = config.model_dump(exclude={"compare", "arch", "models", "seed", "device", "run"})
    shared = config.compare.model_dump(exclude={"variants", "seeds"})
    return settings | {f"compare.{key}": value for key, value in shared.items()}


def _variant(name: str) -> _Variant:
    if name in _VARIANTS:
        return _VARIANTS[name]
    if not set(name.split("+")) <= set(attentions.names()):
        raise unknown_name("variant", name, {*_VARIANTS, *attentions.names()})
    return _Variant(name, "even")


def _samples_keys(attention: str) -> bool:
    """Say whether an attention reads a number of keys of one's choice, or every pixel or none."""
    parts = [inspect.signature(attentions.get(part)).parameters for part in attention.split("+")]
    return any("num_keys" in part and part["num_keys"].default != 1 for part in parts)


def _arch_of(space: CrossLayerSpace, positions: tuple[int, ...], num_keys: int | None = None) -> Arch:
    sample = {f"insert/{j}": j in positions for j in range(1, len(space.positions) + 1)}
    return space.arch({**sample, "keys": num_keys or max(space.key_gate.num_keys)})


def _mean_and_spread(values: list[float], sign: str = "") -> str:
    spread = f" ± {stdev(values):.2f}" if len(values) > 1 else ""
    return f"{fmean(values):{sign}.2f}{spread}"
