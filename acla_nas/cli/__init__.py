"""The command acla-nas: search, train, eval, export, each as ``acla-nas COMMAND CONFIG [key=value ...]``."""

from __future__ import annotations

import shlex
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from acla_nas._version import __version__


def main() -> None:
    """Run the command line; a mistake of the user's ends in one line and exit code 2."""
    from acla_nas.errors import AclaError, AclaWarning
    from acla_nas.interruption import Stopped

    with warnings.catch_warnings():
        if not sys.warnoptions:
            warnings.simplefilter("ignore")  # of libraries, which the user cannot mend
        warnings.simplefilter("always", AclaWarning)
        warnings.showwarning = _show_warning
        try:
            cli(standalone_mode=False)
        except AclaError as error:
            _say("error", error)
            raise SystemExit(2) from None
        except OSError as error:  # a full disk, a folder that is gone, ..: not of our making
            _say("error", f"{error.filename or 'the system'}: {error.strerror or error}")
            raise SystemExit(2) from None
        except click.ClickException as error:
            error.show()
            raise SystemExit(2) from None
        except (click.Abort, KeyboardInterrupt):
            raise _interrupted() from None
        except Stopped as stopped:
            click.echo(f"acla-nas: {stopped}", err=True)
            _show_how_to_go_on()
            raise SystemExit(128 + stopped.signum) from None
        except SystemExit as error:  # Lightning turns an interrupt into an exit
            if isinstance(error.__context__, KeyboardInterrupt):
                raise _interrupted() from None
            raise


def _say(kind: str, what: object) -> None:
    click.echo(f"acla-nas: {kind}: {' '.join(str(what).split())}", err=True)


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    _say("warning", message)


def _interrupted() -> SystemExit:
    click.echo("acla-nas: interrupted", err=True)
    return SystemExit(130)


def _show_how_to_go_on() -> None:
    program = Path(sys.argv[0]).name
    command = ["python", "-m", "acla_nas"] if program == "__main__.py" else [program]
    click.echo(f"acla-nas: to go on: {shlex.join([*command, *sys.argv[1:]])}", err=True)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def cli() -> None:
    """Find where cross-layer attention pays in an image-restoration network, and ship the result.

    From images to a deployed network; CONFIG is a YAML file, and overrides of its keys follow it:

    \b
      acla-nas search  CONFIG data.train=images/train run=runs/found
      acla-nas train   CONFIG arch=runs/found/arch.json run=runs/derived
      acla-nas train   CONFIG arch=bare run=runs/baseline
      acla-nas eval    CONFIG models=[runs/baseline,runs/derived]
      acla-nas report  runs/derived
      acla-nas export  CONFIG models=[runs/derived]
      acla-nas restore runs/derived photo.jpg photo_x2.png

    examples/ has configurations; `acla-nas search CONFIG --dry-run` prints all keys with their values, and
    `acla-nas list keys` what they mean.
    """


def _command(function: Callable[..., None]) -> click.Command:
    """Turn a function of (config path, overrides) into a command; its docstring is the help."""
    return cli.command(name=function.__name__.rstrip("_"))(_takes_config(function))


def _takes_config(function: Callable[..., None]) -> Callable[..., None]:
    overrides = click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
    config = click.argument("config", metavar="CONFIG")
    return config(overrides(function))


@_command
@click.option("--budget", metavar="COST<=NUMBER", help="What the found modules may cost, such as macs<=2e9.")
@click.option("--dry-run", is_flag=True, help="Print what would be done, and do nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON; the lines of the run go to stderr.")
def search(config: str, overrides: tuple[str, ...], budget: str | None, dry_run: bool, as_json: bool) -> None:
    """Search for the insert positions; write arch.json and weights.

    \b
      acla-nas search examples/sr_edsr_search.yml run=runs/mine data.train=DIV2K/train
      acla-nas search examples/sr_edsr_search.yml --budget 'params<=20000'
      acla-nas search examples/sr_edsr_search.yml --dry-run
      acla-nas search examples/sr_edsr_search.yml strategy.name=nsga2 strategy.trials=40 run=runs/front

    Another strategy.name leaves out the options that CONFIG has for its own. A search that was stopped goes
    on when the command is given again. --dry-run prints the resolved configuration, the positions, what
    the architectures cost, how much is to be done and how long it takes. `acla-nas list keys` says what
    each key means.

    As the trial command of an NNI experiment it takes the trial's parameters as further overrides, and
    reports the validation PSNR to NNI.
    """
    from acla_nas.cli.search import run

    run(config, overrides, budget, dry_run, as_json)


@_command
@click.option("--json", "as_json", is_flag=True, help="Print JSON; the lines of the run go to stderr.")
def train(config: str, overrides: tuple[str, ...], as_json: bool) -> None:
    """Retrain what was found, or the bare backbone; score it.

    \b
      acla-nas train examples/sr_edsr_search.yml arch=runs/mine/arch.json run=runs/derived
      acla-nas train examples/sr_edsr_search.yml arch=bare run=runs/baseline
    """
    from acla_nas.cli.train import run

    run(config, overrides, as_json)


@_command
@click.option("--json", "as_json", is_flag=True, help="Print JSON, numbers unrounded.")
def eval_(config: str, overrides: tuple[str, ...], as_json: bool) -> None:
    """Score models on test images, in PSNR and SSIM.

    Per image and mean, the naive baseline first:

    \b
      acla-nas eval examples/sr_edsr_search.yml models=[runs/baseline,runs/derived] data.test=Set5
    """
    from acla_nas.cli.evaluate import run

    run(config, overrides, as_json)


@_command
@click.option(
    "--format",
    "formats",
    multiple=True,
    type=click.Choice(["safetensors", "pt2", "torchscript", "python", "onnx"]),
    help="Which, may be given several times; all that the network fits by default.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON: the files of each model.")
def export(config: str, overrides: tuple[str, ...], formats: tuple[str, ...], as_json: bool) -> None:
    """Write the network of a run for use without acla_nas.

    Into RUN/export, for each of the models:

    \b
      acla-nas export examples/sr_edsr_search.yml models=[runs/derived]
      acla-nas export examples/sr_edsr_search.yml models=[runs/derived] --format onnx --format python

    \b
      safetensors  model.safetensors: the weights, and a descriptor
      pt2          model.pt2: a PyTorch program
      torchscript  model.ts
      python       model.py and model.pth: readable source that needs PyTorch alone
      onnx         model.onnx

    Every file is loaded back and compared with the network, at three image sizes, before it is reported.
    All of them carry what descriptor.json says: scale, channels, sizes, task and training.
    """
    from acla_nas.cli.export import run

    run(config, overrides, formats, as_json)


@cli.command()
@click.argument("model", metavar="MODEL")
@click.argument("source", metavar="IN")
@click.argument("target", metavar="OUT")
@click.option("--tile", type=click.IntRange(1), help="Side of a tile without its overlap; 256 by default.")
@click.option("--self-ensemble", is_flag=True, help="Average over 8 flips and turns: 8 times slower.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="cpu", show_default=True)
@click.option(
    "--existing",
    type=click.Choice(["fail", "skip", "replace"]),
    default="fail",
    show_default=True,
    help="What to do with files that are there already.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON: files, overlap and what it guarantees.")
def restore(
    model: str,
    source: str,
    target: str,
    tile: int | None,
    self_ensemble: bool,
    device: str,
    existing: str,
    as_json: bool,
) -> None:
    """Restore an image, or a folder of them, of any size.

    MODEL is a run folder, or a file that `export` wrote. IN is an image or a folder; OUT a file, or a folder.

    \b
      acla-nas restore runs/derived photo.jpg photo_x2.png
      acla-nas restore runs/derived/export/model.onnx photos/ restored/ --existing skip
      acla-nas restore runs/derived photo.jpg photo_x2.png --self-ensemble --tile 512

    Large images are restored in tiles, which overlap as far as the network looks; the command says how far
    that is, and whether the result is what the whole image in one piece would give. Transparency, 16 bits,
    grey, orientation, EXIF data and colour profiles are kept.
    """
    from acla_nas.cli.restore import run

    run(model, source, target, tile, self_ensemble, device, existing, as_json)


@cli.group()
def data() -> None:
    """Get image sets, check them, make low-resolution images."""


@data.command()
@click.argument("folder", metavar="DIR")
@click.option("--against", metavar="DIR", help="Test images, which must not be among those of DIR.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def check(folder: str, against: str | None, as_json: bool) -> None:
    """Find damaged images and those that are there twice.

    Counts the images of a folder; exit code 1 if something is wrong:

    \b
      acla-nas data check DIV2K/train
      acla-nas data check DIV2K/train --against Set5

    Images are compared by their pixels, and by perceptual hashes, which find resized and compressed copies.
    """
    from acla_nas.cli.data import run_check

    run_check(folder, against, as_json)


@data.command()
@click.argument("name", required=False)
@click.argument("folder", metavar="[DIR]", default="data")
def fetch(name: str | None, folder: str) -> None:
    """Download a published image set, or list them.

    Into DIR, the folder data by default; without NAME it lists the sets with their licences:

    \b
      acla-nas data fetch
      acla-nas data fetch div2k
      acla-nas data fetch set5 ~/images

    Given again it goes on where it was stopped. What is downloaded is compared with its checksum; where none
    is known, it is noted for the next time.
    """
    from acla_nas.cli.data import run_fetch

    run_fetch(name, folder)


@data.command()
@click.argument("folder", metavar="DIR")
@click.argument("target", metavar="OUT")
@click.option("--scale", type=click.IntRange(2), default=2, show_default=True, help="How much smaller.")
@click.option("--suffix", help="After each name; x2 at scale 2 by default, as in DIV2K.")
@click.option(
    "--existing",
    type=click.Choice(["fail", "skip", "replace"]),
    default="fail",
    show_default=True,
    help="What to do with files that are there already.",
)
def lr(folder: str, target: str, scale: int, suffix: str | None, existing: str) -> None:
    """Write low-resolution images as MATLAB's imresize does.

    Each image of DIR into OUT, bicubic, pixel for pixel:

    \b
      acla-nas data lr Set5 Set5_LR/X2
      acla-nas data lr Set5 Set5_LR/X4 --scale 4 --suffix ''

    For other programs: acla_nas makes its low-resolution images itself.
    """
    from acla_nas.cli.data import run_lr

    run_lr(folder, target, scale, suffix, existing)


@cli.group()
def bench() -> None:
    """Compare with the paper's tables, and measure."""


@bench.command()
@click.argument("number", type=int)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, numbers unrounded.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", help="Of table 12.")
@click.option("--runs", type=click.IntRange(1), default=7, show_default=True, help="Of table 12.")
def table(number: int, as_json: bool, device: str, runs: int) -> None:
    """Print a table of the paper's, ours beside its figures.

    Tables 4, 5, 6, 7, 8 and 11 give parameters and multiply-accumulates, at once; table 12 measures
    inference times here.

    \b
      acla-nas bench table 4
      acla-nas bench table 12 --runs 21
    """
    from acla_nas.cli.bench import run_table

    run_table(number, as_json, device, runs)


@bench.command()
@_takes_config
def compare(config: str, overrides: tuple[str, ...]) -> None:
    """Train variants of attention alike, over several seeds.

    Writes the table of their scores:

    \b
      acla-nas bench compare examples/compare_sr.yml
      acla-nas bench compare examples/compare_sr.yml 'compare.tests=[Set5]' 'compare.seeds=[0]'

    Given again it goes on where it was stopped: finished runs are not run again.
    """
    from acla_nas.cli.bench import run_compare

    run_compare(config, overrides)


@bench.command()
@_takes_config
@click.option("--architectures", type=click.IntRange(1), default=10, show_default=True, help="How many.")
@click.option("--runs", type=click.IntRange(7), default=15, show_default=True, help="Of each network.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, numbers unrounded.")
def latency(config: str, overrides: tuple[str, ...], architectures: int, runs: int, as_json: bool) -> None:
    """Compare the latency model with networks that are run.

    With random architectures of the search space:

    \b
      acla-nas bench latency examples/sr_edsr_search.yml
      acla-nas bench latency examples/sr_rcan_search.yml space.attention=cla --architectures 20 --json

    Predicted is the measured time of the bare backbone and, added to it, what the cost model "latency" gives
    for the modules; measured is the derived network. All networks take turns, and times are medians.
    """
    from acla_nas.cli.bench import run_latency

    run_latency(config, overrides, architectures, runs, as_json)


@bench.command()
@_takes_config
@click.option("--architectures", type=click.IntRange(2), default=12, show_default=True, help="How many.")
def ranking(config: str, overrides: tuple[str, ...], architectures: int) -> None:
    """Say whether a supernet ranks networks as training does.

    Random architectures, each scored by inherited weights and by a training of its own:

    \b
      acla-nas search CONFIG strategy.name=random_one_shot run=runs/supernet
      acla-nas bench ranking CONFIG scoring.weights=runs/supernet run=runs/ranking

    The training follows the recipe of `train`; both scores are of the validation images.
    """
    from acla_nas.cli.bench import run_ranking

    run_ranking(config, overrides, architectures)


@bench.command()
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto")
@click.option("--runs", type=click.IntRange(7), default=15, show_default=True, help="Of each function.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, numbers unrounded.")
def ops(device: str, runs: int, as_json: bool) -> None:
    """Measure the operator's time and memory.

    Beside its peers, and as the image grows:

    \b
      acla-nas bench ops
      acla-nas bench ops --json > ops.json

    The functions take turns, and times are medians. What is counted is in docs/performance.md.
    """
    from acla_nas.cli.bench import run_ops

    run_ops(device, runs, as_json)


@bench.command()
@click.argument("models", nargs=-1, metavar="[MODEL]...")
@click.option(
    "--size", type=click.IntRange(1), default=48, show_default=True, help="Sides of the image, in pixels."
)
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto")
@click.option("--runs", type=click.IntRange(7), default=15, show_default=True, help="Of each network.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, numbers unrounded.")
def infer(models: tuple[str, ...], size: int, device: str, runs: int, as_json: bool) -> None:
    """Measure inference: of given models, or of EDSR with and without ACLA.

    MODEL is a run folder or a file that export wrote, measured as restore runs it:

    \b
      acla-nas bench infer runs/derived runs/derived/export/model.onnx
      acla-nas bench infer runs/derived runs/derived/export/model.pt2 --size 256

    Without one, EDSR is measured, with modules at five positions:

    \b
      acla-nas bench infer
      acla-nas bench infer --json > infer.json

    The networks take turns, and times are medians. What is counted is in docs/performance.md.
    """
    from acla_nas.cli.bench import run_infer

    run_infer(models, size, device, runs, as_json)


@bench.command(name="space")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto")
@click.option("--runs", type=click.IntRange(7), default=7, show_default=True, help="Of each step.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, numbers unrounded.")
def bench_space(device: str, runs: int, as_json: bool) -> None:
    """Measure a search: steps of a dense EDSR supernet beside those of the bare network and the literal form.

    \b
      acla-nas bench space
      acla-nas bench space --json > space.json

    The steps take turns, and times are medians; it takes about ten minutes on two cores. What is counted is
    in docs/performance.md.
    """
    from acla_nas.cli.bench import run_space

    run_space(device, runs, as_json)


@bench.command(name="data")
@_takes_config
@click.option("--runs", type=click.IntRange(7), default=15, show_default=True, help="Batches and steps.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, numbers unrounded.")
def bench_data(config: str, overrides: tuple[str, ...], runs: int, as_json: bool) -> None:
    """Measure whether loading patches keeps up with training.

    Patches loaded, and patches used up, in a second:

    \b
      acla-nas bench data examples/sr_edsr_search.yml
      acla-nas bench data examples/sr_edsr_search.yml data.train=DIV2K data.workers=4 --json

    What uses them up is the bare backbone, the fastest training that there is.
    """
    from acla_nas.cli.bench import run_data

    run_data(config, overrides, runs, as_json)


@bench.command(name="strategies")
@_takes_config
@click.option(
    "--other",
    "others",
    multiple=True,
    default=("random", "nsga2"),
    show_default=True,
    help="A strategy beside that of CONFIG; may be given several times.",
)
@click.option(
    "--seed",
    "seeds",
    type=click.IntRange(0),
    multiple=True,
    default=(0, 1, 2),
    show_default=True,
    help="May be given several times.",
)
def bench_strategies(
    config: str, overrides: tuple[str, ...], others: tuple[str, ...], seeds: tuple[int, ...]
) -> None:
    """Compare strategies that search for equally long.

    Each for as long as that of CONFIG takes; what they find is trained:

    \b
      acla-nas bench strategies examples/sr_edsr_search.yml --other random --other nsga2 run=runs/strategies
    """
    from acla_nas.cli.bench import run_strategies

    run_strategies(config, overrides, others, seeds)


class _RunFirst(click.Group):
    """A group where what is not the name of a command is the argument of the command ``page``."""

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        """Put the name of the command before its argument."""
        known = args[0] in self.commands or args[0].startswith("-")
        return super().resolve_command(ctx, args if known else ["page", *args])


@cli.group(cls=_RunFirst, subcommand_metavar="RUN [KEY=VALUE]... | COMMAND ...")
def report() -> None:
    """Write the whole story of a run as one HTML file.

    What it did, and what its network does:

    \b
      acla-nas report runs/mine
      acla-nas report runs/derived models=[runs/baseline] images=[photo.png] out=report.html
      acla-nas report keys examples/sr_edsr_search.yml models=[runs/derived]
      acla-nas report front runs/front

    RUN is the folder of a search, a training or a comparison; `acla-nas report page --help` says more.
    """


@report.command()
@click.argument("run", metavar="RUN")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
def page(run: str, overrides: tuple[str, ...]) -> None:
    """Write a run's report; the word `page` may be left out.

    \b
      acla-nas report runs/derived
      acla-nas report runs/derived models=[runs/baseline] images=[photo.png] out=report.html

    One HTML file, RUN/report.html, that needs no network: the search, the derived network with its
    references, test images as degraded, restored and original, and for every pixel the keys that each module
    reads. models are further networks to restore with, images the files to show crops of.
    """
    from acla_nas.cli.report import run_page

    run_page(run, overrides)


@report.command()
@_takes_config
def keys(config: str, overrides: tuple[str, ...]) -> None:
    """Draw which keys a pixel reads in each layer.

    Above those that CLNL, attention to all pixels, weighs most:

    \b
      acla-nas report keys examples/sr_edsr_search.yml models=[runs/derived] out=keys.png
      acla-nas report keys examples/sr_edsr_search.yml models=[runs/derived] image=photo.png query=[80,45]

    The image is degraded by the task, as a test image is; query is a pixel [x, y] of the result, position
    one of the inserted positions. Left out, they are the first test image, its most textured place and the
    last position.
    """
    from acla_nas.cli.report import run_keys

    run_keys(config, overrides)


@report.command()
@click.argument("run", metavar="RUN")
@click.option("--budget", metavar="COST<=NUMBER", help="Pick the best candidate within it.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, numbers unrounded.")
def front(run: str, budget: str | None, as_json: bool) -> None:
    """Print the candidates of a multi-trial search.

    Picks the best within a budget, if one is given:

    \b
      acla-nas report front runs/front
      acla-nas report front runs/front --budget 'macs<=2e8'
      acla-nas report front runs/front --json

    The one that is picked is written to RUN/within_budget.json, for `acla-nas train CONFIG arch=...`. The
    cost must be the one that the search measured.
    """
    from acla_nas.cli.report import run_front

    run_front(run, budget, as_json)


@cli.command(name="list")
@click.argument(
    "kind",
    required=False,
    type=click.Choice(["keys", "spaces", "strategies", "attentions", "costs", "tasks"]),
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_(kind: str | None, as_json: bool) -> None:
    """Show the spaces, strategies, attentions, costs and tasks.

    All that a configuration can name, ours and those of installed plugins:

    \b
      acla-nas list
      acla-nas list costs
      acla-nas list keys
      acla-nas list --json

    `list keys` shows all keys of a configuration, with their defaults and what they mean.

    Something of one's own needs no listing: any name may be MODULE:NAME of a file in the current folder.
    """
    from acla_nas.cli.list import run

    run(kind, as_json)
