"""The front as a table and as a picture."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from acla_nas.candidate import pareto_front
from acla_nas.errors import AclaError
from acla_nas.report.front import draw_front, front_table
from acla_nas.strategies import Exhaustive
from acla_nas.testing.strategy import table_space, table_value


@pytest.fixture(scope="module")
def candidates():
    return Exhaustive().run(table_space(), lambda n: 30 + table_value(n.positions), show=False).candidates


def test_the_table_has_all_candidates_and_marks_the_front(candidates):
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in front_table(candidates, "MACs").splitlines()
    ]
    assert len(rows) == 2 + len(candidates)
    marked = [row[0] for row in rows[2:] if row[4] == "yes"]
    front = pareto_front(candidates)
    assert marked == [", ".join(map(str, c.arch.positions)) or "none" for c in front]
    assert [float(row[3]) for row in rows[2:]] == sorted(c.cost for c in candidates)
    assert rows[2] == ["none", "1", "30.000", "0", "yes"]


def test_the_picture_is_drawn(candidates, tmp_path):
    path = draw_front(candidates, tmp_path / "new" / "front.png", "MACs")
    image = np.asarray(Image.open(path).convert("RGB")).astype(int)
    blue = (image[..., 2] - image[..., 0] > 80).sum()
    grey = ((np.ptp(image, axis=2) < 5) & (image[..., 0] > 140) & (image[..., 0] < 200)).sum()
    assert image.shape[0] > 400 and blue > 1000 and grey > 1000


def test_one_candidate_is_a_front(candidates, tmp_path):
    assert draw_front(candidates[:1], tmp_path / "front.png", "MACs").exists()
    assert front_table(candidates[:1], "MACs").count("yes") == 1


def test_mistakes_are_named(candidates, tmp_path):
    with pytest.raises(AclaError, match="no candidates"):
        draw_front([], tmp_path / "front.png", "MACs")
    with pytest.raises(AclaError, match="cannot write picture"):
        draw_front(candidates, tmp_path / "front.nothing", "MACs")
