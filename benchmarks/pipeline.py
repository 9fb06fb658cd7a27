"""What `make repro` costs once everything is installed, and where the time goes.

    python -m benchmarks.pipeline [--write benchmarks/pipeline.md]

Builds every stage from nothing in a throw-away clone, so that no cache helps, and compares the sums of
all outputs with the committed dvc.lock: the same commit has to give the same bytes.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from tasks.benchmark.measure import describe_machine
from tests.clones import clone, isolated, sums
from tests.imports import ROOT

STARTS = 3


@dataclass
class Stage:
    """One stage's seconds: its whole command, and the training in it as the progress bar tells."""

    name: str
    command: str = ""
    seconds: float = 0.0
    training: float = 0.0

    @property
    def operation(self) -> str:
        """Return the module that the command runs, such as `tasks.prune`."""
        return self.command.split()[2]


def main() -> None:
    """Measure, print the tables, and exit with 1 where the bytes differ from dvc.lock."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--write", type=Path, help="write the tables to this file too")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="decant-benchmark-") as temporary:
        folder = clone(Path(temporary) / "decant")
        committed = sums(folder)
        share_downloads(folder)
        forget_times(folder)
        stages, total, peak = build(folder)
        starts = {name: start_seconds(folder, name) for name in {stage.operation for stage in stages}}
        differing = sorted(path for path, md5 in sums(folder).items() if committed.get(path) != md5)
    page = tables(stages, starts, total, peak, differing)
    print(page)
    if arguments.write:
        arguments.write.write_text(page, encoding="utf-8")
    sys.exit(1 if differing else 0)


def share_downloads(folder: Path) -> None:
    """Copy data/raw where there is one: the download is no part of what is measured."""
    for file in (ROOT / "data" / "raw").rglob("*.gz"):
        target = folder / file.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(file.read_bytes())


def forget_times(folder: Path) -> None:
    """Remove the committed latencies, or a processor that has its own among them would not measure any."""
    for table in (folder / "benchmark").glob("*.json"):
        table.unlink()


def build(folder: Path) -> tuple[list[Stage], float, int]:
    """Return each stage's seconds in order, the seconds of all, and the peak of resident bytes."""
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "dvc", "repro", "--force", "--no-run-cache"],
        cwd=folder,
        env=isolated() | {"PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    memory = Memory(process.pid)
    stages = list(read_stages(lines(process)))
    if process.wait():
        sys.exit(f"error: dvc repro exited with {process.returncode}; run it yourself to see why")
    return stages, time.monotonic() - began, memory.stop()


def lines(process: subprocess.Popen[bytes]) -> Iterator[str]:
    """Yield what the process prints, cut at line ends and at a progress bar's carriage returns."""
    assert process.stdout is not None
    rest = b""
    while chunk := os.read(process.stdout.fileno(), 65536):
        sys.stderr.buffer.write(chunk)
        sys.stderr.flush()
        *whole, rest = re.split(rb"[\r\n]", rest + chunk)
        yield from (line.decode(errors="replace") for line in whole)


def read_stages(printed: Iterator[str]) -> Iterator[Stage]:
    """Yield each stage when it ends: DVC saves new outputs, begins with another stage, or has no more to say.

    Where the outputs are the ones that dvc.lock names, DVC has no line for the end.
    """
    stage, began = None, 0.0
    for line in printed:
        if stage and re.match(r"Running stage '|Updating lock file|Generating lock file", line):
            stage.seconds = time.monotonic() - began
            yield stage
            stage = None
        if match := re.match(r"Running stage '(.+)':", line):
            stage, began = Stage(match[1]), time.monotonic()
        elif stage and not stage.command and line.startswith("> "):
            stage.command = line[2:]
        elif stage and (match := re.search(r"\[(?:(\d+):)?(\d+):(\d+)<.*images/s", line)):
            hours, minutes, seconds = (int(part or 0) for part in match.groups())
            stage.training = 3600 * hours + 60 * minutes + seconds
    if stage:
        stage.seconds = time.monotonic() - began
        yield stage


class Memory:
    """The largest sum of resident bytes of a process and its descendants, sampled five times a second."""

    def __init__(self, pid: int) -> None:
        self._process, self._peak, self._done = psutil.Process(pid), 0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._done.wait(0.2):
            resident = 0
            try:
                for process in [self._process, *self._process.children(recursive=True)]:
                    resident += process.memory_info().rss
            except psutil.NoSuchProcess:
                continue
            self._peak = max(self._peak, resident)

    def stop(self) -> int:
        """Return the peak."""
        self._done.set()
        self._thread.join()
        return self._peak


def start_seconds(folder: Path, operation: str) -> float:
    """Return the median seconds from starting Python to the first line of the stage's main."""
    command = [sys.executable, "-c", f"import {operation}.__main__"]
    times = []
    for _ in range(STARTS):
        began = time.monotonic()
        subprocess.run(command, cwd=folder, env=isolated(), check=True)
        times.append(time.monotonic() - began)
    return statistics.median(times)


def tables(
    stages: list[Stage], starts: dict[str, float], total: float, peak: int, differing: list[str]
) -> str:
    """Return the page: where the time goes as a whole, then stage by stage."""
    machine = describe_machine(threads=1)
    in_stages = sum(stage.seconds for stage in stages)
    training = sum(stage.training for stage in stages)
    start = sum(starts[stage.operation] for stage in stages)
    parts = {
        "training": training,
        "other work of the stages": in_stages - training - start,
        "starting Python and importing": start,
        "DVC: hashing, copying, locking": total - in_stages,
    }
    rows = [f"| {name} | {value:.0f} | {value / total:.0%} |" for name, value in parts.items()]
    each = [f"| {s.name} | {s.seconds:.1f} | {starts[s.operation]:.1f} | {s.training:.0f} |" for s in stages]
    same = "the same bytes as in dvc.lock" if not differing else f"DIFFERENT BYTES: {', '.join(differing)}"
    return "\n".join(
        [
            "Written by `python -m benchmarks.pipeline --write benchmarks/pipeline.md`.",
            "",
            f"{len(stages)} stages in {total:.0f} s, {peak / 1e9:.2f} GB of memory at the peak"
            f" (all processes), {same}.",
            f"Machine: {os.cpu_count()} cores, {machine['processor']}, Python {machine['python']}.",
            f"Neither training nor other work of a stage, so not the mathematics: "
            f"{(start + total - in_stages) / total:.0%}.",
            "",
            "| where the time goes | s | share |",
            "|---|---:|---:|",
            *rows,
            "",
            "| stage | s | of it start | of it training |",
            "|---|---:|---:|---:|",
            *each,
            "",
        ]
    )


if __name__ == "__main__":
    main()
