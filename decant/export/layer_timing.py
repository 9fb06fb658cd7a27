"""How long single layers and whole networks take in ONNX Runtime on this machine, with one thread."""

from __future__ import annotations

import functools
import random
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper

from decant.checkpoints.checkpoint import Checkpoint
from decant.costs.layers import LayerShape
from decant.export.deploy import to_onnx
from decant.export.runtime import open_session
from decant.export.timing import interleave, no_garbage_collection, processor
from decant.export.trace import INPUT

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


def layer_call(layer: LayerShape, batch: int) -> Callable[[], object]:
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


def _nodes(layer: LayerShape, copy: int) -> list[onnx.NodeProto]:
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


@dataclass(frozen=True)
class OnnxRuntime:
    """The instrument of `prune`'s latencies: ONNX Runtime, one thread, this processor.

    Attributes:
        watch: What times calls in turns.
    """

    watch: Stopwatch = stopwatch

    @property
    def processor(self) -> str:
        """The processor's name and instructions: different processors share a name."""
        return f"{processor()} {torch.backends.cpu.get_cpu_capability()}".lower()

    @property
    def runtime(self) -> str:
        """The version of ONNX Runtime."""
        return str(onnxruntime.__version__)

    def layers(self, layers: Mapping[str, LayerShape], batch: int) -> dict[str, float]:
        """Return the median seconds of one run of each layer."""
        rounds = self.watch({name: layer_call(layer, batch) for name, layer in layers.items()}, LAYER_ROUNDS)
        return {name: statistics.median(seconds) / COPIES for name, seconds in rounds.items()}

    def networks(self, models: Mapping[str, Checkpoint], batch: int) -> dict[str, list[float]]:
        """Return the seconds of each network in each round."""
        return self.watch({name: _run(model, batch) for name, model in models.items()}, NETWORK_ROUNDS)


def _run(model: Checkpoint, batch: int) -> Callable[[], object]:
    proto: onnx.ModelProto = to_onnx(model)
    feed = {INPUT: np.zeros((batch, *model.shape), np.float32)}
    return functools.partial(open_session(proto.SerializeToString(), 1).run, None, feed)
