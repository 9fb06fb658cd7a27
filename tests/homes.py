"""A folder in which stages run: tables of images, params.yaml, and the current folder while a test runs."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from decant.checkpoints.checkpoint import Checkpoint
from decant.checkpoints.files import save
from decant.checkpoints.lineage import read_lineage
from tasks.pipeline import lineages
from tasks.pipeline.lineages import MODELS
from tasks.pipeline.params import read_yaml
from tasks.pipeline.splits import TRAIN
from tasks.pipeline.step import training_images
from tasks.prepare import tables
from tasks.prepare.sources import SOURCES
from tasks.prepare.splits import Split


@contextmanager
def home(
    folder: Path, splits: Mapping[str, Split] | None = None, params: Mapping[str, Any] | None = None
) -> Iterator[Path]:
    """Work in `folder`; afterwards folder, threads and determinism are what they were before.

    Args:
        folder: It exists.
        splits: Written to data/, as a data set with the classes of the digits.
        params: The content of params.yaml.
    """
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        if splits:
            tables.write(splits, Path("data"), SOURCES["digits"])
        if params:
            write_params(params)
        yield folder
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic)


def write_params(content: Mapping[str, Any]) -> None:
    """Write params.yaml of the current folder, without the anchors that PyYAML makes of what occurs twice."""
    text = yaml.dump(dict(content), Dumper=_Repeating, sort_keys=False)
    Path("params.yaml").write_text(text, encoding="utf-8")


class _Repeating(yaml.SafeDumper):
    def ignore_aliases(self, _: object) -> bool:
        return True


def put_model(name: str, checkpoint: Checkpoint) -> None:
    """Write a model of the test's own as if the recipe of that name in params.yaml had made it."""
    params = read_yaml()
    parents = {parent: read_lineage(MODELS / parent) for parent in lineages.parents(name, params)}
    step = lineages.written(name, params) | {
        "parents": {key: found.seal for key, found in parents.items()},
        "data": training_images() if TRAIN.exists() else "",
    }
    earlier = next((found.lineage.steps for found in parents.values()), ())
    save(replace(checkpoint, lineage=(*earlier, step)), MODELS / name)


def noise(shape: tuple[int, int, int], **counts: int) -> dict[str, Split]:
    """Return splits of these numbers of images [C, H, W] that show nothing, ten classes in turn."""
    generator = np.random.Generator(np.random.PCG64(0))
    return {
        name: Split(
            generator.integers(0, 256, (count, *shape), np.uint8), (np.arange(count) % 10).astype(np.uint8)
        )
        for name, count in counts.items()
    }
