"""Optimal Brain Surgeon on each layer by itself: which weights go, and how the others make up for it.

The error of a layer is the mean square of what its outputs change, over images and positions. It is a
quadratic form of the weights, so the best survivors, and what removing one more weight costs, are closed
forms. Rows (output channels) are independent of each other.

References:
    Hassibi and Stork, Second Order Derivatives for Network Pruning: Optimal Brain Surgeon, 1992.
    Frantar and Alistarh, Optimal Brain Compression, 2022. https://arxiv.org/abs/2208.11580
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from decant.checkpoints.constraints import FREE, Constraints
from decant.errors import DecantError
from decant.examples import Batch
from decant.networks.devices import CPU, ONE_LAYER, computing_on, device_of, find, moved, place_, placed
from decant.networks.structure import compressible, observable
from decant.progress import progress_bar
from decant.reconstruction.elementwise import per_element
from decant.reconstruction.hessians import InputHessian, all_moments
from decant.reconstruction.in_turn import MomentsInTurn
from decant.reconstruction.least_squares import (
    NormalEquations,
    cholesky,
    chunks,
    descend,
    normal_equations,
    padded,
    solve,
    submatrices,
    unpadded,
)
from decant.reconstruction.within import fitted

Choose = Callable[[Tensor, int], Tensor]
"""(scores [rows, d], minus infinity where removed already; zeros in all by now) -> mask, True survives."""

EXACT = 2**34
"""Rows times d³ up to which each round is exact: some seconds for 16 rounds on two cores."""


def saliency(weight: Tensor, hessian: Tensor, mask: Tensor | None = None, *, damping: float = 0.01) -> Tensor:
    """Return w_j² / [H_SS⁻¹]_jj: how much the squared error rises if w_j goes and the other survivors adapt.

    H is the mean of x xᵀ, so the error is the mean of (w x - w' x)², and its rise is this number itself; the
    half of OBS belongs to an error with a half. It is exact for one weight, where `weight` is the best that
    its mask allows.

    Args:
        weight: [rows, d].
        hessian: [d, d], or [G, d, d] for the rows of G groups.
        mask: Survivors S [rows, d]; all where None.
        damping: Share of the mean diagonal added to the diagonal, at least 0.

    Returns:
        Float32 [rows, d]: minus infinity outside the mask, 0 for an input that is always zero; never NaN.

    Raises:
        ValueError: Shapes do not fit, or H is singular and damping too small.
    """
    problem = normal_equations(weight, hessian, None, damping)
    mask = torch.ones_like(weight, dtype=torch.bool) if mask is None else mask
    _, spread = _survivors(problem, mask)
    return _scores(problem, weight.detach(), spread, mask)


def refit(
    weight: Tensor,
    held: Constraints,
    hessian: Tensor,
    cross: Tensor | None = None,
    *,
    damping: float = 0.01,
) -> Tensor:
    """Return the survivors that come nearest to the layer's outputs: w_S = H_SS⁻¹ (G w)_S for each row.

    With `cross`, the outputs to come near to are those of the reference network, on its own inputs x, while
    the layer receives x̂: argmin ‖w x - w' x̂‖². Without, G = H and x̂ = x. Rows with the same mask share a
    factorization. Weights on inputs that are always zero stay. A range and levels are kept, and the others
    make up for what they do. Does not help where there are fewer rows of inputs than survivors: it fits noise
    then, which damping only softens.

    Args:
        weight: The reference's weight [rows, d].
        held: What the survivors have to satisfy, written out for each element [rows, d].
        hessian: Mean of x̂ x̂ᵀ [d, d], or [G, d, d] for the rows of G groups.
        cross: Mean of x̂ xᵀ, of the same shape.
        damping: Share of the mean diagonal added to the diagonals of H and G, at least 0: it draws survivors
            to the weight that they had.

    Returns:
        Weight [rows, d] in the type of `weight`, exactly 0 outside the mask.

    Raises:
        ValueError: Shapes do not fit, or H is singular and damping too small.
    """
    return fitted(normal_equations(weight, hessian, cross, damping), held, weight).to(weight.dtype)


def prune(
    weight: Tensor,
    hessian: Tensor,
    zeros: int,
    choose: Choose,
    cross: Tensor | None = None,
    *,
    held: Constraints = FREE,
    damping: float = 0.01,
    rounds: int = 16,
) -> tuple[Tensor, Tensor]:
    """Return the mask and the weight of a layer that keeps all but `zeros` weights.

    Weights go in rounds: each scores the survivors by what it would cost to remove them one by one, lets
    `choose` take the cheapest, and solves for the best survivors again. The counts kept fall in equal
    ratios. What survives is exact after each round; only the choice within a round is approximate, and with
    as many rounds as weights to remove it is OBS one at a time.

    Where rows times d³ is beyond `EXACT`, by shape alone, the rounds are approximate (see `thin`). The
    survivors are solved for exactly at the end, or nearly so where they are too many even for that.

    Args:
        weight: The reference's weight [rows, d].
        hessian: Mean of x̂ x̂ᵀ [d, d], or [G, d, d] for the rows of G groups.
        zeros: Zeros in the end, those of `mask` included.
        choose: The structure: which weights go, by their scores.
        cross: Mean of x̂ xᵀ, where the outputs on x are wanted from inputs x̂.
        held: What the survivors have to satisfy, written out for each element [rows, d]. Its mask only
            shrinks; a range and levels are seen at the end, not while weights are chosen.
        damping: Share of the mean diagonal, at least 0.
        rounds: How many; 1 scores the dense layer once.

    Returns:
        Mask [rows, d], True survives; weight [rows, d] in the type of `weight`.

    Raises:
        ValueError: Shapes do not fit, H is singular and damping too small, or rounds is below 1.
    """
    if rounds < 1:
        raise ValueError(f"Rounds must be at least 1, got {rounds}")
    before = torch.ones_like(weight, dtype=torch.bool) if held.mask is None else held.mask
    gone = int((~before).sum())
    if zeros <= gone and (cross is None or torch.equal(cross, hessian)):
        return before, torch.where(before, weight, 0.0)
    problem = normal_equations(weight, hessian, cross, damping)
    size, width = weight.shape
    targets = _targets(gone, zeros, weight.numel(), rounds)
    if size * width**3 > EXACT:
        kept, start = thin(problem, choose, before, targets)
        return kept, _within(problem, held, kept, weight, start)
    kept = before
    for target in targets:
        found, spread = _survivors(problem, kept)
        kept = choose(_scores(problem, found, spread, kept), target) & kept
    return kept, _within(problem, held, kept, weight)


def _within(
    problem: NormalEquations, held: Constraints, kept: Tensor, weight: Tensor, start: Tensor | None = None
) -> Tensor:
    """Return the best rows [rows, d] of what survives, within a range and levels where there are some."""
    if held.range is None and held.levels is None:
        return solve(problem, kept, start).to(weight.dtype)
    return fitted(problem, held.narrow(mask=kept), weight).to(weight.dtype)


def thin(
    problem: NormalEquations, choose: Choose, mask: Tensor, targets: Sequence[int], steps: int = 8
) -> tuple[Tensor, Tensor]:
    """Return mask and weight after rounds that cost O(rows d² + d³) each, where exact ones cost O(rows d³).

    Survivors are moved by conjugate gradients from where they were. The diagonal of each row's inverse
    Hessian is that of the mean field, the same for all rows: with a share p of the weights left, another
    input takes part with probability p, so H is replaced by its diagonal plus p times the rest. With all
    weights it is the exact one, and with a last one too.

    In the place of SparseGPT's one sweep over blocks of columns, which decides on early columns before it
    has seen the others. Does not help where rows keep very different shares.

    References:
        Frantar and Alistarh, SparseGPT, 2023, section 3. https://arxiv.org/abs/2301.00774
    """
    alone = torch.diag_embed(problem.matrix.diagonal(dim1=1, dim2=2))
    weight = problem.dense if bool(mask.all()) else descend(problem, mask, problem.dense)
    for target in targets:
        share = mask.double().mean().item()
        factor = cholesky((share * problem.matrix + (1 - share) * alone).float())
        half = torch.linalg.solve_triangular(
            factor, torch.eye(mask.shape[1], device=mask.device).expand_as(factor), upper=False
        )
        spread = half.square().sum(1)[problem.group]
        mask = choose(_scores(problem, weight, spread, mask), target) & mask
        weight = descend(problem, mask, weight, steps)
    return mask, weight


def channel_order(
    weight: Tensor, hessian: Tensor, size: int, *, mask: Tensor | None = None, damping: float = 0.01
) -> tuple[Tensor, Tensor]:
    """Return in which order a layer's input channels are best removed, and the error after each removal.

    Greedy: each time the channel goes for which the outputs, with least squares over all that is left,
    change least: Σ_rows w_c ([H⁻¹]_cc)⁻¹ w_cᵀ. The inverse is kept up to date, so all of it costs O(d³); or
    O(rows d³) where a mask leaves each row other inputs. Beyond `EXACT` the inverse is then that of the mean
    field, as in `thin`. ThiNet chooses the channels by the same error before it refits them, here refitting
    is part of the choice. Does not help where what comes after the layer forgives some outputs and not
    others; a range or levels, within which the layer is refitted, leave more error than is counted here.

    Args:
        weight: [rows, d], d = C * size, the columns of one channel beside each other.
        hessian: [d, d].
        size: Columns of one channel: the kernel's places, 1 for a linear layer.
        mask: True survives [rows, d]; all where None. Outside the weight is 0.
        damping: Share of the mean diagonal, at least 0.

    Returns:
        Channels [C], int64, the first to go first; squared errors [C], float64, summed over rows, rising;
        the last one is that of the empty layer.

    Raises:
        ValueError: Shapes do not fit, or H is singular and damping too small.

    References:
        Luo et al., ThiNet, 2017. https://arxiv.org/abs/1707.06342
    """
    width = weight.shape[1]
    if width % size:
        raise ValueError(f"{width} columns are no whole number of channels of {size}")
    problem = normal_equations(weight, hessian, None, damping)
    channels = width // size
    inverse = _inverses(problem, mask).reshape(-1, channels, size, channels, size).clone()
    # By whose inverse it is, one for all or one for each, and then by row.
    alone = torch.where(problem.dead, 0.0, weight.double()).reshape(len(inverse), -1, channels, size)
    values = alone.permute(0, 2, 3, 1).contiguous()
    alive = torch.ones(channels, dtype=torch.bool, device=weight.device)
    order, errors, total = [], [], 0.0
    for _ in range(channels):
        left = alive.nonzero()[:, 0]
        factor = cholesky(inverse[:, left, :, left])
        half = torch.linalg.solve_triangular(factor, values[:, left].transpose(0, 1), upper=False)
        costs = half.square().sum((1, 2, 3))
        # Of equal ones the later goes first, as everywhere.
        at = len(left) - 1 - int(costs.flip(0).argmin())
        channel = int(left[at])
        alive[channel] = False
        total += costs[at].item()
        order.append(channel)
        errors.append(total)
        _drop_(values, inverse, channel, factor[at])
    return torch.tensor(order), torch.tensor(errors, dtype=torch.double)


def _inverses(problem: NormalEquations, mask: Tensor | None) -> Tensor:
    """Return the inverse Hessian of what survives: [1, d, d] for all rows, or one for each [rows, d, d]."""
    if mask is None or bool(mask.all()):
        return problem.inverse
    matrix, width = problem.matrix[0], mask.shape[1]
    if len(mask) * width**3 > EXACT:
        share = mask.double().mean()
        alone = torch.diag(matrix.diagonal())
        return torch.cholesky_inverse(cholesky(share * matrix + (1 - share) * alone))[None]
    index = torch.arange(width, device=mask.device).expand_as(mask)
    return torch.cholesky_inverse(cholesky(submatrices(matrix[None], problem.group, index, mask)))


def _drop_(values: Tensor, inverse: Tensor, channel: int, factor: Tensor) -> None:
    """Take a channel out of rows [B, C, s, n] and out of inverse Hessians [B, C, s, C, s], in place."""
    size = inverse.shape[2]
    across = inverse[:, channel].reshape(len(inverse), size, -1)
    gain = torch.cholesky_solve(across, factor)
    values -= (gain.mT @ values[:, channel]).reshape(values.shape)
    inverse -= (across.mT @ gain).reshape(inverse.shape)
    values[:, channel] = 0.0


def reconstruct(
    module: nn.Module,
    zeros: Mapping[str, int],
    choose: Mapping[str, Choose],
    images: Batch,
    *,
    held: Mapping[str, Constraints] | None = None,
    damping: float = 0.01,
    rounds: int = 16,
    device: str = CPU,
) -> dict[str, tuple[Tensor, Tensor]]:
    """Return masks and weights of a network whose layers lose so many weights, each repairing earlier ones.

    Layers are solved in the order in which they run: each on the inputs that the layers before, pruned
    already, send it, towards the outputs that the given module has there. A layer that loses nothing more
    is solved too, if what it receives has changed. Biases and batch norms stay.

    Args:
        module: The network, in eval mode; it is untouched.
        zeros: By weight, how many of its elements are zero in the end.
        choose: By weight, which elements go; scores and masks are [rows, d] as in `weight.flatten(1)`.
        images: Pixels [N, C, H, W], uint8, without labels; some ten rows of patches for each input of the
            widest layer, or it learns the images by heart.
        held: What each weight has to satisfy: masks only shrink, ranges and levels are kept.
        damping: Share of a Hessian's mean diagonal, at least 0.
        rounds: See `prune`.
        device: Where the networks run and layers are solved: it holds the weights of both, and the moments of
            one layer.

    Returns:
        By weight, on the processor, mask and weight in the weight's shape.

    Raises:
        ValueError: There are no images.
        DecantError: A Hessian is singular and damping too small; the network does not run one of the layers;
            or one receives NaN or infinity. Names the layer. Or the device is not there, or too small.
    """
    earlier, there, order = moved(dict(held or {}), find(device)), find(device), running_order(module, zeros)
    solved: dict[str, tuple[Tensor, Tensor]] = {}
    with torch.no_grad(), computing_on(there, ONE_LAYER):
        reference, work = placed(module, there), place_(copy.deepcopy(module), there)
        seen = MomentsInTurn(work, order, images, reference)
        for name in progress_bar(order, "solving", "layers"):
            old, found = reference.get_parameter(name).detach(), seen.at(name)
            with naming(name):
                mask, weight = prune(
                    old.flatten(1),
                    found.hessian,
                    zeros[name],
                    partial(_chosen, choose[name]),
                    found.cross,
                    held=per_element(earlier.get(name, FREE), old.shape, there),
                    damping=damping,
                    rounds=rounds,
                )
            work.get_parameter(name).copy_(weight.reshape(old.shape))
            solved[name] = moved((mask.reshape(old.shape), weight.reshape(old.shape)), CPU)
    return solved


def _chosen(choose: Choose, scores: Tensor, zeros: int) -> Tensor:
    """Return a choice among scores where they lie; structures choose on the processor."""
    return moved(choose(moved(scores, CPU), zeros), scores.device)


@contextmanager
def naming(name: str) -> Iterator[None]:
    """Say of which weight it is that there is no solution."""
    try:
        yield
    except ValueError as error:
        raise DecantError(f"{name}: {error}") from None


def saliencies(
    module: nn.Module,
    images: Batch,
    damping: float = 0.01,
    masks: Mapping[str, Tensor] | None = None,
    names: Sequence[str] | None = None,
) -> dict[str, Tensor]:
    """Return the saliency of each weight whose inputs can be seen, by name, in the weight's shape.

    Args:
        module: The network, in eval mode.
        images: Pixels [N, C, H, W], uint8, without labels.
        damping: Share of a Hessian's mean diagonal, at least 0.
        masks: What survives: only these make up for one another. What does not has the saliency 0.
        names: The weights, whose layers alone are looked at; all where None.

    Raises:
        ValueError: There are no images.
        DecantError: A Hessian is singular and damping too small; the network does not run one of the layers;
            or one receives NaN or infinity. Names the layer.
    """
    seen = observable(module)
    weights = {name: seen[name].detach() for name in (seen if names is None else names)}
    found: dict[str, InputHessian] = all_moments(module, list(weights), images)
    scores = {}
    for name, weight in weights.items():
        mask = masks[name].flatten(1) if masks and name in masks else None
        with naming(name):
            hessian = moved(found[name].hessian, device_of(module))
            score = saliency(weight.flatten(1), hessian, mask, damping=damping)
        scores[name] = score.clamp(min=0.0).reshape(weight.shape)
    return scores


def running_order(module: nn.Module, names: Mapping[str, object]) -> list[str]:
    """Return the named weights in the order in which a pass first uses them."""
    return [name for name in compressible(module) if name in names]


def _targets(gone: int, zeros: int, size: int, rounds: int) -> list[int]:
    """Return the zeros after each round, rising; what is kept falls in equal ratios."""
    if rounds >= zeros - gone:
        return list(range(gone + 1, zeros + 1))
    ratio = max(1, size - zeros) / (size - gone)
    inner = [size - round((size - gone) * ratio ** (part / rounds)) for part in range(1, rounds)]
    return sorted({*inner, zeros} - {gone})


def _scores(problem: NormalEquations, weight: Tensor, spread: Tensor, mask: Tensor) -> Tensor:
    """Return saliencies [rows, d], float32, from the diagonal of the survivors' inverse Hessian."""
    scores = (weight.double().square() / spread).float()
    return torch.where(mask, torch.where(problem.dead, 0.0, scores), -math.inf)


def _survivors(problem: NormalEquations, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return the best weight and the diagonal of its inverse Hessian, both [rows, d]; 1 outside the mask.

    In float32, as it serves the choice alone. Two closed forms say the same: one factors the Hessian of
    what survives, the other corrects the inverse of all, which the rows share, for what is removed. The
    cheaper depends on the counts; they cost the same where 44 % are removed.
    """
    width = mask.shape[1]
    removed = (~mask).sum(1)
    weight = problem.dense.float()
    spread = problem.inverse.diagonal(dim1=1, dim2=2)[problem.group].float()
    few = removed < 0.44 * width
    for chosen, form, counts, across in (
        (few & (removed > 0), _corrected, removed, width),
        (~few, _factored, width - removed, None),
    ):
        numbers = chosen.nonzero()[:, 0]
        for part in chunks(counts[numbers], across):
            rows = numbers[part]
            weight[rows], spread[rows] = form(problem, mask[rows], rows)
    # A survivor's inverse cannot be below that of its own diagonal; cancellation in float32 might be.
    least = 1 / problem.matrix.diagonal(dim1=1, dim2=2)[problem.group].float()
    return torch.where(mask, weight, 0.0), torch.where(mask, spread.maximum(least), 1.0)


def _factored(problem: NormalEquations, mask: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return weight and diagonal from the Hessian of the survivors."""
    index, valid = padded(mask)
    matrix = submatrices(problem.matrix.float(), problem.group[rows], index, valid)
    right = torch.where(valid, problem.target[rows].gather(1, index).float(), 0.0)
    identity = torch.eye(index.shape[1], device=index.device).expand_as(matrix)
    half = torch.linalg.solve_triangular(cholesky(matrix), identity, upper=False)
    found = (half.mT @ (half @ right[:, :, None]))[:, :, 0]
    diagonal = half.square().sum(1)
    width = mask.shape[1]
    return unpadded(found, index, valid, width), unpadded(diagonal, index, valid, width)


def _corrected(problem: NormalEquations, mask: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return weight and diagonal from the inverse Hessian of all, less what is removed."""
    index, valid = padded(~mask)
    inverse, group = problem.inverse.float(), problem.group[rows]
    dense = problem.dense[rows].float()
    matrix = submatrices(inverse, group, index, valid)
    across = torch.where(valid[:, :, None], inverse[group[:, None], index], 0.0)
    gone = torch.where(valid, dense.gather(1, index), 0.0)
    both = torch.cat([across, gone[:, :, None]], dim=2)
    half = torch.linalg.solve_triangular(cholesky(matrix), both, upper=False)
    found = dense - (half[:, :, :-1].mT @ half[:, :, -1:])[:, :, 0]
    diagonal = inverse.diagonal(dim1=1, dim2=2)[group] - half[:, :, :-1].square().sum(1)
    return found, diagonal
