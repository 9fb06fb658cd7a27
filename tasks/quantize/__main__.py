"""Stage `compress` of a model with `op: quantize`: python -m tasks.quantize <model>"""

from decant.quantize.operation import quantize
from decant.quantize.params import QuantizeParams
from tasks.pipeline.stage import run
from tasks.pipeline.step import compress


def main(model: str) -> None:
    """Read the parent; round its weights and, where asked, its inputs; write the model."""
    compress(model, QuantizeParams, quantize)


if __name__ == "__main__":
    run(main)
