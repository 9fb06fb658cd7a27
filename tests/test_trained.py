"""Rounding that learns: values to the bit, gradients against loops, and trainings that hold and resume."""

import copy
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from decant.checkpoints.activations import DynamicGrid, Grid, InputGrid
from decant.checkpoints.checkpoint import Checkpoint, state
from decant.checkpoints.constraints import FREE, Constraints, Levels, Range
from decant.checkpoints.files import load, save
from decant.compression.invariants import check_invariants
from decant.errors import DecantError
from decant.examples import Splits
from decant.finetune.operation import finetune
from decant.finetune.params import FinetuneParams
from decant.lowering.folding import folded
from decant.networks.architectures import Mlp, Resnet, build
from decant.networks.augmentation import Augmentation
from decant.networks.execution import predict
from decant.networks.layers import Summand
from decant.networks.structure import compressible
from decant.quantize.params import QuantizeParams
from decant.quantize.qat.learners import (
    LEAST,
    Decaying,
    Entries,
    InputClip,
    InputStep,
    Positive,
    Steps,
    Straight,
    TwoScales,
    WeightLearner,
    insert_,
    take_out_,
)
from decant.quantize.qat.trainers import (
    Centroids,
    ErrorDecay,
    Lsq,
    Pact,
    Ste,
    Train,
    Trainer,
    Ttq,
    check_pairing,
)
from decant.quantize.qat.training import train_rounded
from decant.quantize.recipe import Quantized, Recipe
from decant.quantize.schemes import Binary, Codebook, Integer, PowerOfTwo, Scheme, Ternary
from decant.training import fit as fit_module
from decant.training.losses import Softmax, Temperature, warning
from decant.training.recipe import Adamw, Cosine, Sgd, Training
from decant.training.resume import Scratch
from decant.training.run import Run
from decant.training.trainee import EpochMetrics
from tasks.pipeline.params import validate
from tests.drawn import drawn
from tests.nets import striped
from tests.slow import slow_but

TRAINERS: tuple[type[Trainer], ...] = get_args(get_args(Train)[0])
SCHEMES: tuple[Scheme, ...] = (
    Integer(bits=4),
    Integer(bits=3, per_channel=False),
    Integer(bits=2, group=16),
    Integer(bits=4, symmetric=False),
    Ternary(),
    Binary(),
    Binary(balanced=True),
    Codebook(entries=5),
    PowerOfTwo(bits=3),
)


def half(shape: tuple[int, ...]) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(9)) < 0.5


def gradients(learner: nn.Module, free: Tensor, of_output: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the free numbers' gradient and the learner's own, by name."""
    leaf = free.clone().requires_grad_()
    learner.zero_grad()
    learner(leaf).backward(of_output)
    own = {name: p.grad for name, p in learner.named_parameters() if p.grad is not None}
    assert leaf.grad is not None
    return leaf.grad, own


# Positive numbers


def test_a_positive_number_moves_under_sgd_as_it_would_itself() -> None:
    positive, plain = Positive(torch.tensor([0.02, 3.0])), torch.tensor([0.02, 3.0], requires_grad=True)
    descent = [torch.optim.SGD([p], 0.001, momentum=0.9) for p in (positive.factor, plain)]
    target = torch.tensor([0.03, 2.0])
    for _ in range(20):
        for numbers in (positive(), plain):
            (numbers - target).square().sum().backward()
        for optimizer in descent:
            optimizer.step()
            optimizer.zero_grad()
    assert not torch.allclose(plain, torch.tensor([0.02, 3.0]), rtol=0.01)
    torch.testing.assert_close(positive(), plain, rtol=1e-4, atol=0)


def test_a_positive_number_stays_positive_and_can_come_back() -> None:
    positive = Positive(torch.tensor(0.5))
    with torch.no_grad():
        positive.factor.fill_(-3.0)
    assert positive().item() == pytest.approx(0.5 * LEAST)
    positive(4.0).backward()
    assert positive.factor.grad is not None
    assert positive.factor.grad.item() == 4.0 / 0.5


# Weights: values


def learners(weight: Tensor, held: Constraints) -> dict[str, WeightLearner]:
    """Return every learner of a weight, by name."""
    found: dict[str, WeightLearner] = {
        f"straight {scheme}": Straight(scheme, weight, held, follows=isinstance(scheme, Binary | Ternary))
        for scheme in SCHEMES
    }
    for scheme in SCHEMES[:4]:
        found[f"steps {scheme}"] = Steps(scheme.levels(weight, held.mask), held, weight.shape)
    found["two scales"] = TwoScales(0.05, weight, held)
    found["entries"] = Entries(Codebook(entries=6).levels(weight, held.mask), weight, held)
    for scheme in SCHEMES[5:7]:
        found[f"decaying {scheme}"] = Decaying(scheme, held, first=0.1, last=10.0)
    return found


@pytest.mark.parametrize("shape", [(6, 5), (6, 3, 3, 3), (6, 4, 5)])
@pytest.mark.parametrize("masked", [False, True])
def test_exam(shape: tuple[int, ...], masked: bool) -> None:
    weight = drawn(0, *shape)
    held = Constraints(mask=half(shape) if masked else None)
    for name, learner in learners(weight, held).items():
        before = weight.clone()
        value = learner(weight)
        satisfies = held.narrow(levels=learner.levels(weight))
        assert value.shape == shape, name
        assert torch.isfinite(value).all(), name
        assert torch.equal(satisfies.project(value), value), name
        assert torch.equal(learner(weight), value), name
        assert torch.equal(weight, before), name
        free, own = gradients(learner, weight, drawn(1, *shape)) if name != "entries" else (None, {})
        assert all(torch.isfinite(gradient).all() for gradient in own.values()), name
        if free is not None:
            assert torch.isfinite(free).all(), name
            assert bool(free.abs().sum() > 0), name
            assert held.mask is None or not free[~held.mask].any(), name
        parameters = dict(learner.named_parameters())
        assert own.keys() == (parameters.keys() if name != "entries" else set()), name
        if name.startswith(("straight", "steps", "decaying")):
            scheme = next(scheme for scheme in SCHEMES if name.endswith(f" {scheme}"))
            shifted = scheme.shifted(weight, held.mask)
            expected = held.narrow(levels=scheme.levels(shifted, held.mask)).project(shifted)
            assert torch.equal(value, expected), name


def test_a_weights_range_holds_before_its_levels() -> None:
    weight, held = drawn(0, 4, 20), Constraints(range=Range(-0.5, 0.4))
    levels = Integer(bits=4).levels(weight)
    for learner in (
        Steps(levels, held, weight.shape),
        Straight(Integer(bits=4), weight, held, follows=False),
    ):
        assert torch.equal(learner(weight), levels.project(weight.clamp(-0.5, 0.4)))


def test_scales_of_signs_follow_the_weight_and_calibrated_steps_stay() -> None:
    weight = drawn(0, 3, 8)
    follow = Straight(Binary(), weight, Constraints(), follows=True)
    stay = Straight(Integer(bits=4), weight, Constraints(), follows=False)
    assert torch.equal(follow.levels(2 * weight).scale, 2 * follow.levels(weight).scale)
    assert stay.levels(2 * weight).equals(Integer(bits=4).levels(weight))


# Weights: gradients


def test_straight_gradients_pass_unchanged_but_for_the_mask() -> None:
    weight, upstream, mask = drawn(0, 4, 6), drawn(1, 4, 6), half((4, 6))
    for scheme in SCHEMES:
        learner = Straight(scheme, weight, Constraints(mask=mask), follows=isinstance(scheme, Binary))
        free, own = gradients(learner, weight, upstream)
        assert torch.equal(free, upstream * mask)
        assert own == {}


def naive_steps(
    levels: Levels, weight: Tensor, upstream: Tensor, mask: Tensor | None
) -> tuple[list[list[float]], dict[int, float]]:
    """The paper's equations 1 to 4 element by element in double precision: dL/dw, dL/d(step) by its place."""
    places = torch.arange(levels.scale.numel()).reshape(levels.scale.shape)
    of_element = levels.spread(places, weight.shape).expand(weight.shape)
    zeros = torch.zeros_like(levels.scale) if levels.zero_point is None else levels.zero_point
    low, high = levels.values[0].item(), levels.values[-1].item()
    of_weight = [[0.0] * weight.shape[1] for _ in range(weight.shape[0])]
    sums, counts, sides = dict[int, float](), dict[int, int](), dict[int, float]()
    for row in range(weight.shape[0]):
        for column in range(weight.shape[1]):
            if mask is not None and not mask[row, column]:
                continue
            at = int(of_element[row, column])
            step, zero = levels.scale.flatten()[at].item(), zeros.flatten()[at].item()
            position = weight[row, column].item() / step + zero
            gradient = upstream[row, column].item()
            if position < low:
                slope = low - zero
            elif position > high:
                slope = high - zero
            else:
                of_weight[row][column] = gradient
                slope = math.floor(position + 0.5) - zero - (position - zero)
            sums[at] = sums.get(at, 0.0) + gradient * slope
            counts[at] = counts.get(at, 0) + 1
            sides[at] = max(high - zero, zero - low, 1)
    return of_weight, {at: total / math.sqrt(counts[at] * sides[at]) for at, total in sums.items()}


@pytest.mark.parametrize("scheme", SCHEMES[:4], ids=str)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("shrink", [1.01, 0.5])
def test_step_gradients_are_the_papers(scheme: Scheme, masked: bool, shrink: float) -> None:
    weight, upstream = drawn(0, 5, 37), drawn(1, 5, 37)
    mask = half((5, 37)) if masked else None
    learner = Steps(scheme.levels(weight, mask), Constraints(mask=mask), weight.shape)
    with torch.no_grad():
        learner.step.factor.fill_(shrink)  # so that weights lie beyond the outermost levels
    levels = learner.levels(weight)
    free, own = gradients(learner, weight, upstream)
    expected, of_steps = naive_steps(levels, weight, upstream, mask)
    torch.testing.assert_close(free, torch.tensor(expected), rtol=1e-5, atol=1e-6)
    of_factor = own["step.factor"].flatten() * learner.step.start.flatten()
    assert of_factor.tolist() == pytest.approx(
        [of_steps.get(at, 0.0) for at in range(len(of_factor))], rel=1e-3
    )


@given(st.integers(2, 8), st.floats(0.05, 3.0))
def test_learned_steps_are_always_the_levels_they_tell(bits: int, factor: float) -> None:
    weight = drawn(0, 3, 21)
    learner = Steps(Integer(bits=bits).levels(weight), Constraints(), weight.shape)
    with torch.no_grad():
        learner.step.factor.fill_(factor)
    assert torch.equal(learner(weight), learner.levels(weight).project(weight))
    assert bool((learner.levels(weight).scale > 0).all())


def test_a_learned_step_finds_the_one_of_least_error() -> None:
    weight = drawn(0, 1, 4000)
    learner = Steps(Integer(bits=3, per_channel=False).levels(weight), Constraints(), weight.shape)
    optimizer = torch.optim.Adam(learner.parameters(), 0.01)
    for _ in range(300):
        optimizer.zero_grad()
        (learner(weight) - weight).square().mean().backward()
        optimizer.step()

    def error(step: float) -> float:
        return ((weight / step).round().clamp(-3, 3) * step - weight).square().mean().item()

    least = min(error(0.01 * k) for k in range(10, 200))
    assert error(learner.levels(weight).scale.item()) < 1.02 * least
    assert error(learner.step.start.item()) > 1.5 * least


def test_two_scales_by_hand() -> None:
    # The largest is 2, so 0.25 of it is 0.5: at or within it weights are zero.
    weight = torch.tensor([[2.0, 0.5, -0.4], [-1.0, 1.0, -0.6]])
    learner = TwoScales(0.25, weight, Constraints())
    assert learner.upper().item() == pytest.approx(1.5)
    assert learner.lower().item() == pytest.approx(0.8)
    torch.testing.assert_close(learner(weight), torch.tensor([[1.5, 0.0, 0.0], [-0.8, 1.5, -0.8]]))
    upstream = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    free, own = gradients(learner, weight, upstream)
    torch.testing.assert_close(free, torch.tensor([[1.5, 2.0, 3.0], [3.2, 7.5, 4.8]]))
    # The lower level is minus its scale, so its scale's gradient is minus the sum.
    assert own["upper.factor"].item() * 1.5 == pytest.approx(1 + 5)
    assert own["lower.factor"].item() * 0.8 == pytest.approx(-(4 + 6))
    assert learner.levels(weight).values.tolist() == pytest.approx([-0.8, 0.0, 1.5])


def test_two_scales_of_weights_on_one_side_or_all_zero() -> None:
    for weight in (torch.tensor([[1.0, 3.0]]), torch.zeros(1, 2)):
        learner = TwoScales(0.05, weight, Constraints())
        assert torch.equal(learner(weight) != 0, weight != 0)
        assert torch.isfinite(learner.levels(weight).values).all()


@pytest.mark.parametrize("progress", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("balanced", [False, True])
def test_decaying_gradients_against_a_loop(progress: float, balanced: bool) -> None:
    weight, upstream, mask = drawn(0, 3, 12) + 0.3, drawn(1, 3, 12), half((3, 12))
    learner = Decaying(Binary(balanced=balanced), Constraints(mask=mask), first=0.1, last=10.0)
    learner.progress = progress
    free, _ = gradients(learner, weight, upstream)
    t = 0.1 * 100**progress
    for row in range(3):
        kept = [weight[row, c].item() for c in range(12) if mask[row, c]]
        mean = math.fsum(kept) / len(kept) if balanced else 0.0
        deviation = math.sqrt(math.fsum((w - mean) ** 2 for w in kept) / len(kept))
        for c in range(12):
            x = (weight[row, c].item() - mean) / deviation
            slope = max(1 / t, 1.0) * t * (1 - math.tanh(t * x) ** 2) if mask[row, c] else 0.0
            assert free[row, c].item() == pytest.approx(upstream[row, c].item() * slope, rel=1e-3, abs=1e-6)


def test_the_decaying_gradient_is_that_of_the_papers_function() -> None:
    weight = drawn(0, 1, 40).requires_grad_()
    learner = Decaying(Binary(), Constraints(), first=0.1, last=10.0)
    for learner.progress in (0.0, 0.5, 1.0):
        t = 0.1 * 100**learner.progress
        x = (weight / weight.square().mean().sqrt()).detach().requires_grad_()
        (expected,) = torch.autograd.grad((max(1 / t, 1.0) * torch.tanh(t * x)).sum(), x)
        torch.testing.assert_close(learner.slope(weight.detach()), expected, rtol=1e-3, atol=1e-5)


def test_early_it_is_straight_and_late_only_the_undecided_move() -> None:
    learner = Decaying(Binary(), Constraints(), first=0.1, last=10.0)
    weight = torch.tensor([[0.02, -1.0, 1.0, 1.2]])
    assert learner.slope(weight).tolist()[0] == pytest.approx([1, 1, 1, 1], abs=0.03)
    learner.progress = 1.0
    assert learner.slope(weight)[0, 0].item() > 5
    assert learner.slope(weight)[0, 1:].max().item() < 1e-5


def test_entries_get_the_mean_over_their_weights() -> None:
    weight = torch.tensor([[0.9, -1.1, 0.1], [1.1, -0.1, -0.9]])
    levels = Levels(torch.tensor([-1.0, 0.0, 1.0]), torch.tensor(1.0))
    mask = torch.tensor([[True, True, True], [False, True, True]])
    learner = Entries(levels, weight, Constraints(mask=mask))
    assert learner(weight).tolist() == [[1.0, -1.0, 0.0], [0.0, 0.0, -1.0]]
    learner(weight).backward(torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]))
    assert learner.values.grad is not None
    assert learner.values.grad.tolist() == [(2 + 6) / 2, (3 + 5) / 2, 1]


def test_entries_that_crossed_or_met_are_told_in_order() -> None:
    weight = torch.tensor([[0.9, -1.1, 0.1]])
    learner = Entries(Levels(torch.tensor([-1.0, 0.0, 1.0]), torch.tensor(1.0)), weight, Constraints())
    with torch.no_grad():
        learner.values.copy_(torch.tensor([0.5, 0.2, 0.2]))
    assert learner.levels(weight).values.tolist() == pytest.approx([0.2, 0.5])
    assert torch.equal(learner.levels(weight).project(learner(weight)), learner(weight))


# Inputs

GRIDS = [InputGrid(8, 0.02, 0), InputGrid(4, 0.2, 5), InputGrid(2, 0.4, 1), InputGrid(1, 0.8, 0)]


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_a_learned_step_of_inputs_begins_as_the_grid_to_the_bit(grid: InputGrid) -> None:
    grid = InputGrid(grid.bits, torch.tensor(grid.scale).item(), grid.zero_point)
    learner, inputs = InputStep(grid), drawn(0, 4, 3, 5, 5)
    assert learner.grid() == grid
    assert torch.equal(learner(inputs), grid(inputs))
    with torch.no_grad():
        learner.step.factor.fill_(0.7)
    assert learner.grid().scale == pytest.approx(0.7 * grid.scale)
    assert torch.equal(learner(inputs), learner.grid()(inputs))
    assert len(learner(inputs).unique()) <= 2**grid.bits


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_a_learned_step_of_inputs_has_the_papers_gradients(grid: InputGrid) -> None:
    inputs, upstream = drawn(0, 4, 6), drawn(1, 4, 6)
    learner = InputStep(grid)
    free, own = gradients(learner, inputs, upstream)
    low, high = -grid.zero_point, 2**grid.bits - 1 - grid.zero_point
    total = 0.0
    for x, g, found in zip(
        inputs.flatten().tolist(), upstream.flatten().tolist(), free.flatten(), strict=True
    ):
        position = x / grid.scale
        inside = low <= position <= high
        assert found.item() == (pytest.approx(g) if inside else 0.0)
        total += g * (round(position) - position if inside else min(max(position, low), high))
    share = 1 / math.sqrt(6 * max(high, -low))
    assert own["step.factor"].item() * learner.step.start.item() == pytest.approx(total * share, rel=1e-3)


@pytest.mark.parametrize("alike", [True, False])
@pytest.mark.parametrize("zero", [0, 100])
def test_a_learned_step_of_many_inputs_has_the_gradient_of_float64(zero: int, alike: bool) -> None:
    form = torch.channels_last
    inputs, upstream = (drawn(seed, 16, 32, 14, 14).contiguous(memory_format=form) for seed in (0, 1))
    learner = InputStep(InputGrid(8, 0.02, zero))
    free, own = gradients(learner, inputs, upstream if alike else upstream.contiguous())
    step = learner.step.start.double()
    x, g, value = inputs.double(), upstream.double(), learner(inputs).detach().double()
    inside = (inputs >= -zero * learner.step.start) & (inputs <= (255 - zero) * learner.step.start)
    assert torch.equal(free, torch.where(inside, upstream, 0.0))
    assert free.is_contiguous(memory_format=form)
    share = (32 * 14 * 14 * max(255 - zero, zero)) ** -0.5
    of_step = (g * (value - torch.where(inside, x, 0.0))).sum() / step
    assert (own["step.factor"] * learner.step.start).item() == pytest.approx(of_step.item() * share, rel=1e-5)


def test_a_learned_clip_by_hand() -> None:
    learner = InputClip(InputGrid(2, 0.5, 0))  # levels 0, 0.5, 1, 1.5
    inputs = torch.tensor([[-0.3, 0.2, 0.3, 1.4, 1.5, 7.0]])
    assert learner(inputs)[0].tolist() == pytest.approx([0.0, 0.0, 0.5, 1.5, 1.5, 1.5])
    free, own = gradients(learner, inputs, torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]]))
    assert free.tolist() == [[0.0, 2.0, 3.0, 4.0, 0.0, 0.0]]
    assert own["clip.factor"].item() * 1.5 == pytest.approx(5 + 6)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_a_learned_clip_is_the_papers_formula(bits: int) -> None:
    learner = InputClip(InputGrid(bits, 2.0 / (2**bits - 1), 0))
    with torch.no_grad():
        learner.clip.factor.fill_(0.6)
    x, alpha, top = drawn(0, 50).abs() * 2, 1.2, 2**bits - 1
    clipped = 0.5 * (x.abs() - (x - alpha).abs() + alpha)
    torch.testing.assert_close(learner(x), torch.round(clipped * top / alpha) * alpha / top)
    assert torch.equal(learner(x), learner.grid()(x))


# Inside a network


def test_learners_are_parts_of_layers_and_leave_no_trace() -> None:
    module = build(Resnet(widths=(4, 8), blocks=(1, 1)), (1, 8, 8), 3, seed=1)
    before, shapes = list(module.state_dict()), {name: w.shape for name, w in compressible(module).items()}
    inputs = drawn(0, 2, 1, 8, 8).abs()
    plain = module.eval()(inputs)
    weights: dict[str, WeightLearner] = {
        name: Steps(Integer(bits=3).levels(w.detach()), Constraints(), w.shape)
        for name, w in compressible(module).items()
    }
    insert_(module, weights, {"head": InputStep(InputGrid(4, 0.1, 0))})
    assert {name: w.shape for name, w in compressible(module).items()} == shapes
    assert "head.rounding.weight.step.factor" in dict(module.named_parameters())
    assert "head.rounding.inputs.step.factor" in dict(module.named_parameters())
    rounded = module(inputs)
    take_out_(module)
    assert list(module.state_dict()) == before
    assert next(iter(module.named_parameters()))[0] == "stem.0.weight"
    assert torch.equal(module(inputs), plain)
    by_hand = copy.deepcopy(module)
    with torch.no_grad():
        for name, learner in weights.items():
            weight = by_hand.get_parameter(name)
            weight.copy_(learner.levels(weight).project(weight))
    by_hand.get_submodule("head").register_forward_pre_hook(lambda _, x: InputGrid(4, 0.1, 0)(x[0]))
    assert torch.equal(by_hand(inputs), rounded)
    assert not torch.equal(plain, rounded)


def test_an_error_inside_a_layer_leaves_its_free_weight() -> None:
    layer, linear = nn.Sequential(), nn.Linear(3, 2)
    layer.append(linear)
    weight = linear.weight
    insert_(layer, {"0.weight": Straight(Binary(), weight.detach(), Constraints(), follows=True)}, {})
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        layer(torch.zeros(1, 4))
    assert linear.weight is weight


class Encoder(nn.Module):
    """A layer of torch's own transformer, a recurrent layer, and a table that a product reads."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.rnn, self.table = nn.LSTM(8, 8, batch_first=True), nn.Parameter(drawn(1, 8, 3))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.rnn(self.body(inputs[:, 0]))[0].mean(1) @ self.table


@pytest.mark.parametrize("gradients", [True, False], ids=["with gradients", "without"])
def test_weights_are_rounded_whatever_reads_them(gradients: bool) -> None:
    """Where torch computes a whole layer in one call, in eval mode and without gradients, too."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = Encoder().eval()
    names = ["body.linear1.weight", "body.self_attn.in_proj_weight", "body.self_attn.out_proj.weight"]
    names += ["rnn.weight_ih_l0", "rnn.weight_hh_l0", "table"]
    inputs, by_hand = drawn(2, 4, 1, 6, 8), copy.deepcopy(module)
    weights: dict[str, WeightLearner] = {
        name: Straight(Binary(), module.get_parameter(name), FREE, follows=True) for name in names
    }
    with torch.no_grad():
        plain = module(inputs)
        for name in names:
            weight = by_hand.get_parameter(name)
            weight.copy_(Binary().levels(weight).project(weight))
        wanted = by_hand(inputs)
    insert_(module, weights, {})
    with torch.set_grad_enabled(gradients):
        found = module(inputs)
    torch.testing.assert_close(found, wanted)
    assert (plain - wanted).abs().max() > 0.01
    if gradients:
        found.sum().backward()
        assert all(module.get_parameter(name).grad is not None for name in names)
    take_out_(module)
    with torch.no_grad():
        assert torch.equal(module(inputs), plain)


def test_inputs_are_rounded_where_torch_would_call_no_layer() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = Encoder().eval()
    seen: list[Tensor] = []
    insert_(module, {}, {"body.linear1": InputStep(InputGrid(2, 0.5, 1))})
    module.body.linear1.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    with torch.no_grad():
        predict(module, torch.randint(0, 256, (4, 1, 6, 8)).to(torch.uint8))
    assert set(seen[0].unique().tolist()) <= {-0.5, 0.0, 0.5, 1.0}


def test_a_weight_of_two_names_has_one_learner() -> None:
    first, last = nn.Linear(4, 4), nn.Linear(4, 4)
    last.weight = first.weight
    module, weight, inputs = nn.Sequential(first, nn.ReLU(), last), first.weight, drawn(0, 3, 4)
    rounded = Binary().levels(weight.detach()).project(weight.detach())
    insert_(module, {"0.weight": Straight(Binary(), weight.detach(), FREE, follows=True)}, {})
    hidden = nn.functional.linear(inputs, rounded, first.bias).relu()
    assert torch.equal(module(inputs), nn.functional.linear(hidden, rounded, last.bias))
    assert first.weight is weight
    assert last.weight is weight


# Trainings


TRAIN, VALIDATION = striped(0), striped(1, 48)
NET = Resnet(widths=(4, 8), blocks=(1, 1))
ENDS = ("stem.0.weight", "head.weight")


def start(architecture: Resnet | Mlp = NET, **held: Constraints) -> Checkpoint:
    module = build(architecture, (1, 8, 8), 3, seed=1).eval()
    checkpoint = Checkpoint(architecture, (1, 8, 8), TRAIN.classes, module)
    return checkpoint.narrowed({name.replace("__", "."): c for name, c in held.items()})


def masks(checkpoint: Checkpoint) -> dict[str, Constraints]:
    """Return a mask of half of each weight."""
    return {n: Constraints(mask=half(tuple(w.shape))) for n, w in compressible(checkpoint.module).items()}


def training(**changes: Any) -> Training:
    recipe: dict[str, Any] = {
        "epochs": 3,
        "batch_size": 16,
        "optimizer": Sgd(learning_rate=0.02),
        "schedule": Cosine(),
        "weight_decay": 0.0001,
        "augmentation": Augmentation(flip=True, shift=0),
        "average": 0.9,
    }
    return Training(**(recipe | changes))


def schemes(checkpoint: Checkpoint, scheme: Scheme) -> dict[str, Scheme]:
    """Return the scheme for all weights but the first and the last, which have eight bits."""
    return {n: Integer(bits=8) if n in ENDS else scheme for n in compressible(checkpoint.module)}


def grids(checkpoint: Checkpoint, bits: int) -> dict[str, Grid]:
    """Return a grid for each layer's inputs, the first two-sided, and for both sides of each addition."""
    layers = [name.removesuffix(".weight") for name in compressible(checkpoint.module)]
    found: dict[str, Grid] = {name: InputGrid(bits, 3.0 / (2**bits - 1), 0) for name in layers[1:]}
    found[layers[0]] = InputGrid(8, torch.tensor(0.025).item(), 100)
    sums = [n for n, layer in checkpoint.module.named_modules() if isinstance(layer, Summand)]
    return found | {name: InputGrid(8, torch.tensor(0.05).item(), 128) for name in sums}


def run(
    folder: Path,
    checkpoint: Checkpoint,
    scheme: Scheme,
    train: Trainer,
    bits: int | None = None,
    more: Mapping[str, Grid] | None = None,
) -> tuple[Checkpoint, list[EpochMetrics]]:
    return train_rounded(
        checkpoint,
        schemes(checkpoint, scheme),
        {**(grids(checkpoint, bits) if bits else {}), **(more or {})},
        train,  # type: ignore[arg-type]  # each is a member of the union
        loss=train.training.hard_loss(),
        examples=TRAIN,
        validation=VALIDATION,
        run=Run("test", 5, lambda: Scratch(folder, "id")),
    )


WAYS: dict[str, tuple[Scheme, Callable[[Training], Trainer], int | None]] = {
    "ste": (PowerOfTwo(bits=4), lambda t: Ste(training=t), 4),
    "ste-signs": (Binary(balanced=True), lambda t: Ste(training=t), None),
    "lsq": (Integer(bits=3, symmetric=False), lambda t: Lsq(training=t), 3),
    "pact": (Ternary(), lambda t: Pact(training=t), 4),
    "ttq": (Ternary(), lambda t: Ttq(training=t), None),
    "error-decay": (Binary(balanced=True), lambda t: ErrorDecay(training=t), 1),
    "centroids": (Codebook(entries=6), lambda t: Centroids(training=t), 8),
}


@pytest.mark.parametrize(
    ("way", "average"),
    [
        *((way, 0.9 * (at % 2)) for at, way in enumerate(WAYS)),
        *(pytest.param(way, 0.9 * (1 - at % 2), marks=pytest.mark.slow) for at, way in enumerate(WAYS)),
    ],
)
def test_what_comes_out_is_what_was_trained(way: str, average: float, tmp_path: Path) -> None:
    scheme, make, bits = WAYS[way]
    parent = start().narrowed(masks(start()))
    before = {name: tensor.clone() for name, tensor in state(parent.module).items()}
    clamps = {"head": Range(0.0, 2.5)}
    parent = parent.narrowed({}, clamps=clamps)
    child, curve = run(tmp_path, parent, scheme, make(training(average=average)), bits)
    assert all(torch.equal(tensor, before[name]) for name, tensor in state(parent.module).items())
    assert list(state(child.module)) == list(before)
    assert list(child.module.state_dict()) == list(parent.module.state_dict())
    assert not child.module.training
    assert child.clamps == clamps
    check_invariants(parent, child)
    for name, weight in compressible(child.module).items():
        held, earlier = child.constraints[name], parent.constraints[name]
        assert held.levels is not None
        assert torch.equal(held.project(weight), weight)
        assert torch.equal(weight == 0, held.project(weight) == 0)
        assert held.mask is not None
        assert torch.equal(held.mask, earlier.mask)  # type: ignore[arg-type]  # there is one
        assert not weight[~held.mask].any()
    # The curve's last row was measured with learners in place: the hardened network answers as they did.
    logits = predict(child.module, VALIDATION.images)
    hits = (logits.argmax(1) == VALIDATION.labels).float().mean().item()
    assert hits == curve[-1]["validation_accuracy"]
    loss = nn.functional.cross_entropy(logits, VALIDATION.labels).item()
    assert loss == pytest.approx(curve[-1]["validation_loss"], rel=1e-6)
    if bits:
        assert child.grids.keys() == grids(parent, bits).keys()
    save(child, tmp_path)
    assert torch.equal(predict(load(tmp_path).module, VALIDATION.images), logits)
    for name, held in folded(child).constraints.items():
        codes = [
            h.levels.codes(compressible(model.module)[name])[h.mask]
            for model, h in ((child, child.constraints[name]), (folded(child), held))
            if h.levels is not None
        ]
        assert torch.equal(*codes)
    if not bits:  # behind a rounding, a difference in the last bit may be one of a step
        assert (predict(folded(child).module, VALIDATION.images) - logits).abs().max().item() < 1e-3


def test_the_hardened_network_answers_to_the_bit_as_with_learners(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_learners: list[Tensor] = []

    def first_ask(module: nn.Module) -> None:
        with_learners.append(predict(module.eval(), VALIDATION.images))
        take_out_(module)

    monkeypatch.setattr("decant.quantize.qat.training.take_out_", first_ask)
    for way, (scheme, make, bits) in WAYS.items():
        child, _ = run(tmp_path / way, start(), scheme, make(training(epochs=1)), bits)
        assert torch.equal(predict(child.module, VALIDATION.images), with_learners.pop()), way


@pytest.mark.parametrize("way", slow_but(("lsq", "ttq"), ("ste-signs", "lsq", "ttq", "error-decay")))
def test_with_patience_levels_and_grids_are_those_of_the_best_epoch(way: str, tmp_path: Path) -> None:
    scheme, make, bits = WAYS[way]
    recipe = training(epochs=6, patience=2, optimizer=Sgd(learning_rate=0.5), average=0.0, l1=0.01)
    child, curve = run(tmp_path, start(), scheme, make(recipe), bits)
    losses = [row["validation_loss"] for row in curve]
    logits = predict(child.module, VALIDATION.images)
    found = nn.functional.cross_entropy(logits, VALIDATION.labels).item()
    assert found == pytest.approx(min(losses), rel=1e-5)
    assert min(losses) < losses[-1]


class Bypassed(nn.Sequential):
    """A network that answers in eval mode past its own hooks, as compiled ones do."""

    def __call__(self, inputs: Tensor) -> Tensor:
        answer: Tensor = super().__call__(inputs) if self.training else self.forward(inputs)
        return answer


def test_a_network_that_answers_otherwise_without_its_learners_is_refused(tmp_path: Path) -> None:
    layers = Bypassed(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 3)).eval()
    parent = Checkpoint(Mlp(hidden=(16,)), (1, 8, 8), TRAIN.classes, layers)
    recipe = Ste(training=training(epochs=1))
    with pytest.raises(DecantError, match="answers otherwise without what rounded its weights"):
        run(tmp_path, parent, Binary(), recipe)


def test_batch_norms_stay_where_folding_would_make_another_function(tmp_path: Path) -> None:
    def made(*layers: nn.Module) -> Quantized:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            first = nn.Conv2d(1, 8, 3, padding=1)
            net = nn.Sequential(first, *layers, nn.MaxPool2d(2), nn.Flatten(), nn.Linear(128, 3)).eval()
        parent = Checkpoint(NET, (1, 8, 8), TRAIN.classes, net)
        sgd = {"kind": "sgd", "learning_rate": 0.05}
        train = {"kind": "ste", "training": {"epochs": 2, "batch_size": 32, "optimizer": sgd}}
        scheme = {"kind": "integer", "bits": 8}
        block = {"op": "quantize", "from": "teacher", "scheme": scheme, "train": train}
        recipe = QuantizeParams.model_validate(block)
        return Recipe(recipe, parent, parent, TRAIN, VALIDATION).trained(Run("model"))

    for result, norms in (
        (made(nn.ReLU(), nn.BatchNorm2d(8)), 1),  # a batch norm over a rectifier
        (made(nn.BatchNorm2d(8), nn.ReLU()), 0),
    ):
        logits = predict(result.model.module, VALIDATION.images)
        found = nn.functional.cross_entropy(logits, VALIDATION.labels).item()
        assert found == pytest.approx(result.curve[-1]["validation_loss"], rel=0.01)
        layers = [layer for layer in result.model.module.modules() if isinstance(layer, nn.BatchNorm2d)]
        assert len(layers) == norms
        assert result.model.folded == (norms == 0)
        assert ("folded" in result.facts) == (norms == 0)  # what cannot be folded is no mistake


@pytest.mark.parametrize(
    ("way", "optimizer"),
    [
        ("lsq", Sgd(learning_rate=0.02)),
        ("error-decay", Adamw(learning_rate=0.003)),
        ("centroids", Adamw(learning_rate=0.003)),
        pytest.param("pact", Adamw(learning_rate=0.003), marks=pytest.mark.slow),
        pytest.param("ttq", Sgd(learning_rate=0.02), marks=pytest.mark.slow),
    ],
)
def test_half_and_half_equals_whole_to_the_bit(
    way: str, optimizer: Sgd | Adamw, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheme, make, bits = WAYS[way]
    recipe = make(training(optimizer=optimizer, epochs=2))
    whole, curve = run(tmp_path / "whole", start(), scheme, recipe, bits)
    original, count = fit_module._epoch, 0

    def interrupted(*arguments: Any) -> Any:
        nonlocal count
        count += 1
        if count > 1:
            raise KeyboardInterrupt
        return original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(fit_module, "_epoch", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "halves", start(), scheme, recipe, bits)
    again, rows = run(tmp_path / "halves", start(), scheme, recipe, bits)
    assert rows == curve
    assert again.grids == whole.grids
    assert all(torch.equal(t, state(again.module)[n]) for n, t in state(whole.module).items())
    assert all(
        held.levels is not None and held.levels.equals(again.constraints[name].levels)
        for name, held in whole.constraints.items()
    )


@pytest.mark.parametrize("way", slow_but(("lsq", "error-decay", "centroids"), WAYS))
def test_it_learns(way: str, tmp_path: Path) -> None:
    scheme, make, _ = WAYS[way]
    optimizer: Sgd | Adamw = Adamw(learning_rate=0.01)
    _, curve = run(tmp_path, start(), scheme, make(training(epochs=8, optimizer=optimizer)))
    assert curve[-1]["loss"] < 0.75 * curve[0]["loss"]


def test_lsq_moves_steps_and_grids_and_ste_leaves_them(tmp_path: Path) -> None:
    scheme, parent = Integer(bits=3, group=16), start()
    before = grids(parent, 3)
    learned, _ = run(tmp_path / "lsq", parent, scheme, Lsq(training=training()), 3)
    straight, _ = run(tmp_path / "ste", parent, scheme, Ste(training=training()), 3)
    assert straight.grids == before
    for name, grid in learned.grids.items():
        fixed = isinstance(parent.module.get_submodule(name), Summand)
        assert (grid == before[name]) == fixed, name
        assert isinstance(grid, InputGrid)
        assert grid.scale > 0
        assert grid.zero_point == before[name].zero_point  # type: ignore[union-attr]  # all are static
    for name, chosen in schemes(parent, scheme).items():
        calibrated = chosen.levels(parent.module.get_parameter(name).detach())
        assert calibrated.equals(straight.constraints[name].levels)
        assert not calibrated.equals(learned.constraints[name].levels)
        assert learned.constraints[name].levels.group == calibrated.group  # type: ignore[union-attr]


def test_pact_learns_one_sided_grids_and_its_decay_pulls_at_them(tmp_path: Path) -> None:
    before = grids(start(), 4)
    kept, _ = run(tmp_path / "0", start(), Integer(bits=4), Pact(training=training(), decay=0.0), 4)
    pulled, _ = run(tmp_path / "1", start(), Integer(bits=4), Pact(training=training(), decay=0.5), 4)
    assert kept.grids["stem.0"] == before["stem.0"]
    assert kept.grids["stages.0.branch"] == before["stages.0.branch"]
    for name in ("stages.0.conv1", "head"):
        one, other = kept.grids[name], pulled.grids[name]
        assert isinstance(one, InputGrid)
        assert isinstance(other, InputGrid)
        assert other.scale < 0.95 * one.scale


def test_grids_of_each_batch_and_those_of_the_parent_stay(tmp_path: Path) -> None:
    first = InputGrid(8, torch.tensor(0.01).item(), 0)
    parent = start().narrowed({}, {"stem.0": first})
    dynamic = {"head": DynamicGrid(8)}
    child, _ = run(tmp_path, parent, Integer(bits=4), Lsq(training=training(epochs=1)), more=dynamic)
    assert child.grids == {"stem.0": first, "head": DynamicGrid(8)}


def test_weights_with_levels_keep_them_and_are_not_rounded_twice(tmp_path: Path) -> None:
    parent = start()
    head = parent.module.get_parameter("head.weight").detach()
    parent = parent.narrowed({"head.weight": Constraints(levels=Integer(bits=4).levels(head))})
    recipe = Lsq(training=training(epochs=1))
    with pytest.raises(DecantError, match=r"head\.weight is quantized already; quantize an ancestor"):
        run(tmp_path, parent, Integer(bits=3), recipe)
    others = {n: s for n, s in schemes(parent, Integer(bits=3)).items() if n != "head.weight"}
    child, _ = train_rounded(
        parent,
        others,
        {},
        recipe,
        loss=recipe.training.hard_loss(),
        examples=TRAIN,
        validation=VALIDATION,
        run=Run("test", 5, lambda: Scratch(tmp_path, "id")),
    )
    check_invariants(parent, child)
    assert not torch.equal(
        child.module.get_parameter("head.weight"), parent.module.get_parameter("head.weight")
    )


def test_a_weight_without_levels_is_named(tmp_path: Path) -> None:
    parent = start()
    with torch.no_grad():
        parent.module.get_parameter("stages.0.conv1.weight")[0, 0, 0, 0] = math.nan
    with pytest.raises(DecantError, match=r"stages\.0\.conv1\.weight holds NaN or infinity"):
        run(tmp_path, parent, Ternary(), Ste(training=training()))


def test_plain_networks_are_trained_too(tmp_path: Path) -> None:
    parent = start(Mlp(hidden=(16, 8)))
    recipe = Lsq(training=training(epochs=16, optimizer=Adamw(learning_rate=0.01)))
    _, curve = run(tmp_path, parent, Integer(bits=2), recipe)
    assert curve[-1]["validation_accuracy"] > 0.9


# What params.yaml may ask for


@pytest.mark.parametrize("kind", TRAINERS)
def test_trainers_survive_the_yaml_round_trip(kind: type[Trainer]) -> None:
    block = {"kind": kind.model_fields["kind"].default, "training": {"epochs": 1}}
    train = validate(block, Train)
    assert type(train) is kind
    assert validate(train.model_dump(), Train) == train
    assert kind.__doc__ is not None
    words = " ".join(kind.__doc__.split())
    assert "oes not help" in words or "nothing to gain" in words


@pytest.mark.parametrize("kind", TRAINERS)
@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("activations", [False, True])
def test_pairings(kind: type[Trainer], scheme: Scheme, activations: bool) -> None:
    fits = {
        "ste": True,
        "lsq": scheme.kind == "integer",
        "pact": activations,
        "ttq": scheme.kind == "ternary",
        "error-decay": scheme.kind == "binary",
        "centroids": scheme.kind == "codebook",
    }
    train = validate({"kind": kind.model_fields["kind"].default, "training": {"epochs": 1}}, Train)
    assert (check_pairing(train, scheme, activations) == "") == fits[train.kind]


def test_a_wrong_pairing_is_refused_in_words() -> None:
    lsq, pact = Lsq(training=training()), Pact(training=training())
    assert check_pairing(lsq, Binary(), False) == (
        "train.kind: lsq trains weights of the scheme integer, and these are binary; "
        "take one of ['ste', 'error-decay']"
    )
    assert check_pairing(pact, Ternary(), False) == (
        "train.kind: pact learns where inputs are cut, and there are no activations to round; "
        "add activations, or take one of ['ste', 'ttq']"
    )


def test_a_gradient_that_would_widen_is_refused() -> None:
    with pytest.raises(ValueError, match=r"first 5\.0 is above last 1\.0; the gradient only narrows"):
        ErrorDecay(training=training(), first=5.0, last=1.0)


# The temperature


@given(st.floats(0.1, 20), st.integers(1, 8))
def test_high_temperatures_are_warned_of_where_bits_are_few(temperature: float, bits: int) -> None:
    words = warning(Temperature(temperature=temperature), bits)
    assert (words is not None) == (temperature > 2 and bits <= 3)
    assert warning(Softmax(), bits) is None
    assert warning(None, bits) is None


@pytest.mark.parametrize(("bits", "temperature", "told"), [(3, 5.0, True), (4, 5.0, False), (3, 2.0, False)])
def test_finetuning_few_bits_on_a_high_temperature_is_told(
    bits: int, temperature: float, told: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent = start()
    for name, width in (("head.weight", 8), ("stages.0.conv1.weight", bits)):
        levels = Integer(bits=width).levels(parent.module.get_parameter(name).detach())
        parent = parent.narrowed({name: Constraints(levels=levels)})
    recipe = FinetuneParams.model_validate(
        {
            "op": "finetune",
            "from": "some",
            "training": {"epochs": 1},
            "loss": {"kind": "temperature", "temperature": temperature},
        }
    )

    def moved(module: nn.Module, *_: Any, **__: Any) -> list[EpochMetrics]:
        with torch.no_grad():
            module.get_parameter("stem.0.weight").add_(1)
        return []

    monkeypatch.setattr("decant.finetune.operation.fit_", moved)
    facts = finetune(parent, recipe, Splits(TRAIN, VALIDATION)).facts
    words = "loss.temperature: 5 is more than 3-bit weights can follow; try 1 to 2"
    assert facts == ({"warning": words} if told else {})


def test_the_warning_says_what_to_try() -> None:
    assert warning(Temperature(temperature=5), 3) == (
        "loss.temperature: 5 is more than 3-bit weights can follow; try 1 to 2"
    )
