"""Distil, prune, fine-tune and quantize with one teacher, beside each of these alone at as many bytes.

    python -m benchmarks.combined [--chains combined "prune alone" …] [--seeds 1 2 3] [--minutes 9] [--write]
    python -m benchmarks.combined --quick

The default teacher of models/ (run `dvc repro` first) is made small in several ways, each a chain of blocks
of params.yaml: the default chain `student-60-ft-int8`; another combination; and distillation, pruning and
quantization by itself, where everything that is trained has the teacher's soft targets. Quantization alone
comes to one bit for a weight, and to no fewer bytes than that. The others come to as many bytes as the
default chain or a few more, never to fewer. All of it takes minutes, as only the first --images of the
training images are looked at. Models are compared on the test split in pairs by McNemar's test. Each chain
is made by each of --seeds, and kept in benchmarks/combined.json as soon as it is: an interrupted run goes on
with those that are missing, and none is begun once --minutes have passed. --write makes the page of all that
is there; --quick takes few images, and numbers that mean nothing.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import decant
from benchmarks.distillation import hits, paired
from benchmarks.kept import parsed, place_of
from benchmarks.pruning_page import inline
from decant.checkpoints.checkpoint import Checkpoint
from decant.distill import distill
from decant.errors import DecantError
from decant.finetune import finetune
from decant.outputs import write_json, write_text
from decant.prune import prune
from decant.quantize import quantize
from tasks.pipeline import splits
from tasks.pipeline.lineages import MODELS
from tasks.pipeline.params import read_yaml
from tasks.pipeline.stage import report_errors
from tests.imports import ROOT

Block = dict[str, Any]
Row = dict[str, Any]

RESULTS = ROOT / "benchmarks" / "combined.json"
COMBINED = "combined"
KIB = 42
"""The least for a student of float32 numbers that takes no fewer bytes than the default chain comes to."""


def soft(temperature: float = 1.0) -> Block:
    """Return the teacher's soft targets."""
    return {"kind": "temperature", "temperature": temperature, "hard": 0.1}


def training(epochs: int, optimizer: Block, **changes: Any) -> Block:
    """Return the recipe of a training, as params.yaml has it for its students."""
    augmentation = {"flip": True, "shift": 1}
    return {"epochs": epochs, "optimizer": optimizer, "augmentation": augmentation, **changes}


def tuning(epochs: int, learning_rate: float = 0.02) -> Block:
    """Return the recipe of a training from good weights."""
    sgd = {"kind": "sgd", "learning_rate": learning_rate}
    return training(epochs, sgd, schedule={"kind": "cosine"}, average=0.99)


def levels(bits: int, epochs: int) -> Block:
    """Return a quantization that is trained with the teacher."""
    train = {"kind": "lsq", "loss": soft(), "training": tuning(epochs)}
    scheme = {"kind": "integer", "bits": bits, "range": {"kind": "mse"}}
    return {"op": "quantize", "scheme": scheme, "train": train}


def chains(quick: bool) -> dict[str, list[Block]]:
    """Return the blocks of each chain: each begins at the one before, the first at the teacher."""
    models, few = read_yaml(ROOT / "params.yaml")["models"], 1 if quick else 0
    default = ("student", "student-60", "student-60-ft", "student-60-ft-int8")
    small: Block = {
        "op": "distill",
        "student": {"kind": "resnet", "widths": [16, 32, 64], "blocks": [0, 1, 1], "pool": 2},
        "loss": soft(),
        "training": training(few or 4, {"kind": "sgd", "learning_rate": 0.1}, average=0.99),
        "start": "teacher",
    }
    pruned: Block = {"op": "prune", "criterion": {"kind": "obs"}, "statistics": True}
    tuned: Block = {"op": "finetune", "loss": soft(), "training": tuning(few or 1)}
    signs: Block = {
        "kind": "error-decay",
        "loss": soft(),
        "training": training(
            few or 2,
            {"kind": "adamw", "learning_rate": 0.003},
            schedule={"kind": "cosine"},
            weight_decay=0.0,
            average=0.99,
        ),
    }
    return {
        COMBINED: [dict(models[name]) for name in default],
        "combined, T = 4, from fresh weights, 8 bits not trained": [
            {k: v for k, v in small.items() if k != "start"} | {"loss": soft(4.0)},
            {"op": "prune", "criterion": {"kind": "magnitude"}, "budget": {"sparsity": 0.6}},
            tuned | {"loss": soft(4.0)},
            {"op": "quantize", "scheme": {"kind": "integer", "bits": 8}},
        ],
        "distil alone": [
            small
            | {"student": {"budget": {"kib": KIB}}, "training": small["training"] | {"epochs": few or 6}}
        ],
        "prune alone": [pruned | {"budget": {"sparsity": 0.97}}, tuned | {"training": tuning(few or 3)}],
        "quantize alone": [
            {"op": "quantize", "scheme": {"kind": "binary", "balanced": True}, "train": signs}
        ],
        "prune, then quantize": [pruned | {"budget": {"sparsity": 0.88}}, tuned, levels(4, few or 1)],
    }


OPERATIONS: dict[str, Callable[..., Any]] = {
    "distill": distill,
    "prune": prune,
    "finetune": finetune,
    "quantize": quantize,
}


@dataclass(frozen=True)
class Bench:
    """A teacher, and what is looked at.

    Attributes:
        splits: What chains learn from, and the validation images.
        test: The test split.
    """

    teacher: Checkpoint
    splits: decant.Splits
    test: decant.Examples

    def made(self, name: str, blocks: Sequence[Block], seed: int) -> Row:
        """Return what a chain comes to after each step, and which images it is right about in the end."""
        begin, model, steps = time.process_time(), self.teacher, list[Row]()
        for number, block in enumerate(blocks):
            recipe = {key: value for key, value in block.items() if key not in ("op", "from")}
            run, more = decant.Run(f"{name}-{number}", seed), {"teacher": self.teacher}
            model = OPERATIONS[block["op"]](model, recipe, self.splits, run=run, **more).model
            share = 100 * hits(model, self.splits.validation).double().mean().item()
            steps.append({"op": block["op"], "validation": share, "bytes": self.size(model)})
        seconds = time.process_time() - begin
        return {"chain": name, "seed": seed, "seconds": seconds, "steps": steps, **self.found(model)}

    def found(self, model: Checkpoint) -> Row:
        """Return the bytes of a model, and which images it is right about, as hexadecimal digits of bits."""
        both = {"validation": self.splits.validation, "test": self.test}
        right = {name: hits(model, examples) for name, examples in both.items()}
        return {"bytes": self.size(model), **{name: packed(each) for name, each in right.items()}}

    def size(self, model: Checkpoint) -> int:
        """Return the bytes of a model on disk."""
        with tempfile.TemporaryDirectory() as folder:
            decant.save(model, Path(folder) / "model")
            return decant.size_bytes(Path(folder) / "model")


def opened(images: int, quick: bool) -> Bench:
    """Return the default teacher, and so many training images."""
    whole, test = splits.read_splits(), splits.read(splits.TEST)
    validation = whole.validation.first(100) if quick else whole.validation
    taken = decant.Splits(whole.train.first(images), validation)
    return Bench(decant.load(ROOT / MODELS / "teacher"), taken, test.first(200) if quick else test)


def packed(right: torch.Tensor) -> str:
    """Return which images they are, bool [N], as hexadecimal digits of bits."""
    return np.packbits(right.numpy()).tobytes().hex()


def unpacked(digits: str, count: int) -> torch.Tensor:
    """Return which images they are, bool [count]."""
    bits = np.unpackbits(np.frombuffer(bytes.fromhex(digits), np.uint8), count=count)
    return torch.from_numpy(bits.astype(bool))


def run(
    bench: Bench, wanted: Sequence[tuple[str, int]], keep: Path, minutes: float, quick: bool
) -> dict[str, Any]:
    """Return all rows; those that are there already stay, and each is kept as soon as it is known.

    Args:
        bench: The teacher and the images.
        wanted: Chains and seeds.
        keep: The file of the rows.
        minutes: After which no further chain is begun.
        quick: Whether chains train for an epoch alone.

    Raises:
        DecantError: The rows that are there are of another number of training images.
    """
    found: dict[str, Any] = json.loads(keep.read_text(encoding="utf-8")) if keep.exists() else {"rows": []}
    if found.get("train", taken := len(bench.splits.train)) != taken:
        raise DecantError(
            f"{keep.name} has chains of {found['train']:,} training images; take --images {found['train']}, "
            "or move the file away"
        )
    found["images"] = {"validation": len(bench.splits.validation), "test": len(bench.test)}
    found["train"], found["teacher"] = taken, bench.found(bench.teacher)
    blocks, end = chains(quick), time.monotonic() + 60 * minutes
    for name, seed in wanted:
        if (name, seed) not in {(row["chain"], row["seed"]) for row in found["rows"]}:
            if time.monotonic() > end:
                break
            found["rows"].append(bench.made(name, blocks[name], seed))
            write_json(keep, found)
    return found


# --- the page


def page(found: Mapping[str, Any]) -> str:
    """Return what was measured, as a page."""
    rows, teacher = by_chain(found["rows"]), found["teacher"]
    seeds = ", ".join(str(each) for each in sorted({row["seed"] for row in found["rows"]}))
    lines = [
        "# Distil, prune, fine-tune and quantize, together and alone",
        "",
        "Written by `python -m benchmarks.combined --write`.",
        "",
        "The default teacher on Fashion-MNIST, made small by chains of blocks of params.yaml, all trained",
        f"with the teacher's soft targets on {found['train']:,} images, by the seeds {seeds}. Bytes and",
        "accuracy in percent are means over seeds, ± the deviation; what each has over the default chain on",
        "the test split is in points, with McNemar's p, over the seeds that both have; seconds are of one",
        "chain, of the processor, one thread. Below, what each step leaves on validation images.",
        "",
        "| chain | seeds | bytes | validation | test | over the default | p | seconds |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
        f"| teacher | | {teacher['bytes']:,} | {' | '.join(_both(found, [teacher]))} | | | |",
    ]
    lines += [f"| {name} | {_cells(found, own, rows.get(COMBINED))} |" for name, own in rows.items()]
    return "\n".join([*lines, "", *_verdict(found, rows), "## Blocks", "", *_blocks(rows), ""])


def by_chain(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Return the rows of each chain by their seeds; the default chain first, then those of fewer bytes."""
    found = dict[str, list[Row]]()
    for row in sorted(rows, key=lambda row: row["seed"]):
        found.setdefault(row["chain"], []).append(row)
    return dict(sorted(found.items(), key=lambda pair: (pair[0] != COMBINED, bytes_of(pair[1]))))


def right(found: Mapping[str, Any], rows: Sequence[Row], split: str) -> list[torch.Tensor]:
    """Return which images of a split each row is right about, bool [N]."""
    return [unpacked(row[split], found["images"][split]) for row in rows]


def _shares(found: Mapping[str, Any], rows: Sequence[Row], split: str) -> list[float]:
    return [100 * each.double().mean().item() for each in right(found, rows, split)]


def _percent(found: Mapping[str, Any], rows: Sequence[Row], split: str) -> str:
    shares = _shares(found, rows, split)
    spread = f" ± {statistics.stdev(shares):.2f}" if len(shares) > 1 else ""
    return f"{statistics.fmean(shares):.2f}{spread}"


def _both(found: Mapping[str, Any], rows: Sequence[Row]) -> list[str]:
    return [_percent(found, rows, split) for split in ("validation", "test")]


def bytes_of(rows: Sequence[Row]) -> int:
    """Return the bytes of a chain's models, mean over seeds."""
    return round(statistics.fmean(row["bytes"] for row in rows))


def over(found: Mapping[str, Any], rows: Sequence[Row], default: Sequence[Row]) -> tuple[float, float]:
    """Return the points that a chain has over the default one on the test split, and McNemar's p.

    Both over the seeds that were measured for both.
    """
    seeds = {row["seed"] for row in rows} & {row["seed"] for row in default}
    one, other = (
        right(found, [row for row in each if row["seed"] in seeds], "test") for each in (rows, default)
    )
    gains = [100 * (a.double().mean() - b.double().mean()).item() for a, b in zip(one, other, strict=True)]
    return statistics.fmean(gains), paired(one, other)


def _cells(found: Mapping[str, Any], rows: Sequence[Row], default: Sequence[Row] | None) -> str:
    compared = ["", ""]
    if default is not None and rows is not default:
        gain, chance = over(found, rows, default)
        compared = [f"{gain:+.2f}", f"{chance:.2g}"]
    shares = _both(found, rows)
    seconds = statistics.fmean(row["seconds"] for row in rows)
    return " | ".join([str(len(rows)), f"{bytes_of(rows):,}", *shares, *compared, f"{seconds:.0f}"])


def _verdict(found: Mapping[str, Any], rows: Mapping[str, Sequence[Row]]) -> list[str]:
    """Return whether the default chain is better than each other one."""
    if COMBINED not in rows:
        return []
    default = rows[COMBINED]
    gains = {name: over(found, own, default) for name, own in rows.items() if own is not default}
    lines = list[str]()
    for words, told in (
        (
            "The default chain is better than",
            [name for name, (gain, p) in gains.items() if gain < 0 and p < 0.05],
        ),
        ("It is worse than", [name for name, (gain, p) in gains.items() if gain > 0 and p < 0.05]),
        ("Chance may be all between it and", [name for name, (_, p) in gains.items() if p >= 0.05]),
    ):
        if told:
            lines.append(f"- {words}: {'; '.join(told)}.")
    return [*lines, ""]


def _blocks(rows: Mapping[str, Sequence[Row]]) -> list[str]:
    """Return the blocks of each chain, with the accuracy on validation images and the bytes after each."""
    known, lines = chains(quick=False), list[str]()
    for name, own in ((name, own) for name, own in rows.items() if name in known):
        lines += [f"- {name}:"]
        for number, block in enumerate(known[name]):
            steps = [row["steps"][number] for row in own]
            share = statistics.fmean(step["validation"] for step in steps)
            shown = inline({key: value for key, value in block.items() if key != "from"})
            lines += [f"  - `{shown}`: {share:.2f} %, {bytes_of(steps):,} bytes"]
    return lines


def main(words: list[str] | None = None) -> dict[str, Any]:
    """Make the chains that are missing, and print the page or write it; return the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--chains", nargs="*", default=list(chains(False)), choices=list(chains(False)))
    parser.add_argument("--images", type=int, default=10_000, help="for training")
    parser.add_argument("--seeds", nargs="*", type=int, default=[1, 2, 3])
    parser.add_argument("--minutes", type=float, default=600.0, help="after which no further chain is begun")
    chosen = parsed(parser, words, page="write benchmarks/combined.md")
    decant.make_deterministic(1)
    bench = opened(2048 if chosen.quick else chosen.images, chosen.quick)
    with place_of(RESULTS, chosen.quick) as keep:
        wanted = [(name, seed) for seed in chosen.seeds for name in chosen.chains]
        found = run(bench, wanted, keep, chosen.minutes, chosen.quick)
    if chosen.write:
        write_text(RESULTS.with_suffix(".md"), page(found))
    print(page(found))
    return found


if __name__ == "__main__":
    with report_errors():
        main()
