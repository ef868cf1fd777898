"""Print what a cross-validation of lambda found: python examples/cross_validation.py RUN_FOLDER.

RUN_FOLDER is that of sr_edsr_cross_validation.yml's trials, or any folder of runs with data.fold set.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path
from statistics import fmean, stdev

import yaml


def main(folder: str) -> int:
    """Print a line per lambda; return the exit code."""
    trials = defaultdict(dict)  # lambda -> fold -> summary
    for path in sorted(Path(folder).glob("**/summary.json"), key=lambda path: path.stat().st_mtime):
        summary = json.loads(path.read_text(encoding="utf-8"))
        fold = yaml.safe_load((path.parent / "config.yml").read_text(encoding="utf-8"))["data"]["fold"]
        if fold is not None:
            trials[summary["strategy"]["cost_weight"]][fold] = summary  # the latest of each fold
    if not trials:
        print(f"{folder} holds no search with data.fold set", file=sys.stderr)
        return 1
    folds = set.intersection(*(set(found) for found in trials.values()))
    if not folds:
        print(f"no fold in {folder} is finished for every lambda", file=sys.stderr)
        return 1
    print(f"means over folds {', '.join(map(str, sorted(folds)))}, which are finished for every lambda")
    print("lambda  PSNR (dB)  spread  modules  cost")
    for cost_weight, found in sorted(trials.items()):
        rows = [found[fold] for fold in sorted(folds)]
        psnr = [row["val_psnr"] for row in rows]
        spread = f"{stdev(psnr):6.2f}" if len(psnr) > 1 else "     -"
        cost, unit = fmean(next(iter(row["cost"].values())) for row in rows), next(iter(rows[0]["cost"]))
        modules = fmean(len(row["positions"]) for row in rows)
        print(f"{cost_weight:<6}  {fmean(psnr):9.2f}  {spread}  {modules:7.1f}  {cost:,.0f} {unit}")
    return 0


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    sys.exit(main(sys.argv[1]))
