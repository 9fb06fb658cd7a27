"""Roundings against inverses computed anew for each column, every choice there is, and numbers by hand."""

import copy
import itertools
import math
from typing import Any, get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import lsq_linear
from torch import Tensor, nn

from decant.calibration.grids import symmetric_levels
from decant.checkpoints.activations import InputGrid
from decant.checkpoints.checkpoint import Checkpoint
from decant.checkpoints.constraints import FREE, Constraints, Levels, Range
from decant.errors import DecantError
from decant.examples import Examples, pixels
from decant.networks.architectures import Mlp
from decant.networks.record import give_example_
from decant.networks.structure import compressible
from decant.prune.structures import lowest
from decant.quantize.params import QuantizeParams
from decant.quantize.quantizable import quantizable
from decant.quantize.recipe import Recipe
from decant.quantize.rounding import adaround
from decant.quantize.rounding.adaround import EDGE, AdaRound, exponent, neighbours, pull, rectified, steepness
from decant.quantize.rounding.gptq import Gptq
from decant.quantize.rounding.layers import round_layers
from decant.quantize.rounding.methods import Nearest, Rounding
from decant.quantize.schemes import Binary, Codebook, Integer, PowerOfTwo, Scheme, Ternary
from decant.reconstruction import within
from decant.reconstruction.elementwise import better, errors, per_element, select_elements
from decant.reconstruction.hessians import InputHessian, moments
from decant.reconstruction.least_squares import normal_equations
from decant.reconstruction.obs import prune, refit
from decant.reconstruction.within import optimum
from tasks.pipeline.params import validate
from tests.drawn import drawn
from tests.nets import NETS, net
from tests.nets import images as pictures

ROUNDINGS: tuple[type[Rounding], ...] = get_args(get_args(Rounding)[0])
WIDE = {"kind": "integer", "bits": 8}
LEARNED = (Gptq(), AdaRound(steps=40))
SCHEMES: tuple[Scheme, ...] = (
    Integer(bits=4),
    Integer(bits=2),
    Integer(bits=3, per_channel=False),
    Integer(bits=3, group=16),
    Integer(bits=3, symmetric=False),
    Integer(bits=2, group=16, symmetric=False),
    Ternary(),
    Binary(),
    Codebook(entries=5),
    PowerOfTwo(bits=3),
)


def chance(seed: int, *shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def second(now: Tensor, then: Tensor) -> Tensor:
    """Return mean x̂ xᵀ [G, d, d] of rows of inputs [G, P, d]."""
    return now.double().mT @ then.double() / now.shape[1]


def some_moments(
    seed: int, width: int, groups: int = 1, *, crossed: bool = True, count: int = 0
) -> InputHessian:
    """Moments of inputs that lean on each other, as behind a layer, and of the reference's, which differ."""
    rows = count or 4 * width + 8
    now = drawn(seed, groups, rows, width) @ drawn(seed + 1, groups, width, width) / math.sqrt(width) + 0.3
    then = now + 0.2 * drawn(seed + 2, groups, rows, width)
    return InputHessian(second(now, now), second(now, then) if crossed else None, rows)


def plain(hessian: list[list[float]]) -> InputHessian:
    return InputHessian(torch.tensor([hessian], dtype=torch.double), None, 9)


def whole(step: float = 1.0, last: int = 8) -> Constraints:
    """Return the whole numbers from -last to last, times a step."""
    return Constraints(levels=Levels(torch.arange(-last, last + 1).float(), torch.tensor(step)))


def off(weight: Tensor, rounded: Tensor, seen: InputHessian) -> list[float]:
    """Return each row's squared error, less what any row leaves, by the definition, a row at a time."""
    rows, other, total = weight.flatten(1).double(), rounded.flatten(1).double(), []
    each = len(rows) // len(seen.hessian)
    for row in range(len(rows)):
        hessian = seen.hessian[row // each]
        cross = hessian if seen.cross is None else seen.cross[row // each]
        total.append((other[row] @ hessian @ other[row] - 2 * other[row] @ cross @ rows[row]).item())
    return total


# --- the exam


@st.composite
def problems(draw: st.DrawFn) -> tuple[Tensor, Constraints, InputHessian]:
    """A weight of any kind of layer, with levels of any kind, and maybe a mask, a range and dead inputs."""
    seed, groups = draw(st.integers(0, 10**6)), draw(st.sampled_from([1, 2, 3]))
    inner = draw(st.sampled_from([(5,), (2, 3), (1, 2, 2), (3, 2, 3), (2, 1, 2, 2)]))
    weight = drawn(seed, groups * draw(st.integers(1, 3)), *inner) * draw(st.sampled_from([1.0, 1e-3, 50.0]))
    mask = (
        chance(seed + 1, *weight.shape) < draw(st.sampled_from([0.2, 0.7])) if draw(st.booleans()) else None
    )
    scheme = draw(st.sampled_from(SCHEMES))
    ends = (-1.1 * weight.std().item(), 0.7 * weight.std().item())
    column = (1 + chance(seed, len(weight), *[1] * len(inner))) / 2
    bounds = draw(
        st.sampled_from([None, Range(*ends), Range(high=ends[1]), Range(ends[0] * column, ends[1] * column)])
    )
    seen = some_moments(seed, math.prod(inner), groups, crossed=draw(st.booleans()))
    if draw(st.booleans()):
        seen = without(seen, [0, math.prod(inner) - 1])
    return weight, Constraints(bounds, scheme.levels(weight, mask), mask), seen


def without(seen: InputHessian, inputs: list[int]) -> InputHessian:
    """Return the moments where some inputs are always zero, in the rounded network and in the reference."""
    kept = torch.ones(seen.hessian.shape[1], dtype=torch.double)
    kept[inputs] = 0.0
    both = kept[:, None] * kept
    return InputHessian(seen.hessian * both, None if seen.cross is None else seen.cross * both, seen.count)


@given(
    problems(), st.sampled_from([*LEARNED, Gptq(order="index", damping=0.5), AdaRound(steps=3), Nearest()])
)
def test_exam(problem: tuple[Tensor, Constraints, InputHessian], rounding: Rounding) -> None:
    weight, held, seen = problem
    before = weight.clone()
    found = rounding.rounded(weight, held, seen)
    assert found.dtype == torch.float32
    assert found.shape == weight.shape
    assert torch.equal(held.project(found), found)
    assert held.broken_by(found, held) == []
    assert held.mask is None or not found[~held.mask].any()
    assert torch.equal(rounding.rounded(weight, held, seen), found)
    assert torch.equal(weight, before)
    nearest = held.project(weight)
    size = 1e-9 * max(map(abs, off(weight, nearest, seen)))
    for row, plainly in zip(off(weight, found, seen), off(weight, nearest, seen), strict=True):
        assert row <= plainly + size


@pytest.mark.parametrize("kind", ROUNDINGS)
def test_each_is_named_and_says_where_it_does_not_help(kind: type[Rounding]) -> None:
    rounding = validate({"kind": kind.model_fields["kind"].default}, Rounding)
    assert type(rounding) is kind
    assert validate(rounding.model_dump(), Rounding) == rounding
    assert kind.__doc__ is not None
    assert "oes not help" in kind.__doc__


def test_nearest_is_the_projection_and_reads_no_moments() -> None:
    weight = drawn(0, 3, 4)
    held = Constraints(Range(-1.0, 1.0), Integer(bits=3).levels(weight), weight > -0.5)
    assert torch.equal(Nearest().rounded(weight, held, None), held.project(weight))


@pytest.mark.parametrize("rounding", LEARNED, ids=lambda r: r.kind)
def test_errors_of_a_layer_in_words(rounding: Rounding) -> None:
    weight, seen = drawn(0, 4, 6), some_moments(0, 6)
    held = Constraints(levels=Integer(bits=3).levels(weight))
    with pytest.raises(ValueError, match=f"{rounding.kind} needs moments of the layer's inputs"):
        rounding.rounded(weight, held, None)
    with pytest.raises(ValueError, match="The weight has no levels to round to"):
        rounding.rounded(weight, Constraints(mask=weight > 0), seen)
    with pytest.raises(ValueError, match=r"A Hessian \[1, 5, 5\] does not fit a weight \[4, 6\]"):
        rounding.rounded(weight, held, some_moments(0, 5))


def test_a_singular_hessian_needs_damping_where_it_is_inverted() -> None:
    weight, seen = drawn(0, 4, 6), some_moments(0, 6, count=3)
    held = Constraints(levels=Integer(bits=3).levels(weight))
    with pytest.raises(ValueError, match="not positive definite: take more images, or more damping"):
        Gptq(damping=0.0).rounded(weight, held, seen)
    assert torch.isfinite(Gptq(damping=0.01).rounded(weight, held, seen)).all()
    assert torch.isfinite(AdaRound(steps=20).rounded(weight, held, seen)).all()


@pytest.mark.parametrize("rounding", [Gptq(), Gptq(damping=0.0), AdaRound()], ids=str)
def test_dead_inputs_are_rounded_to_nearest_and_move_no_others(rounding: Rounding) -> None:
    weight, dead = drawn(0, 4, 8), [0, 3, 7]
    live = [1, 2, 4, 5, 6]
    held = Constraints(levels=Levels(torch.arange(-3.0, 4), torch.tensor(0.5)))
    seen = without(some_moments(0, 8), dead)
    found = rounding.rounded(weight, held, seen)
    assert torch.equal(found[:, dead], held.project(weight[:, dead]))
    assert not torch.equal(found[:, live], held.project(weight[:, live]))
    assert seen.cross is not None
    fewer = InputHessian(seen.hessian[:, live][:, :, live], seen.cross[:, live][:, :, live], seen.count)
    if isinstance(rounding, Gptq):
        assert torch.equal(found[:, live], rounding.rounded(weight[:, live], held, fewer))


# --- rows


@st.composite
def written(draw: st.DrawFn) -> tuple[Tensor, Constraints]:
    """A weight and levels whose scales and zero points are of any scope, negative ones included."""
    seed, shape = draw(st.integers(0, 10**6)), draw(st.sampled_from([(4, 7), (3, 2, 3), (2, 3, 2, 2)]))
    weight = drawn(seed, *shape)
    width = math.prod(shape[1:])
    group = draw(st.sampled_from([None, 2, 3, width]))
    scope = draw(st.sampled_from([(), (shape[0], *[1] * (len(shape) - 1))]))
    sizes = scope if group is None else (shape[0], -(-width // group))
    scale = (0.1 + chance(seed, *sizes)) * draw(st.sampled_from([1.0, -1.0]))
    zero = (chance(seed + 1, *sizes) * 4).floor() if draw(st.booleans()) else None
    values = torch.arange(8.0) if zero is not None else drawn(seed + 2, 5).sort().values
    bounds = Range(
        -chance(seed, shape[0], *[1] * (len(shape) - 1)),
        torch.tensor(0.5).expand(shape[0], *[1] * (len(shape) - 1)),
    )
    mask = weight > -0.5 if draw(st.booleans()) else None
    return weight, Constraints(
        draw(st.sampled_from([None, bounds])), Levels(values, scale, zero, group), mask
    )


@given(written(), st.integers(0, 100))
def test_written_out_constraints_project_each_part_as_the_whole_to_the_bit(
    problem: tuple[Tensor, Constraints], seed: int
) -> None:
    weight, held = problem
    each, expected = per_element(held, weight.shape), held.project(weight).flatten(1)
    rows = weight.flatten(1)
    assert torch.equal(each.project(rows), expected)
    columns = torch.randperm(rows.shape[1], generator=torch.Generator().manual_seed(seed))[:2]
    part = select_elements(each, lambda numbers: numbers[:, columns])
    assert torch.equal(part.project(rows[:, columns]), expected[:, columns])


def test_errors_and_the_better_row_by_hand() -> None:
    problem = normal_equations(
        torch.tensor([[1.0, 1.0], [1.0, 1.0]]), torch.tensor([[2.0, 1.0], [1.0, 1.0]]), None, 0.0
    )
    # w' H w' - 2 w' H w, with H w = (3, 2): at (1, 0) 2 - 6, at (0, 1) 1 - 4, at (1, 1) 5 - 10, at 0 nothing.
    first = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    other = torch.tensor([[0.0, 1.0], [1.0, 1.0]])
    assert errors(problem, first).tolist() == [-4.0, 0.0]
    assert errors(problem, other).tolist() == [-3.0, -5.0]
    assert better(problem, first, other).tolist() == [[1.0, 0.0], [1.0, 1.0]]
    # Of equal ones the first; this one is told from the second by the sign of its zero.
    equal = better(problem, torch.tensor([[-0.0, 0.0]] * 2), torch.zeros(2, 2))
    assert torch.signbit(equal[:, 0]).all()


def test_the_optimum_is_least_squares_within_the_mask() -> None:
    weight, mask, seen = drawn(0, 4, 6), drawn(1, 4, 6) > -0.5, some_moments(0, 6)
    problem = normal_equations(weight, seen.hessian, seen.cross, 0.1)
    expected = refit(weight, Constraints(mask=mask), seen.hessian[0], seen.cross[0], damping=0.1)  # type: ignore[index]
    assert torch.allclose(optimum(problem, Constraints(mask=mask)).float(), expected, atol=1e-6)
    everywhere = torch.ones_like(mask)
    assert torch.allclose(optimum(problem, FREE), optimum(problem, Constraints(mask=everywhere)), atol=1e-9)


# --- gptq


def level_of(weight: float, held: Constraints, row: int, column: int, shape: torch.Size) -> float:
    """Return the nearest level to a weight, cut to its range first, by a loop over all levels."""
    at = torch.arange(shape.numel()).reshape(shape).flatten(1)[row, column]
    levels, bounds = held.levels, held.range
    assert levels is not None
    if held.mask is not None and not held.mask.flatten()[at]:
        return 0.0
    if bounds is not None:
        low, high = (
            torch.as_tensor(end).expand(shape).flatten()[at].item() for end in (bounds.low, bounds.high)
        )
        weight = min(max(weight, low), high)
    place = 0 if levels.scale.dim() == 0 else row
    if levels.group is not None:
        place = row * levels.scale.shape[1] + column // levels.group
    scale = levels.scale.flatten()[place].item()
    zero = 0.0 if levels.zero_point is None else levels.zero_point.flatten()[place].item()
    return min(((value - zero) * scale for value in levels.values.tolist()), key=lambda v: abs(v - weight))


def ends(held: Constraints, weight: Tensor, row: int, kept: list[int]) -> tuple[Tensor, Tensor]:
    """Return the range of a row's survivors, in which it is solved before it is rounded."""
    bounds = held.range or Range()
    low, high = (torch.as_tensor(e).expand(weight.shape).flatten(1)[row] for e in (bounds.low, bounds.high))
    return low[kept].double(), high[kept].double()


def least_squares(hessian: Tensor, target: Tensor, bounds: tuple[Tensor, Tensor]) -> Tensor:
    """Return argmin x' H x - 2 x' t in a range, by SciPy's active sets over the factor of H."""
    if not len(target):
        return target
    factor = torch.linalg.cholesky(hessian)
    goal = torch.linalg.solve_triangular(factor, target[:, None], upper=False)[:, 0]
    low, high = (end.numpy() for end in bounds)
    found = lsq_linear(factor.mT.numpy(), goal.numpy(), (low, high), method="bvls", tol=1e-14)
    return torch.from_numpy(found.x)


def surgery(weight: Tensor, held: Constraints, seen: InputHessian, rounding: Gptq) -> Tensor:
    """Round as OBQ is defined: after each column, the rest moves by an inverse that is computed anew."""
    rows, result = weight.flatten(1).double(), torch.zeros_like(weight.flatten(1), dtype=torch.double)
    each = len(rows) // len(seen.hessian)
    for row in range(len(rows)):
        hessian = seen.hessian[row // each].clone()
        cross = hessian.clone() if seen.cross is None else seen.cross[row // each].clone()
        live = [j for j in range(len(hessian)) if hessian[j, j] > 0]
        share = rounding.damping * sum(hessian[j, j].item() for j in live) / max(1, len(live))
        for j in range(len(hessian)):
            hessian[j, j] += share if j in live else 1.0
            cross[j, j] += share if j in live else 1.0
        kept = list(range(len(hessian)))
        if held.mask is not None:
            kept = held.mask.flatten(1)[row].nonzero()[:, 0].tolist()
        free = torch.zeros(len(hessian), dtype=torch.double)
        free[kept] = least_squares(
            hessian[kept][:, kept], (cross @ rows[row])[kept], ends(held, weight, row, kept)
        )
        left = list(range(len(hessian)))
        if rounding.order == "activation":
            left.sort(key=lambda j: -hessian[j, j].item())
        while left:
            inverse = torch.linalg.inv(hessian[left][:, left])
            column = left[0]
            result[row, column] = level_of(free[column].item(), held, row, column, weight.shape)
            free[left] -= (free[column] - result[row, column]) / inverse[0, 0] * inverse[0]
            left = left[1:]
    return result.reshape(weight.shape)


@given(
    problems(),
    st.sampled_from([Gptq(), Gptq(order="index"), Gptq(damping=0.3), Gptq(order="index", damping=1e-6)]),
)
def test_gptq_is_surgery_with_inverses_computed_anew(
    problem: tuple[Tensor, Constraints, InputHessian], rounding: Gptq
) -> None:
    weight, held, seen = problem
    assert_surgery(weight, held, seen, rounding)


def assert_surgery(weight: Tensor, held: Constraints, seen: InputHessian, rounding: Gptq) -> None:
    """Compare each row with the loop's, or with nearest rounding where that errs less."""
    found = rounding.rounded(weight, held, seen)
    expected, nearest = surgery(weight, held, seen, rounding), held.project(weight)
    damped = normal_equations(weight.flatten(1), seen.hessian, seen.cross, rounding.damping)
    pairs = zip(*(errors(damped, rows.flatten(1)).tolist() for rows in (expected, nearest)), strict=True)
    for row, (swept, plainly) in enumerate(pairs):
        if math.isclose(swept, plainly, rel_tol=1e-6):
            continue  # either may be taken
        wanted = expected[row] if swept < plainly else nearest[row].double()
        assert torch.allclose(found[row].double(), wanted, rtol=1e-5, atol=1e-7 * weight.abs().max().item())


@pytest.mark.parametrize("group", [None, 4], ids=["channel", "group"])
@pytest.mark.parametrize("zeros", [False, True], ids=["symmetric", "affine"])
def test_gptq_with_scales_of_groups_and_zero_points(group: int | None, zeros: bool) -> None:
    weight, seen = drawn(3, 8, 5, 2), some_moments(5, 10, 2)
    sizes = (8, 1, 1) if group is None else (8, 3)
    levels = symmetric_levels(1 + chance(0, *sizes), 3, group)
    if zeros:
        levels = Levels(torch.arange(8.0), levels.scale, (2 + 4 * chance(1, *sizes)).floor(), group)
    held = Constraints(levels=levels)
    assert_surgery(weight, held, seen, Gptq())
    assert not torch.equal(Gptq().rounded(weight, held, seen), held.project(weight))


def test_one_column_of_gptq_by_hand() -> None:
    # Index order: 0.6 goes up to 1, and the second weight, free, would move by -H₁₂/H₂₂ of the error 0.4.
    weight = torch.tensor([[0.6, 0.6]])
    seen = plain([[1.0, 1.0], [1.0, 2.0]])
    assert Gptq(order="index", damping=0).rounded(weight, whole(), seen).tolist() == [[1.0, 0.0]]
    # By activation the second column comes first, and the first is left with 0.6 - 0.4.
    assert Gptq(damping=0).rounded(weight, whole(), seen).tolist() == [[0.0, 1.0]]
    # Finer levels show by how much: 0.6 - 0.4 / 2.
    fine = Constraints(levels=Levels(torch.arange(-64.0, 65), torch.tensor([[1 / 64]]), None, None))
    each = Constraints(levels=Levels(torch.arange(-64.0, 65), torch.tensor([[1.0, 1 / 64]]), None, 1))
    assert Gptq(order="index", damping=0).rounded(weight, each, seen)[0, 1].item() == round(0.4 * 64) / 64
    assert Gptq(damping=0).rounded(weight, fine, seen).sub(weight).abs().max() < 1 / 64


def test_a_masked_weights_error_is_fed_on() -> None:
    # Both inputs are one; without the first weight the second has to be 0.4 + 0.4, which is 1 and not 0.
    weight, seen = torch.tensor([[0.4, 0.4]]), plain([[1.0, 0.99], [0.99, 1.0]])
    held = Constraints(levels=whole().levels, mask=torch.tensor([[False, True]]))
    assert held.project(weight).tolist() == [[0.0, 0.0]]
    assert Gptq().rounded(weight, held, seen).tolist() == [[0.0, 1.0]]
    assert AdaRound().rounded(weight, held, seen).tolist() == [[0.0, 1.0]]


def test_the_errors_of_earlier_layers_are_made_up_for() -> None:
    # What came as x comes as 2 x now, so half of the weight gives the same.
    weight = torch.tensor([[4.0, -2.0]])
    hessian = torch.eye(2, dtype=torch.double)[None] * 4
    seen = InputHessian(hessian, hessian / 2, 9)
    assert Gptq(damping=0).rounded(weight, whole(), seen).tolist() == [[2.0, -1.0]]
    # AdaRound goes no further than to a neighbour: 3 or 4 for 3.9, -3 or -2 for -2.1.
    assert AdaRound().rounded(weight - 0.1, whole(), seen).tolist() == [[3.0, -2.0]]
    # Nor do weights stay on the levels that they lie on, though nearest rounding errs by nothing there.
    assert AdaRound().rounded(-weight, whole(), seen).tolist() == [[-3.0, 2.0]]


@pytest.mark.parametrize("block", [1, 3, 7])
def test_blocks_of_columns_change_nothing(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    weight, seen = drawn(0, 6, 4, 5), some_moments(2, 20, 2)
    held = Constraints(levels=Integer(bits=3).levels(weight), mask=drawn(1, 6, 4, 5) > -1)
    expected = Gptq().rounded(weight, held, seen)
    monkeypatch.setattr(within, "BLOCK", block)
    assert torch.equal(Gptq().rounded(weight, held, seen), expected)


def test_one_bit_and_two_gain_from_gptq() -> None:
    weight, seen = drawn(0, 16, 40), some_moments(0, 40)
    for scheme in (Binary(), Ternary(), Integer(bits=2), Codebook(entries=4), PowerOfTwo(bits=2)):
        held = Constraints(levels=scheme.levels(weight))
        least = sum(off(weight, optimum(normal_equations(weight, seen.hessian, seen.cross, 0.0), FREE), seen))
        nearest, swept, learnt = (
            sum(off(weight, rounding.rounded(weight, held, seen), seen)) - least
            for rounding in (Nearest(), Gptq(), AdaRound())
        )
        assert swept < 0.8 * nearest
        assert learnt < 0.8 * nearest


def test_pruning_and_rounding_read_the_same_moments() -> None:
    """One Hessian serves surgery on weights and on levels; rounding what was pruned keeps its mask."""
    module = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 3)).eval()
    give_example_(module, (torch.zeros(1, 1, 8, 8),))
    with torch.no_grad():
        for number, weight in enumerate(compressible(module).values()):
            weight.copy_(drawn(number, *weight.shape))
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (40, 1, 8, 8), generator=generator).to(torch.uint8)
    seen = moments(module, ["2.weight"], images, module)["2.weight"]
    weight = module.get_parameter("2.weight").detach()
    before = (seen.hessian.clone(), seen.count)

    def choose(scores: Tensor, zeros: int) -> Tensor:
        return lowest(scores.flatten(), zeros).logical_not().reshape(scores.shape)

    mask, kept = prune(weight.flatten(1), seen.hessian, 108, choose, seen.cross)
    mask, kept = mask.reshape(weight.shape), kept.reshape(weight.shape)
    held = Constraints(levels=Integer(bits=4).levels(kept, mask), mask=mask)
    found = Gptq().rounded(weight, held, seen)
    assert int((found == 0).sum()) >= 108
    assert torch.equal(held.project(found), found)
    # It starts from the survivors that pruning has solved for, so fine levels give those.
    fine = Constraints(levels=Levels(torch.arange(-128.0, 128), kept.abs().max() / 120), mask=mask)
    assert (Gptq(order="index").rounded(weight, fine, seen) - kept)[mask].abs().mean() < 0.02
    problem = normal_equations(weight.flatten(1), seen.hessian, seen.cross, 0.01)
    assert torch.allclose(
        optimum(problem, Constraints(mask=mask.flatten(1))).float(), kept.flatten(1), atol=1e-5
    )
    assert torch.equal(seen.hessian, before[0])
    assert sum(off(weight, found, seen)) < sum(off(weight, held.project(kept), seen))


# --- adaround


def test_rectified_and_its_slope_by_hand() -> None:
    # 1.2 sigmoid(V) - 0.1: half at 0; 0 where the sigmoid is 1/12, so at -ln 11; 1 at ln 11; cut beyond.
    raw = torch.tensor([0.0, math.log(3), -math.log(11), math.log(11), -9.0, 9.0])
    assert rectified(raw).tolist() == pytest.approx([0.5, 0.8, 0.0, 1.0, 0.0, 1.0], abs=1e-6)
    assert pytest.approx(math.log(11)) == EDGE
    # 1.2 s (1 - s): 0.3 at 1/2, 1.2 * 3/16 at 3/4, 1.2 * 11/144 where h is 0 or 1.
    assert steepness(raw[:4]).tolist() == pytest.approx([0.3, 0.225, 1.2 * 11 / 144, 1.2 * 11 / 144])


def test_the_exponent_falls_along_a_cosine_after_the_warm_up() -> None:
    assert exponent(0.0) is None
    assert exponent(0.199) is None
    found = [exponent(done) for done in (0.2, 0.4, 0.6, 0.8, 1.0)]
    root = math.sqrt(0.5)
    assert found == pytest.approx([20, 11 + 9 * root, 11, 11 - 9 * root, 2])


@given(st.floats(2, 20), st.floats(0, 1))
def test_the_pull_is_the_derivative_of_the_regularizer(beta: float, chosen: float) -> None:
    h = torch.tensor(chosen, dtype=torch.double, requires_grad=True)
    (expected,) = torch.autograd.grad(1 - (2 * h - 1).abs().pow(beta), h)
    assert pull(h.detach(), beta).item() == pytest.approx(expected.item(), abs=1e-9)


def test_neighbours_by_hand() -> None:
    levels = Levels(torch.tensor([-1.0, 0.0, 1.0, 3.0]), torch.full((1, 6), 0.5))
    rows = torch.tensor([[-2.0, -0.4, 0.0, 0.25, 1.0, 9.0]])
    lower, upper, share = neighbours(rows, Constraints(levels=levels))
    assert lower.tolist() == [[-0.5, -0.5, 0.0, 0.0, 0.5, 0.5]]
    assert upper.tolist() == [[0.0, 0.0, 0.5, 0.5, 1.5, 1.5]]
    assert share.tolist()[0] == pytest.approx([0, 0.2, 0, 0.5, 0.5, 1])


def test_neighbours_within_a_range_and_a_mask_and_behind_a_zero_point() -> None:
    levels = Levels(torch.arange(4.0), torch.full((1, 4), 0.5), torch.full((1, 4), 2.0))  # -1, -0.5, 0, 0.5
    held = Constraints(
        Range(torch.full((1, 4), -0.6), torch.full((1, 4), 9.0)),
        levels,
        torch.tensor([[True, True, True, False]]),
    )
    lower, upper, share = neighbours(torch.tensor([[-0.9, -0.7, 0.1, 0.1]]), held)
    assert lower.tolist() == [[-0.5, -0.5, 0.0, 0.0]]  # -1 lies outside of the range
    assert upper.tolist() == [[-0.5, -0.5, 0.5, 0.0]]
    assert share.tolist()[0] == pytest.approx([0.2, 0.6, 0.2, 0.2])


@given(problems())
def test_nearest_is_always_one_of_the_neighbours(problem: tuple[Tensor, Constraints, InputHessian]) -> None:
    weight, held, _ = problem
    each, rows = per_element(held, weight.shape), weight.flatten(1)
    lower, upper, share = neighbours(rows, each)
    nearest = each.project(rows)
    assert ((nearest == lower) | (nearest == upper)).all()
    assert torch.equal(each.project(lower), lower)
    assert torch.equal(each.project(upper), upper)
    assert bool(((share >= 0) & (share <= 1)).all())


def test_adaround_finds_what_nearest_cannot() -> None:
    # Equal inputs: the outputs only see the sum 1.2, which nearest rounds to 0, and the best rounding to 1.
    seen, weight = plain([[1.0] * 3] * 3), torch.tensor([[0.45, 0.4, 0.35]])
    assert not whole().project(weight).any()
    found = AdaRound().rounded(weight, whole(), seen)
    assert found.sum().item() == 1.0
    assert off(weight, found, seen)[0] == pytest.approx(1 - 2 * 1.2)
    # With inputs of opposite signs the sum is 0.4 - 0.4, and one alone must not go up.
    opposed = AdaRound().rounded(torch.tensor([[0.6, 0.4]]), whole(), plain([[1.0, -1.0], [-1.0, 1.0]]))
    assert opposed[0, 0] == opposed[0, 1]


def every_rounding(weight: Tensor, held: Constraints, seen: InputHessian) -> tuple[float, float]:
    """Return the sum over rows of the least error of all 2^d roundings to neighbours, and the largest."""
    rows, each = weight.flatten(1), per_element(held, weight.shape)
    lower, upper, _ = neighbours(rows, each)
    ups = torch.tensor(list(itertools.product([False, True], repeat=rows.shape[1])))
    found = torch.tensor([off(weight, torch.where(up, upper, lower), seen) for up in ups], dtype=torch.double)
    return found.amin(0).sum().item(), found.amax(0).sum().item()


@pytest.mark.parametrize("bits", [2, 3])
def test_adaround_comes_near_to_the_best_of_all_roundings(bits: int) -> None:
    best = nearest = learnt = 0.0
    for seed in range(8):
        weight, seen = drawn(seed, 6, 7), some_moments(seed, 7, crossed=seed > 3)
        held = Constraints(levels=Integer(bits=bits).levels(weight))
        exact = optimum(normal_equations(weight, seen.hessian, seen.cross, 0.0), FREE)
        least = sum(off(weight, exact, seen))
        best += every_rounding(weight, held, seen)[0] - least
        nearest += sum(off(weight, held.project(weight), seen)) - least
        learnt += sum(off(weight, AdaRound().rounded(weight, held, seen), seen)) - least
    assert best <= learnt * (1 + 1e-9)
    assert learnt < 1.3 * best
    assert nearest > 1.5 * best


def naive_adaround(weight: Tensor, held: Constraints, seen: InputHessian, rounding: AdaRound) -> Tensor:
    """Return h after the last step: the loss as the paper writes it, through autograd, in float64."""
    rows = weight.flatten(1)
    lower, upper, share = (each.double() for each in neighbours(rows, per_element(held, weight.shape)))
    groups = len(seen.hessian)
    cross = seen.hessian if seen.cross is None else seen.cross
    noise = (held.project(weight).flatten(1) - rows).double().unflatten(0, (groups, -1))
    unit = rows.shape[1] / ((noise @ seen.hessian) * noise).sum(2).flatten()
    raw = torch.special.logit((share + 0.1) / 1.2).requires_grad_()
    adam = torch.optim.Adam([raw], lr=rounding.rate, betas=(0.9, 0.9))
    for step in range(rounding.steps):
        h = (torch.sigmoid(raw) * 1.2 - 0.1).clamp(-1e-6, 1 + 1e-6)
        soft = (lower + h * (upper - lower)).unflatten(0, (groups, -1))
        wanted = rows.double().unflatten(0, (groups, -1)) @ cross.mT
        square = ((soft @ seen.hessian - 2 * wanted) * soft).sum(2).flatten()
        loss = (unit * square).sum()
        if (beta := exponent(step / rounding.steps)) is not None:
            loss = loss + rounding.regularization * (1 - (2 * h - 1).abs().pow(beta)).sum()
        (raw.grad,) = torch.autograd.grad(loss, raw)
        adam.step()
        with torch.no_grad():
            raw.clamp_(-math.log(11), math.log(11))
    return (torch.sigmoid(raw) * 1.2 - 0.1).detach()


@pytest.mark.parametrize("steps", [1, 2, 60])
@pytest.mark.parametrize("groups", [1, 2])
def test_closed_gradients_are_those_of_the_papers_loss(steps: int, groups: int) -> None:
    rounding = AdaRound(steps=steps)
    weight, seen = drawn(0, 4, 6), some_moments(3, 6, groups)
    held = Constraints(levels=Integer(bits=3).levels(weight))
    problem = normal_equations(weight, seen.hessian, seen.cross, 0.0)
    each = per_element(held, weight.shape)
    found = rounding._learnt(problem, weight, *neighbours(weight, each), each.project(weight))
    expected = naive_adaround(weight, held, seen, rounding)
    assert torch.allclose(found.double(), expected, atol=1e-4)
    assert not torch.allclose(expected, neighbours(weight, each)[2].double(), atol=0.01)


def test_in_the_end_weights_are_decided_by_the_regularizer_alone() -> None:
    weight, seen = drawn(0, 8, 10), some_moments(3, 10)
    each = Constraints(levels=Integer(bits=3).levels(weight))
    problem, each = normal_equations(weight, seen.hessian, seen.cross, 0.0), per_element(each, weight.shape)
    around = neighbours(weight, each)

    def undecided(regularization: float) -> float:
        rounding = AdaRound(regularization=regularization)
        h = rounding._learnt(problem, weight, *around, each.project(weight))
        return ((h > 0.01) & (h < 0.99)).float().mean().item()

    assert undecided(AdaRound().regularization) < 0.1
    assert undecided(0.0) > 0.2


@pytest.mark.parametrize("size", [1e-4, 1.0, 1e4])
def test_adarounds_units_make_it_the_same_for_every_size(size: float) -> None:
    """Neither the weights' unit nor the inputs' changes what is chosen: powers of two, so to the bit."""
    weight, seen = drawn(0, 4, 8), some_moments(3, 8, crossed=False)
    size = 2.0 ** round(math.log2(size))
    larger = InputHessian(seen.hessian * size**2, None, seen.count)
    levels = Integer(bits=3).levels(weight)
    found = AdaRound().rounded(weight, Constraints(levels=levels), seen)
    other = Constraints(levels=Levels(levels.values, levels.scale * size))
    assert torch.equal(AdaRound().rounded(weight * size, other, larger), found * size)


def test_weights_on_their_levels_stay_there() -> None:
    held, seen = whole(0.5), some_moments(3, 8, crossed=False)
    weight = held.project(drawn(0, 5, 8))
    weight[2] = 0.0  # a row whose outputs are nothing, to measure in
    for rounding in LEARNED:
        assert torch.equal(rounding.rounded(weight, held, seen), weight)


# --- layers of a network


class Backwards(nn.Module):
    """Registered last to first; what runs last is registered first."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(5, 3)
        self.middle = nn.Linear(4, 5)
        self.first = nn.Linear(4, 4)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.last(self.middle(self.first(inputs.flatten(1)).relu()).relu())


class Odd(nn.Module):
    """A transposed convolution and an embedding, of which no moments are taken, around others."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 3)
        self.up = nn.ConvTranspose2d(3, 2, 2)
        self.table = nn.Embedding(4, 6)
        self.head = nn.Linear(6 + 2, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.up(self.conv(inputs).relu()).mean((2, 3))
        where = (inputs.mean((1, 2, 3)) * 4).long().clamp(0, 3)
        return self.head(torch.cat([hidden, self.table(where)], 1))


def toy(module: nn.Module, shape: tuple[int, int, int] = (1, 2, 2), seed: int = 0) -> Checkpoint:
    """Return a module of drawn weights as a checkpoint; nothing builds its architecture."""
    with torch.no_grad():
        for number, parameter in enumerate(module.parameters()):
            parameter.copy_(drawn(seed + number, *parameter.shape) / math.sqrt(parameter[0].numel()))
    return Checkpoint(Mlp(hidden=(1,)), shape, ("a", "b", "c"), module.eval())


def photos(count: int = 80, side: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randint(0, 256, (count, 1, side, side), generator=generator).to(torch.uint8)


def held_by(checkpoint: Checkpoint, bits: int = 3) -> dict[str, Constraints]:
    return {
        name: checkpoint.constraints.get(name, FREE).narrow(
            levels=Integer(bits=bits).levels(weight, checkpoint.constraints.get(name, FREE).mask, axis)
        )
        for name, (weight, axis) in quantizable(checkpoint.module).items()
    }


def test_two_layers_by_hand() -> None:
    # The input is 1. The first weight goes from 0.6 to 1, so the second, 0.9, gets 1 in place of 0.6.
    parent = toy(nn.Sequential(nn.Flatten(), nn.Linear(1, 1), nn.Linear(1, 1)), (1, 1, 1))
    with torch.no_grad():
        for parameter, value in zip(parent.module.parameters(), (0.6, 0.0, 0.9, 0.0), strict=True):
            parameter.fill_(value)
    held = {"1.weight": whole(), "2.weight": whole(0.25)}
    images = torch.full((4, 1, 1, 1), 255, dtype=torch.uint8)

    def weights(rounding: Rounding) -> list[float]:
        child = round_layers(parent, held, rounding, images, parent.module)
        return [weight.item() for weight in compressible(child.module).values()]

    assert weights(Nearest()) == [1.0, 1.0]
    # Wanted is 0.9 * 0.6 = 0.54, of what comes as 1: the level 0.5, beyond AdaRound's reach.
    assert weights(Gptq()) == [1.0, 0.5]
    assert weights(AdaRound()) == [1.0, 0.75]


@pytest.mark.parametrize("rounding", LEARNED, ids=lambda r: r.kind)
def test_each_layer_is_rounded_on_what_the_rounded_ones_before_send(rounding: Rounding) -> None:
    parent, images = toy(Backwards()), photos()
    held = held_by(parent)
    child = round_layers(parent, held, rounding, images, parent.module)
    work = copy.deepcopy(parent.module)
    for name in ("first.weight", "middle.weight", "last.weight"):
        seen = moments(work, [name], images, parent.module)[name]
        weight = parent.module.get_parameter(name).detach()
        expected = rounding.rounded(weight, held[name], seen)
        with torch.no_grad():
            work.get_parameter(name).copy_(expected)
        assert torch.equal(child.module.get_parameter(name), expected), name
        assert not torch.equal(expected, held[name].project(weight)), name


@pytest.mark.parametrize("rounding", [Nearest(), *LEARNED], ids=lambda r: r.kind)
def test_the_parent_is_untouched_and_the_same_comes_twice(rounding: Rounding) -> None:
    parent, images = toy(Backwards()), photos()
    parent = parent.narrowed({"middle.weight": Constraints(mask=drawn(0, 5, 4) > -0.3)})
    held, before = held_by(parent), copy.deepcopy(parent.module.state_dict())
    first, again = (round_layers(parent, held, rounding, images, parent.module) for _ in range(2))
    for name, each in held.items():
        weight = first.module.get_parameter(name)
        assert (
            weight.detach().numpy().tobytes() == again.module.get_parameter(name).detach().numpy().tobytes()
        )
        assert each.broken_by(weight, first.constraints[name]) == []
    assert all(torch.equal(tensor, before[name]) for name, tensor in parent.module.state_dict().items())
    assert set(parent.constraints) == {"middle.weight"}
    assert all(
        torch.equal(first.module.get_parameter(f"{n}.bias"), before[f"{n}.bias"]) for n in ("first", "last")
    )
    assert not any(module._forward_pre_hooks for module in first.module.modules())


@pytest.mark.parametrize("rounding", LEARNED, ids=lambda r: r.kind)
def test_outputs_move_less_than_with_nearest(rounding: Rounding) -> None:
    parent, images = toy(Backwards()), photos()
    expected = parent.module(pixels(images))

    def moved(kind: Rounding) -> float:
        child = round_layers(parent, held_by(parent), kind, images, parent.module)
        return (child.module(pixels(images)) - expected).square().mean().item()

    assert moved(rounding) < 0.5 * moved(Nearest())


@pytest.mark.parametrize("rounding", LEARNED, ids=lambda r: r.kind)
def test_layers_without_moments_go_to_nearest(rounding: Rounding) -> None:
    parent, images = toy(Odd(), (1, 5, 5)), photos(40, 5)
    held = held_by(parent)
    assert held.keys() > {"up.weight", "table.weight"}
    child = round_layers(parent, held, rounding, images, parent.module)
    for name, each in held.items():
        weight, found = parent.module.get_parameter(name), child.module.get_parameter(name)
        assert torch.equal(found, each.project(weight)) == (name in ("up.weight", "table.weight")), name


def test_inputs_are_clamped_and_rounded_while_weights_are_found() -> None:
    parent, images = toy(Backwards()), photos()
    start = parent.narrowed({}, {"middle": InputGrid(2, 0.4, 0)}, {"last": Range(0.0, 0.2)})
    held = held_by(parent)
    bare = round_layers(parent, held, Gptq(), images, parent.module)
    child = round_layers(start, held, Gptq(), images, parent.module)
    assert torch.equal(child.module.get_parameter("first.weight"), bare.module.get_parameter("first.weight"))
    for name in ("middle.weight", "last.weight"):
        seen = moments(child.module, [name], images, parent.module)[name]
        expected = Gptq().rounded(parent.module.get_parameter(name), held[name], seen)
        assert torch.equal(child.module.get_parameter(name), expected)
        assert not torch.equal(expected, bare.module.get_parameter(name))
    assert child.grids == start.grids
    assert child.clamps == start.clamps


def test_only_named_layers_are_rounded() -> None:
    parent, images = toy(Backwards()), photos()
    held = {"middle.weight": held_by(parent)["middle.weight"]}
    child = round_layers(parent, held, Gptq(), images, parent.module)
    assert set(child.constraints) == {"middle.weight"}
    for name in ("first.weight", "last.weight"):
        assert torch.equal(child.module.get_parameter(name), parent.module.get_parameter(name))
    nothing = round_layers(parent, {}, Gptq(), images, parent.module)
    assert all(torch.equal(p, nothing.module.get_parameter(n)) for n, p in parent.module.named_parameters())


def test_errors_of_a_network_in_words() -> None:
    parent, images = toy(Backwards()), photos()
    held = held_by(parent)
    for rounding in LEARNED:
        with pytest.raises(
            DecantError, match=f"{rounding.kind} reads images to round by, and there are none"
        ):
            round_layers(parent, held, rounding, images[:0], parent.module)
    assert round_layers(parent, held, Nearest(), images[:0], parent.module).constraints.keys() == held.keys()
    with pytest.raises(DecantError, match=r"first\.weight: A Hessian is not positive definite"):
        round_layers(parent, held, Gptq(damping=0.0), images[:2], parent.module)
    with pytest.raises(DecantError, match=r"middle\.weight: The weight has no levels"):
        round_layers(parent, held | {"middle.weight": FREE}, Gptq(), images, parent.module)
    parent.module.spare = nn.Linear(2, 2)
    with pytest.raises(DecantError, match="does not run spare"):
        round_layers(parent, held | {"spare.weight": whole()}, Gptq(), images, parent.module)
    with torch.no_grad():
        parent.module.get_parameter("first.bias").fill_(math.nan)
    with pytest.raises(DecantError, match="inputs of middle hold NaN"):
        round_layers(parent, held, Gptq(), images, parent.module)


# --- a recipe


def quantized(parent: Checkpoint, **block: Any) -> Any:
    content = {
        "op": "quantize",
        "from": "some",
        "scheme": {"kind": "integer", "bits": 3},
        "images": 60,
    } | block
    examples = Examples(pictures(60), torch.zeros(60, dtype=torch.long), parent.classes)
    return Recipe(validate(content, QuantizeParams), parent, parent, examples, examples).rounded()


@pytest.mark.parametrize("architecture", ["residual", "grouped", "depthwise"])
def test_a_recipe_rounds_as_it_says(architecture: str) -> None:
    parent = net(NETS[architecture])
    masks = (
        {"stages.0.conv1.weight": Constraints(mask=drawn(0, 6, 6, 3, 3) > 0)}
        if architecture == "residual"
        else {}
    )
    parent = parent.narrowed(masks)
    before = copy.deepcopy(parent.module.state_dict())
    expected = parent.module(pixels(pictures(60)))
    moved = {}
    for rounding in (Nearest(), Gptq(), AdaRound(steps=100)):
        found = quantized(
            parent, rounding=rounding.model_dump(), activations={"bits": 8}, first_and_last=WIDE
        )
        names = list(quantizable(found.before.module))
        ends = (names[0], names[-1])
        assert found.model.constraints.keys() == {*names}
        for name, held in found.model.constraints.items():
            weight = found.model.module.get_parameter(name)
            assert len(held.levels.values) == (255 if name in ends else 7)
            assert torch.equal(held.project(weight), weight)
            assert name not in masks or not weight[~masks[name].mask].any()  # type: ignore[index]
        moved[rounding.kind] = (found.model.module(pixels(pictures(60))) - expected).square().mean().item()
    assert moved["gptq"] < 0.7 * moved["nearest"]
    assert moved["adaround"] < 0.7 * moved["nearest"]
    assert all(torch.equal(tensor, before[name]) for name, tensor in parent.module.state_dict().items())


def test_a_recipe_rounds_the_shifted_weight_towards_the_one_that_was() -> None:
    """Balanced signs are of the weight less its mean; that is what is rounded."""
    parent = net(NETS["grouped"])
    binary = {"kind": "binary", "balanced": True}
    found = quantized(parent, scheme=binary, rounding={"kind": "gptq"}, first_and_last="same")
    name = next(iter(quantizable(found.before.module)))
    weight = found.before.module.get_parameter(name).detach()
    seen = moments(found.before.module, [name], pictures(60), found.before.module)[name]
    shifted = Binary(balanced=True).shifted(weight, None, 0)
    expected = Gptq().rounded(shifted, found.model.constraints[name], seen)
    assert torch.equal(found.model.module.get_parameter(name), expected)


def test_constants_are_the_papers() -> None:
    assert (adaround.GAMMA, adaround.ZETA, adaround.WARM, adaround.BETA) == (-0.1, 1.1, 0.2, (20.0, 2.0))
