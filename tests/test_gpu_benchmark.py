"""The benchmark of GPUs, as far as a processor knows: which tests it runs, its arithmetic, its page."""

from __future__ import annotations

import time

import pytest
import torch

from benchmarks import gpu
from benchmarks.gpu import Bench, of_steps, page, with_gpu_tests
from benchmarks.training import WAYS
from tests.imports import ROOT

FOUND = {
    "card": "a card",
    "torch": "2.0",
    "seconds": 9,
    "tests": "1 passed",
    "images": {"bare step": 100, "teacher": 95, "bare compiled step": 200, "teacher, compiled": 150},
    "loop": dict.fromkeys(WAYS, 100.0),
    "memory": {"bare step": 1, "the loop": 1},
    "processes": {"2 processes": 190},
    "products": {"float16": 7.0},
    "layers": {"GPTQ, 4 bits, s": 0.5},
}


def test_all_tests_that_need_a_gpu_are_run() -> None:
    run = {file.relative_to(ROOT).as_posix() for file in with_gpu_tests()}
    assert run >= {f"tests/test_{name}.py" for name in ("compiling", "devices", "distillation", "processes")}
    for file in (ROOT / "tests").rglob("*.py"):
        text = file.read_text(encoding="utf-8")
        if "@pytest.mark.cuda" in text or "@gpu_test" in text or "needs_gpu" in text:
            assert file.relative_to(ROOT).as_posix() in run | {"tests/test_gpu_benchmark.py"}


def test_each_training_is_compared_with_the_step_that_is_computed_as_it_is() -> None:
    asked = {each.what: each for each in of_steps(FOUND["images"])}  # type: ignore[arg-type]
    assert list(asked) == [
        "teacher / bare step, images/s",
        "teacher, compiled / bare compiled step, images/s",
    ]
    assert asked["teacher / bare step, images/s"].held
    assert asked["teacher, compiled / bare compiled step, images/s"].found == pytest.approx(0.75)


def test_the_page_says_what_was_measured() -> None:
    text = page(FOUND)
    assert "| teacher, compiled / bare compiled step, images/s | at least 0.95 | 0.75 | **no** |" in text
    assert "| 2 processes | 190 |" in text
    assert "as there is one GPU" in page({**FOUND, "processes": {}})


@pytest.mark.slow
def test_two_processes_are_timed_together() -> None:
    bench = Bench(torch.device("cpu"), gpu.drawn(8), time.perf_counter() + 120)
    assert gpu.shared_out(bench, 2) > 0
