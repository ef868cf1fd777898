"""The Python in README.md and docs/ runs, and the commands in it name files that exist."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted([ROOT / "README.md", *(ROOT / "docs").glob("**/*.md")])


def blocks(document: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", document.read_text(encoding="utf-8"), re.M | re.S)


@pytest.mark.usefixtures("unchanged_registries")
@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda d: d.name)
def test_python_runs(document, tmp_path, monkeypatch):
    if sys.version_info < (3, 11) and "import resselt" in document.read_text(encoding="utf-8"):
        pytest.skip("resselt cannot be imported on Python 3.10")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    modules = set(sys.modules)
    names: dict[str, object] = {"__name__": "document"}
    for code in blocks(document, "python"):
        exec(compile(code, str(document), "exec"), names)
    for name in set(sys.modules) - modules:  # of files that the document wrote
        if not Path(getattr(sys.modules[name], "__file__", None) or "/").is_absolute():
            del sys.modules[name]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda d: d.name)
def test_named_files_exist(document):
    text = document.read_text(encoding="utf-8")
    linked = [t for t in re.findall(r"\]\(([^)#]+)[^)]*\)", text) if "://" not in t]
    typed = [w for c in blocks(document, "console") for w in re.findall(r"examples/\S+\.(?:yml|py)", c)]
    assert all((document.parent / path).exists() for path in linked), linked
    assert all((ROOT / path).exists() for path in typed), typed


def test_readme_has_its_parts():
    assert (ROOT / "README.md") in DOCUMENTS
    assert len(blocks(ROOT / "README.md", "python")) >= 2
    assert "make demo" in (ROOT / "README.md").read_text(encoding="utf-8")
