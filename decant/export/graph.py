"""An ONNX graph in writing: nodes in the order in which they compute, and constants."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import numpy as np
import onnx
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

    def constant(self, name: str, value: Tensor | np.ndarray | np.generic) -> str:
        """Write a constant under this name, once, and return the name."""
        if name not in self.constants:
            array = value.detach().contiguous().numpy() if isinstance(value, Tensor) else np.asarray(value)
            self.constants[name] = numpy_helper.from_array(array, name)
        return name

    def value(self, name: str) -> float:
        """Return the constant of this name, which is one number."""
        number: float = numpy_helper.to_array(self.constants[name]).item()
        return number

    def number(self, value: float, dtype: type[np.generic] = np.float32) -> str:
        """Write a constant that is one number, and return its name."""
        exact = dtype(value)
        return self.constant(f"{exact.dtype}/{exact.item()!r}", exact)

    def once(self, key: Hashable, make: Callable[[], Made]) -> Made:
        """Return what `make` wrote at the first call with this key."""
        if key not in self._made:
            self._made[key] = make()
        found: Made = self._made[key]
        return found
