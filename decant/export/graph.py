"""An ONNX graph in writing: nodes in the order in which they compute, and constants."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import Any, TypeVar

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from torch import Tensor

MICROSOFT = "com.microsoft"
"""The domain of ONNX Runtime's own operators."""

Made = TypeVar("Made")


class Graph:
    """What is written so far.

    Attributes:
        nodes: In order.
        constants: By name.
    """

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}
        self._made: dict[Hashable, Any] = {}

    def emit(self, operator: str, *inputs: str, domain: str = "", result: str = "", **attributes: Any) -> str:
        """Write a node and return the name of its result, which is a new one if none is given."""
        # No name that the exporter gives has a slash.
        result = result or f"{operator}/{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [result], domain=domain, **attributes))
        return result

    def copy(self, node: onnx.NodeProto, *inputs: str) -> None:
        """Write a traced node with other inputs, its results under their names."""
        copied = onnx.NodeProto.FromString(node.SerializeToString())
        del copied.input[:]
        copied.input.extend(inputs)
        self.nodes.append(copied)

    def drop(self, node: onnx.NodeProto) -> None:
        """Take out a node; what read its result reads its first input."""
        self.nodes.remove(node)
        for reader in self.nodes:
            for at, name in enumerate(reader.input):
                if name == node.output[0]:
                    reader.input[at] = node.input[0]

    def constant(self, name: str, value: Tensor | np.ndarray | np.generic) -> str:
        """Write a constant, once, and return its name: this one, or one like it where other numbers have it.

        One weight may lie in the file in two forms, as for a product of rows and one of rows of rows.
        """
        tensor, own = _tensor(name, value), name
        while own in self.constants and not _same(self.constants[own], tensor):
            own = tensor.name = f"{own}/other"
        self.constants.setdefault(own, tensor)
        return own

    def read(self) -> Iterable[onnx.TensorProto]:
        """Return the constants that nodes read, in order."""
        names = {name for node in self.nodes for name in (*node.input, *read_within(node))}
        return (value for name, value in self.constants.items() if name in names)

    def attempt(self, write: Callable[[], str], most: int) -> str:
        """Return what `write` returns, if what it writes takes fewer than `most` bytes; else take it back.

        Returns:
            Nothing where it was taken back.
        """
        nodes, constants = len(self.nodes), len(self.constants)
        result = write()
        new: list[Any] = [*self.nodes[nodes:], *list(self.constants.values())[constants:]]
        if sum(each.ByteSize() for each in new) < most:
            return result
        del self.nodes[nodes:]
        for name in list(self.constants)[constants:]:
            del self.constants[name]
        return ""

    def value(self, name: str) -> float:
        """Return the constant of this name, which is one number."""
        number: float = numpy_helper.to_array(self.constants[name]).item()
        return number

    def number(self, value: float, dtype: type[np.generic] = np.float32) -> str:
        """Write a constant that is one number, and return its name."""
        exact = dtype(value)
        return self.constant(f"{exact.dtype}/{exact.item()!r}", exact)

    def integers(self, *numbers: int) -> str:
        """Write a constant that is a list of whole numbers, int64, and return its name."""
        return self.constant(f"{[*numbers]}", np.array(numbers, np.int64))

    def once(self, key: Hashable, make: Callable[[], Made]) -> Made:
        """Return what `make` wrote at the first call with this key."""
        if key not in self._made:
            self._made[key] = make()
        found: Made = self._made[key]
        return found


def _same(one: onnx.TensorProto, other: onnx.TensorProto) -> bool:
    form = one.data_type == other.data_type and one.dims == other.dims
    return form and one.raw_data == other.raw_data


def read_within(node: onnx.NodeProto) -> Iterator[str]:
    """Yield all names that a node reads in graphs of its own, as branches and loops have them."""
    for graph in (each.g for each in node.attribute if each.type == onnx.AttributeProto.GRAPH):
        for inner in graph.node:
            yield from inner.input
            yield from read_within(inner)
        yield from (each.name for each in graph.output)


def _tensor(name: str, value: Tensor | np.ndarray | np.generic) -> onnx.TensorProto:
    if not isinstance(value, Tensor):
        return numpy_helper.from_array(np.asarray(value), name)
    value = value.detach().contiguous()
    if value.dtype is torch.bfloat16:  # NumPy has none
        raw = value.view(torch.int16).numpy().tobytes()
        return helper.make_tensor(name, onnx.TensorProto.BFLOAT16, value.shape, raw, raw=True)
    return numpy_helper.from_array(value.numpy(), name)
