"""Several workers on one study: no trial is lost or repeated, even if one of them is killed."""

from __future__ import annotations

import multiprocessing
import os
import pwd
import shutil
import signal
import socket
import subprocess
import time
from collections import Counter

import optuna
import pytest
from optuna.trial import TrialState

from acla_nas import multi_trial, study_storage
from acla_nas.strategies import NSGA2, RandomSearch
from acla_nas.testing.strategy import table_space, table_value

WORKERS, TRIALS = 4, 24


def work(url, log, seconds):
    """Be one worker; note in the log what is begun and what is scored."""
    study_storage._HEARTBEAT, study_storage._GRACE, multi_trial._POLL = 1, 10, 0.2

    def note(what, network):
        with open(log, "a") as file:
            file.write(f"{what} {os.getpid()} {network.positions}\n")

    def score(network):
        note("begun", network)
        time.sleep(seconds)
        note("scored", network)
        return table_value(network.positions)

    strategy = NSGA2(TRIALS, population=6, storage=url)
    run = strategy.run(table_space(8), score, show=False)
    with open(f"{log}.{os.getpid()}", "w") as file:
        file.write(repr([c.arch.positions for c in run.candidates] + [run.best.arch.positions]))


def read(log):
    return [line.split(" ", 2) for line in log.read_text().splitlines()] if log.exists() else []


def check_workers(url, tmp_path):
    log = tmp_path / "log"
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=work, args=(url, log, 0.5)) for _ in range(WORKERS)]
    for worker in workers:
        worker.start()
    try:
        victim, lost = kill_one(workers, log)
        for worker in workers:
            worker.join(timeout=120)
    finally:
        for worker in workers:
            worker.kill()
    assert [w.exitcode for w in workers].count(0) == WORKERS - 1
    assert victim.exitcode == -signal.SIGKILL

    study = optuna.load_study(study_name="acla_nas", storage=url)
    states = Counter(t.state for t in study.trials)
    assert states[TrialState.COMPLETE] == TRIALS
    assert set(states) <= {TrialState.COMPLETE, TrialState.FAIL}
    complete = [t for t in study.trials if t.state == TrialState.COMPLETE]
    architectures = {positions_of(t) for t in complete}
    assert len(architectures) == TRIALS  # none repeated ..
    assert lost in architectures  # .. nor lost
    assert lost in {positions_of(t) for t in complete if "failed_trial" in t.system_attrs}
    scored = Counter(positions for what, _, positions in read(log) if what == "scored")
    rescored = sum(scored.values()) - TRIALS  # the best, by those who had not scored it themselves
    assert set(scored) == architectures and 0 <= rescored <= WORKERS - 1
    assert len({pid for _, pid, _ in read(log)}) == WORKERS
    results = {path.read_text() for path in tmp_path.glob("log.*")}
    assert len(results) == 1  # all workers return the same


def positions_of(trial):
    return str(tuple(int(n.split("/")[1]) for n, v in trial.params.items() if v))


def kill_one(workers, log):
    """Kill a worker in the middle of a trial, and return it with that trial's positions."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        time.sleep(0.02)
        lines = read(log)
        last = {pid: (what, positions) for what, pid, positions in lines}
        if len(last) == WORKERS and sum(what == "scored" for what, _, _ in lines) >= 5:
            for worker in workers:
                what, positions = last[str(worker.pid)]
                if what == "begun":
                    os.kill(worker.pid, signal.SIGKILL)
                    worker.join()
                    if not any(line == ["scored", str(worker.pid), positions] for line in read(log)):
                        return worker, positions
                    raise AssertionError("the trial ended before its worker was killed: try again")
    raise AssertionError(f"the workers do not work: {read(log)}")


def test_a_worker_that_was_taken_for_dead_goes_on(tmp_path):
    url = f"sqlite:///{tmp_path}/study.db"
    calls = 0

    def score(network):
        nonlocal calls
        calls += 1
        if calls == 3:  # what another worker does to a trial without signs of life
            study = optuna.load_study(study_name="acla_nas", storage=url)
            study.tell(study.trials[-1].number, state=TrialState.FAIL)
        return table_value(network.positions)

    run = RandomSearch(6, storage=url).run(table_space(), score, show=False)
    assert len(run.candidates) == 6 and calls == 7


@pytest.mark.slow
def test_four_workers_on_sqlite(tmp_path):
    check_workers(f"sqlite:///{tmp_path}/study.db", tmp_path)


@pytest.fixture
def postgresql(tmp_path):
    """The URL of a database of a PostgreSQL server of our own, on a port of its own."""
    pytest.importorskip("psycopg")
    initdb, postgres = shutil.which("initdb"), shutil.which("postgres")
    if not (initdb and postgres):
        pytest.skip("PostgreSQL is not installed, or not on the PATH")
    user = {}
    folder = tmp_path / "postgresql"
    folder.mkdir()
    if os.geteuid() == 0:  # under which PostgreSQL does not run
        account = pwd.getpwnam("nobody")
        user = {"user": account.pw_uid, "group": account.pw_gid}
        os.chown(folder, account.pw_uid, account.pw_gid)
        for parent in folder.parents:
            if parent.stat().st_uid == 0 and not parent.stat().st_mode & 0o001:
                parent.chmod(parent.stat().st_mode | 0o011)
    made = subprocess.run(
        [initdb, "-D", folder / "data", "-U", "acla", "-A", "trust", "-N"],
        capture_output=True,
        text=True,
        cwd=folder,
        **user,
    )
    if made.returncode:
        pytest.skip(f"PostgreSQL cannot be set up: {made.stderr}")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["-p", str(port), "-c", "listen_addresses=127.0.0.1", "-k", str(folder)]
    with (folder.parent / "server.log").open("w") as log:
        server = subprocess.Popen(
            [postgres, "-D", folder / "data", *options], stdout=log, stderr=log, cwd=folder, **user
        )
    try:
        import psycopg

        for _ in range(100):
            try:
                psycopg.connect(f"host=127.0.0.1 port={port} user=acla dbname=postgres").close()
                break
            except psycopg.OperationalError:
                time.sleep(0.2)
        else:
            pytest.skip(f"PostgreSQL does not start: {(folder.parent / 'server.log').read_text()}")
        yield f"postgresql+psycopg://acla@127.0.0.1:{port}/postgres"
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(timeout=30)


@pytest.mark.slow
def test_four_workers_on_postgresql(postgresql, tmp_path):
    check_workers(postgresql, tmp_path)
