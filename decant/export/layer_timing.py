"""Part of what was tasks.prune.timings."""

from __future__ import annotations

import functools
import random
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from decant.checkpoints.checkpoint import Checkpoint
from decant.costs.layers import Layer
from decant.export.deploy import to_onnx
from decant.export.runtime import open_session
from decant.export.timing import interleave, no_garbage_collection

LAYER_ROUNDS, NETWORK_ROUNDS = 9, 30
COPIES = 4

Calls = dict[str, Callable[[], object]]
Stopwatch = Callable[[Calls, int], dict[str, list[float]]]
"""Seconds of each call in each of so many rounds, timed in turns."""


def stopwatch(
    calls: Calls, rounds: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Return the median seconds of each call in each round; in each, all take turns in a drawn order."""
    order = random.Random(0)
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    with no_garbage_collection():
        once = interleave(calls, 2, order, clock)
        # About a millisecond for each turn: a single call of some microseconds is mostly the clock.
        repeats = {n: max(1, min(50, round(1e-3 / max(each[-1], 1e-6)))) for n, each in once.items()}
        for _ in range(rounds):
            for name in order.sample(sorted(calls), len(calls)):
                turn = interleave({name: calls[name]}, repeats[name], order, clock)
                seconds[name].append(statistics.median(turn[name]))
    return seconds


def layer_call(layer: Layer, batch: int) -> Callable[[], object]:
    """Return a call of `COPIES` of one layer in ONNX Runtime, with drawn weights and inputs.

    Of several, as a call of any network takes some microseconds that are no layer's. What a convolution
    makes is averaged at once, or bringing it from the kernels' layout to ONNX's would count too.
    """
    draw = np.random.Generator(np.random.PCG64(0))
    convolution = bool(layer.stride)
    rows = batch if convolution else batch * int(np.prod(layer.size))
    inputs = draw.standard_normal((rows, layer.inputs, *(layer.size if convolution else ())), np.float32)
    weights, nodes, outputs = [], [], []
    for copy in range(COPIES):
        drawn = draw.standard_normal(layer.weight, np.float32)
        weights.append(numpy_helper.from_array(drawn, f"weight{copy}"))
        nodes += _nodes(layer, copy)
        outputs.append(helper.make_tensor_value_info(f"outputs{copy}", TensorProto.FLOAT, None))
    given = helper.make_tensor_value_info("inputs", TensorProto.FLOAT, inputs.shape)
    graph = helper.make_graph(nodes, "layer", [given], outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return functools.partial(open_session(model.SerializeToString(), 1).run, None, {"inputs": inputs})


def _nodes(layer: Layer, copy: int) -> list[onnx.NodeProto]:
    inputs, made = ["inputs", f"weight{copy}"], [f"outputs{copy}"]
    if not layer.stride:
        return [helper.make_node("Gemm", inputs, made, transB=1)]
    convolution = helper.make_node(
        "Conv",
        inputs,
        [f"made{copy}"],
        kernel_shape=layer.weight[2:],
        strides=layer.stride,
        pads=[*layer.padding, *layer.padding],
        dilations=layer.dilation,
        group=layer.groups,
    )
    return [convolution, helper.make_node("GlobalAveragePool", [f"made{copy}"], made)]


def _run(model: Checkpoint, feed: Mapping[str, Any]) -> Callable[[], object]:
    proto: onnx.ModelProto = to_onnx(model)
    return functools.partial(open_session(proto.SerializeToString(), 1).run, None, feed)
