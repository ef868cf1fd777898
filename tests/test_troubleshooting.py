"""The messages that docs/troubleshooting.md explains are messages of this code."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
OF_OTHERS = {  # headings that quote other programs, or name a state without a message
    "No module named 'pkg_resources'",
    "the derived network has no modules, or all of them",
    "The port is in use, or nnictl cannot be reached",
    "A trial fails at once",
}
HEADINGS = re.findall(r"^### (.+)$", (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8"), re.M)


@pytest.fixture(scope="module")
def messages() -> list[str]:
    """All texts in the sources, with … for what is filled in."""
    found = []
    for folder in ("acla_nas", "search_spaces", "strategies"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.JoinedStr):
                    parts = (p.value if isinstance(p, ast.Constant) else "…" for p in node.values)
                    found.append("".join(map(str, parts)))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.append(node.value)
    return found


@pytest.mark.parametrize("heading", sorted(set(HEADINGS) - OF_OTHERS))
def test_the_message_exists(heading: str, messages: list[str]) -> None:
    pieces = [re.escape(piece.strip()) for piece in heading.split("…")]
    pattern = re.compile(".*".join(pieces), re.S)
    assert any(pattern.search(message) for message in messages), heading


def test_headings_are_found() -> None:
    assert len(HEADINGS) > 15
    assert set(HEADINGS) >= OF_OTHERS
