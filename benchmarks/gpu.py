"""What operations reach on GPUs: the tests that need one, then trainings, products and layers.

    python -m benchmarks.gpu [--out benchmarks] [--device cuda] [--images 25600] [--seconds 470] [--no-tests]

Pictures are drawn from a seed, 28 x 28 and grey: what is measured does not depend on what they show. An
epoch's time is half of what three epochs take longer than one, so that nothing counts but the loop and its
validation; trainings that are compiled are timed step by step instead, as compiling takes longer than epochs.
Where there are several GPUs, so many processes train together, over NCCL. What does not fit into the seconds
is left out, last of all the processor's own times.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.training import WAYS, Clock, Setting, Target, Way, peak, resident_batch, targets
from benchmarks.training import loop as train_by_loop
from decant.checkpoints.checkpoint import Checkpoint
from decant.checkpoints.constraints import Constraints
from decant.examples import Examples, Splits, pixels
from decant.export.semi_structured import in_float16, packed
from decant.finetune.operation import finetune
from decant.networks.architectures import Mlp, Resnet, build
from decant.networks.devices import CPU, find, moved, place_, seconds, there, training_on
from decant.networks.processes import leave, number
from decant.networks.structure import compressible
from decant.prune.operation import prune
from decant.quantize.operation import quantize
from decant.training.fresh import train
from decant.training.layout import laid_out, lay_out_, layout
from decant.training.recipe import Training
from tests.imports import ROOT

NET = Resnet(widths=(32, 64, 128), blocks=(0, 1, 1), pool=2)
WIDE = Mlp(hidden=(2048, 2048))
"""A network whose layers have sizes that GPUs, and 2:4 kernels, are made for."""
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

Rates = dict[str, float]


@dataclass(frozen=True)
class Bench:
    """What is measured, and until when.

    Attributes:
        device: The GPU.
        splits: Pictures.
        end: When all has to be done, by `time.perf_counter`.
    """

    device: torch.device
    splits: Splits
    end: float

    def left(self) -> float:
        """Return the seconds that are left."""
        return self.end - time.perf_counter()

    def attempt(self, what: str, measure: Callable[[], float], needs: float = 5.0) -> Rates:
        """Return a measurement by its name; where it fails or does not fit, none, and a line says why."""
        if self.left() < needs:
            print(f"{what}: left out, {self.left():.0f} s are left", flush=True)
            return {}
        begin = time.perf_counter()
        try:
            found = measure()
        except Exception as error:  # one kernel that there is not, and the others are measured still
            print(f"{what}: {type(error).__name__}: {' '.join(str(error).split())[:400]}", flush=True)
            return {}
        print(f"{what}: {found:,.4g} ({time.perf_counter() - begin:.1f} s)", flush=True)
        return {what: found}


def main() -> None:
    """Run the tests, measure, and write gpu.json and gpu.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks"), help="folder for gpu.json and gpu.md")
    parser.add_argument("--device", default="cuda", help="what is measured")
    parser.add_argument("--images", type=int, default=25_600, help="in an epoch")
    parser.add_argument("--seconds", type=float, default=470.0, help="that all of it may take")
    parser.add_argument("--no-tests", action="store_true", help="measure only")
    parser.add_argument("--one-of", type=int, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.one_of:
        share_out(chosen.one_of, chosen.device)
        return
    begin = time.perf_counter()
    bench = Bench(find(chosen.device), drawn(chosen.images), begin + chosen.seconds)
    found: dict[str, Any] = {"card": there()[str(bench.device)], "torch": torch.__version__}
    found["tests"] = "not run" if chosen.no_tests else tested(0.45 * chosen.seconds)
    parts: dict[str, Callable[[Bench], dict[str, Any]]] = {
        "images": images,
        "loop": loop,
        "memory": memory,
        "processes": processes,
        "products": products,
        "layers": layers,
    }
    for name, measure in parts.items():
        print(f"{time.perf_counter() - begin:.0f} s: {name}", flush=True)
        found[name] = measure(bench)
        found["seconds"] = round(time.perf_counter() - begin)
        chosen.out.mkdir(parents=True, exist_ok=True)
        (chosen.out / "gpu.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    (chosen.out / "gpu.md").write_text(page(found), encoding="utf-8")
    print(page(found))


def tested(limit: float) -> str:
    """Run the tests that need a GPU, print what they say, and return the last line of it."""
    options = ["-q", "-m", "cuda", "-p", "no:cacheprovider", "--durations", "5"]
    command = [sys.executable, "-m", "pytest", *options, *map(str, with_gpu_tests())]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired as error:
        print((error.stdout or b"")[-6000:], flush=True)
        return f"more than {limit:.0f} s"
    print(done.stdout[-9000:], done.stderr[-2000:], flush=True)
    return re.sub(r"[=]+ ?| ?in .*", "", (done.stdout.strip().splitlines() or ["nothing"])[-1])


def with_gpu_tests() -> list[Path]:
    """Return the files with tests marked `cuda`: to read all others would take longer than these tests."""
    files = sorted((ROOT / "tests").glob("test_*.py"))
    words = ("pytest.mark.cuda", "@gpu_test")
    return [file for file in files if any(word in file.read_text(encoding="utf-8") for word in words)]


def drawn(count: int) -> Splits:
    """Return so many pictures to train on, and 500 to validate with."""
    generator = torch.Generator().manual_seed(1)

    def examples(number: int) -> Examples:
        pictures = torch.randint(0, 256, (number, *SHAPE), generator=generator, dtype=torch.uint8)
        return Examples(pictures, torch.randint(0, 10, (number,), generator=generator), CLASSES)

    return Splits(examples(count), examples(500))


# --- images a second


def images(bench: Bench) -> Rates:
    """Return the images a second of each training, and of the bare step that is its limit."""
    device, splits = bench.device, bench.splits
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

    found = bench.attempt("bare step", lambda: bare(bench))
    found |= bench.attempt("bare compiled step", lambda: bare(bench, "default"), 40)
    found |= bench.attempt("bare compiled step, CUDA graphs", lambda: bare(bench, "reduce-overhead"), 40)
    found |= bench.attempt("teacher's forward", lambda: forward(bench))
    trainings: dict[str, Callable[[int], object]] = {
        "teacher": plain,
        "teacher, tf32": lambda epochs: plain(epochs, precision="tf32"),
        "teacher, bfloat16": lambda epochs: plain(epochs, precision="bfloat16"),
        "teacher, float16": lambda epochs: plain(epochs, precision="float16"),
        "fine-tuning with masks": tuned,
        "training on levels": rounded,
    }
    for what, training in trainings.items():
        found |= bench.attempt(what, lambda training=training: count / epoch(training), 30)  # type: ignore[misc]
    for what, changes in COMPILED.items():
        found |= bench.attempt(what, partial(compiled, bench, changes), 60)
    return {what: round(value) for what, value in found.items()}


COMPILED: dict[str, dict[str, bool]] = {
    "teacher, compiled": {"compile": True},
    "teacher, compiled, CUDA graphs": {"compile": True, "graphs": True},
}
STEPS = {
    "teacher": "bare step",
    "teacher, compiled": "bare compiled step",
    "teacher, compiled, CUDA graphs": "bare compiled step, CUDA graphs",
}
"""What of a training is compared with the bare step that is computed in the same way."""


def compiled(bench: Bench, changes: dict[str, bool]) -> float:
    """Return the images a second of the teacher's training with compiled passes, after the first steps."""
    setting = Setting(steps=200, device=str(bench.device))
    return timed(lambda setting, clock: train_by_loop(setting, clock, **changes), setting)


def of_steps(found: Rates) -> list[Target]:
    """Return what share of its bare step each training reaches, of those that were measured."""
    return [
        Target(f"{what} / {step}, images/s", 0.95, [found[what] / found[step]])
        for what, step in STEPS.items()
        if found.get(what) and found.get(step)
    ]


def epoch(training: Callable[[int], object]) -> float:
    """Return the seconds of one epoch of a training of so many."""
    training(1)
    processor = torch.device(CPU)  # trainings end there, and with them all that they asked of the device
    one, three = (seconds(lambda epochs=epochs: training(epochs), processor) for epochs in (1, 3))  # type: ignore[misc]
    return (three - one) / 2


def bare(bench: Bench, mode: str = "", steps: int = 200) -> float:
    """Return the images a second of forward, backward and step on one batch that lies on the device.

    Args:
        bench: What is measured.
        mode: Of `torch.compile`, whose kernels need not repeat their bits; empty for none.
        steps: How many are timed.
    """
    module = build(NET, SHAPE, len(CLASSES), seed=1)
    give_layout = layout(Checkpoint(NET, SHAPE, CLASSES, module.eval()).module)
    lay_out_(module, give_layout)
    with free(module, bench.device) if mode else training_on(module, bench.device, BATCH):
        optimizer = torch.optim.SGD(module.train().parameters(), 0.01, momentum=0.9, nesterov=True)
        inputs, labels = batch(bench, give_layout)
        network = torch.compile(module, mode=mode) if mode else module

        def step() -> None:
            optimizer.zero_grad()
            F.cross_entropy(network(inputs), labels).backward()
            optimizer.step()

        return rate(step, bench.device, steps)


@contextmanager
def free(module: nn.Module, device: torch.device) -> Iterator[None]:
    """Have a network on a device, in place, whose kernels of float32 may add up in any order."""
    kinds: Any = [torch.backends.cuda.matmul, torch.backends.cudnn.conv]  # type: ignore[attr-defined]
    before = [each.fp32_precision for each in kinds]
    torch.use_deterministic_algorithms(False)
    try:
        for each in kinds:
            each.fp32_precision = "ieee"
        place_(module, device)
        yield
    finally:
        for each, precision in zip(kinds, before, strict=True):
            each.fp32_precision = precision


def forward(bench: Bench, steps: int = 200) -> float:
    """Return the images a second of a pass without gradients."""
    module = build(NET, SHAPE, len(CLASSES), seed=1).eval()
    with training_on(module, bench.device, BATCH), torch.no_grad():
        inputs, _ = batch(bench, torch.contiguous_format)
        return rate(lambda: module(inputs), bench.device, steps)


def batch(bench: Bench, form: torch.memory_format) -> tuple[Tensor, Tensor]:
    """Return a batch that lies on the device."""
    pictures = bench.splits.train.images[:BATCH]
    assert isinstance(pictures, Tensor)
    inputs = laid_out(pixels(pictures), form)
    return moved((inputs, bench.splits.train.known_labels[:BATCH]), bench.device)


def rate(step: Callable[[], object], device: torch.device, steps: int) -> float:
    """Return the images a second of many steps, after some that warm up."""
    for _ in range(20):
        step()
    return steps * BATCH / seconds(lambda: [step() for _ in range(steps)], device)


# --- the loop beside its own step


def loop(bench: Bench, setting: Setting | None = None) -> Rates:
    """Return the images a second of the ways of `benchmarks.training`, and of a replayed bare step."""
    setting = setting or Setting(steps=100, device=str(bench.device))
    found: Rates = {}
    for name, way in WAYS.items():
        found |= bench.attempt(name, lambda way=way: timed(way, setting))  # type: ignore[misc]
    if bench.device.type == "cuda":
        found |= bench.attempt("bare step, CUDA graph", lambda: replayed(setting, bench.device))
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


def memory(bench: Bench) -> dict[str, int]:
    """Return the most bytes of the device that the bare step and the loop had; none on the processor."""
    found = {}
    for name in ("bare step", "the loop") if bench.device.type == "cuda" else ():
        torch.cuda.reset_peak_memory_stats(bench.device)
        found[name] = peak(Setting(device=str(bench.device)), name)
    return found


# --- processes


def processes(bench: Bench) -> Rates:
    """Return the images a second of 2, 4, 8 processes, each with a GPU and a batch; nothing with one GPU."""
    there = torch.cuda.device_count() if bench.device.type == "cuda" else 2
    found: Rates = {}
    for count in (2, 4, 8):
        if count <= there:
            found |= bench.attempt(f"{count} processes", partial(shared_out, bench, count), 40)
    return {what: round(value) for what, value in found.items()}


def shared_out(bench: Bench, count: int) -> float:
    """Return the images a second of so many processes that torch's launcher starts."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    words = ["-m", "benchmarks.gpu", "--one-of", str(count), "--device", bench.device.type]
    done = subprocess.run([*launcher, *words], cwd=ROOT, capture_output=True, text=True, timeout=bench.left())
    if done.returncode:
        raise RuntimeError(done.stderr[-400:])
    return float(done.stdout.splitlines()[-1])


def share_out(count: int, device: str) -> None:
    """Train as one of so many processes; the first one prints the images a second of all together."""
    setting = Setting(batch=BATCH * count, steps=100 if device != CPU else 2, device=device)
    rate = timed(lambda setting, clock: train_by_loop(setting, clock, processes=count), setting)
    leave()
    if number() == 0:
        print(rate)


# --- products


def products(bench: Bench) -> Rates:
    """Return 10^12 operations a second of products of squares: of floats, integers, and 2:4."""
    generator = torch.Generator().manual_seed(1)
    weights, inputs = (torch.randn(SIDE, SIDE, generator=generator).to(bench.device) for _ in "ab")
    codes = [
        torch.randint(-128, 128, (SIDE, SIDE), generator=generator, dtype=torch.int8).to(bench.device)
        for _ in "ab"
    ]
    halves, inputs16 = weights.half(), inputs.half()
    half, code = pattern(halves), pattern(codes[1])
    kinds: Any = torch.sparse
    packed: dict[str, Any] = {
        "cuSPARSELt": lambda each: kinds.SparseSemiStructuredTensorCUSPARSELT.from_dense(each),
        "CUTLASS": lambda each: kinds.SparseSemiStructuredTensorCUTLASS.from_dense(each),
    }
    found = bench.attempt("float32", lambda: speed(lambda: F.linear(inputs, weights), bench))
    found |= bench.attempt("float16", lambda: speed(lambda: F.linear(inputs16, halves), bench))
    found |= bench.attempt("int8", lambda: speed(lambda: torch._int_mm(codes[0], codes[1].t()), bench))
    for library, pack in packed.items():
        found |= bench.attempt(f"float16, 2:4, {library}", partial(sparse, pack, half, inputs16, bench))

    def integers() -> float:
        kept = packed["cuSPARSELt"](code)
        return speed(lambda: torch.mm(kept, codes[0].t()), bench)

    found |= bench.attempt("int8, 2:4, cuSPARSELt", integers)
    return {what: round(value, 1) for what, value in found.items()}


def pattern(matrix: Tensor) -> Tensor:
    """Return a matrix whose third and fourth of each four neighbours in a row are zero."""
    kept = torch.zeros_like(matrix).view(-1, 4)
    kept[:, :2] = 1
    return matrix * kept.view_as(matrix)


def sparse(pack: Callable[[Tensor], Any], dense: Tensor, inputs: Tensor, bench: Bench) -> float:
    """Return the speed of a product with a packed 2:4 matrix, once it is sure that it is the product."""
    packed = pack(dense)
    torch.testing.assert_close(F.linear(inputs, packed), F.linear(inputs, dense), rtol=1e-2, atol=1e-1)
    return speed(lambda: F.linear(inputs, packed), bench)


def speed(product: Callable[[], object], bench: Bench, times: int = 20) -> float:
    """Return 10^12 operations a second; of 2:4 those count too that are left out."""
    for _ in range(5):
        product()
    taken = seconds(lambda: [product() for _ in range(times)], bench.device)
    return 2 * SIDE**3 * times / taken / 1e12


# --- layers


def layers(bench: Bench) -> Rates:
    """Return the seconds of what is solved layer by layer, its most memory, and a 2:4 network's passes."""
    module = build(NET, SHAPE, len(CLASSES), seed=1).eval()
    teacher = Checkpoint(NET, SHAPE, CLASSES, module)
    wide = Checkpoint(WIDE, SHAPE, CLASSES, build(WIDE, SHAPE, len(CLASSES), seed=1).eval())
    obs = {"criterion": {"kind": "obs"}, "budget": {"sparsity": 0.8}, "allocation": {"kind": "layer"}}
    channels = {
        "criterion": {"kind": "reconstruction"},
        "structure": {"kind": "channels"},
        "budget": {"macs": 0.5},
    }
    scheme = {"kind": "integer", "bits": 4}
    gptq = {"scheme": scheme, "rounding": {"kind": "gptq"}}
    ranges = {"scheme": {"kind": "integer"}, "activations": {"bits": 8}}
    recipes: dict[str, tuple[Callable[..., object], Checkpoint, dict[str, Any]]] = {
        "OBS, 80 % of the weights": (prune, teacher, obs),
        "channels by reconstruction": (prune, teacher, channels),
        "GPTQ, 4 bits": (quantize, teacher, gptq),
        "AdaRound, 4 bits": (quantize, teacher, gptq | {"rounding": {"kind": "adaround"}}),
        "ranges of inputs": (quantize, teacher, ranges),
        "OBS of the wide network": (prune, wide, obs),
        "GPTQ of the wide network": (quantize, wide, gptq),
    }
    found: Rates = {}
    for what, (operation, parent, recipe) in recipes.items():
        if bench.device.type != CPU:
            torch.cuda.reset_peak_memory_stats()
        taken = bench.attempt(f"{what}, s", partial(once, operation, parent, recipe, bench), 20)
        found |= taken and taken | {f"{what}, MiB": torch.cuda.max_memory_allocated() / 2**20}
    found |= two_of_four(bench)
    processor = replace(bench, device=torch.device(CPU))
    for what, (operation, parent, recipe) in recipes.items():
        work = partial(once, operation, parent, recipe, processor)
        found |= bench.attempt(f"{what}, s on the processor", work, 60)
    return {what: float(f"{value:.3g}") for what, value in found.items()}


def once(operation: Callable[..., object], parent: Checkpoint, recipe: dict[str, Any], bench: Bench) -> float:
    """Return the seconds of an operation, the second time where the device has to be begun with."""
    recipe = recipe | {"device": str(bench.device)}
    if bench.device.type != CPU:
        operation(parent, recipe, bench.splits)
    return seconds(lambda: operation(parent, recipe, bench.splits), bench.device)


def two_of_four(bench: Bench) -> Rates:
    """Return the milliseconds of a pass of a network that is pruned 2:4, dense and through packed weights."""
    wide = Checkpoint(WIDE, SHAPE, CLASSES, build(WIDE, SHAPE, len(CLASSES), seed=1).eval())
    recipe = {"criterion": {"kind": "magnitude"}, "structure": {"kind": "n-of-m"}}
    model = prune(wide, recipe, bench.splits).model
    inputs = torch.rand(SIDE, *SHAPE, generator=torch.Generator().manual_seed(1)).half().to(bench.device)
    dense = in_float16(model.module, bench.device)

    def milliseconds(module: nn.Module) -> float:
        with torch.no_grad():
            for _ in range(10):
                module(inputs)
            return seconds(lambda: [module(inputs) for _ in range(50)], bench.device) * 20

    def sparse() -> float:
        module, _ = packed(model.module, bench.device)
        with torch.no_grad():
            torch.testing.assert_close(module(inputs).float(), dense(inputs).float(), rtol=2e-2, atol=2e-2)
        return milliseconds(module)

    found = bench.attempt("a 2:4 network in float16, ms", partial(milliseconds, dense))
    return found | bench.attempt("the same through semi-structured kernels, ms", sparse)


# --- the page


def page(found: dict[str, Any]) -> str:
    """Return what was found as a page."""
    step = found["images"].get("bare step", 0)
    shown = found["images"].items() if step else ()
    return PAGE.format(
        **{key: value for key, value in found.items() if isinstance(value, str | int)},
        batch=BATCH,
        side=SIDE,
        rates="\n".join(f"| {what} | {value:,} | {value / step:.2f} |" for what, value in shown),
        ways="\n".join(f"| {what} | {value:,} |" for what, value in found["loop"].items()),
        asked="\n".join(each.row for each in targets([found["loop"]], found["memory"])),
        steps="\n".join(each.row for each in of_steps(found["images"])),
        shared="\n".join(f"| {what} | {value:,} |" for what, value in found["processes"].items())
        or "| one process alone, as there is one GPU | |",
        speeds="\n".join(f"| {what} | {value:,} |" for what, value in found["products"].items()),
        solved="\n".join(f"| {what} | {value:,} |" for what, value in found["layers"].items()),
    )


PAGE = """# What operations reach on a GPU

`python -m benchmarks.gpu` on one {card} with torch {torch}, in {seconds} s. Tests that need a GPU: {tests}.

Images a second of the default teacher in batches of {batch}, float32 without TF32 unless it says otherwise,
with kernels that repeat their bits alone, but for the compiled steps. A bare step is forward, backward and
step on one batch that lies on the device. Fine-tuning and training on levels learn from a teacher, which
answers each batch too.

| what | images/s | of the bare step |
|---|---:|---:|
{rates}

| what | asked | measured | reached |
|---|---:|---:|---|
{steps}

The teacher in several processes, each with a GPU and {batch} images of each batch:

| processes | images/s |
|---|---:|
{shared}

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

Operations on the default teacher's network, of which the device holds weights and what is known of one
layer: seconds, and the most memory that tensors took there. The wide network has two layers of 2,048
outputs; pruned 2:4 it gets 4,096 pictures at once.

| what | |
|---|---:|
{solved}
"""


if __name__ == "__main__":
    main()
