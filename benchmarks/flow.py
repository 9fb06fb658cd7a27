"""What the flow costs and saves beside plain `dvc repro`, in one run.

    python -m benchmarks.flow [--write benchmarks/flow.md] [--only a b c d] [--rounds 3]

(a) the default pipeline forced, (b) twelve stages that sleep five seconds, (c) a no-op, (d) graphs of 10, 50
and 200 stages that do nothing. Ways are timed in turn, round by round, so that a slow minute of the machine
meets all of them; (a) has one round. A Prefect server is up the whole time, as it is for whoever schedules.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from prefect.testing.utilities import prefect_test_harness

from benchmarks.pipeline import share_downloads
from flows.plan import Plan, Schedule
from flows.pool import Pool
from tasks.benchmark.measure import describe_machine
from tests.clones import clone, isolated, read_params, sums, write_params
from tests.imports import ROOT
from tests.toys import workspace, writes

JOBS = (1, 2, 4)
ONE_JOB = "flow, 1 job"
SIZES = (10, 50, 200)
Times = dict[str, list[float]]


def main() -> None:
    """Measure, print the tables, and exit with 1 where the flow and `dvc repro` left different bytes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--write", type=Path, help="write the page to this file too")
    parser.add_argument("--only", nargs="*", default=list("abcd"), choices=list("abcd"))
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    parts = {"a": whole_pipeline, "b": sleepers, "c": no_op, "d": graphs}
    page = sections_of(arguments.write) if arguments.write else {}
    with tempfile.TemporaryDirectory(prefix="decant-benchmark-") as temporary, server():
        for name in arguments.only:
            page[name] = parts[name](Path(temporary), arguments.rounds)
            if arguments.write:  # after each part: all of them take an hour
                arguments.write.write_text(text_of(page), encoding="utf-8")
    print(text_of(page))
    sys.exit("DIFFERENT BYTES" in text_of(page))


def sections_of(page: Path) -> dict[str, str]:
    """Return the parts that a page has already, for those that are not measured again."""
    text = page.read_text(encoding="utf-8") if page.exists() else ""
    return {section[1]: f"## {section}" for section in text.split("\n## ")[1:]}


def text_of(page: dict[str, str]) -> str:
    """Return a page with its parts in order."""
    machine = describe_machine(threads=1)
    told = f"Machine: {os.cpu_count()} cores, {machine['processor']}, Python {machine['python']}."
    head = f"Written by `python -m benchmarks.flow --write benchmarks/flow.md`.\n\n{told}\n"
    return "\n".join([head, *(page[name].rstrip() + "\n" for name in sorted(page))])


@contextlib.contextmanager
def server() -> Iterator[None]:
    """Have a Prefect server whose address children find in PREFECT_API_URL."""
    from prefect.settings import PREFECT_API_URL

    with prefect_test_harness(server_startup_timeout=120):
        os.environ["PREFECT_API_URL"] = str(PREFECT_API_URL.value())
        yield


def whole_pipeline(temporary: Path, _: int) -> str:
    """Return part (a): every stage of the default pipeline forced, and what stage times predict."""
    folder = clone(temporary / "decant")
    share_downloads(folder)
    committed = sums(folder)
    seconds: dict[str, float] = {}
    for way in ways():
        seconds[way] = timed(command(way, "--force"), folder)
        if way == ONE_JOB:
            each = seconds_of_stages((temporary / "log").read_text(encoding="utf-8"))
    same = "The same bytes as in dvc.lock each time."
    if any(committed.get(path) != md5 for path, md5 in sums(folder).items()):
        same = "DIFFERENT BYTES from those in dvc.lock."
    plan = planned(folder)
    lines = [f"## (a) The default pipeline, {len(plan.stages)} stages, forced", "", same, "", *table(seconds)]
    chain = longest_chain(plan, each)
    lines += ["", *predictions(folder, plan, each)]
    lines += [
        "",
        f"With the threads of params.yaml the longest chain of stages takes {chain:.0f} s: no number of",
        "cores goes below it.",
        "",
    ]
    return "\n".join(lines)


def predictions(folder: Path, plan: Plan, each: dict[str, float]) -> list[str]:
    """Return a table of what stage times predict for other counts of threads and cores.

    The teacher keeps its threads: nothing can run beside it.
    """
    counted = {name: stage for name, stage in plan.stages.items() if stage.threads and name != "teacher"}
    trainings = [name for name, stage in counted.items() if stage.operation in ("distill", "finetune")]
    others = [name for name in counted if name not in trainings]
    one, two = with_threads(folder, trainings, 1), with_threads(folder, others, 2)
    rows = []
    for words, changed, count in (
        ("2 for every operation", two, 2),
        ("2 for trainings, 1 for the rest", {}, 0),
        ("1 for all but the teacher", one, 1),
    ):
        stages = {
            name: replace(stage, threads=count if name in changed else stage.threads)
            for name, stage in plan.stages.items()
        }
        times = each | changed
        spans = [sum(times.values()), *(makespan(Plan(stages), times, cores) for cores in (2, 4, 8))]
        rows.append(f"| {words} | {' | '.join(f'{span:.0f}' for span in spans)} |")
    return [
        "What the seconds of single stages predict, without any overhead of the flow, for the counts of",
        "threads that params.yaml may give to operations; the second choice is its default:",
        "",
        "| threads | one after another, 2 cores | flow, 2 cores | flow, 4 cores | flow, 8 cores |",
        "|---|---:|---:|---:|---:|",
        *rows,
    ]


def with_threads(folder: Path, stages: list[str], count: int) -> dict[str, float]:
    """Return the seconds of stages with another count of threads than params.yaml has."""
    params = read_params(folder)
    write_params(folder, params | {"threads": dict.fromkeys(params["threads"], count)})
    seconds = {}
    with Pool(folder) as pool:
        for name in stages:
            print(f"{time.strftime('%H:%M:%S')} {name}, {count} threads", file=sys.stderr, flush=True)
            began = time.monotonic()
            pool.run(name, force=True)
            seconds[name] = time.monotonic() - began
    write_params(folder, params)
    return seconds


def seconds_of_stages(log: str) -> dict[str, float]:
    """Return how long each stage took, out of what a flow has printed."""
    return {
        name: float(value) for name, value in re.findall(r"^\S+ (\S+): Ran, ([\d.]+) s$", log, re.MULTILINE)
    }


def sleepers(temporary: Path, rounds: int) -> str:
    """Return part (b): twelve stages of five seconds that do not depend on each other."""
    stages = {f"s{index}": writes(f"s{index}.out", cmd="sleep 5") for index in range(12)}
    times = compared({way: workspace(temporary / f"b-{way}", stages) for way in ways()}, rounds, "--force")
    ideal = {"dvc repro": 60, "flow, 1 job": 60, "flow, 2 jobs": 30, "flow, 4 jobs": 15}
    rows = [
        f"| {way} | {spread(values)} | {ideal[way]} | {statistics.median(values) / ideal[way]:.2f} |"
        for way, values in times.items()
    ]
    head = ["| way | s | critical path, s | ratio |", "|---|---:|---:|---:|"]
    return "\n".join(["## (b) Twelve stages that sleep 5 s", "", *head, *rows, ""])


def no_op(temporary: Path, rounds: int) -> str:
    """Return part (c): nothing to do, in the default pipeline."""
    folder = clone(temporary / "no-op")
    share_downloads(folder)
    cache = folder / ".dvc" / "cache"
    shutil.copytree(ROOT / ".dvc" / "cache", cache, dirs_exist_ok=True)
    subprocess.run([sys.executable, "-m", "dvc", "checkout", "-q"], cwd=folder, env=isolated(), check=True)
    times: Times = {}
    for _ in range(rounds):
        for way in ("dvc repro", "flow, 2 jobs"):
            times.setdefault(way, []).append(timed(command(way), folder))
    return "\n".join(["## (c) Nothing to do in the default pipeline", "", *table(times), ""])


def graphs(temporary: Path, rounds: int) -> str:
    """Return part (d): the overhead of a stage, and how it grows with the graph."""
    totals: dict[int, dict[str, float]] = {}
    for count in SIZES:
        stages = {"s0": writes("s0.out")}
        stages |= {f"s{index}": writes(f"s{index}.out", "s0.out") for index in range(1, count)}
        folders = {way: workspace(temporary / f"d{count}-{way}", stages) for way in ways()}
        times = compared(folders, 1 if count > 50 else rounds, "--force")
        totals[count] = {way: statistics.median(values) for way, values in times.items()}
    head = [f"| stages | {' | '.join(ways())} |", f"|---:|{'---:|' * len(ways())}"]
    lines = ["## (d) Stages that do nothing, each after the first one", "", "Seconds, all in all:", "", *head]
    lines += [_row(str(count), totals[count].values(), 1) for count in SIZES]
    lines += ["", "Seconds for each stage more, from one size to the next:", "", *head]
    for fewer, more in pairwise(SIZES):
        each = [(totals[more][way] - totals[fewer][way]) / (more - fewer) for way in ways()]
        lines.append(_row(f"{fewer} to {more}", each, 3))
    return "\n".join([*lines, ""])


def _row(head: str, values: Iterable[float], digits: int) -> str:
    return f"| {head} | {' | '.join(f'{value:.{digits}f}' for value in values)} |"


def ways() -> list[str]:
    """Return what is compared."""
    return ["dvc repro", *(f"flow, {jobs} job{'s' if jobs > 1 else ''}" for jobs in JOBS)]


def command(way: str, *words: str) -> list[str]:
    """Return the command line of a way."""
    if way == "dvc repro":
        return [sys.executable, "-m", "dvc", "repro", *words]
    return [sys.executable, "-m", "flows.compress", "--jobs", way.split()[1], *words]


def compared(folders: dict[str, Path], rounds: int, *words: str) -> Times:
    """Return the seconds of each way, one for each round, in folders of its own."""
    times: Times = {way: [] for way in folders}
    for _ in range(rounds):
        for way, folder in folders.items():
            times[way].append(timed(command(way, *words), folder))
    return times


def timed(words: list[str], folder: Path) -> float:
    """Return how long a command takes; its lines go to a file beside the folder."""
    environment = isolated() | {"PYTHONPATH": str(ROOT), "PREFECT_API_URL": os.environ["PREFECT_API_URL"]}
    print(f"{time.strftime('%H:%M:%S')} {folder.name}: {' '.join(words[1:])}", file=sys.stderr, flush=True)
    with (folder.parent / "log").open("w+") as log:
        began = time.monotonic()
        done = subprocess.run(words, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT)
        seconds = time.monotonic() - began
        if done.returncode:
            log.seek(0)
            sys.exit(f"error: {' '.join(words)} exited with {done.returncode}:\n{log.read()[-2000:]}")
    return seconds


def planned(folder: Path) -> Plan:
    """Return the DAG of a workspace."""
    with Pool(folder) as pool:
        return Plan.read(pool.plan([]))


def makespan(plan: Plan, seconds: dict[str, float], cores: int) -> float:
    """Return when the last stage would end, if `flows.plan.Schedule` had so many cores."""
    schedule = Schedule(plan, plan.stages, cores, cores, [])
    clock, running = 0.0, dict[str, float]()
    while not schedule.finished:
        for stage, _ in schedule.start():
            running[stage.name] = clock + seconds[stage.name]
        name = min(running, key=lambda name: running[name])
        clock = running.pop(name)
        schedule.done(name)
    return clock


def longest_chain(plan: Plan, seconds: dict[str, float]) -> float:
    """Return the seconds of the slowest chain of stages that wait for each other."""
    ends: dict[str, float] = {}
    for name, stage in plan.stages.items():
        ends[name] = seconds[name] + max(
            (ends[above] for above in stage.upstream if above in ends), default=0.0
        )
    return max(ends.values())


def table(times: dict[str, Any]) -> list[str]:
    """Return a table of ways, their seconds, and the ratio to plain `dvc repro`."""
    lists = {way: value if isinstance(value, list) else [value] for way, value in times.items()}
    base = statistics.median(lists["dvc repro"])
    rows = [
        f"| {way} | {spread(values)} | {statistics.median(values) / base:.2f} |"
        for way, values in lists.items()
    ]
    return ["| way | s | ratio |", "|---|---:|---:|", *rows]


def spread(values: list[float]) -> str:
    """Return the median, and the smallest and largest where there are more."""
    middle = f"{statistics.median(values):.1f}"
    return middle if len(values) == 1 else f"{middle} ({min(values):.1f} to {max(values):.1f})"


if __name__ == "__main__":
    main()
