"""Architectures by their published sizes; building is a function of the seed; networks hold their scale."""

import re
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from decant.costs.counts import parameters
from decant.errors import DecantError
from decant.examples import Examples
from decant.networks.architectures import (
    OWN,
    Architecture,
    Lenet5,
    Lenet300100,
    Mlp,
    Resnet,
    Shape,
    build,
)
from decant.networks.execution import predict
from decant.networks.layers import Normalize, fit_normalization_
from decant.networks.record import give_example_
from decant.networks.structure import compressible
from tasks.pipeline.params import read_section, validate

ARCHITECTURES = list(OWN)
REQUIRED: dict[str, dict[str, Any]] = {
    "resnet": {"widths": [4, 8], "blocks": [1, 1]},
    "mlp": {"hidden": [6]},
}
LARGE, DIGITS = (1, 28, 28), (1, 8, 8)


def any_architecture(kind: type[Mlp]) -> Architecture:
    name = kind.model_fields["kind"].default
    architecture: Architecture = validate({"kind": name, **REQUIRED.get(name, {})}, Architecture)
    return architecture


def images(count: int, shape: Shape, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, *shape), generator=generator).to(torch.uint8)


@pytest.mark.parametrize("kind", ARCHITECTURES)
@pytest.mark.parametrize("shape", [LARGE, DIGITS, (3, 32, 32), (2, 17, 23)])
def test_exam(kind: type[Mlp], shape: Shape) -> None:
    architecture = any_architecture(kind)
    try:
        module = build(architecture, shape, 7, seed=3).eval()
    except DecantError as error:
        assert f"these are {shape[1]} x {shape[2]}" in str(error)
        assert min(shape[1:]) < 16
        return
    logits = predict(module, images(5, shape))
    assert logits.shape == (5, 7)
    assert logits.dtype == torch.float32
    assert torch.isfinite(logits).all()
    assert not logits.requires_grad
    assert isinstance(module.get_submodule("normalize"), Normalize)
    assert all(parameter.requires_grad for parameter in module.parameters())
    # No layer is dead weight: every parameter has a gradient.
    module(images(5, shape).float() / 255).square().sum().backward()
    assert all(parameter.grad is not None for parameter in module.parameters())
    assert validate(architecture.model_dump(), Architecture) == architecture


def resnet(stages: list[tuple[int, int]], pool: int) -> Resnet:
    widths, blocks = zip(*stages, strict=True)
    return Resnet(widths=widths, blocks=blocks, pool=pool)


WIDTH = st.integers(1, 9)
DRAWN: dict[Any, st.SearchStrategy[Architecture]] = {
    Resnet: st.builds(
        resnet, st.lists(st.tuples(WIDTH, st.integers(0, 2)), min_size=1, max_size=4), st.integers(1, 4)
    ),
    Mlp: st.builds(lambda hidden: Mlp(hidden=tuple(hidden)), st.lists(WIDTH, min_size=1, max_size=4)),
    Lenet300100: st.just(Lenet300100()),
    Lenet5: st.just(Lenet5()),
}


@pytest.mark.parametrize("kind", ARCHITECTURES)
@given(data=st.data())
def test_the_weights_that_an_architecture_names_are_those_that_it_builds(kind: Any, data: Any) -> None:
    architecture, classes = data.draw(DRAWN[kind]), data.draw(WIDTH)
    shape = data.draw(st.tuples(st.integers(1, 4), st.integers(1, 40), st.integers(1, 40)))
    try:
        with torch.device("meta"):  # shapes alone, no memory
            module = architecture.build(shape, classes)
    except DecantError as error:
        with pytest.raises(DecantError, match=re.escape(str(error))):
            architecture.weights(shape, classes)
        return
    give_example_(module, (torch.zeros(1, *shape),))
    expected = [(name, tuple(weight.shape)) for name, weight in compressible(module).items()]
    assert list(architecture.weights(shape, classes).items()) == expected


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_the_weights_are_a_function_of_the_seed_alone(kind: type[Mlp]) -> None:
    architecture = any_architecture(kind)
    torch.manual_seed(1)
    one = build(architecture, LARGE, 10, seed=5).state_dict()
    torch.manual_seed(2)
    before = torch.random.get_rng_state()
    same = build(architecture, LARGE, 10, seed=5).state_dict()
    other = build(architecture, LARGE, 10, seed=6).state_dict()
    assert torch.equal(torch.random.get_rng_state(), before)
    assert one.keys() == same.keys() == other.keys()
    assert all(torch.equal(tensor, same[name]) for name, tensor in one.items())
    for name in compressible(build(architecture, LARGE, 10, seed=5)):
        assert not torch.equal(one[name], other[name])


def test_published_sizes() -> None:
    # Han et al., 2015, table 1: 267 thousand and 431 thousand.
    assert parameters(build(Lenet300100(), LARGE, 10, seed=0)) == 266_610
    assert parameters(build(Lenet5(), LARGE, 10, seed=0)) == 431_080


def test_the_default_teacher_has_the_size_that_params_yaml_says() -> None:
    architecture = read_section("teacher.architecture", Architecture)
    assert parameters(build(architecture, LARGE, 10, seed=0)) == 293_354


def test_a_residual_network_s_size_by_hand() -> None:
    module = build(Resnet(widths=(4, 8), blocks=(1, 1)), (3, 8, 8), 5, seed=0)
    stem = 3 * 4 * 9 + 2 * 4
    first = 2 * (4 * 4 * 9 + 2 * 4)
    second = (4 * 8 * 9 + 2 * 8) + (8 * 8 * 9 + 2 * 8) + (4 * 8 + 2 * 8)
    head = 8 * 5 + 5
    assert parameters(module) == stem + first + second + head


def test_a_stage_of_no_blocks_is_left_out() -> None:
    module = build(Resnet(widths=(4, 16, 8), blocks=(0, 0, 1)), LARGE, 5, seed=0)
    assert [name for name, _ in module.get_submodule("stages").named_children()] == ["0"]
    assert module.get_submodule("stages.0.conv1").weight.shape == (8, 4, 3, 3)  # type: ignore[union-attr]  # torch types every attribute as tensor or module
    only_stem = build(Resnet(widths=(4,), blocks=(0,)), LARGE, 5, seed=0)
    assert list(compressible(only_stem)) == ["stem.0.weight", "head.weight"]


def test_the_stem_and_each_later_stage_halve_the_picture() -> None:
    module = build(Resnet(widths=(4, 4, 4), blocks=(2, 2, 1)), (1, 32, 32), 5, seed=0).eval()
    sides = []
    for block in module.get_submodule("stages").children():
        block.register_forward_hook(lambda _, __, output: sides.append(output.shape[-1]))
    predict(module, images(1, (1, 32, 32)))
    assert sides == [16, 16, 8, 8, 4]


def test_lenet_5_refuses_small_pictures_in_words() -> None:
    with pytest.raises(DecantError, match="lenet-5 needs images of at least 16 x 16, these are 8 x 8"):
        build(Lenet5(), DIGITS, 10, seed=0)
    with pytest.raises(DecantError, match="these are 32 x 15"):
        build(Lenet5(), (1, 32, 15), 10, seed=0)
    assert build(Lenet5(), (1, 16, 16), 10, seed=0)(torch.zeros(1, 1, 16, 16)).shape == (1, 10)


@pytest.mark.parametrize(
    ("architecture", "words"),
    [
        ({"kind": "mlp", "hidden": []}, "hidden: needs 1 or more entries"),
        ({"kind": "mlp", "hidden": [0]}, r"hidden\.0: must be greater than 0"),
        ({"kind": "resnet", "widths": [4], "blocks": [1, 1]}, "widths has 1 entries and blocks 2"),
        ({"kind": "resnet", "widths": [4], "blocks": [-1]}, r"blocks\.0: must be greater than or equal to 0"),
    ],
)
def test_impossible_architectures_are_refused(architecture: dict[str, Any], words: str) -> None:
    with pytest.raises(DecantError, match=words):
        validate(architecture, Architecture)


# --- names


def test_compressible_are_the_weights_of_convolutions_and_linear_layers() -> None:
    module = build(Resnet(widths=(4, 8), blocks=(1, 1)), LARGE, 10, seed=0)
    assert list(compressible(module)) == [
        "stem.0.weight",
        "stages.0.conv1.weight",
        "stages.0.conv2.weight",
        "stages.1.conv1.weight",
        "stages.1.conv2.weight",
        "stages.1.shortcut.0.weight",
        "head.weight",
    ]
    assert all(weight is module.get_parameter(name) for name, weight in compressible(module).items())


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_what_is_left_alone_is_small(kind: type[Mlp]) -> None:
    module = build(any_architecture(kind), LARGE, 10, seed=0)
    named = dict(module.named_parameters())
    assert compressible(module).keys() <= named.keys()
    left = set(named) - set(compressible(module))
    assert all(named[name].dim() == 1 for name in left)


# --- scale and prediction


def test_normalization_by_a_second_look() -> None:
    shape = (3, 6, 6)
    module = build(Mlp(hidden=(4,)), shape, 3, seed=0)
    pictures = images(50, shape).float() / 255
    pictures[:, 1] *= 0.1
    fit_normalization_(module, pictures)
    normalized = module.get_submodule("normalize")(pictures)
    for channel in range(3):
        values = normalized[:, channel].double()
        assert values.mean().item() == pytest.approx(0, abs=1e-5)
        assert values.std().item() == pytest.approx(1, rel=1e-5)


def test_normalization_by_hand() -> None:
    module = build(Mlp(hidden=(4,)), (1, 1, 2), 3, seed=0)
    fit_normalization_(module, torch.tensor([[[[0.0, 1.0]]], [[[0.0, 1.0]]]]))
    normalize = module.get_submodule("normalize")
    assert isinstance(normalize, Normalize)
    assert normalize.mean.tolist() == [[[0.5]]]
    assert normalize.deviation.item() == pytest.approx((1 / 3) ** 0.5)


def test_a_constant_channel_does_not_make_nan() -> None:
    shape = (2, 8, 8)
    module = build(Resnet(widths=(4,), blocks=(1,)), shape, 3, seed=0).eval()
    pictures = images(20, shape)
    pictures[:, 0] = 77
    fit_normalization_(module, pictures.float() / 255)
    assert torch.isfinite(predict(module, pictures)).all()


def test_the_scale_is_part_of_the_model_and_is_not_trained() -> None:
    module = build(Mlp(hidden=(4,)), DIGITS, 3, seed=0)
    assert {"normalize.mean", "normalize.deviation"} <= module.state_dict().keys()
    assert not any("normalize" in name for name, _ in module.named_parameters())


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_an_answer_does_not_depend_on_the_batch(kind: type[Mlp]) -> None:
    shape = (1, 16, 16)
    module = build(any_architecture(kind), shape, 4, seed=1).eval()
    pictures = images(9, shape)
    whole = predict(module, pictures)
    for batch_size in (1, 4, 9):
        assert torch.allclose(predict(module, pictures, batch_size), whole, atol=1e-5)
    turned = predict(module, pictures.flip(0)).flip(0)
    assert torch.allclose(turned, whole, atol=1e-5)
    assert torch.equal(predict(module, pictures), whole)


def test_prediction_takes_pixels_in_bytes_and_asks_for_no_gradient() -> None:
    seen = []

    def record(inputs: torch.Tensor) -> torch.Tensor:
        seen.append((inputs.dtype, inputs.min().item(), inputs.max().item(), torch.is_grad_enabled()))
        return inputs.flatten(1)

    pictures = torch.tensor([0, 255], dtype=torch.uint8).reshape(1, 1, 1, 2)
    assert predict(record, pictures).tolist() == [[0.0, 1.0]]
    assert seen == [(torch.float32, 0.0, 1.0, False)]


def test_examples_know_their_shape_and_give_their_first() -> None:
    examples = Examples(images(9, (3, 4, 5)), torch.arange(9), tuple("abcdefghi"))
    assert examples.shape == (3, 4, 5)
    assert len(examples) == 9
    assert examples.first(2).labels.tolist() == [0, 1]
    assert torch.equal(examples.first(2).images, examples.images[:2])


class Mixed(nn.Module):
    """Convolutions of one and three dimensions, a norm, a table and a linear layer, called in this order."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.table = nn.Embedding(3, 2)
        self.norm = nn.BatchNorm2d(2)
        self.three = nn.Conv3d(2, 2, 3)
        self.one = nn.Conv1d(2, 2, 3)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        found = self.three(self.one(inputs)[..., None, None].expand(-1, -1, -1, 3, 3))
        found = self.norm(found.flatten(3)).mean((2, 3)) + self.table(torch.tensor([1]))
        result: torch.Tensor = self.linear(found)
        return result


def test_convolutions_of_every_dimension_and_nothing_else_are_compressible() -> None:
    module = Mixed().eval()
    give_example_(module, (torch.zeros(1, 2, 9),))
    assert list(compressible(module)) == ["one.weight", "three.weight", "linear.weight"]
