"""Stage `compress` of a model with `op: finetune`: python -m tasks.finetune <model>"""

from decant.finetune.operation import finetune
from decant.finetune.params import FinetuneParams
from tasks.pipeline.stage import run
from tasks.pipeline.step import compress


def main(model: str) -> None:
    """Read the parent; train it with masks, levels and ranges held; write the model."""
    compress(model, FinetuneParams, finetune)


if __name__ == "__main__":
    run(main)
