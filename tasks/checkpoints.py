"""Models in memory and on disk: safetensors and JSON, packed at their real width; loading executes no code.

models/<name>/
  model.safetensors   the weights as they are deployed
  model.json          what rebuilds the module around them
  lineage.json        where the model comes from: every step's recipe, versions, sums
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from pydantic import TypeAdapter
from torch import Tensor, nn

from tasks.constraints import Constraints, InputGrid, Levels, Range, attach_, project_
from tasks.errors import DecantError
from tasks.models import Architecture, Shape, build
from tasks.packing import decode_mask, encode_mask, pack, unpack
from tasks.shapes import Shapes, differing, reshape_
from tasks.stages import write_json

MODELS = Path("models")
DEPLOYED = ("model.safetensors", "model.json")
"""The files that rebuild the function: what ships, and what is counted."""

FORMAT = 1

PER_CHANNEL = "per channel"
"""What stands in model.json for a range whose bounds are tensors in model.safetensors."""

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


@dataclass(frozen=True)
class Checkpoint:
    """A model and all that is known of it.

    Attributes:
        architecture: What `build` makes the module of; a layer may have fewer channels since.
        shape: One input [C, H, W].
        classes: The names of the classes.
        module: The network, its weights as deployed, in eval mode.
        constraints: What each compressed weight obeys, by its name.
        grids: The grid on which a layer's inputs are rounded, by the layer's name.
        clamps: The range that a layer's inputs are cut to before they are rounded, by the layer's name.
        lineage: One entry for each step from the teacher to here, oldest first.
    """

    architecture: Architecture
    shape: Shape
    classes: tuple[str, ...]
    module: nn.Module
    constraints: Mapping[str, Constraints] = field(default_factory=dict)
    grids: Mapping[str, InputGrid] = field(default_factory=dict)
    lineage: tuple[Mapping[str, Any], ...] = ()
    clamps: Mapping[str, Range] = field(default_factory=dict)

    def narrowed(
        self,
        changes: Mapping[str, Constraints],
        grids: Mapping[str, InputGrid] | None = None,
        clamps: Mapping[str, Range] | None = None,
    ) -> Checkpoint:
        """Return a copy whose named weights obey `changes`, whose named layers clamp and round their inputs.

        This checkpoint is untouched. A second clamp of a layer intersects with the first.

        Raises:
            ValueError: Two clamps do not meet.
        """
        module = copy.deepcopy(self.module)
        project_(module, changes)
        rounded, clamped = {**self.grids, **(grids or {})}, dict(self.clamps)
        for name, clamp in (clamps or {}).items():
            try:
                clamped[name] = clamp.intersect(clamped[name]) if name in clamped else clamp
            except ValueError as error:
                raise ValueError(f"inputs of {name}: {error}") from None
        attach_(module, rounded, clamped)
        return replace(
            self,
            module=module,
            constraints={**self.constraints, **changes},
            grids=rounded,
            clamps=clamped,
        )


def altered(checkpoint: Checkpoint) -> Shapes:
    """Return the shapes in which a model is not what its architecture builds: channels were removed."""
    built = build(checkpoint.architecture, checkpoint.shape, len(checkpoint.classes), seed=0)
    return differing(checkpoint.module, built)


def state(module: nn.Module) -> dict[str, Tensor]:
    """Return what evaluation depends on: parameters and buffers, without batch norm's count of batches."""
    return {
        name: tensor
        for name, tensor in module.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }


def size_bytes(folder: Path) -> int:
    """Return the bytes on disk that rebuild the function: weights and description, without the lineage."""
    return sum((folder / file).stat().st_size for file in DEPLOYED)


def save(checkpoint: Checkpoint, folder: Path) -> None:
    """Write the checkpoint's three files into `folder`, which exists; the caller moves it into place.

    Raises:
        DecantError: A weight is NaN or infinite.
    """
    tensors, inputs = _encode_inputs(checkpoint)
    described: dict[str, Any] = {}
    for name, tensor in state(checkpoint.module).items():
        if not torch.isfinite(tensor).all():
            raise DecantError(f"{name} holds NaN or infinity; the learning rate may be too high")
        if name not in checkpoint.constraints:
            tensors[name] = tensor.contiguous()
            continue
        parts, described[name] = _encode(tensor, checkpoint.constraints[name])
        tensors |= {f"{name}.{part}": value for part, value in parts.items()}
    # One word each: as lists they would take most of a small model's description.
    shapes = {name: "x".join(map(str, shape)) for name, shape in altered(checkpoint).items()}
    weights = safetensors.torch.save(tensors)
    (folder / "model.safetensors").write_bytes(weights)
    write_json(
        folder / "model.json",
        {
            "format": FORMAT,
            "sha256": hashlib.sha256(weights).hexdigest(),
            "architecture": checkpoint.architecture.model_dump(),
            "shape": checkpoint.shape,
            "classes": checkpoint.classes,
            "weights": described,
            "inputs": inputs,
            **({"shapes": shapes} if shapes else {}),
        },
    )
    write_json(folder / "lineage.json", list(checkpoint.lineage))


def load_model(name: str) -> Checkpoint:
    """Return the model of that name, one of params.yaml's or `teacher`."""
    return load(MODELS / name)


def load(folder: Path) -> Checkpoint:
    """Rebuild exactly the checkpoint that was saved: the same logits, to the bit.

    Raises:
        DecantError: A file is missing, truncated, of another format, or the two do not belong together.
    """
    try:
        described = json.loads((folder / "model.json").read_text(encoding="utf-8"))
        lineage = tuple(json.loads((folder / "lineage.json").read_text(encoding="utf-8")))
        weights = (folder / "model.safetensors").read_bytes()
        if described["format"] != FORMAT:
            raise DecantError(f"{folder} has format {described['format']}, this code reads {FORMAT}")
        if described["sha256"] != hashlib.sha256(weights).hexdigest():
            raise ValueError("model.safetensors has not the sum that model.json names")
        return _rebuild(described, safetensors.torch.load(weights), lineage)
    except FileNotFoundError as error:
        raise DecantError(f"No model at {error.filename or folder}; run `dvc repro` or `dvc pull`") from None
    except BROKEN as error:
        raise DecantError(
            f"{folder} does not hold a whole model ({type(error).__name__}: {error}); "
            f"delete the folder and run `dvc repro`"
        ) from None


def _rebuild(
    described: dict[str, Any], tensors: dict[str, Tensor], lineage: tuple[dict[str, Any], ...]
) -> Checkpoint:
    architecture: Architecture = TypeAdapter(Architecture).validate_python(described["architecture"])
    channels, height, width = described["shape"]
    shape, classes = (channels, height, width), tuple(described["classes"])
    module = build(architecture, shape, len(classes), seed=0).eval()
    words = described.get("shapes", {})
    reshape_(module, {name: [int(size) for size in word.split("x")] for name, word in words.items()})
    constraints: dict[str, Constraints] = {}
    grids, clamps = _decode_inputs(tensors, described["inputs"])
    for name, description in described["weights"].items():
        parts = {
            key.removeprefix(f"{name}."): tensors.pop(key)
            for key in list(tensors)
            if key.startswith(f"{name}.")
        }
        tensors[name], constraints[name] = _decode(parts, description)
    expected = state(module).keys()
    if tensors.keys() != expected:
        raise ValueError(f"tensors {sorted(tensors.keys() ^ expected)} are missing or too many")
    module.load_state_dict(tensors, strict=False)
    attach_(module, grids, clamps)
    return Checkpoint(architecture, shape, classes, module, constraints, grids, lineage, clamps)


def _encode_inputs(checkpoint: Checkpoint) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors of clamps per channel, and the JSON of all that layers do to their inputs."""
    tensors: dict[str, Tensor] = {}
    described: dict[str, Any] = {name: dict(vars(grid)) for name, grid in checkpoint.grids.items()}
    for name, clamp in checkpoint.clamps.items():
        parts, words = _encode_range(clamp)
        tensors |= {f"{name}.inputs.{part}": value for part, value in parts.items()}
        described[name] = described.get(name, {}) | words
    return tensors, described


def _decode_inputs(
    tensors: dict[str, Tensor], described: dict[str, Any]
) -> tuple[dict[str, InputGrid], dict[str, Range]]:
    """Return what `_encode_inputs` was given, and take its tensors out of `tensors`, in place."""
    grids: dict[str, InputGrid] = {}
    clamps: dict[str, Range] = {}
    for name, description in described.items():
        ends = ("low", "high") if description.get("range") == PER_CHANNEL else ()
        clamp = _decode_range({end: tensors.pop(f"{name}.inputs.{end}") for end in ends}, description)
        if clamp is not None:
            clamps[name] = clamp
        if grid := {key: value for key, value in description.items() if key != "range"}:
            grids[name] = InputGrid(**grid)
    return grids, clamps


def _encode_range(bounds: Range) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return one range as JSON, or as float32 tensors where each channel has its own."""
    if isinstance(bounds.low, Tensor) and isinstance(bounds.high, Tensor):
        return {"low": bounds.low.contiguous(), "high": bounds.high.contiguous()}, {"range": PER_CHANNEL}
    return {}, {"range": [_finite(bound) for bound in bounds.ends()]}


def _decode_range(parts: Mapping[str, Tensor], described: Mapping[str, Any]) -> Range | None:
    """Return the range that `_encode_range` was given, or None where there is none."""
    if "range" not in described:
        return None
    if described["range"] == PER_CHANNEL:
        return Range(parts["low"], parts["high"])
    low, high = described["range"]
    return Range(-math.inf if low is None else low, math.inf if high is None else high)


def _encode(weight: Tensor, constraints: Constraints) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return one constrained weight as packed tensors and the JSON that says how to read them."""
    parts: dict[str, Tensor] = {}
    described: dict[str, Any] = {"shape": list(weight.shape)}
    kept = weight.flatten()
    codes = None if constraints.levels is None else constraints.levels.codes(weight).flatten()
    if constraints.range is not None:
        bounds, words = _encode_range(constraints.range)
        parts |= bounds
        described |= words
    if constraints.mask is not None:
        mask = constraints.mask.flatten()
        encoded, described["gap_bits"] = encode_mask(mask.numpy())
        parts["mask"] = torch.from_numpy(encoded)
        described["survivors"] = int(mask.sum())
        kept, codes = kept[mask], None if codes is None else codes[mask]
    if constraints.levels is None or codes is None:
        parts["values"] = kept.contiguous()
        return parts, described
    parts["codes"] = torch.from_numpy(pack(codes.to(torch.uint8).numpy(), constraints.levels.bits))
    parts["scale"] = constraints.levels.scale.contiguous()
    described["bits"] = constraints.levels.bits
    values = constraints.levels.values
    if torch.equal(values, torch.arange(values[0].item(), values[0].item() + len(values))):
        described["integers"] = [int(values[0]), int(values[-1])]
    else:
        parts["levels"] = values.contiguous()
    return parts, described


def _decode(parts: dict[str, Tensor], described: dict[str, Any]) -> tuple[Tensor, Constraints]:
    """Return the weight and the constraints that `_encode` was given."""
    shape = described["shape"]
    count = math.prod(shape)
    bounds, mask, levels = _decode_range(parts, described), None, None
    survivors = described.get("survivors", count)
    if "survivors" in described:
        kept = decode_mask(parts["mask"].numpy(), described["gap_bits"], survivors, count)
        mask = torch.from_numpy(kept).reshape(shape)
    if "bits" in described:
        first, last = described.get("integers", (0, 0))
        values = parts["levels"] if "levels" in parts else torch.arange(first, last + 1).float()
        levels = Levels(values, parts["scale"])
        codes = torch.from_numpy(unpack(parts["codes"].numpy(), described["bits"], survivors)).long()
        weight = levels.decode(_spread(codes, mask, shape))
    else:
        weight = _spread(parts["values"], mask, shape)
    weight = weight if mask is None else torch.where(mask, weight, 0.0)
    return weight, Constraints(bounds, levels, mask)


def _spread(survivors: Tensor, mask: Tensor | None, shape: list[int]) -> Tensor:
    """Return the survivors at their places and zeros elsewhere."""
    if mask is None:
        return survivors.reshape(shape)
    spread = torch.zeros(shape, dtype=survivors.dtype)
    spread[mask] = survivors
    return spread


def _finite(bound: float) -> float | None:
    return bound if math.isfinite(bound) else None
