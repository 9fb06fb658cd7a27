"""Sounds, generators, arrays with labels, pictures beside numbers: from params.yaml to the report."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from decant.errors import DecantError
from decant.examples import Rows
from decant.networks.execution import predict
from decant.networks.python import sum_of_code
from tasks.benchmark.exports import export
from tasks.pipeline import splits
from tasks.pipeline.metrics import OF_BALANCED, OF_LABELS, OF_NUMBERS
from tasks.pipeline.models import load_model
from tasks.prepare.__main__ import main as prepare
from tasks.report.__main__ import main as report
from tasks.teacher.__main__ import main as teach
from tasks.validate.__main__ import main as validate
from tests.stages import compressed, measured
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


def through(*names: str) -> dict[str, dict[str, float]]:
    """Run the stages up to the report; return what was measured."""
    validate()
    prepare()
    teach()
    compressed(*names)
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
    file = tmp_path / "before" / Path(NETWORK).name  # which is part of the sum, as several files are
    file.parent.mkdir()
    file.write_text(LISTENER)
    student = {
        "kind": "python",
        "file": NETWORK,
        "build": "build",
        "with": {"channels": 6},
        "code": sum_of_code(file),
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
    assert "decant/networks/sound.py" in Path("data/files/teacher").read_text()
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


# --- arrays with targets


@pytest.mark.parametrize(
    ("target", "labels", "keys"),
    [
        ({"kind": "numbers", "names": ["far"]}, "far", OF_NUMBERS.keys),
        pytest.param(
            {"kind": "labels", "names": ["first", "second"]}, "marks", OF_LABELS.keys, marks=pytest.mark.slow
        ),
        pytest.param({"kind": "classes", "balanced": True}, "kind", OF_BALANCED.keys, marks=pytest.mark.slow),
    ],
)
def test_arrays_with_targets_go_through_all_stages(
    target: dict[str, Any], labels: str, keys: tuple[str, ...], tmp_path: Path
) -> None:
    generator = np.random.default_rng(0)
    x = generator.standard_normal((160, 4), np.float32)
    known = {"far": 100 + 20 * x[:, 0], "marks": x[:, :2] > 0, "kind": (x[:, 0] > 0.8).astype(np.int64)}
    arrays = {"x": x, "place": np.arange(160) % 5, labels: known[labels]}
    data = {"source": "arrays", "train": "data/arrays/all.npz", "validation": 30, "test": 30}
    data |= {"labels": labels, "target": target}
    params = content(data, gates={"all": {keys[0]: {"drop": 0.2}}})
    params["teacher"]["architecture"]["with"] = {"outputs": 1 if labels == "far" else 2}
    code = READER if labels != "far" else READER.replace("], 1))))", "], 1)))) * 20 + 100")
    with project(tmp_path, params, "data/arrays", NETWORK, code):
        np.savez("data/arrays/all.npz", **arrays)
        found = through("int8")
    few = tuple(key for key in keys if key != "top5_accuracy")  # of ten classes or more
    assert {tuple(row) for row in found.values()} == {few}
    assert min(row[keys[0]] for row in found.values()) > 0.7, found


# --- pictures beside numbers

JUDGE = """
import torch
from torch import nn


class Judge(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("numbers_mean", torch.zeros(1))
        self.register_buffer("numbers_deviation", torch.ones(1))
        self.register_buffer("target_mean", torch.zeros(1))
        self.register_buffer("target_deviation", torch.ones(1))
        self.look, self.hidden, self.head = nn.Conv2d(1, 4, 3), nn.Linear(5, 12), nn.Linear(12, 1)

    def forward(self, image, numbers):
        seen = torch.relu(self.look(image.float() / 255)).mean((2, 3))
        known = (numbers - self.numbers_mean) / self.numbers_deviation
        hidden = torch.relu(self.hidden(torch.cat([seen, known], 1)))
        return self.head(hidden) * self.target_deviation + self.target_mean


def build():
    return Judge()
"""


def test_a_network_with_two_inputs_gets_pictures_and_numbers(tmp_path: Path) -> None:
    data = {
        "source": "folder",
        "folder": "data/own/photos",
        "size": [6, 6],
        "colours": "grey",
        "table": {"file": "data/own/photos.csv", "path": "name", "numbers": ["weight"]},
        "target": {"kind": "numbers", "columns": ["price"]},
        "split": SHARES,
    }
    generator = np.random.default_rng(0)
    with project(
        tmp_path, content(data, gates={"all": {"mae": {"rise": "50%"}}}), "data/own", NETWORK, JUDGE
    ):
        Path("data/own/photos").mkdir()
        lines = ["name,weight,price"]
        for number in range(100):
            grey, weight = int(generator.integers(0, 256)), generator.normal(50, 10)
            Image.new("L", (8, 7), grey).save(f"data/own/photos/{number}.png")
            lines.append(f"{number}.png,{weight:.4f},{2 * grey + 5 * weight:.4f}")
        Path("data/own/photos.csv").write_text("\n".join(lines))
        found = through("int8")
        # Neither input alone says as much: the price has about three quarters of its variance from greys.
        assert found["teacher"]["r2"] > 0.9 and found["int8"]["r2"] > 0.85
        exports, failed = export(("int8",), load_model, splits.read(splits.TEST), 1)
        assert not failed
        given = {each.name: each.type for each in exports["int8"].session.get_inputs()}
        assert given == {"image": "tensor(uint8)", "numbers": "tensor(float)"}


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ({}, "resnet takes pictures and answers with classes, and the data have other columns or another"),
        (
            {"target": {"kind": "classes", "column": "kind"}},
            r"resnet takes pictures of classes that are known before the table is read: name them in",
        ),
        ({"table": {"file": "data/own/none.csv", "path": "name"}}, r"there is no file data/own/none.csv"),
    ],
)
def test_what_our_networks_need_of_a_table_is_told_before_a_stage_runs(
    more: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    data = {
        "source": "folder",
        "folder": "data/own/photos",
        "size": [6, 6],
        "table": {"file": "data/own/photos.csv", "path": "name"},
        "target": {"kind": "numbers", "columns": ["price"]},
        "split": SHARES,
    }
    architecture = {"kind": "resnet", "widths": [8], "blocks": [0]}
    params = content(data | more, teacher={"architecture": architecture, "training": TRAINING})
    with project(tmp_path, params, "data/own/photos", NETWORK, JUDGE):
        Path("data/own/photos.csv").write_text("name,price,kind\n")
        with pytest.raises(DecantError, match=sentence):
            validate()
