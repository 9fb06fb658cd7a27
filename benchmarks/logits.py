"""Answers brought back to the parent's without labels: what it gains, beside as many passes with labels.

    python -m benchmarks.logits [--write] [--only lenet-300-100 default] [--seeds 1 2 3] [--images 10000]
    python -m benchmarks.logits --only default --recipes thin --ways "logits, adam" --seeds 2
    python -m benchmarks.logits --only --write
    python -m benchmarks.logits --quick

LeNet-300-100 on MNIST at 95 % zeros, a network for each seed; and the default teacher of models/ with the
recipes obs-80, thin, and 2 bits, of which seeds draw the order and the changes of images where there are any.
Each is made as it is, and with `logits`. Beside it stands the first one trained with labels, for as many
epochs as its `logits` took passes over images: both go forward and back once for an image. Choices (solver,
temperature, rounds) are made by the divergence on validation images; shown are these and the test split.
Results are kept in benchmarks/logits.json, row by row, so that rows can be added in several calls; --write
makes the page of all that is there, and with --only alone nothing is measured. --teachers names a folder in
which LeNets stay from call to call. --quick goes through all of it on small images, with numbers that mean
nothing.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from benchmarks.kept import parsed
from benchmarks.workshop import LENET, Workshop
from decant.costs.drift import drift_from
from decant.networks.execution import predict
from decant.outputs import write_json, write_text
from tasks.evaluate.accuracy import accuracy
from tasks.pipeline import splits
from tasks.pipeline.lineages import MODELS
from tasks.pipeline.models import load_model
from tasks.pipeline.params import read_yaml
from tests.imports import ROOT

RESULTS = ROOT / "benchmarks" / "logits.json"
PAGE = ROOT / "benchmarks" / "logits.md"

Block = dict[str, Any]
Row = dict[str, Any]

QUICK: Block = {
    "data": {"source": "digits", "validation": 100},
    "teacher": {
        "architecture": {"kind": "resnet", "widths": [16, 32], "blocks": [0, 1]},
        "training": {"epochs": 2, "optimizer": {"kind": "sgd", "learning_rate": 0.1}},
    },
}
TUNING: dict[str, Block] = {
    "lenet-300-100": {"optimizer": {"kind": "sgd", "learning_rate": 0.05}, "schedule": {"kind": "cosine"}},
    "default": {
        "optimizer": {"kind": "sgd", "learning_rate": 0.02},
        "schedule": {"kind": "cosine"},
        "augmentation": {"flip": True, "shift": 1},
        "average": 0.99,
    },
}
"""The fine-tuning with labels, but for its epochs: that of benchmarks/pruning.py."""

GOALS: dict[tuple[str, str], float] = {
    ("lenet-300-100", "95 % zeros"): 0.2,
    ("default", "obs-80"): 0.2,
    ("default", "thin"): 0.25,
    ("default", "2 bits"): 0.4,
}
"""Points of the test split that the best way without labels may lose."""

PLAIN, LABELS = "as it is", "as it is, then labels"

SEEN: Block = {"flip": True, "shift": 1}
"""How the default teacher's images were changed when it was trained."""


def small_steps(images: int, passes: int, *, rate: float = 0.0005, **more: Any) -> Block:
    """Return `logits` by Adam, over so many images."""
    solver = {"kind": "adam", "learning_rate": rate}
    return {"logits": {"images": images, "iterations": passes, "solver": solver, **more}}


def ways(network: str, images: int, iterations: int = 40, every: int = 55_000) -> dict[str, dict[str, Block]]:
    """Return the blocks of each recipe by the way it is made, the way without `logits` first.

    Args:
        network: Its name.
        images: Of L-BFGS.
        iterations: Of L-BFGS.
        every: All training images.
    """
    logits: Block = {"logits": {"images": images, "iterations": iterations}}
    if network == "lenet-300-100":
        plain: Block = {
            "op": "prune",
            "from": "teacher",
            "criterion": {"kind": "obs"},
            "budget": {"sparsity": 0.95},
        }
        costs: Block = {"criterion": {"kind": "obs", "costs": "logits"}}
        in_rounds = {"logits": {**logits["logits"], "rounds": 3}}
        small = functools.partial(small_steps, every, 8, rate=0.001, rounds=3)
        return {
            "95 % zeros": {
                PLAIN: plain,
                "costs: logits": plain | costs,
                "logits": plain | logits,
                "logits, 3 rounds": plain | in_rounds,
                "costs: logits, logits, 3 rounds": plain | costs | in_rounds,
                "costs: logits, logits, 3 rounds, T = 4": plain
                | costs
                | {"logits": {**in_rounds["logits"], "temperature": 4.0}},
                "costs: logits, logits, 3 rounds, twice the images": plain
                | costs
                | {"logits": {**in_rounds["logits"], "images": 2 * images}},
                "costs: logits, logits, adam, 3 rounds": plain | costs | small(),
                "costs: logits, logits, adam, shifted, 3 rounds": plain
                | costs
                | small(augmentation={"shift": 1}),
            }
        }
    models = read_yaml(ROOT / "params.yaml")["models"]
    bits: Block = {
        "op": "quantize",
        "from": "teacher",
        "scheme": {"kind": "integer", "bits": 2},
        "rounding": {"kind": "gptq", "search": 8},
    }
    plain_blocks = {"obs-80": models["obs-80"], "thin": models["thin"], "2 bits": bits}
    found = {recipe: {PLAIN: block, "logits": block | logits} for recipe, block in plain_blocks.items()}
    longer = functools.partial(small_steps, every, rate=0.001, temperature=4.0, augmentation=SEEN)
    costs = {
        recipe: block | {"criterion": {**block["criterion"], "costs": "logits"}}
        for recipe, block in plain_blocks.items()
        if recipe != "2 bits"
    }
    for recipe, block in costs.items():
        found[recipe] |= {
            "costs: logits": block,
            "logits, adam": plain_blocks[recipe] | small_steps(every, 4, augmentation=SEEN),
            "logits, adam, T = 4, 12 passes": plain_blocks[recipe] | longer(12),
            "costs: logits, logits, adam, T = 4, 12 passes": block | longer(12),
        }
    found["obs-80"]["costs: logits, logits, adam, T = 4, 3 rounds"] = costs["obs-80"] | longer(4, rounds=3)
    affine = bits | {"scheme": {**bits["scheme"], "symmetric": False}}
    codes = small_steps(every, 4, augmentation=SEEN, codes=True)
    found["2 bits"] |= {
        "logits, adam, codes": bits | codes,
        "affine": affine,
        "affine, logits, adam, codes": affine | codes,
    }
    return found


def measured(shop: Workshop, name: str) -> Row:
    """Return accuracies in percent, and the KL divergence from the teacher on validation images, in nats."""
    with shop.inside({}, 1):
        model, teacher = load_model(name), load_model("teacher")
        validation, test = splits.read(splits.VALIDATION), splits.read(splits.TEST)
        return {
            "validation": 100 * accuracy(predict(model.module, validation.images), validation.labels),
            "test": 100 * accuracy(predict(model.module, test.images), test.labels),
            "drift": drift_from(teacher, validation.images)(model),
        }


def made(shop: Workshop, name: str, block: Block, seed: int) -> Row:
    """Return what one model comes to, and what it took."""
    begin = time.perf_counter()
    model = shop.make(name, block, seed)
    seconds, lineage = time.perf_counter() - begin, model.lineage[-1]
    passes = sum(lineage.get("logits_passes", ())) * lineage.get("logits_images", 0)
    return {"seconds": seconds, "passes": passes, **measured(shop, name)}


def draws(block: Block) -> bool:
    """Say whether a seed decides anything in a recipe for one teacher."""
    logits = block.get("logits", {})
    return "solver" in logits or "augmentation" in logits


def with_labels(block: Block, epochs: int, network: str) -> Block:
    """Return the block of a model trained with labels: the first one fine-tuned, or on its levels at once."""
    training = {"epochs": epochs, **TUNING[network]}
    if block["op"] == "prune":
        return {"op": "finetune", "from": "model-0", "training": training}
    whole = {name: given for name, given in block.items() if name != "rounding"}
    scheme = block["scheme"] | {"range": {"kind": "mse"}}
    return whole | {"scheme": scheme, "train": {"kind": "lsq", "training": training}}


def recipe_rows(
    shop: Workshop,
    network: str,
    recipe: str,
    blocks: Mapping[str, Block],
    seed: int,
    *,
    only: Sequence[str] = (),
    most: int = 0,
) -> Iterator[Row]:
    """Yield a row for each way to make a recipe, and one for fine-tuning the first of them with labels.

    Args:
        shop: Where models are made.
        network: Its name.
        recipe: Its name.
        blocks: Of each way.
        seed: Of what is drawn.
        only: The ways that are wanted; all where empty.
        most: Passes of what is known already.
    """
    of, labels = {"network": network, "recipe": recipe, "seed": seed}, not only or LABELS in only
    for number, (way, block) in enumerate(blocks.items()):
        if not only or way in only or (labels and way == PLAIN):
            row = made(shop, f"model-{number}", block, seed)
            most = max(most, row["passes"])
            yield {**of, "way": way, **row}
    if labels:
        with shop.inside({}, 1):
            epochs = max(1, round(most / len(splits.read(splits.TRAIN))))
        tuning = with_labels(blocks[PLAIN], epochs, network)
        yield {**of, "way": LABELS, "epochs": epochs, **made(shop, "tuned", tuning, seed)}


@dataclass(frozen=True)
class Wanted:
    """What is measured of all that could be.

    Attributes:
        networks: By name.
        recipes: By name; all where empty.
        ways: By name; all where empty.
        seeds: Of the teacher where it is trained here, and of all that is drawn.
        images: Of L-BFGS.
        threads: Of all operations.
        teachers: Where trained teachers stay; None where they are trained anew.
        quick: Whether all is small.
    """

    networks: Sequence[str]
    recipes: Sequence[str] = ()
    ways: Sequence[str] = ()
    seeds: Sequence[int] = (1, 2, 3)
    images: int = 10_000
    threads: int = 2
    teachers: Path | None = None
    quick: bool = False

    def blocks(self, network: str, seed: int) -> dict[str, dict[str, Block]]:
        """Return the blocks by recipe and way; of one teacher, other seeds only change what they draw."""
        small = {"iterations": 3, "every": self.images} if self.quick else {}
        every = ways(network, self.images, **small)
        again = network == "default" and seed != self.seeds[0]
        return {
            recipe: {way: block for way, block in blocks.items() if way == PLAIN or not again or draws(block)}
            for recipe, blocks in every.items()
            if not self.recipes or recipe in self.recipes
        }


def run(folder: Path, wanted: Wanted, keep: Path) -> list[Row]:
    """Return all rows; those that are there already stay, and each is kept as soon as it is known."""
    rows: list[Row] = json.loads(keep.read_text(encoding="utf-8")) if keep.exists() else []
    for network, seed in itertools.product(wanted.networks, wanted.seeds):
        shop = opened(folder / f"{network}-{seed}", network, seed, wanted)
        whole = {"network": network, "recipe": "", "way": "teacher", "seed": seed}
        rows = merged(rows, [whole | measured(shop, "teacher")])
        for recipe, blocks in wanted.blocks(network, seed).items():
            known = [row["passes"] for row in rows if (row["network"], row["recipe"]) == (network, recipe)]
            most = max(known, default=0)
            for row in recipe_rows(shop, network, recipe, blocks, seed, only=wanted.ways, most=most):
                rows = merged(rows, [row | {"threads": wanted.threads}])
                write_json(keep, rows)
    return rows


def opened(folder: Path, network: str, seed: int, wanted: Wanted) -> Workshop:
    """Return the folder in which models of a network are made."""
    if wanted.quick:
        return Workshop(network, folder, QUICK, seed=seed)
    if network == "default":
        return Workshop(network, folder, {}, ROOT / MODELS / "teacher", threads=wanted.threads)
    stays = None if wanted.teachers is None else wanted.teachers / f"{network}-{seed}"
    known = stays if stays is not None and stays.exists() else None
    shop = Workshop(network, folder, LENET, known, seed=seed, threads=wanted.threads)
    if stays is not None and known is None:
        shutil.copytree(folder / MODELS / "teacher", stays)
    return shop


def merged(rows: Sequence[Row], new: Sequence[Row]) -> list[Row]:
    """Return the rows with new ones in the place of those of the same model."""
    key = ("network", "recipe", "way", "seed")
    after = {tuple(row[part] for part in key): row for row in (*rows, *new)}
    return list(after.values())


# --- the page


def page(rows: Sequence[Row]) -> str:
    """Return what was measured, as a page."""
    lines = [
        "# Answers brought back to the parent's, without labels",
        "",
        "Written by `python -m benchmarks.logits --write`.",
        "",
        "Change of the accuracy from the parent's in points, mean over seeds and deviation, on validation",
        "images and on the test split; KL divergence of the logits from the parent's on validation images;",
        "passes, forward and back, over images in thousands; seconds with so many threads, on two cores that",
        "did other work beside it. What has labels is the model as it is, fine-tuned (2 bits: trained by",
        "LSQ) for as many epochs as `logits` took passes. Seeds of the default teacher, which is one, are of",
        "what is drawn. What is not there was not measured.",
        "",
    ]
    for network in dict.fromkeys(row["network"] for row in rows):
        lines += [f"## {network}", "", *table([row for row in rows if row["network"] == network]), ""]
    return "\n".join([*lines, "## Goals", "", *goals(rows), ""])


def table(rows: Sequence[Row]) -> list[str]:
    """Return the lines of one network's table."""
    lines = [
        "| recipe | way | validation | test | KL, nats | passes | seconds | threads |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    whole = {row["seed"]: row for row in rows if row["way"] == "teacher"}
    for recipe, way in dict.fromkeys((row["recipe"], row["way"]) for row in rows if row["recipe"]):
        same = [row for row in rows if (row["recipe"], row["way"]) == (recipe, way)]
        changes = [spread([row[s] - whole[row["seed"]][s] for row in same]) for s in ("validation", "test")]
        epochs = f", {same[0]['epochs']} epochs" if "epochs" in same[0] else ""
        numbers = [f"{fmean(row['drift'] for row in same):.4f}", f"{same[0]['passes'] / 1000:,.0f}"]
        numbers.append(f"{fmean(row['seconds'] for row in same):.0f}")
        threads = sorted({row.get("threads", 2) for row in same})
        numbers.append(f"{' or '.join(map(str, threads))}")
        lines.append(f"| {recipe} | {way}{epochs} | {' | '.join([*changes, *numbers])} |")
    return lines


def spread(changes: Sequence[float]) -> str:
    """Return mean and, of several, deviation."""
    return f"{fmean(changes):+.2f}" + (f" ± {stdev(changes):.2f}" if len(changes) > 1 else "")


def goals(rows: Sequence[Row]) -> list[str]:
    """Return what was to be reached, by the way that diverges least on validation images.

    Neither making nor choosing it takes a label.
    """
    lines = [
        "| network | recipe | may lose | nearest way on validation | loses | reached |",
        "|---|---|---:|---|---:|---|",
    ]
    for (network, recipe), most in GOALS.items():
        same = [row for row in rows if (row["network"], row["recipe"]) == (network, recipe)]
        if not same:
            continue
        whole = {r["seed"]: r["test"] for r in rows if (r["network"], r["way"]) == (network, "teacher")}
        by_way = {
            way: [row for row in same if row["way"] == way] for way in dict.fromkeys(r["way"] for r in same)
        }
        by_way.pop(LABELS, None)
        best = min(by_way, key=lambda way: fmean(row["drift"] for row in by_way[way]))
        lost = fmean(whole[row["seed"]] - row["test"] for row in by_way[best])
        reached = "yes" if lost <= most else "no"
        lines.append(f"| {network} | {recipe} | {most:.2f} | {best} | {lost:.2f} | {reached} |")
    return lines


def main(arguments: Sequence[str] | None = None) -> list[Row]:
    """Measure, and write the page or print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", nargs="*", default=list(TUNING), choices=list(TUNING))
    parser.add_argument("--recipes", nargs="*", default=[], help="some of them, by name; all otherwise")
    parser.add_argument("--ways", nargs="*", default=[], help="some of them, by name; all otherwise")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--images", type=int, default=10_000, help="for L-BFGS")
    parser.add_argument("--threads", type=int, default=2, help="of all operations")
    parser.add_argument("--teachers", type=Path, help="a folder in which trained teachers stay")
    chosen = parsed(parser, arguments, few="small images")
    wanted = Wanted(
        chosen.only,
        chosen.recipes,
        chosen.ways,
        chosen.seeds,
        200 if chosen.quick else chosen.images,
        chosen.threads,
        chosen.teachers and chosen.teachers.resolve(),
        chosen.quick,
    )
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        rows = run(folder, wanted, folder / RESULTS.name if chosen.quick else RESULTS)
    text = page(rows)
    if chosen.write:
        write_text(PAGE, text)
    else:
        print(text)
    return rows


if __name__ == "__main__":
    main()
