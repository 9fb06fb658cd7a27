"""Every width and every way of quantizing side by side, and other tools on the same teacher and images.

    python -m benchmarks.quantization [--part int8 widths trained peers bytes] [--seeds 1 2 3] [--write]

Parts: `int8` (static 8 bits against ONNX Runtime's own quantizer: accuracy, file, speed; the one that
measures time), `widths` (4, 3 and 2 bits, ternary, binary, after training), `trained` (the same with it),
`peers` (torchao and Brevitas, where the extra `peers` is installed) and `bytes` (on disk, against the least
there can be). Each for the default network and for LeNet-300-100 on MNIST, and for each seed a teacher of its
own; the default teacher of params.yaml's seed is the one in models/ where `dvc repro` has made it. The others
are trained once and kept in --teachers, so that parts can run apart; all need data/: `dvc repro prepare`
makes it. Rows are kept in benchmarks/quantization.json as they come, each in place of the former one of the
same kind of processor (another one trains other teachers), and --write makes the page of all that is there.
--quick goes through all of it on small images, with numbers that mean nothing.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import os
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks import quantization_page
from benchmarks.quantization_cases import CASES, WIDTHS, Case, Recipe, least_bytes, quantized
from benchmarks.quantization_peers import ONNXRUNTIME, PEERS, Made, Peer, Task, attempt, installed, of_file
from benchmarks.workshop import LENET, Workshop
from decant import examples as data_examples
from decant.checkpoints.checkpoint import Checkpoint
from decant.costs import counts as metrics_counts
from decant.errors import DecantError
from decant.export.deploy import to_onnx
from decant.export.runtime import open_session
from decant.export.timing import Rounds, compare, interleave, no_garbage_collection
from decant.export.trace import INPUT
from decant.networks.execution import predict
from decant.outputs import write_json, write_text
from tasks.benchmark.measure import describe_machine
from tasks.evaluate import accuracy as metrics_accuracy
from tasks.pipeline import splits as data_splits
from tasks.pipeline.lineages import MODELS
from tasks.pipeline.models import load_model
from tasks.pipeline.params import read_yaml
from tasks.pipeline.stage import report_errors
from tests.imports import ROOT

Row = dict[str, Any]
RESULTS = ROOT / "benchmarks" / "quantization.json"
TEACHERS = ROOT / ".scratch" / "teachers"
IMAGES = 1000
"""Training images for calibration, the first ones, the same for all tools."""

REPEATS = {1: 20, 128: 2}
"""Timed calls in one turn, by batch size."""


@dataclass(frozen=True)
class Network:
    """A network, its images, and how its quantized forms are trained.

    Attributes:
        sections: Of params.yaml, where they are not the repository's own.
        recipe: Of trained rows.
        rounds: Of timing.
    """

    sections: Mapping[str, Any]
    recipe: Recipe
    rounds: int = 40


NETWORKS: dict[str, Network] = {
    "default": Network(
        {},
        Recipe(epochs=2, learning_rate=0.02, signs_rate=0.003, augmentation={"flip": True, "shift": 1}),
    ),
    "lenet-300-100": Network(LENET, Recipe(epochs=4, learning_rate=0.05, signs_rate=0.002)),
}
_SMALL: dict[str, Any] = {"epochs": 1, "batch_size": 32}
_DIGITS = {"data": {"source": "digits", "validation": 200}}
_SHORT = Recipe(epochs=1, learning_rate=0.02, signs_rate=0.003, batch_size=32)
QUICK: dict[str, Network] = {
    name: Network(_DIGITS | {"teacher": {"architecture": kind, "training": _SMALL}}, _SHORT, rounds=3)
    for name, kind in {
        "default": {"kind": "resnet", "widths": [8, 16], "blocks": [0, 1], "pool": 2},
        "lenet-300-100": {"kind": "mlp", "hidden": [32, 16]},
    }.items()
}
"""The same on 1,797 digits: every row, in about a minute."""


@dataclass(frozen=True)
class Bench:
    """One network with the teacher of one seed.

    Attributes:
        network: What it is and how it is trained.
        shop: Where stages run.
        seed: Of the teacher and of everything after it.
        teacher: The network in float32.
        test: The images that accuracies are measured on.
        whole: The teacher's accuracy in percent.
        processor: Where all of it runs.
    """

    network: Network
    shop: Workshop
    seed: int
    teacher: Checkpoint
    test: data_examples.Examples
    whole: float
    processor: str

    def made(self, block: Mapping[str, Any]) -> Checkpoint:
        """Return what the stage makes of the teacher by this block."""
        return self.shop.make("quantized", block, self.seed)

    def accuracy(self, function: Callable[[Tensor], Tensor]) -> float:
        """Return the accuracy on the test split in percent."""
        return 100 * metrics_accuracy.accuracy(predict(function, self.test.images), self.test.labels)

    def row(self, **found: Any) -> Row:
        """Return a row of results; where there is an accuracy, with the change from the teacher in points."""
        place = {"network": self.shop.name, "processor": self.processor, "seed": self.seed}
        row = {**place, "teacher": self.whole, **found}
        if row.get("accuracy") is not None:
            row["change"] = row["accuracy"] - self.whole
        return row

    @functools.cached_property
    def task(self) -> Task:
        """What other tools are given."""
        with self.shop.inside({}, self.seed):
            train, validation = data_splits.read(data_splits.TRAIN), data_splits.read(data_splits.VALIDATION)
        recipe = self.network.recipe
        images = train.first(IMAGES).images
        return Task(self.teacher, images, train, validation, recipe.training(), recipe.loss(), self.seed)


def int8(bench: Bench) -> Iterator[Row]:
    """Yield float32, our static 8 bits and ONNX Runtime's, all run by ONNX Runtime, timed in turns."""
    made: dict[str, Made] = {"float32": of_file(to_onnx(bench.teacher).SerializeToString())}
    found: dict[str, Row] = {"float32": {"differing": 0}}
    for way, words in quantization_page.OURS.items():
        model = bench.made(quantized(**words, static=True))
        content = to_onnx(model).SerializeToString()
        made[way] = of_file(content)
        functions = (model.module, made[way].function, of_file(content, exact=False).function)
        expected, *answers = [predict(function, bench.test.images).argmax(1) for function in functions]
        differing, in_plain = (int((answer != expected).sum()) for answer in answers)
        packed = int(bench.shop.measured("quantized")["bytes"])
        found[way] = {"packed": packed, "differing": differing, "plain": in_plain}
    for way, peer in ONNXRUNTIME.items():
        result, why = attempt(peer, bench.task)
        if result is None:
            yield bench.row(way=way, width="8 bits", accuracy=None, note=why)
        else:
            made[way] = result
    latencies = timed({way: one.file for way, one in made.items() if one.file}, bench)
    for way, one in made.items():
        words = found.get(way, {}) | {"latency": latencies[way]}
        yield bench.row(
            way=way, width="8 bits", accuracy=bench.accuracy(one.function), bytes=one.size, **words
        )


def timed(files: Mapping[str, bytes], bench: Bench) -> dict[str, Row]:
    """Return, by way and batch size, seconds and the speed-ups over float32 and over the peer of min-max."""
    references = {"float32": "float32", "peer": next(iter(ONNXRUNTIME))}
    results: dict[str, Row] = {way: {} for way in files}
    sessions = {way: open_session(content, 1) for way, content in files.items()}
    order = random.Random(0)
    for size, repeats in REPEATS.items():
        images = data_examples.pixels(bench.test.images[torch.arange(size) % len(bench.test)])
        feed = {INPUT: np.ascontiguousarray(images.numpy())}
        calls = {way: functools.partial(session.run, None, feed) for way, session in sessions.items()}
        measured: dict[str, Rounds] = {way: [] for way in files}
        with no_garbage_collection():
            for _ in range(bench.network.rounds):
                for way, spent in interleave(calls, repeats, order).items():
                    measured[way].append(spent)
        for name, reference in references.items():
            if reference not in measured:
                continue
            for way, latency in compare(measured, reference).items():
                cell = results[way].setdefault(f"batch {size}", {"seconds": _short(latency.median)})
                numbers = (latency.speedup, latency.speedup_low, latency.speedup_high)
                cell[f"over {name}"] = [_short(number) for number in numbers]
    return results


def widths(bench: Bench) -> Iterator[Row]:
    """Yield every way at every width that needs no training."""
    return _cases([case for case in CASES if not case.trained], bench, "widths")


def trained(bench: Bench) -> Iterator[Row]:
    """Yield every way of training on levels at every width."""
    return _cases([case for case in CASES if case.trained], bench, "trained")


def _cases(cases: Sequence[Case], bench: Bench, part: str) -> Iterator[Row]:
    """Yield the cases' rows; what a way refuses is a row with the reason.

    Cases that are compared only in passing run with the first seed alone.
    """
    due = [case for case in cases if bench.seed == 1 or not case.once]
    uniform: dict[str, int] = {}
    for case in tqdm(due, desc=f"{bench.shop.name}, seed {bench.seed}: {part}"):
        block = case.block(bench.network.recipe, uniform.get(case.width))
        base = {"way": case.way, "width": case.width, "trained": case.trained, "recipe": block}
        try:
            bench.made(block)
        except DecantError as error:
            yield bench.row(**base, accuracy=None, note=str(error))
            continue
        found = bench.shop.measured("quantized")
        uniform.setdefault(case.width, int(found["bytes"]))  # the first way of each width is the plain one
        yield bench.row(**base, accuracy=found["accuracy"], bytes=int(found["bytes"]))


def peers(bench: Bench) -> Iterator[Row]:
    """Yield what torchao and Brevitas make of the same teacher, or why they do not."""
    for way, peer in tqdm(PEERS.items(), desc=f"{bench.shop.name}, seed {bench.seed}: peers"):
        yield of_peer(bench, way, peer)


def of_peer(bench: Bench, way: str, peer: Peer) -> Row:
    """Return the row of one way of one tool."""
    versions = {name: installed(name) for name in peer.package}
    base = {"way": way, "width": peer.width, "versions": versions, "words": peer.words}
    result, why = attempt(peer, bench.task)
    if result is None:
        return bench.row(**base, accuracy=None, note=why)
    return bench.row(**base, accuracy=bench.accuracy(result.function), bytes=result.size)


def bytes_on_disk(bench: Bench) -> Iterator[Row]:
    """Yield the bytes of each width, the least that its numbers take, and the width times all parameters."""
    if bench.seed != 1:  # the weights' values do not decide how many bytes they take
        return
    for width, (block, bits) in WIDTHS.items():
        model = bench.made(block)
        size = int(bench.shop.measured("quantized")["bytes"])
        yield bench.row(
            way=width,
            width=width,
            bytes=size,
            least=least_bytes(model, bits),
            flat=bits * metrics_counts.parameters(model.module) / 8,
            parameters=metrics_counts.parameters(model.module),
        )


def _short(number: float) -> float:
    return float(f"{number:.4g}")


PARTS: dict[str, Callable[[Bench], Iterator[Row]]] = {
    "int8": int8,
    "widths": widths,
    "trained": trained,
    "peers": peers,
    "bytes": bytes_on_disk,
}


def opened(name: str, network: Network, seed: int, folder: Path, teachers: Path, threads: int) -> Bench:
    """Return the bench of a network and a seed; its teacher is trained where there is none yet."""
    sections = {**network.sections}
    params = read_yaml(ROOT / "params.yaml")
    recipe = {key: sections.get(key, params[key]) for key in ("data", "teacher")}
    words = json.dumps([recipe, seed, threads], sort_keys=True)
    kept = teachers / f"{name}-{seed}-{hashlib.sha256(words.encode()).hexdigest()[:8]}"
    if not sections:
        sections["teacher"] = params["teacher"]
        built = ROOT / MODELS / "teacher"
        if seed == params["seed"] and built.exists() and not kept.exists():
            kept = built
    shop = Workshop(name, folder, sections, kept if kept.exists() else None, seed, threads)
    with shop.inside({}, seed):
        teacher, test = load_model("teacher"), data_splits.read(data_splits.TEST)
        if not kept.exists():
            shutil.copytree(MODELS / "teacher", kept)
    processor = str(describe_machine(threads)["processor"])
    bench = Bench(network, shop, seed, teacher, test, 0.0, processor)
    return replace(bench, whole=bench.accuracy(teacher.module))


def merged(before: list[Row], rows: list[Row]) -> list[Row]:
    """Return the former rows with the new ones, each in place of one of the same place, seed and way."""

    def key(row: Row) -> tuple[Any, ...]:
        return row["network"], row["processor"], row["seed"], row["way"], row["width"]

    return list(({key(row): row for row in before} | {key(row): row for row in rows}).values())


def put_(results: dict[str, Any], part: str, machine: Mapping[str, Any], rows: list[Row]) -> None:
    """Put the rows of a part into results, in place, and say what machine they are from."""
    kept = results.setdefault(part, {"machines": {}, "rows": []})
    kept["machines"][machine["processor"]] = dict(machine)
    kept["rows"] = merged(kept["rows"], rows)


def stored() -> dict[str, Any]:
    """Return the results that were kept."""
    kept: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    return kept


def measured(arguments: argparse.Namespace, keep: Callable[[str, Row], None]) -> None:
    """Run the parts that are asked for, for each network and seed."""
    networks = QUICK if arguments.quick else NETWORKS
    with tempfile.TemporaryDirectory(prefix="decant-quantization-") as temporary:
        teachers = Path(temporary) / "teachers" if arguments.quick else arguments.teachers.resolve()
        for name in arguments.networks:
            for seed in arguments.seeds:
                folder = Path(temporary) / f"{name}-{seed}"
                bench = opened(name, networks[name], seed, folder, teachers, arguments.threads)
                for part in arguments.part:
                    torch.set_num_threads(1 if part == "int8" else arguments.threads)
                    for row in PARTS[part](bench):
                        keep(part, row)


def main(words: list[str] | None = None) -> dict[str, Any]:
    """Measure, keep, and print the page; return the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--part", nargs="*", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--networks", nargs="*", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--seeds", nargs="*", type=int, default=[1, 2, 3])
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1), help="of trainings")
    parser.add_argument("--teachers", type=Path, default=TEACHERS, help="where trained teachers are kept")
    parser.add_argument("--quick", action="store_true", help="small images and networks, to see that it runs")
    parser.add_argument("--write", action="store_true", help="write benchmarks/quantization.{json,md,svg}")
    arguments = parser.parse_args(words)
    if arguments.quick and arguments.write:
        parser.error("--quick measures nothing worth writing; leave out one of the two")
    results: dict[str, Any] = {}
    machine = describe_machine(arguments.threads) | {"cores": os.cpu_count()}

    def keep(part: str, row: Row) -> None:
        put_(results, part, machine, [row])
        if arguments.write:
            # Another process may write beside this one: the file is read anew each time, and all rows of
            # this one are put into it, so that what the other has written over comes back.
            whole = stored()
            put_(whole, part, machine, results[part]["rows"])
            write_json(RESULTS, whole)

    if arguments.part and arguments.seeds and arguments.networks:
        measured(arguments, keep)
    if arguments.write:
        results = stored()
        write_text(RESULTS.with_suffix(".md"), quantization_page.page(results))
        quantization_page.draw(results, RESULTS.with_suffix(".svg"))
    print(quantization_page.page(results))
    return results


if __name__ == "__main__":
    with report_errors():
        main()
