"""The flow on a Dask cluster whose two workers have a clone each, with a DVC remote between them."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from decant.errors import DecantError
from flows import cluster as flows_cluster
from flows import dag
from flows.watchdog import alive
from tests.clones import clone, commit, dvc, shrink, sums
from tests.imports import ROOT
from tests.test_compress import LOOKING, finished, start
from tests.test_pool import pid_in, until
from tests.test_scheduled import free_port
from tests.toys import git, recorded, rewrite, workspace, writes
from tests.warm import warm_python

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect_server")]


class Cluster(NamedTuple):
    """A scheduler, and a repository that its two workers have cloned."""

    address: str
    main: Path
    folder: Path

    def commit(self, stages: dict[str, Any]) -> None:
        """Replace the stages, and commit everything."""
        rewrite(self.main, stages)
        git(self.main, "add", "--all")
        author = ("-c", "user.name=D", "-c", "user.email=d@example.org")
        git(self.main, *author, "commit", "--quiet", "--allow-empty", "--message", "stages")

    def flow(self, *words: str) -> tuple[int, str]:
        """Return the exit status and the output of a whole run."""
        return finished(self.main, "--runner", "dask", "--scheduler", self.address, *words)


@contextlib.contextmanager
def joined(main: Path, folder: Path, server: str) -> Iterator[str]:
    """Have a scheduler and two workers, each in a clone of its own; yield the scheduler's address."""
    address, log = f"tcp://127.0.0.1:{free_port()}", folder / "log"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PREFECT_API_URL": server}

    def run(*words: str, where: Path) -> subprocess.Popen[bytes]:
        with log.open("a") as file:
            return subprocess.Popen(
                [sys.executable, "-m", *words], cwd=where, env=environment, stdout=file, stderr=file
            )

    port = address.rpartition(":")[2]
    scheduler = run(
        "dask", "scheduler", "--host", "127.0.0.1", "--port", port, "--no-dashboard", where=folder
    )
    processes = [scheduler]
    for name in ("one", "two"):
        git(folder, "clone", "--quiet", str(main), str(folder / name))
        processes.append(run("flows.cluster", address, where=folder / name))
    try:
        assert until(lambda: log.read_text().count("Registered to:") == 2, 180), log.read_text()
        yield address
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait(20)


def add_remote(repository: Path, store: Path) -> None:
    """Give a repository a DVC remote that is a folder."""
    config = repository / ".dvc" / "config"
    config.write_text(
        config.read_text().replace("[core]\n", "[core]\n    remote = store\n")
        + f"['remote \"store\"']\n    url = {store}\n"
    )


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, prefect_server: str) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("cluster")
    main = workspace(folder / "main", {"a": writes("a.out")})
    add_remote(main, folder / "store")
    Cluster("", main, folder).commit({"a": writes("a.out")})
    with joined(main, folder, prefect_server) as address:
        yield Cluster(address, main, folder)


def meeting(cluster: Cluster, mine: str, other: str) -> str:
    """Return a command that ends when the other one's has begun: they run at the same time, or for ever."""
    return f"touch {cluster.folder / mine}; until test -e {cluster.folder / other}; do sleep 0.1; done"


def test_two_clones_leave_what_dvc_repro_leaves(cluster: Cluster) -> None:
    kept = {"cmd": "cat a.out > kept.json", "deps": ["a.out"], "outs": [{"kept.json": {"cache": False}}]}
    folder = {
        "cmd": "mkdir -p f.out && cp a.out f.out/x && cp kept.json f.out/y",
        "deps": ["a.out", "kept.json"],
        "outs": ["f.out"],
    }
    stages = {
        "a": writes("a.out", cmd="echo a line"),
        "kept": kept,
        "f": folder,
        "b": writes("b.out", "a.out", cmd=meeting(cluster, "b", "c"), meta={"timeout": 60}),
        "c": writes("c.out", "a.out", cmd=meeting(cluster, "c", "b"), meta={"timeout": 60}),
        "d": writes("d.out", "b.out", "c.out", "kept.json", "f.out/x"),
    }
    cluster.commit(stages)
    status, output = cluster.flow()
    assert status == 0, output
    assert "a: a line" in output
    assert f"in {cluster.folder}/one/.dvc/tmp/cluster" in output
    assert f"in {cluster.folder}/two/.dvc/tmp/cluster" in output
    assert "6 Ran in" in output
    alone = cluster.folder / "alone"
    git(cluster.folder, "clone", "--quiet", str(cluster.main), str(alone))
    dvc(alone, "repro", "-q")
    locks = [yaml.safe_load((where / "dvc.lock").read_text()) for where in (cluster.main, alone)]
    assert locks[0] == locks[1]
    for file in ("d.out", "kept.json", "f.out/y"):
        assert (cluster.main / file).read_bytes() == (alone / file).read_bytes(), file
    assert not (cluster.main / "kept.json").is_symlink()
    assert cluster.flow() == (0, f"{LOOKING}\nAll 6 stages are up to date.\n")
    for name in ("one", "two"):
        assert git(cluster.folder / name, "status", "--porcelain") == ""

    stages["d"] = writes("d.out", "b.out", "c.out", cmd="echo other")  # its upstream comes from the remote
    cluster.commit(stages)
    status, output = cluster.flow()
    assert status == 0, output
    assert "1 Ran in" in output.replace("5 UpToDate, ", "")
    assert (cluster.main / "d.out").read_text() == "a.out\nb.out\na.out\nc.out\nd.out\n"


def test_what_one_clone_ran_is_restored_everywhere(cluster: Cluster) -> None:
    (cluster.main / "source").write_text("x")
    cluster.commit({"r": writes("r.out", "source"), "s": writes("s.out", "r.out")})
    status, output = cluster.flow()
    assert status == 0, output
    lock = yaml.safe_load((cluster.main / "dvc.lock").read_text())
    del lock["stages"]["s"]
    (cluster.main / "dvc.lock").write_text(yaml.safe_dump(lock))
    (cluster.main / "s.out").unlink()
    for name in ("one", "two"):
        shutil.rmtree(cluster.folder / name / ".dvc" / "tmp" / "cluster")
        shutil.rmtree(cluster.folder / name / ".dvc" / "cache")
    status, output = cluster.flow()
    assert status == 0, output
    assert "1 RestoredFromRunCache" in output
    assert (cluster.main / "s.out").read_text() == "xr.out\ns.out\n"


def test_a_changed_recipe_gives_its_own_model(cluster: Cluster) -> None:
    stage = {"cmd": "cp params.yaml model.out", "deps": ["source"], "params": ["bits"], "outs": ["model.out"]}
    (cluster.main / "source").write_text("x")
    for bits in (8, 5, 8):
        (cluster.main / "params.yaml").write_text(f"bits: {bits}\n")
        cluster.commit({"model": stage})
        status, output = cluster.flow()
        assert status == 0, output
        assert (cluster.main / "model.out").read_text() == f"bits: {bits}\n"
        entry = yaml.safe_load((cluster.main / "dvc.lock").read_text())["stages"]["model"]
        assert entry["params"] == {"params.yaml": {"bits": bits}}
        cluster.commit({"model": stage})  # so that the clones' dvc.lock has it too


def test_what_no_worker_can_run_is_done_by_the_coordinator(cluster: Cluster) -> None:
    (cluster.main / "given").write_text("given\n")
    dvc(cluster.main, "add", "given")
    (cluster.main / "frozen.out").write_text("frozen\n")
    stages = {
        "frozen": {**writes("frozen.out"), "frozen": True},
        "g": writes("g.out", "given", "frozen.out"),
        "shows": {"cmd": "cat g.out", "deps": ["g.out"]},
        "timed": writes("t.out", "g.out", cmd="echo 0.1 s > times", meta={"alone": True}),
    }
    cluster.commit(stages)
    status, output = cluster.flow()
    assert status == 0, output
    assert "shows: frozen" in output
    assert (cluster.main / "times").read_text() == "0.1 s\n"  # no output: it would stay with the worker
    assert (cluster.main / "g.out").read_text() == "given\nfrozen\ng.out\n"
    status, output = cluster.flow("--force")
    assert status == 0, output


def test_a_gpu_that_no_worker_has_is_told_at_once(cluster: Cluster) -> None:
    cluster.commit({"gpu": writes("gpu.out", meta={"gpu": 1})})
    status, output = cluster.flow()
    assert status == 1
    assert (
        "gpu wants 1 GPUs (meta.gpu in dvc.yaml, or device in params.yaml), and no worker has more than 0"
        in output
    )


def test_a_failure_is_told_as_ever(cluster: Cluster) -> None:
    flaky = f"echo x >> {cluster.folder / 'tries'}; test $(wc -l < {cluster.folder / 'tries'}) = 2"
    stages = {
        "bad": writes("bad.out", cmd="echo because of this; false"),
        "after": writes("after.out", "bad.out"),
        "flaky": writes("flaky.out", cmd=flaky, meta={"retries": 2, "retry_delay": 0.1}),
    }
    cluster.commit(stages)
    status, output = cluster.flow()
    assert status == 1
    end = output[output.index("bad failed") :]
    assert "because of this" in end
    assert "dvc repro --single-item bad" in end
    assert "1 Failed, 1 Skipped, 1 Ran" in end
    assert "Traceback" not in output
    assert set(yaml.safe_load((cluster.main / "dvc.lock").read_text())["stages"]) >= {"flaky"}


def test_what_is_not_committed_is_refused(cluster: Cluster) -> None:
    (cluster.main / "source").write_text("committed")
    cluster.commit({"u": writes("u.out", "source")})
    (cluster.main / "source").write_text("not committed")
    status, output = cluster.flow()
    assert status == 1
    assert "The coordinator has another source than the commit in" in output
    assert "commit and push it" in output
    assert not (cluster.main / "u.out").exists()


def test_each_clone_records_its_own_code(cluster: Cluster) -> None:
    code = cluster.main / "library" / "used" / "one"
    code.parent.mkdir(parents=True)
    code.write_text("committed")
    stages = recorded()
    stages["a"]["outs"], stages["a"]["cmd"] = ["coded.out"], "cp records/a coded.out"
    stages["b"] = writes("after.out", "coded.out")
    cluster.commit(stages)
    status, output = cluster.flow()
    assert status == 0, output
    assert "3 Ran" in output  # beside what another test of this module added
    assert (cluster.main / "coded.out").read_text() == (cluster.main / "records" / "a").read_text()
    status, output = cluster.flow("--force")
    assert status == 0, output
    code.write_text("not committed")
    status, output = cluster.flow()
    assert status == 1
    assert "The coordinator has another library/used/one than the commit in" in output


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_when_the_coordinator_is_gone_nothing_is_left(number: signal.Signals, cluster: Cluster) -> None:
    note, out = cluster.folder / f"pid-{number}", f"{number}.out"
    cluster.commit({"slow": writes(out, cmd=f"echo $$ > {note}; sleep 60")})
    flow = start(cluster.main, "--runner", "dask", "--scheduler", cluster.address)
    pid = pid_in(note)
    flow.send_signal(number)
    flow.communicate(timeout=10)
    assert until(lambda: not alive(pid), 10)
    assert not (cluster.main / out).exists()
    cluster.commit({"slow": writes(out, cmd="true")})
    status, output = cluster.flow()
    assert status == 0, output


def test_a_cluster_that_nobody_named_is_told(tmp_path: Path) -> None:
    status, output = finished(workspace(tmp_path / "w", {"a": writes("a.out")}), "--runner", "dask")
    assert status == 1
    assert "--runner dask needs a scheduler: start one in a clone with `python -m dask scheduler`" in output
    assert "Traceback" not in output


def test_a_cluster_that_does_not_answer_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flows_cluster, "PATIENCE", "1s")
    folder = workspace(tmp_path / "w", {"a": writes("a.out")})
    with pytest.raises(DecantError, match=r"No Dask scheduler answers at tcp://127\.0\.0\.1:9: "):
        dag.compress(folder=folder, runner="dask", scheduler="tcp://127.0.0.1:9")
    assert not (folder / "a.out").exists()


def test_the_real_pipeline_gives_the_same_bytes(
    tmp_path: Path, prefect_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = clone(tmp_path / "alone")
    shrink(alone, ["prune-80", "prune-80-ft"])
    all_but_explanations = (
        "report",
        "benchmark",
    )  # which are one more measure of each model, and take longest
    add_remote(alone, tmp_path / "store")
    commit(alone, "small")
    main = tmp_path / "main"
    git(tmp_path, "clone", "--quiet", str(alone), str(main))
    with warm_python() as python:
        monkeypatch.setenv("PATH", f"{python}{os.pathsep}{os.environ['PATH']}")
        with joined(main, tmp_path, prefect_server) as address:
            status, output = finished(main, "--runner", "dask", "--scheduler", address, *all_but_explanations)
        assert status == 0, output
        dvc(alone, "repro", *all_but_explanations, python=python)
    assert sums(main) == sums(alone)
    for file in ("report/README.md", "metrics/prune-80-ft.json"):
        assert (main / file).read_bytes() == (alone / file).read_bytes()
    assert json.loads(dvc(main, "status", "--json", "--with-deps", *all_but_explanations)) == {}
    for name in ("one", "two"):
        assert f"in {tmp_path}/{name}/.dvc/tmp/cluster" in output
