"""The command acla-nas: search, train, eval, export, each as ``acla-nas COMMAND CONFIG [key=value ...]``."""

from __future__ import annotations

from collections.abc import Callable

import click

from acla_nas._version import __version__


def main() -> None:
    """Run the command line; a mistake of the user's ends in one line and exit code 2."""
    from acla_nas.errors import AclaError

    try:
        cli(standalone_mode=False)
    except AclaError as error:
        click.echo(f"acla-nas: error: {error}", err=True)
        raise SystemExit(2) from None
    except click.ClickException as error:
        error.show()
        raise SystemExit(2) from None
    except (click.Abort, KeyboardInterrupt):
        click.echo("acla-nas: interrupted", err=True)
        raise SystemExit(130) from None


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def cli() -> None:
    """Find where cross-layer attention pays in an image-restoration network, and ship the result.

    Every command takes a YAML file and overrides of its keys:

    \b
      acla-nas search examples/sr_edsr_search.yml strategy.cost_weight=0.3
      acla-nas train  examples/sr_edsr_search.yml arch=runs/sr_edsr/arch.json run=runs/derived
      acla-nas eval   examples/sr_edsr_search.yml models=[runs/derived]
    """


def _command(function: Callable[..., None]) -> click.Command:
    """Turn a function of (config path, overrides) into a command; its docstring is the help."""
    overrides = click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
    config = click.argument("config", metavar="CONFIG")
    return cli.command(name=function.__name__.rstrip("_"))(config(overrides(function)))


@_command
def search(config: str, overrides: tuple[str, ...]) -> None:
    """Search for the insert positions; write arch.json and weights.

    \b
      acla-nas search examples/sr_edsr_search.yml run=runs/mine data.train=DIV2K/train

    As the trial command of an NNI experiment it takes the trial's parameters as further overrides, and
    reports the validation PSNR to NNI.
    """
    from acla_nas.cli.search import run

    run(config, overrides)


@_command
def train(config: str, overrides: tuple[str, ...]) -> None:
    """Retrain a derived architecture, or the bare backbone, and score it.

    \b
      acla-nas train examples/sr_edsr_search.yml arch=runs/mine/arch.json run=runs/derived
      acla-nas train examples/sr_edsr_search.yml arch=bare run=runs/baseline
    """
    from acla_nas.cli.train import run

    run(config, overrides)


@_command
def eval_(config: str, overrides: tuple[str, ...]) -> None:
    """Score models on test images: PSNR and SSIM, per image and mean, the naive baseline first.

    \b
      acla-nas eval examples/sr_edsr_search.yml models=[runs/baseline,runs/derived] data.test=Set5
    """
    from acla_nas.cli.evaluate import run

    run(config, overrides)


@_command
def export(config: str, overrides: tuple[str, ...]) -> None:
    """Write the network of each run folder as model.pt2, which needs PyTorch and nothing else to run.

    \b
      acla-nas export examples/sr_edsr_search.yml models=[runs/derived]
    """
    from acla_nas.cli.export import run

    run(config, overrides)
