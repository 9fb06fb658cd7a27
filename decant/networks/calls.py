"""What is known of one pass of a network: each multiplication in order, and the weight that it uses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

Example = tuple[Any, ...]
"""What a network is called with, in order: tensors, or dicts, lists and tuples of tensors."""

KNOWN = "_decant_known"
"""The attribute of a network in which its example and its record hang."""


class Kind(StrEnum):
    """How a weight is used."""

    CONVOLUTION = "convolution"
    TRANSPOSED = "transposed convolution"
    LINEAR = "linear"
    RECURRENT = "recurrent"
    EMBEDDING = "embedding"


@dataclass(frozen=True)
class Call:
    """One multiplication of one pass, or one look into a table.

    Attributes:
        weight: The parameter that is multiplied by, under the first of its names; empty where both sides are
            computed, as in attention's products, or where the weight is computed from parameters.
        layer: The innermost module that is at work; empty for the network itself.
        kind: How the weight is used; None without a weight.
        inputs: Shape of what comes in.
        outputs: Shape of what comes out.
        macs: Multiplications for all rows of the example; 0 for tables.
        takes: Type of what comes in, such as float32.
        gives: Type of what comes out.
        computed: Whether the weight is computed from parameters in this pass.
    """

    weight: str
    layer: str
    kind: Kind | None
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    macs: int
    takes: str
    gives: str
    computed: bool = False


@dataclass(frozen=True)
class Weight:
    """A parameter that multiplies, or a table.

    Attributes:
        name: The first of its names.
        names: All names of the same tensor.
        kind: How it is used; the kind of its first multiplication where it is a table as well.
        axis: Which of its dimensions are the output channels.
        layer: The layer of torch whose only business it is, and which is called for it each time; empty where
            there is none: then nothing can be put before its inputs.
        why: Why there is no such layer; empty where there is one.
        calls: How often one pass uses it.
    """

    name: str
    names: tuple[str, ...]
    kind: Kind
    axis: int
    layer: str
    why: str
    calls: int


@dataclass(frozen=True)
class Record:
    """What one pass over an example showed.

    Attributes:
        rows: How many rows the example has.
        calls: In order.
        weights: By name, in the order of their first calls.
        folds: The batch norm that may be folded into a layer, by the weight of the layer: each output of the
            layer goes there and nowhere else, and nothing else comes there.
        unfolded: Why each other batch norm may not be folded, by its name.
        feeds: Weights of which the first one's layer gives something that the second one's layer receives,
            with no other weight between: by name, in the order of the second.
        sums: What is added to what: for each addition of two results, in order, the weights that each side
            comes from last; none for what comes from the inputs alone.
        unused: Parameters of two and more dimensions that no operator reads.
        outputs: Shapes of what the network returns.
        called: Names of all modules that are called, whatever they do.
        computed: Parameters from which a weight is computed in the pass, by name, and the layer that
            multiplies by it.
    """

    rows: int
    calls: tuple[Call, ...]
    weights: Mapping[str, Weight]
    folds: Mapping[str, str]
    unfolded: Mapping[str, str]
    feeds: tuple[tuple[str, str], ...]
    sums: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]
    unused: tuple[str, ...]
    outputs: tuple[tuple[int, ...], ...]
    called: frozenset[str]
    computed: Mapping[str, str]

    def __deepcopy__(self, _: Any) -> Record:
        return self

    @property
    def macs(self) -> int:
        """Multiplications for one row: of convolutions, matrices, recurrences, and attention's products."""
        return sum(call.macs for call in self.calls) // self.rows

    def macs_of(self, weight: str) -> int:
        """Multiplications of one weight for one row."""
        return sum(call.macs for call in self.calls if call.weight == weight) // self.rows
