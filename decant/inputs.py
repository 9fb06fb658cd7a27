"""What a network takes that is no picture: the shape, type and range of each tensor, and examples of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple, get_args

from pydantic import Field, model_validator

from decant.lazy import torch
from decant.schema import Section

if TYPE_CHECKING:
    from torch import Tensor

    from decant.row_groups import RowGroups

WHOLE = ("int64", "int32", "int16", "int8", "uint8")
FREE_LENGTH = 32
"""How long a free dimension is in an example, where nothing says it."""

IDS, MASK, LENGTH = "input_ids", "attention_mask", "length"
"""What the tokens of a text are called, what is 1 where there is one and 0 behind them, and how many places
both have."""

LONGEST, MOST_NUMBERS, MOST_DIMENSIONS = 1 << 24, 1 << 28, 8
"""Most of one dimension, of one row, and most dimensions of a row."""

Length = Annotated[int, Field(gt=0, le=LONGEST)]
Type = Literal[
    "float32", "float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool"
]
Dimension = Annotated[str, Field(pattern="^[A-Za-z_][A-Za-z0-9_]*$", max_length=64)]


Kind = Literal["image", "numbers", "text", "sound", "tensor"]


class Meaning(NamedTuple):
    """What a kind of input means.

    Attributes:
        row: What a row of it looks like.
        types: Those that it may be of.
        dimensions: How many a row may have.
        unit: What of it can be covered, or explained, by itself.
    """

    row: str
    types: tuple[str, ...]
    dimensions: tuple[int, ...]
    unit: str


FRACTIONS = ("float32", "float64", "float16", "bfloat16")
KINDS: Mapping[Kind, Meaning] = MappingProxyType(
    {
        "image": Meaning(
            "pixels [C, H, W], uint8 from 0 to 255, or fractions", ("uint8", *FRACTIONS), (3,), "patch"
        ),
        "numbers": Meaning(
            "columns [F], each in a unit of its own; NaN is missing", FRACTIONS, (1,), "column"
        ),
        "text": Meaning("tokens [L], or what masks them", ("int64", "int32"), (1,), "token"),
        "sound": Meaning("samples [C, L], full scale from -1 to 1", FRACTIONS, (2,), "stretch of time"),
        "tensor": Meaning("anything else", get_args(Type), tuple(range(MOST_DIMENSIONS + 1)), "element"),
    }
)
"""What each kind of input means: the one place that says it."""


def misfit(kind: Kind, dtype: str, row: Sequence[object]) -> str:
    """Return why rows of a type and shape are none of a kind; empty where they are."""
    meaning = KINDS[kind]
    if dtype in meaning.types and len(row) in meaning.dimensions:
        return ""
    return (
        f"rows {[*row]} of {dtype} are no {kind}, which is {meaning.row}; take another of {', '.join(KINDS)}"
    )


class TensorInput(Section):
    """One of the tensors that a network is called with.

    Attributes:
        kind: What it holds, one of `KINDS`.
        shape: Of one row, without the dimension of the rows: a number for each dimension; a name or null
            where it may have any length.
        dtype: Its type.
        at_least: Of whole numbers, the least.
        below: Of whole numbers, one more than the largest, such as the number of words.
        example: The shape of the example's rows, where some of `shape` is free.
    """

    kind: Kind = "tensor"
    shape: tuple[Length | Dimension | None, ...] = Field(max_length=MOST_DIMENSIONS)
    dtype: Type = "float32"
    at_least: Annotated[int, Field(ge=-(1 << 62), le=1 << 62)] = 0
    below: Annotated[int, Field(ge=-(1 << 62), le=1 << 62)] = 2
    example: tuple[Length, ...] = Field((), max_length=MOST_DIMENSIONS)

    @model_validator(mode="after")
    def _possible(self) -> TensorInput:
        if self.at_least >= self.below:
            raise ValueError(f"below must be more than at_least, got {self.below} and {self.at_least}")
        if self.example and not self.fits(self.example):
            raise ValueError(f"example {[*self.example]} is no row of shape {[*self.shape]}")
        numbers = 1
        for length in self.row:
            numbers *= length
        if numbers > MOST_NUMBERS:
            raise ValueError(f"a row has {numbers:,} numbers, expected at most {MOST_NUMBERS:,}")
        return self

    @model_validator(mode="after")
    def _of_its_kind(self) -> TensorInput:
        if wrong := misfit(self.kind, self.dtype, self.shape):
            raise ValueError(wrong)
        return self

    @property
    def row(self) -> tuple[int, ...]:
        """The shape of the example's rows."""
        return self.example or tuple(n if isinstance(n, int) else FREE_LENGTH for n in self.shape)

    def fits(self, row: tuple[int, ...]) -> bool:
        """Say whether a row of this shape can be put in."""
        pairs = zip(self.shape, row, strict=False)
        return len(row) == len(self.shape) and all(n == m or not isinstance(n, int) for n, m in pairs)

    def shorter(self) -> TensorInput:
        """Return the same with an example in which each free length is one less, as far as it can be."""
        row = tuple(
            at if isinstance(n, int) else max(at - 1, 1) for n, at in zip(self.shape, self.row, strict=True)
        )
        return self.model_copy(update={"example": row})

    def drawn(self, rows: int, generator: torch.Generator) -> Tensor:
        """Return rows [rows, ...]: normally distributed, or whole numbers in [at_least, below), or bits."""
        dtype: torch.dtype = getattr(torch, self.dtype)
        size = (rows, *self.row)
        if self.dtype == "bool":
            return torch.randint(0, 2, size, generator=generator).bool()
        if self.dtype in WHOLE:
            return torch.randint(self.at_least, self.below, size, generator=generator).to(dtype)
        return torch.randn(size, generator=generator).to(dtype)


Inputs = dict[str, TensorInput]
"""What a network takes, by the name of each tensor, in the order in which it is called with them."""


def drawn(inputs: Mapping[str, TensorInput], rows: int = 1, seed: int = 0) -> tuple[Tensor, ...]:
    """Return arguments [rows, ...] for a network: a function of the seed; no global generator is touched."""
    generator = torch.Generator().manual_seed(seed)
    with torch.device("cpu"):
        return tuple(each.drawn(rows, generator) for each in inputs.values())


Taken = tuple[int, ...] | Mapping[str, TensorInput]
"""What a network takes: one picture [C, H, W], or each of its inputs by name."""


def kinds_of(takes: Taken) -> dict[str, Kind]:
    """Return the kind of each input of a network, by its name; one picture [C, H, W] is called `image`."""
    return (
        {"image": "image"} if isinstance(takes, tuple) else {name: each.kind for name, each in takes.items()}
    )


def alike(one: Taken, other: Taken) -> bool:
    """Say whether two networks, or a network and data, take the same tensors, whatever kinds they are called.

    Models and tables of before kinds have none.
    """
    if isinstance(one, tuple) or isinstance(other, tuple):
        return one == other
    return _unnamed(one) == _unnamed(other)


def _unnamed(inputs: Mapping[str, TensorInput]) -> dict[str, TensorInput]:
    return {name: each.model_copy(update={"kind": "tensor"}) for name, each in inputs.items()}


def inputs_of(
    tensors: Mapping[str, Tensor | RowGroups], kinds: Mapping[str, Kind] = MappingProxyType({})
) -> Inputs:
    """Return what takes these tensors [N, ...]: their shapes, types, and the whole numbers that they hold.

    Args:
        tensors: By name.
        kinds: Of those that are more than tensors.

    Raises:
        ValueError: One is of a type that no network takes, or of none that its kind has.
    """
    found: Inputs = {}
    for name, tensor in tensors.items():
        dtype = str(tensor.dtype).removeprefix("torch.")
        if dtype not in get_args(Type):
            raise ValueError(f"{name} is of type {dtype}, expected one of {', '.join(get_args(Type))}")
        low, high = (int(tensor.min()), int(tensor.max())) if dtype in WHOLE and len(tensor) else (0, 1)
        shape = tuple(tensor.shape[1:])
        if 0 in shape or len(shape) > MOST_DIMENSIONS:
            raise ValueError(
                f"{name}: rows are of shape {[*shape]}, expected at most {MOST_DIMENSIONS} dimensions, each "
                "of one number or more"
            )
        if wrong := misfit(kinds.get(name, "tensor"), dtype, shape):
            raise ValueError(f"{name}: {wrong}")
        described = {"shape": shape, "dtype": dtype, "at_least": low, "below": high + 1}
        found[name] = TensorInput.model_validate({"kind": kinds.get(name, "tensor"), **described})
    return found
