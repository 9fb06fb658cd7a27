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
linux = pytest.mark.skipif(
    not Path("/proc/self/task").exists(), reason="Linux tells the children of a process"
)

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


def begun_to_its_first_epoch(processes: int, epochs: int = 12) -> subprocess.Popen[str]:
    write_params(recipe(processes, epochs=epochs))
    process = begun(*STAGE)
    while not list(Path(".scratch").rglob("*.pt")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    return process


def worker_of(process: subprocess.Popen[str], rank: int) -> int:
    """Return the number of one of the processes that a stage has started."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    variable = f"\0RANK={rank}\0"
    (found,) = [pid for pid in children if variable in f"\0{Path('/proc', pid, 'environ').read_text()}"]
    return int(found)


def went_on(*words: str, processes: int, whole: tuple[Any, Any, float]) -> list[float]:
    """Go on with another number; check the curve, and return how many processes trained each epoch."""
    write_params(recipe(processes, epochs=12))
    code, out, err = ran(*words)
    assert code == 0, err
    assert "not used" not in err
    assert out.count("teacher: teacher") == 1
    rows, step, total = made()
    for row, expected in zip(rows, whole[0], strict=True):
        for name in ("loss", "validation_loss", "accuracy"):
            assert float(row[name]) == pytest.approx(float(expected[name]), rel=1e-3), name
    assert total == pytest.approx(whole[2], rel=1e-4)
    assert step["training"].get("processes", 1) == processes
    counts = [float(row["processes"]) for row in rows]
    assert step["epochs_of_other_processes"] == sum(each != processes for each in counts)
    return counts


@linux
def test_a_training_that_was_killed_goes_on_with_another_number_to_the_curve_of_one(place: Path) -> None:
    write_params(recipe(1, epochs=12))
    assert ran(*STAGE)[0] == 0
    whole = made()
    assert "processes" not in whole[1]["training"]
    killed = begun_to_its_first_epoch(2)
    os.kill(worker_of(killed, 1), signal.SIGKILL)
    _, err = killed.communicate(timeout=60)
    assert killed.returncode == 1 and "Traceback" not in err
    assert "error: Another process of this training ended (" in err
    assert err.splitlines()[-1] == (
        "error: process 1 of 2 was ended by signal 9; run it again: it goes on from the last whole epoch"
    )
    counts = went_on(*STAGE, processes=1, whole=whole)
    assert counts == sorted(counts, reverse=True) and counts[0] == 2 and counts[-1] == 1
    killed = begun_to_its_first_epoch(1)
    killed.kill()
    killed.communicate()
    counts = went_on(*TORCHRUN, *STAGE, processes=2, whole=whole)
    assert counts == sorted(counts) and counts[0] == 1 and counts[-1] == 2


@linux
def test_a_stage_that_is_killed_leaves_no_process_behind(place: Path) -> None:
    process = begun_to_its_first_epoch(2, epochs=10_000)
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
