"""Stage `compress` of a model with `op: distill`: python -m tasks.distill <model>"""

from decant.distill.operation import distill
from decant.distill.params import DistillParams
from tasks.pipeline.stage import run
from tasks.pipeline.step import compress


def main(model: str) -> None:
    """Read the parent; train a student on its soft targets; write the model."""
    compress(model, DistillParams, distill)


if __name__ == "__main__":
    run(main)
