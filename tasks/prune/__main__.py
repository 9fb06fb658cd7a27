"""Stage `compress` of a model with `op: prune`: python -m tasks.prune <model>"""

from decant.prune.operation import prune
from decant.prune.params import PruneParams
from tasks.pipeline.stage import run
from tasks.pipeline.step import compress


def main(model: str) -> None:
    """Read the parent; remove what is least important; write the model."""
    compress(model, PruneParams, prune)


if __name__ == "__main__":
    run(main)
