"""Least squares within masks, ranges and levels: against SciPy, every choice there is, and loops of lstsq."""

import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import lsq_linear
from torch import Tensor

from decant.checkpoints.checkpoint import Checkpoint
from decant.checkpoints.constraints import FREE, Constraints, Levels, Range
from decant.errors import DecantError
from decant.examples import Examples, Splits, pixels
from decant.networks.architectures import Mlp, build
from decant.prune.channels.channel_pruning import ChannelPruning
from decant.prune.mask_pruning import MaskPruning
from decant.prune.params import PruneParams
from decant.prune.structures import lowest
from decant.quantize.schemes import Binary, Codebook, Integer, Ternary
from decant.reconstruction.elementwise import errors, per_element
from decant.reconstruction.least_squares import normal_equations
from decant.reconstruction.obs import channel_order, prune
from decant.reconstruction.within import fitted, optimum
from tasks.pipeline.params import validate
from tests.drawn import drawn


def leaning(seed: int, count: int, width: int) -> Tensor:
    """Inputs that lean on each other, as behind a layer."""
    return (drawn(seed, count, width) @ drawn(seed + 1, width, width) / math.sqrt(width) + 0.3).double()


def bounded(inputs: Tensor, outputs: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Return SciPy's least squares of one row in a range."""
    found = lsq_linear(inputs.numpy(), outputs.numpy(), (low.numpy(), high.numpy()), method="bvls", tol=1e-14)
    return torch.from_numpy(found.x)


@settings(max_examples=25)
@given(st.integers(0, 10**6), st.sampled_from([0.05, 0.5, 2.0]), st.booleans(), st.booleans())
def test_the_optimum_within_a_mask_and_a_range_is_scipys(
    seed: int, size: float, one_sided: bool, masked: bool
) -> None:
    rows, width = 5, 7
    inputs, weight = leaning(seed, 30, width), drawn(seed + 2, rows, width)
    other = inputs + 0.3 * drawn(seed + 3, 30, width)
    mask = drawn(seed + 4, rows, width) > -0.5 if masked else None
    held = Constraints(Range(0.0 if one_sided else -size, size), mask=mask)
    held = per_element(held, weight.shape)
    problem = normal_equations(weight, other.mT @ other / 30, other.mT @ inputs / 30, 0.0)
    found = optimum(problem, held)
    assert isinstance(held.range, Range)
    for row in range(rows):
        kept = torch.arange(width) if mask is None else mask[row].nonzero()[:, 0]
        low, high = (torch.as_tensor(end)[row, kept].double() for end in (held.range.low, held.range.high))
        expected = torch.zeros(width, dtype=torch.double)
        if len(kept):
            expected[kept] = bounded(other[:, kept], inputs @ weight[row].double(), low, high)
        torch.testing.assert_close(found[row], expected, rtol=1e-6, atol=1e-8)


HELD: dict[str, Any] = {
    "integers": lambda weight: Constraints(levels=Integer(bits=2).levels(weight)),
    "integers in a range": lambda weight: Constraints(Range(-0.4, 0.6), Integer(bits=3).levels(weight)),
    "affine groups": lambda w: Constraints(levels=Integer(bits=2, symmetric=False, group=16).levels(w)),
    "signs": lambda weight: Constraints(levels=Binary().levels(weight)),
    "ternary": lambda weight: Constraints(levels=Ternary().levels(weight)),
    "codebook, masked": lambda weight: Constraints(
        levels=Codebook(entries=4).levels(weight, weight.abs() > 0.3), mask=weight.abs() > 0.3
    ),
}


@pytest.mark.parametrize("kind", HELD)
@settings(max_examples=15)
@given(seed=st.integers(0, 10**6))
def test_among_levels_no_single_weight_makes_it_better_and_no_projection_is(kind: str, seed: int) -> None:
    weight, inputs = drawn(seed, 4, 6), leaning(seed + 1, 24, 6)
    held = per_element(HELD[kind](weight), weight.shape)
    problem = normal_equations(weight, inputs.mT @ inputs / 24, None, 0.01)
    found = fitted(problem, held, weight)
    assert torch.equal(held.project(found), found)
    least = errors(problem, found)
    room = 1e-6 * least.abs()
    for other in (held.project(weight), held.project(optimum(problem, held).float())):
        assert (least <= errors(problem, other) + room).all()
    assert held.levels is not None
    for column, code in itertools.product(range(6), range(len(held.levels.values))):
        moved = found.clone()
        codes = torch.full_like(moved, code).long()
        moved[:, column] = held.project(held.levels.decode(codes))[:, column]
        assert (least <= errors(problem, moved) + room).all()


def test_among_levels_it_is_nearly_the_best_of_all_choices() -> None:
    total = best = projected = 0.0
    for seed in range(12):
        weight, inputs = drawn(seed, 1, 6), leaning(seed + 1, 24, 6)
        levels = Levels(torch.tensor([-1.0, 0.0, 1.0]), torch.tensor(0.9))
        problem = normal_equations(weight, inputs.mT @ inputs / 24, None, 0.0)
        choices = torch.tensor(list(itertools.product((-0.9, 0.0, 0.9), repeat=6)))
        outputs = inputs @ weight[0].double()
        off = (inputs @ choices.double().mT - outputs[:, None]).square().mean(0)
        held = per_element(Constraints(levels=levels), weight.shape)
        found = fitted(problem, held, weight)
        total += (inputs @ found[0].double() - outputs).square().mean().item()
        projected += (inputs @ levels.project(weight)[0].double() - outputs).square().mean().item()
        best += off.min().item()
    assert best <= total <= 1.15 * best
    assert projected > 1.5 * best


def test_weights_on_inputs_that_are_always_zero_stay_where_they_are_allowed() -> None:
    weight, inputs = drawn(0, 3, 4), leaning(1, 20, 4)
    inputs[:, 2] = 0.0
    problem = normal_equations(weight, inputs.mT @ inputs / 20, None, 0.01)
    held = per_element(Constraints(Range(-0.5, 0.5)), weight.shape)
    assert torch.equal(fitted(problem, held, weight)[:, 2], weight[:, 2].clamp(-0.5, 0.5))


# --- whole operations: what a parent's weight obeys already


def parent_of(kind: str) -> tuple[Checkpoint, Splits]:
    """Return a network whose hidden units can stand in for one another, its last weight held already."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (400, 1, 4, 4), generator=generator).to(torch.uint8)
    module = build(Mlp(hidden=(16,)), (1, 4, 4), 6, seed=0).eval()
    with torch.no_grad():
        first = torch.randn(16, 3, generator=generator) @ torch.randn(3, 16, generator=generator) / 4
        module.get_parameter("layers.0.weight").copy_(first)
        last = module.get_parameter("layers.2.weight").normal_(generator=generator).detach().clone()
    mask = torch.rand(6, 16, generator=generator) < 0.5
    held = {
        "mask": Constraints(mask=mask),
        "range": Constraints(Range(-0.8, 0.8)),
        "channel's range, mask": Constraints(
            Range(torch.full((6, 1), -0.9), torch.linspace(0.5, 1.0, 6)[:, None]), mask=mask
        ),
        "levels": Constraints(levels=Integer(bits=3).levels(last)),
        "levels, mask": Constraints(levels=Integer(bits=4).levels(last, mask), mask=mask),
        "affine": Constraints(levels=Integer(bits=4, symmetric=False).levels(last)),
        "codebook": Constraints(levels=Codebook(entries=6).levels(last)),
    }[kind]
    parent = Checkpoint(Mlp(hidden=(16,)), (1, 4, 4), tuple("abcdef"), module)
    examples = Examples(images, torch.arange(400) % 6, parent.classes)
    return parent.narrowed({"layers.2.weight": held}), Splits(examples, examples)


KINDS = ["mask", "range", "channel's range, mask", "levels", "levels, mask", "affine", "codebook"]


def hidden_of(parent: Checkpoint, images: Tensor) -> Tensor:
    with torch.no_grad():
        return parent.module[:2](pixels(images)), torch.relu(
            parent.module.get_submodule("layers.0")(parent.module[:2](pixels(images)))
        ).double()


@pytest.mark.parametrize("kind", KINDS)
def test_layers_that_lose_channels_are_solved_within_what_they_satisfy(kind: str) -> None:
    parent, splits = parent_of(kind)
    block = {
        "op": "prune",
        "from": "teacher",
        "criterion": {"kind": "reconstruction", "damping": 1e-9, "images": 400},
        "structure": {"kind": "channels"},
        "budget": {"sparsity": 0.5},
    }
    result = ChannelPruning(validate(block, PruneParams), parent, parent, splits, 0).pruned()
    left, held = result.kept["layers.0.weight"][0], result.model.constraints["layers.2.weight"]
    weight = result.model.module.get_parameter("layers.2.weight").detach()
    _, hidden = hidden_of(parent, splits.train.images)
    assert torch.equal(held.project(weight), weight)
    old = parent.module.get_parameter("layers.2.weight").detach()
    wanted = hidden @ old.double().mT
    found = (hidden[:, left] @ weight.double().mT - wanted).square().sum().item()
    free = torch.linalg.lstsq(hidden[:, left], wanted).solution.mT
    afterwards = held.project(free.float()).double()
    projected = (hidden[:, left] @ afterwards.mT - wanted).square().sum().item()
    written = per_element(held, weight.shape)
    if held.levels is None:
        assert found <= 1.001 * sum(
            least(hidden[:, left], wanted[:, row], written, row) for row in range(len(old))
        )
    assert found < 0.7 * projected


def least(inputs: Tensor, outputs: Tensor, held: Constraints, row: int) -> float:
    """Return the least squared error of a row within its mask and range."""
    kept = torch.arange(inputs.shape[1]) if held.mask is None else held.mask[row].nonzero()[:, 0]
    bounds = held.range or Range()
    low, high = (
        torch.as_tensor(end).double().expand(len(inputs[0]))[kept]
        if not isinstance(end, Tensor)
        else end[row, kept].double()
        for end in (bounds.low, bounds.high)
    )
    best = bounded(inputs[:, kept], outputs, low, high)
    return (inputs[:, kept] @ best - outputs).square().sum().item()


@pytest.mark.parametrize("kind", KINDS)
def test_survivors_of_surgery_make_up_within_what_they_satisfy(kind: str) -> None:
    parent, splits = parent_of(kind)
    block = {
        "op": "prune",
        "from": "teacher",
        "criterion": {"kind": "obs", "damping": 1e-9, "images": 400},
        "budget": {"sparsity": 0.7},
        "skip": ["layers.0"],
    }
    model = MaskPruning(validate(block, PruneParams), parent, parent, splits, 0).pruned().model
    held, weight = (
        model.constraints["layers.2.weight"],
        model.module.get_parameter("layers.2.weight").detach(),
    )
    assert held.mask is not None
    assert int((~held.mask).sum()) == round(0.7 * 96)
    assert torch.equal(held.project(weight), weight)
    _, hidden = hidden_of(parent, splits.train.images)
    old = parent.module.get_parameter("layers.2.weight").detach().double()
    wanted, written = hidden @ old.mT, per_element(held, weight.shape)
    found = (hidden @ weight.double().mT - wanted).square().sum().item()
    free = torch.zeros_like(old)
    for row in range(6):
        kept = held.mask[row].nonzero()[:, 0]
        free[row, kept] = torch.linalg.lstsq(hidden[:, kept], wanted[:, row, None]).solution[:, 0]
    projected = (hidden @ held.project(free.float()).double().mT - wanted).square().sum().item()
    if held.levels is None:
        assert found <= 1.001 * sum(least(hidden, wanted[:, row], written, row) for row in range(6))
    assert found <= projected * 1.001


def test_a_layer_that_comes_after_sees_what_is_written() -> None:
    """The next layer is solved on what the held one sends it, its levels included."""
    parent, splits = parent_of("levels")
    first = parent.module.get_parameter("layers.0.weight").detach()
    parent = parent.narrowed({"layers.0.weight": Constraints(levels=Integer(bits=2).levels(first))})
    block = {
        "op": "prune",
        "from": "teacher",
        "criterion": {"kind": "obs", "images": 400},
        "budget": {"sparsity": 0.5},
    }
    model = MaskPruning(validate(block, PruneParams), parent, parent, splits, 0).pruned().model
    for name, held in model.constraints.items():
        assert torch.equal(held.project(model.module.get_parameter(name)), model.module.get_parameter(name))
    _, before = hidden_of(parent, splits.train.images)
    _, after = hidden_of(model, splits.train.images)
    held = per_element(model.constraints["layers.2.weight"], torch.Size((6, 16)))
    weight = parent.module.get_parameter("layers.2.weight").detach()
    problem = normal_equations(weight, after.mT @ after / 400, after.mT @ before / 400, 0.01)
    found = errors(problem, model.module.get_parameter("layers.2.weight").detach())
    assert torch.allclose(found, errors(problem, fitted(problem, held, weight)), rtol=1e-3)


# --- the order of channels under masks


def losses(inputs: Tensor, weight: Tensor, mask: Tensor, channels: list[int], size: int) -> float:
    """Return the squared error once channels are gone and each row is solved for its survivors, by lstsq."""
    total = 0.0
    for row in range(len(weight)):
        kept = [c for c in range(weight.shape[1]) if bool(mask[row, c]) and c // size not in channels]
        wanted = inputs @ weight[row].double()
        found = (
            torch.linalg.lstsq(inputs[:, kept], wanted[:, None]).solution[:, 0] if kept else torch.zeros(0)
        )
        total += (inputs[:, kept] @ found.double() - wanted).square().mean().item()
    return total


@pytest.mark.parametrize("size", [1, 2])
@settings(max_examples=15)
@given(seed=st.integers(0, 10**6))
def test_channels_go_by_what_the_rows_lose_within_their_masks(size: int, seed: int) -> None:
    inputs, mask = leaning(seed, 40, 6), drawn(seed + 2, 3, 6) > -0.4
    weight = torch.where(mask, drawn(seed + 3, 3, 6), 0.0)
    order, found = channel_order(weight, inputs.mT @ inputs / 40, size, mask=mask, damping=0)
    gone: list[int] = []
    for channel, error in zip(order.tolist(), found.tolist(), strict=True):
        left = [c for c in range(6 // size) if c not in gone]
        each = {c: losses(inputs, weight, mask, [*gone, c], size) for c in left}
        assert each[channel] <= min(each.values()) + 1e-6 * max(each.values()) + 1e-12
        gone.append(channel)
        assert error == pytest.approx(each[channel], rel=1e-5, abs=1e-9)


def test_the_order_under_a_mask_that_holds_nothing_is_that_without() -> None:
    inputs, weight = leaning(0, 40, 8), drawn(3, 5, 8)
    hessian = inputs.mT @ inputs / 40
    expected = channel_order(weight, hessian, 2)
    for found, other in zip(channel_order(weight, hessian, 2, mask=weight == weight), expected, strict=True):
        assert torch.equal(found, other)


def test_beyond_some_size_rows_share_the_inverse_of_the_mean_field(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, mask = leaning(0, 200, 12), drawn(1, 6, 12) > -0.2
    weight = torch.where(mask, drawn(2, 6, 12), 0.0)
    exact, _ = channel_order(weight, inputs.mT @ inputs / 200, 1, mask=mask)
    monkeypatch.setattr("decant.reconstruction.obs.EXACT", 0)
    shared, errors_of = channel_order(weight, inputs.mT @ inputs / 200, 1, mask=mask)
    assert sorted(shared.tolist()) == list(range(12))
    assert (errors_of.diff() >= 0).all()
    assert len({*exact[:6].tolist()} & {*shared[:6].tolist()}) >= 4


def test_a_hessian_that_cannot_be_inverted_is_one_sentence() -> None:
    parent, splits = parent_of("mask")
    same = Examples(splits.train.images[:1].repeat(50, 1, 1, 1), torch.zeros(50).long(), parent.classes)
    block = {"op": "prune", "from": "teacher", "budget": {"sparsity": 0.7}}
    block["criterion"] = {"kind": "obs", "damping": 1e-30, "images": 50}
    with pytest.raises(
        DecantError, match=r"layers\.\d\.weight: A Hessian is not positive definite: take more"
    ):
        MaskPruning(validate(block, PruneParams), parent, parent, Splits(same, same), 0).pruned()


def test_surgery_without_constraints_is_what_it_was() -> None:
    inputs, weight = leaning(0, 60, 10), drawn(1, 4, 10)

    def choose(scores: Tensor, zeros: int) -> Tensor:
        return lowest(scores.flatten(), zeros).logical_not().reshape(scores.shape)

    mask, found = prune(weight, inputs.mT @ inputs / 60, 20, choose)
    free = prune(weight, inputs.mT @ inputs / 60, 20, choose, held=FREE)
    wide = prune(
        weight,
        inputs.mT @ inputs / 60,
        20,
        choose,
        held=per_element(Constraints(Range(-9.0, 9.0)), weight.shape),
    )
    assert torch.equal(free[1], found)
    assert torch.equal(wide[0], mask)
    torch.testing.assert_close(wide[1], found)
