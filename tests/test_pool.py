"""Workers run real stages through DVC, and nothing of them outlives the flow. Prefect is not needed."""

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from decant.errors import DecantError
from flows.pool import Pool, StageError, StageTimeoutError, Watched, lines
from flows.watchdog import alive, descendants, release
from tests.imports import ROOT
from tests.toys import rewrite, workspace, writes
from tests.warm_dvc import dvc

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
    dvc(theirs, "repro", "-q")
    assert (ours / "dvc.lock").read_bytes() == (theirs / "dvc.lock").read_bytes()
    assert json.loads(dvc(ours, "status", "--json")) == {}


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
    names = [f"s{index}" for index in range(12)]
    folder = workspace(tmp_path / "w", {name: writes(f"{name}.out") for name in names})
    with Pool(folder) as pool, ThreadPoolExecutor(4) as threads:
        assert list(threads.map(pool.run, names)) == ["Ran"] * 12
    assert set(yaml.safe_load((folder / "dvc.lock").read_text())["stages"]) == set(names)


@pytest.mark.slow  # DVC's version is pinned
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


def test_a_timeout_ends_the_whole_process_group_and_what_ignores_signals(tmp_path: Path) -> None:
    stages = {
        "slow": "sleep 60 & echo $! > noted.child; echo $$ > noted.shell; wait",
        "deaf": "trap '' INT TERM; echo $$ > noted.deaf; while :; do sleep 1; done",
    }
    folder = workspace(tmp_path / "w", {**CHAIN, **stages})
    with Pool(folder) as pool:
        with ThreadPoolExecutor(2) as threads:
            runs = [threads.submit(pool.run, name, timeout=2) for name in stages]
        for run in runs:
            with pytest.raises(StageTimeoutError, match=r"longer than its timeout of 2 s"):
                run.result()
        for name in ("child", "shell", "deaf"):
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


def others() -> dict[str, dict[str, Any]]:
    """Return entries of DVC's list whose processes are gone, by what there is of that number now."""
    gone = subprocess.Popen(["true"])
    gone.wait()
    zombie = subprocess.Popen(["true"])  # nobody waits for it
    assert until(lambda: not alive(zombie.pid))
    return {
        "nothing": {"pid": gone.pid, "cmd": "dvc repro"},
        "a zombie": {"pid": zombie.pid, "cmd": "true"},
        "the first process": {"pid": 1, "cmd": "/somewhere/flows/worker.py"},
        "this process": {"pid": os.getpid(), "cmd": "/somewhere/bin/dvc repro a"},
    }


def test_release_strikes_only_processes_that_are_gone(tmp_path: Path) -> None:
    mine = {"pid": os.getpid(), "cmd": Path("/proc/self/cmdline").read_text().replace("\0", " ").strip()}
    path = tmp_path / "rwlock"
    for dead in others().values():
        content = {"write": {"a": mine, "b": dead}, "read": {"c": [dead, mine], "d": [dead]}}
        path.write_text(json.dumps(content))
        release(path)
        assert json.loads(path.read_text()) == {"write": {"a": mine}, "read": {"c": [mine]}}, dead
    before = path.stat().st_ctime - 3600
    path.write_text(json.dumps({"write": {"a": mine}, "read": {}}))
    os.utime(path, (before, before))  # written before the process of that number began
    release(path)
    assert json.loads(path.read_text()) == {"write": {}, "read": {}}
    release(tmp_path / "none")


@pytest.mark.parametrize("text", ["", '{"write": {"a": {"pi', '{"write": {"a": {"pid": 1}}}', "[]"])
def test_a_list_that_a_full_disk_has_cut_is_written_anew(text: str, tmp_path: Path) -> None:
    (path := tmp_path / "rwlock").write_text(text)
    release(path)
    assert json.loads(path.read_text()) == {}


def test_a_full_disk_stops_no_tidying(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[Path] = []

    def full(path: Path, *_: Any, **__: Any) -> None:
        tried.append(path)
        raise OSError(28, "No space left on device")

    (path := tmp_path / "rwlock").write_text("")
    monkeypatch.setattr(Path, "write_text", full)
    release(path)
    assert tried == [tmp_path / "rwlock.decant"]
    assert path.read_text() == ""


def test_readers_and_writers_of_another_life_block_nothing(tmp_path: Path) -> None:
    folder = workspace(tmp_path / "w", CHAIN)
    (folder / ".dvc" / "tmp").mkdir()
    busy = {str(folder / "a.out"): {"pid": 1, "cmd": "/somewhere/flows/worker.py"}}
    (folder / ".dvc" / "tmp" / "rwlock").write_text(json.dumps({"write": busy, "read": {}}))
    with Pool(folder) as pool:
        assert pool.run("a") == "Ran"


SLOW = {"a": writes("a.out", cmd="echo $$ > noted.pid; sleep 60")}


def fails(pool: Pool, stage: str) -> None:
    with pytest.raises(StageError):
        pool.run(stage)


def test_a_flow_whose_watchdog_is_killed_ends_all_stages(tmp_path: Path) -> None:
    folder = workspace(tmp_path / "w", SLOW)
    with Pool(folder) as pool:
        thread = threading.Thread(target=fails, args=(pool, "a"))
        thread.start()
        pid = pid_in(folder / "noted.pid")
        children = descendants(os.getpid())  # some have ended, and are waited for later
        (dog,) = [one for one in children if alive(one.pid) and "watchdog.py" in " ".join(one.cmdline())]
        dog.kill()
        assert until(lambda: not alive(pid))
        thread.join(10)
        assert pool.lost
    assert "a.out" not in (folder / ".dvc" / "tmp" / "rwlock").read_text()
    assert not held(folder)


@pytest.mark.slow  # two accidents at once
def test_a_worker_whose_flow_and_watchdog_are_killed_ends_itself(tmp_path: Path) -> None:
    folder = workspace(tmp_path / "w", SLOW)
    script = "from pathlib import Path; from flows.pool import Pool\nwith Pool(Path()) as pool: pool.run('a')"
    flow = subprocess.Popen(
        [sys.executable, "-c", script], cwd=folder, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    pid = pid_in(folder / "noted.pid")
    (dog,) = [one for one in descendants(flow.pid) if "watchdog.py" in " ".join(one.cmdline())]
    dog.suspend()  # so that it does nothing about the next one
    flow.kill()
    flow.wait()
    dog.kill()
    assert until(lambda: not alive(pid), 8)


def test_a_stage_whose_worker_is_killed_does_not_go_on(tmp_path: Path) -> None:
    folder = workspace(tmp_path / "w", {**CHAIN, **SLOW, "c": writes("c.out")})
    with Pool(folder) as pool:
        threading.Thread(target=lambda: kill_parent(pid_in(folder / "noted.pid"))).start()
        with pytest.raises(StageError, match="killed by signal 9"):
            pool.run("a")
        pid = pid_in(folder / "noted.pid")
        assert until(lambda: not alive(pid))
        assert "a.out" not in (folder / ".dvc" / "tmp" / "rwlock").read_text()
        assert pool.run("c") == "Ran"


@pytest.mark.parametrize("clean", [True, False])
def test_an_end_that_is_not_meant_reaches_what_hides_in_sessions_of_its_own(
    clean: bool, tmp_path: Path
) -> None:
    hidden, note = "sleep 60 & echo $! > pid; wait", tmp_path / "pid"
    watched = Watched()
    started = watched.start(["sh", "-c", f"setsid sh -c '{hidden}'"], cwd=tmp_path)
    pid = pid_in(note)
    started.kill()  # what it has started is nobody's child any more
    started.wait()
    watched.stop(clean=clean)
    assert until(lambda: not alive(pid), 1) != clean
    if clean:
        os.kill(pid, signal.SIGKILL)


def kill_parent(pid: int) -> None:
    psutil.Process(pid).parent().kill()


def test_an_interruption_waits_until_a_stage_is_recorded(tmp_path: Path) -> None:
    """A worker that holds DVC's lock has something to write; one that waits or runs a stage ends at once."""
    turn = (
        "import os, signal, sys; from pathlib import Path\n"
        "sys.path.append(sys.argv[1]); from flows.worker import Turn\n"
        "class Lock:\n"
        "    is_locked = False\n"
        "    def lock(self): self.is_locked = True\n"
        "    def unlock(self): self.is_locked = False\n"
        "turn = Turn(Lock(), Path('turn'))\n"
        "try:\n"
        "    with turn:\n"
        "        os.kill(os.getpid(), getattr(signal, sys.argv[2]))\n"
        "        print('written')\n"
        "    print('went on')\n"
        "except KeyboardInterrupt:\n"
        "    print('interrupted')\n"
        "try:\n"
        "    os.kill(os.getpid(), getattr(signal, sys.argv[2]))\n"
        "    print('went on')\n"
        "except KeyboardInterrupt:\n"
        "    print('at once')\n"
    )
    for name in ("SIGINT", "SIGTERM"):
        done = subprocess.run(
            [sys.executable, "-c", turn, str(ROOT), name], cwd=tmp_path, capture_output=True, text=True
        )
        assert done.stdout.split("\n")[:3] == ["written", "interrupted", "at once"], done.stderr


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
