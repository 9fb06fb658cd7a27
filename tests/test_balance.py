"""Sizes moved between layers, and means put right: the same function, by hand and against plain hooks."""

import copy
import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from decant.checkpoints.activations import DynamicGrid, InputGrid
from decant.checkpoints.checkpoint import Checkpoint
from decant.checkpoints.constraints import Constraints, Range
from decant.errors import DecantError
from decant.examples import Examples, pixels
from decant.lowering.folding import folded
from decant.networks.architectures import Mlp, Resnet, build
from decant.networks.execution import predict
from decant.networks.layers import Summand
from decant.networks.structure import compressible
from decant.quantize import bias_correction, equalization
from decant.quantize.bias_correction import corrected, mean_outputs
from decant.quantize.equalization import Pair, equalized, pairs_of, ranges, scale_, smoothed
from decant.quantize.params import QuantizeParams
from decant.quantize.recipe import Recipe
from decant.quantize.schemes import Integer
from tasks.pipeline.params import validate
from tests.drawn import drawn
from tests.nets import NETS, Looped, net
from tests.nets import images as pictures


def photos(count: int = 12, side: int = 8, seed: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 1, side, side), generator=generator).to(torch.uint8)


def toy(*layers: nn.Module, shape: tuple[int, int, int] = (1, 8, 8), seed: int = 0) -> Checkpoint:
    """Return layers as a checkpoint, their weights drawn and their channels of very different sizes."""
    module = nn.Sequential(*layers).eval()
    with torch.no_grad():
        for number, parameter in enumerate(module.parameters()):
            size = drawn(seed + 50 + number, len(parameter)).exp().reshape(-1, *[1] * (parameter.dim() - 1))
            parameter.copy_(drawn(seed + number, *parameter.shape) * size / math.sqrt(parameter[0].numel()))
    return Checkpoint(Mlp(hidden=(1,)), shape, ("a", "b", "c"), module)


def by_hand(*numbers: Sequence[Any]) -> Checkpoint:
    """Return one pixel, two hidden channels, one output, with these weights and biases."""
    parent = toy(nn.Flatten(), nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 1), shape=(1, 1, 1))
    with torch.no_grad():
        for parameter, values in zip(parent.module.parameters(), numbers, strict=True):
            parameter.copy_(torch.tensor(values))
    return parent


def chain() -> Checkpoint:
    return toy(
        nn.Conv2d(1, 4, 3),
        nn.ReLU(),
        nn.Conv2d(4, 6, 3, bias=False),
        nn.LeakyReLU(0.1),
        nn.AvgPool2d(2),
        nn.Conv2d(6, 5, 1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(5, 3),
    )


def grouped() -> Checkpoint:
    return toy(
        nn.Conv2d(1, 8, 3),
        nn.ReLU(),
        nn.Conv2d(8, 12, 3, groups=4),
        nn.ReLU(),
        nn.Conv2d(12, 6, 3, groups=2),
        nn.ReLU(),
        nn.AdaptiveMaxPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 3),
    )


def depthwise() -> Checkpoint:
    return toy(
        nn.Conv2d(1, 6, 3),
        nn.ReLU(),
        nn.Conv2d(6, 6, 3, groups=6),
        nn.ReLU(),
        nn.Conv2d(6, 4, 1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(4 * 16, 3),
    )


def flattened() -> Checkpoint:
    return toy(
        nn.Conv2d(1, 3, 3),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(27, 7),
        nn.PReLU(),
        nn.Linear(7, 3),
    )


def tokens() -> Checkpoint:
    return toy(nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3))


TOYS = {"chain": chain, "grouped": grouped, "depthwise": depthwise, "flattened": flattened}


def names(checkpoint: Checkpoint) -> list[str]:
    return list(compressible(checkpoint.module))


def every_pair(checkpoint: Checkpoint) -> list[Pair]:
    return [Pair(*pair) for pair in pairwise(names(checkpoint))]


def wide(checkpoint: Checkpoint, images: Tensor) -> Tensor:
    """Return the logits in float64."""
    with torch.no_grad():
        return copy.deepcopy(checkpoint.module).double()(pixels(images).double())


def assert_same_function(before: Checkpoint, after: Checkpoint, images: Tensor) -> None:
    expected = wide(before, images)
    assert (wide(after, images) - expected).abs().max() < 1e-6 * expected.abs().max()


# --- which layers are pairs


@pytest.mark.parametrize("kind", TOYS)
def test_layers_with_what_is_homogeneous_between_them_are_pairs(kind: str) -> None:
    parent = TOYS[kind]()
    assert pairs_of(parent, photos()) == (every_pair(parent), {})


@pytest.mark.parametrize(
    "between",
    [nn.ReLU6(), nn.Hardtanh(), nn.Sigmoid(), nn.GELU(), nn.Softplus(), nn.LayerNorm(6), nn.Hardswish()],
    ids=repr,
)
def test_saturations_and_what_mixes_channels_let_no_factor_pass(between: nn.Module) -> None:
    parent = toy(nn.Flatten(), nn.Linear(64, 6), between, nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    pairs, skipped = pairs_of(parent, photos())
    assert pairs == [Pair("3.weight", "5.weight")]
    assert skipped == {
        "1.weight": "its channels do not go to 3.weight alone, or not through what lets a factor pass"
    }


class Twice(nn.Module):
    """What the first layer gives has two readers, or is added to; what the third gives has one."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.first, self.second = nn.Linear(64, 4), nn.Linear(4, 4)
        self.third, self.last = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.first(inputs.flatten(1)).relu()
        more = hidden if self.kind == "addition" else self.second(hidden).flip(1)
        other = self.second(hidden).relu() + more
        return self.last(self.third(other).relu())


def test_a_second_reader_or_an_addition_is_no_pair() -> None:
    parent = toy(Twice("addition"))
    pairs, skipped = pairs_of(parent, photos())
    assert pairs == [Pair("0.third.weight", "0.last.weight")]
    assert skipped.keys() == {"0.first.weight", "0.second.weight"}
    # A layer that runs twice is scaled for both of its readings; what it gives itself is flipped, and mixed.
    pairs, skipped = pairs_of(toy(Twice("reader")), photos())
    assert pairs == [Pair("0.first.weight", "0.second.weight"), Pair("0.third.weight", "0.last.weight")]
    assert skipped.keys() == {"0.second.weight"}


def test_pairs_of_networks_with_branches() -> None:
    def found(checkpoint: Checkpoint) -> tuple[list[tuple[str, str]], dict[str, str]]:
        pairs, skipped = pairs_of(checkpoint, pictures(8))
        return [(pair.first, pair.second) for pair in pairs], skipped

    residual, skipped = found(folded(net(NETS["residual"])))
    assert residual == [(f"stages.{n}.conv1.weight", f"stages.{n}.conv2.weight") for n in range(3)]
    assert skipped.keys() == {
        "stem.0.weight",
        *(f"stages.{n}.conv2.weight" for n in range(3)),
        "stages.2.shortcut.0.weight",
    }
    joined, skipped = found(folded(net(NETS["joined"])))
    assert joined == [("both.weight", "head.weight")]
    assert skipped == {
        "left.weight": "both.weight does not read its 5 channels",
        "right.weight": "both.weight does not read its 4 channels",
    }
    assert found(folded(net(NETS["grouped"])))[0] == [
        ("0.weight", "3.weight"),
        ("3.weight", "6.weight"),
        ("6.weight", "10.weight"),
    ]
    assert found(folded(net(NETS["depthwise"])))[0] == []
    assert found(folded(net(NETS["flattened"])))[0] == []
    assert found(net(Looped()))[0] == [("after.weight", "head.weight")]


@pytest.mark.parametrize("between", [nn.ReLU6(), nn.Threshold(0.1, 0.0)], ids=repr)
@pytest.mark.parametrize("width", [1, 6])
def test_limits_that_these_images_never_reach_are_seen_all_the_same(between: nn.Module, width: int) -> None:
    """Channels are tried both larger and smaller, be there only one."""
    parent = toy(nn.Flatten(), nn.Linear(64, width), between, nn.Linear(width, 3))
    with torch.no_grad():
        parent.module.get_parameter("1.weight").mul_(1e-3)
        parent.module.get_parameter("1.bias").fill_(0.3)
    assert pairs_of(parent, photos())[0] == []


def test_rows_of_a_picture_as_tokens() -> None:
    """Linear layers work along the last axis, and flattening them does not keep channels together."""
    parent = tokens()
    for after, pairs, skipped in (equalized(parent, photos()), smoothed(parent, photos(), 0.5)):
        assert pairs == [Pair("0.weight", "2.weight")]
        assert skipped.keys() == {"2.weight"}
        assert_same_function(parent, after, photos(seed=4))
    read = ranges(smoothed(parent, photos(), 0.5)[0].module, Pair("0.weight", "2.weight"))[1]
    hidden = parent.module[1](parent.module[0](pixels(photos()))).flatten(0, 2).amax(0)  # type: ignore[index]
    expected = (hidden * ranges(parent.module, Pair("0.weight", "2.weight"))[1]).sqrt()
    on = hidden > 0
    assert int(on.sum()) > 1
    torch.testing.assert_close(read[on], expected[on], rtol=1e-4, atol=0)


def test_a_channel_that_is_never_on_proves_nothing_and_does_no_harm() -> None:
    parent, images = chain(), photos()
    with torch.no_grad():
        parent.module.get_parameter("0.bias")[2] = -1000.0
    after, pairs, _ = equalized(parent, images)
    assert pairs == every_pair(parent)
    assert_same_function(parent, after, photos(seed=4))


# --- one pair


@pytest.mark.parametrize("kind", TOYS)
def test_powers_of_two_pass_through_every_pair_to_the_bit(kind: str) -> None:
    parent, images = TOYS[kind](), photos()
    for seed, pair in enumerate(every_pair(parent)):
        after = copy.deepcopy(parent.module).double()
        count = len(after.get_parameter(pair.first))
        factors = (drawn(seed, count) * 4).round().double().exp2()
        before = {name: tensor.clone() for name, tensor in after.state_dict().items()}
        scale_(after, pair, factors)
        assert torch.equal(after(pixels(images).double()), wide(parent, images))
        first = before[pair.first] / factors.reshape(-1, *[1] * (before[pair.first].dim() - 1))
        assert torch.equal(after.get_parameter(pair.first), first)
        layers = {pair.first.removesuffix(".weight"), pair.second.removesuffix(".weight")}
        moved = {name for name, tensor in after.state_dict().items() if not torch.equal(tensor, before[name])}
        assert {name.rpartition(".")[0] for name in moved} == layers
        assert f"{pair.second.removesuffix('weight')}bias" not in moved


def naive_ranges(module: nn.Module, pair: Pair) -> tuple[list[float], list[float]]:
    """Return what gives and what reads each channel, weight by weight."""
    first, second = (module.get_parameter(name) for name in (pair.first, pair.second))
    layer: Any = module.get_submodule(pair.second.removesuffix(".weight"))
    given = [max(map(abs, row.flatten().tolist())) for row in first]
    read, groups = [0.0] * len(first), getattr(layer, "groups", 1)
    inputs = second.shape[1] * groups // len(first)  # of each channel, behind a flattening
    for output, row in enumerate(second):
        group = output // (len(second) // groups)
        for place, weights in enumerate(row):
            channel = (group * second.shape[1] + place) // inputs
            read[channel] = max(read[channel], *map(abs, weights.flatten().tolist()))
    return given, read


@pytest.mark.parametrize("kind", TOYS)
def test_ranges_are_those_of_a_loop_over_weights(kind: str) -> None:
    parent = TOYS[kind]()
    for pair in every_pair(parent):
        given, read = ranges(parent.module, pair)
        expected = naive_ranges(parent.module, pair)
        assert (given.tolist(), read.tolist()) == expected


# --- equalization


def test_equalization_by_hand() -> None:
    # r = (4, 1) and r' = (1, 4): s = (2, 1/2) makes all of them 2; the biases go with the channels.
    parent = by_hand([[4.0], [1.0]], [8.0, -3.0], [[1.0, -4.0]], [5.0])
    after, pairs, skipped = equalized(parent, photos(4, 1))
    assert (pairs, skipped) == ([Pair("1.weight", "3.weight")], {})
    found = [parameter.tolist() for parameter in after.module.parameters()]
    assert found == [[[2.0], [2.0]], [4.0, -6.0], [[2.0, -2.0]], [5.0]]


@pytest.mark.parametrize("kind", TOYS)
def test_equalized_networks_compute_the_same_with_equal_ranges_in_all_pairs_at_once(kind: str) -> None:
    parent, images = TOYS[kind](), photos()
    before = copy.deepcopy(parent.module.state_dict())
    after, pairs, _ = equalized(parent, images)
    assert_same_function(parent, after, photos(seed=4))
    for pair in pairs:
        given, read = ranges(parent.module, pair)
        assert (given / read).log().abs().max() > 0.5
        given, read = ranges(after.module, pair)
        free = ~at_bound(after.module, pair, biases_alone=True)
        assert int(free.sum()) > 1
        torch.testing.assert_close(given[free], read[free], rtol=1e-5, atol=0)
        assert (given[~free] <= read[~free] * (1 + 1e-5)).all()
    assert all(torch.equal(tensor, before[name]) for name, tensor in parent.module.state_dict().items())
    again, _, _ = equalized(after, images)
    for name, parameter in again.module.named_parameters():
        torch.testing.assert_close(parameter, after.module.get_parameter(name), rtol=1e-5, atol=1e-9)


def at_bound(module: nn.Module, pair: Pair, *, biases_alone: bool = False) -> Tensor:
    """Return the channels that are as large as anything in their layer, so that they must not grow."""
    layer: Any = module.get_submodule(pair.first.removesuffix(".weight"))
    rows = layer.weight.detach().abs().flatten(1).amax(1)
    biases = torch.zeros_like(rows) if layer.bias is None else layer.bias.detach().abs()
    sizes = rows.maximum(biases)
    return (biases if biases_alone else sizes) >= sizes.max() * (1 - 1e-5)


NEARLY_DEAD = [1e-3, 1e-5, 1e-12, 1e-38, 0.0]


@pytest.mark.parametrize("balance", [{"equalize": True}, {"smooth": 0.5}], ids=["equalize", "smooth"])
@pytest.mark.parametrize("size", NEARLY_DEAD)
def test_a_channel_that_is_its_bias_alone_does_not_fill_the_grid_of_the_others(
    size: float, balance: dict[str, Any]
) -> None:
    """Batch norm has shut channels but for their biases; by plain torch, what rounding then moves."""
    architecture = Resnet(widths=(8, 16), blocks=(0, 1), pool=2)
    module = build(architecture, (1, 8, 8), 4, 0).eval()
    norm: Any = module.get_submodule("stages.0.norm1")
    with torch.no_grad():
        norm.bias.copy_(drawn(1, len(norm.bias)).abs() * 0.2 + 0.1)
        norm.weight[[3, 7, 8]] = size
    images = photos(48)
    examples = Examples(images, torch.zeros(48).long(), tuple("abcd"))
    parent = Checkpoint(architecture, (1, 8, 8), examples.classes, module)
    wanted = predict(module, images)

    def moved(**more: Any) -> float:
        whole = {"kind": "integer", "bits": 8, "per_channel": False}
        block = {
            "op": "quantize",
            "from": "teacher",
            "scheme": whole,
            "activations": {"bits": 8},
            "images": 48,
        }
        recipe = Recipe(validate(block | more, QuantizeParams), parent, parent, examples, examples)
        return (predict(recipe.rounded().model.module, images) - wanted).abs().mean().item()

    assert moved(**balance) <= 2 * moved()


@pytest.mark.parametrize("size", [1e-8, 1e-20, 1e-38, 1e-44, 0.0])
def test_next_to_nothing_is_left_alone_as_nothing_is(size: float) -> None:
    parent = chain()
    with torch.no_grad():
        parent.module.get_parameter("0.weight")[1] *= size
        parent.module.get_parameter("2.weight")[:, 2] *= size
    for after in (equalized(parent, photos())[0], smoothed(parent, photos(), 0.5)[0]):
        assert_same_function(parent, after, photos(seed=4))
        assert after.module.get_parameter("0.bias")[2] == parent.module.get_parameter("0.bias")[2]
    after, _, _ = equalized(parent, photos())
    assert torch.equal(after.module.get_parameter("0.weight")[1], parent.module.get_parameter("0.weight")[1])


def test_what_hardly_shows_on_the_images_does_not_grow_beyond_all_others() -> None:
    """A channel that passes a rectifier by a hair has inputs of next to nothing, and ordinary weights."""
    parent, images = by_hand([[4.0], [1.0]], [8.0, 0.0], [[1.0, -4.0]], [5.0]), photos(4, 1)
    for size in (1e-3, 1e-5, 1e-7, 1e-12):
        with torch.no_grad():
            parent.module.get_parameter("1.weight")[1] = -1.0
            parent.module.get_parameter("1.bias")[1] = images.min() / 255 + size
        after, _, _ = smoothed(parent, images, 0.5)
        weights = after.module.get_parameter("1.weight").flatten()
        assert weights[1].abs() <= 8.0  # the largest of the layer: the other channel's bias


def test_what_is_rounded_between_two_layers_keeps_their_sizes() -> None:
    parent = toy(nn.Conv2d(1, 4, 3), nn.ReLU(), Summand(), nn.Flatten(), nn.Linear(144, 3), shape=(1, 8, 8))
    assert pairs_of(parent, photos())[0]
    rounding = parent.narrowed({}, {"2": InputGrid(8, 0.01, 0)})
    pairs, skipped = pairs_of(rounding, photos())
    assert (pairs, skipped) == ([], {"0.weight": "what lies between is clamped or rounded"})


def test_sizes_that_float32_does_not_hold_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(equalization, "NOTHING", 0.0)
    parent = by_hand([[1e-30], [1.0]], [0.0, 0.0], [[1e30, 1e-3]], [0.0])
    with torch.no_grad():  # the largest size of the second layer is beyond float32 once it is multiplied
        work = copy.deepcopy(parent.module).double()
        scale_(work, Pair("1.weight", "3.weight"), torch.tensor([1e20, 1.0]).double())
    with pytest.raises(DecantError, match=r"cannot be moved between layers in float32: logits move by up to"):
        equalization._with_weights_of(parent, work, photos(4, 1))


@given(st.integers(0, 10**6), st.sampled_from([*TOYS]))
def test_the_product_of_both_ranges_stays(seed: int, kind: str) -> None:
    """In a single pair, r r' of each channel is what it was: s takes from one what it gives to the other."""
    parent = TOYS[kind]()
    pair = every_pair(parent)[seed % len(every_pair(parent))]
    module = copy.deepcopy(parent.module).double()
    with torch.no_grad():
        module.get_parameter(pair.first).mul_(drawn(seed, 1).exp())
    before = [each.clone() for each in ranges(module, pair)]
    scale_(module, pair, drawn(seed, len(before[0])).double().exp())
    given, read = ranges(module, pair)
    torch.testing.assert_close(given * read, before[0] * before[1])
    assert not torch.allclose(given, before[0], rtol=0.01)


def test_channels_of_zeros_stay_as_they_are() -> None:
    parent = chain()
    with torch.no_grad():
        parent.module.get_parameter("0.weight")[1] = 0.0
        parent.module.get_parameter("2.weight")[:, 2] = 0.0
    for after in (equalized(parent, photos())[0], smoothed(parent, photos(), 0.5)[0]):
        assert all(torch.isfinite(parameter).all() for parameter in after.module.parameters())
        assert_same_function(parent, after, photos(seed=4))
        moved = after.module.get_parameter("0.bias") != parent.module.get_parameter("0.bias")
        assert not moved[2]
        assert moved[[0, 3]].all()
    assert not (
        equalized(parent, photos())[0].module.get_parameter("0.bias") != parent.module.get_parameter("0.bias")
    )[1]


def test_it_helps_one_scale_for_a_whole_tensor() -> None:
    parent, images = depthwise(), photos(40)
    after, _, _ = equalized(parent, images)

    def moved(checkpoint: Checkpoint) -> float:
        scheme = Integer(bits=6, per_channel=False)
        child = checkpoint.narrowed(
            {n: Constraints(levels=scheme.levels(w)) for n, w in compressible(checkpoint.module).items()}
        )
        return (wide(child, images) - wide(parent, images)).square().mean().item()

    assert moved(after) < 0.5 * moved(parent)


# --- smoothing


def largest_inputs(checkpoint: Checkpoint, layer: str, images: Tensor) -> Tensor:
    """Return the largest size of each of a layer's input channels, by a hook."""
    seen: list[Tensor] = []
    hook = checkpoint.module.get_submodule(layer).register_forward_pre_hook(
        lambda _, given: seen.append(given[0])
    )
    with torch.no_grad():
        checkpoint.module(pixels(images))
    hook.remove()
    return seen[0].abs().movedim(1, 0).flatten(1).amax(1)


@pytest.mark.parametrize("strength", [0.25, 0.5, 0.75])
def test_smoothing_by_hand(strength: float) -> None:
    # Pixels are 0 and 1, the second layer receives up to 4 + 8 and 1 + 2; its weights are 1 and 4.
    parent = by_hand([[4.0], [1.0]], [8.0, 2.0], [[1.0, -4.0]], [5.0])
    images = torch.tensor([0, 255, 0], dtype=torch.uint8).reshape(3, 1, 1, 1)
    after, pairs, _ = smoothed(parent, images, strength)
    first, second = 12.0**strength, 3.0**strength / 4.0 ** (1 - strength)
    found = [parameter.flatten().tolist() for parameter in after.module.parameters()]
    assert pairs == [Pair("1.weight", "3.weight")]
    expected = [[4 / first, 1 / second], [8 / first, 2 / second], [first, -4 * second], [5.0]]
    for numbers, wanted in zip(found, expected, strict=True):
        assert numbers == pytest.approx(wanted)


@pytest.mark.parametrize("kind", TOYS)
def test_smoothed_networks_compute_the_same(kind: str) -> None:
    parent, images = TOYS[kind](), photos()
    before = copy.deepcopy(parent.module.state_dict())
    after, pairs, skipped = smoothed(parent, images, 0.5)
    assert (pairs, skipped) == (every_pair(parent), {})
    assert_same_function(parent, after, photos(seed=4))
    assert all(torch.equal(tensor, before[name]) for name, tensor in parent.module.state_dict().items())
    # At one half both reach equally far, in the last pair, whose second layer no other pair moves.
    last = pairs[-1]
    inputs = largest_inputs(after, last.second.removesuffix(".weight"), images)
    read = torch.tensor(naive_ranges(after.module, last)[1])
    inputs = inputs.reshape(len(read), -1).amax(1)
    bound = at_bound(after.module, last)
    assert (inputs[bound] <= read[bound] * (1 + 1e-4)).all()
    on = (inputs > 0) & ~bound
    assert int(on.sum()) > 1
    torch.testing.assert_close(inputs[on], read[on], rtol=1e-4, atol=0)


def test_the_largest_inputs_are_those_of_all_batches() -> None:
    parent = by_hand([[4.0], [1.0]], [0.0, 0.0], [[1.0, 1.0]], [0.0])
    dark = torch.full((600, 1, 1, 1), 51, dtype=torch.uint8)
    for place in (0, 300, 599):
        images = dark.clone()
        images[place] = 255
        found = smoothed(parent, images, 0.5)[0].module.get_parameter("3.weight")
        assert found.tolist()[0] == pytest.approx([2.0, 1.0])


def test_channels_that_are_always_zero_are_not_smoothed() -> None:
    parent = by_hand([[4.0], [1.0]], [0.0, -9.0], [[1.0, 1.0]], [0.0])
    found = smoothed(parent, torch.full((3, 1, 1, 1), 255, dtype=torch.uint8), 0.5)[0].module
    assert found.get_parameter("1.bias").tolist() == [0.0, -9.0]
    assert found.get_parameter("3.weight").tolist() == [[2.0, 1.0]]


@pytest.mark.parametrize("strength", [0.0, 1.0, -0.5, math.nan])
def test_a_strength_beyond_its_ends_is_refused(strength: float) -> None:
    with pytest.raises(ValueError, match=f"The strength must lie between 0 and 1, got {strength:g}"):
        smoothed(chain(), photos(), strength)


# --- what both keep and refuse


def test_masks_are_kept_and_zeros_count_for_nothing() -> None:
    parent = chain()
    held = {name: Constraints(mask=drawn(7, *w.shape) > 0) for name, w in compressible(parent.module).items()}
    parent = parent.narrowed(held)
    for after, pairs, skipped in (equalized(parent, photos()), smoothed(parent, photos(), 0.4)):
        assert (pairs, skipped) == (every_pair(parent), {})
        assert after.constraints == parent.constraints
        for name, each in held.items():
            assert each.broken_by(after.module.get_parameter(name), after.constraints[name]) == []
        assert_same_function(parent, after, photos(seed=4))


def test_levels_and_ranges_refuse_both_pairs_that_they_are_in() -> None:
    parent = chain()
    levels = Integer(bits=4).levels(parent.module.get_parameter("2.weight"))
    rounded = parent.narrowed({"2.weight": Constraints(levels=levels)})
    for after, pairs, skipped in (equalized(rounded, photos()), smoothed(rounded, photos(), 0.5)):
        assert pairs == [Pair("5.weight", "9.weight")]
        words = "2.weight has 15 levels per channel, which scaling would break"
        assert skipped == {"0.weight": words, "2.weight": words}
        assert torch.equal(after.module.get_parameter("2.weight"), rounded.module.get_parameter("2.weight"))
    clipped = parent.narrowed({"9.weight": Constraints(Range(-0.5, 0.5))})
    pairs, skipped = pairs_of(clipped, photos())
    assert pairs == every_pair(parent)[:2]
    assert skipped == {"5.weight": "9.weight has range [-0.5, 0.5], which scaling would break"}


@pytest.mark.parametrize(
    "inputs",
    [
        {"grids": {"2": InputGrid(8, 0.05, 0)}},
        {"grids": {"2": DynamicGrid(8)}},
        {"clamps": {"2": Range(0.0, 1.0)}},
    ],
    ids=str,
)
def test_clamped_or_rounded_inputs_refuse_the_pair_that_gives_them(inputs: dict[str, Any]) -> None:
    parent = chain().narrowed({}, **inputs)
    pairs, skipped = pairs_of(parent, photos())
    assert pairs == every_pair(parent)[1:]
    assert skipped == {"0.weight": "inputs of 2 are clamped or rounded already, which scaling would break"}


def test_rounded_inputs_of_the_first_layer_stay_and_hide_no_pair() -> None:
    """A coarse grid before the first layer; the pair is proven without it, and the child still has it."""
    parent = chain().narrowed({}, {"0": InputGrid(1, 1.0, 0)}, {"0": Range(0.0, 0.9)})
    after, pairs, skipped = equalized(parent, photos())
    assert (pairs, skipped) == (every_pair(parent), {})
    assert (after.grids, after.clamps) == (parent.grids, parent.clamps)
    assert_same_function(parent, after, photos(seed=4))
    assert not torch.equal(wide(after, photos()), wide(chain(), photos()))


def test_without_a_pair_the_network_stays_to_the_bit() -> None:
    parent = folded(net(NETS["depthwise"]))
    for after, pairs, skipped in (equalized(parent, pictures(8)), smoothed(parent, pictures(8), 0.5)):
        assert pairs == []
        assert skipped.keys() == {*names(parent)[:-1]}
        assert all(torch.equal(p, after.module.get_parameter(n)) for n, p in parent.module.named_parameters())


class InFloat32(nn.Module):
    def forward(self, inputs: Tensor) -> Tensor:
        return inputs.float()


def test_a_network_that_does_not_run_in_float64_is_refused_in_words() -> None:
    parent = toy(nn.Flatten(), nn.Linear(64, 4), InFloat32(), nn.ReLU(), nn.Linear(4, 3))
    with pytest.raises(DecantError, match="the network does not run in it"):
        equalized(parent, photos())


def test_no_images_and_batch_norms_are_refused_in_words() -> None:
    for way in (pairs_of, equalized, lambda *given: smoothed(*given, 0.5)):
        with pytest.raises(
            DecantError, match="Images have to show which layers follow each other, and there"
        ):
            way(chain(), photos(0))
        with pytest.raises(DecantError, match=r"A batch norm follows stem\.0; fold them first"):
            way(net(NETS["residual"]), pictures(8))


# --- biases


def hooked(module: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """Return the mean of each layer's outputs by channel, in one pass, by plain hooks, in running order."""
    found: dict[str, Tensor] = {}

    def record(name: str) -> Any:
        def hook(layer: nn.Module, _: Any, given: Tensor) -> None:
            sums = given if isinstance(layer, nn.Linear) else given.movedim(1, -1)
            found[name] = sums.double().flatten(0, -2).mean(0)

        return hook

    handles = [
        module.get_submodule(name.removesuffix(".weight")).register_forward_hook(record(name))
        for name in compressible(module)
    ]
    with torch.no_grad():
        module(pixels(images))
    for handle in handles:
        handle.remove()
    return found


def coarse(checkpoint: Checkpoint, bits: int = 3) -> Checkpoint:
    weights = compressible(checkpoint.module).items()
    return checkpoint.narrowed({n: Constraints(levels=Integer(bits=bits).levels(w)) for n, w in weights})


FLOATS = {
    **{name: lambda kind=name: folded(net(NETS[kind])) for name in NETS},
    "depthwise toy": depthwise,
    "tokens": tokens,
}


def shown(kind: str, count: int = 64) -> Tensor:
    return pictures(count) if kind in NETS else photos(count)


def reference_of(kind: str) -> Checkpoint:
    """Return a network in which every layer has a bias."""
    found = FLOATS[kind]()
    for name in names(found):
        layer: Any = found.module.get_submodule(name.removesuffix(".weight"))
        if layer.bias is None:
            layer.bias = nn.Parameter(torch.zeros(len(layer.weight)))
    return found


@pytest.mark.parametrize("kind", FLOATS)
def test_mean_outputs_are_those_that_hooks_see(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = reference_of(kind)
    inner = names(model)[1].removesuffix(".weight")
    model = model.narrowed({}, {inner: InputGrid(3, 0.3, 2)}, {inner: Range(-0.4, 0.9)})
    expected = hooked(model.module, shown(kind))
    monkeypatch.setattr(bias_correction, "BATCH", 25)  # 25, 25 and 14
    found = mean_outputs(model.module, names(model), shown(kind))
    assert list(found) == list(expected)
    for name, mean in found.items():
        assert mean.dtype == torch.float64
        torch.testing.assert_close(mean, expected[name], rtol=1e-5, atol=1e-6)


def test_bias_correction_by_hand() -> None:
    # Pixels 0 and 1. Hidden: 0.6 p + 0.1 has the mean 0.4; with 1 in place of 0.6 it is 0.6, so -0.2.
    reference = toy(nn.Flatten(), nn.Linear(1, 1), nn.Linear(1, 1), shape=(1, 1, 1))
    with torch.no_grad():
        for parameter, value in zip(reference.module.parameters(), (0.6, 0.1, 2.0, 0.0), strict=True):
            parameter.fill_(value)
    child = reference.narrowed({})
    with torch.no_grad():
        child.module.get_parameter("1.weight").fill_(1.0)
        child.module.get_parameter("2.weight").fill_(3.0)
    images = torch.tensor([0, 255], dtype=torch.uint8).reshape(2, 1, 1, 1)
    found = corrected(child, reference.module, images)
    # The second layer receives the mean 0.4 again: 3 * 0.4 in place of 2 * 0.4.
    assert [p.item() for p in found.module.parameters()] == pytest.approx([1.0, -0.1, 3.0, -0.4])


@pytest.mark.parametrize("kind", FLOATS)
@pytest.mark.parametrize("inputs", [False, True], ids=["weights", "inputs too"])
def test_corrected_means_are_the_references_in_every_layer(kind: str, inputs: bool) -> None:
    reference, images = reference_of(kind), shown(kind)
    child = coarse(reference)
    if inputs:
        child = child.narrowed({}, {n.removesuffix(".weight"): InputGrid(4, 0.1, 3) for n in names(child)})
    before = copy.deepcopy(child.module.state_dict())
    wanted = hooked(reference.module, images)
    found = corrected(child, reference.module, images)
    plain, right = hooked(child.module, images), hooked(found.module, images)
    for name, mean in wanted.items():
        spread = mean.abs().max().item()
        assert (plain[name] - mean).abs().max() > 1e-3 * spread, name
        torch.testing.assert_close(right[name], mean, rtol=1e-4, atol=1e-5 * spread)
        assert torch.equal(found.module.get_parameter(name), child.module.get_parameter(name))
    assert found.constraints == child.constraints
    assert found.grids == child.grids
    assert all(torch.equal(tensor, before[name]) for name, tensor in child.module.state_dict().items())


def test_what_is_right_already_stays() -> None:
    reference = reference_of("grouped")
    found = corrected(reference, reference.module, pictures())
    assert all(torch.equal(p, found.module.get_parameter(n)) for n, p in reference.module.named_parameters())


def test_correction_refuses_what_it_cannot_correct() -> None:
    reference, images = chain(), photos()
    child = coarse(reference)
    with pytest.raises(DecantError, match="mean outputs over images, and there are none; ask for some"):
        corrected(child, reference.module, images[:0])
    with pytest.raises(DecantError, match="No layer has a bias to correct; leave bias correction out"):
        bare = net(NETS["joined"])
        for layer in ("left", "right", "both", "head"):
            bare.module.get_submodule(layer).bias = None
        corrected(bare, bare.module, pictures())
    whole, norms = folded(net(NETS["residual"])), net(NETS["residual"])
    for first, second in ((norms, whole), (whole, norms)):
        with pytest.raises(DecantError, match=r"A batch norm follows stem\.0; fold both networks first"):
            corrected(first, second.module, pictures())


# --- a recipe


@pytest.mark.parametrize(
    ("more", "pairs"),
    [
        ({"equalize": True}, {"equalized": 3}),
        ({"smooth": 0.5, "activations": {"bits": 8}}, {"smoothed": 3}),
        ({"equalize": True, "smooth": 0.3, "activations": {"bits": 8}}, {"equalized": 3, "smoothed": 3}),
    ],
    ids=str,
)
def test_a_recipe_balances_rounds_and_corrects(more: dict[str, Any], pairs: dict[str, int]) -> None:
    parent, images = net(NETS["grouped"]), pictures()
    content = {
        "op": "quantize",
        "from": "some",
        "scheme": {"kind": "integer", "bits": 4},
        "correct_bias": True,
    }
    examples = Examples(images, torch.zeros(len(images), dtype=torch.long), parent.classes)
    block = validate(content | {"images": len(images)} | more, QuantizeParams)
    found = Recipe(block, parent, parent, examples, examples).rounded()
    for fact, count in pairs.items():
        assert found.facts[fact].startswith(f"{count} pairs of layers, logits move by at most")
    assert_same_function(parent, found.before, images)
    wanted, right = hooked(found.before.module, images), hooked(found.model.module, images)
    for name, mean in wanted.items():
        torch.testing.assert_close(right[name], mean, rtol=1e-4, atol=1e-5)
        held = found.model.constraints[name]
        assert torch.equal(
            held.project(found.model.module.get_parameter(name)), found.model.module.get_parameter(name)
        )


# --- any network


class Backwards(nn.Module):
    """The second layer is registered first."""

    def __init__(self) -> None:
        super().__init__()
        self.second, self.first = nn.Linear(8, 3), nn.Linear(64, 8)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.second(self.first(inputs.flatten(1)).relu())


def test_pairs_follow_what_runs_and_not_what_is_registered() -> None:
    parent = toy(Backwards())
    with torch.no_grad():
        parent.module.get_parameter("0.first.weight")[0] *= 50
    after, pairs, skipped = equalized(parent, photos())
    assert (pairs, skipped) == ([Pair("0.first.weight", "0.second.weight")], {})
    assert_same_function(parent, after, photos(seed=4))
    given, read = naive_ranges(after.module, pairs[0])
    assert given == pytest.approx(read, rel=1e-3)


@pytest.mark.parametrize("groups", [1, 2])
def test_transposed_convolutions_give_and_read_channels(groups: int) -> None:
    layers = [nn.Conv2d(1, 4, 3), nn.ConvTranspose2d(4, 6, 3, groups=groups), nn.Conv2d(6, 2, 1)]
    parent = toy(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2], nn.Flatten(), nn.Linear(128, 3))
    after, pairs, _ = equalized(parent, photos())
    assert pairs[:2] == [Pair("0.weight", "2.weight"), Pair("2.weight", "4.weight")]
    assert_same_function(parent, after, photos(seed=4))
    given = after.module.get_parameter("2.weight").detach().abs()
    read = after.module.get_parameter("4.weight").detach().abs()
    for channel in range(6):
        group, place = divmod(channel, 6 // groups)
        rows = given[group * 4 // groups : (group + 1) * 4 // groups]
        assert rows[:, place].max().item() == pytest.approx(read[:, channel].max().item(), rel=1e-3)


def test_a_batch_norm_that_cannot_be_folded_keeps_no_pair_from_the_others() -> None:
    norm = nn.BatchNorm2d(4)
    nn.init.normal_(norm.running_mean, generator=torch.Generator().manual_seed(1))
    parent = toy(
        *(nn.Conv2d(1, 4, 3), nn.ReLU(), norm, nn.Conv2d(4, 5, 3), nn.ReLU(), nn.Conv2d(5, 2, 1)),
        *(nn.Flatten(), nn.Linear(32, 3)),
    )
    after, pairs, skipped = equalized(parent, photos())
    assert pairs == [Pair("3.weight", "5.weight"), Pair("5.weight", "7.weight")]
    assert "do not go to 3.weight alone" in skipped["0.weight"]
    assert_same_function(parent, after, photos(seed=4))
