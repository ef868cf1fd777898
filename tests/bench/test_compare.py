"""A comparison: what it runs, writes and resumes."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from acla_nas.bench import compare
from acla_nas.bench.compare import Comparison
from acla_nas.cli import cli
from acla_nas.config import load_config
from acla_nas.errors import AclaError

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "compare_sr.yml"
SMALL = (
    "space.num_blocks=4",
    "space.num_channels=4",
    "space.num_keys=2",
    "strategy.epochs=[0, 1]",
    "data.patch_size=8",
    "data.batch_size=1",
    "search.steps_per_epoch=1",
    "train.steps_per_epoch=1",
    "compare.num_modules=2",
)


@pytest.fixture
def small(images, tmp_path):
    folders = [f"data.train={images}", f"data.validation={images}", f"compare.tests=[{images}]"]

    def configure(*overrides):
        return load_config(EXAMPLE, [*SMALL, *folders, f"run={tmp_path / 'run'}", *overrides])

    return configure


def test_the_example_compares_all_variants_over_three_seeds():
    config = load_config(EXAMPLE)
    assert config.compare.variants == ["bare", "nl", "cla", "cla-i", "cla-k", "acla", "acla-random"]
    assert config.compare.seeds == [0, 1, 2]
    assert (config.train.epochs * config.train.steps_per_epoch, config.data.batch_size) == (500, 8)


def test_two_variants_two_seeds_on_embedded_images(tmp_path):
    arguments = ["compare.variants=[bare, cla]", "compare.seeds=[0, 1]", f"run={tmp_path}"]
    command = ["bench", "compare", str(EXAMPLE), *SMALL, *arguments]
    output = CliRunner().invoke(cli, command, catch_exceptions=False).output
    assert "cla, seed 1: embedded " in output
    lines = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert [(run["variant"], run["seed"]) for run in lines] == [
        ("bare", 0),
        ("cla", 0),
        ("bare", 1),
        ("cla", 1),
    ]
    assert [run["positions"] for run in lines] == [[], [2, 4]] * 2
    assert set(lines[0]) == {
        "variant",
        "seed",
        "positions",
        "psnr",
        "parameters",
        "macs",
        "seconds",
        "open_keys",
    }
    assert lines[1]["parameters"] > lines[0]["parameters"] and lines[1]["macs"] > lines[0]["macs"]
    assert lines[0]["psnr"]["embedded"] != lines[2]["psnr"]["embedded"]
    table = (tmp_path / "table.md").read_text().splitlines()
    assert table[0].startswith(
        "| variant | seeds | positions | parameters | MACs (M) | open keys | embedded (dB) |"
    )
    assert [line.split(" | ")[0] for line in table] == ["| variant", "| ---", "| bare", "| cla"]
    assert table[3].count(" ± ") == 2

    again = CliRunner().invoke(cli, command, catch_exceptions=False).output
    assert "4 runs" in again and "training" not in again
    assert len((tmp_path / "results.jsonl").read_text().splitlines()) == 4


def test_all_variants(small):
    runs = {run.variant: run for run in Comparison(small("compare.seeds=[0]")).run()}
    assert list(runs) == small().compare.variants
    assert runs["bare"].positions == ()
    assert runs["nl"].positions == runs["cla"].positions == runs["cla-k"].positions == (2, 4)
    assert len(runs["acla-random"].positions) == len(runs["acla"].positions)
    assert runs["acla-random"].macs == pytest.approx(runs["acla"].macs, rel=0.01)
    assert runs["cla-k"].parameters > runs["cla"].parameters


def test_a_killed_comparison_goes_on(small, monkeypatch):
    config = small("compare.variants=[bare, cla, acla, acla-random]", "compare.seeds=[3]")
    first = Comparison(config)
    assert [run.variant for run in itertools.islice(first.run(), 3)] == ["bare", "cla", "acla"]
    with first.results.open("a") as file:
        file.write('{"variant": "acla-random", "se')  # killed while it wrote

    searches = []
    monkeypatch.setattr(compare, "run_search", searches.append)
    second = Comparison(config)
    assert set(second.finished()) == {("bare", 3), ("cla", 3), ("acla", 3)}
    assert [run.variant for run in second.run()] == ["acla-random"]
    assert searches == []
    assert len(Comparison(config).finished()) == 4
    table = Path(config.run, "table.md")
    written = table.read_text()
    table.unlink()  # killed before it was written
    assert list(Comparison(config).run()) == [] and table.read_text() == written
    more = Comparison(small("compare.variants=[bare, cla]", "compare.seeds=[3, 4]"))
    assert [(run.variant, run.seed) for run in more.run()] == [("bare", 4), ("cla", 4)]


def test_results_of_other_settings_are_not_mixed(small):
    assert len(list(Comparison(small("compare.variants=[bare]", "compare.seeds=[0]")).run())) == 1
    with pytest.raises(AclaError, match=r"with another train: set run=DIR"):
        Comparison(small("train.learning_rate=0.1"))
    with pytest.raises(AclaError, match=r"with another compare\.num_modules"):
        Comparison(small("compare.num_modules=1"))


def test_positions_are_for_modules_that_are_inserted_evenly(small):
    Comparison(small("compare.variants=[bare, acla]", "compare.num_modules=5"))


def test_options_of_an_attention(small):
    config = small(
        "compare.variants=[cla, cla-k, se]", "compare.options={acla: {num_keys: 3}, se: {reduction: 2}}"
    )
    comparison = Comparison(config)
    assert comparison._arch("cla", 0).attention["num_keys"] == 2
    assert comparison._arch("cla-k", 0).attention["num_keys"] == 3
    assert comparison._arch("se", 0).attention["reduction"] == 2


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("compare.variants=[acla-x]", "unknown variant 'acla-x'"),
        ("compare.tests=[nowhere]", "nowhere"),
        ("compare.options={cla: {gate_bias: 1}}", "gate_bias"),
        ("compare.num_modules=5", "compare.num_modules is 5, of only 4 positions"),
        ("compare.seeds=[]", "compare.seeds"),
        ("compare.variants=[]", "compare.variants"),
    ],
)
def test_mistakes_are_found_before_any_training(small, override, message):
    with pytest.raises(AclaError, match=message.replace(".", r"\.")):
        Comparison(small(override))
