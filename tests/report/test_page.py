"""The report of a run: what is in it; and that it works in a browser, without a network."""

from __future__ import annotations

import html
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from acla_nas import experiment
from acla_nas.bench.compare import Comparison
from acla_nas.cli.report import run_page
from acla_nas.config import parse_config
from acla_nas.data import load_image
from acla_nas.errors import AclaError
from acla_nas.exporter import save_weights
from acla_nas.report.keys import selected_keys
from acla_nas.report.page import write_report
from acla_nas.tasks import SuperResolution

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def runs(images, tmp_path_factory):
    """A folder with the runs search, derived, bare, and front."""
    folder = tmp_path_factory.mktemp("runs")

    def config(name, **sections):
        data = {split: str(images) for split in ("train", "validation", "test")}
        content = {
            "space": {"name": "edsr", "num_blocks": 2, "num_channels": 4, "num_keys": 3},
            "data": {**data, "patch_size": 8, "batch_size": 2},
            "search": {"steps_per_epoch": 2},
            "train": {"epochs": 2, "steps_per_epoch": 2},
            "device": "cpu",
            "run": str(folder / name),
        }
        return parse_config({**content, **sections}, "test")

    one_shot = {"name": "two_stage", "epochs": [1, 2], "initial_alpha": 5.0}
    experiment.run_search(config("search", strategy=one_shot))
    arch = str(folder / "search" / "arch.json")
    experiment.run_training(config("derived", strategy=one_shot, arch=arch))
    experiment.run_training(config("bare"))
    experiment.run_search(config("front", strategy={"name": "exhaustive", "cost": "params"}))
    # Offsets that a pixel can be told from, and gates that differ.
    network = experiment.load_model(folder / "derived")
    with torch.no_grad():
        for reference in network.attention["2"].references.values():
            reference.offset.weight.normal_(0, 20)
            reference.mask.weight.normal_(0, 300)
    save_weights(network.state_dict(), folder / "derived" / "weights.safetensors")
    return folder


@pytest.fixture(scope="module")
def page(runs):
    """The report of the training, with the bare network beside it."""
    run_page(str(runs / "derived"), [f"models=[{runs / 'bare'}]", f"out={runs / 'page.html'}"])
    return runs / "page.html"


def sections(path: Path) -> list[str]:
    return re.findall(r"<h2>(.*?)</h2>", path.read_text(encoding="utf-8"))


def test_a_training_tells_of_its_search_its_network_and_its_keys(page):
    expected = ["The search", "The training", "The derived network", "Restored images", "The keys"]
    assert sections(page) == [*expected, "How it was made"]
    text = html.unescape(page.read_text(encoding="utf-8"))
    assert "edsr with acla of 3 keys at positions 1, 2 of 2." in text
    assert text.count('class="module"') == 2 and text.count('class="reference"') == 1
    scores = json.loads((page.parent / "derived" / "scores.json").read_text())
    assert f"{scores['psnr']:.2f} dB" in text and set(scores["images"]) == {"a", "b", "c"}
    for name in ("degraded", "bicubic", "derived", "bare", "original"):
        assert f'alt="a, {name}"' in text
    assert "strategy: two_stage" not in text and "name: two_stage" in text  # the configuration


def test_it_loads_nothing(page):
    text = page.read_text(encoding="utf-8")
    sources = re.findall(r'(?:src|href)="([^"]{0,20})', text)
    assert sources and all(source.startswith(("data:", "#")) for source in sources)
    assert "@import" not in text and "url(" not in text


def test_every_picture_has_words(page):
    text = page.read_text(encoding="utf-8")
    assert all(re.search(r'alt="[^"]+"', tag) for tag in re.findall(r"<img[^>]*>", text))
    assert all("aria-label" in tag for tag in re.findall(r"<svg[^>]*>", text))


def test_a_search_for_a_front(runs):
    path = write_report(runs / "front")
    assert path == runs / "front" / "report.html"
    assert sections(path)[:2] == ["The search", "The derived network"]
    text = path.read_text(encoding="utf-8")
    assert "all 4 candidates" in text and text.count("<td>yes</td>") >= 1


def test_a_search_under_way_has_a_report(runs, tmp_path):
    shutil.copytree(runs / "search", tmp_path / "search")
    for name in ("arch.json", "weights.safetensors", "summary.json", "run.json"):
        (tmp_path / "search" / name).unlink()
    assert sections(write_report(tmp_path / "search")) == ["The search", "How it was made"]


def comparison(images, run, variants, **sections):
    data = {split: str(images) for split in ("train", "validation", "test")}
    return {
        "space": {"name": "edsr", "num_blocks": 2, "num_channels": 4, "num_keys": 3},
        "data": {**data, "patch_size": 8, "batch_size": 2},
        "search": {"steps_per_epoch": 1},
        "train": {"epochs": 1, "steps_per_epoch": 1},
        "compare": {"variants": variants, "seeds": [1], "num_modules": 1},
        "device": "cpu",
        "run": str(run),
        **sections,
    }


def test_a_comparison_has_its_table_and_all_its_networks(images, tmp_path):
    content = comparison(images, tmp_path, ["bare", "cla-k"])
    list(Comparison(parse_config(content, "test")).run())
    path = write_report(tmp_path)
    parts = ["The derived network", "The comparison", "Restored images", "The keys", "How it was made"]
    assert sections(path) == parts  # not the search: none has led to the network that is shown
    text = html.unescape(path.read_text(encoding="utf-8"))
    assert "<td>bare</td>" in text and "<td>cla-k</td>" in text
    assert re.search(r"# \d{4}-\S+, finished\n", text)  # the command
    assert 'alt="a, bare-seed1"' in text and 'alt="a, cla-k-seed1"' in text


def test_a_comparison_tells_of_the_search_that_led_to_its_network(images, tmp_path):
    strategy = {"name": "two_stage", "epochs": [1, 1], "initial_alpha": 5.0}
    content = comparison(images, tmp_path, ["bare", "acla"], strategy=strategy)
    list(Comparison(parse_config(content, "test")).run())
    path = write_report(tmp_path)
    assert sections(path)[0] == "The search"
    assert f"It lies in {tmp_path}/searches/acla-seed1." in path.read_text(encoding="utf-8")


def test_no_attention_no_keys(runs):
    assert sections(write_report(runs / "bare")) == [
        *("The training", "The derived network", "Restored images", "How it was made")
    ]


def test_mistakes(runs, tmp_path):
    with pytest.raises(AclaError, match=r"no config\.yml; give the run folder"):
        write_report(tmp_path)
    with pytest.raises(AclaError, match="unknown key 'image'; did you mean 'images'"):
        run_page(str(runs / "bare"), ["image=a.png"])
    with pytest.raises(AclaError, match=r"images must be a list of files, such as \[a.png, b.png\]"):
        run_page(str(runs / "bare"), ["images=a.png"])
    with pytest.raises(AclaError, match="cannot write"):
        write_report(runs / "bare", runs / "bare")


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("there is no chromium")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def tab(browser, page):
    """The report in a browser that has no network; it must raise no error and ask for nothing else."""
    context = browser.new_context(viewport={"width": 1200, "height": 900}, offline=True)
    tab = context.new_page()
    problems, asked = [], []
    tab.on("pageerror", lambda error: problems.append(str(error)))
    tab.on("console", lambda message: problems.append(message.text))
    tab.on("request", lambda request: asked.append(request.url))
    tab.goto(page.as_uri())
    tab.wait_for_function("document.getElementById('said').textContent")
    yield tab
    assert not problems
    assert [url for url in asked if not url.startswith("data:")] == [page.as_uri()]
    context.close()


def test_a_click_shows_the_keys_of_the_pixel(tab, runs, images):
    """The same as the network itself says, for a pixel that is clicked and for its neighbour."""
    network = experiment.load_model(runs / "derived")
    lq = SuperResolution(2).degrade(load_image(images / "a.png"), np.random.default_rng(0))
    data = json.loads(tab.locator("#keys-data").text_content())
    (left, top), width, height = data["corner"], data["width"], data["height"]
    crop = torch.from_numpy(lq[top : top + height, left : left + width].transpose(2, 0, 1) / 255).float()
    x, y = 5, 11
    box = tab.locator("#image").bounding_box()
    place = {
        "x": 1 + (x + 0.5) * (box["width"] - 2) / width,
        "y": 1 + (y + 0.5) * (box["height"] - 2) / height,
    }
    tab.locator("#image").click(position=place)
    for step in (0, 1):
        keys = [k for j in (1, 2) for k in selected_keys(network, crop, j, (x + step, y))]
        opened = sum(int(k.open.sum()) for k in keys)
        said = tab.locator("#said").inner_text()
        assert said.startswith(f"Pixel ({left + x + step}, {top + y}) of a: {opened} of 9 keys survived")
        captions = tab.locator(".panel figcaption").all_inner_texts()
        assert len(captions) == 3
        for caption, one in zip(captions, keys):
            assert f"({one.path}): {int(one.open.sum())} of 3 keys open" in caption
            assert f"{100 * one.weights.sum():.1f} % of the weight" in caption
        tab.locator("#image").press("ArrowRight")
    assert opened > 0


def test_the_weights_are_listed_and_drawn(tab):
    canvas = tab.locator(".panel canvas").first
    drawn = "c => c.toDataURL()"
    before = canvas.evaluate(drawn)
    tab.locator("#near").uncheck()
    assert canvas.evaluate(drawn) != before
    tab.locator(".panel summary").first.click()
    tab.wait_for_function("document.querySelector('.panel table').rows.length")
    rows = tab.locator(".panel table").first.locator("tr").all_inner_texts()
    assert rows[0].split() == ["dx", "dy", "weight"] and len(rows) == 4


def test_the_divider_follows_the_slider_and_the_pointer(tab):
    crop = tab.locator("[data-crop]").first
    above = crop.locator(".above")
    crop.locator("input[type=range]").fill("25")
    assert "25%" in above.evaluate("e => e.style.clipPath")
    crop.locator(".pair").scroll_into_view_if_needed()
    box = crop.locator(".pair").bounding_box()
    tab.mouse.move(box["x"] + 0.8 * box["width"], box["y"] + 20)
    tab.mouse.down()
    assert crop.locator("input[type=range]").input_value() == "80"
    tab.mouse.up()
    crop.locator("select").last.select_option(label="original")
    assert above.get_attribute("alt") == "a, original"
    assert above.get_attribute("src") == crop.locator(".row img").last.get_attribute("src")
