"""How the threads of a stage wait for each other, by what else runs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from flows import machine
from tasks.pipeline import openmp
from tests.imports import ROOT
from tests.test_pool import until

linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux says which processes run")
PASSIVE = {"OMP_WAIT_POLICY": "PASSIVE"}


@pytest.fixture(autouse=True)
def nothing_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the variables that a user may have set out of the environment."""
    for name in machine.WAITING:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("threads", "running", "others", "policy"),
    [
        (2, 2, 0, {}),
        (2, 4, 0, {}),  # another stage of two threads, each with a core of its own
        (2, 5, 0, PASSIVE),
        (2, 2, 2, {}),
        (2, 2, 3, PASSIVE),
        (1, 5, 9, {}),  # one thread waits for none
        (0, 5, 9, {}),
    ],
)
def test_threads_sleep_where_more_want_to_run_than_there_are_cores(
    threads: int, running: int, others: int, policy: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "cores", lambda: 4)
    monkeypatch.setattr(machine, "others", lambda: others)
    assert machine.wait_policy(threads, running) == policy


@pytest.mark.parametrize("name", machine.WAITING)
def test_what_the_user_chose_stays(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "others", lambda: 1000)
    assert machine.wait_policy(2, 2) == PASSIVE
    monkeypatch.setenv(name, "1")
    assert machine.wait_policy(2, 2) == {}


@linux
def test_only_busy_processes_of_others_count(monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import os, sys\nwhile os.getppid() == int(sys.argv[1]): pass"  # it ends with us, whatever happens
    busy = subprocess.Popen([sys.executable, "-c", code, str(os.getpid())])
    idle = subprocess.Popen(["sleep", "60"])
    try:
        assert until(lambda: busy.pid in machine._running(), 20)
        assert idle.pid not in machine._running()
        ours, passing, lasting = {os.getpid(), busy.pid}, 10**9, 10**9 + 1
        looks = iter([ours | {passing, lasting}, ours | {lasting}])
        monkeypatch.setattr(machine, "_running", lambda: next(looks))
        assert machine.others() == 1
    finally:
        for process in (busy, idle):
            process.kill()
            process.wait()


@pytest.mark.slow
@linux
def test_openmp_has_its_count_of_spins_when_a_stage_loads_torch() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tasks.evaluate"],  # without a model: it ends once torch is loaded
        cwd=ROOT,
        env=os.environ | {"OMP_DISPLAY_ENV": "VERBOSE"},
        capture_output=True,
        text=True,
        check=False,
    )
    (line,) = [line for line in done.stderr.splitlines() if "GOMP_SPINCOUNT" in line]
    assert line.partition("=")[2].strip().strip("'") == openmp.SPINS


def test_a_choice_of_the_user_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["-m", "some-model"])
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    openmp.spin_briefly()
    assert os.environ["GOMP_SPINCOUNT"] == "7"
    monkeypatch.delenv("GOMP_SPINCOUNT")
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    openmp.spin_briefly()
    assert "GOMP_SPINCOUNT" not in os.environ


def test_flows_load_no_torch_and_keep_their_settings(tmp_path: Path) -> None:
    code = (
        "import os, sys, tasks, flows.compare, flows.session; assert 'GOMP_SPINCOUNT' not in os.environ;"
        "assert 'torch' not in sys.modules"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True)


@pytest.mark.parametrize(
    ("visible", "found"),
    [
        ("0,7", ["0", "7"]),
        (" 2, 1", ["2", "1"]),
        ("GPU-8932f937-d72c,MIG-1", ["GPU-8932f937-d72c", "MIG-1"]),
        ("", []),
        ("-1", []),  # how GPUs are hidden
        ("1,-1,0", ["1"]),  # CUDA sees none behind it
        ("NoDevFiles", []),
    ],
)
def test_gpus_are_those_that_cuda_sees(
    visible: str, found: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert machine.gpus() == found


def test_gpus_are_counted_where_no_variable_names_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert machine.gpus() == []
    lines = "GPU 0: A (UUID: GPU-1)\n  MIG 1g.10gb Device 0: (UUID: MIG-2)\nGPU 1: B (UUID: GPU-3)"
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\necho '{lines}'\n")
    tool.chmod(0o755)
    assert machine.gpus() == ["0", "1"]
