"""What `make demo` runs: the NNI experiment of sr_edsr.yml, then retraining, scores and export.

Everything it does is a command that you can type yourself; it prints each one.
"""

from __future__ import annotations

import json
import shlex
import socket
import subprocess
import sys
import time
from pathlib import Path

EXPERIMENT = "examples/sr_edsr.yml"
SETTINGS = "examples/sr_edsr_search.yml"
RUNS = Path("runs/sr_edsr")


def main() -> int:
    """Run everything; return the exit code."""
    port = free_port()
    run("nnictl", "create", "--config", EXPERIMENT, "--port", str(port))
    try:
        experiment_id, failed = follow(port)
    finally:
        run("nnictl", "stop", "--port", str(port))
    if failed:
        print(f"{failed} of the trials failed; their logs are in runs/nni/{experiment_id}/", file=sys.stderr)
        return 1

    trials = {p.parent: json.loads(p.read_text()) for p in RUNS.glob(f"{experiment_id}/*/summary.json")}
    if not trials:
        print("no trial wrote a summary", file=sys.stderr)
        return 1
    best, summary = max(trials.items(), key=lambda item: item[1]["val_psnr"])
    baseline, derived = best.parent / "baseline", best.parent / "derived"
    run("acla-nas", "train", SETTINGS, "arch=bare", f"run={baseline}")
    run("acla-nas", "train", SETTINGS, f"arch={best / 'arch.json'}", f"run={derived}")
    run("acla-nas", "export", SETTINGS, f"models=[{derived}]")
    scores = run("acla-nas", "eval", SETTINGS, f"models=[{baseline},{derived}]")
    means = [line.split()[1] for line in scores.splitlines() if line.startswith("mean")]

    print("trials")
    for _, trial in sorted(trials.items()):
        print(f"  lambda {trial['strategy']['cost_weight']:<5}  {describe(trial)}")
    print(f"best lambda   {summary['strategy']['cost_weight']}")
    print(f"found         {describe(summary)}")
    print(f"held-out PSNR bicubic {means[0]}, baseline {means[1]}, derived {means[2]} dB")
    print(f"architecture  {best / 'arch.json'}")
    print(f"weights       {derived / 'weights.safetensors'}")
    print(f"exported      {derived / 'export' / 'model.pt2'}")
    print(f"look at it    acla-nas report {derived} models=[{baseline}]")
    return 0


def describe(trial: dict) -> str:
    """Say in one line what a trial found."""
    positions = ", ".join(map(str, trial["positions"])) or "none"
    cost = ", ".join(f"{value:,.0f} {unit}" for unit, value in trial["cost"].items())
    return (
        f"positions {positions}; cost {cost}; {trial['parameters']:,} parameters; "
        f"validation PSNR {trial['val_psnr']:.2f} dB"
    )


def follow(port: int) -> tuple[str, int]:
    """Print each trial's PSNR as NNI hears of it, until the experiment ends; return its id and failures."""
    from nni.experiment import Experiment

    experiment = Experiment.connect(port)
    told: set[tuple[str, int]] = set()
    ended: set[str] = set()
    while True:
        status = experiment.get_status()
        trials = experiment.list_trial_jobs()
        metrics = experiment.get_job_metrics()
        for trial in trials:
            number, job = trial.sequenceId, trial.trialJobId
            parameters = trial.hyperParameters[0].parameters if trial.hyperParameters else {}
            for metric in metrics.get(job, []):
                if metric.type == "PERIODICAL" and (job, metric.sequence) not in told:
                    told.add((job, metric.sequence))
                    psnr = f"PSNR {float(metric.data):.2f} dB"
                    print(f"  trial {number} {parameters}  epoch {metric.sequence + 1}  {psnr}", flush=True)
            if trial.status in ("SUCCEEDED", "FAILED", "USER_CANCELED") and job not in ended:
                ended.add(job)
                print(f"  trial {number} {parameters}  {trial.status.lower()}", flush=True)
        if status in ("DONE", "STOPPED", "ERROR", "NO_MORE_TRIAL") and len(ended) == len(trials):
            failed = sum(trial.status != "SUCCEEDED" for trial in trials)
            return experiment.id, failed + (status == "ERROR")
        time.sleep(3)


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


def run(*command: str) -> str:
    """Print a command and run it; return what it printed, or end with its exit code if it fails."""
    print(f"$ {shlex.join(command)}", flush=True)
    printed = ""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            printed += line
            print(line, end="", flush=True)
    if process.returncode:
        raise SystemExit(process.returncode)
    return printed


if __name__ == "__main__":
    sys.exit(main())
