"""Ranges that roundings search for by a layer's outputs: every share tried in turn, and numbers by hand."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from decant.calibration.grids import symmetric_levels
from decant.checkpoints.constraints import FREE, Constraints, Levels, Range
from decant.checkpoints.files import load, save
from decant.errors import DecantError
from decant.networks.execution import predict
from decant.quantize.mixed_precision.widths import spent
from decant.quantize.params import QuantizeParams
from decant.quantize.quantizable import quantizable
from decant.quantize.rounding.adaround import AdaRound
from decant.quantize.rounding.gptq import Gptq
from decant.quantize.rounding.layers import round_layers
from decant.quantize.rounding.methods import Nearest
from decant.quantize.schemes import Integer
from decant.reconstruction.hessians import InputHessian, moments
from tasks.pipeline.params import validate
from tests.drawn import drawn
from tests.nets import NETS, known, net
from tests.nets import images as pictures
from tests.slow import chessboard
from tests.test_roundings import (
    Backwards,
    Odd,
    chance,
    held_by,
    off,
    photos,
    plain,
    problems,
    quantized,
    some_moments,
    toy,
    without,
)

Searching = Gptq | AdaRound
SEARCHING: tuple[Searching, ...] = (Gptq(damping=0.0, search=5), AdaRound(steps=12, search=4))


def scale_of(held: Constraints) -> Tensor:
    assert held.levels is not None
    return held.levels.scale


def narrowed(held: Constraints, share: float) -> Constraints:
    assert held.levels is not None
    return replace(held, levels=replace(held.levels, scale=held.levels.scale * share))


# --- against every share, tried in turn


def tried(
    weight: Tensor, held: Constraints, seen: InputHessian, rounding: Searching
) -> tuple[Tensor, Tensor]:
    """Return the weight and the scales of the least errors by their definition, the widest among equals."""
    shares = [part / rounding.search for part in range(rounding.search, 0, -1)]
    found = [rounding.rounded(weight, narrowed(held, share), seen) for share in shares]
    errors = [off(weight, each, seen) for each in found]
    scale = scale_of(held)
    if scale.dim() == 0:
        errors = [[sum(each)] * len(weight) for each in errors]
    best = [min(range(len(shares)), key=lambda place: errors[place][row]) for row in range(len(weight))]
    rows = torch.stack([found[place][row] for row, place in enumerate(best)])
    if scale.dim() == 0:
        return rows, scale * shares[best[0]]
    return rows, torch.stack([scale[row] * shares[place] for row, place in enumerate(best)])


CASES: dict[str, tuple[Integer, tuple[int, ...], int]] = {
    "symmetric": (Integer(bits=2), (6, 9), 1),
    "affine": (Integer(bits=2, symmetric=False), (6, 9), 1),
    "tensor": (Integer(bits=3, per_channel=False), (6, 9), 1),
    "affine tensor": (Integer(bits=3, symmetric=False, per_channel=False), (6, 9), 1),
    "groups": (Integer(bits=2, group=16), (5, 40), 1),
    "affine groups": (Integer(bits=2, group=16, symmetric=False), (5, 3, 3, 3), 1),
    "grouped": (Integer(bits=2), (6, 3, 2, 2), 3),
    "grouped tensor": (Integer(bits=2, per_channel=False), (6, 2, 3), 2),
    "masked": (Integer(bits=2), (6, 9), 1),
    "range": (Integer(bits=3), (6, 9), 1),
    "range of channels": (Integer(bits=3, symmetric=False), (6, 9), 1),
    "dead": (Integer(bits=2), (6, 9), 1),
}
"""A scheme, the weight's shape and the layer's groups."""


def posed(kind: str, seed: int) -> tuple[Tensor, Constraints, InputHessian]:
    """Return a weight with outliers, which take most of a range, and its constraints, by the case's name."""
    scheme, shape, groups = CASES[kind]
    weight = drawn(seed, *shape) ** 3
    mask = chance(seed, *shape) < 0.6 if kind == "masked" else None
    column = (1 + chance(seed, shape[0], *[1] * (len(shape) - 1))).float()
    bounds = {"range": Range(-1.0, 1.5), "range of channels": Range(-column, column / 2)}.get(kind)
    seen = some_moments(seed, weight[0].numel(), groups, crossed=seed % 2 == 0)
    seen = without(seen, [0, 4]) if kind == "dead" else seen
    return weight, Constraints(bounds, scheme.levels(weight, mask), mask), seen


@pytest.mark.parametrize(
    ("kind", "rounding"),
    chessboard(CASES, SEARCHING),
    ids=lambda each: each if isinstance(each, str) else each.kind,
)
def test_each_row_takes_the_share_that_errs_least(kind: str, rounding: Searching) -> None:
    taken = set[float]()
    for seed in range(4):
        if seed > 1 and len(taken) > 1:
            break
        weight, held, seen = posed(kind, seed)
        before = weight.clone()
        found, satisfied = rounding.fitted(weight, held, seen)
        expected, scales = tried(weight, held, seen, rounding)
        assert torch.equal(scale_of(satisfied), scales)
        assert torch.equal(found, expected)
        assert torch.equal(weight, before)
        taken |= {round(share, 3) for share in (scales / scale_of(held)).flatten().tolist()}
    assert len(taken) > 1


def test_damping_chooses_no_range() -> None:
    rounding = Gptq(damping=0.3, search=8)
    for seed in range(20):
        weight, held, seen = posed("symmetric", seed)
        expected, scales = tried(weight, held, seen, rounding)
        found, satisfied = rounding.fitted(weight, held, seen)
        assert torch.equal(scale_of(satisfied), scales)
        assert torch.equal(found, expected)


def alive(problem: tuple[Tensor, Constraints, InputHessian]) -> bool:
    return bool((problem[2].hessian.diagonal(dim1=1, dim2=2) > 0).all())


@given(problems().filter(alive), st.sampled_from(SEARCHING))
def test_no_outputs_are_off_more_and_only_scales_change(
    problem: tuple[Tensor, Constraints, InputHessian], rounding: Searching
) -> None:
    weight, held, seen = problem
    found, satisfied = rounding.fitted(weight, held, seen)
    plainly = rounding.rounded(weight, held, seen)
    assert found.shape == weight.shape
    assert found.dtype == torch.float32
    assert torch.equal(satisfied.project(found), found)
    assert satisfied.mask is held.mask
    assert satisfied.range is held.range
    assert held.levels is not None
    assert satisfied.levels is not None
    assert satisfied.levels.scale.dtype == torch.float32
    assert replace(satisfied.levels, scale=held.levels.scale).equals(held.levels)
    assert bool((satisfied.levels.scale <= held.levels.scale).all())
    assert bool((satisfied.levels.scale >= held.levels.scale / rounding.search * (1 - 1e-6)).all())
    pairs = list(zip(off(weight, found, seen), off(weight, plainly, seen), strict=True))
    if held.levels.scale.dim() == 0:
        pairs = [(sum(pair[0] for pair in pairs), sum(pair[1] for pair in pairs))]
    size = 1e-9 * max(map(abs, off(weight, held.project(weight), seen)))
    for searched, plain_error in pairs:
        assert searched <= plain_error + size


# --- one range, or none


@pytest.mark.parametrize("rounding", [Gptq(), AdaRound(steps=12)], ids=lambda r: r.kind)
def test_one_range_is_the_schemes(rounding: Searching) -> None:
    assert rounding.search == 1
    for kind in ("symmetric", "affine tensor", "groups", "masked", "dead"):
        weight, held, seen = posed(kind, 0)
        found, satisfied = rounding.fitted(weight, held, seen)
        assert satisfied is held
        assert torch.equal(found, rounding.rounded(weight, held, seen))


def test_nearest_keeps_its_range_and_reads_no_moments() -> None:
    weight, held, _ = posed("masked", 0)
    found, satisfied = Nearest().fitted(weight, held, None)
    assert satisfied is held
    assert torch.equal(found, held.project(weight))


@pytest.mark.parametrize("rounding", SEARCHING, ids=lambda r: r.kind)
def test_the_same_bytes_come_twice(rounding: Searching) -> None:
    weight, held, seen = posed("affine groups", 0)
    (first, one), (again, other) = (rounding.fitted(weight, held, seen) for _ in range(2))
    assert first.numpy().tobytes() == again.numpy().tobytes()
    assert scale_of(one).numpy().tobytes() == scale_of(other).numpy().tobytes()


@pytest.mark.parametrize("rounding", SEARCHING, ids=lambda r: r.kind)
def test_errors_in_words(rounding: Searching) -> None:
    weight, held, seen = posed("symmetric", 0)
    with pytest.raises(ValueError, match=f"{rounding.kind} needs moments of the layer's inputs"):
        rounding.fitted(weight, held, None)
    with pytest.raises(ValueError, match="The weight has no levels to round to"):
        rounding.fitted(weight, FREE, seen)


# --- by hand


SPIKE = [1.0, 0.4, 0.4, 0.4]
FLAT = [1.0, 0.1, 0.1, 0.1]


def searched_for(rows: list[list[float]], diagonal: list[float], *, shared: bool = False) -> Any:
    """Return the rows and scales found among 1, 3/4, 1/2, 1/4 for levels -1, 0, 1 and these inputs' squares.

    Inputs are independent, so that a row's error is the sum of those of its weights times the squares, and
    GPTQ rounds to nearest.
    """
    weight = torch.tensor(rows)
    scale = torch.tensor(1.0) if shared else torch.ones(len(rows), 1)
    seen = plain(torch.diag(torch.tensor(diagonal)).tolist())
    held = Constraints(levels=symmetric_levels(scale, 2))
    found, satisfied = Gptq(damping=0.0, search=4).fitted(weight, held, seen)
    return found.tolist(), scale_of(satisfied).tolist()


def test_an_outliers_range_is_narrowed_by_hand() -> None:
    # The spike: at 1 it is 1, 0, 0, 0 and off by 3 * 0.16 = 0.48; at 3/4 all are 3/4, off by 0.0625 +
    # 3 * 0.1225 = 0.43; at 1/2 by 0.25 + 3 * 0.01 = 0.28; at 1/4 by 0.5625 + 3 * 0.0225 = 0.63.
    # The flat one: at 1 it is off by 3 * 0.01, and at less by (1 - share)² more.
    found, scales = searched_for([SPIKE, FLAT], [1.0] * 4)
    assert scales == [[0.5], [1.0]]
    assert found == [[0.5] * 4, [1.0, 0.0, 0.0, 0.0]]


def test_outputs_decide_and_not_weights_by_hand() -> None:
    # A loud input at the outlier makes its error of 0.25 at 1/2 ten times as much: 2.53 against 0.48.
    assert searched_for([SPIKE], [10.0, 1.0, 1.0, 1.0])[1] == [[1.0]]
    # A quiet one makes nothing of it: 1/2 is off by 0.0025 + 0.03, and 1/4 by 0.0056 + 0.0675.
    assert searched_for([SPIKE], [0.01, 1.0, 1.0, 1.0])[1] == [[0.5]]
    # With all inputs the same, GPTQ makes 2.2 of the sum: 2 at 1, off by 0.04; 2.25 at 3/4, off by 0.0025.
    weight, seen = torch.tensor([SPIKE]), plain((torch.ones(4, 4) + 1e-6 * torch.eye(4)).tolist())
    held = Constraints(levels=symmetric_levels(torch.ones(1, 1), 2))
    found, satisfied = Gptq(damping=0.0, search=4).fitted(weight, held, seen)
    assert found.sum().item() == 2.25
    assert scale_of(satisfied).tolist() == [[0.75]]


def test_rows_that_share_a_scale_choose_by_their_sum_by_hand() -> None:
    # Spike and flat: 0.48 + 0.03 = 0.51 at 1, 0.43 + 0.0925 = 0.5225 at 3/4, 0.28 + 0.28 = 0.56 at 1/2.
    found, scale = searched_for([SPIKE, FLAT], [1.0] * 4, shared=True)
    assert scale == 1.0
    assert found == [[1.0, 0.0, 0.0, 0.0]] * 2
    # Two spikes: 0.99 at 1, 0.9525 at 3/4, 0.84 at 1/2, and the flat one loses by it.
    found, scale = searched_for([SPIKE, FLAT, SPIKE], [1.0] * 4, shared=True)
    assert scale == 0.5
    assert found == [[0.5] * 4, [0.5, 0.0, 0.0, 0.0], [0.5] * 4]


def test_among_equals_the_widest_is_kept_by_hand() -> None:
    # Nothing but zeros is off by nothing in any range.
    assert searched_for([[0.0] * 4, SPIKE], [1.0] * 4)[1] == [[1.0], [0.5]]
    # One step of 1 and two of 1/2 are the same number, so 1.1 is off by as much.
    levels = Levels(torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0]), torch.ones(1, 1))
    weight, seen = torch.tensor([[1.1, 1.1]]), plain([[1.0, 0.0], [0.0, 1.0]])
    found, satisfied = Gptq(damping=0.0, search=2).fitted(weight, Constraints(levels=levels), seen)
    assert found.tolist() == [[1.0, 1.0]]
    assert scale_of(satisfied).tolist() == [[1.0]]


def test_a_weight_on_a_dead_input_keeps_no_range_wide_by_hand() -> None:
    # The outlier has no effect, so only three times the error of 0.4 counts: 0.48, 0.3675, 0.03, 0.0675.
    assert searched_for([SPIKE], [0.0, 1.0, 1.0, 1.0])[1] == [[0.5]]
    # Nor has it where the others' inputs are faint: 0.0048 at 1 and 0.0003 at 1/2.
    assert searched_for([SPIKE], [0.0, 0.01, 0.01, 0.01])[1] == [[0.5]]


# --- layers of a network


@pytest.mark.parametrize("rounding", [Gptq(search=5), AdaRound(steps=12, search=4)], ids=lambda r: r.kind)
def test_layers_satisfy_the_ranges_that_were_found_on_what_they_receive(rounding: Searching) -> None:
    parent, images = toy(Backwards()), photos()
    parent = parent.narrowed({"middle.weight": Constraints(mask=drawn(0, 5, 4) > -0.3)})
    held, work = held_by(parent, bits=2), toy(Backwards()).module
    child = round_layers(parent, held, rounding, images, parent.module)
    narrower = 0
    for name in ("first.weight", "middle.weight", "last.weight"):
        seen = moments(work, [name], images, parent.module)[name]
        expected, satisfied = rounding.fitted(parent.module.get_parameter(name), held[name], seen)
        with torch.no_grad():
            work.get_parameter(name).copy_(expected)
        found = child.module.get_parameter(name)
        assert torch.equal(found, expected), name
        assert satisfied.levels is not None
        assert satisfied.levels.equals(child.constraints[name].levels), name
        assert torch.equal(child.constraints[name].project(found), found), name
        narrower += int((scale_of(satisfied) < scale_of(held[name])).sum())
    assert narrower > 0
    assert child.constraints["middle.weight"].mask is held["middle.weight"].mask
    assert list(parent.constraints) == ["middle.weight"]
    assert parent.constraints["middle.weight"].levels is None


@pytest.mark.parametrize("search", [1, 3])
def test_constraints_are_in_the_order_in_which_they_were_given(search: int) -> None:
    parent, images = toy(Backwards()), photos()
    held = dict(reversed(held_by(parent).items()))  # against the order in which they run
    child = round_layers(parent, held, Gptq(search=search), images, parent.module)
    assert list(child.constraints) == list(held) == ["last.weight", "middle.weight", "first.weight"]


def test_layers_without_moments_keep_the_schemes_range() -> None:
    parent, images = toy(Odd(), (1, 5, 5)), photos(40, 5)
    held = held_by(parent, bits=2)
    child = round_layers(parent, held, Gptq(search=8), images, parent.module)
    for name in ("up.weight", "table.weight"):
        assert child.constraints[name] is held[name]
        weight = parent.module.get_parameter(name)
        assert torch.equal(child.module.get_parameter(name), held[name].project(weight))
    assert any(
        bool((scale_of(child.constraints[name]) < scale_of(held[name])).any())
        for name in ("conv.weight", "head.weight")
    )


# --- a recipe

SEARCH: dict[str, Any] = {"kind": "gptq", "search": 4}


@pytest.mark.parametrize(
    ("architecture", "more"),
    [
        ("residual", {}),
        ("residual", {"group": 16}),
        ("grouped", {"symmetric": False}),
        ("grouped", {"per_channel": False}),
    ],
    ids=str,
)
def test_a_recipe_writes_the_ranges_that_were_found(
    architecture: str, more: dict[str, Any], tmp_path: Path
) -> None:
    parent, scheme = net(NETS[architecture]), {"kind": "integer", "bits": 2} | more
    plainly = quantized(parent, scheme=scheme, rounding={"kind": "gptq"})
    found = quantized(parent, scheme=scheme, rounding=SEARCH)
    assert list(found.model.constraints) == list(plainly.model.constraints)
    assert list(found.model.constraints) == list(quantizable(found.before.module))
    shares = set[float]()
    for name, held in found.model.constraints.items():
        weight = found.model.module.get_parameter(name)
        assert torch.equal(held.project(weight), weight), name
        ratio = scale_of(held) / scale_of(plainly.model.constraints[name])
        shares |= {round(share, 5) for share in ratio.flatten().tolist()}
    assert shares <= {0.25, 0.5, 0.75, 1.0}
    assert min(shares) < 1
    with known():
        save(found.model, tmp_path)
        again = load(tmp_path)
    assert torch.equal(predict(again.module, pictures(60)), predict(found.model.module, pictures(60)))
    for name, held in found.model.constraints.items():
        assert held.levels is not None
        assert held.levels.equals(again.constraints[name].levels), name


@pytest.mark.parametrize("per_channel", [True, False])
def test_widths_and_ranges_are_chosen_within_the_bytes(per_channel: bool) -> None:
    parent = net(NETS["grouped"])
    scheme = {"kind": "integer", "bits": 3, "per_channel": per_channel}
    with known():
        limit = spent(quantized(parent, scheme=scheme).model, "bytes")
        mixed = {"budget": {"bytes": limit}, "bits": [2, 4], "images": 10}
        found = quantized(parent, scheme=scheme, rounding=SEARCH | {"search": 2}, mixed=mixed)
        used = spent(found.model, "bytes")
    assert used <= limit
    assert found.facts["budget"] == f"{used:,} of {limit:,} bytes"
    widths, narrower = set[int](), 0
    for name, held in found.model.constraints.items():
        weight = found.before.module.get_parameter(name).detach()
        levels = Integer(bits=held.levels.bits, per_channel=per_channel).levels(weight)
        widths.add(levels.bits)
        narrower += int((held.levels.scale < levels.scale).sum())
    assert widths == {2, 4}
    assert narrower > 0


def asked(**more: Any) -> QuantizeParams:
    content = {"op": "quantize", "from": "some", "scheme": {"kind": "integer", "bits": 2}}
    return validate(content | more, QuantizeParams, "models.q")


@pytest.mark.parametrize("rounding", ["gptq", "adaround"])
@pytest.mark.parametrize("scheme", ["ternary", "binary", "codebook", "power-of-two"])
def test_only_ranges_of_integers_are_searched_for(rounding: str, scheme: str) -> None:
    words = rf"rounding\.search narrows the range of integers, got scheme {scheme}: leave it out, or take"
    with pytest.raises(DecantError, match=words):
        asked(scheme={"kind": scheme}, rounding={"kind": rounding, "search": 8})
    for allowed in ({"kind": rounding}, {"kind": rounding, "search": 1}):
        assert asked(scheme={"kind": scheme}, rounding=allowed).rounding.kind == rounding
    assert asked(rounding={"kind": rounding, "search": 8}).rounding == validate(
        {"kind": rounding, "search": 8}, {"gptq": Gptq, "adaround": AdaRound}[rounding]
    )


def test_no_range_is_none_to_try_and_nearest_tries_none() -> None:
    with pytest.raises(DecantError, match=r"rounding\.search: must be greater than 0, got 0"):
        asked(rounding={"kind": "gptq", "search": 0})
    with pytest.raises(DecantError, match=r"rounding.*search"):
        asked(rounding={"kind": "nearest", "search": 4})


def test_a_lineage_tells_of_a_search_alone() -> None:
    """Models that are older than it are the same bytes without it."""
    assert Gptq().model_dump() == {"kind": "gptq", "order": "activation", "damping": 0.01}
    assert Gptq(search=3).model_dump()["search"] == 3
    assert Gptq.model_validate(Gptq(search=3).model_dump()) == Gptq(search=3)
