"""Stages that train in several processes: started by themselves or by torchrun, killed, and gone on with."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from tests.homes import home, noise, write_params
from tests.imports import ROOT

pytestmark = pytest.mark.slow

TEACHER: dict[str, Any] = {
    "architecture": {"kind": "resnet", "widths": [8, 8], "blocks": [0, 1], "pool": 2},
    "training": {"epochs": 3, "batch_size": 16, "average": 0.9},
}
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
STAGE = ("-m", "tasks.teacher")
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def recipe(processes: int, **training: Any) -> dict[str, Any]:
    own = TEACHER["training"] | training | ({"processes": processes} if processes > 1 else {})
    return {"seed": 3, "threads": {"teacher": 1}, "teacher": TEACHER | {"training": own}}


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    with home(tmp_path, noise((1, 8, 8), train=96, validation=40), recipe(1)) as folder:
        yield folder


def begun(*words: str) -> subprocess.Popen[str]:
    streams: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, *words], env=ENVIRONMENT, start_new_session=True, **streams)


def ran(*words: str) -> tuple[int, str, str]:
    process = begun(*words)
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def made() -> tuple[list[dict[str, str]], dict[str, Any], float]:
    """Return the teacher's curve, the last step of its lineage, and the sum of its numbers."""
    with Path("models/teacher/curve.csv").open() as file:
        rows = list(csv.DictReader(file))
    lineage = json.loads(Path("models/teacher/lineage.json").read_text())
    tensors = load_file("models/teacher/model.safetensors").values()
    step = lineage["steps"][-1] if isinstance(lineage, dict) else lineage[-1]
    return rows, step, sum(each.double().abs().sum().item() for each in tensors)


def check_near(one: tuple[Any, Any, float], other: tuple[Any, Any, float]) -> None:
    for row, expected in zip(one[0], other[0], strict=True):
        for name in ("loss", "validation_loss", "accuracy"):
            assert float(row[name]) == pytest.approx(float(expected[name]), rel=2e-5), name
    assert one[2] == pytest.approx(other[2], rel=1e-5)


def test_a_stage_starts_its_processes_and_so_does_torchrun(place: Path) -> None:
    assert ran(*STAGE)[0] == 0
    alone = made()
    write_params(recipe(2))
    code, out, err = ran(*STAGE)
    assert code == 0, err
    assert out.count("teacher: teacher") == 1
    own = made()
    check_near(own, alone)
    assert own[1]["training"]["processes"] == 2 and "processes" not in alone[1]["training"]
    assert [row["processes"] for row in own[0]] == ["2.0"] * 3
    code, out, err = ran(*TORCHRUN, *STAGE)
    assert code == 0, err
    assert made() == own
    write_params(recipe(1))
    code, _, err = ran(*TORCHRUN, *STAGE)
    assert code == 1
    assert "the recipe asks for 1, and 2 were started" in err


def paused(processes: int) -> None:
    """Begin a training, and kill the whole of it once its first epoch is written."""
    write_params(recipe(processes, epochs=40))
    process = begun(*STAGE)
    while not list(Path(".scratch").rglob("*.pt")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_another_number_of_processes_goes_on_where_the_first_was_killed(
    before: int, after: int, place: Path
) -> None:
    write_params(recipe(after, epochs=40))
    assert ran(*STAGE)[0] == 0
    whole = made()
    paused(before)
    write_params(recipe(after, epochs=40))
    code, _, err = ran(*STAGE)
    assert code == 0, err
    assert "not used" not in err
    rows, step, _ = made()
    counts = [float(row["processes"]) for row in rows]
    assert counts == sorted(counts, reverse=before > after)
    assert step["epochs_of_other_processes"] == counts.count(before) > 0
    for row, expected in zip(rows[:8], whole[0], strict=False):
        assert float(row["loss"]) == pytest.approx(float(expected["loss"]), rel=1e-3)


def worker_of(process: subprocess.Popen[str], rank: int) -> int:
    """Return the number of one of the processes that a stage has started."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    (found,) = [
        int(child)
        for child in children
        if f"\0RANK={rank}\0" in f"\0{Path('/proc', child, 'environ').read_text()}"
    ]
    return found


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="Linux tells the children of a process")
@pytest.mark.parametrize("killed", [0, 1])
def test_a_worker_that_is_killed_ends_all_with_a_sentence_and_the_next_run_goes_on(
    killed: int, place: Path
) -> None:
    write_params(recipe(2, epochs=40))
    process = begun(*STAGE)
    while not list(Path(".scratch").rglob("*.pt")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    os.kill(worker_of(process, killed), signal.SIGKILL)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "Traceback" not in err
    assert err.splitlines()[-1] == (
        f"error: process {killed} of 2 was ended by signal 9; run it again: it goes on from the last whole "
        "epoch"
    )
    assert not Path("models/teacher").exists()
    code, _, err = ran(*STAGE)
    assert code == 0 and "not used" not in err
    assert len(made()[0]) == 40


def test_a_stage_that_is_killed_leaves_no_process_behind(place: Path) -> None:
    write_params(recipe(2, epochs=10_000))
    process = begun(*STAGE)
    while not list(Path(".scratch").rglob("*.pt")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    workers = [worker_of(process, rank) for rank in (0, 1)]
    process.kill()
    process.wait()
    check_gone(workers)


def check_gone(workers: Sequence[int]) -> None:
    until = time.monotonic() + 10
    while time.monotonic() < until and any(Path("/proc", str(worker)).exists() for worker in workers):
        time.sleep(0.05)
    assert not [worker for worker in workers if Path("/proc", str(worker)).exists()]


def test_a_mistake_is_told_once(place: Path) -> None:
    write_params(recipe(2, optimizer={"kind": "sgd", "learning_rate": 1e6}))
    code, _, err = ran(*STAGE)
    assert code == 1 and "Traceback" not in err
    told = [line for line in err.replace("\r", "\n").splitlines() if "error: " in line]
    assert len(told) == 1 and "learning rate" in told[0], err
