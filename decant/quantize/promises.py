"""What a recipe promises of a quantized model: the levels of its weights, the grids of its layers' inputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from decant.checkpoints.activations import Grid
from decant.checkpoints.checkpoint import Checkpoint
from decant.checkpoints.constraints import FREE
from decant.compression.promises import Promise
from decant.quantize.schemes import Scheme


def leveled(schemes: Mapping[str, Scheme]) -> Promise:
    """Return the promise that each named weight has levels, and no more of them than its scheme has."""

    def broken(model: Checkpoint) -> Iterator[str]:
        for name, scheme in schemes.items():
            levels = model.constraints.get(name, FREE).levels
            if levels is None or len(levels.values) > scheme.most:
                found = "has none" if levels is None else f"has {len(levels.values)}"
                yield (
                    f"{name}: up to {scheme.most} levels were asked for, and it {found}; build the model "
                    f"anew, and report this if it happens again"
                )

    return broken


def rounded_inputs(grids: Mapping[str, Grid]) -> Promise:
    """Return the promise that the inputs of each named layer are rounded to as many bits."""

    def broken(model: Checkpoint) -> Iterator[str]:
        for layer, grid in grids.items():
            found = model.grids.get(layer)
            if type(found) is not type(grid) or found is None or found.bits != grid.bits:
                yield (
                    f"{layer}: inputs in {grid.describe()} were asked for, and it has "
                    f"{found.describe() if found else 'float32'}; build the model anew"
                )

    return broken
