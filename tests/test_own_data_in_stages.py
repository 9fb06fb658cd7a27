"""Tables and pictures of one's own in the pipeline: from params.yaml to the report."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from decant.errors import DecantError
from decant.examples import Rows
from decant.networks.execution import predict
from tasks.benchmark.exports import export
from tasks.pipeline import splits
from tasks.pipeline.metrics import OF_BALANCED, OF_LABELS, OF_NUMBERS
from tasks.pipeline.models import load_model
from tasks.prepare.__main__ import main as prepare
from tasks.report.__main__ import main as report
from tasks.teacher.__main__ import main as teach
from tasks.validate.__main__ import main as validate
from tests.homes import home
from tests.stages import compressed, measured
from tests.test_own_networks import THREADS, changed, git, project

CODE = """
import torch
from torch import nn


class Pricer(nn.Module):
    def __init__(self, answers):
        super().__init__()
        self.register_buffer("numbers_mean", torch.zeros(2))
        self.register_buffer("numbers_deviation", torch.ones(2))
        self.register_buffer("target_mean", torch.zeros(answers))
        self.register_buffer("target_deviation", torch.ones(answers))
        self.table = nn.Embedding(4, 3)
        self.hidden = nn.Linear(5, 16)
        self.head = nn.Linear(16, answers)

    def forward(self, numbers, colour):
        scaled = (numbers - self.numbers_mean) / self.numbers_deviation
        scaled = torch.where(torch.isnan(scaled), 0.0, scaled)
        hidden = torch.relu(self.hidden(torch.cat([scaled, self.table(colour)], 1)))
        return self.head(hidden) * self.target_deviation + self.target_mean


def build(answers=1):
    return Pricer(answers)
"""

TRAINING = {
    "epochs": 12,
    "batch_size": 20,
    "optimizer": {"kind": "adamw", "learning_rate": 0.02},
    "schedule": {"kind": "cosine"},
}
SOFTENED = {"op": "finetune", "from": "teacher", "loss": {"kind": "softmax"}, "training": TRAINING}
MODELS = {
    "half": {
        "op": "prune",
        "from": "teacher",
        "criterion": {"kind": "magnitude"},
        "budget": {"sparsity": 0.5},
    },
    "half-ft": {"op": "finetune", "from": "half", "training": TRAINING | {"epochs": 2}},
    "int8": {
        "op": "quantize",
        "from": "teacher",
        "scheme": {"kind": "integer", "bits": 8},
        "activations": {"bits": 8},
    },
}


def content() -> dict[str, Any]:
    return {
        "seed": 1,
        "threads": THREADS,
        "data": {
            "source": "table",
            "file": "data/own/things.csv",
            "numbers": ["width", "height"],
            "categories": ["colour"],
            "missing": "keep",
            "target": {"kind": "numbers", "columns": ["price"], "loss": {"kind": "smooth-l1"}},
            "split": {"kind": "shares", "validation": 0.2, "test": 0.2},
        },
        "teacher": {
            "architecture": {"kind": "python", "file": "networks/pricer.py", "build": "build"},
            "training": TRAINING,
        },
        "models": MODELS,
        "benchmark": {"threads": 1, "rounds": 3, "seconds": 1},
        "gates": {"all": {"mae": {"rise": "2%"}}},
    }


def things(path: str = "data/own/things.csv", count: int = 500) -> None:
    """Write a price that follows from two numbers and a colour; one height in ten is missing."""
    generator = np.random.Generator(np.random.PCG64(0))
    with Path(path).open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["width", "height", "colour", "price", "kinds", "kind"])
        for row in range(count):
            width, height = generator.normal(50, 10), generator.normal(size=1)[0]
            colour = ("red", "green", "blue")[int(generator.integers(3))]
            price = 1000 + 20 * width + (300 if colour == "red" else 0)
            kinds = [name for name, said in (("wide", width > 50), ("red", colour == "red")) if said]
            kind = "rare" if width > 62 else "common"
            shown = "" if row % 10 == 0 else f"{height:.3f}"
            writer.writerow([f"{width:.3f}", shown, colour, f"{price:.2f}", " ".join(kinds), kind])


@pytest.fixture
def workshop(tmp_path: Path) -> Iterator[Path]:
    with project(tmp_path, content(), "data/own", "networks/pricer.py", CODE):
        things()
        yield tmp_path


def test_numbers_of_a_table_from_params_to_report(workshop: Path) -> None:
    validate()
    prepare()
    teach()
    compressed(*MODELS)
    found = measured("teacher", *MODELS)
    assert all(list(row) == list(OF_NUMBERS.keys) for row in found.values())
    test, teacher = splits.read(splits.TEST), load_model("teacher")
    assert isinstance(test.images, Rows) and test.images.tensors["numbers"].isnan().any()
    outputs = predict(teacher.module, test.images)
    by_hand = [
        abs(a - b) for a, b in zip(outputs[:, 0].tolist(), test.known_labels[:, 0].tolist(), strict=True)
    ]
    assert found["teacher"]["mae"] == pytest.approx(sum(by_hand) / len(by_hand), rel=1e-5)
    assert found["teacher"]["from_teacher"] == 0 and found["teacher"]["r2"] > 0.9
    assert found["half-ft"]["mae"] < found["half"]["mae"]
    assert 0 < found["int8"]["from_teacher"] < 0.2 * test.known_labels.std()
    # The statistics are in the deployed weights.
    train = splits.read(splits.TRAIN)
    buffers = dict(load_model("int8").module.named_buffers())
    assert buffers["target_mean"].item() == pytest.approx(train.known_labels.mean().item(), rel=1e-6)
    curve = Path("models/teacher/curve.csv").read_text().splitlines()[0]
    assert curve == "epoch,loss,learning_rate,validation_loss,validation_mae"
    report()
    page = Path("report/README.md").read_text()
    assert "| half-ft" in page and "MAE" in page and Path("report/tradeoff.svg").stat().st_size > 1000
    headline = json.loads(Path("headline/int8.json").read_text())
    assert list(headline) == list(OF_NUMBERS.headline)


def test_models_of_a_table_have_onnx_files_that_take_missing_values(workshop: Path) -> None:
    prepare()
    teach()
    compressed("int8")
    exports, failed = export(("teacher", "int8"), load_model, splits.read(splits.TEST), 1)
    assert not failed and set(exports) == {"teacher", "int8"}


@pytest.mark.parametrize(
    ("target", "keys", "answers"),
    [
        ({"kind": "labels", "column": "kinds"}, OF_LABELS.keys, 2),
        ({"kind": "classes", "column": "kind", "balanced": True}, OF_BALANCED.keys, 2),
    ],
)
def test_labels_and_rare_classes_are_trained_and_measured(
    workshop: Path, target: dict[str, Any], keys: tuple[str, ...], answers: int
) -> None:
    architecture = content()["teacher"]["architecture"] | {"with": {"answers": answers}}
    gates = {"all": {keys[0]: {"drop": 0.1}}}
    changed(data__target=target, teacher__architecture=architecture, gates=gates)
    validate()
    prepare()
    teach()
    row = measured("teacher")["teacher"]
    few = tuple(key for key in keys if key != "top5_accuracy")
    assert tuple(row) == few and row[keys[0]] > 0.8 and row["agreement"] == 1


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"gates": {"all": {"accuracy": {"drop": 0.1}}}}, "gates.all.accuracy: is no measure of models"),
        ({"teacher__architecture": {"kind": "resnet", "widths": [8], "blocks": [0]}}, "takes pictures, and"),
        ({"data__file": "data/own/other.csv"}, "data: there is no file data/own/other.csv"),
        (
            {"models": {"ft": SOFTENED}},
            "models.ft.loss.kind: softmax needs logits of classes, and the target has none; take outputs",
        ),
    ],
)  # fmt: skip
def test_what_a_target_cannot_do_is_told_before_a_stage_runs(
    workshop: Path, changes: dict[str, Any], sentence: str
) -> None:
    changed(**changes)
    with pytest.raises(DecantError, match=sentence):
        validate()


def test_a_network_of_another_width_than_the_target_is_refused(workshop: Path) -> None:
    changed(teacher__architecture=content()["teacher"]["architecture"] | {"with": {"answers": 3}})
    prepare()
    with pytest.raises(DecantError, match="gives 3 numbers a row, and the target has 1"):
        teach()


def test_a_network_that_does_not_know_missing_values_is_refused(workshop: Path) -> None:
    Path("networks/pricer.py").write_text(
        CODE.replace("torch.where(torch.isnan(scaled), 0.0, scaled)", "scaled")
    )
    git("add", "networks/pricer.py")
    prepare()
    with pytest.raises(DecantError, match="the network answers NaN to its example"):
        teach()


def test_a_changed_target_or_table_makes_the_splits_old(workshop: Path) -> None:
    validate()
    before = Path("data/files/prepare").read_text()
    prepare()
    changed(data__target={"kind": "numbers", "columns": ["width"]}, data__numbers=["height"])
    with pytest.raises(DecantError, match="was drawn by"):
        splits.read(splits.TRAIN)
    with Path("data/own/things.csv").open("a") as file:
        file.write("1,1,red,5,,common\n")
    validate()
    assert Path("data/files/prepare").read_text() != before


def test_pictures_in_folders_train_a_network_of_ours(tmp_path: Path) -> None:
    generator = np.random.Generator(np.random.PCG64(0))
    params = content() | {
        "data": {
            "source": "folder",
            "folder": "data/own/photos",
            "size": [8, 8],
            "split": {"kind": "shares", "validation": 0.2, "test": 0.2, "stratified": True},
        },
        "teacher": {
            "architecture": {"kind": "resnet", "widths": [8], "blocks": [0]},
            "training": TRAINING | {"epochs": 4, "batch_size": 8},
        },
        "models": {"int8": MODELS["int8"]},
        "gates": {"all": {"accuracy": {"drop": 0.1}}},
    }
    with home(tmp_path, params=params):
        for name in ("dark", "light"):
            folder = Path("data/own/photos", name)
            folder.mkdir(parents=True)
            for number in range(30):
                pixels = generator.integers(0, 128, (10, 12, 3)) + (100 if name == "light" else 0)
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
        validate()
        prepare()
        teach()
        compressed("int8")
        found = measured("teacher", "int8")
        report()
        assert load_model("int8").classes == ("dark", "light")
    assert found["int8"]["accuracy"] == found["teacher"]["accuracy"] == 1


def test_a_folder_that_is_not_there_is_told_before_a_stage_runs(tmp_path: Path) -> None:
    shares = {"kind": "shares", "validation": 0.2, "test": 0.2}
    data = {"source": "folder", "folder": "data/own/photos", "size": [8, 8], "split": shares}
    teacher = {"architecture": {"kind": "resnet", "widths": [8], "blocks": [0]}, "training": TRAINING}
    params = content() | {"data": data, "teacher": teacher, "gates": {}}
    with (
        home(tmp_path, params=params),
        pytest.raises(DecantError, match="there is no folder data/own/photos"),
    ):
        validate()
