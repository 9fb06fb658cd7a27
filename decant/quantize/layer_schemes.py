"""The scheme of each weight, and the constraints that follow from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from decant.calibration.range_search import Choice, choose
from decant.calibration.ranges import Best, Span
from decant.checkpoints.checkpoint import Checkpoint
from decant.checkpoints.constraints import FREE, Constraints
from decant.errors import DecantError
from decant.examples import Batch
from decant.quantize.params import QuantizeParams
from decant.quantize.quantizable import first_and_last, quantizable
from decant.quantize.schemes import Scheme, Stepped

Schemes = Mapping[str, Scheme]
"""The scheme of each weight, by its name."""


def schemes_for(parent: Checkpoint, names: Sequence[str], block: QuantizeParams) -> dict[str, Scheme]:
    """Return the scheme of each named weight: the recipe's, or another one for the first and the last layer.

    Raises:
        DecantError: A weight has levels already: rounding twice adds both errors.
    """
    for name in names:
        if parent.constraints.get(name, FREE).levels is not None:
            raise DecantError(
                f"{name} of {block.from_} is quantized already; quantize one of its ancestors instead, "
                f"or name the layer in skip"
            )
    ends = first_and_last(parent.module) if block.ends is not None else set()
    return {name: block.ends if block.ends and name in ends else block.scheme for name in names}


def with_ranges(parent: Checkpoint, schemes: Schemes, images: Batch) -> tuple[Schemes, dict[str, Choice]]:
    """Return the schemes with `best` replaced by the range that moves the answers to `images` least."""
    chosen: dict[str, Choice] = {}
    for scheme in dict.fromkeys(schemes.values()):
        if not (isinstance(scheme, Stepped) and isinstance(scheme.range, Best)):
            continue

        def trial(name: str, span: Span, scheme: Stepped = scheme) -> Checkpoint:
            return parent.narrowed({name: constrained(parent, name, _with(scheme, span))})

        names = [name for name, other in schemes.items() if other == scheme]
        chosen |= choose(parent, names, images, trial, bits=scheme.bits, per_channel=scheme.per_channel)
    ranged = {name: _with(schemes[name], choice.span) for name, choice in chosen.items()}
    return {**schemes, **ranged}, chosen


def best_of(schemes: Schemes) -> Best | None:
    """Return the first range that has to be chosen on images, if there is one."""
    ranges = [scheme.range for scheme in schemes.values() if isinstance(scheme, Stepped)]
    return next((span for span in ranges if isinstance(span, Best)), None)


def constrained(parent: Checkpoint, name: str, scheme: Scheme) -> Constraints:
    """Return the constraints of the weight in the parent, and the levels of the scheme.

    Raises:
        ValueError: The weight is NaN or infinite, or the scheme does not fit its shape.
    """
    weight, axis = quantizable(parent.module)[name]
    earlier = parent.constraints.get(name, FREE)
    shifted = scheme.shifted(weight.detach(), earlier.mask, axis)
    return earlier.narrow(levels=scheme.levels(shifted, earlier.mask, axis))


def _with(scheme: Any, span: Span) -> Any:
    """Return a stepped scheme with another range."""
    return scheme.model_copy(update={"range": span})
