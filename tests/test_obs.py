"""Optimal Brain Surgeon and the moments it reads: against explicit inverses, raw least squares and loops."""

import copy
import math
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from decant.checkpoints.constraints import Constraints
from decant.errors import DecantError
from decant.examples import arguments, pixels
from decant.networks.architectures import Mlp, Resnet, build
from decant.networks.layer_inputs import patches, received
from decant.networks.structure import compressible
from decant.prune.structures import Blocks, NOfM, Weights, lowest
from decant.reconstruction import least_squares, obs
from decant.reconstruction.hessians import moments, norms
from decant.reconstruction.obs import channel_order, prune, reconstruct, refit, saliencies, saliency
from tests.drawn import drawn


def inputs_of(seed: int, rows: int, width: int) -> Tensor:
    """Inputs that lean on each other, as behind a layer."""
    return drawn(seed, rows, width) @ drawn(seed + 1, width, width) / math.sqrt(width) + 0.3


def hessian_of(inputs: Tensor) -> Tensor:
    return inputs.double().mT @ inputs.double() / len(inputs)


def error(inputs: Tensor, weight: Tensor, other: Tensor) -> float:
    """The squared error of the outputs, summed over rows."""
    return (inputs.double() @ (weight - other).double().mT).square().mean(0).sum().item()


def whole_layer(scores: Tensor, zeros: int) -> Tensor:
    return lowest(scores.flatten(), zeros).logical_not().reshape(scores.shape)


def some_images(count: int = 60, side: int = 8, channels: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    return torch.randint(0, 256, (count, channels, side, side), generator=generator).to(torch.uint8)


# --- moments


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 6, 3, bias=False),
        nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=False),
        nn.Conv2d(4, 6, (3, 2), stride=(1, 2), padding=(2, 1), dilation=2, bias=False),
        nn.Conv2d(4, 8, 3, padding="same", groups=2, bias=False),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect", groups=4, bias=False),
        nn.Conv1d(4, 6, 3, padding=1, groups=2, bias=False),
        nn.Conv3d(2, 3, 2, stride=2, bias=False),
        nn.Linear(5, 3, bias=False),
    ],
    ids=repr,
)
def test_patches_times_weights_are_the_outputs(layer: nn.Module) -> None:
    weight = layer.weight
    assert isinstance(weight, Tensor)
    sides = (3, 5) if isinstance(layer, nn.Linear) else (3, layer.in_channels, *[7] * (weight.dim() - 2))
    inputs = drawn(0, *sides)
    found = patches(layer, inputs)
    rows = weight.flatten(1).unflatten(0, (len(found), -1))
    outputs = torch.einsum("gpd,god->pgo", found, rows).flatten(1)
    expected = layer(inputs).movedim(1, -1) if weight.dim() > 2 else layer(inputs)
    assert torch.allclose(outputs, expected.reshape(outputs.shape), atol=1e-5)


@pytest.mark.parametrize(
    ("stride", "padding", "dilation", "groups"), [(1, 0, 1, 1), (2, 1, 1, 2), (1, 2, 2, 1), (3, 1, 2, 4)]
)
def test_moments_of_a_convolution_are_those_of_explicit_patches(
    stride: int, padding: int, dilation: int, groups: int
) -> None:
    convolution = nn.Conv2d(4, 4, 3, stride, padding, dilation, groups, bias=False)
    module = nn.Sequential(nn.Conv2d(1, 4, 1), convolution).eval()
    images = some_images(5)
    found = moments(module, ["1.weight"], images)["1.weight"]
    with torch.no_grad():
        hidden = F.pad(module[0](pixels(images)), [padding] * 4).double()
    side = (hidden.shape[-1] - dilation * 2 - 1) // stride + 1
    reach = torch.arange(3) * dilation
    expected = torch.zeros(groups, 4 // groups * 9, 4 // groups * 9, dtype=torch.double)
    for picture in hidden:
        for row in range(side):
            for column in range(side):
                window = picture[:, row * stride + reach[:, None], column * stride + reach]
                flat = window.reshape(groups, -1)
                expected += flat[:, :, None] * flat[:, None, :]
    assert found.count == 5 * side**2
    assert found.cross is None
    assert torch.allclose(found.hessian, expected / found.count, rtol=1e-5, atol=1e-6)
    sizes = norms(module, images)["1.weight"]
    diagonal = (found.hessian.diagonal(dim1=1, dim2=2) * found.count).sqrt().float()
    assert sizes.shape == convolution.weight.flatten(1).shape
    assert torch.allclose(sizes, diagonal.repeat_interleave(4 // groups, dim=0))


def test_cross_moments_pair_what_two_networks_send(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = (build(Mlp(hidden=(6,)), (1, 4, 4), 3, seed).eval() for seed in (1, 2))
    images = some_images(300, 4)
    found = moments(first, ["layers.2.weight"], images, second)["layers.2.weight"]
    with torch.no_grad():
        now, then = (m[2][:2](m[:2](pixels(images))).double() for m in (first, second))
    assert torch.allclose(found.hessian[0], now.mT @ now / 300, rtol=1e-5, atol=1e-7)
    assert found.cross is not None
    assert torch.allclose(found.cross[0], now.mT @ then / 300, rtol=1e-5, atol=1e-7)
    monkeypatch.setattr("decant.reconstruction.hessians.FLOATS", 100)
    parts = moments(first, ["layers.2.weight"], images, second)["layers.2.weight"]
    assert torch.allclose(parts.hessian, found.hessian, rtol=1e-6)


def test_layers_are_seen_in_the_order_in_which_they_run_and_the_pass_ends_there() -> None:
    module = build(Resnet(widths=(4, 8), blocks=(0, 1)), (1, 8, 8), 3, seed=0).eval()
    names = [n for n in reversed(list(compressible(module))) if n != "head.weight"]
    module.get_submodule("head").register_forward_pre_hook(lambda *_: pytest.fail("The pass did not end"))
    order = list(received(module, names, arguments(some_images(2))))
    assert order == ["stem.0.weight", *(f"stages.0.{n}.weight" for n in ("conv1", "conv2", "shortcut.0"))]


def test_moments_refuse_what_they_cannot_tell() -> None:
    module = build(Mlp(hidden=(6,)), (1, 4, 4), 3, 0).eval()
    with pytest.raises(ValueError, match="There are no images"):
        moments(module, ["layers.0.weight"], some_images(0, 4))
    idle = nn.Identity()
    idle.spare = nn.Linear(2, 2)
    with pytest.raises(DecantError, match=r"does not run 1\.spare"):
        moments(nn.Sequential(module, idle), ["0.layers.0.weight", "1.spare.weight"], some_images(2, 4))
    with torch.no_grad():
        module.get_parameter("layers.0.bias").fill_(math.nan)
    with pytest.raises(DecantError, match=r"inputs of layers\.2 hold NaN"):
        moments(module, ["layers.2.weight"], some_images(2, 4))
    with pytest.raises(DecantError, match="A ReLU has no patches"):
        patches(nn.ReLU(), torch.zeros(2, 2))


# --- one layer


def test_two_weights_by_hand() -> None:
    hessian = torch.tensor([[2.0, 1.0], [1.0, 1.0]])
    weight = torch.tensor([[1.0, 3.0]])
    # H⁻¹ = [[1, -1], [-1, 2]]: removing the first costs 1²/1, the second 3²/2; the other takes over H₁₂/H₂₂.
    assert torch.allclose(saliency(weight, hessian, damping=0), torch.tensor([[1.0, 4.5]]))
    keep = torch.tensor([[False, True]])
    assert torch.allclose(
        refit(weight, Constraints(mask=keep), hessian, damping=0), torch.tensor([[0.0, 4.0]])
    )
    mask, found = prune(weight, hessian, 1, whole_layer, damping=0)
    assert mask.tolist() == keep.tolist()
    assert torch.allclose(found, torch.tensor([[0.0, 4.0]]))
    order, errors = channel_order(weight, hessian, 1, damping=0)
    assert order.tolist() == [0, 1]
    assert torch.allclose(errors, torch.tensor([1.0, 2 * 1 + 2 * 3 + 9.0], dtype=torch.double))


def surgeon(weight: Tensor, hessian: Tensor, zeros: int) -> tuple[Tensor, Tensor]:
    """Hassibi and Stork, one at a time over all rows, with an inverse computed anew for each weight."""
    weight, mask = weight.double().clone(), torch.ones_like(weight, dtype=torch.bool)
    for _ in range(zeros):
        best = (math.inf, 0, 0)
        for row in range(len(weight)):
            kept = mask[row].nonzero()[:, 0]
            inverse = torch.linalg.inv(hessian[kept][:, kept])
            for place, column in enumerate(kept.tolist()):
                cost = (weight[row, column] ** 2 / inverse[place, place]).item()
                best = min(best, (cost, row, column))
        _, row, column = best
        kept = mask[row].nonzero()[:, 0]
        inverse = torch.linalg.inv(hessian[kept][:, kept])
        place = kept.tolist().index(column)
        weight[row, kept] -= weight[row, column] / inverse[place, place] * inverse[:, place]
        weight[row, column], mask[row, column] = 0.0, False
    return mask, weight


@pytest.mark.parametrize(("rows", "width", "zeros"), [(1, 6, 4), (4, 9, 10), (3, 12, 30), (2, 5, 10)])
def test_as_many_rounds_as_zeros_are_surgery_one_at_a_time(rows: int, width: int, zeros: int) -> None:
    hessian, weight = hessian_of(inputs_of(3, 200, width)), drawn(5, rows, width)
    mask, found = prune(weight, hessian, zeros, whole_layer, damping=0, rounds=zeros)
    expected, values = surgeon(weight, hessian, zeros)
    assert torch.equal(mask, expected)
    assert torch.allclose(found.double(), values, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("crossed", [False, True])
def test_refit_is_least_squares_on_the_raw_inputs(crossed: bool) -> None:
    now = inputs_of(0, 300, 12)
    then = now + 0.3 * drawn(8, 300, 12) if crossed else now
    weight, mask = drawn(1, 5, 12), drawn(2, 5, 12) > -0.2
    cross = now.double().mT @ then.double() / 300 if crossed else None
    found = refit(weight, Constraints(mask=mask), hessian_of(now), cross, damping=0)
    for row in range(5):
        kept = mask[row]
        expected = torch.linalg.lstsq(now[:, kept].double(), (then @ weight[row]).double()[:, None]).solution
        assert torch.allclose(found[row, kept].double(), expected[:, 0], rtol=1e-4, atol=1e-5)
        assert not found[row, ~kept].any()


def test_damping_draws_to_the_old_weight() -> None:
    hessian, weight = hessian_of(inputs_of(0, 50, 8)), drawn(1, 3, 8)
    mask = drawn(2, 3, 8) > -0.5
    far = refit(weight, Constraints(mask=mask), hessian, 3 * hessian, damping=1e6)
    assert torch.allclose(far, torch.where(mask, weight, 0.0), atol=1e-3)
    whole = refit(weight, Constraints(mask=torch.ones_like(mask)), hessian, damping=0.1)
    assert torch.allclose(whole, weight, atol=1e-6)


@given(st.integers(0, 10**6), st.integers(1, 4), st.integers(2, 10))
def test_no_other_survivors_are_better(seed: int, rows: int, width: int) -> None:
    inputs, weight = inputs_of(seed, 40, width), drawn(seed + 2, rows, width)
    mask = drawn(seed + 3, rows, width) > 0
    found = refit(weight, Constraints(mask=mask), hessian_of(inputs), damping=1e-9).double()
    least = error(inputs, weight, found)
    for size in (1e-3, 0.1, 3.0):
        other = found + size * drawn(seed + 4, rows, width) * mask
        assert error(inputs, weight, other) >= least * (1 - 1e-6) - 1e-9


@given(st.integers(0, 10**6), st.integers(3, 9), st.floats(0, 0.8))
def test_saliency_is_the_rise_of_the_error(seed: int, width: int, sparsity: float) -> None:
    inputs, dense = inputs_of(seed, 60, width), drawn(seed + 2, 2, width)
    hessian, mask = hessian_of(inputs), torch.rand(2, width) >= sparsity
    weight = refit(dense, Constraints(mask=mask), hessian, damping=1e-9)
    scores = saliency(weight, hessian, mask, damping=1e-9)
    before = error(inputs, dense, weight)
    assert torch.equal(torch.isinf(scores), ~mask)
    for row, column in mask.nonzero().tolist():
        fewer = mask.clone()
        fewer[row, column] = False
        rise = error(inputs, dense, refit(dense, Constraints(mask=fewer), hessian, damping=1e-9)) - before
        assert math.isclose(rise, scores[row, column].item(), rel_tol=2e-3, abs_tol=1e-5)


def test_both_closed_forms_say_the_same() -> None:
    problem = least_squares.normal_equations(drawn(1, 40, 30), hessian_of(inputs_of(0, 500, 30)), None, 0.01)
    mask = (
        torch.rand(40, 30, generator=torch.Generator().manual_seed(0)) > torch.linspace(0.05, 1, 40)[:, None]
    )
    rows = (~mask).any(1).nonzero()[:, 0]
    one, two = (form(problem, mask[rows], rows) for form in (obs._corrected, obs._factored))
    for first, second in zip(one, two, strict=True):
        assert torch.allclose(first[mask[rows]], second[mask[rows]], rtol=2e-3, atol=1e-4)


def test_dead_inputs_go_first_and_never_make_nan() -> None:
    inputs = inputs_of(0, 100, 6)
    inputs[:, [1, 4]] = 0.0
    weight = drawn(1, 3, 6)
    scores = saliency(weight, hessian_of(inputs), damping=0)
    assert torch.equal(scores == 0, torch.tensor([[False, True, False, False, True, False]] * 3))
    mask, found = prune(weight, hessian_of(inputs), 6, whole_layer, damping=0)
    assert not mask[:, [1, 4]].any()
    assert torch.equal(found, refit(weight, Constraints(mask=mask), hessian_of(inputs), damping=0))
    assert torch.allclose(found[mask], weight[mask], atol=1e-5)
    _, kept = prune(weight, hessian_of(inputs), 2, whole_layer, damping=0)
    assert torch.isfinite(kept).all()
    order, errors = channel_order(weight, hessian_of(inputs), 1, damping=0)
    assert set(order[:2].tolist()) == {1, 4}
    assert errors[1].item() == 0
    nothing = prune(weight, torch.zeros(6, 6), 9, whole_layer)
    assert torch.isfinite(nothing[1]).all()


def test_groups_are_layers_of_their_own() -> None:
    parts = [inputs_of(seed, 100, 6) for seed in (0, 10, 20)]
    hessian, weight = torch.stack([hessian_of(part) for part in parts]), drawn(1, 6, 6)
    per_row = lambda scores, zeros: whole_rows(scores, zeros // 6)  # noqa: E731
    mask, found = prune(weight, hessian, 18, per_row, rounds=3)
    for group in range(3):
        rows = slice(2 * group, 2 * group + 2)
        alone = prune(weight[rows], hessian[group], 6, lambda s, z: whole_rows(s, z // 2), rounds=3)
        assert torch.equal(mask[rows], alone[0])
        assert torch.allclose(found[rows], alone[1], atol=1e-6)
        scores = saliency(weight[rows], hessian[group])
        assert torch.allclose(saliency(weight, hessian)[rows], scores, rtol=1e-4)


def whole_rows(scores: Tensor, each: int) -> Tensor:
    return torch.stack([~lowest(row, each) for row in scores])


@pytest.mark.parametrize("limit", [obs.EXACT, 0], ids=["exact", "thin"])
@pytest.mark.parametrize(
    ("structure", "zeros"), [(Weights(), 701), (NOfM(n=1, m=4), 12 * 54), (Blocks(rows=2, columns=3), 600)]
)
def test_structures_get_what_they_ask_for(
    structure: Weights | NOfM | Blocks, zeros: int, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(obs, "EXACT", limit)
    hessian, weight = hessian_of(inputs_of(0, 300, 72)), drawn(1, 12, 72)

    def choose(scores: Tensor, count: int) -> Tensor:
        whole = scores.reshape(12, 8, 3, 3)
        return structure.mask(whole, count // structure.size).reshape(scores.shape)

    mask, found = prune(weight, hessian, zeros, choose)
    assert int((~mask).sum()) == zeros
    assert torch.equal(found != 0, mask)
    score = torch.where(mask, 1.0, 0.0).reshape(12, 8, 3, 3)
    assert torch.equal(structure.mask(score, zeros // structure.size).reshape(12, 72), mask)
    earlier, _ = prune(weight, hessian, zeros // 2 // structure.size * structure.size, choose)
    later, again = prune(weight, hessian, zeros, choose, held=Constraints(mask=earlier))
    assert not (later & ~earlier).any()
    assert int((~later).sum()) == zeros
    assert torch.equal(again != 0, later)


def test_rounds_of_large_layers_lose_little_against_exact_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, weight = inputs_of(0, 1000, 100), drawn(1, 40, 100)
    hessian, zeros = hessian_of(inputs), int(0.7 * 40 * 100)
    exact = error(inputs, weight, prune(weight, hessian, zeros, whole_layer)[1])
    monkeypatch.setattr(obs, "EXACT", 0)
    thinned = error(inputs, weight, prune(weight, hessian, zeros, whole_layer)[1])
    monkeypatch.setattr(least_squares, "FACTORED", 0)
    unsolved = error(inputs, weight, prune(weight, hessian, zeros, whole_layer)[1])
    kept = whole_layer(weight.abs(), zeros)
    magnitude = error(inputs, weight, torch.where(kept, weight, 0.0))
    assert thinned < 1.05 * exact
    assert unsolved < 1.01 * thinned
    assert thinned < 0.5 * magnitude
    assert thinned < 0.7 * error(inputs, weight, refit(weight, Constraints(mask=kept), hessian))


def test_rows_of_one_mask_share_their_factorization(monkeypatch: pytest.MonkeyPatch) -> None:
    hessian, weight = hessian_of(inputs_of(0, 300, 12)), drawn(1, 8, 12)
    columns = drawn(2, 2, 12) > 0
    mask = columns.repeat_interleave(4, dim=0)
    each = torch.cat(
        [refit(weight[row : row + 1], Constraints(mask=mask[row : row + 1]), hessian) for row in range(8)]
    )
    calls: list[torch.Size] = []
    real = least_squares.cholesky
    monkeypatch.setattr(least_squares, "cholesky", lambda m: calls.append(m.shape) or real(m))
    assert torch.allclose(refit(weight, Constraints(mask=mask), hessian), each, atol=1e-6)
    assert len(calls) == 2


def test_a_factor_that_fails_in_single_precision_is_found_in_double() -> None:
    matrix = torch.full((3, 3), 1.0, dtype=torch.double) + 1e-9 * torch.eye(3, dtype=torch.double)
    assert torch.linalg.cholesky_ex(matrix.float())[1].item() > 0
    with pytest.raises(ValueError, match="take more images, or more damping"):
        least_squares.cholesky(torch.full((2, 2), 1.0))
    close = torch.tensor([[1.0, 1 - 2**-24], [1 - 2**-24, 1.0]])
    assert torch.isfinite(least_squares.cholesky(close)).all()
    assert torch.isfinite(least_squares.cholesky(matrix)).all()


def test_arguments_are_checked() -> None:
    weight, hessian = drawn(0, 4, 6), hessian_of(inputs_of(0, 30, 6))
    with pytest.raises(ValueError, match=r"A Hessian \[6, 6\] does not fit a weight \[4, 5\]"):
        saliency(weight[:, :5], hessian)
    with pytest.raises(ValueError, match="Damping must not be negative, got -1"):
        refit(weight, Constraints(mask=weight > 0), hessian, damping=-1)
    with pytest.raises(ValueError, match="Rounds must be at least 1, got 0"):
        prune(weight, hessian, 3, whole_layer, rounds=0)
    with pytest.raises(ValueError, match="6 columns are no whole number of channels of 4"):
        channel_order(weight, hessian, 4)


# --- channels


def test_channels_go_in_the_order_of_an_exhaustive_greedy_search() -> None:
    inputs, weight = inputs_of(0, 200, 12), drawn(1, 5, 12)
    hessian = hessian_of(inputs)
    order, errors = channel_order(weight, hessian, 3, damping=0)
    gone: list[int] = []
    for channel, found in zip(order.tolist(), errors.tolist(), strict=True):
        costs = {}
        for candidate in sorted({*range(4)} - {*gone}):
            mask = torch.ones(5, 4, 3, dtype=torch.bool)
            mask[:, [*gone, candidate]] = False
            fitted = refit(weight, Constraints(mask=mask.reshape(5, 12)), hessian, damping=0)
            costs[candidate] = error(inputs, weight, fitted)
        assert channel == min(costs, key=costs.__getitem__)
        assert math.isclose(found, costs[channel], rel_tol=1e-4)
        gone.append(channel)
    assert math.isclose(errors[-1].item(), error(inputs, weight, torch.zeros_like(weight)), rel_tol=1e-5)


# --- a network


@pytest.fixture
def network() -> nn.Module:
    module = build(Resnet(widths=(4, 8), blocks=(1, 1)), (1, 8, 8), 3, seed=0)
    for _ in range(3):
        module(pixels(some_images()))
    return module.eval()


def halves(module: nn.Module, share: float = 0.5) -> dict[str, int]:
    return {name: int(share * weight.numel()) for name, weight in compressible(module).items()}


def run(module: nn.Module, zeros: dict[str, int], **more: object) -> dict[str, tuple[Tensor, Tensor]]:
    reconstructed = partial(reconstruct, module, zeros, dict.fromkeys(zeros, whole_layer), some_images(400))
    return reconstructed(**more)  # type: ignore[arg-type]


def drift(module: nn.Module, solved: dict[str, tuple[Tensor, Tensor]]) -> float:
    other = copy.deepcopy(module)
    with torch.no_grad():
        for name, (_, weight) in solved.items():
            other.get_parameter(name).copy_(weight)
        fresh = drawn(9, 200, 1, 8, 8).abs().clamp(max=1)
        return F.mse_loss(other(fresh), module(fresh)).item()


def test_reconstruction_is_exact_pure_and_the_same_twice(network: nn.Module) -> None:
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    first, second = run(network, halves(network)), run(network, halves(network))
    assert first.keys() == compressible(network).keys()
    for name, (mask, weight) in first.items():
        assert mask.shape == weight.shape == network.get_parameter(name).shape
        assert int((~mask).sum()) == mask.numel() // 2
        assert torch.equal(weight, second[name][1])
        assert not weight[~mask].any()
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert not any(module._forward_pre_hooks for module in network.modules())


def test_later_layers_repair_earlier_ones(network: nn.Module) -> None:
    zeros = halves(network, 0.7)
    alone: dict[str, tuple[Tensor, Tensor]] = {}
    plain = {}
    for name, weight in compressible(network).items():
        hessian = moments(network, [name], some_images(400))[name].hessian
        mask, found = prune(weight.detach().flatten(1), hessian, zeros[name], whole_layer)
        alone[name] = mask.reshape(weight.shape), found.reshape(weight.shape)
        kept = whole_layer(weight.detach().abs(), zeros[name])
        plain[name] = kept, torch.where(kept, weight.detach(), 0.0)
    repaired, apart, cut = drift(network, run(network, zeros)), drift(network, alone), drift(network, plain)
    assert repaired < apart < cut


def test_layers_that_lose_nothing_stay_to_the_bit_until_their_inputs_change(network: nn.Module) -> None:
    zeros = dict.fromkeys(compressible(network), 0)
    same = run(network, zeros)
    assert all(torch.equal(weight, network.get_parameter(name)) for name, (_, weight) in same.items())
    changed = run(network, zeros | {"stem.0.weight": 18})
    assert changed["head.weight"][0].all()
    assert not torch.equal(changed["head.weight"][1], network.get_parameter("head.weight"))


def test_earlier_masks_only_shrink(network: nn.Module) -> None:
    masks = {name: mask for name, (mask, _) in run(network, halves(network)).items()}
    with torch.no_grad():
        for name, mask in masks.items():
            network.get_parameter(name).mul_(mask)
    later = run(
        network, halves(network, 0.75), held={name: Constraints(mask=mask) for name, mask in masks.items()}
    )
    assert not any((mask & ~masks[name]).any() for name, (mask, _) in later.items())
    assert all(int((~mask).sum()) == int(0.75 * mask.numel()) for mask, _ in later.values())


def test_saliencies_of_a_network_are_those_of_its_layers(network: nn.Module) -> None:
    found = saliencies(network, some_images(100))
    weight = network.get_parameter("stages.0.conv1.weight")
    hessian = moments(network, ["stages.0.conv1.weight"], some_images(100))["stages.0.conv1.weight"].hessian
    assert found.keys() == compressible(network).keys()
    expected = saliency(weight.detach().flatten(1), hessian).reshape(weight.shape)
    assert torch.allclose(found["stages.0.conv1.weight"], expected, rtol=1e-4)
