"""Stages of a project in the current folder, run in this process one after another."""

import json
from pathlib import Path
from typing import Any

from decant.clip.operation import clip
from decant.clip.params import ClipParams
from decant.distill.operation import distill
from decant.distill.params import DistillParams
from decant.finetune.operation import finetune
from decant.finetune.params import FinetuneParams
from decant.prune.operation import prune
from decant.prune.params import PruneParams
from decant.quantize.operation import quantize
from decant.quantize.params import QuantizeParams
from tasks.evaluate.__main__ import main as evaluate
from tasks.pipeline.params import read_yaml
from tasks.pipeline.step import compress

OPERATIONS: dict[str, tuple[Any, Any]] = {
    "clip": (ClipParams, clip),
    "prune": (PruneParams, prune),
    "quantize": (QuantizeParams, quantize),
    "distill": (DistillParams, distill),
    "finetune": (FinetuneParams, finetune),
}


def compressed(*names: str) -> None:
    """Make models of params.yaml, in this order."""
    models = read_yaml()["models"]
    for name in names:
        compress(name, *OPERATIONS[models[name]["op"]])


def measured(*names: str) -> dict[str, dict[str, float]]:
    """Evaluate models; return what was written of each."""
    for name in names:
        evaluate(name)
    return {name: json.loads(Path("metrics", f"{name}.json").read_text()) for name in names}
