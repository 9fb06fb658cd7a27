"""A network as an ONNX graph without its numbers: places for them, and marks where layers round inputs."""

from __future__ import annotations

import functools
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from torch import Tensor, nn

from decant.checkpoints.checkpoint import Checkpoint, altered, blank
from decant.errors import DecantError, Message
from decant.networks.architectures import Architecture, Shape

INPUT, OUTPUT = "image", "logits"

MARK, LAYER = "Inputs", "layer"
"""An operator and its attribute: they stand where a layer clamps or rounds its inputs."""


def traced(checkpoint: Checkpoint) -> onnx.ModelProto:
    """Return the graph of the checkpoint's architecture, with numbers that mean nothing yet.

    Parameters and buffers are initializers under their own names. Where a layer clamps or rounds its inputs,
    the node `Inputs` with the layer's name stands for it: what it does is numbers, and the graph is the same
    for all numbers. Tracing takes seconds, so that each graph is traced once.

    Raises:
        DecantError: ONNX's exporter has no operator for something in the network; names it.
    """
    marked = tuple(sorted({*checkpoint.grids, *checkpoint.clamps}))
    shapes = tuple(altered(checkpoint).items())
    graph = _graph(
        checkpoint.architecture, checkpoint.shape, len(checkpoint.classes), checkpoint.folded, shapes, marked
    )
    return onnx.ModelProto.FromString(graph)


@functools.cache
def _graph(
    architecture: Architecture,
    shape: Shape,
    classes: int,
    folded: bool,
    shapes: tuple[tuple[str, tuple[int, ...]], ...],
    marked: Sequence[str],
) -> bytes:
    module = blank(architecture, shape, classes, folded=folded, shapes=dict(shapes))
    for name in marked:
        module.get_submodule(name).register_forward_pre_hook(functools.partial(_marked, name))
    try:
        with silent():
            # Without the exporter's optimizer each weight keeps its name.
            program = torch.onnx.export(
                module,
                (torch.zeros(2, *shape),),
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes=({0: torch.export.Dim("N")},),
                dynamo=True,
                optimize=False,
                verbose=False,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        raise DecantError(
            f"ONNX has no operator for something in the architecture {architecture.kind!r}: "
            f"{_cause(error)}; the model itself is whole, but it cannot be deployed as an ONNX file"
        ) from None
    assert program is not None
    model: onnx.ModelProto = program.model_proto
    _cast_constants_(model.graph)
    _drop_biases_(model.graph)
    _fix_shapes_(model.graph)
    _drop_idle_(model.graph)
    _strip_(model)
    return model.SerializeToString(deterministic=True)


def _marked(name: str, _: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    first = inputs[0]
    mark: Tensor = torch.onnx.ops.symbolic(
        f"decant::{MARK}", (first,), {LAYER: name}, dtype=first.dtype, shape=first.shape, version=1
    )
    return (mark, *inputs[1:])


def _cause(error: BaseException) -> Message:
    """Return the first line of the innermost error; the outer ones are advice on how to report it."""
    while error.__cause__ is not None:
        error = error.__cause__
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _cast_constants_(graph: onnx.GraphProto) -> None:
    """Replace, in place, each constant that is cast to the type of another value by one of that type.

    The exporter writes the ends of a clamp so. ONNX Runtime casts them at each run, and does not see that
    the rounding after the clamp cuts alike: it runs the layer before both in float32.
    """
    types = {value.name: value.type.tensor_type.elem_type for value in (*graph.input, *graph.value_info)}
    made = {name: node for node in graph.node for name in node.output}
    for node in list(graph.node):
        source = made.get(node.input[0]) if node.op_type == "CastLike" else None
        if source is None or source.op_type != "Constant" or node.input[1] not in types:
            continue
        value = helper.get_attribute_value(source.attribute[0])
        if isinstance(value, float | int):
            kind = helper.tensor_dtype_to_np_dtype(types[node.input[1]])
            graph.initializer.append(numpy_helper.from_array(np.array(value, kind), node.output[0]))
            graph.node.remove(node)


def _drop_biases_(graph: onnx.GraphProto) -> None:
    """Remove, in place, the zeros that the exporter adds where a convolution has no bias.

    They are computed at run time, so ONNX Runtime takes them for no constants and does not choose its fast
    layout, and the network runs half as fast.
    """
    constant = {initializer.name for initializer in graph.initializer}
    for node in graph.node:
        if node.op_type == "Conv" and len(node.input) > 2 and node.input[2] not in constant:
            del node.input[2:]


def _fix_shapes_(graph: onnx.GraphProto) -> None:
    """Replace, in place, each shape that is computed from the number of images by one that is known.

    The exporter counts the images with operators that run each time; ONNX's -1 says the same for nothing.
    """
    made = {name: node for node in graph.node for name in node.output}
    for node in graph.node:
        shape = made.get(node.input[1]) if node.op_type == "Reshape" else None
        if shape is None or shape.op_type != "Concat":
            continue
        sizes = [_constant(made[name]) if name in made else None for name in shape.input]
        if sizes[0] is not None or any(size is None for size in sizes[1:]):
            continue
        name = f"{node.output[0]}.shape"
        known = [int(size) for each in sizes[1:] if each is not None for size in each]
        graph.initializer.append(numpy_helper.from_array(np.array([-1, *known], np.int64), name))
        node.input[1] = name


def _constant(node: onnx.NodeProto) -> Sequence[int] | None:
    found = [a.ints for a in node.attribute if a.name == "value_ints"] if node.op_type == "Constant" else []
    return found[0] if found else None


def _drop_idle_(graph: onnx.GraphProto) -> None:
    """Remove, in place, the nodes whose results nobody reads."""
    while True:
        read = {name for node in graph.node for name in node.input} | {out.name for out in graph.output}
        idle = [node for node in graph.node if not read & set(node.output)]
        if not idle:
            return
        for node in idle:
            graph.node.remove(node)


def _strip_(model: onnx.ModelProto) -> None:
    """Remove, in place, what depends on this machine: stack traces with paths, the name of the build."""
    model.producer_name, model.producer_version, model.doc_string = "decant", "", ""
    graph = model.graph
    graph.name, graph.doc_string = "model", ""
    del graph.value_info[:]
    del model.functions[:]
    parts = (model, graph, *graph.node, *graph.initializer, *graph.input, *graph.output)
    for part in parts:
        del part.metadata_props[:]
        part.doc_string = ""


@contextmanager
def silent() -> Iterator[None]:
    """Keep exporters from warning of libraries that are not used here, and from printing."""
    disabled = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
