"""`seeds: 3` in a block: models of one recipe by other seeds, kept beside the first, and what they say."""

import json
import shutil
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from decant.checkpoints.files import load, size_bytes
from decant.checkpoints.lineage import read_lineage
from decant.errors import DecantError
from decant.evidence.resampling import permutation
from decant.finetune.params import FinetuneParams
from decant.networks.execution import predict
from decant.recipes import recipe_of
from decant.training.resume import SCRATCH
from tasks.pipeline import splits
from tasks.pipeline.lineages import MODELS
from tasks.pipeline.models import load_model, load_seeds
from tasks.stability.__main__ import main as stability
from tests import homes
from tests.stages import compressed, measured
from tests.test_stability import SHAPE, network

TRAINING = {"epochs": 1, "batch_size": 10, "optimizer": {"kind": "sgd", "learning_rate": 0.5}}
BLOCK: dict[str, Any] = {
    "op": "finetune",
    "from": "teacher",
    "loss": {"kind": "softmax"},
    "training": TRAINING,
}
PARAMS: dict[str, Any] = {
    "seed": 1,
    "threads": {"teacher": 1, "finetune": 1, "evaluate": 1},
    "teacher": {"architecture": {"kind": "mlp", "hidden": [4]}, "training": {"epochs": 2}},
    "models": {"tuned": BLOCK | {"seeds": 3}, "once": BLOCK},
}


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """A folder with a teacher."""
    with homes.home(tmp_path, homes.noise(SHAPE, train=60, validation=20, test=60), PARAMS) as folder:
        homes.put_model("teacher", network(0))
        yield folder


def test_a_block_with_seeds_makes_as_many_models_of_which_the_first_is_the_one(home: Path) -> None:
    compressed("tuned")
    first, *others = [load_model("tuned"), *load_seeds("tuned")]
    images = splits.read(splits.TEST).images
    outputs = [predict(each.module, images) for each in (first, *others)]
    assert len(outputs) == 3
    for one, other in product(range(3), range(3)):
        assert bool((outputs[one] == outputs[other]).all()) == (one == other)
    seeds = [read_lineage(MODELS / "tuned" / place).lineage.steps[-1]["seed"] for place in ("", "seeds/2")]
    assert seeds[0] != seeds[1]
    assert size_bytes(MODELS / "tuned") == size_bytes(MODELS / "tuned" / "seeds" / "2")
    assert [*SCRATCH.glob("tuned*")] == []
    before = {path: path.read_bytes() for path in (MODELS / "tuned").rglob("*.*")}
    compressed("tuned")
    assert {path: path.read_bytes() for path in (MODELS / "tuned").rglob("*.*")} == before


def test_one_seed_is_the_first_of_several_and_leaves_no_trace(home: Path) -> None:
    compressed("tuned")
    weights = (MODELS / "tuned" / "model.safetensors").read_bytes()
    homes.write_params(PARAMS | {"models": {"tuned": BLOCK}})
    compressed("tuned")
    assert (MODELS / "tuned" / "model.safetensors").read_bytes() == weights
    assert not (MODELS / "tuned" / "seeds").exists()
    assert load_seeds("tuned") == []
    assert "seeds" not in (MODELS / "tuned" / "lineage.json").read_text()


def test_stability_says_what_is_chance_of_them(home: Path) -> None:
    compressed("tuned", "once")
    metrics = measured("teacher", "tuned", "once")
    for name in ("teacher", "tuned", "once"):
        stability(name)
    found = json.loads(Path("stability/tuned.details.json").read_text())["seeds"]
    test = splits.read(splits.TEST)
    every = [load_model("tuned"), *load_seeds("tuned")]
    right = [
        (predict(each.module, test.images).argmax(1) == test.known_labels).double().mean() for each in every
    ]
    assert found["accuracy"] == pytest.approx([float(each) for each in right], rel=1e-5)
    assert found["accuracy"][0] == metrics["tuned"]["accuracy"]
    assert found["mean"] == pytest.approx(np.mean(right), rel=1e-5)
    assert found["deviation"] == pytest.approx(np.std(right, ddof=1), rel=1e-4)
    assert found["teacher"] == metrics["teacher"]["accuracy"]
    assert ("no difference beyond chance" in found["verdict"]) == (found["p"] > 0.05)
    assert "seeds" not in json.loads(Path("stability/once.details.json").read_text())


def test_models_of_another_recipe_are_no_seeds(home: Path) -> None:
    compressed("tuned", "once")
    shutil.rmtree(MODELS / "tuned" / "seeds" / "3")
    shutil.copytree(MODELS / "once", MODELS / "tuned" / "seeds" / "3")
    with pytest.raises(DecantError, match=r"models/tuned/seeds/3 was made otherwise than models/tuned; run"):
        load_seeds("tuned")
    shutil.rmtree(MODELS / "tuned" / "seeds" / "3")
    with pytest.raises(DecantError, match=r"models/tuned/seeds/3"):
        load_seeds("tuned")
    assert load(MODELS / "tuned" / "seeds" / "2").classes


def test_a_call_makes_one_model() -> None:
    with pytest.raises(DecantError, match=r"has seeds: 3, and a call makes one model"):
        recipe_of(FinetuneParams, BLOCK | {"seeds": 3}, {"training": 60, "validation": 20})


def test_the_permutation_test_is_that_of_all_signs() -> None:
    differences = np.array([0.3, -0.1, 0.5, 0.2, 0.0, 0.4, -0.2, 0.6])
    there = differences[differences != 0]
    sums = np.array([abs(np.dot(signs, there)) for signs in product((-1, 1), repeat=len(there))])
    exact = (sums >= abs(there.sum()) - 1e-12).mean()
    assert permutation(differences) == pytest.approx(exact, abs=0.01)
    assert permutation(np.zeros(5)) == 1.0
    assert permutation(np.ones(200)) == pytest.approx(1 / 10_001)


def test_the_permutation_test_is_wrong_in_one_of_twenty_cases() -> None:
    generator = np.random.Generator(np.random.PCG64(1))
    wrong = np.mean([permutation(generator.normal(size=12)) <= 0.05 for _ in range(300)])
    assert 0.02 < wrong < 0.085
