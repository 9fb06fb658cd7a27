"""What trainings reach on a GPU: the tests that need one, then images and products a second, in five minutes.

    python -m benchmarks.gpu [--out benchmarks] [--device cuda] [--images 25600] [--no-tests]

Pictures are drawn from a seed, 28 x 28 and grey: what is measured does not depend on what they show. An
epoch's time is half of what three epochs take longer than one, so that nothing counts but the loop and its
validation.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.training import WAYS, Clock, Setting, Way, peak, resident_batch, targets
from decant.checkpoints.checkpoint import Checkpoint
from decant.checkpoints.constraints import Constraints
from decant.examples import Examples, Splits, pixels
from decant.finetune.operation import finetune
from decant.networks.architectures import Resnet, build
from decant.networks.devices import find, moved, place_, seconds, there, training_on
from decant.networks.structure import compressible
from decant.quantize.operation import quantize
from decant.training.fresh import train
from decant.training.layout import laid_out, lay_out_, layout
from decant.training.recipe import Training

NET = Resnet(widths=(32, 64, 128), blocks=(0, 1, 1), pool=2)
SHAPE, CLASSES = (1, 28, 28), tuple("0123456789")
BATCH = 128
RECIPE: dict[str, Any] = {
    "epochs": 1,
    "batch_size": BATCH,
    "optimizer": {"kind": "sgd", "learning_rate": 0.01},
    "augmentation": {"flip": True, "shift": 1},
    "average": 0.995,
}
SOFT = {"kind": "temperature", "temperature": 2.0, "hard": 0.1}
SIDE = 4096
"""Rows and columns of the matrices that are multiplied."""


def main() -> None:
    """Run the tests, measure, and write gpu.json and gpu.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks"), help="folder for gpu.json and gpu.md")
    parser.add_argument("--device", default="cuda", help="what is measured")
    parser.add_argument("--images", type=int, default=25_600, help="in an epoch")
    parser.add_argument("--no-tests", action="store_true", help="measure only")
    chosen = parser.parse_args()
    begin = time.perf_counter()
    device, splits = find(chosen.device), drawn(chosen.images)
    found: dict[str, Any] = {"card": there()[str(device)], "torch": torch.__version__}
    found["tests"] = "not run" if chosen.no_tests else tested()
    for name, measure in {"images": images, "loop": loop, "memory": memory, "products": products}.items():
        print(f"{time.perf_counter() - begin:.0f} s: {name}", flush=True)
        found[name] = measure(device, splits)
    found["seconds"] = round(time.perf_counter() - begin)
    chosen.out.mkdir(parents=True, exist_ok=True)
    (chosen.out / "gpu.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    (chosen.out / "gpu.md").write_text(page(found), encoding="utf-8")
    print(page(found))


def tested() -> str:
    """Run the tests that need a GPU, print what they say, and return the last line of it."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-m",
        "cuda",
        "tests/test_devices.py",
        "-p",
        "no:cacheprovider",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    print(done.stdout[-6000:], done.stderr[-2000:], flush=True)
    return re.sub(r"[=]+ ?| ?in .*", "", (done.stdout.strip().splitlines() or ["nothing"])[-1])


def drawn(count: int) -> Splits:
    """Return so many pictures to train on, and 500 to validate with."""
    generator = torch.Generator().manual_seed(1)

    def examples(number: int) -> Examples:
        pictures = torch.randint(0, 256, (number, *SHAPE), generator=generator, dtype=torch.uint8)
        return Examples(pictures, torch.randint(0, 10, (number,), generator=generator), CLASSES)

    return Splits(examples(count), examples(500))


# --- images a second


def images(device: torch.device, splits: Splits) -> dict[str, float]:
    """Return the images a second of each training, and of the bare step that is its limit."""
    name, count = str(device), len(splits.train)
    module = build(NET, SHAPE, len(CLASSES), seed=1).eval()
    teacher = Checkpoint(NET, SHAPE, CLASSES, module)
    halves = {
        n: Constraints(mask=w.detach().abs() > w.detach().abs().median())
        for n, w in compressible(module).items()
    }
    sparse = teacher.narrowed(halves)

    def plain(epochs: int, **changes: Any) -> object:
        return train(NET, Training(**(RECIPE | {"epochs": epochs} | changes)), splits, device=name)

    def tuned(epochs: int) -> object:
        recipe = {"training": RECIPE | {"epochs": epochs}, "loss": SOFT, "device": name}
        return finetune(sparse, recipe, splits, teacher=teacher)

    def rounded(epochs: int) -> object:
        way = {"kind": "lsq", "training": RECIPE | {"epochs": epochs, "weight_decay": 0.0}, "loss": SOFT}
        scheme = {"kind": "integer", "bits": 4}
        recipe = {"scheme": scheme, "activations": {"bits": 8}, "train": way, "device": name}
        return quantize(teacher, recipe, splits, teacher=teacher)

    found = {"bare step": bare(device, splits, compiled=False)}
    found |= attempt("bare compiled step", lambda: bare(device, splits, compiled=True))
    found["teacher's forward"] = forward(device, splits)
    trainings: dict[str, Callable[[int], object]] = {
        "teacher": plain,
        "teacher, bfloat16": lambda epochs: plain(epochs, precision="bfloat16"),
        "fine-tuning with masks": tuned,
        "training on levels": rounded,
    }
    for what, training in trainings.items():
        found |= attempt(what, lambda training=training: count / epoch(training))  # type: ignore[misc]
    return {what: round(value) for what, value in found.items()}


def epoch(training: Callable[[int], object]) -> float:
    """Return the seconds of one epoch of a training of so many."""
    training(1)
    processor = torch.device("cpu")  # trainings end there, and with them all that they asked of the device
    one, three = (seconds(lambda epochs=epochs: training(epochs), processor) for epochs in (1, 3))  # type: ignore[misc]
    return (three - one) / 2


def bare(device: torch.device, splits: Splits, compiled: bool, steps: int = 200) -> float:
    """Return the images a second of forward, backward and step on one batch that lies on the device."""
    module = build(NET, SHAPE, len(CLASSES), seed=1)
    give_layout = layout(Checkpoint(NET, SHAPE, CLASSES, module.eval()).module)
    lay_out_(module, give_layout)
    with training_on(module, device, BATCH):
        optimizer = torch.optim.SGD(module.train().parameters(), 0.01, momentum=0.9, nesterov=True)
        inputs, labels = batch(device, splits, give_layout)
        network = torch.compile(module) if compiled else module

        def step() -> None:
            optimizer.zero_grad()
            F.cross_entropy(network(inputs), labels).backward()
            optimizer.step()

        return rate(step, device, steps)


def forward(device: torch.device, splits: Splits, steps: int = 200) -> float:
    """Return the images a second of a pass without gradients."""
    module = build(NET, SHAPE, len(CLASSES), seed=1).eval()
    with training_on(module, device, BATCH), torch.no_grad():
        inputs, _ = batch(device, splits, torch.contiguous_format)
        return rate(lambda: module(inputs), device, steps)


def batch(device: torch.device, splits: Splits, form: torch.memory_format) -> tuple[Tensor, Tensor]:
    """Return a batch that lies on the device."""
    inputs = laid_out(pixels(splits.train.images[:BATCH]), form)
    return moved((inputs, splits.train.known_labels[:BATCH]), device)


def rate(step: Callable[[], object], device: torch.device, steps: int) -> float:
    """Return the images a second of many steps, after some that warm up."""
    for _ in range(20):
        step()
    return steps * BATCH / seconds(lambda: [step() for _ in range(steps)], device)


def attempt(what: str, measure: Callable[[], float]) -> dict[str, float]:
    """Return a measurement by its name; none, and a line that says why, where it fails."""
    try:
        return {what: measure()}
    except Exception as error:
        print(f"{what}: {type(error).__name__}: {str(error).splitlines()[:1]}", flush=True)
        return {}


# --- the loop beside its own step


def loop(device: torch.device, _: Splits, setting: Setting | None = None) -> dict[str, float]:
    """Return the images a second of the ways of `benchmarks.training`, and of a replayed bare step."""
    setting = setting or Setting(steps=100, device=str(device))
    found = {}
    for name, way in WAYS.items():
        found |= attempt(name, lambda way=way: timed(way, setting))  # type: ignore[misc]
    if device.type == "cuda":
        found |= attempt("bare step, CUDA graph", lambda: replayed(setting, device))
    return {what: round(value) for what, value in found.items()}


def timed(way: Way, setting: Setting) -> float:
    """Return the images a second of one way."""
    way(setting, clock := Clock(setting))
    return clock.rate


def replayed(setting: Setting, device: torch.device) -> float:
    """Return the images a second of a bare step whose kernels were recorded once."""
    made = setting.built()
    lay_out_(made.module, form := layout(made.module))
    with training_on(made.module, device, setting.batch):
        optimizer = setting.recipe().optimizer.build([{"params": list(made.module.train().parameters())}])
        inputs, labels = resident_batch(setting, form)

        def step() -> None:
            optimizer.zero_grad()
            F.cross_entropy(made.module(inputs), labels).backward()
            optimizer.step()

        side = torch.cuda.Stream(device)
        side.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(side):
            for _ in range(3):
                step()
        torch.cuda.current_stream(device).wait_stream(side)
        with torch.cuda.graph(recorded := torch.cuda.CUDAGraph()):
            step()
        return rate(recorded.replay, device, setting.steps)


def memory(device: torch.device, _: Splits) -> dict[str, int]:
    """Return the most bytes of the device that the bare step and the loop had; none on the processor."""
    found = {}
    for name in ("bare step", "the loop") if device.type == "cuda" else ():
        torch.cuda.reset_peak_memory_stats(device)
        found[name] = peak(Setting(device=str(device)), name)
    return found


# --- products


def products(device: torch.device, _: Splits) -> dict[str, float]:
    """Return 10^12 operations a second of products of squares: of floats, integers, and 2:4."""
    generator = torch.Generator().manual_seed(1)
    weights = place_(nn.Linear(SIDE, SIDE, bias=False), device).weight.detach()
    inputs = torch.randn(SIDE, SIDE, generator=generator).to(device)
    codes = [
        torch.randint(-128, 128, (SIDE, SIDE), generator=generator, dtype=torch.int8).to(device) for _ in "ab"
    ]
    halves = weights.half()
    kept = torch.zeros_like(halves).view(-1, 4)
    kept[:, :2] = 1
    half = halves * kept.view_as(halves)

    def sparse() -> float:
        packed = torch.sparse.to_sparse_semi_structured(half)
        found = F.linear(inputs.half(), packed)
        torch.testing.assert_close(found, F.linear(inputs.half(), half), rtol=1e-2, atol=1e-1)
        return speed(lambda: F.linear(inputs16, packed), device)

    inputs16 = inputs.half()
    found = attempt("float32", lambda: speed(lambda: F.linear(inputs, weights), device))
    found |= attempt("float16", lambda: speed(lambda: F.linear(inputs16, halves), device))
    found |= attempt("int8", lambda: speed(lambda: torch._int_mm(codes[0], codes[1].t()), device))
    found |= attempt("float16, 2:4", sparse)
    return {what: round(value, 1) for what, value in found.items()}


def speed(product: Callable[[], object], device: torch.device, times: int = 20) -> float:
    """Return 10^12 operations a second; of 2:4 those count too that are left out."""
    for _ in range(5):
        product()
    taken = seconds(lambda: [product() for _ in range(times)], device)
    return 2 * SIDE**3 * times / taken / 1e12


# --- the page


def page(found: dict[str, Any]) -> str:
    """Return what was found as a page."""
    step = found["images"].get("bare step", 0)
    shown = found["images"].items() if step else ()
    return PAGE.format(
        **found,
        batch=BATCH,
        side=SIDE,
        rates="\n".join(f"| {what} | {value:,} | {value / step:.2f} |" for what, value in shown),
        ways="\n".join(f"| {what} | {value:,} |" for what, value in found["loop"].items()),
        asked="\n".join(each.row for each in targets(found["loop"], found["memory"])),
        speeds="\n".join(f"| {what} | {value:,} |" for what, value in found["products"].items()),
    )


PAGE = """# What trainings reach on a GPU

`python -m benchmarks.gpu` on one {card} with torch {torch}, in {seconds} s. Tests that need a GPU: {tests}.

Images a second of the default teacher in batches of {batch}, float32 without TF32 unless it says otherwise,
with kernels that repeat their bits alone. A bare step is forward, backward and step on one batch that lies on
the device. Fine-tuning and training on levels learn from a teacher, which answers each batch too.

| what | images/s | of the bare step |
|---|---:|---:|
{rates}

The loop beside a plain one, as `python -m benchmarks.training` measures them: one round of 100 steps.

| what | asked | measured | reached |
|---|---:|---:|---|
{asked}

| what | images/s |
|---|---:|
{ways}

Products of two matrices of {side} x {side}, in 10^12 operations a second; of 2:4 zeros count as computed.

| numbers | 10^12/s |
|---|---:|
{speeds}
"""


if __name__ == "__main__":
    main()
