"""Workers run real stages through DVC, and nothing of them outlives the flow. Prefect is not needed."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from decant.errors import DecantError
from flows.pool import Pool, StageError, StageTimeoutError, lines
from flows.watchdog import alive, release
from tests.imports import ROOT
from tests.toys import rewrite, workspace, writes

CHAIN = {"a": writes("a.out", cmd="echo one; echo two"), "b": writes("b.out", "a.out")}


def until(condition: Callable[[], bool], seconds: float = 5.0) -> bool:
    """Say whether the condition came true in time."""
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return condition()


def pid_in(file: Path) -> int:
    """Return the process number that a stage wrote down, as soon as it has."""
    assert until(lambda: file.exists() and file.read_text().strip() != "", 30)
    return int(file.read_text())


def test_a_plan_tells_the_graph_and_why(tmp_path: Path) -> None:
    folder = workspace(tmp_path / "w", {**CHAIN, "c": writes("c.out", meta={"timeout": 3})})
    with Pool(folder) as pool:
        found = pool.plan([])
        assert {entry["name"]: entry["upstream"] for entry in found} == {"a": [], "b": ["a"], "c": []}
        assert [entry["name"] for entry in found].index("a") < [entry["name"] for entry in found].index("b")
        assert found[0]["stale"] == ["deleted a.out"]
        assert {entry["name"]: entry["meta"] for entry in found}["c"] == {"timeout": 3}
        assert [entry["name"] for entry in pool.plan(["b"])] == ["a", "b"]
        assert [entry["name"] for entry in pool.plan(["a.out"])] == ["a"]
        with pytest.raises(StageError, match="nowhere"):
            pool.plan(["nowhere"])


def test_threads_and_code_come_from_what_the_stage_depends_on(tmp_path: Path) -> None:
    stages = {
        "a": writes("a.out", "a.py", params=["threads.train"]),
        "b": writes("b.out", "a.out", "a.py", params=["seed"]),
        "c": {"cmd": "true", "deps": ["folder", "a.py"], "outs": ["c.out"]},
        "d": {"cmd": "true", "outs": ["folder/d.out"]},
    }
    folder = workspace(tmp_path / "w", stages)
    (folder / "params.yaml").write_text("seed: 7\nthreads: {train: 3, test: 9}\n")
    (folder / "a.py").write_text("1")
    (folder / "folder").mkdir()
    (folder / "folder" / "d.out").write_text("d")
    with Pool(folder) as pool:
        first = {entry["name"]: entry for entry in pool.plan([])}
    assert (first["a"]["threads"], first["b"]["threads"]) == (3, 0)
    assert (
        first["a"]["code"] == first["b"]["code"] == first["c"]["code"] != ""
    )  # what stages write is no code
    (folder / "a.py").write_text("2")
    with Pool(folder) as pool:
        assert pool.plan(["a"])[0]["code"] != first["a"]["code"]


def test_a_frozen_stage_is_taken_as_it_is(tmp_path: Path) -> None:
    folder = workspace(tmp_path / "w", {"a": CHAIN["a"], "b": {**CHAIN["b"], "frozen": True}})
    with Pool(folder) as pool:
        assert [entry["name"] for entry in pool.plan(["b"])] == ["b"]


def test_states_are_those_that_dvc_came_to(tmp_path: Path) -> None:
    folder, heard = workspace(tmp_path / "w", CHAIN), list[str]()
    with Pool(folder) as pool:
        assert pool.run("a", line=lambda text, _: heard.append(text)) == "Ran"
        assert pool.run("a") == "UpToDate"
        assert pool.run("a", force=True) == "Ran"
        assert pool.run("b") == "Ran"
        (folder / "b.out").unlink()
        (folder / "dvc.lock").unlink()
    assert heard.index("one") < heard.index("two")
    with Pool(folder) as pool:
        assert pool.run("b") == "RestoredFromRunCache"
    assert (folder / "b.out").read_text() == "a.out\nb.out\n"


def test_dvc_lock_is_the_one_of_dvc_repro(tmp_path: Path) -> None:
    ours, theirs = workspace(tmp_path / "ours", CHAIN), workspace(tmp_path / "theirs", CHAIN)
    with Pool(ours) as pool:
        assert [pool.run(name) for name in ("a", "b")] == ["Ran", "Ran"]
    subprocess.run([sys.executable, "-m", "dvc", "repro", "-q"], cwd=theirs, check=True)
    assert (ours / "dvc.lock").read_bytes() == (theirs / "dvc.lock").read_bytes()
    status = subprocess.run(
        [sys.executable, "-m", "dvc", "status", "--json"],
        cwd=ours,
        check=True,
        capture_output=True,
        text=True,
    )
    assert json.loads(status.stdout) == {}


def test_a_failing_command_is_told_and_the_worker_goes_on(tmp_path: Path) -> None:
    folder = workspace(tmp_path / "w", {**CHAIN, "bad": "echo because; exit 3"})
    with Pool(folder) as pool:
        with pytest.raises(StageError, match=r"exited with 3"):
            pool.run("bad")
        assert pool.run("a") == "Ran"


def test_a_stage_that_reads_its_input_finds_none(tmp_path: Path) -> None:
    folder = workspace(tmp_path / "w", {**CHAIN, "reads": "cat > noted.input"})
    with Pool(folder) as pool:
        assert pool.run("reads", timeout=30) == "Ran"
        assert pool.run("a") == "Ran"
    assert (folder / "noted.input").read_text() == ""


def test_variables_are_for_one_stage(tmp_path: Path) -> None:
    folder, heard = workspace(tmp_path / "w", {"a": "echo is $DECANT_X; true"}), list[str]()
    with Pool(folder) as pool:
        pool.run("a", environment={"DECANT_X": "7"}, line=lambda text, _: heard.append(text))
        pool.run("a", force=True, line=lambda text, _: heard.append(text))
    assert [text for text in heard if text.startswith("is")] == ["is 7", "is"]


def test_workers_at_the_same_time_lose_no_entry_of_dvc_lock(tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    names = [f"s{index}" for index in range(12)]
    folder = workspace(tmp_path / "w", {name: writes(f"{name}.out") for name in names})
    with Pool(folder) as pool, ThreadPoolExecutor(4) as threads:
        assert list(threads.map(pool.run, names)) == ["Ran"] * 12
    assert set(yaml.safe_load((folder / "dvc.lock").read_text())["stages"]) == set(names)


def test_a_lock_that_another_dvc_has_for_longer_than_dvc_waits_is_waited_for(tmp_path: Path) -> None:
    folder = workspace(tmp_path / "w", CHAIN)
    (folder / ".dvc" / "tmp").mkdir()
    take = "import time, zc.lockfile; zc.lockfile.LockFile('.dvc/tmp/lock')"
    hold = f"{take}; print('held', flush=True); time.sleep(5)"
    other = subprocess.Popen([sys.executable, "-c", hold], cwd=folder, stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None and other.stdout.readline() == "held\n"
    with Pool(folder) as pool:
        # Guards the private `_wait_for_lock`; and waiting does not count into a stage's own time.
        assert pool.run("a", timeout=4) == "Ran"
    assert other.wait() == 0


def test_a_timeout_ends_the_whole_process_group(tmp_path: Path) -> None:
    slow = "sleep 60 & echo $! > noted.child; echo $$ > noted.shell; wait"
    folder = workspace(tmp_path / "w", {**CHAIN, "slow": slow})
    with Pool(folder) as pool:
        with pytest.raises(StageTimeoutError, match=r"longer than its timeout of 2 s"):
            pool.run("slow", timeout=2)
        for name in ("child", "shell"):
            pid = pid_in(folder / f"noted.{name}")
            assert until(lambda pid=pid: not alive(pid))  # type: ignore[misc]  # mypy cannot type the default
        assert pool.run("a") == "Ran"  # another worker, and no lock in its way


def test_a_process_that_ends_while_it_is_looked_at_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()

    def gone(*_: object, **__: object) -> str:
        raise ProcessLookupError(3, "No such process")

    monkeypatch.setattr(Path, "read_text", gone)
    assert not alive(ended.pid)


def test_a_command_that_ignores_signals_is_ended_too(tmp_path: Path) -> None:
    folder = workspace(
        tmp_path / "w", {"deaf": "trap '' INT TERM; echo $$ > noted.pid; while :; do sleep 1; done"}
    )
    with Pool(folder) as pool, pytest.raises(StageTimeoutError):
        pool.run("deaf", timeout=2)
    assert until(lambda: not alive(pid_in(folder / "noted.pid")))


def test_a_worker_that_is_killed_is_told_and_replaced(tmp_path: Path) -> None:
    folder = workspace(tmp_path / "w", {**CHAIN, "kill": "kill -9 $PPID"})
    with Pool(folder) as pool:
        with pytest.raises(StageError, match=r"killed by signal 9; often the machine was out of memory"):
            pool.run("kill")
        assert pool.run("a") == "Ran"


def test_a_second_flow_is_told_who_has_the_workspace(tmp_path: Path) -> None:
    folder = workspace(tmp_path / "w", CHAIN)
    words = rf"Another flow works in .*: process {os.getpid()}, since"
    with Pool(folder), pytest.raises(DecantError, match=words):
        Pool(folder)
    with Pool(folder) as pool:
        assert pool.run("a") == "Ran"


def test_a_folder_without_dvc_is_told(tmp_path: Path) -> None:
    with pytest.raises(DecantError, match="No DVC repository in"):
        Pool(tmp_path)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_when_the_flow_is_gone_nothing_is_left(number: signal.Signals, tmp_path: Path) -> None:
    stage = writes("a.out", cmd="echo $$ > noted.pid; sleep 60")
    folder = workspace(tmp_path / "w", {"a": stage})
    script = (
        "import signal; from pathlib import Path; from flows.pool import Pool\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background it would be ignored\n"
        "with Pool(Path()) as pool: pool.run('a')"
    )
    flow = subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stderr=subprocess.DEVNULL,
    )
    pid = pid_in(folder / "noted.pid")
    rwlock = folder / ".dvc" / "tmp" / "rwlock"
    assert "a.out" in rwlock.read_text()
    flow.send_signal(number)
    flow.wait()
    assert until(lambda: not alive(pid))
    assert until(lambda: "a.out" not in rwlock.read_text())
    assert not (folder / "a.out").exists()
    rewrite(folder, {"a": writes("a.out")})
    assert until(lambda: not held(folder))
    with Pool(folder) as pool:
        assert pool.run("a") == "Ran"


def held(folder: Path) -> bool:
    """Say whether a flow still has the workspace."""
    import fcntl

    with (folder / ".dvc" / "tmp" / "decant.flow").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


def test_release_strikes_only_processes_that_are_gone(tmp_path: Path) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    mine, dead = {"pid": os.getpid(), "cmd": "x"}, {"pid": gone.pid, "cmd": "y"}
    (path := tmp_path / "rwlock").write_text(
        json.dumps({"write": {"a": mine, "b": dead}, "read": {"c": [dead, mine], "d": [dead]}})
    )
    release(path)
    assert json.loads(path.read_text()) == {"write": {"a": mine}, "read": {"c": [mine]}}
    release(tmp_path / "none")


@pytest.mark.parametrize(
    ("pieces", "found"),
    [
        ([b"one\ntwo\n"], [("one", False), ("two", False)]),
        ([b"10%\r20%\rdone\n"], [("10%", True), ("20%", True), ("done", False)]),
        ([b"one\r", b"\ntwo"], [("one", False), ("two", False)]),
        ([b"10%\r", b"20%\n"], [("10%", True), ("20%", False)]),
        ([b"\xc3", b"\xa4\n"], [("ä", False)]),
        ([b"\xff\n"], [("�", False)]),
        ([], []),
    ],
)
def test_output_is_cut_into_lines(pieces: list[bytes], found: list[tuple[str, bool]]) -> None:
    read, write = os.pipe()
    with io.FileIO(read) as stream:
        collected = []
        for piece in pieces:
            os.write(write, piece)
        os.close(write)
        collected = list(lines(stream, chunk=max(map(len, pieces), default=1)))
    assert collected == found
