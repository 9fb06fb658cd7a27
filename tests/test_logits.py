"""Answers matched to another network's: closed forms, Newton, Jacobians, and what has to hold throughout."""

import copy
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks import logits as benchmark
from decant.checkpoints.checkpoint import Checkpoint, state
from decant.checkpoints.constraints import Constraints, Levels, Range
from decant.compression.coupling import groups_of
from decant.compression.finish import Result
from decant.costs.divergence import softened_kl, squared_error
from decant.costs.drift import drift_from
from decant.errors import DecantError
from decant.examples import Examples, Splits, pixels
from decant.networks.architectures import Mlp, Resnet, build
from decant.networks.execution import predict
from decant.networks.structure import compressible
from decant.prune.criteria import Reconstruction
from decant.prune.logit_rounds import LogitRounds
from decant.prune.operation import prune
from decant.prune.params import PruneParams
from decant.prune.structures import NOfM
from decant.quantize.operation import quantize
from decant.quantize.params import QuantizeParams
from decant.reconstruction import logits
from decant.reconstruction.hessians import moments
from decant.reconstruction.logits import apart, matched, sensitivities
from decant.reconstruction.minimizers import descend, minimize
from decant.reconstruction.params import Logits
from decant.training.run import Run
from tests import conformance
from tests.conformance import adopted
from tests.drawn import drawn
from tests.nets import NETS, SHAPE, images, net
from tests.slow import slow_but
from tests.zoo import ZOO

CLASSES = ("a", "b", "c")
MAGNITUDE = {"criterion": {"kind": "magnitude"}, "allocation": {"kind": "layer"}, "budget": {"sparsity": 0.5}}
FEW = {"images": 48, "iterations": 6}


def splits(count: int = 48) -> Splits:
    return Splits(Examples(images(count), None, CLASSES), Examples(images(16), None, CLASSES))


def asked(iterations: int, **more: Any) -> Logits:
    return Logits.model_validate({"iterations": iterations, **more})


def linear(seed: int, rows: int, width: int, classes: tuple[str, ...] = CLASSES) -> Checkpoint:
    """One layer and nothing else."""
    module = nn.Sequential(nn.Flatten(), nn.Linear(width, rows)).eval()
    with torch.no_grad():
        module[1].weight.copy_(drawn(seed, rows, width))
        module[1].bias.copy_(drawn(seed + 1, rows))
    return Checkpoint(Mlp(hidden=(1,)), (1, 1, width), classes, module)


def pixels_of(seed: int, count: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 1, 1, width), generator=generator).to(torch.uint8)


# --- minimizing


def test_a_quadratic_is_solved_as_its_normal_equations() -> None:
    root = drawn(0, 30, 12).double()
    matrix, target = root.mT @ root, drawn(1, 12).double()

    def objective(values: Tensor) -> tuple[float, Tensor]:
        return (values @ matrix @ values / 2 - target @ values).item(), matrix @ values - target

    found = minimize(objective, torch.zeros(12, dtype=torch.double), 60)
    assert torch.allclose(found.values, torch.linalg.solve(matrix, target), atol=1e-6)
    assert found.before == 0.0
    assert found.iterations <= 60
    assert found.evaluations <= 121


def test_the_best_that_was_seen_is_returned_and_never_worse_than_the_start() -> None:
    seen: list[tuple[float, Tensor]] = []

    def treacherous(values: Tensor) -> tuple[float, Tensor]:
        """A loss that its slope says nothing of."""
        loss = math.sin(37 * values.sum().item()) + (5.0 if len(seen) % 3 else 0.0)
        seen.append((loss, values.clone()))
        return loss, drawn(len(seen), 4)

    found = minimize(treacherous, torch.ones(4), 8)
    best, values = min(seen, key=lambda each: each[0])
    assert (found.loss, found.before, found.evaluations) == (best, seen[0][0], len(seen))
    assert torch.equal(found.values, values)
    assert found.loss <= found.before


def test_uphill_everywhere_is_the_start() -> None:
    start = torch.tensor([2.0, 1.0])
    found = minimize(lambda values: ((values - start).abs().sum().item(), torch.ones(2)), start, 5)
    assert torch.equal(found.values, start)
    assert found.loss == found.before == 0.0
    with pytest.raises(ValueError, match="The loss is nan before anything has changed"):
        minimize(lambda values: (math.nan, torch.ones(2)), start, 5)


class Squares:
    """The mean of (root v - target)² over rows."""

    def __init__(self, rows: int) -> None:
        self.root, self.target, self.start = drawn(0, rows, 4), drawn(1, rows), torch.zeros(4)
        self.looked_at: list[list[int]] = []

    def __len__(self) -> int:
        return len(self.root)

    def loss(self, values: Tensor) -> float:
        return (self.root @ values - self.target).square().mean().item()

    def __call__(self, values: Tensor) -> tuple[float, Tensor]:
        raise AssertionError("all terms at once")

    def changed(self, seed: int) -> "Squares":
        raise AssertionError("changed once")

    def part(self, values: Tensor, rows: Tensor, generator: torch.Generator) -> tuple[float, Tensor]:
        self.looked_at.append(rows.tolist())
        off = self.root[rows] @ values - self.target[rows]
        return off.square().mean().item(), 2 * self.root[rows].mT @ off / len(rows)

    def allowed(self, values: Tensor) -> Tensor:
        return values.clamp(max=0.1)


def test_adam_takes_the_steps_of_its_paper_within_what_is_allowed() -> None:
    terms = Squares(10)
    found = descend(terms, 3, batch_size=4, learning_rate=0.1, seed=7)
    passes = [[*terms.looked_at[at], *terms.looked_at[at + 1]] for at in (0, 2, 4)]
    assert all(len(set(each)) == 8 for each in passes)  # the two that do not fill a batch are left out
    assert len({tuple(each) for each in passes}) == 3
    values, first, second = terms.start.double(), torch.zeros(4).double(), torch.zeros(4).double()
    for step, rows in enumerate(terms.looked_at):
        off = terms.root[rows].double() @ values - terms.target[rows].double()
        slope = 2 * terms.root[rows].double().mT @ off / 4
        first, second = 0.9 * first + 0.1 * slope, 0.99 * second + 0.01 * slope**2
        scaled = first / (1 - 0.9 ** (step + 1)) / ((second / (1 - 0.99 ** (step + 1))).sqrt() + 1e-8)
        values = (values - 0.05 * (1 + math.cos(math.pi * step / 6)) * scaled).clamp(max=0.1)
    assert torch.allclose(found.values.double(), values, atol=1e-5)
    assert values.max() == 0.1
    assert found.loss == terms.loss(found.values) < found.before == terms.loss(terms.start)
    again = descend(Squares(10), 3, batch_size=4, learning_rate=0.1, seed=7)
    assert torch.equal(found.values, again.values)


def test_adam_that_ends_above_its_start_is_the_start_and_one_that_diverges_is_told() -> None:
    terms = Squares(10)
    terms.start = torch.linalg.lstsq(terms.root, terms.target[:, None]).solution[:, 0]
    found = descend(terms, 1, batch_size=50, learning_rate=9.0, seed=0)
    assert torch.equal(found.values, terms.start)
    assert found.loss == found.before
    terms.target[3] = math.inf
    with pytest.raises(ValueError, match="The loss is inf before anything has changed"):
        descend(terms, 1, batch_size=5, learning_rate=0.1, seed=0)
    with pytest.raises(ValueError, match=r"The loss is inf in step \d of 2; lower learning_rate"):
        terms.loss = lambda _: 1.0  # type: ignore[method-assign]
        descend(terms, 1, batch_size=5, learning_rate=0.1, seed=0)


# --- one layer, where the best is known


def test_numbers_of_one_masked_layer_are_least_squares() -> None:
    parent, shown = linear(3, 4, 9, ()), pixels_of(0, 60, 9)
    mask = drawn(9, 4, 9) > -0.3
    child = parent.narrowed({"1.weight": Constraints(mask=mask)})
    found = matched(child, parent.module, shown, asked(200)).model.module
    inputs = torch.cat([pixels(shown).flatten(1), torch.ones(60, 1)], 1).double()
    wanted = predict(parent.module, shown).double()
    for row in range(4):
        kept = torch.cat([mask[row], torch.tensor([True])])
        best = torch.linalg.lstsq(inputs[:, kept], wanted[:, row : row + 1]).solution[:, 0]
        mine = torch.cat([found[1].weight[row], found[1].bias[row : row + 1]]).detach().double()[kept]
        assert torch.allclose(mine, best, atol=2e-3)
        assert not found[1].weight[row][~mask[row]].any()


def test_logits_of_one_masked_layer_are_where_newton_ends() -> None:
    parent, shown, temperature = linear(3, 3, 5), pixels_of(0, 80, 5), 2.0
    mask = torch.ones(3, 5, dtype=torch.bool)
    mask[0, 1] = mask[1, 3] = mask[2, 0] = mask[2, 4] = False
    child = parent.narrowed({"1.weight": Constraints(mask=mask)})
    found = matched(child, parent.module, shown, asked(300, temperature=temperature))
    inputs, wanted = pixels(shown).flatten(1).double(), predict(parent.module, shown).double()

    def loss(values: Tensor) -> Tensor:
        weight = torch.zeros(3, 5, dtype=torch.double).masked_scatter(mask, values[:-3])
        # One bias is free to go along with the others: a ridge that is next to nothing holds it.
        return (
            softened_kl(inputs @ weight.mT + values[-3:], wanted, temperature) + 1e-9 * values.square().sum()
        )

    values = torch.cat([parent.module[1].weight[mask], parent.module[1].bias]).detach().double()
    for _ in range(30):
        slope = torch.autograd.functional.jacobian(loss, values)
        values = values - torch.linalg.solve(torch.autograd.functional.hessian(loss, values), slope)
    least = loss(values).item()
    assert found.minimum.before > 1.01 * least
    assert least - 1e-6 <= found.minimum.loss <= least + 1e-5


def test_the_loss_is_the_distance_that_a_drift_is_and_parts_sum_to_it() -> None:
    found, expected = drawn(0, 10, 3), drawn(1, 10, 3)
    for temperature, whole in (
        (1.0, softened_kl(found.double(), expected.double(), 1.0)),
        (3.0, softened_kl(found.double(), expected.double(), 3.0)),
        (None, squared_error(found, expected)),
    ):
        part = apart(expected, temperature)
        both = part(found[:4], expected[:4]) + part(found[4:], expected[4:])
        assert both.item() == pytest.approx(whole.item(), rel=1e-9)
    same = torch.ones(2, 2)
    assert apart(same, None)(same + 1, same).item() == pytest.approx(1.0)  # a constant: its square is 1


# --- what holds throughout


def both(name: str, **more: Any) -> tuple[Checkpoint, Result, Result]:
    """Return a parent, and the same pruned without and with its answers matched."""
    parent = net(NETS[name])
    block = {**MAGNITUDE, **more}
    return (
        parent,
        prune(parent, block, splits()),
        prune(parent, {**block, "logits": FEW | {"temperature": 1.0}}, splits()),
    )


@pytest.mark.parametrize("name", NETS)
def test_a_pruned_network_comes_nearer_within_its_masks(name: str) -> None:
    parent, before, after = both(name)
    drift = drift_from(parent, images(48))
    assert drift(after.model) < drift(before.model)
    (pair,) = after.facts["logits_loss"]
    assert pair == [float(f"{drift(model):.4g}") for model in (before.model, after.model)]
    assert after.facts["logits_images"] == 48
    for key, held in before.model.constraints.items():
        assert held.mask is not None
        assert torch.equal(after.model.constraints[key].mask, held.mask)
        assert not after.model.module.get_parameter(key)[~held.mask].any()
    for key, buffer in before.model.module.named_buffers():
        assert torch.equal(after.model.module.get_buffer(key), buffer), key


def test_the_same_bytes_twice_and_no_state_of_an_interrupted_run_is_looked_for() -> None:
    def never() -> Any:
        raise AssertionError("a reconstruction keeps no state")

    parent = net(NETS["residual"])
    block = {**MAGNITUDE, "logits": {**FEW, "rounds": 2}, "statistics": True}
    one, other = (prune(parent, block, splits(), run=Run(place=never)) for _ in range(2))
    assert one.facts == other.facts
    first, second = state(one.model.module), state(other.model.module)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert [len(one.facts[f"logits_{each}"]) for each in ("loss", "iterations", "passes")] == [2, 2, 2]


@pytest.mark.parametrize("name", slow_but(("encoder", "sound", "tagger", "bag"), ZOO))
@pytest.mark.parametrize("operation", ["prune", "quantize"])
def test_networks_of_other_people_come_nearer_too(name: str, operation: str) -> None:
    parent, shown = adopted(name), conformance.splits(name)
    run: Any = {"prune": prune, "quantize": quantize}[operation]
    block = MAGNITUDE if operation == "prune" else {"scheme": {"kind": "integer", "bits": 3}}
    result = run(parent, {**block, "logits": {"iterations": 3}}, shown)
    ((before, after),) = result.facts["logits_loss"]
    assert after < before
    before_it = drift_from(parent, shown.train.images)(result.model)
    assert before_it == pytest.approx(after, rel=1e-3)


def test_ranges_and_n_of_m_hold() -> None:
    parent = net(NETS["residual"])
    name = "head.weight"
    bound = parent.module.get_parameter(name).abs().max().item() * 0.4
    clipped = parent.narrowed({name: Constraints(Range(-bound, bound))})
    block = {"criterion": {"kind": "obs", "images": 48}, "structure": {"kind": "n-of-m", "n": 2, "m": 4}}
    result = prune(clipped, {**block, "logits": FEW}, splits())
    weight = result.model.module.get_parameter(name)
    assert weight.abs().max() <= bound
    assert (weight.abs() == bound).any()
    for held in result.model.constraints.values():
        if held.mask is not None:
            assert NOfM(n=2, m=4).broken_by(held.mask, torch.ones_like(held.mask)) == ""


def test_tied_weights_stay_one_and_what_is_skipped_or_frozen_stays() -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.Linear(6, 3)).eval()
    module[3].weight = module[1].weight
    module[4].bias.requires_grad_(False)
    parent = Checkpoint(Mlp(hidden=(6,)), (1, 1, 6), CLASSES, module)
    other = copy.deepcopy(module)
    with torch.no_grad():
        other[1].weight.mul_(1.3)
    fixed = logits.within(module, ["3"])
    assert fixed == {"1.weight", "3.bias"}
    found = matched(parent, other, pixels_of(1, 50, 6), asked(5)).model.module
    assert found[3].weight is found[1].weight
    assert not torch.equal(found[1].weight, module[1].weight)
    assert torch.equal(found[4].bias, module[4].bias)
    held = matched(parent, other, pixels_of(1, 50, 6), asked(5), fixed=fixed).model.module
    assert torch.equal(held[1].weight, module[1].weight)
    assert torch.equal(held[3].bias, module[3].bias)
    assert not torch.equal(held[4].weight, module[4].weight)
    with pytest.raises(DecantError, match="nothing of the model may move"):
        matched(parent, other, pixels_of(1, 50, 6), asked(5), fixed=logits.within(module, ["1", "3", "4"]))


def test_answers_that_are_no_numbers_and_no_images_are_refused() -> None:
    parent, shown = linear(0, 3, 4), pixels_of(0, 5, 4)
    broken = copy.deepcopy(parent.module)
    with torch.no_grad():
        broken[1].bias[0] = math.nan
    with pytest.raises(DecantError, match="answers of the model before are NaN or infinite"):
        matched(parent, broken, shown, asked(3))
    with pytest.raises(DecantError, match=r"The loss is nan .* answers are NaN or infinite"):
        matched(replace(parent, module=broken), parent.module, shown, asked(3))
    with pytest.raises(DecantError, match="there are none"):
        matched(parent, parent.module, shown[:0], asked(3))


ADAM = {"solver": {"kind": "adam", "batch_size": 16, "learning_rate": 0.003}, "iterations": 3}


def test_parts_sum_to_the_whole_and_changed_images_are_answered_anew() -> None:
    parent, shown = net(NETS["residual"]), images(24)
    child = prune(parent, MAGNITUDE, splits()).model
    for classes in (True, False):
        terms = logits.Answers(
            child.module, logits.variables(child), shown, parent.module, asked(1), classes=classes
        )
        loss, slope = terms(terms.start)
        generator = torch.Generator().manual_seed(0)
        halves = [terms.part(terms.start, rows, generator) for rows in torch.arange(24).split(12)]
        assert sum(each for each, _ in halves) / 2 == pytest.approx(loss, rel=1e-6)
        assert loss == pytest.approx(terms.loss(terms.start), rel=1e-6)
        assert torch.allclose((halves[0][1] + halves[1][1]) / 2, slope, atol=1e-6, rtol=1e-4)
    flips = asked(1, augmentation={"flip": True, "shift": 1}, temperature=1.0)
    terms = logits.Answers(child.module, logits.variables(child), shown, parent.module, flips, classes=True)
    found, _ = terms.part(terms.start, torch.arange(24), torch.Generator().manual_seed(5))
    moved = flips.augmentation.apply(shown, torch.Generator().manual_seed(5))
    whole = softened_kl(predict(child.module, moved).double(), predict(parent.module, moved).double(), 1.0)
    assert found == pytest.approx(whole.item(), rel=1e-5)
    assert terms.changed(5).loss(terms.start) == pytest.approx(whole.item(), rel=1e-5)
    assert terms.loss(terms.start) != pytest.approx(whole.item(), rel=1e-3)


@pytest.mark.parametrize("solver", ["l-bfgs", "adam"])
def test_changed_images_and_small_steps_hold_what_has_to_hold_and_repeat_themselves(solver: str) -> None:
    parent = net(NETS["residual"])
    bound = parent.module.get_parameter("head.weight").abs().max().item() * 0.4
    clipped = parent.narrowed({"head.weight": Constraints(Range(-bound, bound))})
    more = {"augmentation": {"shift": 1}, **(ADAM if solver == "adam" else FEW)}
    block = {**MAGNITUDE, "logits": more}
    before, one, other, seeded = (
        prune(clipped, each, splits(), run=Run(seed=seed))
        for each, seed in ((MAGNITUDE, 1), (block, 1), (block, 1), (block, 2))
    )
    (pair,) = one.facts["logits_loss"]
    assert pair[1] < pair[0]
    held, mask = one.model.constraints["head.weight"], before.model.constraints["head.weight"].mask
    weight = one.model.module.get_parameter("head.weight")
    assert torch.equal(held.project(weight), weight)
    assert held.mask is not None
    assert mask is not None
    assert torch.equal(held.mask, mask)
    first, second, third = (state(each.model.module) for each in (one, other, seeded))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], third[name]) for name in first)


# --- levels


SCHEMES: dict[str, dict[str, Any]] = {
    "symmetric": {"kind": "integer", "bits": 2},
    "affine": {"kind": "integer", "bits": 2, "symmetric": False},
    "groups": {"kind": "integer", "bits": 3, "group": 16},
    "binary": {"kind": "binary"},
}


@pytest.mark.parametrize("scheme", slow_but(("affine",), SCHEMES))
def test_codes_change_where_that_is_asked_and_the_answers_come_nearer(scheme: str) -> None:
    parent = prune(net(NETS["joined"]), {**MAGNITUDE, "budget": {"sparsity": 0.2}}, splits()).model
    small = {"kind": "adam", "batch_size": 8, "learning_rate": 0.01}
    block = {"scheme": SCHEMES[scheme], "logits": {"solver": small, "iterations": 2, "codes": True}}
    before, after = (quantize(parent, each, splits()) for each in ({"scheme": SCHEMES[scheme]}, block))
    (pair,) = after.facts["logits_loss"]
    assert pair[1] < pair[0]
    changed = 0
    for name, held in after.model.constraints.items():
        levels = before.model.constraints[name].levels
        if held.levels is None or levels is None:
            continue
        weight, other = (each.model.module.get_parameter(name) for each in (after, before))
        assert torch.equal(held.project(weight), weight)
        changed += int((held.levels.codes(weight) != levels.codes(other)).sum())
        assert held.mask is None or not weight[~held.mask].any()
    assert changed > 0


def test_numbers_behind_codes_begin_in_their_cells_and_slopes_pass_the_rounding() -> None:
    levels = Levels(torch.tensor([-1.0, 0.0, 2.0]), torch.tensor([[0.5], [0.25]]))
    weight = torch.tensor([[1.0, -0.5, 0.0], [0.0, 0.5, 0.0]])
    before = torch.tensor([[0.9, -0.3, 0.3], [0.1, 0.1, 7.0]])
    variable = logits.choices(weight, Constraints(levels=levels), before)
    steps = torch.tensor([[1.8, -0.6, 0.6], [0.4, 0.4, 28.0]])
    cells = torch.tensor([[1.82, -0.64, 0.54], [0.36, 1.1, 0.9]])  # 0.9 of the way to it, or to the edge
    assert torch.allclose(logits.FASTER * variable.start[:6].reshape(2, 3), cells)
    assert torch.allclose(levels.in_steps(before), steps)
    assert torch.equal(variable.parameter(variable.start), weight)
    values = variable.start.clone().requires_grad_()
    slope = drawn(0, 2, 3)
    (found,) = torch.autograd.grad(variable.parameter(values), values, slope)
    assert torch.allclose(found[:6].reshape(2, 3), logits.FASTER * levels.scale * slope)
    assert torch.allclose(found[6:], (slope * weight).sum(1))
    there = variable.start.clone()
    there[1], there[3] = 0.9 / logits.FASTER, 9.0
    kept = variable.allowed(there)
    assert kept[3].item() == pytest.approx(3 / logits.FASTER)
    assert torch.equal(variable.parameter(kept)[:, :2], torch.tensor([[1.0, 0.0], [0.5, 0.5]]))


@pytest.mark.parametrize(
    "block",
    [
        {"scheme": {"kind": "integer", "bits": 2}},
        {"scheme": {"kind": "integer", "bits": 3, "symmetric": False, "per_channel": False}},
        {"scheme": {"kind": "integer", "bits": 3, "group": 16}, "rounding": {"kind": "gptq"}},
        {"scheme": {"kind": "binary"}},
        {"scheme": {"kind": "codebook", "entries": 4}, "statistics": True},
        {"scheme": {"kind": "integer", "bits": 4}, "activations": {"bits": 8}},
    ],
    ids=lambda block: "-".join(map(str, block["scheme"].values())),
)
def test_each_rounded_weight_keeps_its_code_and_the_answers_come_nearer(block: dict[str, Any]) -> None:
    parent = net(NETS["residual"])
    block = {**block, "images": 48}
    before, after = (quantize(parent, {**block, **more}, splits()) for more in ({}, {"logits": FEW}))
    (pair,) = after.facts["logits_loss"]
    assert pair[1] < pair[0]
    moved = 0
    for name, held in before.model.constraints.items():
        now = after.model.constraints[name]
        if held.levels is None or now.levels is None:
            continue
        weight, other = (each.model.module.get_parameter(name) for each in (before, after))
        assert torch.equal(held.levels.codes(weight), now.levels.codes(other))
        assert torch.equal(held.levels.values, now.levels.values)
        assert torch.equal(torch.sign(held.levels.scale), torch.sign(now.levels.scale))
        assert torch.equal(now.project(other), other)
        moved += int((held.levels.scale != now.levels.scale).sum())
    assert moved > 0


def test_levels_of_an_earlier_operation_stay_and_biases_make_up() -> None:
    rounded = quantize(net(NETS["residual"]), {"scheme": {"kind": "integer", "bits": 4}}, splits()).model
    plain = prune(rounded, MAGNITUDE, splits()).model
    result = prune(rounded, {**MAGNITUDE, "logits": FEW}, splits())
    for name, held in rounded.constraints.items():
        assert held.levels is not None
        assert held.levels.equals(result.model.constraints[name].levels)
        weights = [each.module.get_parameter(name) for each in (plain, result.model)]
        assert torch.equal(*weights)
    assert not torch.equal(result.model.module.head.bias, plain.module.head.bias)


def test_steps_stretch_within_a_range_as_far_as_it_goes() -> None:
    levels = Levels(torch.tensor([-1.0, 0.0, 1.0]), torch.tensor(0.5))
    weight = torch.tensor([[0.5, -0.5, 0.0]])
    variable = logits.scales(weight, Constraints(Range(-0.8, 0.6), levels))
    grown = variable.parameter(torch.tensor([9.0]))
    assert grown.abs().max().item() == pytest.approx(0.6)
    assert torch.equal(variable.held(torch.tensor([9.0])).project(grown), grown)
    assert torch.equal(variable.parameter(variable.start), weight)


# --- what outputs count


def naive(module: nn.Module, name: str, shown: Tensor, temperature: float | None) -> Tensor:
    """Return the diagonal of half the Gauss-Newton matrix, image by image, from a Jacobian in float64."""
    module, total = copy.deepcopy(module).double(), 0.0
    layer = module.get_submodule(name)
    outputs = predict(module, shown, dtype=torch.float64)
    for index in range(len(shown)):
        inputs = pixels(shown[index : index + 1]).double()

        def answer(offset: Tensor, inputs: Tensor = inputs) -> Tensor:
            handle = layer.register_forward_hook(lambda _m, _i, output: output + offset)
            try:
                return module(inputs)[0]
            finally:
                handle.remove()

        place: list[Tensor] = []
        handle = layer.register_forward_hook(lambda _m, _i, output, place=place: place.append(output))
        module(inputs)
        handle.remove()
        jacobian = torch.autograd.functional.jacobian(answer, torch.zeros_like(place[0]))[:, 0]
        jacobian = jacobian.flatten(2) if jacobian.dim() > 2 else jacobian[:, :, None]
        if temperature is None:
            matrix = 2 * torch.eye(outputs.shape[1]).double() / outputs.shape[1] / outputs.var(correction=0)
        else:
            p = (outputs[index] / temperature).softmax(0)
            matrix = torch.diag(p) - p[:, None] * p
        total = total + torch.einsum("cop,cd,dop->o", jacobian, matrix, jacobian)
    return torch.as_tensor(total) / (2 * len(shown))


@pytest.mark.parametrize("temperature", [1.0, 3.0, None])
def test_what_outputs_count_is_the_diagonal_of_the_gauss_newton_matrix(temperature: float | None) -> None:
    module = build(Resnet(widths=(4,), blocks=(0,), pool=2), SHAPE, 3, seed=0).eval()
    shown = images(3)
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            found = sensitivities(module, [f"{name}.weight"], shown, temperature)[f"{name}.weight"]
            expected = naive(module, name, shown, temperature).detach()
            assert torch.allclose(found, expected, rtol=1e-3, atol=1e-9), name


def test_of_many_outputs_random_sums_stand_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    module, shown = build(Mlp(hidden=(12,)), SHAPE, 20, seed=0).eval(), images(64)
    (name, *_) = (n for n, p in module.named_parameters() if p.dim() > 1)
    exact = sensitivities(module, [name], shown, 1.0)[name]
    monkeypatch.setattr(logits, "DIRECTIONS", 16)
    drawn_sums = sensitivities(module, [name], shown, 1.0)[name]
    assert not torch.equal(exact, drawn_sums)
    assert torch.allclose(exact, drawn_sums, rtol=0.35)
    assert (exact.sum() / drawn_sums.sum()).item() == pytest.approx(1, abs=0.1)


def test_scores_of_obs_are_multiplied_by_what_each_row_counts() -> None:
    module, shown = net(NETS["residual"]).module, splits().train
    plain, weighed = (
        PruneParams.model_validate(
            {"op": "prune", "from": "x", "budget": {"sparsity": 0.5}, "criterion": {"kind": "obs", **more}}
        ).criterion.scores(module, shown, 0)
        for more in ({"images": 48}, {"images": 48, "costs": "logits"})
    )
    rows = sensitivities(module, list(plain), shown.images, 1.0)
    for name, scores in plain.items():
        expected = scores * rows[name].float().reshape(-1, *[1] * (scores.dim() - 1))
        assert torch.allclose(weighed[name], expected, rtol=1e-6)
    assert list(plain) == list(weighed)


def test_scores_of_channels_are_what_their_readers_errors_cost_the_answers() -> None:
    """Beside a naive one: least squares anew for each channel that could go next, each output by its cost."""
    parent, shown = net(NETS["residual"]), splits().train
    groups, damping = groups_of(parent, ()), 0.01
    asked = {"kind": "reconstruction", "images": 48, "damping": damping, "costs": "logits"}
    recipe = {"op": "prune", "from": "x", "structure": {"kind": "channels"}, "budget": {"macs": 0.5}}
    criterion = PruneParams.model_validate(recipe | {"criterion": asked}).criterion
    assert isinstance(criterion, Reconstruction)
    found = criterion.channel_scores(parent, groups, shown)
    for group in groups:
        expected = torch.zeros(group.count, dtype=torch.double)
        for name, dim, indices in group.members:
            if dim != 1 or name not in compressible(parent.module):
                continue
            weight = parent.module.get_parameter(name).detach()
            costs = sensitivities(parent.module, [name], shown.images, 1.0)[name]
            hessian = moments(parent.module, [name], shown.images)[name].hessian[0]
            seen = hessian.diagonal() > 0
            ridge = torch.where(seen, damping * hessian.diagonal()[seen].mean(), 1.0)
            rows = weight.flatten(1).double() * seen
            expected += naive_losses(rows, hessian + ridge.diag(), indices, weight[0, 0].numel(), costs)
        assert torch.allclose(found[group.name], expected, rtol=1e-4)


def naive_losses(rows: Tensor, hessian: Tensor, indices: Tensor, size: int, costs: Tensor) -> Tensor:
    """Return what has been lost when each channel [C] goes, the cheapest one next."""

    def loss(left: Sequence[int]) -> float:
        kept = [int(i) * size + at for c in left for i in indices[c] for at in range(size)]
        whole, right = (rows @ hessian * rows).sum(1), (rows @ hessian)[:, kept]
        solved = torch.linalg.solve(hessian[kept][:, kept], right.T).T if kept else right
        return float((costs * (whole - (solved * right).sum(1))).sum())

    left, losses = list(range(len(indices))), torch.zeros(len(indices), dtype=torch.double)
    while left:
        each = {channel: loss([other for other in left if other != channel]) for channel in left}
        channel = min(each, key=lambda one: each[one])
        losses[channel] = each[channel]
        left.remove(channel)
    return losses


# --- recipes


def test_what_is_left_halves_from_round_to_round() -> None:
    three = LogitRounds(rounds=3)
    assert [round(1 - three.part(n, 1.0, 0.05), 9) for n in (1, 2, 3)] == [0.8, 0.9, 0.95]
    assert [round(three.part(n, 1.0, 0.5), 6) for n in (1, 2, 3)] == [
        round(0.5 ** (n / 3), 6) for n in (1, 2, 3)
    ]


def test_rounds_meet_the_budget_and_masks_only_shrink() -> None:
    parent = net(NETS["joined"])
    block = {"criterion": {"kind": "obs", "images": 48, "costs": "logits"}, "budget": {"sparsity": 0.7}}
    result = prune(parent, {**block, "logits": {**FEW, "rounds": 3}}, splits())
    weights = {n: result.model.module.get_parameter(n) for n in result.model.constraints}
    zeros = sum(int((~held.mask).sum()) for held in result.model.constraints.values())
    assert zeros == round(0.7 * sum(weight.numel() for weight in weights.values()))
    again = prune(result.model, {**block, "budget": {"sparsity": 0.8}}, splits()).model
    assert all(
        not again.constraints[n].mask[~held.mask].any() for n, held in result.model.constraints.items()
    )


def test_channels_go_in_rounds_as_well() -> None:
    parent = net(NETS["residual"])
    block = {
        "criterion": {"kind": "reconstruction", "images": 48},
        "structure": {"kind": "channels"},
        "budget": {"macs": 0.5},
    }
    plain, result = (
        prune(parent, {**block, **more}, splits()) for more in ({}, {"logits": {**FEW, "rounds": 2}})
    )
    drift = drift_from(parent, images(48))
    assert len(result.facts["logits_loss"]) == 2
    assert drift(result.model) < drift(plain.model)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (
            {"schedule": {"kind": "iterative", "training": {"epochs": 1}}},
            "schedule iterative trains, which comes further: leave out logits",
        ),
        ({"budget": {"drift": 0.1}}, "budget drift is measured before logits"),
        (
            {"structure": {"kind": "n-of-m", "n": 2, "m": 4}, "budget": None},
            "logits.rounds come nearer to a budget, n-of-m has none",
        ),
        ({"structure": {"kind": "channels"}}, "budget sparsity of channels is met at once"),
        ({"logits": {"rounds": 0}}, "greater than or equal to 1"),
        ({"logits": {"round": 2}}, "rounds"),
        ({"logits": {"solver": {"kind": "adamw"}}}, "unknown kind 'adamw'; did you mean 'adam'"),
        ({"criterion": {"kind": "obs", "costs": "logit"}}, "'outputs' or 'logits'"),
    ],
)
def test_what_cannot_be_is_refused(more: dict[str, Any], words: str) -> None:
    block = {**MAGNITUDE, "logits": {"rounds": 2}, **more}
    with pytest.raises(DecantError, match=words):
        prune(net(NETS["joined"]), {n: value for n, value in block.items() if value is not None}, splits())


def test_a_training_on_levels_leaves_it_out_and_more_images_than_there_are_are_refused() -> None:
    parent = net(NETS["joined"])
    train = {"kind": "ste", "training": {"epochs": 1}}
    scheme = {"scheme": {"kind": "integer", "bits": 4}}
    with pytest.raises(DecantError, match="logits is undone by training"):
        quantize(parent, {**scheme, "train": train, "logits": {}}, splits())
    with pytest.raises(DecantError, match=r"codes in many small steps, got solver l-bfgs: take adam"):
        quantize(parent, {**scheme, "logits": {"codes": True}}, splits())
    with pytest.raises(DecantError, match=r"logits\.images: 49 training images are asked for"):
        quantize(parent, {**scheme, "logits": {"images": 49}}, splits())


def test_a_recipe_without_it_is_written_as_before() -> None:
    pruned = PruneParams.model_validate(
        {"op": "prune", "from": "t", "criterion": {"kind": "obs"}, "budget": {"sparsity": 0.5}}
    )
    rounded = QuantizeParams.model_validate({"op": "quantize", "from": "t", "scheme": {"kind": "binary"}})
    assert "logits" not in pruned.model_dump(mode="json")
    assert "costs" not in pruned.model_dump(mode="json")["criterion"]
    assert "costs" not in Reconstruction(kind="reconstruction").model_dump(mode="json")
    assert "logits" not in rounded.model_dump(mode="json")
    matching = pruned.model_copy(update={"logits": LogitRounds()}).model_dump(mode="json")["logits"]
    assert matching == {"images": 10_000, "iterations": 40, "temperature": 2.0, "rounds": 1}


# --- the benchmark


def row(
    way: str, seed: int, validation: float, test: float, recipe: str = "obs-80", drift: float = 0.1
) -> dict[str, Any]:
    numbers = {"validation": validation, "test": test, "drift": drift, "passes": 2000, "seconds": 3.0}
    return {"network": "default", "recipe": recipe, "way": way, "seed": seed, **numbers}


def test_the_benchmark_chooses_by_divergence_and_not_by_labels() -> None:
    rows = [
        row("teacher", 1, 94.0, 93.0, ""),
        row(benchmark.PLAIN, 1, 93.6, 92.9, drift=0.2),
        row("logits", 1, 93.5, 92.85),
        row(benchmark.LABELS, 1, 94.5, 94.0, drift=0.05),
    ]
    assert benchmark.goals(rows)[-1] == "| default | obs-80 | 0.20 | logits | 0.15 | yes |"
    assert "| obs-80 | logits | -0.50 | -0.15 | 0.1000 | 2 | 3 | 2 |" in benchmark.table(rows)
    assert benchmark.spread([-0.1, -0.3]) == "-0.20 ± 0.14"
    assert len(benchmark.merged(rows, rows)) == len(rows)
    with pytest.raises(SystemExit):
        benchmark.main(["--quick", "--write"])


@pytest.mark.slow
def test_the_benchmark_runs() -> None:
    rows = benchmark.main(["--quick", "--seeds", "1"])
    made = {(each["network"], each["recipe"], each["way"]) for each in rows if each["recipe"]}
    for network in benchmark.TUNING:
        for recipe, blocks in benchmark.ways(network, 10).items():
            assert {way for n, r, way in made if (n, r) == (network, recipe)} >= set(blocks)
    assert all(row["passes"] > 0 for row in rows if "logits," in row["way"])
