"""What the training loop costs beside its own step, and beside a plain loop with a DataLoader.

    python -m benchmarks.training [--device cpu] [--threads 2] [--rounds 21] [--steps 6] [--quick]
        [--write benchmarks/training.md]

All are measured in one process and in turns of less than a second, as a machine's speed may change by a
fifth within a minute. Ways that are compared follow one another, in every second round backwards, and what is
told is the median over rounds of their ratio within a round, with its quartiles. A turn times the steps after
some that warm up, by the clock that each step's loss passes on its way: nothing of the library is changed or
left out. Memory is that of a process of its own.

Pictures are drawn from a seed, 28 x 28 and grey: what is measured does not depend on what they show.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from statistics import median, quantiles
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from decant.checkpoints.checkpoint import Checkpoint
from decant.checkpoints.constraints import Constraints
from decant.examples import Examples, Splits, pixels
from decant.networks.architectures import Resnet, build
from decant.networks.devices import autocast, find, moved, place_, synchronize, there, training_on
from decant.networks.execution import make_deterministic
from decant.networks.structure import compressible
from decant.outputs import write_text
from decant.quantize.operation import quantize
from decant.quantize.qat.trainers import Lsq
from decant.quantize.qat.training import train_rounded
from decant.quantize.quantizable import quantizable
from decant.quantize.schemes import Integer
from decant.training.fit import fit_
from decant.training.layout import laid_out, lay_out_, layout
from decant.training.losses import Temperature, against_teacher
from decant.training.recipe import Loss, Training
from decant.training.run import Run

WARM = 4
"""Steps before the clock starts."""

SOFT = Temperature(temperature=2.0, hard=0.1)


NET = Resnet(widths=(32, 64, 128), blocks=(0, 1, 1), pool=2)


@dataclass(frozen=True)
class Setting:
    """What is measured on what.

    Attributes:
        net: The network.
        side: Rows and columns of a picture.
        batch: Images in a batch.
        steps: That are timed in a turn.
        device: Where.
    """

    net: Resnet = NET
    side: int = 28
    batch: int = 128
    steps: int = 6
    device: str = "cpu"

    @cached_property
    def splits(self) -> Splits:
        """Pictures for all steps, and a few to validate with."""
        generator = torch.Generator().manual_seed(1)

        def examples(count: int) -> Examples:
            size = (count, 1, self.side, self.side)
            pictures = torch.randint(0, 256, size, generator=generator, dtype=torch.uint8)
            return Examples(
                pictures, torch.randint(0, 10, (count,), generator=generator), tuple("0123456789")
            )

        return Splits(examples((WARM + self.steps + 2) * self.batch), examples(16))

    def built(self) -> Checkpoint:
        """Return the network before its training."""
        module = build(self.net, (1, self.side, self.side), 10, seed=1).eval()
        return Checkpoint(self.net, (1, self.side, self.side), tuple("0123456789"), module)

    def recipe(self, **changes: Any) -> Training:
        """Return the default teacher's recipe for one epoch, at a rate for pictures that show nothing."""
        content = {
            "epochs": 1,
            "batch_size": self.batch,
            "optimizer": {"kind": "sgd", "learning_rate": 0.01},
            "label_smoothing": 0.1,
            "augmentation": {"flip": True, "shift": 1},
            "average": 0.995,
        }
        return Training.model_validate(content | changes)


@dataclass
class Clock:
    """Times the steps of a loop by a call in each of them.

    Attributes:
        taken: Seconds of all steps after those that warm up; 0 before the last one.
    """

    setting: Setting
    taken: float = 0.0
    _calls: int = 0
    _begin: float = 0.0

    def tick(self) -> None:
        """Tell that a step has come to its loss."""
        if self._calls in (WARM, WARM + self.setting.steps):
            synchronize(find(self.setting.device))
            now = time.perf_counter()
            self._begin, self.taken = now, now - self._begin
        self._calls += 1

    def watching(self, loss: Loss) -> Loss:
        """Return the loss, which tells when it is asked for."""

        def watched(inputs: tuple[Tensor, ...], outputs: Tensor, labels: Tensor | None) -> Tensor:
            self.tick()
            return loss(inputs, outputs, labels)

        return watched

    @property
    def rate(self) -> float:
        """Images a second."""
        return self.setting.steps * self.setting.batch / self.taken


Way: TypeAlias = Callable[[Setting, Clock], object]


# --- the limit: one batch that lies on the device


def bare(setting: Setting, clock: Clock, precision: str = "float32") -> None:
    """Take forward, backward and step on one batch, with channels as the loop lays them."""
    made, device = setting.built(), find(setting.device)
    form = layout(made.module)
    lay_out_(made.module, form)
    with training_on(made.module, device, setting.batch):
        optimizer = setting.recipe().optimizer.build([{"params": list(made.module.train().parameters())}])
        inputs, labels = resident_batch(setting, form)
        for _ in range(WARM + setting.steps + 1):
            optimizer.zero_grad()
            with autocast(device, precision):
                logits = made.module(inputs)
            clock.tick()
            F.cross_entropy(logits.float(), labels, label_smoothing=0.1).backward()
            optimizer.step()


def forward(setting: Setting, clock: Clock) -> None:
    """Have the teacher answer one batch, as it does in each step of a distillation."""
    made, device = setting.built(), find(setting.device)
    form = layout(made.module)
    with training_on(made.module, device, setting.batch), torch.no_grad():
        inputs, _ = resident_batch(setting, form)
        for _ in range(WARM + setting.steps + 1):
            clock.tick()
            made.module(inputs)


def resident_batch(setting: Setting, form: torch.memory_format) -> tuple[Tensor, Tensor]:
    """Return the first batch, on the device."""
    train = setting.splits.train
    inputs = laid_out(pixels(train.images[: setting.batch]), form)
    return moved((inputs, train.known_labels[: setting.batch]), find(setting.device))


# --- a plain loop


class Pictures(Dataset[tuple[Tensor, Tensor]]):
    """Pictures that are flipped and shifted one by one."""

    def __init__(self, examples: Examples) -> None:
        assert isinstance(examples.images, Tensor)
        self.images, self.labels = examples.images, examples.known_labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, at: int) -> tuple[Tensor, Tensor]:
        image = self.images[at].float() / 255
        if torch.rand(()) < 0.5:
            image = image.flip(2)
        _, height, width = image.shape
        top, left = torch.randint(0, 3, (2,)).tolist()
        return F.pad(image, [1] * 4)[:, top : top + height, left : left + width], self.labels[at]


def plain(setting: Setting, clock: Clock, workers: int = 0) -> None:
    """Train as tutorials do: a DataLoader, and sums of the loss and the hits that are read in each step."""
    made, device = setting.built(), find(setting.device)
    module = place_(made.module.train(), device)
    optimizer = torch.optim.SGD(module.parameters(), 0.01, momentum=0.9, nesterov=True, weight_decay=0.0005)
    loader = DataLoader(
        Pictures(setting.splits.train), setting.batch, shuffle=True, drop_last=True, num_workers=workers
    )
    total, hits = 0.0, 0
    for images, labels in loader:
        inputs, known = images.to(device), labels.to(device)
        optimizer.zero_grad()
        logits = module(inputs)
        clock.tick()
        loss = F.cross_entropy(logits, known, label_smoothing=0.1)
        loss.backward()
        optimizer.step()
        total += loss.item()
        hits += int((logits.argmax(1) == known).sum())
    place_(module, "cpu")


# --- the loop


def loop(setting: Setting, clock: Clock, **changes: Any) -> None:
    """Train the teacher."""
    training = setting.recipe(**changes)
    fit(setting, training, clock.watching(training.hard_loss()), setting.built())


def masks(setting: Setting, clock: Clock) -> None:
    """Fine-tune a network half of whose weights are zero, on the teacher's soft targets."""
    teacher = setting.built()
    halves = {
        name: Constraints(mask=weight.detach().abs() > weight.detach().abs().median())
        for name, weight in compressible(teacher.module).items()
    }
    fit(setting, setting.recipe(), taught(setting, clock, teacher), teacher.narrowed(halves))


def levels(setting: Setting, clock: Clock) -> None:
    """Fine-tune weights on levels of 4 bits, which stay, on the teacher's soft targets."""
    teacher = setting.built()
    block = {"scheme": {"kind": "integer", "bits": 4}, "fold": False}
    fit(
        setting,
        setting.recipe(),
        taught(setting, clock, teacher),
        quantize(teacher, block, setting.splits).model,
    )


def learned(setting: Setting, clock: Clock, inputs: bool = False) -> None:
    """Learn the steps of weights of 4 bits, on soft targets; where asked also those of inputs of 8 bits."""
    teacher, splits = setting.built(), setting.splits
    block = {"scheme": {"kind": "integer", "bits": 8}, "activations": {"bits": 8}, "fold": False}
    grids = quantize(teacher, block | {"images": 16}, splits).model.grids if inputs else {}
    training = setting.recipe(weight_decay=0.0)
    train_rounded(
        teacher,
        {name: Integer(bits=4) for name in quantizable(teacher.module)},
        grids,
        Lsq(training=training, loss=SOFT),
        loss=taught(setting, clock, teacher),
        examples=splits.train,
        validation=splits.validation,
        run=Run("steps"),
        device=setting.device,
    )


def taught(setting: Setting, clock: Clock, teacher: Checkpoint) -> Loss:
    """Return the loss against the teacher's answers."""
    return clock.watching(against_teacher(SOFT, teacher.module, device=setting.device))


def fit(setting: Setting, training: Training, loss: Loss, model: Checkpoint) -> None:
    """Train a model by the library's loop."""
    splits = setting.splits
    fit_(
        model.module,
        training,
        loss,
        splits.train,
        splits.validation,
        scratch=None,
        seed=1,
        constraints=model.constraints,
        title="loop",
        device=setting.device,
    )


WAYS: dict[str, Way] = {
    "bare step": bare,
    "the loop": loop,
    "plain loop, DataLoader": plain,
    "plain loop, DataLoader with 2 workers": lambda setting, clock: plain(setting, clock, workers=2),
    "bare step, bfloat16": lambda setting, clock: bare(setting, clock, "bfloat16"),
    "the loop, bfloat16": lambda setting, clock: loop(setting, clock, precision="bfloat16"),
    "the loop, 2 batches a step": lambda setting, clock: loop(setting, clock, accumulate=2),
    "the loop, gradients clipped": lambda setting, clock: loop(setting, clock, clip_gradients=1.0),
    "teacher's forward": forward,
    "the loop, masks and teacher": masks,
    "the loop, levels and teacher": levels,
    "the loop, steps of weights learned and teacher": learned,
    "the loop, steps of weights and inputs learned and teacher": lambda setting, clock: learned(
        setting, clock, inputs=True
    ),
}
TAUGHT = [name for name in WAYS if name.endswith("and teacher")]

TURNS = (
    (
        "plain loop, DataLoader with 2 workers",
        "plain loop, DataLoader",
        "the loop",
        "bare step",
        "the loop, 2 batches a step",
        "the loop, gradients clipped",
    ),
    ("bare step", "bare step, bfloat16", "the loop, bfloat16"),
    (TAUGHT[0], "bare step", "teacher's forward", TAUGHT[1]),
    (TAUGHT[2], "bare step", "teacher's forward", TAUGHT[3]),
)
"""Ways that follow one another, as they are compared."""

Rates: TypeAlias = Mapping[str, float]
"""Images a second of ways that followed one another, by name."""


def rates(setting: Setting, rounds: int) -> list[Rates]:
    """Return the images a second of each way in each of its turns, in as many rounds of all."""
    found: list[Rates] = []
    for number in range(rounds):
        for names in TURNS:
            found.append({name: rate(setting, name) for name in (reversed(names) if number % 2 else names)})
            told = ", ".join(f"{name} {each:.0f}" for name, each in found[-1].items())
            print(f"round {number + 1}, images/s: {told}", flush=True)
    return found


def rate(setting: Setting, name: str) -> float:
    """Return the images a second of one turn, which begins with no rest of another one in memory."""
    gc.collect()
    WAYS[name](setting, clock := Clock(setting))
    return clock.rate


# --- memory


def peak(setting: Setting, name: str) -> int:
    """Return the most bytes that this process has had, once it has gone one way; on a GPU, of the GPU."""
    splits = setting.splits  # who takes a bare step has pictures too
    WAYS[name](setting, Clock(setting))
    del splits
    if find(setting.device).type == "cuda":
        return torch.cuda.max_memory_allocated(setting.device)
    # Not `getrusage`: a process begins there with what the one had that started it.
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def peaks(arguments: list[str]) -> dict[str, int]:
    """Return the peaks of the bare step and of the loop, each in a process of its own."""
    return {name: peak_of(name, arguments) for name in ("bare step", "the loop")}


def peak_of(name: str, arguments: list[str]) -> int:
    """Return the peak of one way, in a process that is called with these arguments too."""
    command = [sys.executable, "-m", "benchmarks.training", "--memory", name, *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return int(json.loads(done.stdout.splitlines()[-1]))


# --- the page


@dataclass(frozen=True)
class Target:
    """Something that is asked for, and what was measured.

    Attributes:
        what: Names it.
        bound: The least, or the most.
        ratios: Of each round; of what is measured once, one.
        above: Whether `bound` is the least; else it is the most.
    """

    what: str
    bound: float
    ratios: Sequence[float]
    above: bool = True

    @property
    def found(self) -> float:
        """The median of all rounds."""
        return median(self.ratios)

    @property
    def held(self) -> bool:
        """Whether it was reached."""
        return self.found >= self.bound if self.above else self.found <= self.bound

    @property
    def row(self) -> str:
        """A row of the table."""
        least = "at least" if self.above else "at most"
        verdict = "yes" if self.held else "**no**"
        return f"| {self.what} | {least} {self.bound:.2f} | {spread(self.ratios)} | {verdict} |"


def spread(ratios: Sequence[float]) -> str:
    """Return the median, and of several the lower and the upper quartile."""
    if len(ratios) < 2:
        return f"{median(ratios):.2f}"
    low, middle, high = quantiles(ratios, method="inclusive")
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


Ratio: TypeAlias = Callable[[Rates], float]

ASKED: tuple[tuple[str, float, Ratio], ...] = (
    ("the loop / bare step, images/s", 0.95, lambda of: of["the loop"] / of["bare step"]),
    (
        "the loop / the faster plain loop, images/s",
        1.5,
        lambda of: of["the loop"] / max(of[name] for name in WAYS if name.startswith("plain")),
    ),
    (
        "the loop / bare step, bfloat16 both, images/s",
        0.95,
        lambda of: of["the loop, bfloat16"] / of["bare step, bfloat16"],
    ),
)


def targets(found: Iterable[Rates], memory: dict[str, int]) -> list[Target]:
    """Return what is asked for of that which was measured."""
    found = list(found)
    asked = [Target(what, bound, each) for what, bound, ratio in ASKED if (each := ratios(found, ratio))]
    asked += [
        Target(f"{name} / (bare step + teacher's forward), time", 1.25, each, above=False)
        for name in TAUGHT
        if (each := ratios(found, lambda of, name=name: slowed(of, name)))  # type: ignore[misc]
    ]
    if memory:
        share = memory["the loop"] / memory["bare step"]
        asked.append(Target("the loop / bare step, peak memory", 1.15, [share], above=False))
    return asked


def slowed(of: Rates, name: str) -> float:
    """Return the time of a step over that of a bare one and the teacher's forward."""
    return 1 / of[name] / (1 / of["bare step"] + 1 / of["teacher's forward"])


def ratios(found: Iterable[Rates], ratio: Ratio) -> list[float]:
    """Return a ratio of those rates that followed one another."""
    known = []
    for each in found:
        try:
            known.append(ratio(each))
        except KeyError:  # other ways had their turn
            continue
    return known


def page(found: Sequence[Rates], memory: dict[str, int], facts: dict[str, Any]) -> str:
    """Return what was measured, as a page."""
    rows = [way_row(found, name) for name in WAYS]
    lines = [
        "# The training loop beside its own step",
        "",
        "Written by `python -m benchmarks.training --write benchmarks/training.md`, on",
        f"{facts['machine']}, torch {torch.__version__}, {facts['threads']} threads: "
        f"{facts['rounds']} rounds of {facts['steps']} steps, batches of {facts['batch']}.",
        "",
        "A bare step is forward, backward and step of the default teacher on one batch that lies on the",
        "device. The loop also draws, flips and shifts each batch, takes the weights' average, and counts",
        "losses and hits. A plain loop reads the same pictures through a DataLoader and changes them one by",
        "one. Ways that are compared follow one another, each for less than a second; a ratio is the median",
        "of those within rounds, with their quartiles.",
        "",
        "| what | asked | measured | reached |",
        "|---|---:|---:|---|",
        *(target.row for target in targets(found, memory)),
        "",
        "| what | images/s, median | of the bare step |",
        "|---|---:|---:|",
        *rows,
        "",
        *AFTER,
    ]
    if memory:
        sizes = ", ".join(f"{name} {size / 2**20:,.0f} MiB" for name, size in memory.items())
        lines += [f"Peak memory, of processes that hold the same pictures: {sizes}.", ""]
    return "\n".join(lines)


def way_row(found: Sequence[Rates], name: str) -> str:
    """Return the row of a way: its median rate, and the share of the bare step's in the same round."""
    rate = median(each[name] for each in found if name in each)
    share = spread(ratios(found, lambda of: of[name] / of["bare step"]))
    return f"| {name} | {rate:,.0f} | {share} |"


AFTER = (
    "Steps alone are timed. After each epoch the network as it would end answers the validation examples,",
    "which no step has done: they are not trained on, and with `average` the weights are others than those",
    "that are. As it is handed out it answers 500 of them once more.",
    "",
)
"""What the page says of the rest of an epoch."""


QUICK = Setting(Resnet(widths=(8, 8), blocks=(0, 1), pool=2), side=8, batch=8, steps=2)


def main() -> None:
    """Measure, and print the page or write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--device", default="cpu", help="what is measured")
    parser.add_argument("--threads", type=int, default=2, help="of the processor")
    parser.add_argument("--rounds", type=int, default=21, help="in which each way has its turns")
    parser.add_argument("--steps", type=int, default=6, help="that are timed in a turn")
    parser.add_argument("--write", type=Path, help="where to; printed otherwise")
    parser.add_argument("--quick", action="store_true", help="a small network, one round, no memory")
    parser.add_argument("--memory", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    make_deterministic(chosen.threads)
    setting = replace(QUICK if chosen.quick else Setting(steps=chosen.steps), device=chosen.device)
    if chosen.memory:
        print(peak(setting, chosen.memory))
        return
    rounds = 1 if chosen.quick else chosen.rounds
    found = rates(setting, rounds)
    again = ["--device", chosen.device, "--threads", str(chosen.threads), "--steps", str(chosen.steps)]
    facts = {
        "machine": there()[str(find(chosen.device))],
        "threads": chosen.threads,
        "rounds": rounds,
        "steps": setting.steps,
        "batch": setting.batch,
    }
    text = page(found, {} if chosen.quick else peaks(again), facts)
    if chosen.write:
        write_text(chosen.write, text)
    else:
        print(text)


if __name__ == "__main__":
    main()
