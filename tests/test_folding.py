"""A folded network is the same function with fewer numbers; the constraints on its weights are scaled."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from decant.checkpoints.activations import DynamicGrid, InputGrid
from decant.checkpoints.checkpoint import Checkpoint
from decant.checkpoints.constraints import Constraints, Levels, Range
from decant.lowering.folding import TINY, folded, moved, unfolded
from decant.networks.architectures import Lenet5, Mlp, Resnet, build
from decant.networks.execution import predict
from decant.networks.record import record_of
from decant.networks.structure import compressible, drop_norms_, followers
from decant.quantize.schemes import Binary, Integer, Quantizer, Ternary
from tests.nets import NETS, SCHEMES, images, net
from tests.slow import chessboard

CONV = "stages.0.conv2.weight"


def residual(seed: int = 0) -> Checkpoint:
    """Return a network whose batch norms have negative, tiny and vanished factors, and a mean far away."""
    model = net(NETS["residual"], seed)
    for _, norm in followers(model.module).values():
        with torch.no_grad():
            norm.weight[0], norm.weight[1], norm.weight[2] = -0.7, 0.0, 1e-20
            norm.running_mean[3], norm.running_var[4] = 40.0, 1e-9
    return model


def masks(model: Checkpoint, seed: int = 3) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.rand(w.shape, generator=generator) > 0.3 for name, w in compressible(model.module).items()
    }


def held_by(model: Checkpoint, scheme: Quantizer, *, masked: bool) -> Checkpoint:
    constraints = {}
    for name, weight in compressible(model.module).items():
        mask = masks(model)[name] if masked else None
        constraints[name] = Constraints(levels=scheme.levels(weight, mask), mask=mask)
    return model.narrowed(constraints)


def assert_same(before: Checkpoint, after: Checkpoint) -> None:
    """Hold that both give the same logits, up to float32's rounding of them."""
    gap, spread = moved(before, after, images())
    logits = predict(before.module, images())
    assert gap == (logits - predict(after.module, images())).abs().max().item()
    assert spread == logits.std().item()
    assert gap <= 1e-5 * max(1.0, logits.abs().max().item())


def naive(convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Return weight and bias of both in one, by loops in double precision."""
    weight, bias = convolution.weight.detach().double().clone(), torch.zeros(len(convolution.weight)).double()
    for channel in range(len(weight)):
        factor = norm.weight[channel].item() / (norm.running_var[channel].item() + norm.eps) ** 0.5
        before = 0.0 if convolution.bias is None else convolution.bias[channel].item()
        weight[channel] *= factor
        bias[channel] = norm.bias[channel].item() + (before - norm.running_mean[channel].item()) * factor
    return weight, bias


@pytest.mark.parametrize("kind", ["residual", "grouped", "depthwise"])
def test_weights_and_biases_by_a_naive_loop(kind: str) -> None:
    model = net(NETS[kind])
    after = folded(model)
    for name, (_, norm) in followers(model.module).items():
        weight, bias = naive(model.module.get_submodule(name.removesuffix(".weight")), norm)
        assert torch.allclose(after.module.get_parameter(name).double(), weight, rtol=1e-6)
        found = after.module.get_parameter(name.replace("weight", "bias"))
        assert torch.allclose(found.double(), bias, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["residual", "grouped", "depthwise", "flattened"])
@pytest.mark.parametrize("seed", range(3))
def test_the_function_stays_and_no_batch_norm_does(kind: str, seed: int) -> None:
    model = net(NETS[kind], seed)
    before = {name: tensor.clone() for name, tensor in model.module.state_dict().items()}
    after = folded(model)
    assert_same(model, after)
    assert after.folded
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in after.module.modules())
    assert not after.module.training
    assert not model.folded
    assert all(torch.equal(t, before[n]) for n, t in model.module.state_dict().items())


@pytest.mark.parametrize(("kind", "masked"), chessboard(SCHEMES, (True, False)))
def test_codes_stay_and_the_function_with_them(kind: str, masked: bool) -> None:
    model = held_by(residual(), SCHEMES[kind], masked=masked)
    after = folded(model)
    assert_same(model, after)
    for name, held in model.constraints.items():
        later = after.constraints[name]
        weight, scaled = (m.module.get_parameter(name) for m in (model, after))
        assert held.levels is not None
        assert later.levels is not None
        assert torch.equal(later.levels.codes(scaled), held.levels.codes(weight))
        assert torch.equal(later.levels.values, held.levels.values)
        assert later.levels.group == held.levels.group
        assert torch.equal(later.project(scaled), scaled)
        assert later.broken_by(scaled, later) == []
        if masked:
            assert later.mask is not None
            assert held.mask is not None
            assert torch.equal(later.mask, held.mask)
            assert (scaled[~held.mask] == 0).all()


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES.keys())
def test_scales_are_multiplied_by_hand(scheme: Quantizer) -> None:
    model = held_by(residual(), scheme, masked=False)
    norm = followers(model.module)[CONV][1]
    factor = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    factor[factor.abs() < TINY] = TINY
    held, later = model.constraints[CONV].levels, folded(model).constraints[CONV].levels
    assert held is not None
    assert later is not None
    expected = held.scale.double() * (factor[:, None] if held.group else factor.reshape(-1, 1, 1, 1))
    assert later.scale.shape == expected.shape
    assert torch.allclose(later.scale.double(), expected, rtol=1e-6)
    if held.zero_point is not None:
        assert later.zero_point is not None
        assert torch.equal(later.zero_point, held.zero_point.expand(later.scale.shape))


@given(st.integers(0, 30), st.sampled_from(sorted(SCHEMES)), st.floats(-3, 3), st.floats(1e-3, 9))
def test_any_gamma_and_any_variance_keep_the_function(
    seed: int, scheme: str, gamma: float, variance: float
) -> None:
    model = held_by(net(NETS["residual"], seed), SCHEMES[scheme], masked=bool(seed % 2))
    with torch.no_grad():
        for _, norm in followers(model.module).values():
            norm.weight[0], norm.running_var[1] = gamma, variance
    assert_same(model, folded(model))


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("scheme", [None, Integer(bits=4), Binary()])
def test_ranges_are_scaled_and_turned_where_the_factor_is_negative(
    scheme: Quantizer | None, per_channel: bool
) -> None:
    model = residual()
    weight = model.module.get_parameter(CONV)
    ends = weight.detach().abs().amax((1, 2, 3), keepdim=True) * 0.6 if per_channel else 0.1
    bounds = Range(-0.5 * ends, ends)
    levels = None if scheme is None else scheme.levels(bounds.project(weight))
    model = model.narrowed({CONV: Constraints(bounds, levels)})
    after = folded(model)
    assert_same(model, after)
    norm = followers(model.module)[CONV][1]
    later = after.constraints[CONV].range
    assert later is not None
    for channel in range(len(weight)):
        factor = norm.weight[channel].item() / (norm.running_var[channel].item() + norm.eps) ** 0.5
        low, high = sorted(
            factor * torch.as_tensor(end).expand(len(weight), 1, 1, 1)[channel].item()
            for end in (bounds.low, bounds.high)
        )
        assert later.low[channel].item() == pytest.approx(low, rel=1e-5, abs=1e-29)
        assert later.high[channel].item() == pytest.approx(high, rel=1e-5, abs=1e-29)
    scaled = after.module.get_parameter(CONV)
    assert after.constraints[CONV].broken_by(scaled, after.constraints[CONV]) == []


def test_a_range_with_one_end_keeps_one_end() -> None:
    model = residual().narrowed({CONV: Constraints(Range(high=0.1))})
    after = folded(model)
    assert_same(model, after)
    later = after.constraints[CONV].range
    assert later is not None
    assert torch.isinf(later.high[0]).all()  # the first factor is negative
    assert torch.isfinite(later.low[0]).all()
    assert torch.isinf(later.low[1:]).all()


def test_a_scale_that_folding_would_make_zero_stays_a_scale() -> None:
    model = residual()
    levels = Levels(torch.tensor([-1.0, 1.0]), torch.tensor(1e-20))
    after = folded(model.narrowed({CONV: Constraints(levels=levels)}))
    later = after.constraints[CONV].levels
    assert later is not None
    assert (later.scale != 0).all()
    assert torch.isfinite(predict(after.module, images())).all()


def test_what_layers_do_to_their_inputs_is_kept() -> None:
    grids = {
        "head": InputGrid(8, 0.02, 3),
        "stages.0.conv2": DynamicGrid(8),
        "stages.0.branch": InputGrid(8, 0.1, 99),
    }
    model = net(NETS["residual"]).narrowed({}, grids, {"stages.1.conv1": Range(0.0, 0.5)})
    after = folded(model)
    assert (after.grids, after.clamps) == (model.grids, model.clamps)
    # A rounded input may fall on the other side of a step for a last bit: most logits are the same.
    logits, later = (predict(each.module, images()) for each in (model, after))
    assert ((logits - later).abs() < 1e-5).float().mean() > 0.9
    assert not torch.allclose(later, predict(net(NETS["residual"]).module, images()), atol=1e-3)


def test_folding_twice_is_folding_once() -> None:
    model = held_by(residual(), Integer(bits=4), masked=True)
    once = folded(model)
    assert folded(once) is once


def test_the_same_network_folds_to_the_same_bytes() -> None:
    first, second = (folded(held_by(residual(), Ternary(), masked=True)) for _ in range(2))
    assert all(torch.equal(t, second.module.state_dict()[n]) for n, t in first.module.state_dict().items())


@pytest.mark.parametrize("architecture", [Mlp(hidden=(6,)), Lenet5()])
def test_where_there_is_nothing_to_fold_the_same_comes_back(architecture: Mlp | Lenet5) -> None:
    module = build(architecture, (1, 28, 28), 5, seed=0).eval()
    model = Checkpoint(architecture, (1, 28, 28), tuple("abcde"), module)
    assert folded(model) is model


def test_a_network_without_numbers_has_the_same_batch_norms_to_fold() -> None:
    """Small networks are built with numbers to be looked at, large ones without."""
    architecture = Resnet(widths=(8, 16), blocks=(1, 1))
    with torch.device("meta"):
        expected = record_of(build(architecture, (1, 12, 12), 10, seed=0).eval()).folds
    assert record_of(build(architecture, (1, 12, 12), 10, seed=0).eval()).folds == expected
    assert len(expected) == 6  # the stem's, two of each block, and that of the wider block's shortcut


def test_channels_that_were_removed_stay_removed() -> None:
    model = net(Resnet(widths=(6, 8), blocks=(1, 1)))
    assert folded(replace(model, lineage=({"op": "teacher"},))).lineage == ({"op": "teacher"},)


def settled_(module: nn.Module) -> nn.Module:
    """Give the batch norms of a network statistics and factors as of a training, in place."""
    generator = torch.Generator().manual_seed(5)
    for norm in module.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm) and norm.running_mean is not None:
            nn.init.normal_(norm.running_mean, generator=generator)
            assert norm.running_var is not None
            nn.init.uniform_(norm.running_var, 0.2, 3.0, generator=generator)
            nn.init.uniform_(norm.weight, 0.2, 3.0, generator=generator)
    return module.eval()


class ConvolutionsFirst(nn.Module):
    """All convolutions are registered before all batch norms."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3)
        self.norm1, self.norm2 = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.norm1(self.conv1(inputs)).relu()
        return self.head(self.norm2(self.conv2(hidden)).relu().mean((2, 3)))


class ReadTwice(nn.Module):
    """What the convolution gives is read by its batch norm, and added."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.conv(inputs)
        return self.head((self.norm(hidden).relu() + hidden).mean((2, 3)))


class SharedNorm(nn.Module):
    """One batch norm with two names, called by the second."""

    def __init__(self) -> None:
        super().__init__()
        self.first = self.second = nn.BatchNorm2d(4)
        self.conv, self.head = nn.Conv2d(1, 4, 3), nn.Linear(4, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.second(self.conv(inputs)).relu().mean((2, 3)))


def norms(model: Checkpoint) -> set[str]:
    return {
        n for n, each in model.module.named_modules() if isinstance(each, nn.modules.batchnorm._BatchNorm)
    }


def chain(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LazyLinear(3))


def strange(kind: str) -> Checkpoint:
    made = {
        "convolutions first": ConvolutionsFirst,
        "read twice": ReadTwice,
        "shared": SharedNorm,
        "over relu": lambda: chain(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.BatchNorm2d(4), *part()),
        "without statistics": lambda: chain(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4, track_running_stats=False), nn.ReLU()
        ),
        "transposed": lambda: chain(nn.ConvTranspose2d(1, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU()),
        "grouped and transposed": lambda: chain(
            nn.Conv2d(1, 4, 1),
            nn.ConvTranspose2d(4, 6, 3, groups=2, bias=False),
            nn.BatchNorm2d(6),
            nn.ReLU(),
        ),
        "linear": lambda: nn.Sequential(
            nn.Flatten(), nn.Linear(64, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3)
        ),
        "one dimension": lambda: nn.Sequential(
            nn.Flatten(2), nn.Conv1d(1, 4, 5), nn.BatchNorm1d(4), nn.ReLU(), nn.Flatten(), nn.LazyLinear(3)
        ),
        "three dimensions": lambda: nn.Sequential(
            nn.Unflatten(1, (1, 1)),
            nn.Conv3d(1, 4, (1, 3, 3)),
            nn.BatchNorm3d(4),
            nn.Flatten(),
            nn.LazyLinear(3),
        ),
    }
    torch.manual_seed(0)
    module = made[kind]().eval()
    module(torch.zeros(1, 1, 8, 8))
    return Checkpoint(None, (1, 8, 8), tuple("abc"), settled_(module))  # type: ignore[arg-type]


def part() -> list[nn.Module]:
    return [nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU()]


@pytest.mark.parametrize(
    ("kind", "pairs"),
    [
        ("convolutions first", {"conv1.weight": "norm1", "conv2.weight": "norm2"}),
        ("read twice", {}),
        ("shared", {}),
        ("over relu", {"3.weight": "4"}),
        ("without statistics", {}),
        ("transposed", {"0.weight": "1"}),
        ("grouped and transposed", {"1.weight": "2"}),
        ("linear", {"1.weight": "2"}),
        ("one dimension", {"1.weight": "2"}),
        ("three dimensions", {"1.weight": "2"}),
    ],
)
def test_what_a_pass_proves_is_folded_and_nothing_else(kind: str, pairs: dict[str, str]) -> None:
    model = strange(kind)
    after = folded(model)
    assert (after.folded or {}) == pairs
    pictures = torch.randint(0, 256, (16, 1, 8, 8)).to(torch.uint8)
    gap, spread = moved(model, after, pictures)
    assert gap < 1e-6 * (1 + spread)
    assert norms(after) == norms(model) - {*pairs.values()}
    assert unfolded(model).keys() | {*pairs.values()} == norms(model)


@pytest.mark.parametrize("kind", ["transposed", "grouped and transposed", "linear", "three dimensions"])
def test_constraints_of_any_layer_are_scaled_along_its_output_channels(kind: str) -> None:
    model = strange(kind)
    (name,) = followers(model.module)
    weight = model.module.get_parameter(name).detach()
    levels = Levels(torch.arange(-127.0, 128), weight.abs().max() / 127)
    model = model.narrowed({name: Constraints(Range(-0.1, 0.1), levels, weight.abs() > 0.02)})
    after = folded(model)
    held, scaled = after.constraints[name], after.module.get_parameter(name)
    assert held.broken_by(scaled, held) == []
    assert held.levels is not None
    assert torch.equal(held.levels.codes(scaled), levels.codes(model.module.get_parameter(name)))
    gap, spread = moved(model, after, torch.randint(0, 256, (16, 1, 8, 8)).to(torch.uint8))
    assert gap < 1e-6 * (1 + spread)


def test_a_batch_norm_behind_groups_over_output_channels_stays_with_a_reason() -> None:
    model = strange("transposed")
    weight = model.module.get_parameter("0.weight").detach()
    levels = Levels(torch.arange(-7.0, 8), weight.new_full((1, 9), 0.05), group=4)
    held = model.narrowed({"0.weight": Constraints(levels=levels)})
    assert folded(held) is held
    assert "groups of 0.weight run over its output channels" in unfolded(held)["1"]


def test_a_pair_that_float64_does_not_confirm_stays_and_the_others_are_folded() -> None:
    model = strange("over relu")
    record = record_of(model.module)
    # As if the record had not seen what lies between the first convolution and its batch norm.
    wrong = replace(record, folds={"0.weight": "2", "3.weight": "4"})
    known = model.module.__dict__["_decant_known"]
    model.module.__dict__["_decant_known"] = replace(known, record=wrong)
    after = folded(model)
    assert after.folded == {"3.weight": "4"}
    assert moved(model, after, torch.randint(0, 256, (16, 1, 8, 8)).to(torch.uint8))[0] < 1e-5
    assert "without it 0 is another function" in unfolded(model)["2"]


def test_a_network_of_which_some_is_folded_is_built_again_in_the_same_form() -> None:
    names = {"0.weight": "1", "3.weight": "4"}
    first, second = (chain(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), *part()) for _ in range(2))
    drop_norms_(first, names)
    assert isinstance(first[1], nn.Identity)
    assert isinstance(first[4], nn.Identity)
    drop_norms_(second, {"3.weight": "4"})
    assert isinstance(second[1], nn.BatchNorm2d)
    for pairs in ({"0.weight": "3"}, {"0.weight": "9"}, {"2.weight": "1"}):
        with pytest.raises(ValueError, match="cannot be part of"):
            drop_norms_(second, pairs)
