"""RunFolder: what a run folder holds, read once, whatever kind of run it is of."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from acla_nas.arch import Arch
from acla_nas.candidate import Candidate, load_candidates
from acla_nas.config import Config, load_config
from acla_nas.errors import AclaError
from acla_nas.report.charts import read_metrics
from acla_nas.run_record import load_record


@dataclass(frozen=True)
class RunFolder:
    """The files of a run, as far as it has come.

    Attributes:
        path: of the folder.
        config: config.yml.
        record: run.json.
        arch: arch.json.
        history: metrics.csv, a row per epoch.
        summary: summary.json of a search.
        scores: scores.json of a training.
        candidates: of a multi-trial search.
        table: table.md of a comparison.
    """

    path: Path
    config: Config
    record: dict[str, Any]
    arch: Arch | None
    history: list[dict[str, float]]
    summary: dict[str, Any]
    scores: dict[str, Any]
    candidates: list[Candidate]
    table: str

    @classmethod
    def read(cls, path: str | Path) -> RunFolder:
        """Read a folder.

        Raises:
            AclaError: it is no run folder, or a file in it is damaged.
        """
        path = Path(path)
        if not (path / "config.yml").is_file():
            raise AclaError(
                f"{path} has no config.yml; give the run folder of a search, a training or a comparison"
            )
        return cls(
            path=path,
            config=load_config(path / "config.yml"),
            record=load_record(path),
            arch=Arch.load(path / "arch.json") if (path / "arch.json").exists() else None,
            history=read_metrics(path / "metrics.csv"),
            summary=_read_json(path / "summary.json"),
            scores=_read_json(path / "scores.json"),
            candidates=load_candidates(path / "candidates.json")
            if (path / "candidates.json").exists()
            else [],
            table=(path / "table.md").read_text(encoding="utf-8") if (path / "table.md").exists() else "",
        )

    @property
    def is_search(self) -> bool:
        """Is it of a search?"""
        return bool(self.candidates) or any("cost" in row for row in self.history)

    @property
    def has_network(self) -> bool:
        """Are there an architecture and its weights?"""
        return self.arch is not None and (self.path / "weights.safetensors").exists()

    def search(self) -> RunFolder | None:
        """Return the search that this run's architecture comes from: itself, or where its arch.json lies."""
        if self.is_search:
            return self
        if self.config.arch == "bare":
            return None
        arch = Path(self.config.arch)
        started_in = self.record.get("commands", [{}])[-1].get("folder", ".")
        for folder in (arch.parent, Path(started_in, arch).parent):
            if folder != self.path and (folder / "config.yml").exists():
                found = RunFolder.read(folder)
                return found if found.is_search else None
        return None


def _read_json(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise AclaError(f"{path} is not JSON: {error}; remove it, or run again") from None
    return content if isinstance(content, dict) else {}
