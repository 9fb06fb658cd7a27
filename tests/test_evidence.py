"""Chance, flips, confidence and norms of weights: against other libraries, loops, and counts by hand."""

import copy
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import binomtest
from torch import Tensor, nn

from decant.checkpoints.checkpoint import Checkpoint
from decant.evidence.behaviour import NONE, divergences, flips, predicted, reliability
from decant.evidence.lipschitz import STEEPEST
from decant.evidence.resampling import ratio_interval
from decant.evidence.significance import holm, mcnemar, smallest_difference
from decant.evidence.weights import convolution_bound, norms, spectral_norm
from decant.inputs import TensorInput
from decant.lowering.folding import folded
from decant.networks.architectures import Mlp, Resnet, build
from decant.networks.execution import predict
from tasks.evaluate.accuracy import calibration_error


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# --- chance


@pytest.mark.parametrize(
    ("first", "second"),
    [(0, 0), (0, 5), (0, 6), (6, 0), (3, 11), (20, 20), (87, 139), (4000, 4321)],
)
def test_mcnemar_is_the_exact_test_of_a_fair_coin(first: int, second: int) -> None:
    expected = binomtest(first, first + second, 0.5).pvalue if first + second else 1.0
    assert mcnemar(first, second) == pytest.approx(expected, rel=1e-9)
    assert mcnemar(second, first) == mcnemar(first, second)


def test_fewer_than_six_pairs_show_nothing() -> None:
    assert mcnemar(0, 5) > 0.05 >= mcnemar(0, 6)


def test_holm_by_hand() -> None:
    # 4 x 0.01, then at least that; 2 x 0.03 and 1 x 0.04 are less than what came before
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.9, 0.5]) == [1.0, 1.0]
    assert holm([]) == []


def test_holm_is_wrong_in_one_of_twenty_families_at_most() -> None:
    generator = np.random.Generator(np.random.PCG64(0))
    families = generator.uniform(size=(2000, 10))
    wrong = np.mean([min(holm(family.tolist())) <= 0.05 for family in families])
    assert 0.035 < wrong < 0.065


@pytest.mark.parametrize(("count", "pairs"), [(10_000, 226), (1000, 80), (10_000, 2000)])
def test_the_smallest_difference_is_shown_in_four_of_five_test_sets(count: int, pairs: int) -> None:
    generator = np.random.Generator(np.random.PCG64(0))
    difference = smallest_difference(count, pairs) * count
    shares = [(pairs + difference) / 2 / count, (pairs - difference) / 2 / count]
    drawn = generator.multinomial(count, [*shares, 1 - sum(shares)], 400)
    shown = np.mean([mcnemar(int(first), int(second)) <= 0.05 for first, second, _ in drawn])
    assert 0.7 < shown < 0.86


def test_a_small_test_set_can_show_no_difference_at_all() -> None:
    assert smallest_difference(1, 0) == 1.0
    assert smallest_difference(100, 0) == 0.06
    assert smallest_difference(10_000, 100) == pytest.approx(2.8016 * 10 / 10_000, rel=1e-4)


def test_the_interval_of_a_ratio_holds_it_and_narrows() -> None:
    theirs = torch.rand(400, generator=torch.Generator().manual_seed(1)).numpy()
    assert ratio_interval([(theirs, theirs)]) == (1.0, 1.0)
    ours = 1.2 * theirs + 0.05 * drawn(400, seed=2).numpy()
    low, high = ratio_interval([(ours, theirs)])
    assert low < ours.sum() / theirs.sum() < high
    wide = ratio_interval([(ours[:40], theirs[:40])])
    assert wide[1] - wide[0] > 2 * (high - low)
    zero = np.zeros(5)
    assert ratio_interval([(zero, zero), (2 * theirs, theirs)]) == pytest.approx((2.0, 2.0))
    assert ratio_interval([(np.ones(1), zero[:1])]) == (0.0, 0.0)


# --- behaviour


def test_flips_are_counted_by_pair_the_most_frequent_first() -> None:
    teacher, model = torch.tensor([0, 0, 1, 2, 2, 2, 1]), torch.tensor([0, 1, 0, 1, 1, 2, 0])
    found = [(each.teacher, each.model, each.count) for each in flips(model, teacher)]
    assert sorted(found) == [(0, 1, 1), (1, 0, 2), (2, 1, 2)]
    assert [count for *_, count in found] == [2, 2, 1]
    assert flips(model, model) == []


def test_divergence_of_each_example_in_a_loop() -> None:
    found, expected = drawn(5, 4), 3 * drawn(5, 4, seed=1)
    for ours, one, other in zip(divergences(found, expected), found.double(), expected.double(), strict=True):
        p, q = (np.exp(each.numpy()) / np.exp(each.numpy()).sum() for each in (other, one))
        assert float(ours) == pytest.approx(float((p * np.log(p / q)).sum()), rel=1e-9)
    assert bool((divergences(expected, expected) == 0).all())
    with pytest.raises(ValueError, match="differ in shape"):
        divergences(found, expected[:, :3])


def test_logits_that_are_no_numbers_are_no_class() -> None:
    logits = torch.tensor([[0.0, 1.0], [float("nan"), 1.0], [float("inf"), 0.0]])
    assert predicted(logits).tolist() == [1, NONE, NONE]


def test_the_reliability_curve_adds_up_to_the_calibration_error() -> None:
    logits = 3 * drawn(300, 4)
    labels = torch.randint(0, 4, (300,), generator=torch.Generator().manual_seed(2))
    curve = reliability(logits, labels)
    assert sum(each.count for each in curve) == 300
    gaps = sum(abs(each.accuracy - each.confidence) * each.count for each in curve) / 300
    assert gaps == pytest.approx(calibration_error(logits, labels))
    assert [each.confidence for each in curve] == sorted(each.confidence for each in curve)
    right = sum(each.accuracy * each.count for each in curve)
    assert right == pytest.approx(int((logits.argmax(1) == labels).sum()))


# --- weights


@pytest.mark.parametrize("shape", [(3, 8), (8, 3), (5, 5), (1, 1)])
def test_the_spectral_norm_is_the_largest_singular_value(shape: tuple[int, int]) -> None:
    matrix = drawn(*shape).double()
    assert spectral_norm(matrix) == pytest.approx(torch.linalg.svdvals(matrix)[0].item())


def test_the_norm_of_a_large_matrix_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = drawn(20, 30).double()
    exact = spectral_norm(matrix)
    monkeypatch.setattr("decant.evidence.weights.EXACT", 4)
    assert exact <= spectral_norm(matrix) < 3 * exact


LAYERS: dict[str, Any] = {
    "3 x 3": nn.Conv2d(2, 4, 3, padding=1),
    "stride 2": nn.Conv2d(3, 2, 3, stride=2, padding=1),
    "patches": nn.Conv2d(2, 6, 2, stride=2),
    "no padding": nn.Conv2d(1, 3, (1, 3)),
    "dilated": nn.Conv2d(2, 2, 3, dilation=2, padding=2),
    "groups": nn.Conv2d(4, 4, 3, groups=2, padding=1),
    "transposed": nn.ConvTranspose2d(3, 2, 3, stride=2),
    "1 dimension": nn.Conv1d(2, 3, 5, padding=2),
}


@pytest.mark.parametrize("name", LAYERS)
def test_the_bound_of_a_convolution_is_above_its_norm_as_a_matrix(name: str) -> None:
    layer = copy.deepcopy(LAYERS[name]).double().requires_grad_(False)
    layer.weight.data, layer.bias = drawn(*layer.weight.shape).double(), None
    shape = (layer.in_channels, *[6] * (layer.weight.dim() - 2))
    unit = torch.eye(math.prod(shape), dtype=torch.float64).reshape(-1, *shape)
    exact = torch.linalg.svdvals(layer(unit).flatten(1))[0].item()
    bound = max(convolution_bound(part, layer.stride) for part in layer.weight.chunk(layer.groups))
    assert exact <= bound * (1 + 1e-12)
    assert bound < 2.5 * exact
    if name == "patches":
        assert bound == pytest.approx(exact)


def steepest(model: Checkpoint, count: int = 5) -> float:
    """Return the largest spectral norm of the Jacobian at some random pictures."""
    assert isinstance(model.shape, tuple)
    found = 0.0
    for seed in range(count):
        point = torch.rand(1, *model.shape, generator=torch.Generator().manual_seed(seed))
        jacobian = torch.autograd.functional.jacobian(lambda x: model.module(x)[0], point)
        found = max(found, torch.linalg.svdvals(jacobian.reshape(len(model.classes), -1))[0].item())
    return found


def test_the_bound_of_a_network_is_above_its_slopes() -> None:
    recipe = Resnet(widths=(4, 8), blocks=(1, 1), pool=2)
    module = build(recipe, (1, 8, 8), 3, seed=0).eval()
    predict(module.train(), torch.randint(0, 256, (64, 1, 8, 8)).to(torch.uint8))  # batch norms move
    model = Checkpoint(recipe, (1, 8, 8), ("a", "b", "c"), module.eval())
    found = norms(model)
    assert found.why == ""
    assert found.lipschitz is not None
    assert steepest(model) < found.lipschitz


def test_the_norms_of_a_perceptron_by_hand() -> None:
    recipe = Mlp(hidden=(4,))
    model = Checkpoint(recipe, (1, 2, 2), ("a", "b"), build(recipe, (1, 2, 2), 2, seed=0).eval())
    found = norms(model)
    weights = [p.detach().double() for p in model.module.parameters() if p.dim() == 2]
    spectral = [torch.linalg.svdvals(w)[0].item() for w in weights]
    assert [each.spectral for each in found.layers.values()] == pytest.approx(spectral)
    assert found.lipschitz == pytest.approx(math.prod(spectral))
    stretched = copy.deepcopy(model.module)
    stretched.get_submodule("normalize").deviation.fill_(0.25)  # type: ignore[operator]
    assert norms(replace(model, module=stretched)).lipschitz == pytest.approx(4 * math.prod(spectral))
    assert found.l1 == pytest.approx(sum(w.abs().sum().item() for w in weights))
    assert found.l2 == pytest.approx(math.sqrt(sum(w.square().sum().item() for w in weights)))
    assert steepest(model) <= found.lipschitz  # type: ignore[operator]


class Added(nn.Module):
    """A network with a way around two layers, and one that leaves it beside the last of them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        first = torch.relu(self.first(x))
        return first + self.second(first)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        keys = self.layer(x)[:, :, None]
        return (keys @ keys.transpose(1, 2)).flatten(1)


class Gate(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(x) * x


class Skipping(Added):
    def forward(self, x: Tensor) -> Tensor:
        return self.second(x + self.first(x))


def foreign(module: nn.Module) -> Checkpoint:
    return Checkpoint(None, {"x": TensorInput.model_validate({"shape": (3,)})}, (), module.eval())


def test_all_ways_through_a_network_are_counted() -> None:
    model = foreign(Added())
    first, second = (each.spectral for each in norms(model).layers.values())
    assert norms(model).lipschitz == pytest.approx(first * second + first)


@pytest.mark.parametrize(
    ("module", "why"),
    [
        (Attention(), "it multiplies what it computes"),
        (Skipping(), "it adds its own inputs to what it computes"),
        (
            nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3), nn.Linear(3, 2)),
            "1 (LayerNorm) may stretch its inputs",
        ),
        (nn.Sequential(nn.Linear(3, 3), Gate()), "1 (Gate) may stretch its inputs"),
    ],
)
def test_where_no_bound_is_known_a_sentence_says_so(module: nn.Module, why: str) -> None:
    found = norms(foreign(module))
    assert found.lipschitz is None
    assert why in found.why
    assert found.l2 > 0


def test_steep_activations_and_overlapping_pools_count() -> None:
    layer = nn.Linear(3, 2)
    bare = norms(foreign(nn.Sequential(layer))).lipschitz
    steep = norms(foreign(nn.Sequential(layer, nn.GELU(), nn.MaxPool1d(3, 2, padding=1)))).lipschitz
    assert steep == pytest.approx(bare * 1.13 * math.sqrt(2))  # type: ignore[operator]
    places = torch.linspace(-10, 10, 4001, dtype=torch.float64, requires_grad=True)
    for kind, slope in STEEPEST.items():
        (steepest_one,) = torch.autograd.grad(kind()(places).sum(), places)
        assert slope - 0.011 < steepest_one.abs().max() <= slope


def test_folding_a_batch_norm_changes_no_norm() -> None:
    recipe = Resnet(widths=(4, 8), blocks=(1, 1), pool=2)
    model = Checkpoint(recipe, (1, 8, 8), ("a", "b"), build(recipe, (1, 8, 8), 2, seed=0).eval())

    assert norms(folded(model)).lipschitz == pytest.approx(norms(model).lipschitz)
