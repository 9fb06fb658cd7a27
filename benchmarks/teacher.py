"""The default teacher's recipe beside longer ones in bfloat16: accuracy and seconds over three seeds.

    python -m benchmarks.teacher [--row "<recipe>" <seed>] [--threads 2] [--write]

The images are those in data/, and the teacher in models/ is the default recipe's first seed (`dvc repro`
first); the network is the default teacher's. Without --row the next missing row of `PLAN` is trained. A row
takes minutes, is kept in benchmarks/teacher.json, and one that was interrupted goes on from its last whole
epoch. Recipes are chosen by the validation split alone. The test split is looked at once, by --write, for
recipes of which all seeds are there; it also makes the page.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from decant.checkpoints.files import load, save
from decant.export.timing import processor
from decant.networks.architectures import Resnet
from decant.networks.execution import make_deterministic, predict
from decant.outputs import file_name, write_json, write_text
from decant.seeds import derive_seed
from decant.training.fresh import train
from decant.training.recipe import Training
from decant.training.resume import Scratch
from decant.training.run import Run
from tasks.evaluate.accuracy import accuracy
from tasks.pipeline import splits
from tasks.pipeline.lineages import MODELS
from tasks.pipeline.params import read_yaml
from tests.imports import ROOT

JSON, PAGE = Path("benchmarks/teacher.json"), Path("benchmarks/teacher.md")
KEPT = ROOT / ".scratch/teacher-benchmark"
"""Trained networks, and the state of one that was interrupted."""

SEEDS = (1, 2, 3)

DEFAULT = "default"
BEST = "bfloat16, 24 epochs"
RECIPES: dict[str, dict[str, Any]] = {
    DEFAULT: {},
    BEST: {"precision": "bfloat16", "epochs": 24},
    f"{BEST}, weight decay 0.001": {"precision": "bfloat16", "epochs": 24, "weight_decay": 0.001},
}
"""What each recipe changes in the default one's `training`. On a processor with AVX-512 BF16 the loop takes
about 1.4 times as many images a second in bfloat16 (benchmarks/training.md)."""

PLAN = [
    *((BEST, seed) for seed in SEEDS),
    *((DEFAULT, seed) for seed in SEEDS),
    (f"{BEST}, weight decay 0.001", 1),
]
"""Which rows are trained, in order: all seeds of what is compared, then candidates with the first seed."""

Row = dict[str, Any]


def main() -> None:
    """Train a row, or write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--row", nargs=2, metavar=("RECIPE", "SEED"), help="train this one")
    parser.add_argument("--write", action="store_true", help="look at the test split, and make the page")
    parser.add_argument("--threads", type=int, default=2, help="one on a machine that is busy otherwise")
    chosen = parser.parse_args()
    make_deterministic(chosen.threads)
    rows = read_rows()
    if chosen.write:
        finish(rows)
        return
    missing = [(chosen.row[0], int(chosen.row[1]))] if chosen.row else left(rows)
    if missing:
        recipe, seed = missing[0]
        write_json(JSON, {"rows": {**rows, name_of(recipe, seed): trained(recipe, seed, chosen.threads)}})
    print(f"{len(left(read_rows()))} rows are missing; --write makes the page of those that are there")


def read_rows() -> dict[str, Row]:
    """Return what is known, by the rows' names."""
    return json.loads(JSON.read_text(encoding="utf-8"))["rows"] if JSON.exists() else {}


def left(rows: Mapping[str, Row]) -> list[tuple[str, int]]:
    """Return the rows of the plan that are missing."""
    return [each for each in PLAN if name_of(*each) not in rows]


def name_of(recipe: str, seed: int) -> str:
    """Return the name of a row."""
    return f"{recipe}; seed {seed}"


def place_of(recipe: str, seed: int) -> Path:
    """Return where a row's network is kept."""
    return KEPT / file_name(name_of(recipe, seed))


def training_of(recipe: str) -> Training:
    """Return a recipe, whole."""
    content = read_yaml(ROOT / "params.yaml")["teacher"]["training"]
    return Training.model_validate(content | RECIPES[recipe])


def trained(recipe: str, seed: int, threads: int) -> Row:
    """Train a network, keep it, and return its row.

    Of a training that was interrupted the seconds are those of its epochs since, scaled to all.
    """
    training, place = training_of(recipe), place_of(recipe, seed)
    if (recipe, seed) == (DEFAULT, 1):
        return adopted(place)
    net = Resnet.model_validate(read_yaml(ROOT / "params.yaml")["teacher"]["architecture"])
    images = splits.read_splits()
    scratch = Scratch(place / "state", recipe_sum(training, seed))
    done = len(found["curve"]) if (found := scratch.read()) else 0
    begin = time.perf_counter()
    run = Run("teacher", derive_seed(seed, "teacher"), lambda: scratch)
    result = train(net, training, images, run)
    share = training.epochs / max(training.epochs - done, 1)
    save(result.model, place / "model")
    last = result.curve[-1]
    return {
        "validation_accuracy": round(last["validation_accuracy"], 5),
        "validation_loss": round(last["validation_loss"], 5),
        "train_accuracy": round(last["accuracy"], 5),
        "seconds": round((time.perf_counter() - begin) * share),
        "threads": threads,
        "machine": processor(),
    }


def adopted(place: Path) -> Row:
    """Return the row of the teacher in models/, which is the default recipe's with the first seed."""
    folder = MODELS / "teacher"
    with (folder / "curve.csv").open(encoding="utf-8") as file:
        last = list(csv.DictReader(file))[-1]
    save(load(folder), place / "model")
    keys = {"validation_accuracy": "validation_accuracy", "validation_loss": "validation_loss"}
    return {key: float(last[column]) for key, column in (keys | {"train_accuracy": "accuracy"}).items()}


def recipe_sum(training: Training, seed: int) -> str:
    """Return what the state of an interrupted training is found by."""
    text = json.dumps([training.model_dump(mode="json"), seed])
    return hashlib.sha256(text.encode()).hexdigest()[:20]


# --- the page


def finish(rows: Mapping[str, Row]) -> None:
    """Measure what all seeds have on the test split, where nobody has yet, and write the page."""
    found = {name: dict(row) for name, row in rows.items()}
    for recipe, seed in compared(rows):
        row = found[name_of(recipe, seed)]
        if "test_accuracy" not in row:
            row["test_accuracy"] = tested(recipe, seed)
    write_json(JSON, {"rows": found})
    write_text(PAGE, page(found))


def compared(rows: Mapping[str, Row]) -> list[tuple[str, int]]:
    """Return the recipes of which all seeds are there, and their seeds."""
    whole = [each for each in RECIPES if all(name_of(each, seed) in rows for seed in SEEDS)]
    return [(recipe, seed) for recipe in whole for seed in SEEDS]


def tested(recipe: str, seed: int) -> float:
    """Return the share of the test split that a trained network answers rightly."""
    model, test = load(place_of(recipe, seed) / "model"), splits.read(splits.TEST)
    return round(accuracy(predict(model.module, test.images), test.known_labels), 5)


def page(rows: Mapping[str, Row]) -> str:
    """Return what is known as a page."""
    whole = dict.fromkeys(recipe for recipe, _ in compared(rows))
    return PAGE_TEXT.format(
        recipes="\n".join(
            f"| {name} | {changed(each)} |"
            for name, each in RECIPES.items()
            if name_of(name, SEEDS[0]) in rows
        ),
        tried="\n".join(single(each, rows) for each in RECIPES if name_of(each, SEEDS[0]) in rows),
        final="\n".join(summary(each, rows) for each in whole),
        machines=", ".join(dict.fromkeys(row["machine"] for row in rows.values() if "machine" in row)),
    )


def changed(recipe: Mapping[str, Any]) -> str:
    """Return what a recipe changes, as params.yaml would say it."""
    return f"`{json.dumps(recipe)[1:-1].replace(chr(34), '')}`" if recipe else "nothing"


def single(recipe: str, rows: Mapping[str, Row]) -> str:
    """Return the row of the first seed."""
    row = rows[name_of(recipe, SEEDS[0])]
    return (
        f"| {recipe} | {100 * row['validation_accuracy']:.2f} | {row['validation_loss']:.4f} "
        f"| {100 * row['train_accuracy']:.2f} |"
    )


def summary(recipe: str, rows: Mapping[str, Row]) -> str:
    """Return the row of all seeds: mean, standard deviation, and each."""
    of = [rows[name_of(recipe, seed)] for seed in SEEDS]
    cells = [spread([100 * row[key] for row in of]) for key in ("validation_accuracy", "test_accuracy")]
    seconds = [f"{row['seconds']} ({row['threads']})" if "seconds" in row else "-" for row in of]
    return f"| {recipe} | {' | '.join(cells)} | {', '.join(seconds)} |"


def spread(values: Sequence[float]) -> str:
    """Return mean and standard deviation of some numbers, and each of them."""
    each = ", ".join(f"{value:.2f}" for value in values)
    return f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f} ({each})"


PAGE_TEXT = """# The default teacher's recipe beside longer ones in bfloat16

Written by `python -m benchmarks.teacher --write` from rows that it trained one by one on Fashion-MNIST, with
the network of params.yaml (293,354 parameters), on {machines}. Seconds are those of each seed, in
brackets the threads that it had.

| recipe | changes in `training` |
|---|---|
{recipes}

Chosen by the validation split (5,000 images), of the first seed:

| recipe | validation, % | loss | training images, % |
|---|---:|---:|---:|
{tried}

Over seeds 1, 2 and 3: mean ± standard deviation, and each seed. The test split (10,000 images) was looked at
once, when all seeds were trained. One network's accuracy there has a standard error of 0.25 by the choice of
images, which is the same for all.

| recipe | validation, % | test, % | seconds |
|---|---:|---:|---:|
{final}
"""


if __name__ == "__main__":
    main()
