"""A traced graph with a checkpoint's numbers, each layer in the form that ONNX Runtime has a kernel for."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from decant.checkpoints.activations import DynamicGrid, InputGrid
from decant.checkpoints.checkpoint import Checkpoint, state
from decant.checkpoints.constraints import FREE
from decant.export.graph import MICROSOFT, Graph
from decant.export.inputs import BYTE, cut, is_rounded, quantized, quantized_by_batch, rounded
from decant.export.matmul_nbits import WIDTH, packed
from decant.export.trace import LAYER, MARK
from decant.lowering.integers import Whole, is_settled, unit, whole, with_bias


class Form(StrEnum):
    """How a layer is multiplied."""

    INTEGERS = "integers"
    UNROUNDED = "integers, but nothing rounds what they come to, so that they are multiplied in float32"
    BATCH = "integers, inputs rounded to the range of each batch"
    PACKED = "weights of 4 bits, inputs in float32"
    FLOAT = "float32"


Forms = Mapping[str, Form]
"""By the layer's name."""

IN_FLOAT = 1
"""The accuracy level of MatMulNBits that leaves the inputs alone; by others it rounds them to 8 bits."""


def fill_(model: onnx.ModelProto, checkpoint: Checkpoint) -> Forms:
    """Give the graph that was traced of a checkpoint its numbers, in place; return the form of each layer.

    Integers
        Layers whose inputs are rounded to one grid of at most 8 bits and whose weights are integers (so are
        signs): inputs, weights and biases stand between QuantizeLinear and DequantizeLinear, with the
        checkpoint's own scales, and ONNX Runtime makes one layer of integers of each.
    Unrounded
        The same of a convolution whose results are not rounded next: there is no integer kernel that gives
        float32, and ONNX Runtime takes the integers back into float32 at each run.
    Batch
        The like of a linear layer with the range of each batch: DynamicQuantizeLinear and MatMulInteger.
    Packed
        Linear layers with inputs in float32 and integers that 4 bits hold: MatMulNBits, which saves memory
        and multiplies in float32.
    Float
        All others, embeddings and transposed convolutions among them: ONNX Runtime has no kernel for their
        integers, the weights are unpacked.
    """
    writer = _Writer(model.graph, checkpoint)
    for node in model.graph.node:
        writer.write(node)
    written = writer.graph
    unread = state(checkpoint.module).keys() - writer.read
    assert not unread, f"The exported graph has no place for {sorted(unread)}"
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.node.extend(written.nodes)
    model.graph.initializer.extend(written.constants.values())
    opset = next(each.version for each in model.opset_import if each.domain == "")
    del model.opset_import[:]
    model.opset_import.append(helper.make_opsetid("", opset))
    if any(node.domain == MICROSOFT for node in written.nodes):
        model.opset_import.append(helper.make_opsetid(MICROSOFT, 1))
    unrounded = {layer for layer, result in writer.sums.items() if not is_rounded(written, result)}
    return writer.forms | dict.fromkeys(unrounded, Form.UNROUNDED)


class _Writer:
    """Writes a traced graph anew, node by node."""

    def __init__(self, traced: onnx.GraphProto, checkpoint: Checkpoint) -> None:
        self.graph, self.forms, self.read = Graph(), dict[str, Form](), set[str]()
        self.sums: dict[str, str] = {}  # by convolution in integers: the name of its result
        self._checkpoint, self._tensors = checkpoint, state(checkpoint.module)
        self._traced = {initializer.name: initializer for initializer in traced.initializer}
        self._marks: dict[str, tuple[str, str]] = {}  # by the result: what is cut and rounded, and its layer

    def write(self, node: onnx.NodeProto) -> None:
        """Write one traced node, as it is or as what it stands for."""
        if node.op_type == MARK:
            (layer,) = (a.s.decode() for a in node.attribute if a.name == LAYER)
            self._marks[node.output[0]] = node.input[0], layer
            return
        layer = self._layer(node)
        if layer is None:
            self.graph.copy(node, *(self._value(name) for name in node.input))
            weights = [name for name in node.input if name in self._tensors and name.endswith(".weight")]
            several = [name for name in weights if self._tensors[name].dim() > 1]  # batch norms have vectors
            self.forms |= {name.removesuffix(".weight"): Form.FLOAT for name in several}
            return
        self.read |= {f"{layer}.weight", *node.input[2:]}
        self.forms[layer] = (
            self._integers(node, layer)
            or self._batch_integers(node, layer)
            or self._packed(node, layer)
            or self._float(node)
        )

    def _layer(self, node: onnx.NodeProto) -> str | None:
        """Return the layer that the node multiplies, if it is one of those that have several forms."""
        if node.op_type not in ("Conv", "Gemm") or not node.input[1].endswith(".weight"):
            return None
        layer = node.input[1].removesuffix(".weight")
        source = self._marks.get(node.input[0])
        # A layer whose inputs are reshaped after they were rounded is not one that integer kernels know.
        return layer if layer not in self._checkpoint.grids or (source and source[1] == layer) else None

    def _value(self, name: str) -> str:
        """Return a name to read in place of a traced one; writes what it stands for, at the first call."""
        if name in self._marks:
            source, layer = self._marks[name]
            grid = self._checkpoint.grids.get(layer)
            source = cut(self.graph, self._value(source), self._checkpoint.clamps.get(layer), grid)
            point = not any(True for _ in self._checkpoint.module.get_submodule(layer).parameters())
            if point and isinstance(grid, InputGrid):
                return quantized(self.graph, source, grid)
            return rounded(self.graph, source, grid)
        if name in self._tensors:
            self.read.add(name)
            return self.graph.constant(name, self._tensors[name])
        if name in self._traced:
            return self.graph.constant(name, numpy_helper.to_array(self._traced[name]))
        return name

    def _cut(self, node: onnx.NodeProto, layer: str) -> str:
        """Return what comes to a layer, cut to its range; the caller rounds it."""
        source, marked = self._marks.get(node.input[0], (node.input[0], ""))
        if marked != layer:  # what another layer, without weights, has rounded
            return self._value(node.input[0])
        clamp, grid = self._checkpoint.clamps.get(layer), self._checkpoint.grids.get(layer)
        return cut(self.graph, self._value(source), clamp, grid)

    def _whole(self, node: onnx.NodeProto, layer: str) -> Whole | None:
        """Return the layer's weight in integers that its kernel takes."""
        held = self._checkpoint.constraints.get(f"{layer}.weight", FREE)
        weight = whole(self._tensors[f"{layer}.weight"], held)
        # QLinearConv has one zero point for all channels.
        fits = weight is not None and (
            node.op_type == "Gemm" or bool((weight.zero_point == weight.zero_point[0]).all())
        )
        return weight if fits else None

    def _integers(self, node: onnx.NodeProto, layer: str) -> Form | None:
        grid, weight = self._checkpoint.grids.get(layer), self._whole(node, layer)
        if not isinstance(grid, InputGrid) or weight is None:
            return None
        fitting = with_bias(weight, self._bias(layer, weight), grid.scale)
        if fitting is None or not is_settled(*fitting, self._bias(layer, weight), grid.scale):
            return None
        weight, bias = fitting
        inputs = [quantized(self.graph, self._cut(node, layer), grid), self._dequantized(layer, weight)]
        if len(node.input) > 2:
            codes = self.graph.constant(f"{layer}.bias", bias)
            step = self.graph.constant(f"{layer}.bias/scale", unit(weight.scale, grid.scale))
            inputs.append(self.graph.emit("DequantizeLinear", codes, step, axis=0))
        self.graph.copy(node, *inputs)
        if node.op_type == "Conv":
            self.sums[layer] = node.output[0]
        return Form.INTEGERS

    def _dequantized(self, layer: str, weight: Whole) -> str:
        name = f"{layer}.weight"
        codes, scale = (
            self.graph.constant(name, weight.codes),
            self.graph.constant(f"{name}/scale", weight.scale),
        )
        # ONNX Runtime makes no QGemm of a weight whose zero point is left out, though that means 0.
        zero = self.graph.constant(f"{name}/zero", weight.zero_point)
        return self.graph.emit("DequantizeLinear", codes, scale, zero, axis=0)

    def _batch_integers(self, node: onnx.NodeProto, layer: str) -> Form | None:
        grid, weight = self._checkpoint.grids.get(layer), self._whole(node, layer)
        if node.op_type != "Gemm" or grid != DynamicGrid(BYTE) or weight is None:
            return None  # ConvInteger takes 7 times as long as a convolution in float32, in ONNX Runtime 1.32
        if weight.codes.dtype != torch.int8:
            return None
        codes, step, zero = quantized_by_batch(self.graph, self._cut(node, layer))
        whole_weight = self.graph.constant(f"{layer}.weight", weight.codes.T)
        sums = self.graph.emit("MatMulInteger", codes, whole_weight, zero)
        steps = self.graph.emit("Mul", step, self.graph.constant(f"{layer}.weight/scale", weight.scale))
        product = self.graph.emit("Mul", self.graph.emit("Cast", sums, to=TensorProto.FLOAT), steps)
        bias = self.graph.constant(f"{layer}.bias", self._bias(layer, weight))
        self.graph.emit("Add", product, bias, result=node.output[0])
        return Form.BATCH

    def _bias(self, layer: str, weight: Whole) -> Tensor:
        return self._tensors.get(f"{layer}.bias", torch.zeros(len(weight.scale)))

    def _packed(self, node: onnx.NodeProto, layer: str) -> Form | None:
        if node.op_type != "Gemm" or layer in self._checkpoint.grids:
            return None
        name = f"{layer}.weight"
        weight = packed(self._tensors[name], self._checkpoint.constraints.get(name, FREE))
        if weight is None:
            return None
        outputs, inputs = self._tensors[name].shape
        zeros = weight.zero_points
        self.graph.emit(
            "MatMulNBits",
            self._cut(node, layer),
            self.graph.constant(name, weight.codes),
            self.graph.constant(f"{name}/scale", weight.scale),
            "" if zeros is None else self.graph.constant(f"{name}/zero", zeros),
            "",
            *(self._value(bias) for bias in node.input[2:]),
            domain=MICROSOFT,
            result=node.output[0],
            N=outputs,
            K=inputs,
            bits=WIDTH,
            block_size=weight.block,
            accuracy_level=IN_FLOAT,
        )
        return Form.PACKED

    def _float(self, node: onnx.NodeProto) -> Form:
        self.graph.copy(node, *(self._value(name) for name in node.input))
        return Form.FLOAT
