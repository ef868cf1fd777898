"""The diagram of an architecture."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest

import acla_nas
from acla_nas.diagram import arch_html, arch_svg
from acla_nas.strategies import Exhaustive, TwoStage


def arch_of(count, inserted):
    space = acla_nas.search_spaces.edsr(num_blocks=count, num_channels=4, num_keys=4)
    sample = {f"insert/{j}": j in inserted for j in range(1, count + 1)}
    return space.arch({**sample, "keys": 4})


def titles(svg, kind):
    found = ET.fromstring(svg).iter()
    return [e[0].text for e in found if e.get("class") == kind]


@pytest.mark.parametrize("count", [6, 25, 50])
def test_it_has_every_position_module_and_reference(count):
    svg = arch_svg(arch_of(count, (2, 3, 6)), num_positions=count, probabilities={2: 0.75})
    positions = titles(svg, "position")
    assert len(positions) == count and positions[0] == "position 1"
    assert positions[1] == "position 2 (body.1), with a module, probability of a module 0.75"
    assert titles(svg, "module")[2] == "acla at position 6 (body.5): 4 keys in each of positions 2, 3, 6"
    assert titles(svg, "reference") == [
        "the module at position 3 reads position 2 (body.1)",
        "the module at position 6 reads position 2 (body.1)",
        "the module at position 6 reads position 3 (body.2)",
    ]


def test_without_the_number_of_positions_it_ends_at_the_last_module():
    svg = arch_svg(arch_of(6, (2, 3)))
    assert len(titles(svg, "position")) == 3 and "…" in svg and "output" not in svg


def test_nothing_inserted():
    svg = arch_svg(arch_of(2, ()), num_positions=2)
    assert not titles(svg, "module") and 'aria-label="edsr without attention"' in svg


def test_words_are_escaped():
    arch = arch_of(2, (1,)).model_copy(update={"space": {"backbone": "<script>"}})
    assert "<script>" not in arch_html(arch) and "&lt;script&gt;" in arch_html(arch)
    ET.fromstring(arch_svg(arch))


def test_what_a_notebook_shows(images):
    arch = arch_of(2, (1,)).model_copy(update={"cost": {"MACs": 1234.0}})
    shown = arch._repr_html_()
    assert shown.startswith("<figure><svg") and "1,234 MACs</figcaption>" in shown
    space = acla_nas.search_spaces.edsr(num_blocks=2, num_channels=4, num_keys=2)
    task = acla_nas.tasks.SuperResolution(2)
    sources = {"train": str(images), "validation": str(images)}
    evaluator = acla_nas.training.make_evaluator(
        task, **sources, steps_per_epoch=1, batch_size=2, patch_size=8, progress=False
    )
    result = acla_nas.search(space, TwoStage(epochs=(1, 1), initial_alpha=5.0), evaluator)
    shown = result._repr_html_()
    assert "positions 1, 2 of 2" in shown and "output" in shown and "probability of a module 0.99" in shown
    assert f"2 epochs, validation PSNR {result.history[-1]['val_psnr']:.2f} dB</figcaption>" in shown
    found = acla_nas.search(space, Exhaustive(), lambda network: float(len(network.positions)), show=False)
    assert "quality 2.00, 3 on the front" in found._repr_html_()
