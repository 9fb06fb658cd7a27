"""Models in memory and on disk: safetensors and JSON, packed at their real width; loading executes no code.

models/<name>/
  model.safetensors   the numbers as they are deployed, one after another: floats, and packed bytes
  model.json          what rebuilds the module around them, and says in which order they lie
  lineage.json        where the model comes from: every step's recipe, versions, sums
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from pydantic import TypeAdapter
from torch import Tensor

from decant.checkpoints.activations import DynamicGrid, Grid, InputGrid, attach_
from decant.checkpoints.checkpoint import Checkpoint, altered, blank, state
from decant.checkpoints.constraints import Constraints, Levels, Range
from decant.checkpoints.packing import Parts, decode_mask, encode_mask, pack, packed_size, unpack
from decant.errors import DecantError
from decant.networks.architectures import Architecture
from decant.outputs import write_json, write_text
from decant.schema import mistakes

DEPLOYED = ("model.safetensors", "model.json")
"""The files that rebuild the function: what ships, and what is counted."""

FORMAT = 2

BROKEN = (
    AttributeError,  # a layer that there is not
    IndexError,
    KeyError,
    RuntimeError,
    TypeError,
    ValueError,  # pydantic's ValidationError is one, and json's
    safetensors.SafetensorError,
)
"""What reading a damaged file can raise."""


def size_bytes(folder: Path | str) -> int:
    """Return the bytes on disk that rebuild the function: weights and description, without the lineage."""
    return sum((Path(folder) / file).stat().st_size for file in DEPLOYED)


def save(checkpoint: Checkpoint, folder: Path | str) -> None:
    """Write the checkpoint's three files into `folder`, which is made where it is missing.

    Raises:
        DecantError: A weight is NaN or infinite.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    parts = Parts()
    inputs = _encode_inputs(checkpoint, parts)
    described: dict[str, Any] = {}
    for name, tensor in state(checkpoint.module).items():
        if not torch.isfinite(tensor).all():
            raise DecantError(f"{name} holds NaN or infinity; the learning rate may be too high")
        if name in checkpoint.constraints:
            described[name] = _encode(tensor, checkpoint.constraints[name], parts)
        else:
            parts.add_floats(tensor)
    # One string each: as lists they would take most of a small model's description.
    shapes = {name: "x".join(map(str, shape)) for name, shape in altered(checkpoint).items()}
    weights = safetensors.torch.save(parts.tensors())
    content = {
        "format": FORMAT,
        "sha256": hashlib.sha256(weights).hexdigest(),
        "architecture": checkpoint.architecture.model_dump(),
        "shape": checkpoint.shape,
        "classes": checkpoint.classes,
        **({"folded": True} if checkpoint.folded else {}),
        **({"inputs": inputs} if inputs else {}),
        **({"shapes": shapes} if shapes else {}),
        "weights": described,
    }
    (folder / "model.safetensors").write_bytes(weights)
    write_text(folder / "model.json", _terse(content))
    write_json(folder / "lineage.json", list(checkpoint.lineage))


def _terse(content: Mapping[str, Any]) -> str:
    """Return JSON of a line for each entry, and for each weight, without spaces: it counts into the size."""

    def text(value: Any) -> str:
        return json.dumps(value, separators=(",", ":"), allow_nan=False)

    lines = [f"{text(key)}:{text(value)}" for key, value in content.items() if key != "weights"]
    weights = ",\n".join(f"{text(name)}:{text(entry)}" for name, entry in content["weights"].items())
    return "{" + ",\n".join([*lines, f'"weights":{{{weights}}}']) + "}\n"


def load(folder: Path | str) -> Checkpoint:
    """Rebuild exactly the checkpoint that was saved: the same logits, to the bit.

    Raises:
        DecantError: A file is missing, truncated, of another format, or the two do not belong together.
    """
    folder = Path(folder)
    try:
        described = json.loads((folder / "model.json").read_text(encoding="utf-8"))
        lineage = json.loads((folder / "lineage.json").read_text(encoding="utf-8"))
        weights = (folder / "model.safetensors").read_bytes()
        if described["format"] != FORMAT:
            raise DecantError(f"{folder} has format {described['format']}, this code reads {FORMAT}")
        if described["sha256"] != hashlib.sha256(weights).hexdigest():
            raise ValueError("model.safetensors has not the sum that model.json names")
        if not (isinstance(lineage, list) and all(isinstance(step, dict) for step in lineage)):
            raise ValueError("lineage.json is no list of steps")
        return _rebuild(described, safetensors.torch.load(weights), tuple(lineage))
    except FileNotFoundError as error:
        raise DecantError(f"No model at {error.filename or folder}; run `dvc repro` or `dvc pull`") from None
    except OSError as error:
        raise DecantError(
            f"{error.filename or folder} cannot be read ({error.strerror}); delete {folder} and run "
            f"`dvc repro`"
        ) from None
    except BROKEN as error:
        raise DecantError(
            f"{folder} does not hold a whole model ({type(error).__name__}: {error}); "
            f"delete the folder and run `dvc repro`"
        ) from None


def _rebuild(
    described: dict[str, Any], tensors: Mapping[str, Tensor], lineage: tuple[dict[str, Any], ...]
) -> Checkpoint:
    if wrong := mistakes(described["architecture"], Architecture, "architecture"):
        raise ValueError("; ".join(wrong))
    architecture: Architecture = TypeAdapter(Architecture).validate_python(described["architecture"])
    channels, height, width = described["shape"]
    shape, classes = (channels, height, width), tuple(described["classes"])
    folded = described.get("folded", False)
    written = described.get("shapes", {})
    shapes = {name: [int(size) for size in sizes.split("x")] for name, sizes in written.items()}
    module = blank(architecture, shape, len(classes), folded=folded, shapes=shapes)
    parts = Parts.of(tensors)
    grids, clamps = _decode_inputs(described.get("inputs", {}), parts)
    constraints: dict[str, Constraints] = {}
    found: dict[str, Tensor] = {}
    for name, tensor in state(module).items():
        if name in described["weights"]:
            found[name], constraints[name] = _decode(described["weights"][name], tensor.shape, parts)
        else:
            found[name] = parts.floats(tensor.shape)
    parts.check_empty()
    if unknown := described["weights"].keys() - found.keys():
        raise ValueError(f"there are no tensors {sorted(unknown)}")
    module.load_state_dict(found, strict=False)
    attach_(module, grids, clamps)
    return Checkpoint(architecture, shape, classes, module, constraints, grids, lineage, clamps, folded)


def _encode_inputs(checkpoint: Checkpoint, parts: Parts) -> dict[str, Any]:
    """Return the JSON of all that layers do to their inputs; bounds per channel go into `parts`."""
    described: dict[str, Any] = {name: dict(vars(grid)) for name, grid in checkpoint.grids.items()}
    for name, clamp in checkpoint.clamps.items():
        described[name] = described.get(name, {}) | _encode_range(clamp, parts)
    # The bounds lie in the order of the clamps, so their order is the one that is written.
    return {name: described[name] for name in {**checkpoint.clamps, **checkpoint.grids}}


def _decode_inputs(described: Mapping[str, Any], parts: Parts) -> tuple[dict[str, Grid], dict[str, Range]]:
    """Return what `_encode_inputs` was given, and take its tensors out of `parts`, in place."""
    grids: dict[str, Grid] = {}
    clamps: dict[str, Range] = {}
    for name, description in described.items():
        if (clamp := _decode_range(description, parts)) is not None:
            clamps[name] = clamp
        if grid := {key: value for key, value in description.items() if key != "range"}:
            grids[name] = InputGrid(**grid) if "scale" in grid else DynamicGrid(**grid)
    return grids, clamps


def _encode_range(bounds: Range, parts: Parts) -> dict[str, Any]:
    """Return one range as JSON: two numbers, or the shape of two tensors where each channel has its own."""
    if isinstance(bounds.low, Tensor) and isinstance(bounds.high, Tensor):
        parts.add_floats(bounds.low)
        parts.add_floats(bounds.high)
        return {"range": "x".join(map(str, bounds.low.shape))}
    return {"range": [_finite(bound) for bound in bounds.ends()]}


def _decode_range(described: Mapping[str, Any], parts: Parts) -> Range | None:
    """Return the range that `_encode_range` was given, or None where there is none."""
    if "range" not in described:
        return None
    if isinstance(described["range"], str):
        shape = [int(size) for size in described["range"].split("x")]
        return Range(parts.floats(shape), parts.floats(shape))
    low, high = described["range"]
    return Range(-math.inf if low is None else low, math.inf if high is None else high)


def _encode(weight: Tensor, constraints: Constraints, parts: Parts) -> dict[str, Any]:
    """Return the JSON that says how to read one constrained weight, whose numbers go into `parts`."""
    described: dict[str, Any] = {}
    kept = weight.flatten()
    levels, mask = constraints.levels, constraints.mask
    codes = None if levels is None else levels.codes(weight).flatten()
    if constraints.range is not None:
        described |= _encode_range(constraints.range, parts)
    if mask is not None:
        encoded, gap_bits = encode_mask(mask.flatten().numpy())
        parts.add_packed(encoded)
        described["mask"] = [gap_bits, int(mask.sum()), len(encoded)]
        kept, codes = kept[mask.flatten()], None if codes is None else codes[mask.flatten()]
    if levels is None or codes is None:
        parts.add_floats(kept)
        return described
    parts.add_packed(pack(codes.to(torch.uint8).numpy(), len(levels.values)))
    parts.add_floats(levels.scale)
    described["per"] = _scope(levels, weight.shape)
    if levels.zero_point is not None:
        parts.add_packed(levels.zero_point.flatten().to(torch.uint8).numpy())
        described["affine"] = True
    if (integers := levels.integers) is not None:
        described["integers"] = integers
    else:
        parts.add_floats(levels.values)
        described["levels"] = len(levels.values)
    return described


def _decode(described: Mapping[str, Any], shape: torch.Size, parts: Parts) -> tuple[Tensor, Constraints]:
    """Return the weight of this shape and the constraints that `_encode` was given."""
    count, mask, levels = shape.numel(), None, None
    bounds, survivors = _decode_range(described, parts), count
    if "mask" in described:
        gap_bits, survivors, size = described["mask"]
        kept = decode_mask(parts.packed(size), gap_bits, survivors, count)
        mask = torch.from_numpy(kept).reshape(shape)
    if "per" in described:
        first, last = described.get("integers", (0, described.get("levels", 0) - 1))
        number = last - first + 1
        packed = parts.packed(packed_size(survivors, number))
        codes = torch.from_numpy(unpack(packed, number, survivors)).long()
        scale, group = _scales(described["per"], shape, parts)
        zero_point = None
        if described.get("affine"):
            found = torch.from_numpy(parts.packed(scale.numel()).copy())
            zero_point = found.to(torch.float32).reshape(scale.shape)
        values = torch.arange(first, last + 1).float() if "integers" in described else parts.floats([number])
        levels = Levels(values, scale, zero_point, group)
        weight = levels.decode(_spread(codes, mask, shape))
    else:
        weight = _spread(parts.floats([survivors]), mask, shape)
    weight = weight if mask is None else torch.where(mask, weight, 0.0)
    return weight, Constraints(bounds, levels, mask)


def _scope(levels: Levels, shape: torch.Size) -> str | int | Sequence[int]:
    """Return what shares a scale: `tensor`, `channel`, the size of a group, or the scales' shape."""
    if levels.group is not None:
        return levels.group
    if levels.scale.dim() == 0:
        return "tensor"
    usual = (shape[0], *[1] * (len(shape) - 1))
    return "channel" if tuple(levels.scale.shape) == usual else list(levels.scale.shape)


def _scales(scope: str | int | Sequence[int], shape: torch.Size, parts: Parts) -> tuple[Tensor, int | None]:
    """Return the scales that `_scope` describes, and the size of a group where there are groups."""
    if isinstance(scope, int):
        if scope < 1:
            raise ValueError(f"a group is of {scope} weights")
        return parts.floats([shape[0], -(-shape[1:].numel() // scope)]), scope
    if isinstance(scope, str):
        return parts.floats([] if scope == "tensor" else [shape[0], *[1] * (len(shape) - 1)]), None
    return parts.floats(scope), None


def _spread(survivors: Tensor, mask: Tensor | None, shape: torch.Size) -> Tensor:
    """Return the survivors at their places and zeros elsewhere."""
    if mask is None:
        return survivors.reshape(shape)
    spread = torch.zeros(shape, dtype=survivors.dtype)
    spread[mask] = survivors
    return spread


def _finite(bound: float) -> float | None:
    return bound if math.isfinite(bound) else None
