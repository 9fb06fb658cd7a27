"""Where what convolutions give is rounded, so that runtimes multiply them as integers."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import decant
from decant.checkpoints.checkpoint import Checkpoint
from decant.examples import Examples, Rows, Splits
from decant.export.deploy import check_same, deploy
from decant.export.kernels import Form
from decant.export.runtime import open_session
from decant.inputs import TensorInput
from decant.lowering.folding import folded
from decant.networks.architectures import Lenet5, Resnet, build
from decant.networks.execution import predict
from decant.networks.python import Python
from decant.networks.record import give_example_
from decant.quantize import quantize
from decant.quantize.points import points
from tests.slow import slow_but

INT8 = {"scheme": {"kind": "integer", "bits": 8}, "activations": {"bits": 8}}
ABOVE_ZERO, ALL = (0.0, math.inf), (-math.inf, math.inf)


class Net(nn.Module):
    """Two convolutions, and between them what a test is about."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.norm, self.act = nn.BatchNorm2d(4), nn.PReLU(4)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.two(self.between(self.one(x))).relu().amax((2, 3)))

    def between(self, x: Tensor) -> Tensor:
        raise NotImplementedError


class NormBehindRectifier(Net):
    def between(self, x: Tensor) -> Tensor:
        return F.max_pool2d(self.norm(x.relu()), 2)


class Slopes(Net):
    def between(self, x: Tensor) -> Tensor:
        return self.act(x)


class Compiled(Net):
    """A rectifier that `torch.jit` compiled, which no hook can be put on."""

    def __init__(self) -> None:
        super().__init__()
        self.act = torch.jit.script(nn.Sequential(nn.ReLU()))

    def between(self, x: Tensor) -> Tensor:
        return self.act(x)


class Residual(Net):
    """A skip over a convolution, its batch norm and an addition in place, as torchvision writes them."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.relu = nn.ReLU(inplace=True)

    def between(self, x: Tensor) -> Tensor:
        x = self.relu(x)
        out = self.norm(self.inner(x))
        out += x
        return self.relu(out)


class InPlace(Net):
    """A rectifier in place behind a batch norm, whose result is read from before it as well."""

    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU(inplace=True)

    def between(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        return self.relu(x).amax(1, keepdim=True) + x


class Operators(Net):
    def between(self, x: Tensor) -> Tensor:
        return x * x.sigmoid()


class Plain(Net):
    def between(self, x: Tensor) -> Tensor:
        return F.max_pool2d(x.clamp(0, 6), 2)


class Six(Net):
    """A rectifier that ends at 6, where many inputs are, and ends written as whole numbers."""

    def __init__(self) -> None:
        super().__init__()
        with torch.no_grad():
            self.one.weight.mul_(20)

    def between(self, x: Tensor) -> Tensor:
        return F.relu6(x)


class Returned(Net):
    """What is rounded next is an output as well."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        seen = self.one(x).clamp(0, 1)
        return self.head(self.two(seen).relu().amax((2, 3))), seen


class Repeated(Net):
    def between(self, x: Tensor) -> Tensor:
        return self.act(self.act(x))


class Skipped(Net):
    """An activation whose input is read from before it as well."""

    def between(self, x: Tensor) -> Tensor:
        return self.act(x) + x


KINDS = (NormBehindRectifier, Slopes, Residual, InPlace, Operators, Plain, Six, Returned, Repeated, Skipped)
INTEGERS = {  # convolutions that are multiplied as integers; `two` is read by an operator, behind a rectifier
    NormBehindRectifier: {"one"},
    Slopes: {"one"},
    Residual: {"inner"},
    InPlace: {"one"},
    Plain: {"one"},
    Six: {"one"},
}


def trained(kind: type[Net]) -> nn.Module:
    """Return a network whose batch norm has statistics."""
    torch.manual_seed(3)
    module = kind()
    with torch.no_grad():
        for _ in range(5):
            module(torch.randn(16, 3, 8, 8) * 2 + 1)
        module.norm.weight.copy_(torch.tensor([1.5, -0.7, 0.9, 1.1]))
    return module.eval()


def checkpoint(kind: type[Net]) -> Checkpoint:
    takes = {"x": TensorInput(shape=(3, 8, 8))}
    return Checkpoint(Python.of(kind), takes, (), trained(kind))


def rows(count: int = 64) -> Examples:
    generator = torch.Generator().manual_seed(5)
    return Examples(Rows({"x": torch.randn(count, 3, 8, 8, generator=generator) * 2 + 1}), None, ())


def found(module: nn.Module, *wanted: str) -> dict[str, tuple[float, float]]:
    give_example_(module, (torch.randn(2, 3, 8, 8),))
    return points(module, ["two", "head"], wanted or ("one",))


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (NormBehindRectifier, {"norm": ABOVE_ZERO}),
        (Slopes, {"act": ALL}),
        (Operators, {}),
        (Plain, {}),  # the next layer rounds it
        (Repeated, {}),  # two tensors come to one module
        (Skipped, {}),
    ],
)
def test_results_are_rounded_where_one_module_reads_them(kind: type[Net], expected: dict[str, Any]) -> None:
    assert found(trained(kind)) == expected


def test_the_place_of_a_folded_norm_is_one() -> None:
    before = checkpoint(Residual)
    after = folded(before).module
    assert found(after, "one", "inner") == {"norm": ALL}
    assert found(before.module, "one", "inner") == {}  # it is going to be folded


def test_a_rectifier_that_works_in_place_keeps_what_others_see_of_it() -> None:
    after = folded(checkpoint(InPlace)).module
    assert found(after) == {"norm": ABOVE_ZERO}


def test_what_the_network_returns_as_it_is_stays_as_it_is() -> None:
    for last in (nn.Identity(), nn.Flatten(), nn.ReLU(inplace=True), nn.MaxPool2d(2)):
        module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Identity(), last)
        give_example_(module, (torch.randn(2, 3, 8, 8),))
        assert points(module, [], ["0"]) == {}


@pytest.mark.parametrize("architecture", [Resnet(widths=(8, 16), blocks=(0, 1)), Lenet5()])
def test_networks_of_this_package_round_all_results_already(architecture: Any) -> None:
    shape = (1, 28, 28)
    before = folded(
        Checkpoint(architecture, shape, tuple("abc"), build(architecture, shape, 3, seed=0).eval())
    )
    splits = Splits(*[Examples(torch.randint(0, 256, (8, *shape), dtype=torch.uint8), None, ())] * 2)
    model = quantize(before, INT8, splits).model
    assert Form.UNROUNDED not in deploy(model).forms.values()
    convolutions = [name for name, each in before.module.named_modules() if isinstance(each, nn.Conv2d)]
    assert points(before.module, list(model.grids), convolutions) == {}


@pytest.mark.parametrize("kind", slow_but({*KINDS} - {Plain, Six}, KINDS))
def test_what_is_rounded_is_deployed_as_integers(kind: type[Net], tmp_path: Path) -> None:
    parent, data = checkpoint(kind), rows()
    model = quantize(parent, INT8, Splits(data, data)).model
    deployed = deploy(model)
    integers = {name for name, form in deployed.forms.items() if form is Form.INTEGERS}
    assert integers - {"head"} == INTEGERS.get(kind, set())
    check_same(kind.__name__, model, open_session(deployed.content, 1), data.images)
    right, answer = (predict(each.module, data.images) for each in (parent, model))
    assert (answer - right).abs().max() < 0.05 * right.abs().max()
    decant.save(model, tmp_path / "model")
    again = decant.load(tmp_path / "model", build=kind)
    assert again.grids == model.grids
    assert torch.equal(predict(again.module, data.images), answer)


@pytest.mark.parametrize(
    "recipe",
    [
        {"activations": {"bits": 8, "dynamic": True}},
        {"scheme": {"kind": "power-of-two", "bits": 4}},
        {"scheme": {"kind": "integer", "bits": 8, "symmetric": False}},
        {"scheme": {"kind": "integer", "bits": 8, "group": 16}},
        {"skip": ["one.weight"]},
    ],
)
def test_convolutions_without_integer_kernels_keep_their_results(recipe: dict[str, Any]) -> None:
    data = rows()
    model = quantize(checkpoint(Slopes), {**INT8, **recipe}, Splits(data, data)).model
    assert "act" not in model.grids


def test_a_range_behind_a_rectifier_ends_at_zero() -> None:
    data = rows()
    for span in ({"kind": "min-max"}, {"kind": "mse"}, {"kind": "percentile"}):
        recipe = {**INT8, "activations": {"bits": 8, "range": span}}
        result = quantize(checkpoint(InPlace), recipe, Splits(data, data))
        assert result.model.grids["norm"].zero_point == 0
        assert "results of convolutions are rounded to 8 bits as well" in result.notes[0]


def test_what_is_in_a_compiled_part_is_not_looked_for() -> None:
    module = Compiled().eval()
    give_example_(module, (torch.rand(2, 3, 8, 8),))
    assert points(module, ["two", "head"], ["one"]) == {}
