"""Stage `compress` of a model with `op: clip`: python -m tasks.clip <model>"""

from decant.clip.operation import clip
from decant.clip.params import ClipParams
from tasks.pipeline.stage import run
from tasks.pipeline.step import compress


def main(model: str) -> None:
    """Read the parent; cut its weights or the inputs of its layers; write the model."""
    compress(model, ClipParams, clip)


if __name__ == "__main__":
    run(main)
