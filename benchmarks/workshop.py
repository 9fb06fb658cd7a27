"""A throw-away folder in which a benchmark runs stages as the pipeline does."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

from decant.checkpoints.checkpoint import Checkpoint
from decant.checkpoints.files import size_bytes
from decant.costs import counts as metrics_counts
from decant.networks.execution import predict
from tasks.evaluate import accuracy as metrics_accuracy
from tasks.pipeline import models as pipeline_models
from tasks.pipeline import splits as data
from tasks.pipeline.lineages import MODELS
from tasks.pipeline.models import load_model
from tasks.pipeline.params import read_yaml
from tests.imports import ROOT

LENET = {
    "data": {"source": "mnist", "validation": 5000},
    "teacher": {
        "architecture": {"kind": "lenet-300-100"},
        "training": {
            "epochs": 20,
            "optimizer": {"kind": "sgd", "learning_rate": 0.1},
            "average": 0.99,
        },
    },
}
"""The network and the images on which papers report."""


class Workshop:
    """A folder with images and a teacher.

    Attributes:
        name: Of the network.
        folder: Where it is.
        blocks: Of params.yaml, of the models that were made here.
    """

    def __init__(
        self,
        name: str,
        folder: Path,
        sections: Mapping[str, Any],
        teacher: Path | None = None,
        seed: int = 1,
        threads: int = 1,
    ) -> None:
        """Prepare the images and the teacher.

        Args:
            name: Of the network.
            folder: To be made.
            sections: Of params.yaml: `data`, where not the images in data/ are meant, and `teacher`, where
                another than the default one is.
            teacher: A trained one's folder, which is copied.
            seed: Of the teacher's training. The images are always drawn by 1.
            threads: Of all operations.
        """
        self.name, self.folder, self.blocks = name, folder, dict[str, Any]()
        folder.mkdir(parents=True)
        default = read_yaml(ROOT / "params.yaml")
        self.sections = {"teacher": default["teacher"], **sections}
        self.sections["threads"] = dict.fromkeys(default["threads"], threads)
        with self.inside({}, seed=1):
            if "data" in self.sections:
                importlib.import_module("tasks.prepare.__main__").main()
            else:
                (folder / "data").symlink_to(ROOT / "data")
        with self.inside({}, seed):
            if teacher is not None:
                shutil.copytree(teacher, folder / MODELS / "teacher")
            else:
                importlib.import_module("tasks.teacher.__main__").main()

    @contextlib.contextmanager
    def inside(self, models: Mapping[str, Any], seed: int) -> Iterator[None]:
        """Work in the folder, quietly, with these blocks in params.yaml beside those of the models there.

        Models of several seeds descend from one teacher here and from images drawn by one seed, which no
        params.yaml describes, so that neither is compared with it.
        """
        before = Path.cwd()
        os.chdir(self.folder)
        content = self.sections | {"seed": seed, "models": {**self.blocks, **models}}
        Path("params.yaml").write_text(json.dumps(content), encoding="utf-8")  # which is YAML too
        try:
            with (
                contextlib.redirect_stdout(io.StringIO()),
                contextlib.redirect_stderr(io.StringIO()),
                mock.patch.object(pipeline_models, "check_lineages", lambda *_: None),
                mock.patch.object(data, "_check_drawn", lambda *_: None),
            ):
                yield
        finally:
            os.chdir(before)

    def make(self, name: str, block: Mapping[str, Any], seed: int) -> Checkpoint:
        """Run one operation and return the model."""
        with self.inside({name: block}, seed):
            importlib.import_module(f"tasks.{block['op']}.__main__").main(name)
            self.blocks[name] = block
            return load_model(name)

    def measured(self, name: str) -> dict[str, float]:
        """Return accuracy on the test split in percent, and what the model has left."""
        with self.inside({}, 1):
            model, test = load_model(name), data.read(data.TEST)
            return {
                "accuracy": 100 * metrics_accuracy.accuracy(predict(model.module, test.images), test.labels),
                "nonzeros": metrics_counts.nonzeros(model.module),
                "macs": metrics_counts.macs(model.module),
                "bytes": size_bytes(MODELS / name),
            }
