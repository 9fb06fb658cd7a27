"""The range of each tensor that moves the network's answers least, found by trying every kind on images."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from decant.calibration.ranges import CANDIDATES, Best, Fitted, Span
from decant.checkpoints.checkpoint import Checkpoint
from decant.compression.ledger import Tables
from decant.costs.divergence import distance
from decant.errors import DecantError
from decant.examples import Batch, Examples
from decant.networks.execution import predict
from decant.progress import progress_bar


@dataclass(frozen=True)
class Choice:
    """What was taken for one tensor.

    Attributes:
        span: The range.
        kind: Its name among the candidates.
        tried: What each candidate costs: the distance of the outputs from the parent's, of classes the KL
            divergence in nats; None where it could not be applied, or the outputs became NaN or infinite.
    """

    span: Span
    kind: str
    tried: Mapping[str, float | None]


def tried_ranges(weights: Mapping[str, Choice], inputs: Mapping[str, Choice]) -> Tables:
    """Return what the ledger keeps of choices for weights, and for the inputs of their layers, by weight."""
    parts: dict[str, list[tuple[str, Choice]]] = {}
    for prefix, choices in (("", weights), ("inputs: ", inputs)):
        for name, choice in choices.items():
            parts.setdefault(name, []).append((prefix, choice))
    return {
        name: (
            "; ".join(f"{prefix}{choice.kind}" for prefix, choice in listed),
            {f"{prefix}{kind}": cost for prefix, choice in listed for kind, cost in choice.tried.items()},
        )
        for name, listed in parts.items()
    }


def held_out(train: Examples, used: int, best: Best) -> Batch:
    """Return the `best.images` training images after the first `used`, which ranges were taken from.

    Raises:
        DecantError: There are not as many.
    """
    if len(train) < used + best.images:
        raise DecantError(
            f"`best` needs {best.images} training images beside the {used} that ranges are taken from, and "
            f"there are {len(train)}; lower one of the two `images`"
        )
    return train.images[used : used + best.images]


def choose(
    parent: Checkpoint,
    names: Sequence[str],
    images: Batch,
    trial: Callable[[str, Span], Checkpoint],
    *,
    bits: int,
    per_channel: bool,
) -> dict[str, Choice]:
    """Return the range for each tensor, tried one at a time, all others as in the parent.

    Args:
        parent: The network whose answers count; untouched.
        names: What to choose for: weights, or layers whose inputs are cut.
        images: Held-out uint8 images [N, C, H, W].
        trial: Returns the parent with one tensor cut to a range and rounded; a ValueError of it means that
            the range cannot be applied there.
        bits: The width that is rounded to; candidates that depend on it are asked for it.
        per_channel: Whether each channel has a range of its own.

    Raises:
        DecantError: No candidate can be applied to a tensor.
    """
    expected, apart = predict(parent.module, images), distance(parent.classes)
    candidates = {kind: _asked(span, bits, per_channel) for kind, span in CANDIDATES.items()}

    def cost(name: str, span: Span) -> float | None:
        try:
            cost = apart(predict(trial(name, span).module, images), expected)
        except ValueError:
            return None
        return cost if math.isfinite(cost) else None

    choices = {}
    for name in progress_bar(names, "ranges", "tensors"):
        tried = {kind: cost(name, span) for kind, span in candidates.items()}
        known = {kind: value for kind, value in tried.items() if value is not None}
        if not known:
            raise DecantError(f"No kind of range can be applied to {name}; name its layer in skip")
        kind = min(known, key=known.__getitem__)
        choices[name] = Choice(candidates[kind], kind, tried)
    return choices


def _asked(span: Span, bits: int, per_channel: bool) -> Span:
    width = {"bits": bits} if isinstance(span, Fitted) else {}
    return span.model_copy(update={"per_channel": per_channel, **width})
