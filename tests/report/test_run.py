"""acla-nas report keys, as a user types it."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

import acla_nas
from acla_nas.cli import cli
from acla_nas.data import embedded_images, load_image, save_image
from acla_nas.errors import AclaError
from acla_nas.exporter import save_model


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with a configuration and the runs acla, clnl, se and bare."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "config.yml").write_text("task: {name: super_resolution, scale: 2}\nseed: 0\n")
    for name in ("acla", "clnl", "se", "bare"):
        attention = "acla" if name == "bare" else name
        options = {"num_keys": 4} if attention == "acla" else {"reduction": 2} if name == "se" else {}
        space = acla_nas.search_spaces.edsr(num_blocks=3, num_channels=8, attention=attention, **options)
        inserted = {f"insert/{j}": j != 2 and name != "bare" for j in (1, 2, 3)}
        sample = {**inserted, "keys": space.key_gate.num_keys[0]}
        (folder / name).mkdir()
        save_model(space.arch(sample), space.freeze(sample).state_dict(), folder / name)
    return folder


@pytest.fixture
def config(runs, monkeypatch):
    """The configuration, in the working directory."""
    monkeypatch.chdir(runs)
    return "config.yml"


def report(*arguments):
    return CliRunner().invoke(cli, ["report", "keys", *arguments], catch_exceptions=False).output


def test_default_image_query_and_position(config, runs):
    output = report(config, "models=[acla]")
    assert "of chelsea.png, degraded to 225x150" in output
    assert "ACLA, acla" in output and "CLNL, top 4, of the features of acla" in output
    assert output.count("body.0 (position 1)") == output.count("body.2 (position 3)") == 2
    assert load_image(runs / "keys.png").std() > 10


def test_all_its_keys(config, runs):
    save_image(load_image(embedded_images("test")[1])[100:140, 200:260], runs / "rocket.png")
    output = report(
        config,
        "models=[acla,clnl]",
        "image=rocket.png",
        "query=[8,5]",
        "position=1",
        "out=new/keys.png",
        "seed=3",
    )
    assert "query: pixel (8, 5) of rocket.png, degraded to 30x20" in output
    assert "CLNL, top 4, clnl" in output and "of the features" not in output and "position 3" not in output
    assert load_image(runs / "new" / "keys.png").std() > 10


@pytest.mark.parametrize(
    "overrides, message",
    [
        ([], "give models="),
        (["models=[acla]", "qery=[1,2]"], "unknown key 'qery'; did you mean 'query'"),
        (["models=[acla]", "query=here"], r"query must be \[x, y\], two pixels, not 'here'"),
        (["models=[acla]", "query=[1000,2]"], "outside the image of 225x150"),
        (["models=[acla]", "position=2"], "no attention at position 2: set position to 1, 3"),
        (["models=[acla]", "position=0"], "position must be a number from 1, not 0"),
        (["models=[bare]"], "model bare has no attention"),
        (["models=[se]"], "which selects no keys"),
        (["models=[acla]", "image=none.png"], "none.png"),
        (["models=[acla]", "out=keys.xyz"], "cannot write picture keys.xyz"),
        (["models=[acla]", "query=[1"], "is not YAML"),
    ],
)
def test_mistakes(config, overrides, message):
    with pytest.raises(AclaError, match=message):
        report(config, *overrides)
