"""Stage `compress` of a model with `op: quantize`: python -m tasks.quantize <model>"""

from tasks import data
from tasks.checkpoints import Checkpoint, load_model
from tasks.constraints import FREE, InputGrid
from tasks.errors import DecantError
from tasks.ledger import select
from tasks.quantize.calibration import affine_grid, input_ranges
from tasks.quantize.params import Activations, QuantizeParams
from tasks.stages import run
from tasks.steps import begin_model, finish


def main(model: str) -> None:
    """Read the parent; round its weights and, where asked, its activations; write the model."""
    step = begin_model(model, QuantizeParams)
    parent = load_model(step.block.from_)
    chosen, untouched = select(parent.module, step.block.skip)
    changes = {}
    for name in chosen:
        earlier = parent.constraints.get(name, FREE)
        if earlier.levels is not None:
            raise DecantError(
                f"{name} of {step.block.from_} is quantized already; quantize one of its ancestors instead"
            )
        levels = step.block.scheme.levels(parent.module.get_parameter(name), earlier.mask)
        changes[name] = earlier.narrow(levels=levels)
    child = parent.narrowed(changes)
    if step.block.activations is not None:
        child = child.narrowed({}, _grids(child, chosen, step.block.activations))
    finish(step, parent, child, untouched)


def _grids(checkpoint: Checkpoint, weights: list[str], activations: Activations) -> dict[str, InputGrid]:
    """Return a grid for each chosen layer's inputs; the weights are rounded already, as they will be."""
    layers = [name.removesuffix(".weight") for name in weights]
    images = data.read(data.TRAIN).first(activations.images).images
    ranges = input_ranges(checkpoint.module, layers, images)
    return {layer: affine_grid(*ranges[layer], activations.bits) for layer in layers}


if __name__ == "__main__":
    run(main)
