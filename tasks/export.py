"""A checkpoint as an ONNX model: one file, the same bytes every time, and the same function."""

from __future__ import annotations

import functools
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import onnx
import onnxruntime
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from tasks.checkpoints import Checkpoint, altered, state
from tasks.constraints import InputGrid, Range
from tasks.errors import DecantError
from tasks.models import Architecture, Shape, build, predict
from tasks.shapes import reshape_

INPUT, OUTPUT = "image", "logits"
TOLERANCE = 1e-4
DIFFERING = 0.005


def to_onnx(checkpoint: Checkpoint) -> onnx.ModelProto:
    """Return the checkpoint's function, from `image` [N, C, H, W] in [0, 1] to `logits` [N, K], both float32.

    Weights are unpacked to float32: ONNX has no operator for packed, sparse or binary ones. Inputs that are
    cut to a range or rounded to a grid stay so.
    """
    layers = sorted({*checkpoint.grids, *checkpoint.clamps})
    inputs = tuple((name, checkpoint.clamps.get(name), checkpoint.grids.get(name)) for name in layers)
    shapes = tuple(altered(checkpoint).items())
    graph = _graph(checkpoint.architecture, checkpoint.shape, len(checkpoint.classes), inputs, shapes)
    model = onnx.ModelProto.FromString(graph)
    tensors = state(checkpoint.module)
    unfilled = set(tensors)
    for initializer in model.graph.initializer:
        if initializer.name in tensors:
            weight = tensors[initializer.name].detach().contiguous().numpy()
            initializer.CopyFrom(numpy_helper.from_array(weight, initializer.name))
            unfilled.discard(initializer.name)
    assert not unfilled, f"The exported graph has no place for {sorted(unfilled)}"
    onnx.checker.check_model(model)
    return model


def open_session(content: bytes, threads: int) -> onnxruntime.InferenceSession:
    """Return an ONNX Runtime session on the processor that uses `threads` threads."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Waiting threads that spin would take the processor from whichever model is measured next.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def check_same(name: str, checkpoint: Checkpoint, session: Any, images: Tensor) -> None:
    """Hold that ONNX Runtime computes what PyTorch does on uint8 images [N, C, H, W].

    Logits agree within float32's rounding. Where inputs are rounded, a difference in the last bit may become
    a whole step of the grid, so there the mean difference must be small beside the logits' spread.

    Raises:
        DecantError: The two do not agree; names the model.
    """
    expected = predict(checkpoint.module, images)
    found = predict(lambda inputs: torch.from_numpy(session.run(None, {INPUT: inputs.numpy()})[0]), images)
    if checkpoint.grids:
        gap = ((found - expected).abs().mean() / expected.std()).item()
        same, words = gap <= 0.01, f"differ by {gap:.2%} of their spread on average"
    else:
        same = torch.allclose(found, expected, rtol=TOLERANCE, atol=TOLERANCE)
        words = f"differ by up to {(found - expected).abs().max().item():.3g}"
    differing = (found.argmax(1) != expected.argmax(1)).double().mean().item()
    if not same or differing > DIFFERING:
        raise DecantError(
            f"ONNX Runtime does not compute the same function as PyTorch for {name}: logits {words}, "
            f"{differing:.2%} of {len(images)} predictions are other ones; a layer of its architecture is "
            f"exported wrongly by torch {torch.__version__} or run wrongly by "
            f"onnxruntime {onnxruntime.__version__}"
        )


@functools.cache
def _graph(
    architecture: Architecture,
    shape: Shape,
    classes: int,
    inputs: tuple[tuple[str, Range | None, InputGrid | None], ...],
    shapes: tuple[tuple[str, tuple[int, ...]], ...],
) -> bytes:
    """Return the graph of an architecture with fresh weights: tracing takes seconds, filling it nothing."""
    module = build(architecture, shape, classes, seed=0).eval()
    reshape_(module, dict(shapes))
    for name, clamp, grid in inputs:
        layer = module.get_submodule(name)
        if clamp is not None:
            layer.register_forward_pre_hook(functools.partial(_clamped, clamp))
        if grid is not None:
            layer.register_forward_pre_hook(functools.partial(_rounded, grid))
    # Without the exporter's optimizer each weight keeps its name; ONNX Runtime folds batch norms itself.
    with _silent():
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
    assert program is not None
    model: onnx.ModelProto = program.model_proto
    _drop_biases_(model)
    _strip_(model)
    return model.SerializeToString(deterministic=True)


def _clamped(clamp: Range, _: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Cut as the range does; the exporter has operators for it: Clip, or Max and Min per channel."""
    return (clamp.project(inputs[0]), *inputs[1:])


def _rounded(grid: InputGrid, _: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Round as the grid does, to the bit, in operators that PyTorch can export.

    Not QuantizeLinear and DequantizeLinear: where ONNX Runtime sees these it rounds the layer's weights too,
    to eight bits of its own choice, and the model is no longer the one that was evaluated.
    """
    inverse = (1 / torch.tensor(grid.scale)).item()
    codes = torch.clamp(
        torch.round(inputs[0] * inverse), -grid.zero_point, 2**grid.bits - 1 - grid.zero_point
    )
    return (codes * grid.scale, *inputs[1:])


def _drop_biases_(model: onnx.ModelProto) -> None:
    """Remove, in place, the zeros that the exporter adds where a convolution has no bias.

    They are computed at run time, so ONNX Runtime takes them for no constants: it would neither fold the
    batch norm behind such a convolution nor choose its fast layout, and the teacher runs half as fast.
    """
    graph = model.graph
    constant = {initializer.name for initializer in graph.initializer}
    for node in graph.node:
        if node.op_type == "Conv" and len(node.input) > 2 and node.input[2] not in constant:
            del node.input[2:]
    while idle := _idle(graph):
        for node in idle:
            graph.node.remove(node)


def _idle(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """Return the nodes whose results nobody reads."""
    read = {name for node in graph.node for name in node.input} | {out.name for out in graph.output}
    return [node for node in graph.node if not read & set(node.output)]


def _strip_(model: onnx.ModelProto) -> None:
    """Remove, in place, what tells of this machine: stack traces with paths, the name of the build."""
    model.producer_name, model.producer_version, model.doc_string = "decant", "", ""
    graph = model.graph
    graph.name, graph.doc_string = "model", ""
    del graph.value_info[:]
    parts = (model, graph, *graph.node, *graph.initializer, *graph.input, *graph.output)
    for part in parts:
        del part.metadata_props[:]
        part.doc_string = ""


@contextmanager
def _silent() -> Iterator[None]:
    """Keep the exporter from warning of libraries that are not used here."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
