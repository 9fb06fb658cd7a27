"""What holds a deployed file to its model: logits within a step, the same predictions, exact sums."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from decant.checkpoints.activations import DynamicGrid, InputGrid
from decant.checkpoints.checkpoint import Checkpoint
from decant.errors import DecantError
from decant.examples import Rows
from decant.export.deploy import check_same, deploy
from decant.export.runtime import adds_in_16_bits, open_session
from decant.export.trace import INPUT
from decant.inputs import TensorInput
from decant.lowering.folding import folded
from decant.networks.architectures import Mlp, build
from decant.networks.execution import predict
from decant.networks.record import give_example_
from decant.networks.structure import compressible
from decant.quantize.schemes import Integer
from tests.nets import CLASSES, SHAPE, Depthwise, images, net
from tests.slow import every_second
from tests.test_export import EIGHT, RESIDUAL, grids, held_by, network


class Fake:
    """A session that answers with given logits, batch after batch."""

    def __init__(self, logits: Tensor) -> None:
        self._left = logits

    def get_inputs(self) -> list[SimpleNamespace]:
        return [SimpleNamespace(name="image")]

    def run(self, _: None, feed: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        (pixels,) = feed.values()
        now, self._left = self._left[: len(pixels)], self._left[len(pixels) :]
        return [now.numpy()]


class Fixed(nn.Module):
    """Answers with given logits to images whose first two pixels say which."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, inputs: Tensor) -> Tensor:
        first = (inputs.flatten(1)[:, :2] * 255).round().long()
        return self.logits[first[:, 0] * 256 + first[:, 1]]


def answering(logits: Tensor, *, is_rounded: bool) -> tuple[Checkpoint, Tensor]:
    numbers = torch.arange(len(logits))
    pictures = torch.stack([numbers // 256, numbers % 256], 1).to(torch.uint8).reshape(-1, 1, 1, 2)
    model = Checkpoint(RESIDUAL, (1, 1, 2), CLASSES, Fixed(logits))
    return (replace(model, grids={"head": InputGrid(8, 0.1, 0)}) if is_rounded else model), pictures


def logits_of(count: int) -> Tensor:
    """Return logits from 0 to 25.5 of which the first is the largest by far: a step is 0.1."""
    logits = torch.zeros(count, 4)
    logits[:, 0], logits[:, 1] = 25.5, 10.0
    return logits


def told(same: bool, words: str) -> AbstractContextManager[Any]:
    """Expect nothing where the functions are the same, and a refusal in these words where they are not."""
    return nullcontext() if same else pytest.raises(DecantError, match=words)


@pytest.mark.parametrize(
    ("count", "images_off", "by", "same"),
    [
        (100, 49, 0.0049, True),
        (100, 100, 0.0049, True),
        (100, 49, 0.099, True),
        (100, 51, 0.0051, False),
        (100, 1, 3.0, True),
        (100, 2, 0.101, False),
        (99, 1, 0.101, False),
        (1000, 10, 3.0, True),
        (1000, 11, 0.101, False),
        (100, 100, math.nan, False),
    ],
)
def test_a_step_is_of_8_bits_over_all_logits(count: int, images_off: int, by: float, same: bool) -> None:
    logits = logits_of(count)
    model, pictures = answering(logits, is_rounded=True)
    found = logits.clone()
    found[:images_off, 2] += by
    share = 0 if by < 0.1 else images_off / count
    with told(same, rf"in {share:.2%} of {count} images by more than 0\.1, and "):
        check_same("some", model, Fake(found), pictures)


@pytest.mark.parametrize(
    ("count", "flipped", "lead", "same"),
    [
        (100, 1, 0.19, True),
        (100, 1, 0.21, False),
        (100, 2, 0.05, False),
        (4000, 2, 0.05, True),
        (4000, 3, 0.05, False),
    ],
)
def test_predictions_differ_in_near_ties_alone_and_in_few(
    count: int, flipped: int, lead: float, same: bool
) -> None:
    logits = logits_of(count)
    logits[:flipped, 1] = logits[:flipped, 0] - lead
    model, pictures = answering(logits, is_rounded=True)
    found = logits.clone()
    found[:flipped, 0] -= 0.099
    found[:flipped, 1] = found[:flipped, 0] + 0.001
    # All within a step, or few enough beyond it: it is the predictions that are judged.
    with told(same, rf"and {flipped} predictions are other ones"):
        check_same("some", model, Fake(found), pictures)


@pytest.mark.parametrize(("off", "same"), [(1e-5, True), (1e-2, False)])
def test_float32_agrees_in_every_image(off: float, same: bool) -> None:
    logits = logits_of(1000)
    model, pictures = answering(logits, is_rounded=False)
    found = logits.clone()
    found[7, 3] += off
    with told(same, r"for some: logits differ by up to 0\.01, .* in 0\.10% of 1000"):
        check_same("some", model, Fake(found), pictures)


def changed(content: bytes, name: str, change: Callable[[np.ndarray], np.ndarray]) -> bytes:
    model = onnx.load_from_string(content)
    (found,) = (each for each in model.graph.initializer if each.name == name)
    found.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(found)), name))
    return model.SerializeToString()


LAYERS = sorted(compressible(build(RESIDUAL, SHAPE, len(CLASSES), seed=0)))


def fresh() -> Checkpoint:
    """Return a network of which every layer counts, as in one that was trained."""
    model = Checkpoint(RESIDUAL, SHAPE, CLASSES, build(RESIDUAL, SHAPE, len(CLASSES), seed=0).eval())
    return held_by(folded(model), EIGHT, grids(folded(model), 8))


@pytest.mark.parametrize("layer", every_second(LAYERS))
def test_a_scale_that_is_wrong_by_a_hundredth_is_found(layer: str) -> None:
    refused_when_changed(f"{layer}/scale", lambda scale: scale * np.float32(1.01))


@pytest.mark.parametrize("layer", LAYERS)
def test_channels_in_another_order_are_found(layer: str) -> None:
    refused_when_changed(layer, lambda codes: codes[::-1].copy())


def test_a_bias_that_is_off_is_found() -> None:
    refused_when_changed("stages.1.conv2.bias", lambda codes: codes + np.int32(3000))


def refused_when_changed(name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    checkpoint = fresh()
    content = deploy(checkpoint).content
    check_same("some", checkpoint, open_session(content, 1), images(256))
    with pytest.raises(DecantError, match=r"not compute the same function as PyTorch for some"):
        check_same("some", checkpoint, open_session(changed(content, name, change), 1), images(256))


# In float32: the size of what was summed


def large(model: Checkpoint, factor: float) -> Checkpoint:
    """Return the model with logits that many times as large."""
    module = copy.deepcopy(model.module)
    last: Any = [layer for layer in module.modules() if isinstance(layer, nn.Linear)][-1]
    with torch.no_grad():
        last.weight *= factor
        last.bias *= factor
    return replace(model, module=module)


def cancelling(size: float = 1000.0) -> Checkpoint:
    """Return a network whose hidden numbers are large and alike, so that little is left of their sums."""
    model = network(Mlp(hidden=(64,)))
    with torch.no_grad():
        model.module.get_parameter("layers.0.bias").add_(size)
        last = model.module.get_parameter("layers.2.weight")
        model.module.get_parameter("layers.2.bias").sub_(size * last.sum(1))
    return model


def equal_classes() -> Checkpoint:
    """Return a network two of whose classes have the same logits but for the order of their sums."""
    model = network(Mlp(hidden=(64,)))
    with torch.no_grad():
        last, hidden = (
            model.module.get_parameter("layers.2.weight"),
            model.module.get_parameter("layers.0.weight"),
        )
        hidden[32:], model.module.get_parameter("layers.0.bias")[32:] = hidden[:32], 0.0
        model.module.get_parameter("layers.0.bias")[:32] = 0.0
        last[1] = last[0].roll(32)
        model.module.get_parameter("layers.2.bias")[:2] = 5.0
    return model


def plain(architecture: Any) -> Checkpoint:
    """Return fresh weights: hardly anything in them is shut, as in a network that was trained."""
    module = build(architecture, SHAPE, len(CLASSES), seed=0).eval()
    return folded(Checkpoint(architecture, SHAPE, CLASSES, module))


MLP = Mlp(hidden=(64,))
IN_FLOAT: dict[str, Callable[[], Checkpoint]] = {
    "residual": lambda: plain(RESIDUAL),
    "depthwise": lambda: net(Depthwise()),
    "large logits": lambda: large(plain(MLP), 20_000.0),
    "small logits": lambda: large(plain(MLP), 1e-12),
    "huge logits": lambda: large(plain(RESIDUAL), 1e30),
    "cancelling": cancelling,
    "equal classes": equal_classes,
    "packed": lambda: held_by(large(plain(MLP), 5000.0), Integer(bits=4)),
    "codes": lambda: held_by(plain(RESIDUAL), Integer(bits=6)),
}


@pytest.mark.parametrize("kind", IN_FLOAT)
def test_a_right_export_is_accepted_whatever_the_size_of_its_logits(kind: str) -> None:
    model = IN_FLOAT[kind]()
    session = open_session(deploy(model).content, 1)
    for count in (1, 2, 200):
        check_same("some", model, session, images(count))


def one_weight_off(array: np.ndarray) -> np.ndarray:
    other = array.copy()
    other.flat[np.abs(array).argmax()] *= 1.01
    return other


def one_bit_off(array: np.ndarray) -> np.ndarray:
    """Flip the tenth bit of the mantissa of the largest number: a thousandth of it."""
    other = array.copy()
    other.view(np.uint32).flat[np.abs(array).argmax()] ^= np.uint32(1 << 13)
    return other


WRONG: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "one weight is off by a hundredth": one_weight_off,
    "one bit": one_bit_off,
    "two channels are swapped": lambda array: array[[1, 0, *range(2, len(array))]],
    "nothing of it": np.zeros_like,
}


def float_constants(content: bytes) -> list[str]:
    """Return the weights, scales and biases in float32 that there are for several channels."""
    return [
        each.name
        for each in onnx.load_from_string(content).graph.initializer
        if each.data_type == onnx.TensorProto.FLOAT and "norm" not in each.name and math.prod(each.dims) > 1
        if each.name.endswith((".weight", ".bias", "/scale"))
    ]


@pytest.mark.parametrize("kind", IN_FLOAT)
def test_a_wrong_export_is_refused_whatever_is_wrong(kind: str) -> None:
    """Wherever it shows: a weight behind a unit that is always shut is no part of the function."""
    model, refused = IN_FLOAT[kind](), 0
    content, pictures = deploy(model).content, images(60)
    right = run(content, pictures)
    shows = (3e-2 if kind == "cancelling" else 2e-5) * right.abs().max()
    changes = [
        wrong
        for name in float_constants(content)[:4]
        for change in WRONG.values()
        if (wrong := changed(content, name, change)) != content
        and (run(wrong, pictures) - right).abs().max() > shows
    ]
    for wrong in changes:
        with pytest.raises(DecantError, match=r"does not compute the same function as PyTorch for some"):
            check_same("some", model, open_session(wrong, 1), pictures)
        refused += 1
    assert refused >= 4


def run(content: bytes, pictures: Tensor) -> Tensor:
    session = open_session(content, 1)
    return predict(lambda inputs: torch.from_numpy(session.run(None, {INPUT: inputs.numpy()})[0]), pictures)


def test_logits_that_are_no_numbers_are_refused() -> None:
    model = large(plain(MLP), 1e38)
    session = open_session(deploy(model).content, 1)
    model = large(model, 1e38)
    with pytest.raises(DecantError, match=r"logits of some are NaN or infinite in PyTorch"):
        check_same("some", model, session, images(10))


# The processor


@pytest.mark.parametrize(
    ("processor", "cut"),
    [
        ({"architecture": "x86_64", "avx2": True, "avx512_vnni": False, "avx_vnni": False}, True),
        ({"architecture": "x86_64", "avx512_vnni": True, "avx_vnni": False}, False),
        ({"architecture": "x86_64", "avx512_vnni": False, "avx_vnni": True}, False),
        ({"architecture": "arm64", "neon": True}, False),
    ],
    ids=["avx2", "avx512", "avx", "arm"],
)
def test_exact_sums_are_asked_for_where_they_would_be_cut(
    processor: dict[str, Any], cut: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert adds_in_16_bits(processor) == cut
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: processor)
    options = open_session(deploy(network(RESIDUAL)).content, 3).get_session_options()
    assert options.intra_op_num_threads == 3
    if cut:
        assert options.get_session_config_entry("session.x64quantprecision") == "1"
    else:
        with pytest.raises(RuntimeError, match="not have configuration"):
            options.get_session_config_entry("session.x64quantprecision")


def test_a_program_that_does_not_know_of_the_option_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    cutting = {"architecture": "x86_64", "avx512_vnni": False, "avx_vnni": False}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: cutting)
    plain = open_session(deploy(network(RESIDUAL)).content, 1, exact=False).get_session_options()
    with pytest.raises(RuntimeError, match="not have configuration"):
        plain.get_session_config_entry("session.x64quantprecision")


@pytest.mark.parametrize("bits", [8, 7])
def test_a_plain_session_cuts_sums_of_8_bits_where_the_processor_does_and_those_of_7_never(bits: int) -> None:
    """Weights of one size and sign, inputs at the end of their grid: two products are 254 or 126 x 255."""
    model = network(Mlp(hidden=(8,)))
    with torch.no_grad():
        model.module.get_parameter("layers.0.weight").fill_(0.1)
    child = held_by(model, Integer(bits=bits), grids(model, 8))
    session = open_session(deploy(child).content, 1, exact=False)
    bright = torch.full((4, *SHAPE), 255, dtype=torch.uint8)
    expected = predict(child.module, bright)
    found = predict(lambda inputs: torch.from_numpy(session.run(None, {INPUT: inputs.numpy()})[0]), bright)
    off = ((found - expected).abs().max() / expected.abs().max()).item()
    cut = bits == 8 and adds_in_16_bits(torch.cpu.get_capabilities())
    assert off > 0.1 if cut else off < 1e-3


class Chaotic(nn.Module):
    """Doubles a difference in the last bit again and again, as dozens of layers on grids do."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).sigmoid()
        for _ in range(60):
            x = 3.99 * x * (1 - x)
        return x


class Named(Fake):
    def get_inputs(self) -> list[SimpleNamespace]:
        return [SimpleNamespace(name="x")]


def test_where_edges_decide_all_answers_pytorch_is_the_measure() -> None:
    torch.manual_seed(0)
    module, rows = Chaotic().eval(), Rows({"x": torch.randn(400, 6)})
    give_example_(module, (rows.tensors["x"][:2],))
    plain = Checkpoint(None, {"x": TensorInput(shape=(6,))}, (), module)
    model = plain.narrowed({}, {"first": DynamicGrid(8)})
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.module.get_parameter("first.bias").add_(1e-6)
    found = predict(other.module, rows)
    assert (found - predict(model.module, rows)).abs().amax(1).median() > 0.5  # of outputs in [0, 1]
    check_same("chaos", model, Named(found), rows)
    for wrong in (found + 0.1, found * 0.7, torch.zeros_like(found)):
        with pytest.raises(DecantError, match="not compute the same function as PyTorch for chaos"):
            check_same("chaos", model, Named(wrong), rows)
