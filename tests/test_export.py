"""The ONNX files: integer kernels where there are some, our own numbers, PyTorch's function, and silence."""

from __future__ import annotations

import logging
import math
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import helper, numpy_helper
from torch import Tensor, nn

import tasks
from decant.calibration.grids import affine_grid
from decant.checkpoints.activations import DynamicGrid, Grid, InputGrid
from decant.checkpoints.checkpoint import Checkpoint
from decant.checkpoints.constraints import Constraints, Levels, Range
from decant.errors import DecantError
from decant.export import trace
from decant.export.deploy import Deployed, check_same, deploy, to_onnx
from decant.export.graph import Graph
from decant.export.inputs import quantized, rounded
from decant.export.kernels import Form
from decant.export.matmul_nbits import packed
from decant.export.runtime import open_session
from decant.lowering.folding import folded
from decant.lowering.integers import settled, unit
from decant.networks.architectures import Mlp, Resnet
from decant.networks.execution import predict
from decant.networks.layers import Summand
from decant.networks.structure import compressible, followers
from decant.quantize.quantizable import quantizable
from decant.quantize.schemes import Binary, Codebook, Integer, PowerOfTwo, Quantizer, Ternary
from tests.nets import CLASSES, NETS, SHAPE, Net, Own, images, net

RESIDUAL = Resnet(widths=(6, 8), blocks=(1, 1))
EIGHT = Integer(bits=8)
SCHEMES: dict[str, Quantizer] = {
    **{f"{bits} bits": Integer(bits=bits) for bits in range(2, 9)},
    **{f"affine, {bits} bits": Integer(bits=bits, symmetric=False) for bits in (2, 4, 7, 8)},
    "tensor": Integer(bits=4, per_channel=False),
    "affine tensor": Integer(bits=8, symmetric=False, per_channel=False),
    "group": Integer(bits=4, group=16),
    "affine group": Integer(bits=3, group=32, symmetric=False),
    "ternary": Ternary(),
    "binary": Binary(),
    "codebook": Codebook(entries=9),
    "power of two": PowerOfTwo(bits=4),
}


class Passing(Own):
    """Layers that have no integer kernels: an embedding, a transposed convolution; and a named place."""

    kind: Literal["passing"] = "passing"

    def build(self, shape: tuple[int, int, int], classes: int) -> nn.Module:
        return _Passing(shape[0], classes)


class _Passing(nn.Module):
    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.bright = nn.Embedding(4, 5)
        self.first = nn.Conv2d(channels, 4, 3, stride=2)
        self.up = nn.ConvTranspose2d(4, 5, 2, stride=2)
        self.after = nn.Conv2d(5, 6, 3)
        self.place = Summand()
        self.head = nn.Linear(6, classes)

    def forward(self, inputs: Tensor) -> Tensor:
        shade = (inputs.mean((1, 2, 3)) * 4).long().clamp(0, 3)
        wide = self.up(self.first(inputs).relu()) + self.bright(shade)[:, :, None, None]
        return self.head(self.place(self.after(wide).relu().mean((2, 3))))


def network(architecture: Any) -> Checkpoint:
    """Return drawn weights, folded, with a factor below zero and a channel of zeros in each batch norm."""
    model = net(architecture)
    for _, norm in followers(model.module).values():
        if norm.weight is not None:
            with torch.no_grad():
                norm.weight[0], norm.weight[1] = -0.7, 0.0
    return folded(model)


def grids(model: Checkpoint, bits: int, *, sums: bool = True) -> Mapping[str, Grid]:
    """Return the grids over what comes to each layer, and to each side of an addition."""
    seen: dict[str, tuple[float, float]] = {}
    kinds = (nn.Conv2d, nn.Linear, nn.ConvTranspose2d, *([Summand] if sums else []))
    layers = {name: layer for name, layer in model.module.named_modules() if isinstance(layer, kinds)}
    hooks = [
        layer.register_forward_pre_hook(
            lambda _, given, name=name: seen.update({name: (given[0].min().item(), given[0].max().item())})
        )
        for name, layer in layers.items()
    ]
    predict(model.module, images())
    for hook in hooks:
        hook.remove()
    return {name: affine_grid(*ends, bits) for name, ends in seen.items()}


def held_by(
    model: Checkpoint, scheme: Quantizer, grids: Mapping[str, Grid] | None = None, *, masked: bool = False
) -> Checkpoint:
    """Return the model as quantizing leaves it: on levels, inputs on grids, biases settled."""
    held = {}
    for name, (weight, axis) in quantizable(model.module).items():
        if axis and getattr(scheme, "group", None):
            continue
        generator = torch.Generator().manual_seed(len(name))
        mask = torch.rand(weight.shape, generator=generator) > 0.4 if masked else None
        levels = scheme.levels(weight.detach(), mask, axis)
        held[name] = Constraints(levels=levels, mask=mask)
    return settled(model.narrowed(held, grids))


def static(architecture: Net | Mlp, scheme: Quantizer = EIGHT, bits: int = 8, **more: bool) -> Checkpoint:
    model = network(architecture)
    return held_by(model, scheme, grids(model, bits), **more)


def dynamic(architecture: Net | Mlp, scheme: Quantizer = EIGHT, bits: int = 8) -> Checkpoint:
    model = network(architecture)
    return held_by(model, scheme, {name: DynamicGrid(bits) for name in grids(model, 8, sums=False)})


def kernels(content: bytes, folder: Path) -> Counter[str]:
    """Return how many of each operator ONNX Runtime makes of a file."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.log_severity_level = 3  # that the file is for this machine alone
    onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(folder / "optimized.onnx").graph.node)


def checked(model: Checkpoint) -> Deployed:
    """Deploy the model and hold that it is the same function."""
    made = deploy(model)
    check_same("some", model, open_session(made.content, 1), images())
    return made


# Which kernel runs what


@pytest.mark.parametrize("scheme", [EIGHT, Integer(bits=8, symmetric=False, per_channel=False), Ternary()])
def test_static_integers_run_as_integers_sums_too(scheme: Quantizer, tmp_path: Path) -> None:
    made = checked(static(RESIDUAL, scheme))
    assert set(made.forms.values()) == {Form.INTEGERS}
    assert len(made.forms) == 7
    found = kernels(made.content, tmp_path)
    assert (found["QLinearConv"], found["QGemm"]) == (6, 1)
    assert (found["QLinearAdd"], found["Add"]) == (1, 1)  # the last sum is averaged before it is rounded
    assert not {"Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul"} & set(found)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("kind", [name for name in NETS if name != "residual"])
def test_what_is_said_to_run_as_integers_does(kind: str, bits: int, tmp_path: Path) -> None:
    made = checked(static(NETS[kind], Integer(bits=bits), bits))
    found, forms = kernels(made.content, tmp_path), Counter(made.forms.values())
    assert set(forms) <= {Form.INTEGERS, Form.UNROUNDED}
    assert found["QLinearConv"] + found["QGemm"] == forms[Form.INTEGERS] > 0
    assert found["Conv"] + found["FusedConv"] == forms[Form.UNROUNDED]


def test_rectifiers_with_two_ends_run_within_integers() -> None:
    made = deploy(static(NETS["depthwise"]))
    assert {layer for layer, form in made.forms.items() if form is Form.INTEGERS} == {"0", "3", "10"}


def test_before_an_addition_that_nobody_rounds_integers_are_multiplied_in_float32(tmp_path: Path) -> None:
    model = network(RESIDUAL)
    made = checked(held_by(model, Integer(bits=4), grids(model, 4, sums=False)))
    unrounded = {layer for layer, form in made.forms.items() if form is Form.UNROUNDED}
    assert unrounded == {"stem.0", "stages.0.conv2", "stages.1.conv2", "stages.1.shortcut.0"}
    found = kernels(made.content, tmp_path)
    assert (found["QLinearConv"], found["Conv"] + found["FusedConv"]) == (2, 4)


@pytest.mark.parametrize(
    ("scheme", "form"),
    [
        (EIGHT, Form.BATCH),
        (Integer(bits=3, symmetric=False), Form.BATCH),
        (Binary(), Form.BATCH),
        (Integer(bits=8, symmetric=False), Form.FLOAT),
        (Integer(bits=8, group=16), Form.FLOAT),
        (Codebook(entries=9), Form.FLOAT),
    ],
)
def test_the_range_of_each_batch(scheme: Quantizer, form: Form, tmp_path: Path) -> None:
    made = checked(dynamic(Mlp(hidden=(20,)), scheme))
    assert made.forms == {"layers.0": form, "layers.2": form}
    found = kernels(made.content, tmp_path)
    integers = found["DynamicQuantizeMatMul"] + found["MatMulIntegerToFloat"] + found["MatMulInteger"]
    assert integers == (2 if form is Form.BATCH else 0)
    assert found["Gemm"] + found["FusedGemm"] + found["MatMul"] == 2 - integers


def test_convolutions_with_the_range_of_each_batch_are_unpacked(tmp_path: Path) -> None:
    made = checked(dynamic(RESIDUAL))
    assert {layer: form for layer, form in made.forms.items() if form is not Form.FLOAT} == {
        "head": Form.BATCH
    }
    assert kernels(made.content, tmp_path)["ConvInteger"] == 0


@pytest.mark.parametrize(
    ("kind", "masked"),
    [
        *((kind, False) for kind in SCHEMES),
        *((kind, True) for kind in ("4 bits", "affine, 4 bits", "affine group", "binary", "codebook")),
    ],
)
def test_linear_layers_of_few_bits_keep_them_in_memory(kind: str, masked: bool, tmp_path: Path) -> None:
    scheme = SCHEMES[kind]
    few = len(scheme.levels(torch.randn(4, 40)).values) <= 16 and not isinstance(
        scheme, Codebook | PowerOfTwo
    )
    made = checked(held_by(network(Mlp(hidden=(20,))), scheme, masked=masked))
    assert set(made.forms.values()) == {Form.PACKED if few else Form.FLOAT}
    found = kernels(made.content, tmp_path)
    assert found["MatMulNBits"] == (2 if few else 0)
    assert found["Gemm"] + found["FusedGemm"] == (0 if few else 2)
    assert "MatMulInteger" not in found


def test_other_layers_are_unpacked_and_told(tmp_path: Path) -> None:
    made = checked(static(Passing()))
    assert made.forms == {
        "bright": Form.FLOAT,
        "up": Form.FLOAT,
        "first": Form.UNROUNDED,
        "after": Form.UNROUNDED,
        "head": Form.INTEGERS,
    }
    assert kernels(made.content, tmp_path)["ConvTranspose"] == 1


def test_what_a_layer_without_weights_rounds_is_rounded_before_one_that_does_not() -> None:
    """The last layer has no grid, and reads what the place before it has rounded."""
    model = held_by(network(Passing()), Integer(bits=4))
    placed = model.narrowed({}, {"place": affine_grid(0.0, 1.0, 3)})
    made = checked(placed)
    assert made.forms["head"] is Form.PACKED
    assert len(of(made.model, "QuantizeLinear")) == 1
    with pytest.raises(DecantError, match="not compute the same function"):
        check_same("some", placed, open_session(deploy(model).content, 1), images())


@pytest.mark.parametrize("kind", NETS)
def test_every_batch_norm_that_follows_a_convolution_is_folded(kind: str, tmp_path: Path) -> None:
    """ONNX Runtime's fast layout needs biases that are constants."""
    made = checked(net(NETS[kind]))
    assert set(made.forms.values()) == {Form.FLOAT}
    assert not made.rounds
    constants = {initializer.name for initializer in made.model.graph.initializer}
    for node in made.model.graph.node:
        assert node.op_type != "Conv" or set(node.input[1:]) <= constants
    found = kernels(made.content, tmp_path)
    assert found["Conv"] + found["FusedConv"] > 0
    assert found["BatchNormalization"] == (kind == "joined")


# Our own numbers


def initializers(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}


def test_scales_zero_points_codes_and_biases_are_ours_to_the_bit() -> None:
    checkpoint = static(RESIDUAL, Integer(bits=5))
    model = to_onnx(checkpoint)
    constants = initializers(model)
    found = {
        (constants[node.input[1]].item(), constants[node.input[2]].item())
        for node in model.graph.node
        if node.op_type == "QuantizeLinear"
    }
    steps = {(grid.scale, grid.zero_point) for grid in checkpoint.grids.values()}  # type: ignore[union-attr]
    assert found == steps
    assert all(constants[node.input[1]].dtype == np.float32 for node in of(model, "QuantizeLinear"))
    assert all(constants[node.input[2]].dtype == np.uint8 for node in of(model, "QuantizeLinear"))
    for layer in (name.removesuffix(".weight") for name in compressible(checkpoint.module)):
        weight, bias = (checkpoint.module.get_parameter(f"{layer}.{each}") for each in ("weight", "bias"))
        column = [-1, *[1] * (weight.dim() - 1)]
        codes, scale = constants[f"{layer}.weight"], constants[f"{layer}.weight/scale"]
        assert codes.dtype == np.int8
        assert not constants[f"{layer}.weight/zero"].any()
        again = torch.from_numpy(codes.astype(np.float32) * scale.reshape(column))
        assert torch.equal(again[2:], weight[2:])  # the channel before is next to nothing: any scale will do
        assert torch.allclose(again, weight, rtol=0, atol=1e-25)
        assert constants[f"{layer}.bias"].dtype == np.int32
        grid = checkpoint.grids[layer]
        assert isinstance(grid, InputGrid)
        step = constants[f"{layer}.bias/scale"]
        assert np.array_equal(step, unit(torch.tensor(scale), grid.scale).numpy())
        assert np.array_equal(constants[f"{layer}.bias"].astype(np.float32) * step, bias.detach().numpy())


def of(model: onnx.ModelProto, operator: str) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if node.op_type == operator]


@pytest.mark.parametrize("bits", range(1, 8))
def test_fewer_bits_are_cut_between_quantizing_and_dequantizing(bits: int) -> None:
    checkpoint = static(RESIDUAL, Integer(bits=4), bits)
    model = to_onnx(checkpoint)
    constants, after = initializers(model), {node.input[0]: node for node in model.graph.node if node.input}
    rounded = of(model, "QuantizeLinear")
    assert len(rounded) >= len(compressible(checkpoint.module))
    for node in rounded:
        clip = after[node.output[0]]
        assert clip.op_type == "Clip"
        assert constants[clip.input[2]] == np.uint8(2**bits - 1)
        assert after[clip.output[0]].op_type == "DequantizeLinear"


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("width", [5, 16, 40, 300])
@pytest.mark.parametrize(
    "kind", ["4 bits", "affine, 4 bits", "tensor", "group", "affine group", "ternary", "binary"]
)
def test_blocks_are_the_weight_to_the_bit(kind: str, width: int, masked: bool) -> None:
    weight = torch.randn(6, width, generator=torch.Generator().manual_seed(width))
    mask = weight.abs() > 0.3 if masked else None
    held = Constraints(levels=SCHEMES[kind].levels(weight, mask), mask=mask)
    weight = held.project(weight)
    found = packed(weight, held)
    assert found is not None
    blocks = -(-width // found.block)
    again = torch.zeros(6, blocks * found.block)
    for row in range(6):
        for column in range(blocks * found.block):
            block, place = divmod(column, found.block)
            code = int(found.codes[row, block, place // 2]) >> 4 * (place % 2) & 15
            zero = 8
            if found.zero_points is not None:
                zero = int(found.zero_points[row, block // 2]) >> 4 * (block % 2) & 15
            again[row, column] = (code - zero) * found.scale[row, block]
    assert torch.equal(again, nn.functional.pad(weight, (0, blocks * found.block - width)))
    assert found.codes.shape == (6, blocks, found.block // 2)


@pytest.mark.parametrize(
    "levels",
    [
        None,
        Integer(bits=5).levels(torch.randn(6, 40)),
        Integer(bits=4, group=20).levels(torch.randn(6, 40)),
        Codebook(entries=5).levels(torch.randn(6, 40)),
        PowerOfTwo(bits=3).levels(torch.randn(6, 40)),
    ],
    ids=["free", "5 bits", "groups of 20", "codebook", "power of two"],
)
def test_other_weights_have_no_blocks(levels: Levels | None) -> None:
    held = Constraints(levels=levels)
    assert packed(held.project(torch.randn(6, 40)), held) is None


# PyTorch's function


@pytest.mark.parametrize(
    ("kind", "inputs"),
    [
        *((kind, (0, 4, 8)[at % 3]) for at, kind in enumerate(SCHEMES)),
        *(
            pytest.param(kind, (0, 4, 8)[(at + more) % 3], marks=pytest.mark.slow)
            for at, kind in enumerate(SCHEMES)
            for more in (1, 2)
        ),
    ],
)
def test_every_scheme_is_the_same_function(kind: str, inputs: int) -> None:
    scheme = SCHEMES[kind]
    made = checked(static(RESIDUAL, scheme, inputs) if inputs else held_by(network(RESIDUAL), scheme))
    assert made.rounds == (inputs > 0 or Form.PACKED in made.forms.values())


ON_NETS = ("5 bits", "affine, 8 bits", "group", "binary", "power of two")


@pytest.mark.parametrize(
    ("architecture", "kind", "masked"),
    [
        pytest.param(a, k, (i + j) % 2 == 0, marks=pytest.mark.slow if (i + 2 * j) % 5 > 1 else ())
        for i, a in enumerate(NETS)
        for j, k in enumerate(ON_NETS)
    ],
)
def test_every_net_is_the_same_function(architecture: str, kind: str, masked: bool) -> None:
    """Each network with each kind of levels, both with a mask and without."""
    checked(static(NETS[architecture], SCHEMES[kind], masked=masked))


@pytest.mark.parametrize(
    ("kind", "bits"), [*zip(("3 bits", "group", "binary") * 3, [*range(1, 8), 1, 7], strict=True)]
)
def test_every_width_of_inputs_is_the_same_function(kind: str, bits: int) -> None:
    checked(static(RESIDUAL, SCHEMES[kind], bits))


@pytest.mark.parametrize("bits", range(1, 9))
def test_any_width_of_the_range_of_each_batch(bits: int) -> None:
    checked(dynamic(Mlp(hidden=(20,)), Integer(bits=4), bits))


def test_what_is_not_folded_yet_is_the_same_function_and_unpacked() -> None:
    """Its biases are its batch norms', which nobody has settled."""
    model = net(RESIDUAL)
    held = {
        name: Constraints(levels=EIGHT.levels(weight.detach()))
        for name, weight in compressible(model.module).items()
    }
    made = checked(model.narrowed(held, grids(folded(model), 8)))
    assert set(made.forms.values()) == {Form.FLOAT}


def clamped(bits: int) -> Checkpoint:
    """Return a model whose layers cut their inputs: to numbers, on one side, per channel, before a grid."""
    model = network(RESIDUAL)
    channels = Range(torch.zeros(6, 1, 1), torch.linspace(0.2, 1.0, 6).reshape(6, 1, 1))
    features = Range(torch.full((8,), 0.05), torch.linspace(0.3, 1.0, 8))
    ranges = {"stem.0": Range(-0.5, 0.7), "stages.0.conv1": channels, "head": features}
    model = model.narrowed({}, clamps={**ranges, "stages.0.conv2": Range(-math.inf, 0.4)})
    return held_by(model, EIGHT, grids(model, bits)) if bits else model


@pytest.mark.parametrize("bits", [0, 4, 8])
def test_clamps_are_the_same_function(bits: int) -> None:
    checked(clamped(bits))


@pytest.mark.parametrize(
    ("low", "high", "clips"),
    [(0.0, 1.0, 0), (-1.0, 9.0, 0), (-math.inf, math.inf, 0), (0.1, 9.0, 1), (-1.0, 0.9, 1)],
)
def test_a_clamp_is_left_out_where_the_grid_after_it_cuts_alike(
    low: float, high: float, clips: int, tmp_path: Path
) -> None:
    model = network(RESIDUAL)
    model = held_by(model, EIGHT, {**grids(model, 8), "stages.0.conv2": InputGrid(8, 1 / 255, 0)})
    made = checked(model.narrowed({}, clamps={"stages.0.conv2": Range(low, high)}))
    assert len(of(made.model, "Clip")) == clips
    assert (made.forms["stages.0.conv1"] is Form.INTEGERS) == (clips == 0)
    assert kernels(made.content, tmp_path)["QLinearConv"] == 6 - clips


def run_graph(graph: Graph, result: str, inputs: Tensor) -> Tensor:
    value = helper.make_tensor_value_info
    made = helper.make_graph(
        graph.nodes,
        "graph",
        [value("x", onnx.TensorProto.FLOAT, inputs.shape)],
        [value(result, onnx.TensorProto.FLOAT, inputs.shape)],
        list(graph.constants.values()),
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return torch.from_numpy(open_session(model.SerializeToString(), 1).run(None, {"x": inputs.numpy()})[0])


GRIDS = [
    InputGrid(8, 0.0137, 100),
    InputGrid(8, 0.02, 0),
    InputGrid(4, 0.3, 3),
    InputGrid(1, 1.1, 1),
    *(DynamicGrid(bits) for bits in (1, 2, 4, 7, 8)),
    *(DynamicGrid(bits, rows=True) for bits in (2, 8)),
]


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("shift", [-20.0, 0.0, 20.0])
def test_rounding_in_float32_is_pytorchs_to_the_bit(grid: Grid, shift: float) -> None:
    inputs = torch.randn(20_000, generator=torch.Generator().manual_seed(0)).reshape(20, 1000) * 3 + shift
    graph = Graph()
    assert torch.equal(run_graph(graph, rounded(graph, "x", grid), inputs), grid(inputs))


@pytest.mark.parametrize("grid", GRIDS[:4], ids=str)
def test_rounding_to_integers_is_pytorchs_but_at_the_edges_of_steps(grid: InputGrid) -> None:
    inputs = torch.randn(100_000, generator=torch.Generator().manual_seed(0)) * 3
    graph = Graph()
    found, expected = run_graph(graph, quantized(graph, "x", grid), inputs), grid(inputs)
    edge = (inputs / grid.scale - torch.floor(inputs / grid.scale) - 0.5).abs() < 1e-4
    assert torch.equal(found[~edge], expected[~edge])
    assert ((found - expected).abs() <= grid.scale * 1.001).all()


def test_two_layers_that_round_one_tensor_alike_round_it_once() -> None:
    graph = Graph()
    assert quantized(graph, "x", InputGrid(8, 0.1, 0)) == quantized(graph, "x", InputGrid(8, 0.1, 0))
    assert len(graph.nodes) == 2
    assert quantized(graph, "x", InputGrid(8, 0.1, 1)) != quantized(graph, "x", InputGrid(8, 0.1, 0))


@pytest.mark.parametrize("make", [network, static], ids=["float32", "static"])
def test_any_batch_and_no_image_minds_the_others(make: Callable[[Any], Checkpoint]) -> None:
    session = open_session(deploy(make(NETS["residual"])).content, 1)
    (image,), (logits,) = session.get_inputs(), session.get_outputs()
    assert (image.name, image.type, image.shape[1:]) == ("image", "tensor(float)", [*SHAPE])
    assert (logits.name, logits.type) == ("logits", "tensor(float)")
    pixels = torch.rand(128, *SHAPE, generator=torch.Generator().manual_seed(1)).numpy()
    whole_batch = session.run(None, {"image": pixels})[0]
    assert whole_batch.shape == (128, len(CLASSES))
    for count in (1, 3):
        part = session.run(None, {"image": pixels[:count]})[0]
        np.testing.assert_allclose(part, whole_batch[:count], rtol=1e-4, atol=1e-4)


def test_exporting_leaves_the_checkpoint_alone() -> None:
    checkpoint = static(RESIDUAL)
    before = predict(checkpoint.module, images(8))
    to_onnx(checkpoint)
    assert torch.equal(predict(checkpoint.module, images(8)), before)


# The file


@pytest.mark.parametrize(
    ("make", "domains"),
    [
        (lambda: network(Mlp(hidden=(20,))), {""}),
        (lambda: static(RESIDUAL), {""}),
        (lambda: held_by(network(Mlp(hidden=(20,))), Integer(bits=4)), {"", "com.microsoft"}),
        (lambda: static(NETS["depthwise"]), {""}),
    ],
    ids=["float32", "static", "packed", "other operators"],
)
def test_the_same_bytes_again_whole_silent_and_nothing_of_this_machine(
    make: Callable[[], Checkpoint],
    domains: set[str],
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    contents = [deploy(make()).content]
    monkeypatch.setattr(trace, "_graph", trace._graph.__wrapped__)  # traced again
    model, _ = make(), capfd.readouterr()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        contents.append(deploy(model).content)
        check_same("some", model, open_session(contents[1], 1), images())
    assert capfd.readouterr() == ("", "")
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
    assert logging.root.manager.disable == logging.NOTSET
    assert contents[0] == contents[1]
    read = onnx.load_from_string(contents[0])
    onnx.checker.check_model(read)
    assert not any(tensor.external_data for tensor in read.graph.initializer)
    assert {opset.domain for opset in read.opset_import} == domains
    root = Path(tasks.__file__).parent.parent
    for words in (
        str(root),
        str(Path(torch.__file__).parent),
        ".py",
        "site-packages",
        torch.__version__,
        "torch",
    ):
        assert words.encode() not in contents[0], words


def test_integers_are_a_quarter_of_the_bytes_and_four_bits_an_eighth() -> None:
    wide = Mlp(hidden=(256, 256))
    floats = len(deploy(network(wide)).content)
    assert len(deploy(static(wide)).content) < 0.27 * floats
    assert len(deploy(held_by(network(wide), Integer(bits=4))).content) < 0.15 * floats


# What is refused


@torch.library.custom_op("decant_tests::wobble", mutates_args=())
def wobble(inputs: Tensor) -> Tensor:
    return inputs.sin() * 2


@wobble.register_fake
def _(inputs: Tensor) -> Tensor:
    return torch.empty_like(inputs)


class Wobbling(Own):
    """An operator of our own, which ONNX does not know."""

    kind: Literal["wobbling"] = "wobbling"

    def build(self, shape: tuple[int, int, int], classes: int) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), classes), _Wobble())


class _Wobble(nn.Module):
    def forward(self, inputs: Tensor) -> Tensor:
        return wobble(inputs)


class Deciding(Own):
    """A network whose way depends on the picture."""

    kind: Literal["deciding"] = "deciding"

    def build(self, shape: tuple[int, int, int], classes: int) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), classes), _Decision())


class _Decision(nn.Module):
    def forward(self, inputs: Tensor) -> Tensor:
        return inputs if inputs.sum() > 0 else -inputs


@pytest.mark.parametrize(
    ("architecture", "words"),
    [
        (Wobbling(), r"'wobbling': .*decant_tests[.:]+wobble.*; the model itself is whole"),
        (Deciding(), r"'deciding': .*data-dependent.*; the model itself is whole"),
    ],
    ids=["operator", "decision"],
)
def test_what_onnx_cannot_say_is_named(
    architecture: Any, words: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(DecantError, match=rf"no operator for something in the architecture {words}") as told:
        deploy(net(architecture))
    assert "\n" not in str(told.value)
    assert capfd.readouterr() == ("", "")


def test_what_onnx_runtime_cannot_run_is_told() -> None:
    graph = Graph()
    result = graph.emit("Wobble", "x", domain="some.where")
    with pytest.raises(DecantError, match=r"onnxruntime .* cannot run the model: .*Wobble"):
        run_graph(graph, result, torch.zeros(1))
