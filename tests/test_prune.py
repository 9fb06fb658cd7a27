"""Criteria, structures, allocations, budgets: each class passes its family's exam; counts are exact."""

import math
import re
from collections.abc import Mapping
from typing import Any, get_args

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from decant.errors import DecantError
from decant.examples import Examples
from decant.networks.architectures import Mlp, Resnet, build
from decant.networks.structure import compressible, followers
from decant.prune.allocations import Adaptive, Allocation, Erk, Global, Lamp, PerLayer, cheapest, lamp_scores
from decant.prune.budgets import PruningBudget, bracket
from decant.prune.criteria import Criterion, Fisher, Magnitude, Random, Scoring, Snip, Taylor, Wanda
from decant.prune.masks import Candidates, ranked
from decant.prune.params import PruneParams
from decant.prune.schedules import Gradual, Iterative, Schedule
from decant.prune.structures import Blocks, Masked, NOfM, Structure, Weights, lowest, split
from decant.training.recipe import Training
from tasks.pipeline.params import validate
from tests.imports import ROOT

CRITERIA = get_args(get_args(Criterion)[0])
ALLOCATIONS = get_args(get_args(Allocation)[0])
SCORING = [kind for kind in CRITERIA if not kind.accumulates and kind.structures != ("channels",)]


def some_examples(count: int = 20, side: int = 4) -> Examples:
    images = torch.randint(0, 256, (count, 1, side, side), generator=torch.Generator().manual_seed(0))
    return Examples(images.to(torch.uint8), torch.arange(count) % 3, ("a", "b", "c"))


@pytest.fixture
def module() -> nn.Module:
    return build(Mlp(hidden=(7, 5)), (1, 4, 4), 3, seed=1).eval()


@pytest.fixture
def network() -> nn.Module:
    """A small residual network whose batch norms have seen something."""
    module = build(Resnet(widths=(4, 8), blocks=(1, 1)), (1, 8, 8), 3, seed=0)
    for _ in range(3):
        module(some_examples(side=8).images / 255)
    return module.eval()


@pytest.fixture
def examples() -> Examples:
    return some_examples()


# --- criteria


@pytest.mark.parametrize("kind", SCORING)
@pytest.mark.parametrize("name", ["module", "network"])
def test_exam(kind: type[Scoring], name: str, request: pytest.FixtureRequest) -> None:
    module, examples = request.getfixturevalue(name), some_examples(side=4 if name == "module" else 8)
    criterion = validate({"kind": kind.model_fields["kind"].default}, Criterion)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    scores = criterion.scores(module, examples, seed=4)
    weights = compressible(module)
    assert {name: score.shape for name, score in scores.items()} == {n: w.shape for n, w in weights.items()}
    assert all(torch.isfinite(score).all() and not score.requires_grad for score in scores.values())
    assert all((score >= 0).all() for score in scores.values())
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert all(parameter.grad is None for parameter in module.parameters())
    assert not module.training
    again = criterion.scores(module, examples, seed=4)
    assert all(torch.equal(score, again[name]) for name, score in scores.items())
    assert validate(criterion.model_dump(), Criterion) == criterion


@pytest.mark.parametrize("kind", [kind for kind in SCORING if "images" in kind.model_fields])
def test_criteria_that_need_images_say_so(kind: type[Scoring], module: nn.Module) -> None:
    none = Examples(torch.zeros(0, 1, 4, 4, dtype=torch.uint8), torch.zeros(0, dtype=torch.long), ("a",))
    name = kind.model_fields["kind"].default
    with pytest.raises(DecantError, match=f"criterion {name} scores weights by training images and got none"):
        validate({"kind": name}, Criterion).scores(module, none, 0)


def test_magnitude_by_hand(module: nn.Module, examples: Examples) -> None:
    with torch.no_grad():
        module.get_parameter("layers.4.weight").copy_(torch.tensor([[-2.0, 0.0, 1.0, -0.5, 3.0]] * 3))
    scores = Magnitude().scores(module, examples, seed=0)
    assert scores["layers.4.weight"][0].tolist() == [2.0, 0.0, 1.0, 0.5, 3.0]
    squares = Magnitude(norm=2).scores(module, examples, seed=0)
    assert squares["layers.4.weight"][0].tolist() == [4.0, 0.0, 1.0, 0.25, 9.0]


def test_folded_magnitudes_are_those_of_the_network_without_batch_norms(network: nn.Module) -> None:
    scores = Magnitude(folded=True).scores(network, some_examples(side=8), seed=0)
    inputs = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    convolution, norm = network.get_submodule("stem.0"), network.get_submodule("stem.1")
    assert isinstance(convolution, nn.Conv2d)
    assert isinstance(norm, nn.BatchNorm2d)
    folded = torch.sign(convolution.weight * norm.weight.reshape(-1, 1, 1, 1)) * scores["stem.0.weight"]
    with torch.no_grad():
        expected = norm(convolution(inputs))
        found = F.conv2d(inputs, folded, stride=2, padding=1)
        assert torch.allclose((expected - found).var((0, 2, 3)), torch.zeros(4), atol=1e-8)
    assert torch.equal(scores["head.weight"], network.get_parameter("head.weight").abs())
    assert {"stem.0.weight", "stages.1.shortcut.0.weight"} < followers(network).keys()


def test_random_is_another_draw_with_another_seed(module: nn.Module, examples: Examples) -> None:
    first, second = (Random().scores(module, examples, seed)["layers.0.weight"] for seed in (0, 1))
    assert not torch.equal(first, second)


def test_taylor_predicts_what_a_small_weight_costs(module: nn.Module, examples: Examples) -> None:
    def loss() -> float:
        with torch.no_grad():
            return F.cross_entropy(module.double()(examples.images.double() / 255), examples.labels).item()

    scores = Taylor().scores(module, examples, seed=0)["layers.2.weight"]
    before, weight = loss(), module.get_parameter("layers.2.weight")
    for place in ((0, 0), (2, 3), (4, 6)):
        was = weight[place].item()
        with torch.no_grad():
            weight[place] = was * (1 - 1e-4)
        assert abs(loss() - before) / 1e-4 == pytest.approx(scores[place].item(), rel=0.02, abs=1e-7)
        with torch.no_grad():
            weight[place] = was


def test_fisher_agrees_with_a_loop_over_images(network: nn.Module) -> None:
    examples = some_examples(7, side=8)
    scores = Fisher(images=5).scores(network, examples, seed=0)
    network.double()
    weights = compressible(network)
    squares = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    for image, label in zip(examples.images[:5], examples.labels[:5], strict=True):
        loss = F.cross_entropy(network(image[None].double() / 255), label[None])
        for name, part in zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True):
            squares[name] += part**2
    for name, weight in weights.items():
        expected = weight.detach() ** 2 * squares[name] / 10
        assert torch.allclose(scores[name].double(), expected, rtol=1e-3, atol=1e-12)


def test_wanda_agrees_with_the_inputs_of_a_layer(module: nn.Module, examples: Examples) -> None:
    scores = Wanda().scores(module, examples, seed=0)["layers.2.weight"]
    hidden = torch.relu(module.get_submodule("layers.0")(examples.images.flatten(1) / 255)).detach()
    expected = module.get_parameter("layers.2.weight").abs() * hidden.double().square().sum(0).sqrt()
    assert torch.allclose(scores.double(), expected.double(), rtol=1e-4)


def test_snip_scores_what_it_is_given_as_taylor_does(module: nn.Module, examples: Examples) -> None:
    snip, taylor = Snip().scores(module, examples, 0), Taylor().scores(module, examples, 0)
    assert all(torch.equal(score, taylor[name]) for name, score in snip.items())
    assert Snip.fresh
    assert not Taylor.fresh


def test_nan_is_refused_by_name() -> None:
    with pytest.raises(DecantError, match=r"scores of a hold NaN.*lower learning rate"):
        ranked({"a": torch.tensor([1.0, math.nan])}, {})


# --- structures


def some_scores(seed: int, distinct: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randint(0, distinct, shape, generator=generator).double()
        for name, shape in {"a": (4, 8), "b": (4, 2, 3, 3), "c": (2, 6)}.items()
    }


def no_probe(_: Mapping[str, int]) -> float:
    raise AssertionError("this allocation measures nothing")


def cubic_probe(counts: Mapping[str, int]) -> float:
    return sum((1 + index) * (count / 10) ** 3 for index, count in enumerate(counts.values()))


def candidates(scores: Mapping[str, Tensor], structure: Masked, allocation: Allocation) -> Candidates:
    return Candidates(structure, allocation, scores, cubic_probe)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=40), st.floats(0, 1))
def test_the_lowest_are_exactly_as_many_and_of_equals_the_last(values: list[int], share: float) -> None:
    count = round(share * len(values))
    naive = sorted(range(len(values)), key=lambda i: (values[i], -i))[:count]
    chosen = lowest(torch.tensor(values).double(), count)
    assert sorted(naive) == chosen.nonzero().flatten().tolist()


@pytest.mark.parametrize("structure", [Weights(), Blocks(rows=2, columns=2), Blocks(rows=1, columns=6)])
@given(seed=st.integers(0, 99), share=st.floats(0, 1))
def test_masks_remove_whole_units_and_their_number_is_exact(
    structure: Masked, seed: int, share: float
) -> None:
    for score in some_scores(seed, 3).values():
        if structure.refuses(score.shape):
            continue
        units = len(structure.pool(score))
        mask = structure.mask(score, round(share * units))
        assert mask.shape == score.shape
        assert int((~mask).sum()) == round(share * units) * structure.size
        left = structure.pool(mask.double())
        assert set(left.tolist()) <= {0.0, float(structure.size)}


def test_blocks_by_hand() -> None:
    score = torch.tensor([[1.0, 2, 9, 9], [3, 0, 9, 9], [5, 5, 0, 0], [5, 5, 0, 1]])
    blocks = Blocks(rows=2, columns=2)
    assert blocks.pool(score).tolist() == [6, 36, 20, 1]
    assert blocks.mask(score, 1).int().tolist() == [[1, 1, 1, 1]] * 2 + [[1, 1, 0, 0]] * 2
    gone = torch.where(score > 8, -math.inf, score)
    assert blocks.pool(gone).tolist() == [6, -math.inf, 20, 1]


@given(st.integers(0, 99), st.sampled_from([(1, 2), (2, 4), (4, 8), (1, 4)]), st.integers(1, 3))
def test_n_of_m_keeps_n_of_every_m_inputs(seed: int, pattern: tuple[int, int], kernel: int) -> None:
    n, m = pattern
    generator = torch.Generator().manual_seed(seed)
    score = torch.randint(0, 4, (3, 2 * m, kernel, kernel), generator=generator).double()
    structure = NOfM(n=n, m=m)
    mask = structure.mask(score, structure.fixed(score.shape))
    for output in range(3):
        for place in range(kernel**2):
            row = score[output].flatten(1)[:, place].tolist()
            held = mask[output].flatten(1)[:, place].tolist()
            for start in range(0, 2 * m, m):
                gone = sorted(range(start, start + m), key=lambda i: (row[i], -i))[: m - n]
                assert [i for i in range(start, start + m) if not held[i]] == sorted(gone)


def test_layers_that_a_structure_does_not_fit_are_named_with_the_reason() -> None:
    shapes = {"stem": (8, 1, 3, 3), "next": (8, 8, 3, 3)}
    names, refused = split(NOfM(), shapes)
    assert names == ["next"]
    assert refused == {"stem": "1 input channels are no multiple of 4"}
    assert split(Blocks(rows=1, columns=4), shapes)[1] == {
        "stem": "8 x 9 weights are no whole number of 1 x 4 blocks"
    }
    assert split(Weights(), shapes) == (["stem", "next"], {})


# --- allocations


@pytest.mark.parametrize("kind", ALLOCATIONS)
@given(seed=st.integers(0, 99), distinct=st.sampled_from([1, 2, 5, 1000]), sparsity=st.floats(0, 0.9))
def test_counts_are_exact_with_any_number_of_ties(
    kind: type[PerLayer], seed: int, distinct: int, sparsity: float
) -> None:
    scores = some_scores(seed, distinct)
    task = candidates(scores, Weights(), validate({"kind": kind.model_fields["kind"].default}, Allocation))
    removed = task.removed(sparsity)
    counts = task.counts(removed)
    assert removed == round(sparsity * sum(score.numel() for score in scores.values()))
    assert sum(counts.values()) == removed
    assert all(0 <= count <= scores[name].numel() for name, count in counts.items())
    zeros = {name: int((~mask).sum()) for name, mask in task.masks(counts).items()}
    assert zeros == counts
    assert task.counts(removed) == counts


@pytest.mark.parametrize("allocation", [Global(), PerLayer()])
@given(seed=st.integers(0, 99), one=st.floats(0, 0.9), other=st.floats(0, 0.9))
def test_more_sparsity_never_brings_a_weight_back(
    allocation: Allocation, seed: int, one: float, other: float
) -> None:
    task = candidates(some_scores(seed, 5), Weights(), allocation)
    less, more = (task.masks(task.counts(task.removed(share))) for share in sorted((one, other)))
    assert not any((more[name] & ~less[name]).any() for name in less)


def test_global_by_hand_and_of_equals_the_last() -> None:
    scores = {"a": torch.tensor([[3.0, 1.0, 2.0, 1.0]]), "b": torch.tensor([[1.0, 9.0]])}
    task = candidates(scores, Weights(), Global())
    masks = task.masks(task.counts(2))
    assert masks["a"].tolist() == [[True, True, True, False]]
    assert masks["b"].tolist() == [[False, True]]


def test_layers_share_what_does_not_divide() -> None:
    scores = {"a": torch.zeros(5), "b": torch.zeros(5), "c": torch.zeros(5)}
    assert PerLayer().counts(scores, {}, 7, no_probe) == {"a": 3, "b": 2, "c": 2}


def test_erk_densities_are_those_of_the_paper() -> None:
    # 1 - (n + m) / (n m), times one factor, on LeNet-300-100's three layers at 90 %: the last stays dense.
    shapes = {"a": torch.Size([300, 784]), "b": torch.Size([100, 300]), "c": torch.Size([10, 100])}
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    removed = round(0.9 * sum(sizes.values()))
    counts = Erk().counts({n: torch.zeros(size) for n, size in sizes.items()}, shapes, removed, no_probe)
    assert sum(counts.values()) == removed
    raw = {name: sum(shape) / math.prod(shape) for name, shape in shapes.items()}
    assert counts["c"] == 0
    factor = (sum(sizes.values()) - removed - 1000) / (raw["a"] * sizes["a"] + raw["b"] * sizes["b"])
    for name in ("a", "b"):
        assert counts[name] == pytest.approx(sizes[name] * (1 - factor * raw[name]), abs=1)


@given(st.lists(st.integers(0, 6), min_size=1, max_size=20))
def test_lamp_agrees_with_a_loop(values: list[int]) -> None:
    adapted = lamp_scores(torch.tensor(values).double()).tolist()
    order = sorted(range(len(values)), key=lambda i: (values[i], -i))
    for place, index in enumerate(order):
        above = sum(values[i] ** 2 for i in order[place:])
        assert adapted[index] == pytest.approx(values[index] ** 2 / above if above else 0.0)


def test_lamp_empties_no_layer_before_all_are_down_to_one() -> None:
    scores = {"tiny": torch.rand(50).double() * 1e-6 + 1e-9, "large": torch.rand(50).double() + 5}
    assert Global().counts(scores, {}, 50, no_probe)["tiny"] == 50
    assert Lamp().counts(scores, {}, 98, no_probe) == {"tiny": 49, "large": 49}


def test_the_cheapest_split_is_the_best_of_all_splits_on_convex_curves() -> None:
    curves = {
        "a": [(x, 0.1 * x**2) for x in range(7)],
        "b": [(x, 0.3 * x**2) for x in range(6)],
        "c": [(x, 0.05 * x**3) for x in range(5)],
    }
    cost = {name: dict(curve) for name, curve in curves.items()}
    for removed in range(7 + 6 + 5 - 3 + 1):
        best = min(
            cost["a"][a] + cost["b"][b] + cost["c"][removed - a - b]
            for a in cost["a"]
            for b in cost["b"]
            if removed - a - b in cost["c"]
        )
        found = cheapest(curves, removed)
        assert sum(found.values()) == removed
        assert sum(cost[name][count] for name, count in found.items()) == pytest.approx(best)


def test_adaptive_takes_from_the_layer_that_minds_least() -> None:
    scores = {"a": torch.rand(100).double(), "b": torch.rand(100).double()}

    def probe(counts: Mapping[str, int]) -> float:
        return sum((50 if name == "b" else 1) * (count / 100) ** 4 for name, count in counts.items())

    counts = Adaptive(points=20).counts(scores, {}, 100, probe)
    assert sum(counts.values()) == 100
    # Equal slopes: a^3 = 50 b^3 with a + b = 100.
    assert counts["a"] == pytest.approx(100 * 50 ** (1 / 3) / (1 + 50 ** (1 / 3)), abs=6)


# --- what was removed before, and what cannot be


def test_an_earlier_mask_is_kept_and_counts() -> None:
    scores = ranked(
        {"a": torch.tensor([[9.0, 1.0, 2.0, 3.0]])}, {"a": torch.tensor([[False, True, True, True]])}
    )
    task = candidates(scores, Weights(), Global())
    assert task.gone == 1
    assert task.masks(task.counts(task.removed(0.5)))["a"].tolist() == [[False, False, True, True]]


def test_a_layer_that_would_be_emptied_is_named() -> None:
    task = candidates({"a.weight": torch.ones(4), "b.weight": 2 * torch.ones(4)}, Weights(), Global())
    task.check(task.counts(3))
    with pytest.raises(DecantError, match=r"Nothing would be left of a, .*allocation layer, erk or lamp"):
        task.check(task.counts(4))


def test_a_sparsity_that_leaves_too_little_names_the_nearest() -> None:
    task = candidates({"a": torch.ones(4), "b": torch.ones(6)}, Weights(), Global())
    assert task.removed(0.8) == 8
    with pytest.raises(DecantError, match=r"the nearest possible is 0\.8"):
        task.removed(0.9)


# --- budgets and schedules


@given(st.integers(0, 50), st.integers(1, 60), st.integers(0, 60), st.integers(1, 7))
def test_a_bracket_holds_the_change(low: int, width: int, change: int, near: int) -> None:
    high = low + width
    turn = low + 1 + change % width
    below, met = bracket(lambda n: n >= turn, low, high, near)
    assert below < turn <= met
    assert met - below <= near


@pytest.mark.parametrize(
    ("budget", "words"),
    [
        ({}, "give exactly one of sparsity, .*got none"),
        ({"sparsity": 0.5, "bytes": 0.5}, "give exactly one of .*got sparsity and bytes"),
        ({"sparsity": 0}, r"sparsity: must be greater than 0"),
        ({"sparsity": 1}, r"sparsity: must be less than 1"),
        ({"bytes": 1000.5}, r"bytes is a share below 1 or a whole number, got 1000\.5"),
        ({"latency": 1.5}, r"latency: must be less than 1"),
        ({"macs": -1}, r"macs: must be greater than 0"),
        ({"sparsty": 0.5}, "unknown key 'sparsty'; did you mean 'sparsity'"),
    ],
)
def test_impossible_budgets_are_refused(budget: dict[str, float], words: str) -> None:
    with pytest.raises(DecantError, match=words):
        validate(budget, PruningBudget, "models.x.budget")


def test_a_share_is_of_the_teacher_and_a_count_is_itself() -> None:
    assert PruningBudget(bytes=0.25).limit(1000) == 250
    assert PruningBudget(bytes=300).limit(1000) == 300
    assert PruningBudget(latency=0.5).limit(1000) == 0.5
    assert PruningBudget(macs=1_000_000).measure == "macs"


TRAINING = {"epochs": 1}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"budget": None}, "budget is missing, such as {sparsity: 0.8}"),
        ({"structure": {"kind": "n-of-m"}}, "a budget is not for n-of-m"),
        ({"budget": {"macs": 0.5}}, "budget macs needs structure channels"),
        ({"budget": {"latency": 0.5}}, "budget latency needs structure channels"),
        ({"criterion": {"kind": "movement"}}, "take schedule gradual or surgery"),
        (
            {"structure": {"kind": "channels"}, "schedule": {"kind": "gradual", "training": TRAINING}},
            "channels are removed: take iterative",
        ),
        (
            {"structure": {"kind": "blocks"}, "schedule": {"kind": "rigl", "training": TRAINING}},
            "rigl moves single weights, got structure blocks",
        ),
        (
            {"criterion": {"kind": "obs"}, "schedule": {"kind": "gradual", "training": TRAINING}},
            "obs repairs what training would",
        ),
        (
            {"budget": {"bytes": 0.1}, "schedule": {"kind": "gradual", "training": TRAINING}},
            "bytes is known only when masks stand still",
        ),
        (
            {"budget": {"drift": 0.1}, "schedule": {"kind": "iterative", "training": TRAINING}},
            "drift compares with the unpruned model",
        ),
        (
            {"schedule": {"kind": "gradual", "training": TRAINING, "begin": 0.7}},
            r"begin 0\.7 is not below end 0\.6",
        ),
        ({"structure": {"kind": "n-of-m", "n": 4, "m": 4}}, "n must be below m, got 4 of 4"),
    ],
)
def test_choices_that_do_not_go_together_are_refused(changes: dict[str, Any], words: str) -> None:
    block = {
        "op": "prune",
        "from": "teacher",
        "criterion": {"kind": "magnitude"},
        "budget": {"sparsity": 0.5},
    }
    with pytest.raises(DecantError, match=words):
        validate(block | changes, PruneParams, "models.x")


def test_the_cubic_by_hand() -> None:
    schedule = Gradual.model_validate({"training": TRAINING, "begin": 0.1, "end": 0.5, "every": 10})
    assert [step for step in range(100) if schedule.due(step, 100)] == [10, 20, 30, 40, 50]
    assert [schedule.ramp(step, 100) for step in (0, 10, 30, 50, 90)] == [0, 0, 1 - 0.5**3, 1, 1]


@given(st.integers(1, 400), st.floats(0, 0.9), st.floats(0.05, 1), st.integers(1, 80))
def test_every_gradual_schedule_comes_to_its_end(steps: int, begin: float, more: float, every: int) -> None:
    content = {"training": TRAINING, "begin": begin, "end": min(1.0, begin + more), "every": every}
    schedule = Gradual.model_validate(content)
    shares = [schedule.ramp(step, steps) for step in range(steps) if schedule.due(step, steps)]
    assert shares[-1] == 1
    assert shares == sorted(shares)


def test_rounds_leave_the_same_share_each() -> None:
    schedule = Iterative.model_validate({"training": TRAINING, "rounds": 3})
    assert [schedule.part(number, 1.0, 0.125) for number in (1, 2, 3)] == pytest.approx([0.5, 0.25, 0.125])


# --- the cards


def cards() -> dict[str, list[dict[str, Any]]]:
    """Return, by key of the block, what the cards of docs/pruning.md show for it."""
    text = (ROOT / "docs" / "pruning.md").read_text(encoding="utf-8")
    shown: dict[str, list[dict[str, Any]]] = {}
    for paragraph in re.findall(r"(?m)(?:^    .*\n)+", text):
        for line in paragraph.splitlines():
            for key, value in yaml.safe_load(line.strip()).items():
                shown.setdefault(key, []).append(value)
    return shown


def test_the_cards_show_every_choice_there_is_and_nothing_else() -> None:
    shown = cards()
    for key, union in (("criterion", Criterion), ("allocation", Allocation), ("structure", Structure)):
        kinds = [validate(value, union).kind for value in shown[key]]
        assert set(kinds) == {kind.model_fields["kind"].default for kind in get_args(get_args(union)[0])}, key
    schedules = {validate(value, Schedule).kind for value in shown["schedule"]}
    assert schedules == {kind.model_fields["kind"].default for kind in get_args(get_args(Schedule)[0])}
    assert {validate(value, PruningBudget).measure for value in shown["budget"]} == set(
        PruningBudget.model_fields
    )
    for value in shown["training"]:
        validate(value, Training)
