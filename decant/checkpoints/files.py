"""Models in memory and on disk: safetensors and JSON, packed at their real width; loading executes no code.

models/<name>/
  model.safetensors   the numbers as they are deployed, one after another: floats, and packed bytes
  model.json          what rebuilds the module around them, and says in which order they lie; ends with a sum
                      over itself and the numbers
  lineage.json        where the model comes from: every step's recipe, versions, sums

The sums are checked before anything is parsed, and what a file announces is compared with what it holds
before anything of that size is made.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import safetensors.torch
import torch
from pydantic import Field
from torch import Tensor, nn

from decant.checkpoints.activations import DynamicGrid, Grid, InputGrid, RecurrentGrid, attach_
from decant.checkpoints.checkpoint import Checkpoint, altered, blank, not_a_number, state
from decant.checkpoints.constraints import Constraints, Levels, Range
from decant.checkpoints.lineage import read_lineage, read_part, remedy, write_lineage
from decant.checkpoints.packing import (
    Parts,
    decode_mask,
    encode_mask,
    pack,
    packed_size,
    type_name,
    typed,
    unpack,
)
from decant.errors import DecantError
from decant.inputs import TensorInput
from decant.networks.architectures import (
    FOREIGN,
    LARGEST,
    MOST_CLASSES,
    Architecture,
    ForeignArchitecture,
    Side,
    Takes,
    example,
)
from decant.networks.execution import as_rows
from decant.networks.packages import Packaged
from decant.networks.python import Python
from decant.networks.shapes import reshape_, shapes_of
from decant.networks.ties import ties, with_ties
from decant.networks.tracing import every_layer_called
from decant.outputs import write_text
from decant.schema import Section, mistakes
from decant.sealed import reading, seal, sum_of, unseal

DEPLOYED = ("model.safetensors", "model.json")
"""The files that rebuild the function: what ships, and what is counted."""

FORMAT = 3

LARGEST_WEIGHTS = 4 * LARGEST + (1 << 24)
"""Most bytes of model.safetensors that are read at all."""

LARGEST_OTHER = 1 << 34
"""The like where the network is one of other people, whose size its own code says."""


class Description(Section):
    """What model.json holds beside its format and its sum.

    Attributes:
        architecture: What builds the network.
        shape: One picture [C, H, W], or each tensor that the network takes, by name.
        classes: Their names; none where the network answers something else.
        folded: True where all batch norms that may be are part of the layers before them; else the names of
            those that are, by the weight of the layer.
        inputs: What layers do to their inputs, by the layer's name.
        shapes: Those that are smaller than the architecture builds, such as `8x4x3x3`, by the tensor's name.
        types: Of tensors that are not of float32, such as `int64`, by name; their bytes lie in `packed`.
        weights: How constrained weights are written, by name.
    """

    architecture: Architecture
    shape: tuple[Side, Side, Side] | dict[str, TensorInput]
    classes: Annotated[tuple[str, ...], Field(max_length=MOST_CLASSES)]
    folded: bool | dict[str, str] = False
    inputs: dict[str, dict[str, Any]] = Field(default_factory=dict)
    shapes: dict[str, str] = Field(default_factory=dict)
    types: dict[str, str] = Field(default_factory=dict)
    weights: dict[str, dict[str, Any]]


def size_bytes(folder: Path | str) -> int:
    """Return the bytes on disk that rebuild the function: weights and description, without the lineage.

    Raises:
        DecantError: A file is missing.
    """
    folder = Path(folder)
    with reading(folder, remedy(folder)):
        return sum((folder / file).stat().st_size for file in DEPLOYED)


def save(checkpoint: Checkpoint, folder: Path | str, beside: Mapping[str, str] | None = None) -> None:
    """Write the checkpoint's three files into `folder`, which is made where it is missing.

    Args:
        checkpoint: The model.
        folder: Its folder.
        beside: The text of further files about the model, by name; `read_beside` reads them.

    Raises:
        DecantError: A weight is NaN or infinite, a tensor is of a type that is not written, or nothing says
            how to build the network again.
    """
    architecture, folder = checkpoint.built_by, Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    parts = Parts()
    inputs = _encode_inputs(checkpoint, parts)
    described: dict[str, Any] = {}
    types: dict[str, str] = {}
    for name, tensor in state(checkpoint.module).items():
        if wrong := not_a_number(checkpoint.module, name, tensor):
            raise DecantError(f"{name} holds {wrong}; the learning rate may be too high")
        if tensor.dtype != torch.float32:
            types[name] = type_name(name, tensor)
        if name in checkpoint.constraints:
            described[name] = _encode(tensor, checkpoint.constraints[name], parts)
        else:
            parts.add(tensor)
    # One string each: as lists they would take most of a small model's description.
    shapes = {name: "x".join(map(str, shape)) for name, shape in altered(checkpoint).items()}
    weights = safetensors.torch.save(parts.tensors())
    content = {
        "format": FORMAT,
        "architecture": architecture.model_dump(by_alias=True),
        "shape": _takes(checkpoint.shape),
        "classes": checkpoint.classes,
        **({"folded": checkpoint.folded} if checkpoint.folded else {}),
        **({"inputs": inputs} if inputs else {}),
        **({"shapes": shapes} if shapes else {}),
        **({"types": types} if types else {}),
        "weights": described,
    }
    (folder / "model.safetensors").write_bytes(weights)
    write_text(folder / "model.json", description := seal(_terse(content), weights))
    write_lineage(folder, sum_of(description.encode(), weights), checkpoint.lineage, beside)


def _terse(content: Mapping[str, Any]) -> str:
    """Return JSON of a line for each entry, and for each weight, without spaces: it counts into the size."""

    def text(value: Any) -> str:
        return json.dumps(value, separators=(",", ":"), allow_nan=False)

    lines = [f"{text(key)}:{text(value)}" for key, value in content.items() if key != "weights"]
    weights = ",\n".join(f"{text(name)}:{text(entry)}" for name, entry in content["weights"].items())
    return "{" + ",\n".join([*lines, f'"weights":{{{weights}}}']) + "}\n"


def _takes(shape: Takes) -> Any:
    """Return the JSON of what a network takes."""
    if isinstance(shape, tuple):
        return shape
    return {name: each.model_dump(exclude_defaults=True) for name, each in shape.items()}


def load(
    folder: Path | str, build: Callable[..., nn.Module] | ForeignArchitecture | None = None
) -> Checkpoint:
    """Rebuild exactly the checkpoint that was saved: the same logits, to the bit.

    Args:
        folder: The model's.
        build: The function that builds the network, where it is one of other people, or an architecture that
            has it: code is never run because a file names it. It has to have the name, and its code the sum,
            that the model was saved with. A network of transformers or timm needs none: it is built where
            that package is installed, in the version that the model was saved with.

    Raises:
        DecantError: A file is missing, damaged, of another format, or the three do not belong together.
    """
    folder = Path(folder)
    with reading(folder, remedy(folder)):
        content = read_part(folder, "model.json")
        weights = read_part(
            folder, "model.safetensors", LARGEST_OTHER if _foreign(content) else LARGEST_WEIGHTS
        )
        _check_format(content, folder)
        if sum_of(content, weights) != (lineage := read_lineage(folder).lineage).model:
            raise ValueError("lineage.json is another model's")
        described = unseal(content, weights)
        del described["format"]
        if wrong := mistakes(described, Description):
            raise ValueError("; ".join(wrong))
        description = _with_builder(Description.model_validate(described), build)
        return _rebuild(description, safetensors.torch.load(weights), lineage.steps)


def _with_builder(
    description: Description, build: Callable[..., nn.Module] | ForeignArchitecture | None
) -> Description:
    """Return a description whose architecture can be built, if the function for it was given.

    Raises:
        DecantError: It is another function, or other code, than the model was saved with.
    """
    architecture = description.architecture
    if isinstance(architecture, Packaged):
        if isinstance(build, Packaged):
            build.lend(architecture)
        architecture.check_version()
    if not isinstance(architecture, Python):
        return description
    if build is None or isinstance(build, Packaged):
        raise DecantError(
            f"This model is a network of {architecture.function} in {architecture.file}, which is not run by "
            f"itself: give the function, as in decant.load(folder, build={architecture.function})"
        )
    bound = build.lend(architecture) if isinstance(build, Python) else architecture.bound(build)
    return description.model_copy(update={"architecture": bound})


def _foreign(content: bytes) -> bool:
    """Say whether a description names a network of other people, before it is parsed."""
    return bool(re.search(rb'^"architecture":\{"kind":"(python|transformers|timm)"', content, re.MULTILINE))


def _check_format(content: bytes, folder: Path) -> None:
    """Refuse a model that another version of this code wrote; its beginning says so."""
    found = re.match(rb'\{"format":(\d{1,9}),', content)
    if found and int(found[1]) != FORMAT:
        raise DecantError(
            f"{folder} has format {int(found[1])}, this code reads {FORMAT}; run `dvc repro` to make it anew"
        )


def _rebuild(
    described: Description, tensors: Mapping[str, Tensor], lineage: tuple[Mapping[str, Any], ...]
) -> Checkpoint:
    module = _skeleton(described)
    parts = Parts.of(tensors)
    grids, clamps = _decode_inputs(described.inputs, parts)
    constraints: dict[str, Constraints] = {}
    found: dict[str, Tensor] = {}
    for name, tensor in state(module).items():
        dtype = typed(described.types.get(name, "float32"))
        if name in described.weights:
            described_weight = described.weights[name]
            found[name], constraints[name] = _decode(described_weight, tensor.shape, dtype, parts)
        else:
            found[name] = parts.take(tensor.shape, dtype)
        if wrong := not_a_number(module, name, found[name]):
            raise ValueError(f"{name} holds {wrong}")
    parts.check_empty()
    if unknown := (described.weights.keys() | described.types.keys()) - found.keys():
        raise ValueError(f"there are no tensors {sorted(unknown)}")
    _fill_(module, found)
    attach_(module, {}, clamps)
    _check_layers_fit(module, described)
    attach_(module, grids, clamps)
    return Checkpoint(
        described.architecture,
        described.shape,
        described.classes,
        module,
        constraints,
        grids,
        lineage,
        clamps,
        described.folded,
    )


def _fill_(module: nn.Module, found: Mapping[str, Tensor]) -> None:
    """Put tensors into a network without numbers, in place: one object where a tensor has several names."""
    filled: dict[str, Tensor] = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        new = found.get(name)
        if isinstance(tensor, nn.Parameter) and new is not None:
            new = nn.Parameter(new, requires_grad=tensor.requires_grad)
        filled[name] = torch.zeros(tensor.shape, dtype=tensor.dtype) if new is None else new
    by_all_names = with_ties({name: filled[name] for name in ties(module)}, module)
    module.load_state_dict(by_all_names, assign=True)


def _skeleton(described: Description) -> nn.Module:
    """Return the network without numbers, so that a size which a file only announces costs nothing.

    Raises:
        ValueError: There is no such network, or a tensor is larger than the architecture builds it.
    """
    try:
        module = blank(
            described.architecture,
            described.shape,
            len(described.classes),
            folded=described.folded,
            device="meta",
        )
    except DecantError as error:
        raise ValueError(str(error)) from None
    largest = shapes_of(module)
    shapes = {name: [int(size) for size in sizes.split("x")] for name, sizes in described.shapes.items()}
    for name, shape in shapes.items():
        if any(size > most for size, most in zip(shape, largest[name], strict=True)):
            raise ValueError(f"{name} has the shape {shape}, expected at most {[*largest[name]]}")
    with torch.device("meta"):
        reshape_(module, shapes)
    return module


def _check_layers_fit(module: nn.Module, described: Description) -> None:
    """Let no picture at all through the network, or a row of what is none, to see that its layers fit."""
    if not isinstance(described.shape, tuple) or isinstance(described.architecture, FOREIGN):
        with torch.inference_mode(), every_layer_called():
            as_rows(module(*example(described.shape)), 1)
        return
    with torch.inference_mode():
        logits = module(torch.zeros(0, *described.shape))
    if logits.shape != (0, len(described.classes)):
        raise ValueError(f"an image gives {[*logits.shape[1:]]} numbers for {len(described.classes)} classes")


def _encode_inputs(checkpoint: Checkpoint, parts: Parts) -> dict[str, Any]:
    """Return the JSON of all that layers do to their inputs; bounds per channel go into `parts`."""
    described: dict[str, Any] = {name: _encode_grid(grid) for name, grid in checkpoint.grids.items()}
    for name, clamp in checkpoint.clamps.items():
        described[name] = described.get(name, {}) | _encode_range(clamp, parts)
    # The bounds lie in the order of the clamps, so their order is the one that is written.
    return {name: described[name] for name in {**checkpoint.clamps, **checkpoint.grids}}


def _encode_grid(grid: Grid) -> dict[str, Any]:
    return {name: value for name, value in vars(grid).items() if name != "rows" or value}


def _decode_inputs(described: Mapping[str, Any], parts: Parts) -> tuple[dict[str, Grid], dict[str, Range]]:
    """Return what `_encode_inputs` was given, and take its tensors out of `parts`, in place."""
    grids: dict[str, Grid] = {}
    clamps: dict[str, Range] = {}
    for name, description in described.items():
        if (clamp := _decode_range(description, parts)) is not None:
            clamps[name] = clamp
        if grid := {key: value for key, value in description.items() if key != "range"}:
            grids[name] = _decode_grid(grid)
    return grids, clamps


def _decode_grid(described: dict[str, Any]) -> Grid:
    if "layers" in described:
        return RecurrentGrid(described["bits"], tuple(described["layers"]))
    return InputGrid(**described) if "scale" in described else DynamicGrid(**described)


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
        bounds = [int(size) for size in described["range"].split("x")]
        return Range(parts.floats(bounds), parts.floats(bounds))
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
        parts.add(kept)
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


def _decode(
    described: Mapping[str, Any], shape: torch.Size, dtype: torch.dtype, parts: Parts
) -> tuple[Tensor, Constraints]:
    """Return the weight of this shape and type, and the constraints that `_encode` was given."""
    count, mask, levels = shape.numel(), None, None
    bounds, survivors = _decode_range(described, parts), count
    if bounds is not None and bounds.per_channel:
        torch.as_tensor(bounds.low).expand(shape)
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
        weight = _spread(parts.take([survivors], dtype), mask, shape)
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
