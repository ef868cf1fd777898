"""The runs behind the commands: what they write, that they repeat, and what they refuse."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from acla_nas import Arch, experiment
from acla_nas.candidate import load_candidates
from acla_nas.config import Config, Named, load_config, parse_config
from acla_nas.data import save_image
from acla_nas.errors import AclaError, AclaWarning
from acla_nas.evaluation import evaluate
from acla_nas.nni_nas import nni
from acla_nas.run_record import load_record
from acla_nas.searcher import SearchResult


def tiny(images: Path, run: Path, **sections: Any) -> Config:
    content: dict[str, Any] = {
        "space": {"name": "edsr", "num_blocks": 2, "num_channels": 4, "num_keys": 2},
        "strategy": {"name": "two_stage", "epochs": [1, 2], "cost_weight": 0.1},
        "data": {"patch_size": 8, "batch_size": 2},
        "search": {"steps_per_epoch": 2},
        "train": {"epochs": 2, "steps_per_epoch": 2},
        "device": "cpu",
        "run": str(run),
    }
    content["data"] |= {split: str(images) for split in ("train", "validation", "test")}
    for name, value in sections.items():
        content[name] = {**content[name], **value} if isinstance(value, dict) and name in content else value
    return parse_config(content, "test")


@pytest.fixture(scope="module")
def searched(images: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, SearchResult]:
    """A search that ends with attention at every position."""
    config = tiny(images, tmp_path_factory.mktemp("searched"), strategy={"initial_alpha": 5.0})
    return config, experiment.run_search(config)


def test_search_writes_its_run_folder(searched: tuple[Config, SearchResult]) -> None:
    config, result = searched
    run = Path(config.run)
    assert load_config(run / "config.yml") == config
    arch = Arch.load(run / "arch.json")
    assert arch == result.arch and arch.positions == (1, 2) and arch.cost == {"MACs": result.cost}
    network = experiment.load_model(run)
    for name, weight in network.state_dict().items():
        torch.testing.assert_close(weight, result.weights[name], rtol=0, atol=0)
    with (run / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    probabilities = {j: float(rows[-1][f"probability/{j:02d}"]) for j in (1, 2)}
    assert probabilities == pytest.approx(result.probabilities) and min(probabilities.values()) > 0.5
    assert float(rows[-1]["derived_cost"]) == result.cost > float(rows[-1]["cost"])
    (command,) = load_record(run)["commands"]
    assert command["end"] == "finished"
    log = [line.partition("  ")[2] for line in (run / "log.txt").read_text().splitlines()]
    assert log[0] == "searching 2 positions of edsr on cpu"
    assert log[1].startswith("memory: about ")
    assert [line.partition("  ")[0] for line in log[2:]] == ["epoch 1/3", "epoch 2/3", "epoch 3/3"]
    assert json.loads((run / "summary.json").read_text()) == {
        "positions": [1, 2],
        "num_positions": 2,
        "cost": arch.cost,
        "parameters": sum(p.numel() for p in network.parameters()),
        "val_psnr": float(rows[-1]["val_psnr"]),
        "strategy": config.strategy.model_dump(),
    }


def test_summary_is_of_the_network_that_is_saved(searched: tuple[Config, SearchResult], images: Path) -> None:
    """The last epoch's PSNR is that of the derived network, with the supernet's weights."""
    config, result = searched
    (_, baseline), (name, scores) = experiment.run_evaluation(
        config.model_copy(update={"models": [config.run]})
    )
    assert name == config.run
    assert scores.psnr == pytest.approx(result.history[-1]["val_psnr"], abs=1e-3)
    assert [row.name for row in baseline.rows] == ["a", "b", "c"] and baseline.psnr != scores.psnr


def test_same_seed_same_result(searched: tuple[Config, SearchResult], tmp_path: Path) -> None:
    """The initial weights included, whatever ran before in this process."""
    config, result = searched
    again = experiment.run_search(config.model_copy(update={"run": str(tmp_path / "again")}))
    other = experiment.run_search(config.model_copy(update={"run": str(tmp_path / "other"), "seed": 1}))
    assert again.probabilities == result.probabilities
    name = "backbone.head.weight"
    torch.testing.assert_close(again.weights[name], result.weights[name], rtol=0, atol=0)
    assert not torch.equal(other.weights[name], result.weights[name])


def test_final_result_goes_to_nni_in_a_trial_and_only_there(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[float] = []
    monkeypatch.setattr(nni, "report_final_result", told.append)
    monkeypatch.setattr(nni, "report_intermediate_result", lambda _: None)
    monkeypatch.setattr(nni, "get_current_parameter", lambda: None)
    config = tiny(images, tmp_path, strategy={"epochs": [0, 1]})
    experiment.run_search(config)
    assert told == []
    monkeypatch.setattr(nni, "get_current_parameter", lambda: {"strategy.cost_weight": 0.1})
    result = experiment.run_search(config)
    assert told == [result.history[-1]["val_psnr"]]


def test_training_of_the_bare_backbone(images: Path, tmp_path: Path) -> None:
    config = tiny(images, tmp_path)
    scores = experiment.run_training(config)
    arch = Arch.load(tmp_path / "arch.json")
    assert arch.positions == () and arch.space["options"]["scale"] == 2
    assert not any("attention" in name for name in load_file(tmp_path / "weights.safetensors"))
    (_, again) = list(experiment.run_evaluation(config.model_copy(update={"models": [str(tmp_path)]})))[1]
    assert again == scores
    assert load_config(tmp_path / "config.yml") == config
    experiment.run_training(config)  # into the same folder: the same command may be repeated


def test_training_starts_an_architecture_afresh(
    searched: tuple[Config, SearchResult], images: Path, tmp_path: Path
) -> None:
    searched_config, result = searched
    arch = str(Path(searched_config.run, "arch.json"))
    slow = {"learning_rate": 1e-12}  # so that the weights stay what they are initialised to
    experiment.run_training(tiny(images, tmp_path / "a", arch=arch, train=slow))
    experiment.run_training(tiny(images, tmp_path / "b", arch=arch, train=slow, seed=1))
    state, other = (load_file(tmp_path / run / "weights.safetensors") for run in "ab")
    assert set(state) == set(result.weights)
    assert Arch.load(tmp_path / "a" / "arch.json") == result.arch
    for different in (other, result.weights):
        assert not torch.allclose(state["backbone.head.weight"], different["backbone.head.weight"], atol=1e-4)


def test_training_refuses_a_search_folder_before_it_writes(searched: tuple[Config, SearchResult]) -> None:
    config, _ = searched
    before = {path: path.read_bytes() for path in Path(config.run).iterdir() if path.is_file()}
    with pytest.raises(AclaError, match="holds a search, which a training would overwrite; set run=DIR"):
        experiment.run_training(config)
    assert before == {path: path.read_bytes() for path in before}


def test_space_takes_its_scale_from_the_task(images: Path, tmp_path: Path) -> None:
    config = tiny(images, tmp_path, task={"name": "super_resolution", "scale": 3})
    assert experiment.make_space(config).source["options"]["scale"] == 3
    same = tiny(images, tmp_path, space={"scale": 2})
    assert experiment.make_space(same).source["options"]["scale"] == 2
    with pytest.raises(AclaError, match=r"space\.scale is 4, but task\.scale is 2"):
        experiment.make_space(tiny(images, tmp_path, space={"scale": 4}))


def test_attention_options_reach_the_modules(images: Path, tmp_path: Path) -> None:
    options = {"gate_bias": 2, "shared_mask": "yes", "num_keys": [2, 4], "input_shape": [3, 16, 16]}
    space = experiment.make_space(tiny(images, tmp_path, space=options))
    module: Any = space.network.attention["2"]
    assert (module.gate_bias, module.shared_mask, module.num_keys) == (2.0, True, 4)
    assert (space.key_gate.num_keys, space.input_shape) == ((2, 4), (3, 16, 16))
    with pytest.raises(AclaError, match="space: num_keys must be at least 1, or several different"):
        experiment.make_space(tiny(images, tmp_path, space={"num_keys": [2, 2]}))


@pytest.mark.parametrize(
    ("asked", "there", "chosen"),
    [("auto", True, "cuda"), ("auto", False, "cpu"), ("cpu", True, "cpu"), ("cuda", True, "cuda")],
)
def test_device(monkeypatch: pytest.MonkeyPatch, asked: str, there: bool, chosen: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    assert experiment.choose_device(parse_config({"device": asked}, "test")) == chosen


def test_network_of_another_size_than_the_task(images: Path, tmp_path: Path) -> None:
    task = experiment.make_task(tiny(images, tmp_path))
    network = nn.Upsample(scale_factor=3)
    network.train()
    with pytest.raises(AclaError, match=r"the network mine turns 24x24 pixels into \(72, 72\)"):
        experiment.check_scale(network, task, "mine")
    experiment.check_scale(nn.Upsample(scale_factor=2), task, "mine")
    assert network.training


def test_models_are_loaded_before_anything_is_scored(images: Path, tmp_path: Path) -> None:
    with pytest.raises(AclaError, match=r"has no arch\.json"):
        next(experiment.run_evaluation(tiny(images, tmp_path, models=[str(tmp_path)])))


def test_a_multi_trial_search_writes_its_front(images: Path, tmp_path: Path) -> None:
    strategy = {"name": "nsga2", "trials": 3, "population": 2, "cost": "params"}
    config = tiny(images, tmp_path / "run").model_copy(update={"strategy": Named(**strategy)})
    result = experiment.run_search(config)
    run = Path(config.run)
    assert load_candidates(run / "candidates.json") == list(result.candidates) and len(result.candidates) == 3
    assert (run / "front.md").read_text().count("\n") == 5 and (run / "front.png").stat().st_size > 1000
    assert not (run / "supernet.safetensors").exists()
    summary = json.loads((run / "summary.json").read_text())
    assert summary["val_psnr"] == max(c.quality for c in result.candidates)
    network = experiment.load_model(run)
    scored = evaluate(network, experiment.make_task(config), experiment.validation_images(config))
    assert scored.psnr == pytest.approx(summary["val_psnr"], abs=1e-3)


def test_candidates_inherit_a_supernets_weights(
    searched: tuple[Config, SearchResult], images: Path, tmp_path: Path
) -> None:
    supernet, result = searched
    strategy = Named(name="exhaustive", cost="params")
    config = tiny(images, tmp_path / "run", scoring={"weights": supernet.run})
    found = experiment.run_search(config.model_copy(update={"strategy": strategy}))
    assert len(found.candidates) == 4
    whole = next(c for c in found.candidates if c.arch.positions == result.arch.positions)
    assert whole.quality == pytest.approx(result.history[-1]["val_psnr"], abs=1e-3)


def test_a_budget_holds_and_the_summary_is_of_what_is_within(images: Path, tmp_path: Path) -> None:
    options = {"initial_alpha": 5.0, "cost": "params"}
    config = tiny(images, tmp_path / "run", strategy=options).model_copy(update={"budget": "params<=100"})
    result = experiment.run_search(config)
    assert len(result.arch.positions) == 1 and result.cost <= 100
    network = experiment.load_model(config.run)
    scored = evaluate(network, experiment.make_task(config), experiment.validation_images(config))
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["val_psnr"] == pytest.approx(scored.psnr, abs=1e-3)


def test_validation_images_that_cannot_be_read_are_left_out_with_a_budget_too(
    images: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "validation"
    shutil.copytree(images, folder)
    (folder / "damaged.png").write_bytes(b"no image")
    config = tiny(images, tmp_path / "run", data={"validation": str(folder)})
    with pytest.warns(AclaWarning, match="damaged"):
        experiment.run_search(config.model_copy(update={"budget": "params<=100"}))
    assert (tmp_path / "run" / "summary.json").exists()


def test_test_images_are_looked_at_before_a_training_and_may_change_in_it(
    images: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    small = tmp_path / "small"
    save_image(np.zeros((5, 5, 3), np.uint8), small / "dot.png")
    with pytest.raises(AclaError, match=r"image .*dot\.png: "):
        experiment.run_training(tiny(images, tmp_path / "run", data={"test": str(small)}))
    assert not (tmp_path / "run" / "config.yml").exists()

    config = tiny(images, tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(experiment, "evaluate", lambda model, *_, **__: None if model is None else 1 / 0)
        with pytest.raises(ZeroDivisionError):
            experiment.run_training(config)
    monkeypatch.setattr("acla_nas.training.evaluator.RestorationModule.training_step", lambda *_: 1 / 0)
    others = tmp_path / "others"
    shutil.copytree(images, others)
    experiment.run_training(tiny(images, tmp_path / "run", data={"test": str(others)}))


def test_a_time_limit_leaves_what_a_search_goes_on_with(
    searched: tuple[Config, SearchResult], images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, expected = searched
    config = tiny(images, tmp_path / "run", strategy={"initial_alpha": 5.0})
    with pytest.raises(AclaError, match="has run no epoch within time_limit=1e-09: give it more"):
        experiment.run_search(config.model_copy(update={"time_limit": 1e-9}))
    for epoch in (1, 2):
        part = experiment.run_search(config.model_copy(update={"time_limit": 2e-4}))  # 12 ms
        assert not part.is_complete and len(part.history) == epoch
        said = f"time_limit ended the search after epoch {epoch} of 3: the same search in the same folder"
        assert said in capsys.readouterr().out
    assert (tmp_path / "run" / "search.ckpt").exists()
    result = experiment.run_search(config)
    assert result.is_complete and result.probabilities == expected.probabilities
    assert not (tmp_path / "run" / "search.ckpt").exists()


@pytest.mark.parametrize("epoch", [1, 2])
def test_a_search_that_was_stopped_goes_on(
    epoch: int, searched: tuple[Config, SearchResult], images: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    _, expected = searched
    config = tiny(images, tmp_path / "run", strategy={"initial_alpha": 5.0})

    def stop(self: Any, trainer: Any, module: Any) -> None:
        if trainer.current_epoch == epoch:
            raise RuntimeError("stopped")

    with monkeypatch.context() as patch:
        patch.setattr("acla_nas.training.evaluator._NextPatches.on_train_epoch_end", stop, raising=False)
        with pytest.raises(RuntimeError, match="stopped"):
            experiment.run_search(config)
    assert (tmp_path / "run" / "search.ckpt").exists()
    with pytest.raises(AclaError, match="holds a search with another strategy: set run=DIR, or remove"):
        experiment.run_search(tiny(images, tmp_path / "run"))
    result = experiment.run_search(config)
    assert result.probabilities == expected.probabilities
    assert all(torch.equal(result.weights[name], w) for name, w in expected.weights.items())
    assert [row["epoch"] for row in result.history] == [1, 2, 3]
    assert not (tmp_path / "run" / "search.ckpt").exists()
