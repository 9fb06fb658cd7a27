"""Mixed precision: the best choice against every choice there is, and its bytes against the files."""

import itertools
import math
from collections.abc import Mapping
from contextlib import nullcontext
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import Bounds, LinearConstraint, milp
from torch import Tensor, nn

from decant.checkpoints.activations import DynamicGrid, InputGrid
from decant.checkpoints.checkpoint import Checkpoint
from decant.checkpoints.constraints import FREE, Constraints
from decant.checkpoints.files import load, save, size_bytes
from decant.costs.counts import macs
from decant.errors import DecantError
from decant.examples import Examples
from decant.lowering.folding import folded
from decant.networks.architectures import Mlp, Resnet, build
from decant.networks.record import record_of
from decant.networks.structure import compressible
from decant.quantize.mixed_precision.knapsack import cheapest
from decant.quantize.mixed_precision.params import Mixed, WidthBudget
from decant.quantize.mixed_precision.widths import LONGEST, WidthAllocation, allocate, bit_operations, spent
from decant.quantize.schemes import Integer
from tasks.pipeline.params import validate
from tests.nets import NETS, SHAPE, net
from tests.slow import slow_but

CLASSES = ("a", "b", "c")
WIDTHS = (2, 4, 8)


# --- one option for each layer


@st.composite
def problems(draw: st.DrawFn) -> tuple[list[list[tuple[float, int]]], int]:
    """Few distinct numbers, so that equal costs and sizes are common; costs fall with size or do not."""
    cost = st.one_of(st.sampled_from([0.0, 0.1, 0.2, 0.3, 1e-9]), st.floats(0, 10))
    option = st.tuples(cost, st.integers(0, 6))
    layers = draw(st.lists(st.lists(option, min_size=1, max_size=4), min_size=1, max_size=5))
    return layers, draw(st.integers(0, 20))


def tables(
    layers: list[list[tuple[float, int]]],
) -> tuple[dict[str, dict[int, float]], dict[str, dict[int, int]]]:
    names = [f"layer {index}" for index in range(len(layers))]
    costs = {
        n: {place: cost for place, (cost, _) in enumerate(row)} for n, row in zip(names, layers, strict=True)
    }
    sizes = {
        n: {place: size for place, (_, size) in enumerate(row)} for n, row in zip(names, layers, strict=True)
    }
    return costs, sizes


@given(problems())
def test_the_choice_is_the_first_among_the_best_of_all_there_are(
    problem: tuple[list[list[tuple[float, int]]], int],
) -> None:
    layers, limit = problem
    costs, sizes = tables(layers)
    known = [
        (sum(Fraction(row[p][0]) for row, p in zip(layers, places, strict=True)), size, places)
        for places in itertools.product(*(range(len(row)) for row in layers))
        if (size := sum(row[p][1] for row, p in zip(layers, places, strict=True))) <= limit
    ]
    if known:
        assert tuple(cheapest(costs, sizes, limit).values()) == min(known)[2]
    else:
        least = sum(min(size for _, size in row) for row in layers)
        with pytest.raises(ValueError, match=f"smallest options sum to {least}, and {limit} is allowed"):
            cheapest(costs, sizes, limit)


def test_equal_costs_go_to_the_smaller_size_and_then_to_the_first() -> None:
    costs = {"a": {2: 0.5, 4: 0.25, 8: 0.25}, "b": {2: 0.5, 4: 0.25}}
    sizes = {"a": {2: 1, 4: 2, 8: 3}, "b": {2: 1, 4: 2}}
    # Both at 4 would be best. One of them has to stay at 2: which one costs and weighs the same, so b gains.
    assert cheapest(costs, sizes, 3) == {"a": 2, "b": 4}
    assert cheapest(costs, sizes, 4) == {"a": 4, "b": 4}
    assert cheapest(costs, sizes, 99) == {"a": 4, "b": 4}  # 8 bits cost the same and weigh more
    # Whoever is named first in the table comes first.
    turned = {"a": {4: 0.25, 2: 0.5}, "b": {4: 0.25, 2: 0.5}}
    assert cheapest(turned, sizes, 3) == {"a": 4, "b": 2}


def test_a_width_that_is_cheaper_and_smaller_is_taken_though_costs_should_fall_with_bits() -> None:
    assert cheapest({"a": {2: 0.1, 4: 0.2}}, {"a": {2: 1, 4: 2}}, 2) == {"a": 2}


def test_differences_below_every_tolerance_decide() -> None:
    costs = {"a": {2: 3e-12, 4: 1e-12}, "b": {2: 3.5e-12, 4: 1e-12}}
    sizes = {"a": {2: 1, 4: 2}, "b": {2: 1, 4: 2}}
    assert cheapest(costs, sizes, 3) == {"a": 2, "b": 4}


def test_no_layers_are_no_choice() -> None:
    assert cheapest({}, {}, 0) == {}


@pytest.mark.parametrize("seed", range(4))
def test_many_layers_agree_with_a_solver_of_integer_programmes(seed: int) -> None:
    draw = np.random.default_rng(seed)
    counts = draw.integers(500, 200_000, 40)
    factors = 10 ** draw.uniform(-3, 1, 40)
    layers = [
        [(float(f * 4.0**-b * draw.uniform(0.5, 2)), int(n * b // 8)) for b in (2, 3, 4, 5, 6, 8)]
        for n, f in zip(counts, factors, strict=True)
    ]
    limit = int(counts.sum() * draw.uniform(0.4, 0.6))
    costs, sizes = tables(layers)
    chosen = cheapest(costs, sizes, limit)
    flat = np.array([option for row in layers for option in row])
    once = np.kron(np.eye(40), np.ones(6))
    solved = milp(
        flat[:, 0],
        constraints=[LinearConstraint(once, 1, 1), LinearConstraint(flat[None, :, 1], ub=limit)],
        integrality=np.ones(240),
        bounds=Bounds(0, 1),
        options={"mip_rel_gap": 0},
    )
    assert sum(sizes[name][place] for name, place in chosen.items()) <= limit
    assert sum(costs[name][place] for name, place in chosen.items()) == pytest.approx(solved.fun, abs=2e-6)


# --- a network


def network() -> Checkpoint:
    """Three layers of very different sizes, with weights large enough to be sure of their answers."""
    architecture = Mlp(hidden=(24, 6))
    module = build(architecture, (1, 4, 4), len(CLASSES), seed=3).eval()
    with torch.no_grad():
        for weight in compressible(module).values():
            weight.mul_(3)
    return Checkpoint(architecture, (1, 4, 4), CLASSES, module)


def examples(count: int = 40, shape: tuple[int, ...] = (1, 4, 4)) -> Examples:
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (count, *shape), generator=generator).to(torch.uint8)
    return Examples(images, torch.zeros(count, dtype=torch.long), CLASSES)


def options_of(start: Checkpoint) -> dict[str, dict[int, Constraints]]:
    return {name: {bits: held(start, name, bits) for bits in WIDTHS} for name in names(start)}


def held(start: Checkpoint, name: str, bits: int) -> Constraints:
    earlier = start.constraints.get(name, FREE)
    return earlier.narrow(levels=Integer(bits=bits).levels(start.module.get_parameter(name), earlier.mask))


def rounded(start: Checkpoint, widths: dict[str, int]) -> Checkpoint:
    return start.narrowed({name: held(start, name, bits) for name, bits in widths.items()})


def names(start: Checkpoint) -> list[str]:
    return list(compressible(start.module))


def middle(start: Checkpoint) -> int:
    """Return a budget in bytes that forces a choice."""
    return sum(spent(rounded(start, dict.fromkeys(names(start), bits)), "bytes") for bits in (2, 8)) // 2


def found(
    start: Checkpoint, amount: float, measure: str = "bytes", images: int = 40, *, learned: bool = False
) -> WidthAllocation:
    return allocate(
        start,
        options_of(start),
        start.narrowed,
        mixed=Mixed(budget=WidthBudget(**{measure: amount}), bits=WIDTHS, images=images),
        teacher=start,
        validation=examples(shape=start.shape),
        learned=learned,
    )


def divergence(expected: Tensor, logits: Tensor) -> float:
    """Return KL(expected || logits) in nats, mean over rows, by loops in double precision."""
    total = 0.0
    for row, other in zip(expected.double().tolist(), logits.double().tolist(), strict=True):
        p, q = ([math.exp(v) / sum(map(math.exp, values)) for v in values] for values in (row, other))
        total += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    return total / len(expected)


def on_disk(model: Checkpoint, folder: Path) -> int:
    folder.mkdir(exist_ok=True)
    save(model, folder)
    return size_bytes(folder)


def test_every_cell_of_the_table_is_the_divergence_of_that_layer_alone() -> None:
    start = network()
    result = found(start, middle(start), images=25)
    inputs = examples(25).images / 255
    assert list(result.tables) == names(start)
    for name, (chosen, tried) in result.tables.items():
        assert chosen == f"{result.widths[name]} bits"
        assert list(tried) == ["2 bits", "4 bits", "8 bits"]
        for bits in WIDTHS:
            alone = rounded(start, {name: bits}).module(inputs)
            expected = divergence(start.module(inputs).detach(), alone.detach())
            assert tried[f"{bits} bits"] == pytest.approx(expected, rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("masked", slow_but((True,), (False, True)))
def test_no_choice_that_fits_on_disk_is_cheaper(masked: bool, tmp_path: Path) -> None:
    start = network()
    if masked:
        weight = start.module.get_parameter("layers.0.weight")
        start = start.narrowed({"layers.0.weight": Constraints(mask=weight.abs() > 0.3)})
    costs = found(start, middle(start)).tables
    known = []
    for widths in itertools.product(WIDTHS, repeat=3):
        size = on_disk(rounded(start, dict(zip(names(start), widths, strict=True))), tmp_path / "model")
        cost = sum(costs[n][1][f"{b} bits"] or 0.0 for n, b in zip(names(start), widths, strict=True))
        known.append((size, cost))
    for limit in range(min(known)[0] + 12, max(known)[0] + 30, 53):
        result = found(start, limit)
        child = rounded(start, dict(result.widths))
        size, cost = (
            on_disk(child, tmp_path / "model"),
            sum(costs[n][1][f"{b} bits"] or 0.0 for n, b in result.widths.items()),
        )
        assert size <= limit
        # What is kept back for the digits of the file's own table is never more than a dozen bytes.
        assert result.widest or cost <= min(c for s, c in known if s <= limit - 12)
        words = f"{size:,} of {limit:,} bytes" + (", every layer at its widest" if result.widest else "")
        assert result.check(child) == {"budget": words}


def named(start: Checkpoint, *, learned: bool = False) -> int:
    """Return the least that the refusal of a hundred bytes names."""
    with pytest.raises(
        DecantError, match=r"mixed.budget: 100 bytes cannot be met: the least .* is ([\d,]+);"
    ) as e:
        found(start, 100, learned=learned)
    return int(str(e.value).split(" is ")[1].split(";")[0].replace(",", ""))


def test_the_least_that_is_named_can_be_met_and_one_byte_less_cannot() -> None:
    start = network()
    least = named(start)
    result = found(start, least)
    assert set(result.widths.values()) == {2}
    assert least - 12 <= spent(rounded(start, dict(result.widths)), "bytes") <= least
    with pytest.raises(DecantError, match="ask for that or more, allow fewer bits, or skip fewer layers"):
        found(start, least - 1)


@pytest.mark.parametrize("measure", ["bytes", "bit_operations"])
def test_a_budget_for_everything_is_everything_at_its_widest(measure: str) -> None:
    start = network()
    widest = rounded(start, dict.fromkeys(names(start), 8))
    most = spent(widest, measure)
    result = found(start, most, measure)
    assert set(result.widths.values()) == {8}
    assert result.check(widest)["budget"].endswith("every layer at its widest")
    below = found(start, most - 1, measure)
    assert not below.widest
    assert spent(rounded(start, dict(below.widths)), measure) < most


def test_a_share_is_of_what_the_teacher_has(tmp_path: Path) -> None:
    start = network()
    assert found(start, 0.5).limit == int(0.5 * on_disk(start, tmp_path / "model"))
    operations = (16 * 24 + 24 * 6 + 6 * 3) * 32 * 32
    assert found(start, 0.2, "bit_operations").limit == int(0.2 * operations)


def test_bit_operations_by_hand() -> None:
    start = network()
    assert bit_operations(start) == (384 + 144 + 18) * 1024
    child = rounded(start, {"layers.0.weight": 2, "layers.2.weight": 5})
    child = child.narrowed({}, {"layers.0": InputGrid(8, 0.01, 0), "layers.4": DynamicGrid(4)})
    assert bit_operations(child) == 384 * 2 * 8 + 144 * 5 * 32 + 18 * 32 * 4


@pytest.mark.parametrize("share", [0.08, 0.12, 0.16, 0.2])
def test_no_choice_of_as_many_bit_operations_is_cheaper(share: float) -> None:
    start = network().narrowed({}, {"layers.2": InputGrid(8, 0.05, 0)})
    result = found(start, share, "bit_operations")
    counts = dict(zip(names(start), (384 * 32, 144 * 8, 18 * 32), strict=True))
    costs = {
        name: {b: tried[f"{b} bits"] or 0.0 for b in WIDTHS} for name, (_, tried) in result.tables.items()
    }
    known = [
        (sum(costs[n][b] for n, b in zip(counts, widths, strict=True)), widths)
        for widths in itertools.product(WIDTHS, repeat=3)
        if sum(counts[n] * b for n, b in zip(counts, widths, strict=True)) <= result.limit
    ]
    assert result.widest or tuple(result.widths.values()) == min(known)[1]
    assert bit_operations(rounded(start, dict(result.widths))) <= result.limit


def test_layers_with_one_width_keep_it_and_skipped_ones_stay_whole() -> None:
    start = network()
    options = {"layers.0.weight": options_of(start)["layers.0.weight"]}
    options["layers.4.weight"] = {8: held(start, "layers.4.weight", 8)}
    asked: list[str] = []

    def rounded_(held: Mapping[str, Constraints]) -> Checkpoint:
        asked.extend(held)
        return start.narrowed(held)

    result = allocate(
        start,
        options,
        rounded_,
        mixed=Mixed(budget=WidthBudget(bytes=1500), bits=WIDTHS, images=10),
        teacher=start,
        validation=examples(),
    )
    assert result.widths["layers.4.weight"] == 8
    assert list(result.widths) == list(options)
    assert list(result.tables) == ["layers.0.weight"]  # nothing was chosen for the other one
    assert asked == ["layers.0.weight"] * 3
    assert spent(rounded(start, dict(result.widths)), "bytes") <= result.limit


def test_a_residual_network_is_folded_rounded_and_within_its_bytes(tmp_path: Path) -> None:
    start = folded(net(Resnet(widths=(6, 8), blocks=(1, 1), pool=2)))
    start = start.narrowed({}, {"head": InputGrid(8, 0.05, 3)})
    before = {name: tensor.clone() for name, tensor in start.module.state_dict().items()}
    result, again = found(start, middle(start), images=8), found(start, middle(start), images=8)
    assert result == again
    assert len(set(result.widths.values())) > 1
    child = rounded(start, dict(result.widths))
    assert on_disk(child, tmp_path) <= result.limit
    assert result.check(load(tmp_path)) == result.check(child)
    assert all(torch.equal(tensor, before[name]) for name, tensor in start.module.state_dict().items())
    assert not start.constraints


def test_grids_that_are_learned_afterwards_may_take_more_digits() -> None:
    start = network().narrowed({}, {"layers.0": InputGrid(8, 0.5, 0), "layers.2": DynamicGrid(8)})
    for limit in range(middle(start), middle(start) + 40, 7):
        result = found(start, limit, learned=True)
        child = rounded(start, dict(result.widths))
        learned = {"layers.0": InputGrid(8, torch.tensor(0.00012345678).item(), 0)}
        assert spent(child.narrowed({}, learned), "bytes") > spent(child, "bytes")
        result.check(child.narrowed({}, learned))


def test_steps_that_stay_count_the_digits_that_they_have() -> None:
    start = network().narrowed({}, {"layers.0": InputGrid(8, 0.5, 0), "layers.2": DynamicGrid(8)})
    least = named(start)
    assert named(start, learned=True) == least + len(repr(LONGEST)) - len("0.5")
    result = found(start, least)
    child = rounded(start, dict(result.widths))
    assert set(result.widths.values()) == {2}
    assert least - 12 <= spent(child, "bytes") <= least
    result.check(child)
    with pytest.raises(DecantError, match=f"the least that these widths leave is {least:,}"):
        found(start, least - 1)
    with pytest.raises(DecantError, match="cannot be met"):
        found(start, least, learned=True)


def test_no_step_of_a_grid_takes_more_digits_than_are_counted() -> None:
    generator = torch.Generator().manual_seed(0)
    steps = (10 ** (80 * torch.rand(20_000, generator=generator).double() - 40)).float()
    assert max(len(repr(step)) for step in steps[(steps > 1e-30) & steps.isfinite()].tolist()) <= len(
        repr(LONGEST)
    )


def test_what_was_added_after_the_choice_is_told() -> None:
    start = network()
    result = found(start, middle(start))
    child = rounded(start, dict(result.widths))
    used = spent(child, "bytes")
    with pytest.raises(DecantError, match=rf"has {1024 * 546:,} bit operations and .* lower the budget by"):
        found(start, 0.2, "bit_operations").check(start)
    larger = child.narrowed(
        {}, {name.removesuffix(".weight"): InputGrid(8, 0.123456789, 77) for name in result.widths}
    )
    over = spent(larger, "bytes") - used
    tight = WidthAllocation(result.widths, result.tables, "bytes", used, widest=False)
    assert tight.check(child) == {"budget": f"{used:,} of {used:,} bytes"}
    with pytest.raises(DecantError, match=f"{used:,} are allowed; lower the budget by {over:,}"):
        tight.check(larger)


def test_logits_that_are_no_numbers_name_the_layer_and_the_width() -> None:
    start = network()
    options = options_of(start)

    def broken(held: Mapping[str, Constraints]) -> Checkpoint:
        child = start.narrowed(held)
        if held.get("layers.2.weight") is options["layers.2.weight"][4]:
            with torch.no_grad():
                child.module.get_parameter("layers.4.bias").fill_(math.nan)
        return child

    with pytest.raises(DecantError, match=r"layers.2.weight at 4 bits: the logits are NaN .* skip its layer"):
        allocate(
            start,
            options,
            broken,
            mixed=Mixed(budget=WidthBudget(bytes=middle(start)), images=40),
            teacher=start,
            validation=examples(),
        )


def test_a_budget_that_cannot_be_met_is_refused_before_anything_is_rounded() -> None:
    start = network()

    def never(held: Mapping[str, Constraints]) -> Checkpoint:
        raise AssertionError(f"rounded {[*held]}")

    for amount, words in ((10.0, "cannot be met"), (0.99, None)):
        mixed = Mixed(budget=WidthBudget(bytes=amount))
        with pytest.raises(DecantError, match=words) if words else nullcontext():
            result = allocate(
                start, options_of(start), never, mixed=mixed, teacher=start, validation=examples()
            )
    assert result.widest
    assert result.tables == {}


# --- what can be asked


def test_the_section_survives_a_round_trip_and_sorts_its_widths() -> None:
    mixed = validate({"budget": {"bytes": 0.1}, "bits": [8, 2, 4]}, Mixed)
    assert mixed.bits == (2, 4, 8)
    assert validate(mixed.model_dump(), Mixed) == mixed
    assert validate({"budget": {"bit_operations": 0.05}}, Mixed).bits == (2, 3, 4, 5, 6, 8)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({}, "budget: is missing"),
        ({"budget": {}}, "give exactly one of bytes, bit_operations, got none"),
        ({"budget": {"bytes": 0.5, "bit_operations": 0.5}}, "got bytes and bit_operations"),
        ({"budget": {"bytes": 1000.5}}, "bytes is a share below 1 or a whole number above, got 1000.5"),
        ({"budget": {"bytes": 1.0}}, "bytes is a share below 1 or a whole number above, got 1"),
        ({"budget": {"bytes": 0}}, "budget.bytes: must be greater than 0, got 0"),
        ({"budget": {"byte": 100}}, "did you mean 'bytes'"),
        ({"budget": {"bytes": 0.5}, "bits": [4, 8, 4]}, r"bits: names each width once, got \[4, 8, 4\]"),
        ({"budget": {"bytes": 0.5}, "bits": [4]}, "bits: needs 2 or more entries"),
        ({"budget": {"bytes": 0.5}, "bits": [1, 4]}, "must be greater than or equal to 2, got 1"),
        ({"budget": {"bytes": 0.5}, "images": 0}, "images: must be greater than 0"),
    ],
)
def test_what_cannot_be_is_refused(content: dict[str, object], words: str) -> None:
    with pytest.raises(DecantError, match=words):
        validate(content, Mixed)


# --- multiplications of each layer


@pytest.mark.parametrize("kind", NETS)
def test_multiplications_of_layers_are_those_of_the_loops_and_sum_to_all(kind: str) -> None:
    module = net(NETS[kind]).module
    sizes: dict[str, int] = {}

    def seen(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        name = next(n for n, m in module.named_modules() if m is layer)
        each = inputs[0].shape[1]
        if isinstance(layer, nn.Conv2d):
            each = layer.in_channels // layer.groups * layer.kernel_size[0] * layer.kernel_size[1]
        sizes[f"{name}.weight"] = output[0].numel() * each

    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.register_forward_hook(seen)
    module(torch.zeros(1, *SHAPE))
    record = record_of(module)
    assert {name: record.macs_of(name) for name in compressible(module)} == sizes
    assert macs(module) == sum(sizes.values())
