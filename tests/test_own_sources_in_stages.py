"""Sounds, generators, arrays with labels, pictures beside numbers: from params.yaml to the report."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from decant.clip.operation import clip
from decant.clip.params import ClipParams
from decant.distill.operation import distill
from decant.distill.params import DistillParams
from decant.errors import DecantError
from decant.examples import Rows
from decant.finetune.operation import finetune
from decant.finetune.params import FinetuneParams
from decant.networks.execution import predict
from decant.networks.python import sum_of_code
from decant.prune.operation import prune
from decant.prune.params import PruneParams
from decant.quantize.operation import quantize
from decant.quantize.params import QuantizeParams
from tasks.benchmark.exports import export
from tasks.evaluate.__main__ import main as evaluate
from tasks.pipeline import splits
from tasks.pipeline.metrics import OF_BALANCED, OF_LABELS, OF_NUMBERS
from tasks.pipeline.models import load_model
from tasks.pipeline.step import compress
from tasks.prepare.__main__ import main as prepare
from tasks.report.__main__ import main as report
from tasks.teacher.__main__ import main as teach
from tasks.validate.__main__ import main as validate
from tests.test_own_networks import THREADS, changed, git, project

TRAINING = {
    "epochs": 8,
    "batch_size": 8,
    "optimizer": {"kind": "adamw", "learning_rate": 0.02},
    "schedule": {"kind": "cosine"},
}
SHARES = {"kind": "shares", "validation": 0.2, "test": 0.2}
INT8 = {
    "op": "quantize",
    "from": "teacher",
    "scheme": {"kind": "integer", "bits": 8},
    "activations": {"bits": 8},
}
NETWORK = "networks/mine.py"


def content(data: dict[str, Any], **more: Any) -> dict[str, Any]:
    architecture = {"kind": "python", "file": NETWORK, "build": "build"}
    return {
        "seed": 1,
        "threads": THREADS,
        "data": data,
        "teacher": {"architecture": architecture, "training": TRAINING},
        "models": {"int8": INT8},
        "benchmark": {"threads": 1, "rounds": 3, "seconds": 1},
    } | more


def measured(*names: str) -> dict[str, dict[str, float]]:
    for name in names:
        evaluate(name)
    return {name: json.loads(Path("metrics", f"{name}.json").read_text()) for name in names}


def through(*names: str) -> dict[str, dict[str, float]]:
    """Run the stages up to the report; return what was measured."""
    validate()
    prepare()
    teach()
    for name in names:
        schema, operation = {
            "int8": (QuantizeParams, quantize),
            "half": (PruneParams, prune),
            "narrow": (PruneParams, prune),
            "clipped": (ClipParams, clip),
            "tuned": (FinetuneParams, finetune),
            "student": (DistillParams, distill),
        }[name]
        compress(name, schema, operation)
    found = measured("teacher", *names)
    report()
    assert all(f"| {name}" in Path("report/README.md").read_text() for name in names)
    return found


# --- sounds

LISTENER = """
from torch import nn

from decant import LogMel


def build(channels=16):
    return nn.Sequential(
        LogMel(8000, bands=12, window=200, hop=100),
        nn.BatchNorm2d(1),
        nn.Conv2d(1, channels, 3),
        nn.ReLU(),
        nn.Conv2d(channels, channels, 3),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(channels, 2),
    )
"""


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[Path]:
    soundfile = pytest.importorskip("soundfile", reason="the extra `sound` is not installed")
    data = {"source": "sound", "folder": "data/own/calls", "rate": 8000, "length": 800}
    data |= {"split": SHARES | {"stratified": True}}
    student = {
        "kind": "python",
        "file": NETWORK,
        "build": "build",
        "with": {"channels": 6},
        "code": hashlib.sha256(LISTENER.encode()).hexdigest(),
    }
    models = {
        "int8": INT8,
        "half": {
            "op": "prune",
            "from": "teacher",
            "criterion": {"kind": "taylor"},
            "budget": {"sparsity": 0.5},
        },
        "narrow": {
            "op": "prune",
            "from": "teacher",
            "structure": {"kind": "channels"},
            "criterion": {"kind": "magnitude"},
            "budget": {"macs": 0.9},  # of which the transform has four fifths
        },
        "clipped": {"op": "clip", "from": "teacher", "cut": {"kind": "percentile"}},
        "tuned": {"op": "finetune", "from": "half", "training": TRAINING | {"epochs": 2}},
        "student": {
            "op": "distill",
            "from": "teacher",
            "student": student,
            "loss": {"kind": "temperature"},
            "training": TRAINING,
        },
    }
    with project(tmp_path, content(data, models=models), "data/own", NETWORK, LISTENER):
        generator = np.random.default_rng(0)
        for name, hertz in (("high", 2000), ("low", 500)):
            Path("data/own/calls", name).mkdir(parents=True)
            for number in range(30):
                time = np.arange(int(generator.integers(700, 1000))) / 8000
                wave = 0.3 * np.sin(2 * np.pi * hertz * generator.uniform(0.8, 1.2) * time)
                noisy = wave + generator.normal(0, 0.02, len(time))
                soundfile.write(f"data/own/calls/{name}/{number}.flac", noisy, 8000)
        yield tmp_path


def test_sounds_are_trained_on_and_exported_with_log_mel_in_the_model(listener: Path) -> None:
    changed(models={"int8": INT8})
    found = through("int8")
    assert all(row["accuracy"] > 0.9 for row in found.values())
    small, test = load_model("int8"), splits.read(splits.TEST)
    # The transform is no weight: nothing of it is rounded or stored.
    assert not any("basis" in name or name[:2] == "0." for name in small.module.state_dict())
    assert {*small.constraints} == {"2.weight", "4.weight", "8.weight"}
    exports, failed = export(("int8",), load_model, test, 1)
    assert not failed and isinstance(test.images, Rows)
    session = exports["int8"].session
    assert [each.name for each in session.get_inputs()] == ["sound"]
    (answers,) = session.run(None, {"sound": test.images.tensors["sound"].numpy()})
    assert (answers.argmax(1) == predict(small.module, test.images).argmax(1).numpy()).all()


@pytest.mark.slow
def test_every_operation_works_on_sounds(listener: Path) -> None:
    names = ("int8", "half", "narrow", "clipped", "tuned", "student")
    found = through(*names)
    assert all(row["accuracy"] > 0.9 for row in found.values())
    exports, failed = export(("teacher", *names), load_model, splits.read(splits.TEST), 1)
    assert not failed and set(exports) == {"teacher", *names}
    assert len(exports["narrow"].content) < len(exports["teacher"].content)


# --- generators

TONES = """
import numpy as np


def rows(count=60, step=0.5):
    drawn = np.random.default_rng(7)
    for number in range(count):
        x = drawn.standard_normal(4, dtype=np.float32)
        yield {
            "x": x,
            "place": number % 5,
            "kind": "up" if x[0] > 0 else "down",
            "value": float(3 * x[0] + step),
            "tags": {name for name, said in (("first", x[0] > 0), ("second", x[1] > 0)) if said},
            "part": ("train", "validation", "test")[min(number % 10 // 4, 2)],
        }
"""

READER = """
import torch
from torch import nn


class Reader(nn.Module):
    def __init__(self, outputs):
        super().__init__()
        self.places = nn.Embedding(5, 2)
        self.hidden, self.head = nn.Linear(6, 12), nn.Linear(12, outputs)

    def forward(self, x, place):
        return self.head(torch.relu(self.hidden(torch.cat([x, self.places(place)], 1))))


def build(outputs=2):
    return Reader(outputs)
"""


def test_rows_of_a_generator_go_through_all_stages(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = {
        "source": "python",
        "file": "networks/tones.py",
        "function": "rows",
        "with": {"count": 120},
        "target": {"kind": "classes", "column": "kind"},
        "split": SHARES,
    }
    code = TONES.replace('            "value"', '            # "value"').replace(
        '            "tags"', '            # "tags"'
    )
    code = code.replace('            "part"', '            # "part"')
    with project(tmp_path, content(data), "data/own", NETWORK, READER):
        Path("networks/tones.py").write_text(code)
        with pytest.raises(DecantError, match=r"data: Git does not track networks/tones\.py"):
            validate()
        git("add", "networks/tones.py")
        found = through("int8")
        assert found["int8"]["accuracy"] > 0.85 and load_model("int8").classes == ("down", "up")
        table = pq.read_schema(splits.TRAIN).metadata
        assert json.loads(table[b"code"]) == sum_of_code(Path("networks/tones.py"))
        assert "train: 72 rows" in capsys.readouterr().out
        sums = Path("data/files/prepare").read_text()
        assert "networks/tones.py" in sums
        Path("networks/tones.py").write_text(code.replace("(7)", "(8)"))
        validate()
        assert Path("data/files/prepare").read_text() != sums
