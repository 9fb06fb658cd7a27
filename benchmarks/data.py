"""Pictures larger than memory: prepared, mapped and learned from, beside the same pictures in memory.

    python -m benchmarks.data [--out benchmarks] [--bytes 10e9] [--work .scratch/data-benchmark]

JPEG files are drawn from a seed, prepared by the stage `prepare`, and trained on for an epoch by a small
network of convolutions: mapped, with the file in the system's cache and with a cold one; read ahead by two
processes; and all in memory. Each is a process of its own, whose own memory is looked at ten times a second:
RssAnon and RssShmem of it and its children, without the mapped pages, which the system takes back when it
needs them. All files are deleted at the end.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import mmap
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
import yaml
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from decant.examples import Examples, tensors_in
from decant.networks.execution import make_deterministic
from decant.networks.statistics import channels
from decant.progress import progress_bar
from decant.row_groups import GROUP, WINDOW, RowGroups
from decant.training.fit import fit_
from decant.training.recipe import Sgd, Training
from tasks.pipeline.splits import LOADERS, TEST, TRAIN, VALIDATION, read
from tasks.prepare import splits, tables
from tasks.prepare.sources import SOURCES
from tests.imports import ROOT

SIDE, CLASSES = 224, 10
PHOTOS = Path("data/own/photos")
BATCH = 128
HELD = 500
"""Pictures of the validation split, and of the test split."""

RECIPE = Training(epochs=1, batch_size=BATCH, optimizer=Sgd(learning_rate=0.02))
LOADING = 2
"""Processes that read ahead, in one of the runs."""

WORK = ROOT / ".scratch/data-benchmark"

RUNS = {
    "mapped": "mapped",
    "in memory": "memory",
    "mapped, cold cache": "cold",
    f"mapped, {LOADING} loaders": "loaders",
}


def main() -> None:
    """Draw, prepare, train, and write data.json and data.md; or be one of the runs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks"), help="folder for data.json, data.md")
    parser.add_argument("--bytes", type=float, default=10e9, help="of all pictures, decoded")
    parser.add_argument("--work", type=Path, default=WORK, help="a new folder, deleted at the end")
    parser.add_argument("--run", choices=[*RUNS.values()], help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.run:
        print(json.dumps(trained(chosen.run)))
        return
    begin, load, out = time.perf_counter(), os.getloadavg()[0], chosen.out.absolute()
    out.mkdir(parents=True, exist_ok=True)  # before minutes of work
    chosen.work.mkdir(parents=True)
    try:
        os.chdir(chosen.work)
        found = measured(round(chosen.bytes / (3 * SIDE * SIDE)))
    finally:
        os.chdir(ROOT)
        shutil.rmtree(chosen.work)
    found["seconds"] = round(time.perf_counter() - begin)
    found["load"] = [round(each, 1) for each in (load, os.getloadavg()[0])]
    (out / "data.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    (out / "data.md").write_text(page(found), encoding="utf-8")
    print(page(found))


def measured(count: int) -> dict[str, Any]:
    """Return what it takes to prepare so many pictures and to train on them, in the current folder."""
    found: dict[str, Any] = {"pictures": count, "cores": os.cpu_count(), "torch": torch.__version__}
    found["digits"] = "to the bit" if digits_come_back() else "changed"
    begin = time.perf_counter()
    drawn(count)
    found["drawing"] = round(time.perf_counter() - begin, 1)
    shares = {"kind": "shares", "validation": HELD / count, "test": HELD / count}
    data = {"source": "folder", "folder": str(PHOTOS), "size": [SIDE, SIDE], "split": shares}
    Path("params.yaml").write_text(yaml.safe_dump({"seed": 1, "data": data}), encoding="utf-8")
    found["prepare"] = watched([sys.executable, "-m", "tasks.prepare"])[0]
    shutil.rmtree(PHOTOS)
    found["bytes"] = TRAIN.stat().st_size
    found["runs"] = {}
    for what, run in RUNS.items():
        environment = {LOADERS: str(LOADING)} if run == "loaders" else {}
        if run == "cold":
            forget(TRAIN)
        own, text = watched([sys.executable, "-m", "benchmarks.data", "--run", run], environment)
        found["runs"][what] = own | json.loads(text.splitlines()[-1])
        Path("found.json").write_text(json.dumps(found), encoding="utf-8")
        print(f"{what}: {found['runs'][what]}", flush=True)
    return found


# --- pictures


def drawn(count: int) -> None:
    """Write so many JPEG files, of `CLASSES` classes: smooth colours, of which the class is the main one."""
    for label in range(CLASSES):
        (PHOTOS / f"class-{label}").mkdir(parents=True)
    with ProcessPoolExecutor() as pool, progress_bar(None, "drawing", "pictures", total=count) as bar:
        for _ in pool.map(draw, range(count), chunksize=256):
            bar.update()


def draw(number: int) -> None:
    """Write one picture; a function of its number."""
    generator, label = np.random.default_rng(number), number % CLASSES
    colour = np.array([np.cos(label), np.sin(label), np.cos(2 * label)]) * 60 + 128
    field = np.clip(generator.normal(colour, 50, (12, 12, 3)), 0, 255).astype(np.uint8)
    whole = Image.fromarray(field).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    whole.save(PHOTOS / f"class-{label}" / f"{number:06}.jpg", quality=80)


def digits_come_back() -> bool:
    """Say whether scikit-learn's digits are the same bits once they were written and read."""
    source = SOURCES["digits"]
    found = splits.draw(source, 300, seed=0)
    tables.write(found, Path("data"), source)
    both = [(read(path), found[name]) for name, path in zip(found, (TRAIN, VALIDATION, TEST), strict=True)]
    return all(
        [row.tobytes() for row in other.images] == [bytes(row.flatten().tolist()) for row in tensor[:]]
        and np.array_equal(one.known_labels, other.labels)
        for one, other in both
        for tensor in tensors_in(one.images)
    )


def forget(path: Path, examples: Examples | None = None) -> None:
    """Ask the system to drop its cache of a file, also of what examples have mapped of it."""
    if examples is not None:
        assert isinstance(examples.images, RowGroups)
        first, last = examples.images.groups[0], examples.images.groups[-1]
        start = first.data_ptr() // mmap.PAGESIZE * mmap.PAGESIZE
        size = last.data_ptr() + last.nbytes - start
        if ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(size), mmap.MADV_DONTNEED):
            raise OSError("madvise failed")
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


# --- processes


def watched(command: list[str], environment: dict[str, str] | None = None) -> tuple[dict[str, Any], str]:
    """Run a command; return its seconds, the most memory of its own that it had, in bytes, and its output."""
    begin, most = time.perf_counter(), 0
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    variables = os.environ | {"PYTHONPATH": paths} | (environment or {})
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=variables) as process:
        while process.poll() is None:
            most = max(most, own_memory(process.pid))
            time.sleep(0.1)
        assert process.stdout is not None
        text = process.stdout.read()
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}\n{text}")
    return {"seconds": round(time.perf_counter() - begin, 1), "own_bytes": most}, text


def own_memory(number: int) -> int:
    """Return the bytes that a process and its children have, without what is mapped from files."""
    found = 0
    with suppress(psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):
        for each in [number, *(child.pid for child in psutil.Process(number).children(recursive=True))]:
            lines = Path(f"/proc/{each}/status").read_text(encoding="utf-8").splitlines()
            sizes = [line.split()[1] for line in lines if line.startswith(("RssAnon:", "RssShmem:"))]
            found += 1024 * sum(map(int, sizes))
    return found


# --- training


class Net(nn.Module):
    """Two convolutions of the picture in an eighth of its size: 5 million products, few beside reading it."""

    mean: Tensor
    deviation: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 32, 3, padding=1), nn.Conv2d(32, 64, 3, stride=2, padding=1)
        self.head = nn.Linear(64, CLASSES)
        self.register_buffer("mean", torch.zeros(3, 1, 1))
        self.register_buffer("deviation", torch.ones(3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Return logits [N, 10]."""
        hidden = (avg_pool2d(images, 8) - self.mean) / self.deviation
        answers: Tensor = self.head(self.second(self.first(hidden).relu()).relu().mean((2, 3)))
        return answers


def trained(run: str) -> dict[str, Any]:
    """Return the seconds of an epoch and of what comes before it, and a sum over the weights it ends with."""
    make_deterministic(1)
    train, reading = timed(partial(read, TRAIN))
    validation = read(VALIDATION)
    if run == "memory":
        train = in_memory(train)
    elif run == "cold":
        forget(TRAIN, train)
    torch.manual_seed(1)
    module = Net()
    (mean, deviation), summing = timed(partial(channels, train.images))
    module.mean.copy_(mean.reshape(3, 1, 1))
    module.deviation.copy_(deviation.reshape(3, 1, 1))
    if run == "cold":
        forget(TRAIN, train)
    busy = time.process_time()
    curve, epoch = timed(partial(learned, module, train, validation, run))
    busy = time.process_time() - busy
    weights = b"".join(each.numpy().tobytes() for each in module.state_dict().values())
    return {
        "reading": reading,
        "statistics": summing,
        "epoch": epoch,
        "busy": round(busy, 1),
        "rate": round(len(train) / epoch),
        "accuracy": round(curve[0]["validation_accuracy"], 4),
        "weights": sha256(weights).hexdigest()[:16],
    }


def learned(module: nn.Module, train: Examples, validation: Examples, run: str) -> list[dict[str, float]]:
    """Train for an epoch, in place; return its curve."""
    return fit_(
        module,
        RECIPE,
        RECIPE.hard_loss(),
        train,
        validation,
        scratch=None,
        seed=1,
        constraints={},
        title=run,
    )


def in_memory(examples: Examples) -> Examples:
    """Return the same examples as one tensor."""
    return replace(examples, images=examples.images[:])


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """Return what a function returns, and its seconds."""
    begin = time.perf_counter()
    found = work()
    return found, round(time.perf_counter() - begin, 1)


# --- the page


def page(found: dict[str, Any]) -> str:
    """Return what was found as a page."""
    runs, bound = found["runs"], len(COLUMNS) - 1
    head = f"| {' | '.join(COLUMNS)} |\n|---|{'---:|' * bound}"
    rows = "\n".join(f"| {' | '.join(row(what, each, runs['in memory']))} |" for what, each in runs.items())
    same = len({each["weights"] for each in runs.values()}) == 1
    left = [what for what in RUNS if what not in runs]
    return PAGE.format(
        **found,
        head=head,
        rows=rows,
        side=SIDE,
        batch=BATCH,
        size=found["bytes"] / 1e9,
        group=GROUP >> 20,
        window=WINDOW,
        weights="the same bytes" if same else "NOT the same bytes",
        stopped=f" Stopped before it was done: {', '.join(left)}." if left else "",
        prepared=found["pictures"] / found["prepare"]["seconds"],
        own=found["prepare"]["own_bytes"] / 1e9,
    )


def row(what: str, run: dict[str, Any], memory: dict[str, Any]) -> list[str]:
    """Return the cells of a run beside that in memory."""
    return [
        what,
        f"{run['epoch']:.0f}",
        f"{run['rate']:,}",
        f"{memory['epoch'] / run['epoch']:.2f}",
        f"{run['busy']:.0f}",
        f"{memory['busy'] / run['busy']:.2f}",
        f"{run['own_bytes'] / 1e9:.2f}",
        f"{run['reading']:.0f}",
        f"{run['statistics']:.0f}",
        f"{run['accuracy']:.1%}",
    ]


PAGE = """# Data larger than memory

`python -m benchmarks.data` with torch {torch} on {cores} cores, in {seconds} s: {pictures:,} pictures of
{side} x {side} in colour, a table of {size:.2f} GB in row groups of {group} MiB, {window} of which are
shuffled together. `prepare` decodes and writes them in {prepare[seconds]:.0f} s ({prepared:,.0f} pictures a
second) with {own:.2f} GB of memory of its own. scikit-learn's digits come back from Parquet {digits}.

One epoch of a small network of convolutions, in batches of {batch}, on one thread. Own memory is what the
process and its children have beside the pages of mapped files. The processor's seconds are those of the
training's own process; they count where other work on the machine makes an epoch take longer: its load, the
processes that want a core, was {load[0]} in the minute before all this and {load[1]} in the last one. Before
an epoch the sum over the file is checked, and the channels' mean and deviation are computed; a cold cache is
one that the system was asked to drop before each of these.

{head}
{rows}

All of them end with {weights}.{stopped}
"""

COLUMNS = (
    "pictures", "epoch, s", "pictures/s", "speed in memory = 1", "processor, s", "the same, in memory = 1",
    "own memory, GB", "sum, s", "mean, s", "accuracy",
)  # fmt: skip


if __name__ == "__main__":
    main()
