"""How a budget is shared among layers: each allocation is one class, and the union names them.

An allocation sees the score of every unit (a weight, a block, a channel) of every layer, and says how many
units each layer loses. Which ones is then plain: those of the lowest score. Units that are removed already
score minus infinity; they count, and no layer is given fewer than it has of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias

from pydantic import Field

from decant.lazy import torch
from decant.prune.structures import lowest
from decant.schema import Section, ValidationImages

if TYPE_CHECKING:
    from torch import Tensor

Scores: TypeAlias = "Mapping[str, Tensor]"
Counts = dict[str, int]

Probe = Callable[[Mapping[str, int]], float]
"""What it costs to remove so many units of these layers and no others: drift on validation images."""


class Global(Section):
    """All units of all layers compete; a layer loses what it has of the lowest.

    Does not help where scores of different layers have different units, such as magnitudes before and after
    a batch norm, and may take all of a layer (which is refused): take `layer` or `lamp` then.
    """

    kind: Literal["global"] = "global"

    def counts(self, scores: Scores, shapes: Mapping[str, torch.Size], removed: int, probe: Probe) -> Counts:
        """Return how many units each layer loses; they sum to `removed`."""
        together = torch.cat([score.double() for score in scores.values()])
        parts = lowest(together, removed).split([len(score) for score in scores.values()])
        return {name: int(part.sum()) for name, part in zip(scores, parts, strict=True)}


class PerLayer(Section):
    """Every layer loses the same share; one that has lost more already keeps that, the others share the rest.

    Does not help where a small layer, such as the first or the last, is what everything passes through.
    """

    kind: Literal["layer"] = "layer"

    def counts(self, scores: Scores, shapes: Mapping[str, torch.Size], removed: int, probe: Probe) -> Counts:
        """Return how many units each layer loses: the share of each, rounded so that the sum is exact."""
        sizes, gone = _sizes(scores), _gone(scores, removed)
        full: set[str] = set()  # layers that have lost more than their share already
        while True:
            rest = [name for name in sizes if name not in full]
            share = (removed - sum(gone[n] for n in full)) / max(sum(sizes[n] for n in rest), 1)
            over = {name for name in rest if gone[name] > share * sizes[name]}
            if not over:
                break
            full |= over
        lost = {n: float(gone[n]) if n in full else share * size for n, size in sizes.items()}
        return rounded(lost, _room(sizes, gone, removed), removed)


class Erk(Section):
    """Erdos-Renyi-Kernel: a layer's density is in proportion to (sum of its dimensions) / (their product).

    Small layers stay dense, large ones carry the sparsity. Does not look at data or weights.

    References:
        Evci et al., Rigging the Lottery, 2019, section 3. https://arxiv.org/abs/1911.11134
    """

    kind: Literal["erk"] = "erk"

    def counts(self, scores: Scores, shapes: Mapping[str, torch.Size], removed: int, probe: Probe) -> Counts:
        """Return how many units each layer loses; no density is above what is left of a layer."""
        sizes, gone = _sizes(scores), _gone(scores, removed)
        raw = {name: sum(shapes[name]) / math.prod(shapes[name]) for name in sizes}
        dense: set[str] = set()
        kept = sum(sizes.values()) - removed
        while True:
            rest = kept - sum(sizes[name] - gone[name] for name in dense)
            factor = max(rest, 0) / max(sum(raw[n] * sizes[n] for n in sizes if n not in dense), 1e-30)
            over = {n for n in sizes if n not in dense and factor * raw[n] > 1 - gone[n] / sizes[n]}
            if not over:
                break
            dense |= over
        lost = {n: float(gone[n]) if n in dense else sizes[n] * (1 - factor * raw[n]) for n in sizes}
        return rounded(lost, _room(sizes, gone, removed), removed)


class Lamp(Section):
    """Layer-adaptive magnitude: a score's square over the sum of all squares not below it in its layer.

    The best unit of every layer scores 1, so that no layer is ever emptied while another has two left. Made
    for magnitudes; with scores that are squares already (fisher, obs) it prefers peaks too much.

    References:
        Lee et al., Layer-adaptive Sparsity for the Magnitude-based Pruning, 2020.
        https://arxiv.org/abs/2010.07611
    """

    kind: Literal["lamp"] = "lamp"

    def counts(self, scores: Scores, shapes: Mapping[str, torch.Size], removed: int, probe: Probe) -> Counts:
        """Return how many units each layer loses; they sum to `removed`."""
        adapted = {name: lamp_scores(score) for name, score in scores.items()}
        return Global().counts(adapted, shapes, removed, probe)


class Adaptive(Section):
    """Measure what pruning each layer alone costs, then split so that the sum of the costs is least.

    The cost is the drift from the unpruned model on `images` validation images (of classes the KL divergence
    of the logits, else the squared error over the outputs' variance), at
    `points` sparsities a layer; between them it is read off the lower convex hull of the curve, on which
    removing first where it is cheapest is optimal. Costs one pass over the images for each point and
    layer. Does not see what layers do to each other: at extreme sparsities the sum is not the whole.

    References:
        Han et al., Learning both Weights and Connections, 2015, section 4.1 (sensitivity).
        https://arxiv.org/abs/1506.02626
    """

    kind: Literal["adaptive"] = "adaptive"
    images: ValidationImages = 1000
    points: Annotated[int, Field(ge=2, le=64)] = 10

    def counts(self, scores: Scores, shapes: Mapping[str, torch.Size], removed: int, probe: Probe) -> Counts:
        """Return how many units each layer loses; they sum to `removed`."""
        sizes, gone = _sizes(scores), _gone(scores, removed)
        curves = {name: self._curve(name, gone[name], sizes[name], probe) for name in scores}
        return cheapest(curves, removed)

    def _curve(self, name: str, gone: int, size: int, probe: Probe) -> list[tuple[int, float]]:
        """Return (units removed, cost) at densities that halve, from those gone already to all but one."""
        most = max(size - 1, gone)
        last = min(size, 2**self.points)
        densities = [last ** -(point / (self.points - 1)) for point in range(1, self.points)]
        places = sorted({min(most, round(size * (1 - density))) for density in densities} | {most})
        return [(gone, 0.0), *((place, max(probe({name: place}), 0.0)) for place in places if place > gone)]


Allocation = Annotated[Global | PerLayer | Erk | Lamp | Adaptive, Field(discriminator="kind")]


def lamp_scores(scores: Tensor) -> Tensor:
    """Return scores^2 [U] over the sum of the squares of all that rank not below; minus infinity stays."""
    alive = torch.isfinite(scores)
    squares = torch.where(alive, scores.double(), 0.0) ** 2
    # Ranks as `lowest` has them: of equal scores the later one is below.
    order = scores.flip(0).argsort(stable=True)
    order = len(scores) - 1 - order
    above = squares[order].flip(0).cumsum(0).flip(0)
    adapted = torch.empty_like(squares)
    adapted[order] = squares[order] / above.clamp(min=1e-300)
    return torch.where(alive, adapted, -math.inf)


def cheapest(curves: Mapping[str, list[tuple[int, float]]], removed: int) -> Counts:
    """Return the split of `removed` units whose summed cost, read off the curves' convex hulls, is least.

    Args:
        curves: By layer, (units removed, cost) in rising order, beginning with (units gone already, 0).
        removed: Units to remove in all; between the sums of the curves' beginnings and of their ends.
    """
    segments = []
    for index, (name, curve) in enumerate(curves.items()):
        hull = _hull(curve)
        for place, ((x0, y0), (x1, y1)) in enumerate(pairwise(hull)):
            segments.append(((y1 - y0) / (x1 - x0), index, place, name, x1 - x0))
    counts = {name: curve[0][0] for name, curve in curves.items()}
    left = removed - sum(counts.values())
    for _, _, _, name, width in sorted(segments):
        taken = min(width, left)
        counts[name] += taken
        left -= taken
    return counts


def rounded(shares: Mapping[str, float], most: Mapping[str, int], total: int) -> Counts:
    """Return whole numbers near `shares` that sum to `total`: the largest remainders are rounded up.

    None is above `most`, whose sum is `total` or more.
    """
    counts = {name: min(math.floor(share + 1e-9), most[name]) for name, share in shares.items()}
    remainders = sorted(shares, key=lambda name: (counts[name] - shares[name], list(shares).index(name)))
    left = total - sum(counts.values())
    while left > 0:
        room = [name for name in remainders if counts[name] < most[name]]
        for name in room[:left]:
            counts[name] += 1
        left = total - sum(counts.values())
    return counts


def _sizes(scores: Scores) -> dict[str, int]:
    return {name: len(score) for name, score in scores.items()}


def _gone(scores: Scores, removed: int) -> dict[str, int]:
    """Return how many units of each layer are removed already; none where that is more than is asked for."""
    gone = {name: int(torch.isinf(score).sum()) for name, score in scores.items()}
    return gone if sum(gone.values()) <= removed else dict.fromkeys(gone, 0)


def _room(sizes: Mapping[str, int], gone: Mapping[str, int], removed: int) -> Mapping[str, int]:
    """Return the most that each layer can lose: all but one where that is enough."""
    most = {name: max(size - 1, gone[name]) for name, size in sizes.items()}
    return most if sum(most.values()) >= removed else sizes


def _hull(curve: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """Return the lower convex hull of a curve's points, left to right."""
    hull: list[tuple[int, float]] = []
    for x, y in curve:
        while len(hull) > 1:
            (x0, y0), (x1, y1) = hull[-2:]
            if (y1 - y0) * (x - x0) < (y - y0) * (x1 - x0):
                break
            hull.pop()
        hull.append((x, y))
    return hull
