"""The command line: what it prints, how fast it helps, and one line for every mistake."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from acla_nas import Arch, export, search_spaces
from acla_nas.cli import cli
from acla_nas.config import load_config
from acla_nas.data import save_image
from acla_nas.exporter import save_model
from acla_nas.formats import FORMATS
from acla_nas.nni_nas import nni

ROOT = Path(__file__).resolve().parents[2]
CONFIG = str(ROOT / "examples" / "sr_edsr_search.yml")
TINY = [
    *("space.num_blocks=2", "space.num_channels=4", "space.num_keys=2", "strategy.epochs=[1,1]"),
    *("data.patch_size=8", "data.batch_size=2", "search.steps_per_epoch=1", "device=cpu"),
    *("train.epochs=1", "train.steps_per_epoch=1"),
]
Run = Callable[..., tuple[int, str, str]]


def command(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    """Run the installed command in a process of its own."""
    program = shutil.which("acla-nas", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert program, "acla-nas is not installed"
    return subprocess.run([program, *arguments], capture_output=True, text=True, **options)  # type: ignore[call-overload]


@pytest.fixture
def fails(run: Run) -> Callable[..., str]:
    """Run the command, which must end in one line on stderr and exit code 2; return what the line says."""

    def call(*arguments: str) -> str:
        code, _, err = run(*arguments)
        assert code == 2, err
        assert err.startswith("acla-nas: error: ") and err.endswith("\n") and err.count("\n") == 1, err
        return err.removeprefix("acla-nas: error: ").rstrip()

    return call


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A run folder with an untrained network."""
    space = search_spaces.edsr(num_blocks=2, num_channels=4, num_keys=2)
    arch = space.arch({"insert/1": True, "insert/2": False, "keys": 2})
    save_model(arch, export(arch).state_dict(), tmp_path / "model")
    return tmp_path / "model"


def with_broken_image(images: Path, folder: Path) -> Path:
    shutil.copytree(images, folder)
    (folder / "broken.png").write_text("not an image", encoding="utf-8")
    return folder


def with_images_of(size: int, folder: Path) -> Path:
    save_image(np.zeros((size, size, 3), dtype=np.uint8), folder / "small.png")
    return folder


# What it prints


HELP = """
import sys
from acla_nas.cli import cli

def show(command, *path):
    for name, part in getattr(command, "commands", {}).items():
        show(part, *path, name)
    cli([*path, "--help"], standalone_mode=False)

show(cli)
assert not {"torch", "nni", "pytorch_lightning", "numpy", "numba", "pydantic"} & set(sys.modules)
"""


def test_help_of_no_command_imports_what_takes_long() -> None:
    assert "search" in command("--help", check=True).stdout
    shown = subprocess.run([sys.executable, "-c", HELP], check=True, capture_output=True, text=True).stdout
    assert shown.count("Usage: ") > 12


@pytest.mark.parametrize("name", ["search", "train", "eval", "export"])
def test_help_of_each_command_shows_an_example(run: Run, name: str) -> None:
    code, out, err = run(name, "--help")
    assert code == 0 and not err
    assert f"acla-nas {name} examples/" in out


def test_usage_errors(run: Run) -> None:
    code, _, err = run("search")
    assert code == 2 and "Missing argument 'CONFIG'" in err
    code, _, err = run("serach")
    assert code == 2 and "No such command 'serach'" in err


EPOCH = r"epoch \d+/\d+  PSNR \d+\.\d\d dB  loss [\d.]+"
MEMORY = (
    r"memory: about [\d.]+ [GMk]B for a training step, [\d.]+ GB free: fits; "
    r"about [\d.e-]+ s a step, at least [\d.]+ (?:s|min|h|days) in all"
)
SEARCH_EPOCH = EPOCH + r"  open gates \d  expected cost [\d.e+]+  \d+ s"
TABLE = [r"image +PSNR \(dB\) +SSIM", r"[abc] +\d+\.\d\d  0\.\d{4}", r"mean +\d+\.\d\d  0\.\d{4}"]


def assert_lines(text: str, patterns: list[str]) -> None:
    for line in text.splitlines():
        assert any(re.fullmatch(pattern, line) for pattern in patterns), f"unexpected line: {line!r}"


def test_search_prints_its_own_lines_and_nothing_else(tmp_path: Path) -> None:
    """On the embedded images, in a process of its own: what libraries print comes at import, or once."""
    folder = tmp_path / "run"
    result = command("search", CONFIG, *TINY, f"run={folder}")
    assert (result.returncode, result.stderr) == (0, "")
    assert_lines(
        result.stdout,
        [
            "searching 2 positions of edsr on cpu",
            MEMORY,
            SEARCH_EPOCH,
            r"positions: (none|[12, ]+) of 2",
            r"cost: [\d,]+ MACs",
            f"architecture: {folder}/arch.json",
            f"weights: {folder}/weights.safetensors",
        ],
    )
    assert len(result.stdout.splitlines()) == 8


def test_train_prints_its_own_lines_and_nothing_else(images: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    data = [f"data.{split}={images}" for split in ("train", "validation", "test")]
    result = command("train", CONFIG, *TINY, *data, f"run={folder}", "data.workers=1")
    assert (result.returncode, result.stderr) == (0, "")
    head = r"training [\d,]+ parameters, attention at positions: none, on cpu"
    assert_lines(result.stdout, [head, EPOCH + r"  \d+ s", *TABLE, f"weights: {folder}/weights.safetensors"])
    assert len(result.stdout.splitlines()) == 8


def test_eval_prints_the_baseline_then_each_model(images: Path, model: Path, run: Run) -> None:
    code, out, err = run("eval", CONFIG, f"data.test={images}", f"models=[{model}]", "device=cpu")
    assert (code, err) == (0, "")
    assert_lines(out, ["bicubic", str(model), "", *TABLE, r"open keys [\d.]+ %"])
    assert out.index("bicubic") < out.index(str(model))


def test_export_says_where_and_writes_there(model: Path, run: Run) -> None:
    code, out, err = run("export", CONFIG, f"models=[{model}]", "--format", "pt2", "--format", "python")
    assert (code, err) == (0, "")
    folder = model / "export"
    assert_lines(
        out,
        [
            rf"{name} +{folder}/model\.{end}  within \d\.\de[-+]\d+ of the network"
            for name, end in (("pt2", "pt2"), ("python", "py"))
        ],
    )
    assert len(out.splitlines()) == 2
    image = torch.rand(1, 3, 9, 12)
    loaded = torch.export.load(folder / "model.pt2").module()
    expected = export(model / "arch.json", weights=model / "weights.safetensors").eval()
    torch.testing.assert_close(loaded(image), expected(image))


def test_export_offers_the_formats_that_there_are() -> None:
    [option] = [p for p in cli.commands["export"].params if p.name == "formats"]
    assert set(option.type.choices) == set(FORMATS)  # type: ignore[attr-defined]


def test_export_as_json(model: Path, run: Run) -> None:
    code, out, err = run("export", CONFIG, f"models=[{model}]", "--format", "safetensors", "--json")
    assert (code, err) == (0, "")
    file = {"path": f"{model}/export/model.safetensors", "difference": 0.0, "undecided": 0.0}
    assert json.loads(out) == [{"model": str(model), "files": {"safetensors": file}}]
    descriptor = json.loads((model / "export" / "descriptor.json").read_text())
    assert descriptor["task"] == {"name": "super_resolution", "scale": 2}
    assert (descriptor["scale"], descriptor["in_channels"], descriptor["multiple_of"]) == (2, 3, 1)


def test_warning_is_one_line(images: Path, tmp_path: Path, run: Run) -> None:
    folder = with_broken_image(images, tmp_path / "broken")
    options = [f"data.train={folder}", f"data.validation={folder}", f"data.test={images}"]
    code, out, err = run("train", CONFIG, *TINY, *options, f"run={tmp_path / 'run'}")
    assert code == 0 and "PSNR" in out
    line = (
        f"acla-nas: warning: image skipped: cannot read image {folder}/broken.png: "
        "not an image, or of an unknown format; remove or replace it\n"
    )
    assert err == 2 * line  # once among the training images, once among those for validation


def test_libraries_warnings_are_shown_to_those_who_ask(tmp_path: Path) -> None:
    code = (
        "import sys, warnings; from acla_nas.cli import cli, main; sys.argv = ['acla-nas', 'noisy']\n"
        "cli.command('noisy')(lambda: warnings.warn('from a library'))\nmain()"
    )
    for flags, expected in (([], ""), (["-W", "default"], "acla-nas: warning: from a library\n")):
        result = subprocess.run([sys.executable, *flags, "-c", code], capture_output=True, text=True)
        assert result.stderr == expected


def test_interrupt_says_what_is_kept_and_how_to_go_on(images: Path, tmp_path: Path) -> None:
    program = shutil.which("acla-nas", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert program
    data = [f"data.{split}={images}" for split in ("train", "validation", "test")]
    arguments = ["search", CONFIG, *TINY, *data, "strategy.epochs=[9999,1]", f"run={tmp_path}"]
    log = tmp_path / "out"
    with log.open("w") as out:
        process = subprocess.Popen([program, *arguments], stdout=out, stderr=subprocess.PIPE, text=True)
        try:
            deadline = time.monotonic() + 120
            while "epoch 2/" not in log.read_text() and time.monotonic() < deadline:
                assert process.poll() is None
                time.sleep(0.1)
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130
    first, second, third = err.splitlines()
    assert first == "acla-nas: stopping after this step; once more to stop at once"
    assert re.fullmatch(
        r"acla-nas: stopped after (epoch \d+|step \d+ of epoch \d+, which begins anew)", second
    )
    assert third == f"acla-nas: to go on: acla-nas {shlex.join(arguments)}"
    assert_lines(log.read_text(), ["searching 2 positions of edsr on cpu", MEMORY, SEARCH_EPOCH])
    assert (tmp_path / "metrics.csv").read_text().startswith("epoch,")


def in_trial(monkeypatch: pytest.MonkeyPatch, parameters: dict[str, object]) -> None:
    """Make this process look like a trial of an NNI experiment."""
    monkeypatch.setenv("NNI_PLATFORM", "local")
    monkeypatch.setattr(nni, "get_next_parameter", lambda: parameters)
    monkeypatch.setattr(nni, "get_current_parameter", lambda: parameters)
    monkeypatch.setattr(nni, "get_experiment_id", lambda: "abc")
    monkeypatch.setattr(nni, "get_sequence_id", lambda: 3)


def test_trial_takes_its_parameters_and_reports(
    run: Run, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[float] = []
    final: list[float] = []
    in_trial(monkeypatch, {"strategy.cost_weight": 1e-05, "seed": 7})
    monkeypatch.setattr(nni, "report_intermediate_result", told.append)
    monkeypatch.setattr(nni, "report_final_result", final.append)
    data = [f"data.{split}={images}" for split in ("train", "validation", "test")]
    code, out, err = run("search", CONFIG, *TINY, *data, f"run={tmp_path}", "seed=1")
    assert (code, err) == (0, "")
    folder = tmp_path / "abc" / "trial_3"  # trials must not write over one another
    assert f"architecture: {folder}/arch.json\n" in out and (folder / "weights.safetensors").exists()
    config = load_config(folder / "config.yml")
    assert config.seed == 7 and float(config.strategy.options["cost_weight"]) == 1e-05
    assert len(told) == 2 and final == told[-1:]


def test_trial_with_a_parameter_that_is_no_key(
    fails: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    in_trial(monkeypatch, {"strategy.cost_wieght": 0.1})
    assert "did you mean 'strategy.cost_weight'?" in fails("search", CONFIG, *TINY)


def test_trial_trains_the_architecture_that_its_parameters_make(
    run: Run, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[float] = []
    final: list[float] = []
    in_trial(monkeypatch, {"insert/2": 1, "insert/1": 0, "train.learning_rate": 0.002})
    monkeypatch.setattr(nni, "report_intermediate_result", told.append)
    monkeypatch.setattr(nni, "report_final_result", final.append)
    data = [f"data.{split}={images}" for split in ("train", "validation", "test")]
    code, out, err = run("train", CONFIG, *TINY, *data, f"run={tmp_path}")
    assert (code, err) == (0, "")
    folder = tmp_path / "abc" / "trial_3"
    assert f"weights: {folder}/weights.safetensors\n" in out
    assert Arch.load(folder / "arch.json").positions == (2,)
    assert load_config(folder / "config.yml").train.learning_rate == 0.002
    assert len(told) == 1 and final == told


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"insert/9": 1}, "insert/9"),
        ({"insert/1": 2}, "insert/1 is 2 in the sample; it must be one of [False, True]"),
        ({"keys": 5}, "keys is 5 in the sample"),
    ],
)
def test_trial_with_a_decision_that_the_space_has_not(
    parameters: dict[str, object], message: str, fails: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    in_trial(monkeypatch, parameters)
    assert message in fails("train", CONFIG, *TINY)


# What a user can get wrong


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_missing_and_empty_data_folders(
    fails: Callable[..., str], images: Path, tmp_path: Path, split: str
) -> None:
    (tmp_path / "empty").mkdir()
    for folder, text in (("missing", "does not exist"), ("empty", "holds no images")):
        message = fails("train", CONFIG, *TINY, f"data.{split}={tmp_path / folder}", f"run={tmp_path}/run")
        assert message.startswith(f"image folder {tmp_path / folder} {text}")
        assert f"data.{split}=DIR" in message


def test_unreadable_image_is_an_error_where_it_is_scored(
    fails: Callable[..., str], images: Path, tmp_path: Path
) -> None:
    folder = with_broken_image(images, tmp_path / "broken")
    for name in ("eval", "train"):  # train: before it trains
        message = fails(name, CONFIG, *TINY, f"data.test={folder}", f"run={tmp_path}/run")
        assert message.startswith(f"cannot read image {folder}/broken.png: not an image")
        assert message.endswith("; remove or replace it")
    assert not (tmp_path / "run").exists()


def test_image_smaller_than_the_patch(fails: Callable[..., str], tmp_path: Path) -> None:
    folder = with_images_of(20, tmp_path / "small")
    message = fails(
        "search", CONFIG, *TINY, "data.patch_size=16", f"data.train={folder}", f"run={tmp_path}/run"
    )
    assert "small.png is 20x20 pixels, smaller than a patch of 16 at scale 2 (32x32)" in message
    assert "set data.patch_size=10" in message


@pytest.mark.parametrize(
    ("override", "text"),
    [
        ("dta=1", "unknown key 'dta'; did you mean 'data'?"),
        ("data.trian=x", "unknown key 'data.trian'; did you mean 'data.train'?"),
        ("task.sclae=2", "unknown key 'task.sclae'; did you mean 'task.scale'?"),
        ("space.num_blcks=2", "unknown key 'space.num_blcks'; did you mean 'space.num_blocks'?"),
        ("space.attentoin=cla", "unknown key 'space.attentoin'; did you mean 'space.attention'?"),
        ("space.sofmax=joint", "unknown key 'space.sofmax'; did you mean 'space.softmax'?"),
        (
            "strategy.cost_wieght=1",
            "unknown key 'strategy.cost_wieght'; did you mean 'strategy.cost_weight'?",
        ),
        ("task.name=super_resolutoin", "unknown task 'super_resolutoin'; did you mean 'super_resolution'?"),
        ("space.name=esdr", "unknown search space 'esdr'; did you mean 'edsr'?"),
        ("space.attention=alca", "unknown attention 'alca'; did you mean 'acla'?"),
        ("strategy.name=twostage", "unknown strategy 'twostage'; did you mean 'two_stage'?"),
        ("strategy.cost=mac", "unknown cost model 'mac'; did you mean 'macs'?"),
        ("task.scale=5", "task: scale 5 is not supported: use 2, 3 or 4"),
        ("space.scale=5", "space.scale is 5, but task.scale is 2: leave space.scale out"),
        ("strategy.cost_weight=-1", "strategy: cost_weight must be 0 or more, not -1.0"),
        ("strategy.cost_weight=abc", "strategy.cost_weight must be a valid number, not 'abc'"),
        ("strategy.cost_weight=.nan", "strategy.cost_weight must be a finite number, not nan"),
        ("strategy.epochs=[0,0]", "strategy: epochs must be (stage 1 >= 0, stage 2 >= 1), not (0, 0)"),
        ("data.train", "override 'data.train' must be KEY=VALUE, such as data.train=DIR"),
        ("run=/dev/null/run", "cannot write into run folder /dev/null/run: Not a directory; set run=DIR"),
        ("device=gpu", "device must be 'auto', 'cpu' or 'cuda', not 'gpu'"),
    ],
)
def test_wrong_override(fails: Callable[..., str], tmp_path: Path, override: str, text: str) -> None:
    assert text in fails("search", CONFIG, *TINY, f"run={tmp_path}/run", override)
    assert not (tmp_path / "run").exists()


def test_option_of_acla_that_cla_does_not_have(fails: Callable[..., str]) -> None:
    message = fails("search", CONFIG, *TINY, "space.attention=cla", "space.gate_bias=1")
    assert "unknown key 'space.gate_bias'" in message and "space.softmax" in message


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (None, "No such file or directory; give a YAML file"),
        ("a: [", "is not plain YAML"),
        ("- a\n- b\n", "is a list, not a mapping"),
        ("run: !!python/object:os.system {}", "is not plain YAML"),
    ],
)
def test_wrong_config_file(fails: Callable[..., str], tmp_path: Path, content: str | None, text: str) -> None:
    path = tmp_path / "config.yml"
    if content is not None:
        path.write_text(content, encoding="utf-8")
    message = fails("search", str(path))
    assert text in message and str(path) in message


def test_folder_that_cannot_be_written(fails: Callable[..., str], tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root writes everywhere")
    tmp_path.chmod(0o500)
    assert "Permission denied; set run=DIR" in fails("search", CONFIG, *TINY, f"run={tmp_path}/run")


def test_gpu_that_is_not_there(fails: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert fails("search", CONFIG, *TINY, "device=cuda").startswith("device=cuda, but PyTorch sees no GPU")


def test_models_that_are_none(fails: Callable[..., str], model: Path, tmp_path: Path) -> None:
    remedy = "give the run folder of a search or a training"
    assert fails("eval", CONFIG, f"models=[{tmp_path}]") == f"model {tmp_path} has no arch.json; {remedy}"
    (model / "weights.safetensors").unlink()
    assert f"model {model} has no weights.safetensors; {remedy}" in fails("eval", CONFIG, f"models=[{model}]")
    assert fails("export", CONFIG) == "nothing to export: give models=[RUN_FOLDER]"


def test_arch_of_another_format_version(fails: Callable[..., str], model: Path, tmp_path: Path) -> None:
    content = json.loads((model / "arch.json").read_text())
    (model / "arch.json").write_text(json.dumps({**content, "format_version": 99}))
    for arguments in (["eval", f"models=[{model}]"], ["train", f"arch={model}/arch.json"]):
        message = fails(arguments[0], CONFIG, *TINY, *arguments[1:], f"run={tmp_path}/run")
        assert f"{model}/arch.json has format version 99" in message
        assert "use the acla_nas that wrote it, or search again" in message


def test_arch_that_is_not_there(fails: Callable[..., str], tmp_path: Path) -> None:
    message = fails("train", CONFIG, *TINY, f"arch={tmp_path}/arch.json", f"run={tmp_path}/run")
    assert "No such file or directory; give the arch.json of a search" in message


def test_weights_of_another_shape(fails: Callable[..., str], model: Path, tmp_path: Path) -> None:
    wider = search_spaces.edsr(num_blocks=2, num_channels=6, num_keys=2)
    arch = wider.arch({"insert/1": True, "insert/2": False, "keys": 2})
    save_model(arch, export(arch).state_dict(), tmp_path / "wider")
    shutil.copy(tmp_path / "wider" / "weights.safetensors", model)
    message = fails("eval", CONFIG, f"models=[{model}]")
    assert message.startswith(
        f"{model}/weights.safetensors: weight 'backbone.head.weight' has shape (6, 3, 3, 3)"
    )
    assert "needs (4, 3, 3, 3): the weights are of another architecture" in message
    (model / "weights.safetensors").write_bytes(b"no tensors")
    assert f"cannot read weights {model}/weights.safetensors" in fails("eval", CONFIG, f"models=[{model}]")


def test_network_of_another_scale(fails: Callable[..., str], model: Path) -> None:
    message = fails("eval", CONFIG, "task.scale=3", f"models=[{model}]")
    assert "the task has scale 3: set task.scale to the network's" in message


def test_training_does_not_overwrite_a_search(fails: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text("{}")
    message = fails("train", CONFIG, *TINY, f"run={tmp_path}")
    assert message == f"run folder {tmp_path} holds a search, which a training would overwrite; set run=DIR"


def test_names_with_line_breaks_stay_one_line(fails: Callable[..., str]) -> None:
    assert "image folder no such" in fails("eval", CONFIG, 'data.test="no\\nsuch"')
