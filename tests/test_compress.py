"""The flow against a real Prefect server, with real stages: states, failures, and every way to be stopped."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterId,
    LogFilter,
    LogFilterFlowRunId,
    TaskRunFilter,
    TaskRunFilterState,
    TaskRunFilterStateName,
)
from prefect.client.schemas.objects import FlowRun, TaskRun
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_API_URL
from prefect.states import Cancelling

from flows import artifacts, dag
from flows import compress as command
from flows.dag import StagesFailedError, compress
from flows.watchdog import alive, descendants
from tests.imports import ROOT
from tests.test_pool import held, pid_in, until
from tests.toys import recorded, rewrite, workspace, writes
from tests.warm import Forked, kept
from tests.warm_dvc import VARIABLE, address, dvc

pytestmark = pytest.mark.usefixtures("prefect_server")

Running = tuple[Path, Forked, int]
"""A workspace, the flow that works in it, and the process of the stage that runs."""

DIAMOND = {
    "a": writes("a.out"),
    "b": writes("b.out", "a.out"),
    "c": writes("c.out", "a.out"),
    "d": writes("d.out", "b.out", "c.out"),
}


def run_of(state: Any) -> FlowRun:
    """Return the flow run that a state belongs to."""
    with get_client(sync_client=True) as client:
        return client.read_flow_run(state.state_details.flow_run_id)


def tasks_of(state: Any) -> dict[str, TaskRun]:
    """Return the task runs of a flow run by their names."""
    with get_client(sync_client=True) as client:
        wanted = FlowRunFilter(id=FlowRunFilterId(any_=[state.state_details.flow_run_id]))
        deadline = time.monotonic() + 20
        while True:  # the server takes note of task runs a moment later
            found = {run.name: run for run in client.read_task_runs(flow_run_filter=wanted)}
            if found and all(run.state and run.state.is_final() for run in found.values()):
                return found
            assert time.monotonic() < deadline, found
            time.sleep(0.2)


def logs_of(state: Any, text: str) -> list[str]:
    """Return what a flow run has logged, as soon as `text` is in it."""
    wanted = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[state.state_details.flow_run_id]))
    with get_client(sync_client=True) as client:
        deadline = time.monotonic() + 20
        while True:
            messages = [log.message for log in client.read_logs(wanted)]
            if text in messages or time.monotonic() > deadline:
                return messages
            time.sleep(0.3)


def test_the_flow_leaves_what_dvc_repro_leaves(tmp_path: Path) -> None:
    ours, theirs = workspace(tmp_path / "ours", DIAMOND), workspace(tmp_path / "theirs", DIAMOND)
    state = compress(folder=ours, return_state=True)
    assert state.is_completed()
    dvc(theirs, "repro", "-q")
    mine, other = (yaml.safe_load((folder / "dvc.lock").read_text()) for folder in (ours, theirs))
    assert mine == other
    assert (ours / "d.out").read_bytes() == (theirs / "d.out").read_bytes()


def test_stages_are_task_runs_that_say_what_they_are(tmp_path: Path) -> None:
    teacher = {**writes("a.out", cmd="echo a line"), "deps": ["x.py"]}
    make = {"foreach": ["int8"], "do": writes("b-${item}.out", "a.out")}
    folder = workspace(tmp_path / "w", {"teacher": teacher, "make": make})
    (folder / "x.py").write_text("1")
    state = compress(folder=folder, return_state=True)
    found = tasks_of(state)
    assert {name: run.state_name for name, run in found.items()} == {"teacher": "Ran", "make@int8": "Ran"}
    assert set(found["make@int8"].tags) == {"operation:make", "model:int8"}
    assert len(found["teacher"].task_version or "") == 12
    assert "a line" in logs_of(state, "a line")
    (folder / "x.py").write_text("2")  # teacher runs again and gives the same bytes
    again = compress(folder=folder, return_state=True)
    assert {name: run.state_name for name, run in tasks_of(again).items()} == {
        "teacher": "Ran",
        "make@int8": "UpToDate",
    }
    assert tasks_of(again)["teacher"].task_version != found["teacher"].task_version


def test_what_was_lost_is_restored_and_what_is_there_is_left(tmp_path: Path) -> None:
    folder = workspace(tmp_path / "w", DIAMOND)
    assert compress(folder=folder, return_state=True).is_completed()
    assert compress(folder=folder, return_state=True).is_completed()
    lock = yaml.safe_load((folder / "dvc.lock").read_text())
    del lock["stages"]["d"]
    (folder / "dvc.lock").write_text(yaml.safe_dump(lock))
    state = compress(folder=folder, return_state=True)
    assert {name: run.state_name for name, run in tasks_of(state).items()} == {"d": "RestoredFromRunCache"}


def test_a_failure_skips_its_descendants_and_the_others_finish(tmp_path: Path) -> None:
    stages = {
        "bad": writes("bad.out", cmd="echo because of this; false"),
        "after": writes("after.out", "bad.out"),
        "last": writes("last.out", "after.out"),
        "good": writes("good.out"),
    }
    folder = workspace(tmp_path / "w", stages)
    state = compress(folder=folder, return_state=True)
    assert state.is_failed()
    with pytest.raises(
        StagesFailedError, match=r"(?s)bad failed.*because of this.*dvc repro --single-item bad"
    ):
        state.result()
    found = tasks_of(state)
    assert {name: run.state_name for name, run in found.items()} == {
        "bad": "Failed",
        "after": "Skipped",
        "last": "Skipped",
        "good": "Ran",
    }
    assert found["last"].state is not None and found["last"].state.message == "because of bad"
    assert set(yaml.safe_load((folder / "dvc.lock").read_text())["stages"]) == {"good"}


def test_retries_are_for_failures_and_not_for_timeouts(tmp_path: Path) -> None:
    flaky = "echo x >> noted.tries; test $(wc -l < noted.tries) = 2"
    slow = "echo x >> noted.slow; sleep 60"
    stages = {
        "flaky": writes("a.out", cmd=flaky, meta={"retries": 2, "retry_delay": 0.1}),
        "slow": writes("b.out", cmd=slow, meta={"timeout": 1, "retries": 2}),
    }
    folder = workspace(tmp_path / "w", stages)
    state = compress(folder=folder, return_state=True)
    assert {name: run.state_name for name, run in tasks_of(state).items()} == {
        "flaky": "Ran",
        "slow": "Failed",
    }
    assert (folder / "noted.tries").read_text() == "x\nx\n"
    assert (folder / "noted.slow").read_text() == "x\n"
    assert not (folder / "b.out").exists()


def test_jobs_and_targets_bound_what_runs(tmp_path: Path) -> None:
    meet = "until test $(grep -c + noted.jobs) -ge 2; do sleep 0.1; done"  # never, if one runs at a time
    noting = f"echo + >> noted.jobs; {meet}; sleep 0.2; echo - >> noted.jobs"
    folder = workspace(
        tmp_path / "w",
        {name: writes(f"{name}.out", cmd=noting, meta={"timeout": 60}) for name in ("a", "b", "c", "d")},
    )
    compress(targets=["a", "b", "c"], jobs=2, folder=folder)
    marks = (folder / "noted.jobs").read_text().split()
    depth = [sum(1 if mark == "+" else -1 for mark in marks[: index + 1]) for index in range(len(marks))]
    assert max(depth) == 2
    assert len(marks) == 6
    assert not (folder / "d.out").exists()


def test_a_server_that_does_not_start_in_time_is_told_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def late(*_: Any, **__: Any) -> None:
        raise RuntimeError("Timed out while attempting to connect to ephemeral Prefect API server.")

    monkeypatch.setattr(dag, "compress", late)
    monkeypatch.chdir(workspace(tmp_path / "w", DIAMOND))
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        assert command.main([]) == 1
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    first, told = capsys.readouterr().err.split("\n", 1)
    assert first == LOOKING
    assert told.startswith("error: the Prefect server of this run did not answer in time; run again when")
    assert "Traceback" not in told


def test_a_dry_run_runs_nothing(tmp_path: Path) -> None:
    folder = workspace(tmp_path / "w", DIAMOND)
    state = compress(dry_run=True, folder=folder, return_state=True)
    assert state.is_completed()
    assert state.message == "4 stages would run"
    assert not (folder / "a.out").exists()


LOOKING = "Looking for what has changed"


def environment() -> dict[str, str]:
    """Return the variables with which the command line finds our code and this session's server."""
    return {"PYTHONPATH": str(ROOT), "PREFECT_API_URL": str(PREFECT_API_URL.value())}


FLOWS = ("flows.artifacts", "flows.local", "flows.progress", "flows.session", "tests.warm_dvc")


def start(folder: Path, *words: str) -> Forked:
    """Start the command line on this session's server, as a fork of a process that has imported Prefect."""
    variables = os.environ | environment() | {VARIABLE: address()}
    return Forked(kept(*FLOWS, **environment()), ["flows.compress", *words], folder, variables)


def start_cold(folder: Path, *words: str, **changes: str) -> subprocess.Popen[str]:
    """Start the command line as a person does, in a Python of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "flows.compress", *words],
        cwd=folder,
        env=os.environ | environment() | changes,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finished(folder: Path, *words: str) -> tuple[int, str]:
    """Return the exit status and the output of a whole run."""
    process = start(folder, *words)
    output, _ = process.communicate()
    return process.wait(), output


def test_the_command_line_from_first_run_to_no_op(tmp_path: Path) -> None:
    folder = workspace(tmp_path / "w", DIAMOND)
    status, output = finished(folder, "--dry-run")
    assert (status, output.splitlines()[:2]) == (0, [LOOKING, "a: deleted a.out"])
    cold = start_cold(folder)
    output, _ = cold.communicate()
    assert cold.returncode == 0, output
    assert "4 Ran in" in output
    status, output = finished(folder)
    assert (status, output) == (0, f"{LOOKING}\nAll 4 stages are up to date.\n")


MEET = "touch {0}.begun; for i in $(seq 200); do test -e {1}.begun && break; sleep 0.05; done; "
"""Wait for the other one of two stages, so that both run at once."""


@pytest.mark.slow
def test_stages_at_once_see_a_gpu_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    noted = "echo $CUDA_VISIBLE_DEVICES > {0}.seen"
    stages = {
        name: writes(f"{name}.out", cmd=(MEET + noted).format(name, other), meta={"gpu": 1})
        for name, other in (("a", "b"), ("b", "a"))
    }
    stages["c"] = writes("c.out", cmd=noted.format("c"))
    folder = workspace(tmp_path / "w", stages)
    status, output = finished(folder, "--jobs", "3")
    assert status == 0, output
    seen = {name: (folder / f"{name}.seen").read_text().strip() for name in "abc"}
    assert {seen["a"], seen["b"]} == {"4", "7"}
    assert seen["c"] == "4,7"


@pytest.mark.slow  # tests/test_session.py has it without Prefect
def test_the_command_line_begins_with_the_records_of_code(tmp_path: Path) -> None:
    folder = workspace(tmp_path / "w", recorded())
    (folder / "library" / "used").mkdir(parents=True)
    (folder / "library" / "used" / "one").write_text("1")
    status, output = finished(folder)
    assert status == 0, output
    assert "3 Ran in" in output
    (folder / "library" / "unused").write_text("1")
    assert finished(folder) == (0, f"{LOOKING}\nAll 3 stages are up to date.\n")
    (folder / "library" / "used" / "one").write_text("2")
    reasons = "a: modified library/used/one\nb: comes after others that run\n"
    assert finished(folder, "--dry-run") == (0, f"{LOOKING}\n{reasons}")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["nowhere"], "error: DVC cannot plan: .*'nowhere'.*; known are a, b, c, d$"),
        (["aa"], "error: DVC cannot plan: .*'aa'.*; did you mean 'a'\\?"),
        (["--jobs", "0"], "--jobs: expected 1 or more, found 0"),
        (["--unknown"], "unrecognized arguments: --unknown"),
    ],
)
def test_a_wrong_word_is_told_without_a_trace(words: list[str], told: str, tmp_path: Path) -> None:
    status, output = finished(workspace(tmp_path / "w", DIAMOND), *words)
    assert status != 0
    assert re.search(told, output), output
    assert "Traceback" not in output


def test_a_failure_shows_its_last_lines_and_the_command_to_repeat_it(tmp_path: Path) -> None:
    stages = {
        "bad": writes("bad.out", cmd="echo because of this; false"),
        "after": writes("c.out", "bad.out"),
    }
    folder = workspace(tmp_path / "w", stages)
    status, output = finished(folder)
    assert status == 1
    end = output[output.index("bad failed") :]
    assert "because of this" in end
    assert "dvc repro --single-item bad" in end
    assert "1 Failed, 1 Skipped" in end
    assert "Traceback" not in output
    log = re.search(r"all that it printed: (\S+)", end)
    assert log is not None
    assert "because of this\n" in (folder / log[1]).read_text()
    assert "because of this" in output.replace(end, "")  # and as it came


@pytest.mark.slow  # tests/test_pool.py has it for workers
def test_a_second_flow_leaves_and_says_who_has_the_workspace(tmp_path: Path) -> None:
    folder = workspace(tmp_path / "w", {"a": writes("a.out", cmd="echo $$ > noted.pid; sleep 60")})
    first = start(folder)
    pid_in(folder / "noted.pid")
    status, output = finished(folder)
    assert status == 1
    assert f"Another flow works in {folder}: process {first.pid}" in output
    first.send_signal(signal.SIGTERM)
    first.communicate()


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    """Yield a workspace where `first` is done and `slow` runs, the flow, and the stage's process."""
    stages = {
        "first": writes("first.out"),
        "slow": writes("slow.out", "first.out", cmd="echo $$ > noted.pid; sleep 60 & wait"),
        "last": writes("last.out", "slow.out"),
    }
    folder = workspace(tmp_path / "w", stages)
    flow = start(folder)
    yield folder, flow, pid_in(folder / "noted.pid")
    if flow.poll() is None:
        flow.kill()
    flow.communicate()


def assert_clean(folder: Path, flow: Forked, pid: int, seconds: float = 20.0) -> None:
    """Assert that soon nothing is left of a stopped flow, and that the next one does only what is missing."""
    began = time.monotonic()
    flow.wait(seconds)
    left = seconds - (time.monotonic() - began)
    assert until(lambda: not alive(pid) and not held(folder), left)
    rwlock = folder / ".dvc" / "tmp" / "rwlock"
    assert not rwlock.exists() or all(not value for value in json.loads(rwlock.read_text()).values())
    assert not (folder / "slow.out").exists()
    assert "slow" not in yaml.safe_load((folder / "dvc.lock").read_text())["stages"]
    entries = yaml.safe_load((folder / "dvc.yaml").read_text())["stages"]
    entries["slow"]["cmd"] = entries["slow"]["cmd"].replace("sleep 60", "sleep 0")
    rewrite(folder, entries)
    status, output = finished(folder)
    assert status == 0, output
    assert "1 UpToDate, 2 Ran in" in output


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGINT,
        pytest.param(signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param(signal.SIGKILL, marks=pytest.mark.slow),  # tests/test_pool.py has it for workers
    ],
)
def test_a_signal_leaves_nothing_behind(number: signal.Signals, running: Running) -> None:
    folder, flow, pid = running
    flow.send_signal(number)
    assert_clean(folder, flow, pid)
    assert flow.returncode == (130 if number != signal.SIGKILL else -9)
    assert ("stopping 1 stage: slow…" in flow.communicate()[0]) == (number != signal.SIGKILL)


@pytest.mark.slow  # tests/test_pool.py has it for workers
def test_a_watchdog_that_is_killed_ends_the_flow_and_all_stages(running: Running) -> None:
    folder, flow, pid = running
    (dog,) = [child for child in descendants(flow.pid) if "watchdog.py" in " ".join(child.cmdline())]
    dog.kill()
    assert_clean(folder, flow, pid, 8)
    assert flow.returncode == 1
    output, _ = flow.communicate()
    assert "the process that ends all stages was ended by somebody" in output, output
    assert "Traceback" not in output


def test_the_first_line_comes_before_prefect_is_loaded(tmp_path: Path) -> None:
    script = (
        "import sys; from flows import compress; compress.main(['--dry-run']);"
        "print(sorted({'prefect', 'torch', 'dvc'} & set(sys.modules)))"
    )
    folder = workspace(tmp_path / "w", {"a": writes("a.out")})
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=folder,
        env=os.environ | environment(),
        capture_output=True,
        text=True,
    )
    assert done.stdout.splitlines() == ["a: deleted a.out", "[]"], done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_server_of_its_own_goes_with_the_flow(
    number: signal.Signals, tmp_path: Path, prefect_database: Path
) -> None:
    (tmp_path / "prefect").mkdir()
    shutil.copy(prefect_database, tmp_path / "prefect" / "prefect.db")
    folder = workspace(tmp_path / "w", {"a": writes("a.out", cmd="echo $$ > noted.pid; sleep 60")})
    flow = start_cold(folder, PREFECT_API_URL="", PREFECT_HOME=str(tmp_path / "prefect"))
    assert until((folder / "noted.pid").exists, 120)
    (server,) = [child for child in descendants(flow.pid) if "uvicorn" in child.cmdline()]
    flow.send_signal(number)
    flow.wait(10)
    assert until(lambda: not alive(server.pid) and not alive(pid_in(folder / "noted.pid")), 5)
    flow.communicate()


def test_a_signal_cuts_the_delay_before_a_retry_short(tmp_path: Path) -> None:
    stage = writes("a.out", cmd="echo x >> noted.tries; false", meta={"retries": 1, "retry_delay": 600})
    folder = workspace(tmp_path / "w", {"a": stage})
    flow = start(folder)
    retrying = TaskRunFilter(state=TaskRunFilterState(name=TaskRunFilterStateName(any_=["Retrying"])))
    with get_client(sync_client=True) as client:
        assert until(lambda: client.read_task_runs(task_run_filter=retrying) != [], 30)
    flow.send_signal(signal.SIGINT)
    assert flow.wait(5) == 130
    flow.communicate()
    assert (folder / "noted.tries").read_text() == "x\n"


@pytest.mark.slow  # a signal takes the same way from the stage on
def test_a_cancel_in_the_ui_leaves_nothing_behind(running: Running) -> None:
    folder, flow, pid = running
    with get_client(sync_client=True) as client:
        started = [run for run in client.read_flow_runs() if run.state and run.state.is_running()]
        run = max(
            started, key=lambda run: str(run.start_time)
        )  # one that was killed counts as running for long
        client.set_flow_run_state(run.id, Cancelling())
        assert_clean(folder, flow, pid)
        state = client.read_flow_run(run.id).state
    assert flow.returncode == 1
    assert state is not None and state.is_cancelled()


@pytest.mark.parametrize(
    ("code", "told", "missing"),
    [
        (0, "", []),
        (1, "error: params.yaml has no section\n", ["no page of all models: params.yaml has no section"]),
        (
            1,
            "Traceback\nModuleNotFoundError: No module named 'altair'\n",
            ["no page of all models: ModuleNotFoundError: No module named 'altair'"],
        ),
        (-9, "", ["no page of all models: exit code -9"]),
    ],
)
def test_the_page_of_all_models_is_linked_or_missed_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, told: str, missing: list[str]
) -> None:
    ran: list[tuple[list[str], Path]] = []
    links: list[dict[str, str]] = []

    def run(command: list[str], cwd: Path, **_: object) -> subprocess.CompletedProcess[str]:
        ran.append((command[1:], cwd))
        return subprocess.CompletedProcess(command, code, "", told)

    monkeypatch.setattr(artifacts.subprocess, "run", run)
    monkeypatch.setattr(artifacts, "create_link_artifact", lambda **given: links.append(given))
    assert artifacts.link_page(tmp_path) == missing
    assert ran == [(["-m", "tasks.report.page"], tmp_path)]
    page = tmp_path / "report" / "index.html"
    assert [(link["key"], link["link"]) for link in links] == [("report", page.as_uri())] * (not missing)


def test_artifacts_hold_what_the_ui_shows(tmp_path: Path) -> None:
    folder = workspace(tmp_path / "w", {"a": writes("a.out")})
    (folder / "report").mkdir()
    (folder / "report" / "tradeoff.png").write_bytes(b"\x89PNG picture")
    (folder / "metrics").mkdir()
    (folder / "metrics" / "teacher.json").write_text('{"accuracy": 0.5}')
    state = compress(folder=folder, return_state=True)
    with get_client(sync_client=True) as client:
        found = {}
        for key in ("stages", "metrics", "tradeoff"):
            try:
                response = client._client.get(f"/artifacts/{key}/latest")
            except ObjectNotFound:
                continue
            found[key] = response.json()
    assert all(one["flow_run_id"] == str(state.state_details.flow_run_id) for one in found.values())
    (row,) = json.loads(found["stages"]["data"])
    assert (row["stage"], row["state"]) == ("a", "Ran")
    assert json.loads(found["metrics"]["data"]) == [{"model": "teacher", "accuracy": 0.5}]
    assert "](data:image/png;base64,iVBORyBwaWN0dXJl)" in found["tradeoff"]["data"]
