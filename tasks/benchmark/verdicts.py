"""What each model gained over the teacher, in a sentence."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from decant.checkpoints.activations import DynamicGrid, InputGrid
from decant.checkpoints.checkpoint import Checkpoint
from decant.checkpoints.constraints import FREE, Levels
from decant.export.inputs import BYTE
from decant.export.kernels import Form, Forms, called
from decant.lowering.integers import whole, whole_numbers, with_bias
from decant.networks.calls import Kind, Weight
from decant.networks.record import record_of

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
    weights = record_of(checkpoint.module).weights.values()
    floats = [weight for weight in weights if forms.get(called(weight)) is Form.FLOAT]
    reasons = _unpacked(checkpoint, floats)
    if Form.UNROUNDED in forms.values():
        reasons.append("integers whose sums nothing rounds are multiplied in float32")
    if Form.PACKED in forms.values():
        reasons.append("linear layers of few bits are multiplied in float32, out of 4 bits a weight")
    if any(constraints.mask is not None for constraints in checkpoint.constraints.values()):
        reasons.append("its zeros are multiplied like other weights")
    if Form.BATCH in forms.values():
        reasons.append("the range of each batch or row is looked for first")
    if any(weight.layer in checkpoint.grids for weight in floats):
        reasons.append("rounding the inputs of layers is work on top")
    if checkpoint.clamps:
        reasons.append("cutting the inputs of layers is work on top")
    return reasons


def _unpacked(checkpoint: Checkpoint, weights: Iterable[Weight]) -> list[str]:
    """Return why those of these weights that have levels are multiplied in float32 nonetheless."""
    lacking: dict[str, set[str]] = {}
    for weight in weights:
        levels = checkpoint.constraints.get(weight.name, FREE).levels
        if levels is not None:
            kind, where = _lacking(checkpoint, weight, levels)
            lacking.setdefault(where, set()).add(kind)
    return [
        f"ONNX Runtime has no kernel for {' or '.join(sorted(kinds))}{where}, they run unpacked"
        for where, kinds in lacking.items()
    ]


def _lacking(checkpoint: Checkpoint, weight: Weight, levels: Levels) -> tuple[str, str]:
    """Return what there is no kernel for, and where."""
    grid, numbers = checkpoint.grids.get(weight.layer), checkpoint.module.get_parameter(weight.name).detach()
    if not whole_numbers(levels):
        return f"weights of {len(levels.values)} levels", " that are no integers"
    if weight.kind is Kind.RECURRENT:
        return "integers", " in recurrent layers whose states nothing rounds"
    if weight.kind not in (Kind.CONVOLUTION, Kind.LINEAR):
        return "integers", " in other layers than convolutions and linear ones"
    if grid is None:
        return f"weights of {_bits(levels.bits)}", " beside inputs in float32"
    if levels.group is not None:
        return f"groups of {levels.group}", " beside rounded inputs"
    if isinstance(grid, DynamicGrid):
        return _lacking_by_batch(grid, numbers)
    assert isinstance(grid, InputGrid)  # what recurrent layers have came before
    return _lacking_by_sums(checkpoint, weight, grid)


def _lacking_by_batch(grid: DynamicGrid, numbers: Tensor) -> tuple[str, str]:
    where = f" with the range of each {'row' if grid.rows else 'batch'}"
    if grid.bits < BYTE:
        return f"inputs of {_bits(grid.bits)}", where
    return ("convolutions" if numbers.dim() > 2 else "zero points"), f"{where} that beats float32"


def _lacking_by_sums(checkpoint: Checkpoint, weight: Weight, grid: InputGrid) -> tuple[str, str]:
    numbers = checkpoint.module.get_parameter(weight.name).detach()
    integers = whole(numbers, checkpoint.constraints[weight.name])
    bias = getattr(checkpoint.module.get_submodule(weight.layer), "bias", None)
    if integers is None:
        return "integers", " beyond 8 bits, or with a scale for each of a layer's inputs"
    if numbers.dim() > 2 and bool((integers.zero_point != integers.zero_point[0]).any()):
        return "a zero point for each channel", " in convolutions"
    if bias is not None and with_bias(integers, bias.detach(), grid.scale) is None:
        return "sums", " of more than 32 bits"
    return "integers", " whose biases are no whole steps of their sums"


def _bits(count: int) -> str:
    return "one bit" if count == 1 else f"{count} bits"


def _clear(latency: Mapping[str, float], sign: int) -> bool:
    """Say whether the model is faster (sign 1) or slower (-1) by more than 5 % and more than the spread."""
    if sign > 0:
        return latency["speedup"] > 1.05 and latency["speedup_low"] > 1
    return latency["speedup"] < 1 / 1.05 and latency["speedup_high"] < 1
