"""What each model gained over the teacher, in a sentence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from decant.checkpoints.activations import DynamicGrid
from decant.checkpoints.checkpoint import Checkpoint
from decant.checkpoints.constraints import FREE, Levels
from decant.export.inputs import BYTE
from decant.export.kernels import Form, Forms
from decant.lowering.integers import whole, whole_numbers, with_bias
from decant.networks.structure import compressible

_BATCHES = {"batch_1": "batch 1", "batch_128": "batch 128"}


def verdict(numbers: Mapping[str, Any], checkpoint: Checkpoint, forms: Forms) -> str:
    """Return what the model gained over the teacher in ONNX Runtime, and why it gained no more.

    A model is faster where the median says so by 5 % and 90 % of the rounds agree, slower likewise.

    Args:
        numbers: The size ratio and the latencies, as in benchmark/<processor>.json.
        checkpoint: The model.
        forms: How the export has its layers multiplied, by name.
    """
    batches = numbers["onnxruntime"]
    faster = [batch for key, batch in _BATCHES.items() if _clear(batches[key], 1)]
    slower = [batch for key, batch in _BATCHES.items() if _clear(batches[key], -1)]
    smaller = numbers["size_ratio"] > 1
    size = "smaller" if smaller else "not smaller"
    if len(faster) == len(_BATCHES):
        return f"{size}, {'and' if smaller else 'but'} faster"
    if faster:
        pace = f"faster at {faster[0]}" + (f", slower at {slower[0]}" if slower else " only")
    else:
        pace = f"slower at {' and '.join(slower)}" if slower else "not faster"
    return f"{size}, {pace}" + "".join(f"; {reason}" for reason in _reasons(checkpoint, forms))


def _reasons(checkpoint: Checkpoint, forms: Forms) -> list[str]:
    """Return what in the model makes it smaller on disk, or more exact to deploy, and saves no time here."""
    floats = [layer for layer, form in forms.items() if form is Form.FLOAT]
    reasons = _unpacked(
        {layer: levels for layer in floats if (levels := _levels(checkpoint, layer))}, checkpoint
    )
    if Form.UNROUNDED in forms.values():
        reasons.append("integers whose sums nothing rounds are multiplied in float32")
    if Form.PACKED in forms.values():
        reasons.append("linear layers of few bits are multiplied in float32, out of 4 bits a weight")
    if any(constraints.mask is not None for constraints in checkpoint.constraints.values()):
        reasons.append("its zeros are multiplied like other weights")
    if Form.BATCH in forms.values():
        reasons.append("the range of each batch is looked for first")
    if any(layer in checkpoint.grids for layer in floats):
        reasons.append("rounding the inputs of layers is work on top")
    if checkpoint.clamps:
        reasons.append("cutting the inputs of layers is work on top")
    return reasons


def _unpacked(layers: Mapping[str, Levels], checkpoint: Checkpoint) -> list[str]:
    """Return why these layers, whose weights have levels, are multiplied in float32 nonetheless."""
    lacking: dict[str, set[str]] = {}
    for layer, levels in layers.items():
        kind, where = _lacking(checkpoint, layer, levels)
        lacking.setdefault(where, set()).add(kind)
    return [
        f"ONNX Runtime has no kernel for {' or '.join(sorted(kinds))}{where}, they run unpacked"
        for where, kinds in lacking.items()
    ]


def _lacking(checkpoint: Checkpoint, layer: str, levels: Levels) -> tuple[str, str]:
    """Return what there is no kernel for, and where."""
    grid, weight = checkpoint.grids.get(layer), compressible(checkpoint.module).get(f"{layer}.weight")
    if not whole_numbers(levels):
        return f"weights of {len(levels.values)} levels", " that are no integers"
    if grid is None:
        return f"weights of {_bits(levels.bits)}", " beside inputs in float32"
    if weight is None:
        return "integers", " in other layers than convolutions and linear ones"
    if levels.group is not None:
        return f"groups of {levels.group}", " beside rounded inputs"
    if isinstance(grid, DynamicGrid):
        where = " with the range of each batch"
        if grid.bits < BYTE:
            return f"inputs of {_bits(grid.bits)}", where
        return ("convolutions" if weight.dim() > 2 else "zero points"), f"{where} that beats float32"
    integers = whole(weight.detach(), checkpoint.constraints[f"{layer}.weight"])
    if (
        weight.dim() > 2
        and integers is not None
        and bool((integers.zero_point != integers.zero_point[0]).any())
    ):
        return "a zero point for each channel", " in convolutions"
    bias = getattr(checkpoint.module.get_submodule(layer), "bias", None)
    if integers is not None and bias is not None and with_bias(integers, bias.detach(), grid.scale) is None:
        return "sums", " of more than 32 bits"
    return "integers", " whose biases are no whole steps of their sums"


def _levels(checkpoint: Checkpoint, layer: str) -> Levels | None:
    return checkpoint.constraints.get(f"{layer}.weight", FREE).levels


def _bits(count: int) -> str:
    return "one bit" if count == 1 else f"{count} bits"


def _clear(latency: Mapping[str, float], sign: int) -> bool:
    """Say whether the model is faster (sign 1) or slower (-1) by more than 5 % and more than the spread."""
    if sign > 0:
        return latency["speedup"] > 1.05 and latency["speedup_low"] > 1
    return latency["speedup"] < 1 / 1.05 and latency["speedup_high"] < 1
