"""The charts of a search and a training."""

from __future__ import annotations

import numpy as np
import pytest

from acla_nas.report import charts


@pytest.fixture
def history():
    return [
        {
            **{
                "epoch": e,
                "val_psnr": 29.0 + e,
                "train_loss": 9.0 / e,
                "cost": 50.0,
                "derived_cost": 10.0 * e,
            },
            **{"probability/01": 0.5 + 0.1 * e, "probability/02": 0.5 - 0.1 * e},
        }
        for e in (1, 2, 3)
    ]


def test_metrics_are_read_as_they_were_written(tmp_path):
    (tmp_path / "metrics.csv").write_text("epoch,open,val_psnr\n1,,30.5\n2,3.0,31\n")
    rows = charts.read_metrics(tmp_path / "metrics.csv")
    assert rows == [{"epoch": 1, "val_psnr": 30.5}, {"epoch": 2, "open": 3.0, "val_psnr": 31}]
    assert charts.read_metrics(tmp_path / "none.csv") == []


def test_entropy(history):
    p = 0.8
    assert charts.entropy(history)[-1] == pytest.approx(-p * np.log2(p) - (1 - p) * np.log2(1 - p))


def test_the_map_has_a_row_per_position_and_a_column_per_epoch(history):
    axes = charts.draw_probabilities(history, warmup=1).axes[0]
    np.testing.assert_allclose(axes.images[0].get_array(), [[0.6, 0.7, 0.8], [0.4, 0.3, 0.2]])
    assert [text.get_text() for text in axes.texts] == ["0.80", "0.20"]
    assert axes.get_ylim()[0] > axes.get_ylim()[1]  # position 1 on top
    assert axes.lines[0].get_xdata()[0] == 1.5


def test_progress_has_what_the_history_has(history):
    labels = [axes.get_ylabel() for axes in charts.draw_progress(history, unit="MACs").axes]
    assert labels == ["PSNR (dB)", "loss", "cost (MACs)", "entropy (bits)"]
    closing = [{"epoch": e, "train_loss": 1.0, "val_psnr": 30.0, "open_keys": 1 - 0.1 * e} for e in (1, 2)]
    figure = charts.draw_progress(closing)
    assert figure.axes[2].get_ylabel() == "open keys (%)" and not figure.axes[3].axison
    np.testing.assert_allclose(figure.axes[2].lines[0].get_ydata(), [90, 80])


def test_the_trajectory_is_that_of_the_derived_network(history):
    axes = charts.draw_trajectory(history, "MACs").axes[0]
    np.testing.assert_allclose(axes.lines[0].get_xydata(), [[10, 30], [20, 31], [30, 32]])
