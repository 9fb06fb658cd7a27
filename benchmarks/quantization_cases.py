"""The blocks of params.yaml that benchmarks/quantization.py compares, and the least bytes that each takes."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from decant.checkpoints.checkpoint import Checkpoint, state
from decant.checkpoints.constraints import FREE

Block = dict[str, Any]
MSE: Block = {"kind": "mse"}
WIDE: Block = {"kind": "integer", "bits": 8}


@dataclass(frozen=True)
class Recipe:
    """How trained rows of one network are trained: from the teacher, on its soft targets.

    Attributes:
        epochs: Of integers and codebooks; signs take half as many again.
        learning_rate: Of SGD, for integers and codebooks.
        signs_rate: Of Adam, for signs, which the small steps of SGD seldom turn.
    """

    epochs: int
    learning_rate: float
    signs_rate: float
    batch_size: int = 128
    augmentation: Mapping[str, Any] = field(default_factory=dict)

    def training(self, signs: bool = False) -> Block:
        """Return the training; signs have no weight decay, which would pull them to where they flip."""
        kind, rate = ("adamw", self.signs_rate) if signs else ("sgd", self.learning_rate)
        training: Block = {
            "epochs": self.epochs * 3 // 2 if signs else self.epochs,
            "batch_size": self.batch_size,
            "optimizer": {"kind": kind, "learning_rate": rate},
            "schedule": {"kind": "cosine"},
            "average": 0.99,
        }
        training |= {"weight_decay": 0.0} if signs else {}
        return training | ({"augmentation": dict(self.augmentation)} if self.augmentation else {})

    def loss(self) -> Block:
        """Return the soft targets; the temperature is low, as it has to be for few bits."""
        return {"kind": "temperature", "temperature": 2.0, "hard": 0.1}


@dataclass(frozen=True)
class Case:
    """One way at one width.

    Attributes:
        way: What is done, in words.
        width: Of the weights, and of the inputs where they are rounded too.
        content: The block without its training.
        train: How it is trained; None where it is not.
        once: Compared in passing: with the first seed alone.
        share: Whether widths are mixed, in no more bytes than the plain way at this width takes.
    """

    way: str
    width: str
    content: Block
    train: Block | None = None
    once: bool = False
    share: bool = False

    @property
    def trained(self) -> bool:
        """Whether it is trained."""
        return self.train is not None

    def block(self, recipe: Recipe, uniform: int | None = None) -> Block:
        """Return the whole block; `uniform` is what the plain way takes, in bytes."""
        block = dict(self.content)
        if self.train is not None:
            signs = block["scheme"]["kind"] in ("binary", "ternary")
            block["train"] = {**self.train, "training": recipe.training(signs), "loss": recipe.loss()}
        if self.share:
            block["mixed"] = {"budget": {"bytes": uniform if uniform is not None else 0.5}}
        return block


def of(scheme: Block, **more: Any) -> Block:
    """Return a block that quantizes the teacher's weights by a scheme."""
    return {"op": "quantize", "from": "teacher", "scheme": scheme, **more}


def quantized(
    bits: int, range: Block | None = None, static: bool = False, symmetric: bool = True, **more: Any
) -> Block:
    """Return a block of integers per output channel; `static` rounds inputs to eight bits too."""
    scheme: Block = {"kind": "integer", "bits": bits, **({"range": range} if range else {})}
    scheme |= {} if symmetric else {"symmetric": False}
    inputs = {"activations": {"bits": 8, **({"range": range} if range else {})}} if static else {}
    return of(scheme, **inputs, **more)


MAIN = ("nearest, min-max", "nearest, mse", "gptq, mse", "gptq, range searched", "adaround, mse")
"""Ways after training that every seed has."""


SEARCHED: Block = {"search": 8}


def _after(bits: int) -> list[Case]:
    """Return what needs no training, at a width; the plain way first."""
    width, gptq, best = f"{bits} bits", {"kind": "gptq"}, functools.partial(quantized, bits, MSE)
    ways: dict[str, Block] = {
        "nearest, min-max": quantized(bits),
        "nearest, mse": best(),
        "nearest, mse, affine": best(symmetric=False),
        "nearest, mse, groups of 32": of({"kind": "integer", "bits": bits, "group": 32, "range": MSE}),
        "nearest, mse, biases corrected": best(correct_bias=True),
        "nearest, mse, equalized, biases corrected": best(equalize=True, correct_bias=True),
        "gptq, mse": best(rounding=gptq),
        "gptq, mse, biases corrected": best(rounding=gptq, correct_bias=True),
        "gptq, min-max": quantized(bits, rounding=gptq),
        "gptq, range searched": quantized(bits, rounding=gptq | SEARCHED),
        "adaround, mse": best(rounding={"kind": "adaround"}),
        "adaround, range searched": quantized(bits, rounding={"kind": "adaround"} | SEARCHED),
        "codebook of 2^bits": of({"kind": "codebook", "entries": 2**bits}),
    }
    cases = [Case(way, width, block, once=way not in MAIN) for way, block in ways.items()]
    if bits > 2:
        mixed = best(rounding=gptq)
        cases += [
            Case("powers of two", width, of({"kind": "power-of-two", "bits": bits}), once=True),
            Case("gptq, mse, mixed widths in as many bytes", width, mixed, share=True, once=True),
        ]
    return cases


TERNARY: Block = {"kind": "ternary"}
BALANCED: Block = {"kind": "binary", "balanced": True}
LSQ, STE = {"kind": "lsq"}, {"kind": "ste"}
ONE_BIT: Block = {"bits": 1, "range": MSE}
FOUR_BITS: Block = {"bits": 4, "range": MSE}

CASES: tuple[Case, ...] = (
    *(case for bits in (4, 3, 2) for case in _after(bits)),
    Case("nearest", "ternary", of(TERNARY)),
    Case("gptq", "ternary", of(TERNARY, rounding={"kind": "gptq"})),
    Case("nearest", "binary", of({"kind": "binary"})),
    Case("gptq", "binary", of({"kind": "binary"}, rounding={"kind": "gptq"})),
    Case("lsq", "4 bits", quantized(4, MSE), LSQ),
    Case("lsq", "3 bits", quantized(3, MSE), LSQ, once=True),
    Case("lsq", "2 bits", quantized(2, MSE), LSQ, once=True),
    Case("ste", "4 bits", quantized(4, MSE), STE, once=True),
    Case("centroids", "4 bits", of({"kind": "codebook", "entries": 16}), {"kind": "centroids"}, once=True),
    Case("ttq", "ternary", of(TERNARY, first_and_last=WIDE), {"kind": "ttq"}),
    Case("ste", "ternary", of(TERNARY, first_and_last=WIDE), STE, once=True),
    Case("error-decay", "binary", of(BALANCED), {"kind": "error-decay"}),
    Case("ste", "binary", of({"kind": "binary"}), STE, once=True),
    Case("lsq", "4 bits, inputs 4 bits", quantized(4, MSE, activations=FOUR_BITS), LSQ, once=True),
    Case(
        "pact", "4 bits, inputs 4 bits", quantized(4, MSE, activations=FOUR_BITS), {"kind": "pact"}, once=True
    ),
    Case("error-decay", "binary, inputs 1 bit", of(BALANCED, activations=ONE_BIT), {"kind": "error-decay"}),
)
"""What is compared. Where ternary and binary weights are trained, the two ends of the network keep 8 bits."""

WIDTHS: dict[str, tuple[Block, float]] = {
    **{f"{bits} bits": (quantized(bits), float(bits)) for bits in (8, 7, 6, 5, 4, 3)},
    "2 bits": (quantized(2), math.log2(3)),
    "8 bits, static": (quantized(8, static=True), 8.0),
    "4 bits, affine": (quantized(4, symmetric=False), 4.0),
    "4 bits, groups of 32": (of({"kind": "integer", "bits": 4, "group": 32}), 4.0),
    "codebook of 16": (of({"kind": "codebook", "entries": 16}), 4.0),
    "powers of two, 4 bits": (of({"kind": "power-of-two", "bits": 4}), 4.0),
    "ternary": (of(TERNARY), math.log2(3)),
    "binary": (of({"kind": "binary"}, first_and_last="same"), 1.0),
}
"""Each width in every layer, and its bits a weight."""


def least_bytes(model: Checkpoint, bits: float) -> float:
    """Return the least bytes that a model's numbers take: `bits` for each weight with levels, 4 for a float.

    Floats are what has no levels, such as biases; the scales; and levels that are no whole numbers, such as
    the entries of a codebook. A zero point is one of at most 256 levels and takes one byte. The grid of a
    layer's inputs is a scale and a zero point, 5 bytes.
    """
    total = sum(5.0 if hasattr(grid, "scale") else 0.0 for grid in model.grids.values())
    for name, tensor in state(model.module).items():
        levels = model.constraints.get(name, FREE).levels
        if levels is None:
            total += 4 * tensor.numel()
            continue
        total += bits / 8 * tensor.numel() + 4 * levels.scale.numel()
        total += 0 if levels.zero_point is None else levels.zero_point.numel()
        total += 0 if levels.integers is not None else 4 * len(levels.values)
    return total
