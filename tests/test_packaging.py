"""A wheel, installed elsewhere, holds the whole package and drops nothing else into site-packages."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROBE = """
import acla_nas, acla_nas.search_spaces, acla_nas.strategies, acla_nas.cli
for module in (acla_nas, acla_nas.search_spaces, acla_nas.strategies, acla_nas.cli):
    print(module.__file__)
print(acla_nas.search_spaces.edsr(num_blocks=1, num_channels=4).positions)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    files = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True)
    for name in files.stdout.decode().split("\n"):
        if name and (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    build = [sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", str(folder), str(source)]
    subprocess.run(build, check=True, capture_output=True)
    return next(folder.glob("*.whl"))


def test_contents(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"acla_nas"}
    assert {"acla_nas/py.typed", "acla_nas/strategies/two_stage.py"} <= set(names)
    assert {f"acla_nas/report/templates/page.{kind}" for kind in ("html", "css", "js")} <= set(names)
    in_tree = {p.relative_to(ROOT).as_posix() for p in (ROOT / "acla_nas").rglob("*.py")}
    assert in_tree <= set(names)


def test_imports_from_elsewhere(wheel, tmp_path):
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(tmp_path)]
    subprocess.run([*install, str(wheel)], check=True, capture_output=True)
    run = subprocess.run(
        [sys.executable, "-P", "-c", PROBE] if sys.version_info >= (3, 11) else [sys.executable, "-c", PROBE],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    *files, positions = run.stdout.splitlines()
    assert all(file.startswith(str(tmp_path)) for file in files), files
    assert positions == "('body.0',)"
