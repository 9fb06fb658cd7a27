"""The benchmark of the pipeline reads what DVC prints, whether or not dvc.lock changes."""

import pytest

from benchmarks import pipeline
from benchmarks.pipeline import read_stages


def test_stages_are_read_with_and_without_new_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(float(second) for second in (0, 7, 7, 9, 9, 12))
    monkeypatch.setattr(pipeline.time, "monotonic", lambda: next(clock))
    printed = [
        "Running stage 'teacher':",
        "> python -m tasks.teacher",
        "teacher:  50%|##| 330k/659k [00:03<00:03, 1.9k images/s]",
        "teacher: 100%|####| 659k/659k [01:05<00:00, 1.9k images/s]",
        "",
        "Running stage 'compress@int8':",
        "> python -m tasks.quantize int8",
        "Updating lock file 'dvc.lock'",
        "Running stage 'report':",
        "> python -m tasks.report",
        "Use `dvc push` to send your updates to remote storage.",
    ]
    stages = list(read_stages(iter(printed)))
    assert [(s.name, s.operation, s.seconds, s.training) for s in stages] == [
        ("teacher", "tasks.teacher", 7.0, 65),
        ("compress@int8", "tasks.quantize", 2.0, 0.0),
        ("report", "tasks.report", 3.0, 0.0),
    ]
